"""The audio of many clients through one sherpa-onnx recogniser, in batches.

Whoever has a whole chunk takes part in the next batch, one chunk each: a client that sends an hour at once waits its
turn like one that speaks.  Batches grow as the load does, and with them the audio that a core can follow.

What a client costs does not grow with time: QUEUED_SECONDS of audio, one segment that grows, and the last KEPT_SEGMENTS
that it was told of.  Those that it was not told of are never dropped: where they are as many, its audio waits.

A model that scales activations over the whole batch, as int8 exports do, would let a loud client change the words of a
quiet one.  Such a model decodes the clients of a batch one after another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from kdstream.serving.metrics import Histogram
from kdstream.serving.runtime import Runtime, SegmentedStream
from kdstream.transcription import Segment

QUEUED_SECONDS = 10.0  # of audio that may wait; then a client's next block has to
BLOCK_SECONDS = 0.5  # that the recogniser is given at once; it keeps what it has been given without a limit
KEPT_SEGMENTS = 100  # of a client, for when it comes back, and that may wait until it reads
STUCK_SECONDS = 30.0  # that a step may take


class News(NamedTuple):
    """What there is to tell a client: segments by number, the text that grows, and whether that was all."""

    segments: dict[int, Segment]
    growing: str
    final: bool


class EngineError(Exception):
    """Why a client is heard no further, as it is told."""


class ClientStream:
    """What one client says, on its way through the recogniser.

    The event loop appends blocks on one side, the decoding thread takes them on the other, and the thread alone touches
    `stream`; everything else belongs to the loop.

    samples: that have been taken; at `sample_rate`.
    """

    def __init__(self, sample_rate: int, silence: np.ndarray, hotwords: str, wake: Callable[[], None]) -> None:
        self.sample_rate, self.hotwords = sample_rate, hotwords
        self.samples = 0
        self.blocks: deque[np.ndarray | None] = deque()  # None: the end
        self.stream: SegmentedStream | None = None
        self.ended = False  # in the thread: None was taken
        self.finished = False  # nothing more comes
        self.unfinished = False  # a whole chunk is left that no batch has had yet
        self._silence, self._wake = silence, wake
        self._queued = 0
        self._kept: dict[int, Segment] = {}
        self._untold: set[int] = set()
        self._growing, self._final = "", False
        self._told: tuple[str, bool] = "", False
        self._failure = ""
        self._room, self._news = asyncio.Event(), asyncio.Event()
        self._room.set()

    @property
    def has_work(self) -> bool:
        return bool(self.blocks) or self.unfinished

    @property
    def queued(self) -> float:
        """Seconds of audio that wait."""
        return self._queued / self.sample_rate

    async def accept(self, samples: np.ndarray) -> None:
        """Takes float32 samples (S,) at `sample_rate`.

        Waits first while QUEUED_SECONDS of them are undecoded, or KEPT_SEGMENTS untold.
        """
        await self._room.wait()
        size = int(BLOCK_SECONDS * self.sample_rate)
        self.blocks.extend(samples[start : start + size] for start in range(0, len(samples), size))
        self.samples += len(samples)
        self._queue(len(samples))

    def finish(self) -> None:
        """Says that no more audio comes; the last segments will."""
        self.finished = True
        self.blocks.extend((self._silence, None))
        self._queue(len(self._silence))

    def _queue(self, samples: int) -> None:
        self._queued += samples
        self._make_room()
        self._wake()

    def _make_room(self) -> None:
        if self.queued > QUEUED_SECONDS or len(self._untold) >= KEPT_SEGMENTS:
            self._room.clear()
        else:
            self._room.set()

    async def next_news(self) -> News:
        """What there is to tell, once there is any.  Segments are told once each; of growing texts the newest is.

        Raises EngineError where there will be none.
        """
        while not self._untold and self._told == (self._growing, self._final) and not self._failure:
            self._news.clear()
            await self._news.wait()
        if self._failure:
            raise EngineError(self._failure)
        segments = {number: self._kept[number] for number in sorted(self._untold)}
        self._untold.clear()
        self._make_room()
        self._told = self._growing, self._final
        return News(segments, *self._told)

    def can_tell(self, segments: int) -> bool:
        """Whether all is kept that `tell_again` would tell."""
        return max(0, segments - 1) >= min(self._kept, default=0)

    def tell_again(self, segments: int) -> None:
        """To a client that has so many segments, the rest is told, and the last of them, which may have changed."""
        self._untold = {number for number in self._kept if number >= segments - 1}
        self._make_room()
        self._told = "", False

    def update(self, progress: Progress) -> int:
        """Takes what a step has done; returns how many segments it finished, without one that it completed."""
        finished = len(progress.news.segments.keys() - self._kept.keys())
        self._queued -= progress.taken
        self._kept |= progress.news.segments
        self._untold |= progress.news.segments.keys()
        self._make_room()
        for number in sorted(self._kept.keys() - self._untold)[:-KEPT_SEGMENTS]:
            del self._kept[number]
        self.unfinished, self._growing, self._final = progress.unfinished, progress.news.growing, progress.news.final
        self._news.set()
        return finished

    def fail(self, why: str) -> None:
        self._failure = why
        self._news.set()
        self._room.set()


class Progress(NamedTuple):
    """What a step has done for one stream; taken: samples."""

    taken: int
    news: News
    unfinished: bool


class Engine:
    """Decodes every open stream, chunk by chunk, in one thread of its own.

    Args:
      together: whether the recogniser gets all streams that have a chunk in one call, or each in a call of its own; see
        `ExportedModel.mixes_rows`.

    steps: seconds that each step took.  audio: seconds that were decoded.  segments: that were finished.
    failures: steps that failed, for all their clients or for one.
    """

    def __init__(self, runtime: Runtime, together: bool | None = None) -> None:
        self.runtime = runtime
        self._together = not runtime.model.mixes_rows if together is None else together
        self.steps, self.audio, self.segments, self.failures = Histogram(), 0.0, 0, 0
        self._open: set[ClientStream] = set()
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._running = False
        self._since: float | None = None  # the step that runs

    def open(self, sample_rate: int, hotwords: str = "") -> ClientStream:
        """A stream.  hotwords: from `Runtime.spell`."""
        client = ClientStream(sample_rate, self.runtime.model.silence(sample_rate), hotwords, self._work.set)
        self._open.add(client)
        return client

    def close(self, client: ClientStream) -> None:
        """Forgets it, heard out or not."""
        self._open.discard(client)

    @property
    def lag(self) -> float:
        """Seconds of audio that wait, of the client that has most of it."""
        return max((client.queued for client in self._open), default=0.0)

    @property
    def problem(self) -> str:
        """Why nothing is decoded; "" where all is well."""
        if not self._running:
            return "the decoder does not run"
        stuck = self._since is not None and time.monotonic() - self._since > STUCK_SECONDS
        return f"a step takes longer than {STUCK_SECONDS:g} s" if stuck else ""

    async def run(self) -> None:
        """Decodes until it is cancelled."""
        self._running = True
        try:
            while True:
                batch = [client for client in self._open if client.has_work]
                if not batch:
                    self._work.clear()
                    await self._work.wait()
                    continue
                await self._decode(batch)
        finally:
            self._running = False
            self._thread.shutdown(wait=True)

    async def _decode(self, batch: Sequence[ClientStream]) -> None:
        self._since = time.monotonic()
        try:
            progress = await asyncio.get_running_loop().run_in_executor(self._thread, self._step, batch)
        except Exception:
            logging.exception("a batch of %d clients failed", len(batch))
            for client in batch:
                self._give_up(client, "the recogniser failed")
            self.failures += 1
            return
        finally:
            begin, self._since = self._since, None
        self.steps.observe(time.monotonic() - begin)
        for client, done in progress.items():
            self.audio += done.taken / client.sample_rate
            self.segments += client.update(done)
        for client in batch:
            if client not in progress:
                self._give_up(client, "the recogniser cannot take this audio or these hotwords")
                self.failures += 1

    def _give_up(self, client: ClientStream, why: str) -> None:
        client.fail(why)
        self.close(client)

    def _step(self, batch: Sequence[ClientStream]) -> dict[ClientStream, Progress]:
        """In the thread: gives each stream a chunk, if there is one, and decodes all that have one.

        A client whose stream takes nothing is missing from what is returned: its neighbours are heard on.
        """
        fed: dict[ClientStream, tuple[SegmentedStream, int]] = {}
        for client in batch:
            try:
                fed[client] = self._feed(client)
            except Exception:
                logging.exception("a client's audio or hotwords cannot be taken")
        ready = [stream for stream, _ in fed.values() if stream.ready]
        for streams in [ready] if self._together and ready else [[stream] for stream in ready]:
            self.runtime.recognizer.decode_streams([stream.stream for stream in streams])
        for stream in ready:
            stream.decoded()
        progress = {}
        for client, (stream, samples) in fed.items():
            final = client.ended and not stream.ready
            if final:
                stream.end()
            news = News(stream.take(), stream.growing, final)
            progress[client] = Progress(samples, news, stream.ready)
        return progress

    def _feed(self, client: ClientStream) -> tuple[SegmentedStream, int]:
        """The stream, and how many samples it was given: no more than it needs to be ready."""
        stream = client.stream = client.stream or SegmentedStream(self.runtime, client.hotwords)
        taken = 0
        while client.blocks and not stream.ready:
            block = client.blocks.popleft()
            if block is None:
                stream.finish()
                client.ended = True
            else:
                stream.accept(block, client.sample_rate)
                taken += len(block)
        return stream, taken
