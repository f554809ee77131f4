"""Delays of words whose times are known, what streams really wait for, and comparisons over common words."""

from __future__ import annotations

import random

import pytest
import torch

from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.stream import StreamingDecoder
from kdstream.errors import UserError
from kdstream.evaluation import latency, scoring
from kdstream.evaluation.latency import (
    FRAME,
    LOOKAHEAD_MS,
    Delays,
    Spread,
    algorithmic_latency_ms,
    frame_start_ms,
    in_common,
    later_by,
    measure_delays,
    shown_ms,
    summarise,
)
from kdstream.evaluation.scoring import Transcript
from kdstream.models.streaming import ChunkConfig
from kdstream.units import OUTPUT_FRAME_MS
from support.decoding import talkative_model
from support.models import random_batch, tiny_test_model

CHUNK = ChunkConfig(8, 32)  # four output frames; the first chunk is there at 290 ms, the second at 450, ...


def delays_of(
    ref: str, hyp: str, frames: list[int], ends: list[float], chunk: ChunkConfig | None = CHUNK, cut_id: str = "a"
) -> Delays:
    (alignment,) = scoring.align([Transcript(cut_id, ref.split(), hyp.split())])
    return measure_delays(cut_id, alignment, frames, ends, chunk)


def test_algorithmic_latency_is_the_chunk_and_95_ms():
    """The convolutions read 3.5 feature frames ahead, the ConvNeXt three encoder frames of 20 ms."""
    assert algorithmic_latency_ms(ChunkConfig(8, 32)) == 160 + 35 + 60
    assert algorithmic_latency_ms(ChunkConfig(16, 64)) - algorithmic_latency_ms(ChunkConfig(8, 32)) == 160
    assert algorithmic_latency_ms(ChunkConfig(8, 32, 8)) == algorithmic_latency_ms(ChunkConfig(16, 32))


@pytest.mark.parametrize("chunk", [ChunkConfig(4, 8), ChunkConfig(8, 32), ChunkConfig(16, 32, 8)], ids=str)
def test_the_last_frame_of_a_chunk_waits_for_the_look_ahead_and_the_first_for_the_chunk_too(chunk):
    frames = chunk.chunk // 2
    for first in (0, frames, 7 * frames):
        assert shown_ms(first, chunk) - frame_start_ms(first) == algorithmic_latency_ms(chunk)
        last = first + frames - 1
        assert shown_ms(last, chunk) - frame_start_ms(last + 1) == chunk.right_ms + LOOKAHEAD_MS
        assert shown_ms(last + 1, chunk) - shown_ms(last, chunk) == chunk.chunk_ms


@pytest.mark.parametrize("chunk", [ChunkConfig(8, 32), ChunkConfig(16, 32), ChunkConfig(8, 32, 16)], ids=str)
def test_tokens_are_shown_when_a_stream_that_is_fed_frame_by_frame_first_has_them(chunk):
    model = talkative_model(chunk_size=(8, 16))
    stream_decoder = StreamingDecoder(model, chunk, GreedySearch())
    stream = stream_decoder.open()
    features = random_batch((200,))[0][0]
    seen = []
    for fed in range(1, len(features) + 1):
        stream.accept_features(features[fed - 1 : fed])
        stream_decoder.step()
        new = stream.result.timestamps[len(seen) :]
        seen += [10 * fed] * len(new)
    assert len(set(seen)) > 3
    assert [shown_ms(frame, chunk) for frame in stream.result.timestamps] == seen


def test_a_frame_covers_the_middle_of_what_the_convolutions_read_for_it():
    """Feature frame i is centred 10 i + 5 ms after the start; an output frame is two encoder frames."""
    front_end = tiny_test_model(causal=True).encoder_embed
    front_end.convnext.depthwise_conv.weight.data.zero_()  # its look-ahead comes on top
    features = torch.randn(1, 80, 80, requires_grad=True)
    encoder_out, *_ = front_end(features, torch.tensor([80]))
    for frame in (3, 10):
        (gradient,) = torch.autograd.grad(encoder_out[0, 2 * frame : 2 * frame + 2].sum(), features, retain_graph=True)
        read = gradient[0].abs().sum(dim=1).nonzero().flatten().tolist()
        centre = 10 * (read[0] + read[-1]) / 2 + 5
        assert centre == (frame_start_ms(frame) + frame_start_ms(frame + 1)) / 2
    assert frame_start_ms(4) - frame_start_ms(3) == OUTPUT_FRAME_MS


def test_delays_of_known_words_are_exact():
    delays = delays_of("ONE TWO THREE", "ONE TWO THREE", [2, 3, 8], [100.0, 222.5, 400.0])
    assert delays.frame == [155 - 100, 195 - 222.5, 395 - 400]
    assert delays.shown == [290 - 100, 290 - 222.5, 610 - 400]
    assert delays.final == 610 - 400


def test_words_that_are_wrong_do_not_count():
    delays = delays_of("A B C D", "X A C Y D", [0, 1, 4, 5, 9], [50.0, 100.0, 150.0, 200.0])
    assert delays.shown == [290 - 50, None, 450 - 150, 610 - 200]  # inserted, right, missed, right, inserted, right
    assert [value is None for value in delays.frame] == [value is None for value in delays.shown]


@pytest.mark.parametrize(
    "hyp, frames, final",
    [
        ("A B", [0, 4], 450 - 90),
        ("A X", [0, 4], 450 - 90),  # wrong, but heard
        ("A B X", [0, 4, 8], 610 - 90),  # text that goes on changing
        ("A", [0], None),
        ("B", [0], 290 - 90),
        ("", [], None),
    ],
)
def test_text_is_final_when_the_last_word_is_shown_right_or_wrong(hyp, frames, final):
    assert delays_of("A B", hyp, frames, [40.0, 90.0]).final == final


def test_in_full_context_only_frames_are_measured():
    delays = delays_of("A B", "A B", [1, 2], [100.0, 150.0], chunk=None)
    assert delays == Delays("a", [115 - 100, 155 - 150], [None, None], None)
    assert set(summarise([delays])) == {"frame", "frame_first", "frame_last"}


def test_percentiles_lie_linearly_between_the_two_nearest_values():
    assert Spread.of([30.0, 10.0, 20.0]) == Spread(3, 20.0, 20.0, 28.0, 29.8)
    assert Spread.of([7.0]) == Spread(1, 7.0, 7.0, 7.0, 7.0)
    hundred_and_one = random.Random(0).sample(range(101), 101)
    assert Spread.of(hundred_and_one) == Spread(101, 50.0, 50.0, 90.0, 99.0)
    assert Spread(9, 8.46, 8.5, 9.0, 36.04).shown(1) == "8.5 (8.5 / 9.0 / 36.0)"


def test_statistics_of_synthetic_hypotheses_are_those_of_their_known_delays():
    rng = random.Random(1)
    utterances, shown, first, last, final = [], [], [], [], []
    for n in range(50):
        count = rng.randint(1, 8)
        frames = sorted(rng.sample(range(60), count))
        ends = [shown_ms(frame, CHUNK) - rng.uniform(-50, 400) for frame in frames]
        heard = [rng.random() < 0.7 for _ in frames]
        ref = [f"W{place}" for place in range(count)]
        hyp = [word if right else "WRONG" for word, right in zip(ref, heard, strict=True)]
        utterances.append(delays_of(" ".join(ref), " ".join(hyp), frames, ends, cut_id=str(n)))
        mine = [shown_ms(frame, CHUNK) - end for frame, end in zip(frames, ends, strict=True)]
        shown += [delay for delay, right in zip(mine, heard, strict=True) if right]
        first += mine[:1] if heard[0] else []
        last += mine[-1:] if heard[-1] else []
        final.append(mine[-1])
    measured = summarise(utterances)
    for name, values in (("shown", shown), ("shown_first", first), ("shown_last", last), ("final", final)):
        assert measured[name] == Spread.of(values), name
    assert len(final) > len(last) > 20


def test_nothing_right_is_nothing_measured():
    assert summarise([delays_of("A", "", [], [10.0])]) == {}
    assert summarise([]) == {}


def test_common_words_are_those_that_both_got_right():
    one = [delays_of("A B C", "A B X", [0, 4, 8], [0.0, 100.0, 200.0]), Delays("only here", [1.0], [1.0], 1.0)]
    other = [Delays("only there", [1.0], [1.0], 1.0), delays_of("A B C", "X B C", [0, 8, 9], [0.0, 100.0, 200.0])]
    mine, theirs = in_common(one, other)
    assert [d.cut_id for d in mine] == [d.cut_id for d in theirs] == ["a"]
    assert mine[0].shown == [None, 450 - 100, None] and theirs[0].shown == [None, 610 - 100, None]
    assert later_by(mine, theirs, "shown") == (160.0, (160.0, 160.0))
    assert later_by(mine, theirs, FRAME) == (160.0, (160.0, 160.0))
    assert later_by(theirs, mine, "final") == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError):
        in_common([delays_of("A", "A", [0], [0.0])], [delays_of("A B", "A", [0], [0.0, 1.0])])


@pytest.mark.slow
def test_the_interval_of_a_difference_holds_it_and_narrows_with_more_utterances():
    rng = random.Random(2)

    def system(count: int, shift: float) -> list[Delays]:
        rows = [[rng.gauss(200 + shift, 60) for _ in range(rng.randint(1, 9))] for _ in range(count)]
        return [Delays(str(n), row, row, row[-1]) for n, row in enumerate(rows)]

    widths = []
    for count in (30, 3000):
        before = system(count, 0.0)
        after = [Delays(d.cut_id, d.frame, [ms + rng.gauss(25, 40) for ms in d.shown], d.final) for d in before]
        mean, (low, high) = later_by(before, after, "shown")
        assert low < 25 < high and low < mean < high
        widths.append(high - low)
    assert 5 < widths[0] / widths[1] < 20  # ten times as narrow, give or take


def test_delays_survive_their_file_beside_the_recogs(tmp_path):
    path = latency.delays_file(tmp_path / "recogs-test_greedy-search_epoch-8_avg-3.txt")
    assert path == tmp_path / "delays-test_greedy-search_epoch-8_avg-3.jsonl"
    delays = [delays_of("A B", "A X", [0, 4], [12.25, 90.0]), delays_of("C", "", [], [3.0], cut_id="\u00e9")]
    latency.write_delays(path, delays)
    assert latency.read_delays(path) == delays


@pytest.mark.parametrize("content", ["{", "[]\n", '{"cut_id": "a"}\n', "1\n"])
def test_a_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "delays.jsonl").write_text(content)
    with pytest.raises(UserError, match="delays.jsonl"):
        latency.read_delays(tmp_path / "delays.jsonl")
