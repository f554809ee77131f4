"""Chunk by chunk against whole utterances, with the real encoder: every frame, every hypothesis, every tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.chunk_step import chunk_step
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.paths import History, PathState
from kdstream.decoding.search import Result, Search
from kdstream.decoding.stream import (
    Stream,
    StreamingDecoder,
    decode_streams,
    decode_whole,
    encode_whole,
    run_streams,
)
from kdstream.endpoints import EndpointConfig, Segmenter, TimedTokens
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks
from kdstream.models.transducer import Transducer
from kdstream.words import Letter, spell
from support.decoding import talkative_model
from support.models import CHEAP_FRONT_END, SETTINGS, random_batch

CHUNKS = (ChunkConfig(8, 32), ChunkConfig(16, 64), ChunkConfig(8, 32, 16))
SEARCHES = (GreedySearch(), GreedySearch(max_sym_per_frame=2), ModifiedBeamSearch())
LENS = (301, 222, 9, 97, 180, 23, 40)  # feature frames; 9 are the fewest that the front end takes
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=SETTINGS)
def model(request) -> Transducer:
    return talkative_model(causal=True, blank=1.0, encoder=request.param, **CHEAP_FRONT_END)


@pytest.fixture(scope="module")
def utterances() -> list[Tensor]:
    features, lens, _ = random_batch(LENS)
    return [x[:n] for x, n in zip(features, lens, strict=True)]


def assert_same(ours: Sequence[Result], theirs: Sequence[Result]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens == other.tokens
        assert one.timestamps == other.timestamps
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-3)
    assert len(ours) == len(theirs)


def whole(model: Transducer, utterances: Sequence[Tensor], chunk, search: Search) -> list[Result]:
    lens = torch.tensor([len(x) for x in utterances])
    padded = torch.nn.utils.rnn.pad_sequence(list(utterances), batch_first=True, padding_value=7.0)  # read by nobody
    return decode_whole(model, padded, lens, chunk, search)


def chunkwise(decoder: StreamingDecoder, utterances: Sequence[Tensor]) -> list[Result]:
    results = dict(decode_streams(decoder, enumerate(utterances)))
    return [results[n] for n in range(len(utterances))]


@pytest.mark.slow
@torch.no_grad()
def test_a_streaming_model_in_full_context_gives_every_utterance_what_it_gets_alone(model, utterances):
    lens = torch.tensor([len(x) for x in utterances])
    padded = torch.nn.utils.rnn.pad_sequence(list(utterances), batch_first=True, padding_value=7.0)
    together, together_lens = encode_whole(model, padded, lens, None)
    for n, features in enumerate(utterances):
        alone, alone_lens = encode_whole(model, features.unsqueeze(0), lens[n : n + 1], None)
        assert int(alone_lens) == int(together_lens[n])
        frames = int(alone_lens)
        assert (alone[0, :frames] - together[n, :frames]).abs().max() <= TOLERANCE


def run_to_the_end(decoder: StreamingDecoder) -> None:
    while decoder.step():
        pass


@dataclass(frozen=True)
class ListeningSearch(GreedySearch):
    """Keeps what it is given."""

    heard: list[Tensor] = field(default_factory=list)

    def advance(self, model, encoder_out, encoder_out_lens, state):
        assert encoder_out_lens.tolist() == [encoder_out.size(1)] * encoder_out.size(0)
        self.heard.append(encoder_out)
        return super().advance(model, encoder_out, encoder_out_lens, state)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
@torch.no_grad()
def test_chunk_by_chunk_equals_simulated_on_every_frame(model, utterances, chunk):
    """Ragged streams of different ages against one padded batch, the tails included."""
    search = ListeningSearch()
    decoder = StreamingDecoder(model, chunk, search, max_streams=3)
    streams = [decoder.open() for _ in utterances]
    for stream, features in zip(streams, utterances, strict=True):
        stream.accept_features(features)
        stream.finish()
    frames: dict[Stream, list[Tensor]] = {stream: [] for stream in streams}
    for stepped in iter(decoder.step, []):
        for stream, out in zip(stepped, search.heard[-1], strict=True):
            frames[stream].append(out)
        for stream in stepped:
            stream.closed = stream.done

    padded, lens = pad_to_whole_chunks(
        torch.nn.utils.rnn.pad_sequence(list(utterances), batch_first=True), torch.tensor(LENS), chunk.chunk
    )
    simulated, simulated_lens, _ = model.encode(padded, lens, chunk)
    for stream, expected, length in zip(streams, simulated, simulated_lens, strict=True):
        ours = torch.cat(frames[stream])
        assert ours.size(0) == length
        assert (ours - expected[:length]).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
def test_chunk_by_chunk_equals_simulated_in_every_hypothesis(model, utterances, chunk, search):
    expected = whole(model, utterances, chunk, search)
    assert sum(len(set(result.tokens)) > 3 for result in expected) >= 4
    for max_streams in (1, 3, 100):
        assert_same(chunkwise(StreamingDecoder(model, chunk, search, max_streams), utterances), expected)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, *CHUNKS], ids=str)
@pytest.mark.parametrize("search", SEARCHES[::2], ids=str)
def test_a_batch_gives_every_utterance_what_it_gets_alone(model, utterances, chunk, search):
    together = whole(model, utterances, chunk, search)
    assert_same([whole(model, [x], chunk, search)[0] for x in utterances], together)


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES[::2], ids=str)
def test_live_streams_that_join_stall_and_leave_equal_whole_utterances(model, utterances, search):
    """Features come in pieces of any size, streams start late, and one leaves for good in the middle."""
    chunk = CHUNKS[0]
    decoder = StreamingDecoder(model, chunk, search, max_streams=4)
    generator = torch.Generator().manual_seed(0)
    streams: dict[int, Stream] = {}
    sent = [0] * len(utterances)
    leaver = decoder.open()
    leaver.accept_features(utterances[0] + 1.0)
    for moment in range(1000):
        if moment % 3 == 0 and len(streams) < len(utterances):
            streams[len(streams)] = decoder.open()
        for n, stream in streams.items():
            piece = int(torch.randint(0, 40, (), generator=generator))
            if not stream.finished:
                stream.accept_features(utterances[n][sent[n] : sent[n] + piece])
                sent[n] += piece
                if sent[n] >= len(utterances[n]):
                    stream.finish()
        decoder.step()
        leaver.closed = moment > 5
        for stream in streams.values():
            stream.closed = stream.done
        if len(streams) == len(utterances) and all(stream.done for stream in streams.values()):
            break
    assert_same([streams[n].result for n in range(len(utterances))], whole(model, utterances, chunk, search))


def test_partial_results_of_greedy_search_grow_into_the_final_one(model, utterances):
    decoder = StreamingDecoder(model, CHUNKS[0], GreedySearch())
    stream = decoder.open()
    stream.accept_features(utterances[0])
    partial = []
    while decoder.step():
        partial.append(stream.result.tokens)
    stream.finish()
    run_to_the_end(decoder)
    final = stream.result.tokens
    assert len(partial) > 5
    assert all(tokens == final[: len(tokens)] for tokens in partial)


def test_the_silence_after_the_end_is_decoded_once(model):
    """A chunk of features is decoded only when its look-ahead is there, or by `finish`."""
    chunk = CHUNKS[0]
    decoder = StreamingDecoder(model, chunk, GreedySearch())
    stream = decoder.open()
    stream.accept_features(torch.zeros(chunk.input_frames - 1, 80))
    assert decoder.step() == [] and not stream.done
    stream.finish()
    assert decoder.step() == [stream] and not stream.done
    assert decoder.step() == [stream] and stream.done
    assert decoder.step() == []
    assert stream.search_state.frames == [chunk.chunk]


@pytest.mark.parametrize("frames", [0, 1, 8])
def test_utterances_too_short_for_the_front_end_get_one_chunk(model, frames):
    features = random_batch((12,))[0][0, :frames]
    chunk = CHUNKS[0]
    decoder = StreamingDecoder(model, chunk, GreedySearch())
    assert_same(chunkwise(decoder, [features]), whole(model, [features], chunk, GreedySearch()))


def test_features_after_the_end_are_refused(model):
    stream = StreamingDecoder(model, CHUNKS[0], GreedySearch()).open()
    stream.finish()
    with pytest.raises(ValueError, match="after the end"):
        stream.accept_features(torch.zeros(10, 80))


@pytest.mark.slow
def test_utterances_are_read_only_as_places_become_free(model, utterances):
    read: list[int] = []

    def reading():
        for n, features in enumerate(utterances):
            read.append(n)
            yield n, features

    results = decode_streams(StreamingDecoder(model, CHUNKS[0], GreedySearch(), max_streams=2), reading())
    next(results)
    assert len(read) < len(utterances)
    assert len(list(results)) == len(utterances) - 1


@pytest.mark.slow
def test_every_step_that_decodes_something_is_timed(model, utterances):
    decoder, step_ms = StreamingDecoder(model, CHUNKS[0], GreedySearch(), max_streams=len(utterances)), []
    list(decode_streams(decoder, enumerate(utterances), step_ms))
    longest = decoder.open()
    longest.accept_features(max(utterances, key=len))
    longest.finish()
    steps = 0
    while decoder.step():
        steps += 1
    assert len(step_ms) == steps and min(step_ms) > 0
    list(decode_streams(decoder, [], step_ms))
    assert len(step_ms) == steps


@pytest.mark.parametrize("chunk", [ChunkConfig(3, 6), ChunkConfig(8, -1)], ids=str)
def test_a_chunk_that_does_not_fit_is_refused(model, chunk):
    with pytest.raises(UserError, match="--(chunk-size|left-context-frames)"):
        StreamingDecoder(model, chunk, GreedySearch())


def test_a_decoder_for_no_streams_is_refused(model):
    with pytest.raises(UserError, match="--num-decode-streams"):
        StreamingDecoder(model, CHUNKS[0], GreedySearch(), max_streams=0)


@pytest.mark.slow
def test_every_engine_gives_the_same_hypotheses(model, utterances):
    expected = whole(model, utterances, CHUNKS[0], GreedySearch())
    for engine, streams in (("torch", 3), ("onnxruntime", 1)):
        encode = chunk_step(model, CHUNKS[0], engine)
        decoder = StreamingDecoder(model, CHUNKS[0], GreedySearch(), streams, encode)
        assert_same(chunkwise(decoder, utterances), expected)


def test_the_states_of_a_search_are_stacked_only_where_other_streams_take_part(model, utterances, monkeypatch):
    """And the streams keep the results of the last step in which they took part."""
    stacked: list[int] = []
    stack = PathState.stack
    monkeypatch.setattr(PathState, "stack", lambda states: stacked.append(len(states)) or stack(states))
    decoder = StreamingDecoder(model, CHUNKS[0], GreedySearch())
    streams = [decoder.open() for _ in range(3)]
    for stream in streams:
        stream.accept_features(utterances[0][:100])
    run_to_the_end(decoder)
    assert stacked == [3]
    before = streams[1].result
    streams[0].accept_features(utterances[0][100:])
    streams[2].accept_features(utterances[0][100:])
    run_to_the_end(decoder)
    assert stacked == [3, 2]
    assert streams[1].result == before
    streams[1].accept_features(utterances[0][100:])
    run_to_the_end(decoder)
    assert len({tuple(stream.result.tokens) for stream in streams}) == 1


@pytest.fixture(scope="module")
def pausing_model() -> Transducer:
    """It says a word now and then, for as long as it hears noise."""
    model = talkative_model(causal=True, blank=2.5, **CHEAP_FRONT_END)
    with torch.no_grad():  # what is said depends on what is heard
        model.decoder.embedding.weight.mul_(0.4)
    return model


def letters(tokens: Sequence[int]) -> list[Letter]:
    return spell([f"▁{token}" for token in tokens])


@pytest.mark.parametrize("search", SEARCHES)
def test_endpoints_cut_the_text_and_begin_anew(pausing_model, search):
    """What is said after an endpoint is what a fresh search makes of the encoder's output from there on."""
    model, begins = pausing_model, []
    features = random_batch((601,), seed=0)[0][0]
    rules = EndpointConfig(rule1_min_trailing_silence=0.5, rule2_min_trailing_silence=0.2, rule3_min_utterance_length=2)

    class Watched(Segmenter):
        def finish(self, now: int, tokens: TimedTokens) -> None:
            super().finish(now, tokens)
            begins.append((now, list(tokens.tokens)))

    decoder = StreamingDecoder(model, CHUNKS[0], search, 2, new_segmenter=lambda: Watched(rules, letters))
    ((_, stream),) = run_streams(decoder, [(0, features)])
    assert stream.segmenter is not None and len(begins) > 2
    segments = stream.segmenter.end("", 0.0, stream.result.as_tokens()).segments
    assert all(segment.end - segment.start <= 2.5 for segment in segments)
    encoder_out, lens = encode_whole(model, features[None], torch.tensor([601]), CHUNKS[0])
    starts = [0, *(now for now, _ in begins)]
    for start, (end, tokens) in zip(starts, begins, strict=False):
        part, state = encoder_out[:, start:end], search.start(model, 1)
        assert search.advance(model, part, torch.tensor([end - start]), state).results()[0].tokens == tokens


def test_a_segmenter_that_cuts_nothing_asks_a_search_nothing(pausing_model, monkeypatch):
    def refuse(state: PathState) -> list[int]:
        raise AssertionError("it was asked")

    monkeypatch.setattr(PathState, "last_frames", refuse)
    off = EndpointConfig(enable_endpoint=False)
    decoder = StreamingDecoder(pausing_model, CHUNKS[0], GreedySearch(), new_segmenter=lambda: Segmenter(off, letters))
    assert len(dict(run_streams(decoder, [(0, random_batch((301,), seed=0)[0][0])]))) == 1


def test_what_a_stream_keeps_does_not_grow_with_its_length(pausing_model):
    rules = EndpointConfig(rule3_min_utterance_length=1.0)
    decoder = StreamingDecoder(
        pausing_model, CHUNKS[0], ModifiedBeamSearch(), 1, new_segmenter=lambda: Segmenter(rules, letters)
    )
    stream, kept = decoder.open(), []
    for seed in range(12):
        stream.accept_features(random_batch((100,), seed=seed)[0][0])
        run_to_the_end(decoder)
        kept.append(sum(unrolled_length(path) for path in paths_of(stream)))
    assert stream.segmenter is not None
    assert sum(len(segment.words) for segment in stream.segmenter.segments) > 20
    assert max(kept) <= 4 * 30  # four paths of a second and a chunk


def paths_of(stream: Stream) -> list[History]:
    state = stream.search_state
    assert isinstance(state, PathState)
    return state.histories[0]


def unrolled_length(path: History | None) -> int:
    return len(path.tokens) + unrolled_length(path.previous) if path is not None else 0


def test_an_interrupted_run_gives_what_was_heard(pausing_model, utterances):
    steps: list[float] = []
    decoder = StreamingDecoder(pausing_model, CHUNKS[0], GreedySearch(), max_streams=2)
    heard = dict(run_streams(decoder, enumerate(utterances), steps, interrupted=lambda: len(steps) == 3))
    assert list(heard) == [0, 1] and all(stream.result.tokens for stream in heard.values())


def test_an_interruption_while_one_result_is_read_loses_no_other(pausing_model, utterances):
    decoder = StreamingDecoder(pausing_model, CHUNKS[0], GreedySearch(), max_streams=2)
    long_one_first = [utterances[0].repeat(3, 1), utterances[1]]
    heard: list[int] = []
    for number, _ in run_streams(decoder, enumerate(long_one_first), interrupted=lambda: bool(heard)):
        heard.append(number)
    assert heard == [1, 0]
