"""Decoding of whole utterances, and chunk by chunk of many streams at once, to the same hypotheses.

Both ways pad an utterance by the same rule (`pad_to_whole_chunks`) and run the same searches (search.py).  So every
output frame and every hypothesis agree, the tail included.

Frames are feature frames (10 ms) unless called encoder frames (20 ms) or output frames (40 ms).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdstream.decoding.chunk_step import Step, chunk_step
from kdstream.decoding.search import Result, Search, State
from kdstream.endpoints import Segmenter
from kdstream.errors import UserError, option
from kdstream.models.streaming import SHORTEST, ChunkConfig, EncoderState, pad_to_whole_chunks, stack_states
from kdstream.models.transducer import Transducer

Utterances = Iterable[tuple[Any, Tensor | Iterable[Tensor]]]


@torch.no_grad()
def decode_whole(
    model: Transducer, features: Tensor, feature_lens: Tensor, chunk: ChunkConfig | None, search: Search
) -> list[Result]:
    """Decodes a batch of whole utterances.

    Args:
      model: in eval mode.
      features: (N, T, F), padded with LOG_EPS.
      feature_lens: (N,).
      chunk: simulates streaming by a mask; None for full context.
    Raises:
      UserError: a chunk that does not fit the encoder.
    """
    encoder_out, encoder_out_lens = encode_whole(model, features, feature_lens, chunk)
    state = search.start(model, features.size(0))
    return search.advance(model, encoder_out, encoder_out_lens, state).results()


@torch.no_grad()
def encode_whole(
    model: Transducer, features: Tensor, feature_lens: Tensor, chunk: ChunkConfig | None
) -> tuple[Tensor, Tensor]:
    """The encoder's output (N, T', D) and its lengths (N,) in output frames; arguments as in `decode_whole`."""
    # A causal model in full context sees to the end of what it is given: to each utterance's own end, not the batch's.
    if chunk is None and model.config.causal and features.size(0) > 1:
        alone = [
            encode_whole(model, features[n : n + 1, :length], feature_lens[n : n + 1], None)
            for n, length in enumerate(feature_lens.tolist())
        ]
        return pad_sequence([out[0] for out, _ in alone], batch_first=True), torch.cat([lens for _, lens in alone])
    device = next(model.parameters()).device
    whole = chunk.chunk if chunk is not None else model.max_downsampling
    features, feature_lens = pad_to_whole_chunks(features, feature_lens, whole)
    encoder_out, encoder_out_lens, _ = model.encode(features.to(device), feature_lens.to(device), chunk)
    return encoder_out, encoder_out_lens


class Stream:
    """One utterance as it arrives.  `StreamingDecoder.open` makes it, `accept_features` and `finish` feed it.

    closed: set it when the stream is no longer needed; the decoder then gives its place to another.
    segmenter: cuts its text into segments; None: it is one.
    """

    def __init__(self, chunk: ChunkConfig, search_state: State, segmenter: Segmenter | None = None) -> None:
        self.segmenter = segmenter
        self.searched = search_state  # of all streams of a step; row `row` is this one's
        self.row = 0
        self.finished = False
        self.closed = False
        self._chunk = chunk
        self._features: Tensor | None = None  # (T, F), of which the frames before _start are used up
        self._start = 0

    def accept_features(self, features: Tensor) -> None:
        """Appends (T, F) log energies."""
        if self.finished:
            raise ValueError("features after the end of the stream")
        if self._features is not None:
            features = torch.cat([self._features[self._start :], features])
        self._features, self._start = features, 0

    def finish(self) -> None:
        """Marks the end.  What features are left is padded with silence to whole chunks, as whole utterances are."""
        self.finished = True
        if self._features is not None:
            rest = self._features[self._start :].unsqueeze(0)
            rest_lens = torch.tensor([max(rest.size(1), SHORTEST)])
            chunk = self._chunk
            self._features = pad_to_whole_chunks(rest, rest_lens, chunk.chunk, chunk.right)[0][0]
            self._start = 0

    @property
    def ready(self) -> bool:
        """Whether the features of a chunk and of its look-ahead are there."""
        return self._features is not None and self._features.size(0) - self._start >= self._chunk.input_frames

    @property
    def done(self) -> bool:
        """Whether everything up to the end has been decoded."""
        return self.finished and not self.ready

    @property
    def search_state(self) -> State:
        """What the search knows of this stream."""
        return self.searched.row(self.row)

    @property
    def result(self) -> Result:
        """The best hypothesis so far, since the last endpoint if there was one."""
        return self.search_state.results()[0]

    def next_chunk(self) -> Tensor:
        """(chunk.input_frames, F).  Only where the stream is `ready`."""
        assert self._features is not None
        features = self._features[self._start : self._start + self._chunk.input_frames]
        self._start += self._chunk.shift
        return features


class StreamingDecoder:
    """Decodes many streams of different ages, one chunk of each that is ready per step.

    The caches of all streams lie in one batch, a row for each.  Where every stream is ready, a step runs on that batch
    as it is.  A stream that ends leaves its row to the next one that waits.

    Args:
      model: causal, in eval mode.
      chunk: with limited left context.
      max_streams: streams in one batch; more have to wait until one of these is closed.
      encode: the encoder's step; see `chunk_step`.  None: in Python.
      new_segmenter: makes what cuts the text of a stream into segments.  None: nothing does.
    Raises:
      UserError: a chunk that does not fit the encoder, or unlimited left context.
    """

    def __init__(
        self,
        model: Transducer,
        chunk: ChunkConfig,
        search: Search,
        max_streams: int = 64,
        encode: Step | None = None,
        new_segmenter: Callable[[], Segmenter] | None = None,
    ) -> None:
        if max_streams < 1:
            raise UserError("must be at least 1", flag=option("num_decode_streams", max_streams))
        self.model = model
        self.chunk = chunk
        self.search = search
        self.max_streams = max_streams
        self._new_segmenter = new_segmenter
        self._device = next(model.parameters()).device
        self._encode = encode or chunk_step(model, chunk)
        self._fresh = model.init_state(1, chunk, self._device)
        self._waiting: deque[Stream] = deque()
        self._in_batch: list[Stream] = []  # in the order of the encoder state's rows
        self._encoder_state = _take_rows(self._fresh, [])

    def open(self) -> Stream:
        """A new stream."""
        segmenter = self._new_segmenter() if self._new_segmenter is not None else None
        stream = Stream(self.chunk, self.search.start(self.model, 1), segmenter)
        self._waiting.append(stream)
        return stream

    @torch.inference_mode()
    def step(self) -> list[Stream]:
        """Decodes one chunk of every stream that is ready.

        Returns:
          These streams; none where all of them need more features first.
        """
        self._assign_rows()
        ready = [row for row, stream in enumerate(self._in_batch) if stream.ready]
        if not ready:
            return []
        streams = [self._in_batch[row] for row in ready]
        features = torch.stack([stream.next_chunk() for stream in streams]).to(self._device)
        if len(ready) == len(self._in_batch):
            encoder_out, self._encoder_state = self._encode(features, self._encoder_state)
        else:
            encoder_out, state = self._encode(features, _take_rows(self._encoder_state, ready))
            _put_rows(self._encoder_state, ready, state)
        lens = torch.full((len(streams),), encoder_out.size(1), device=self._device)
        searched = self.search.advance(self.model, encoder_out, lens, _search_state(streams))
        for row, stream in enumerate(streams):
            stream.searched, stream.row = searched, row
        if any(stream.segmenter is not None and stream.segmenter.cuts for stream in streams):
            self._finish_segments(streams, searched)
        return streams

    def _finish_segments(self, streams: list[Stream], searched: State) -> None:
        """Ends the segments of `streams`, the rows of `searched`, that the endpoint rules say have ended."""
        for stream, now, last in zip(streams, searched.frames, searched.last_frames(), strict=True):
            if stream.segmenter is not None and stream.segmenter.ends(now, last):
                stream.segmenter.finish(now, stream.result.as_tokens())
                stream.searched, stream.row = self.search.restart(self.model, stream.search_state), 0

    def _assign_rows(self) -> None:
        """Takes closed streams out of the batch, and waiting ones into it, up to `max_streams`."""
        free = [row for row, stream in enumerate(self._in_batch) if stream.closed]
        room = self.max_streams - len(self._in_batch) + len(free)
        newcomers: list[Stream] = []
        while self._waiting and len(newcomers) < room:
            stream = self._waiting.popleft()
            if not stream.closed:
                newcomers.append(stream)
        while free and newcomers:
            row = free.pop()  # a stream takes the place of another; no tensor changes its size
            self._in_batch[row] = newcomers.pop()
            _put_rows(self._encoder_state, [row], self._fresh)
        if free:
            kept = [row for row, stream in enumerate(self._in_batch) if not stream.closed]
            self._in_batch = [self._in_batch[row] for row in kept]
            self._encoder_state = _take_rows(self._encoder_state, kept)
        if newcomers:
            self._encoder_state = stack_states([self._encoder_state, *[self._fresh] * len(newcomers)])
            self._in_batch += newcomers


def decode_streams(
    decoder: StreamingDecoder, utterances: Utterances, step_ms: list[float] | None = None
) -> Iterator[tuple[Any, Result]]:
    """Decodes utterances chunk by chunk, as `run_streams` does; yields the result of each when it ends."""
    for name, stream in run_streams(decoder, utterances, step_ms):
        yield name, stream.result


def run_streams(
    decoder: StreamingDecoder,
    utterances: Utterances,
    step_ms: list[float] | None = None,
    on_partial: Callable[[Any, Stream], None] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Any, Stream]]:
    """Decodes utterances chunk by chunk, `decoder.max_streams` at a time; yields the stream of each when it ends.

    Args:
      utterances: names and (T, F) features, whole or in pieces.  They are read only as places become free, and pieces
        only as they are decoded.
      step_ms: the milliseconds that each step takes are appended to it.
      on_partial: called after every step with the name and the stream of the utterance that began first.
      interrupted: asked between two steps; once it says so, the streams end where they are, and no others begin.
    """
    source = iter(utterances)
    open_streams: list[tuple[Any, Stream]] = []
    pieces: dict[Stream, Iterator[Tensor]] = {}  # of streams that are not finished
    while True:
        for name, features in islice(source, decoder.max_streams - len(open_streams)):
            stream = decoder.open()
            open_streams.append((name, stream))
            if isinstance(features, Tensor):
                stream.accept_features(features)
                stream.finish()
            else:
                pieces[stream] = iter(features)
        for stream in [stream for stream in pieces if _feed(stream, pieces[stream])]:
            del pieces[stream]
        if not open_streams:
            return
        begin = perf_counter()
        decoded = decoder.step()
        if decoded and step_ms is not None:
            step_ms.append(1000 * (perf_counter() - begin))
        if on_partial is not None:
            name, stream = open_streams[0]
            on_partial(name, stream)
        ends = interrupted()  # asked once: streams that were passed over would be lost
        for name, stream in open_streams:
            if stream.done or ends:
                stream.closed = True
                yield name, stream
        if ends:
            return
        open_streams = [(name, stream) for name, stream in open_streams if not stream.closed]


def _feed(stream: Stream, pieces: Iterator[Tensor]) -> bool:
    """Gives the stream what it needs for its next chunk.  Returns whether these were the last pieces."""
    while not stream.ready:
        piece = next(pieces, None)
        if piece is None:
            stream.finish()
            return True
        stream.accept_features(piece)
    return False


def _search_state(streams: list[Stream]) -> State:
    """The state of these streams together: that of the last step, if it had the same streams."""
    last = streams[0].searched
    if len(last.frames) == len(streams) and all(s.searched is last and s.row == n for n, s in enumerate(streams)):
        return last
    return type(last).stack([stream.search_state for stream in streams])


def _take_rows(state: EncoderState, rows: list[int]) -> EncoderState:
    index = torch.tensor(rows, dtype=torch.int64, device=state.processed.device)
    return EncoderState.from_tensors([tensor.index_select(0, index) for tensor in state.tensors()])


def _put_rows(state: EncoderState, rows: list[int], values: EncoderState) -> None:
    index = torch.tensor(rows, dtype=torch.int64, device=state.processed.device)
    for tensor, value in zip(state.tensors(), values.tensors(), strict=True):
        tensor.index_copy_(0, index, value)
