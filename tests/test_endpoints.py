"""The endpoint rules, and what they make of a stream of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from kdstream.endpoints import NOTHING, EndpointConfig, Segmenter, TimedTokens
from kdstream.transcription import Word
from kdstream.words import spell, split_words

FRAME = 0.04


@pytest.mark.parametrize(
    "length, silence, ends",
    [
        (2.36, 2.36, False),
        (2.40, 2.40, True),  # rule 1: nothing was said
        (3.0, 1.16, False),
        (3.0, 1.2, True),  # rule 2
        (1.2, 1.2, False),  # rule 2 wants words
        (19.96, 0.0, False),
        (20.0, 0.0, True),  # rule 3
    ],
)
def test_the_rules_are_those_of_sherpa_onnx(length, silence, ends):
    assert EndpointConfig().is_endpoint(length, silence) == ends


def segment_all(tokens: list[tuple[str, int]], frames: int, **rules: Any) -> Segmenter:
    """The segmenter of a stream that decodes a frame per step."""
    segmenter, since = Segmenter(EndpointConfig(**rules), spell), []
    for now in range(1, frames + 1):
        since += [(piece, frame, -0.1) for piece, frame in tokens if frame == now - 1]
        if segmenter.ends(now, since[-1][1] if since else -1):
            segmenter.finish(now, as_tokens(since))
            since = []
    segmenter.end("a.wav", frames * FRAME, as_tokens(since))
    return segmenter


def as_tokens(tokens: list[tuple[str, int, float]]) -> TimedTokens:
    return TimedTokens(*(list(column) for column in zip(*tokens, strict=True))) if tokens else TimedTokens([], [], [])


def test_a_pause_after_words_ends_a_segment_and_silence_makes_none():
    tokens = [("▁A", 10), ("▁BE", 20), ("D", 21), ("▁C", 300)]
    segments = segment_all(tokens, 400).segments
    assert [(segment.text, segment.start, segment.end) for segment in segments] == [
        ("A BED", 0.4, 0.88),
        ("C", 12.0, 12.04),
    ]
    assert segments[0].words == [Word("A", 0.4, 0.44), Word("BED", 0.8, 0.88)]
    assert segments[0].confidence == pytest.approx(0.904837, abs=1e-6)


def test_a_word_that_a_search_finds_after_it_was_taken_for_silence_is_finished():
    segmenter = Segmenter(EndpointConfig(), spell)
    assert not segmenter.ends(60, -1)  # 2.4 s without a word; then another path is the best
    assert not segmenter.ends(64, 59) and segmenter.ends(120, 59)


def test_the_longest_segment_ends_before_the_word_that_is_being_said():
    tokens = [piece for n in range(0, 1200, 20) for piece in (("▁BE", n), ("D", n + 10))]
    segments = segment_all(tokens, 1200).segments
    assert [word.text for segment in segments for word in segment.words] == ["BED"] * 60
    assert len(segments) == 3 and all(segment.end - segment.start <= 20.0 for segment in segments)
    assert all(a.end <= b.start for a, b in zip(segments, segments[1:], strict=False))


def test_a_piece_that_comes_after_the_pause_completes_its_word():
    heard = segment_all([("▁SE", 10), ("TS", 60), ("▁A", 65)], 200)
    assert [segment.text for segment in heard.segments] == ["SETS", "A"]
    assert heard.segments[0].words == [Word("SETS", 0.4, 2.44)]
    partial = Segmenter(EndpointConfig(), spell)
    partial.finish(50, TimedTokens(["▁SE"], [10], [-0.1]))
    assert partial.text(TimedTokens(["TS", "▁A"], [60, 65], [-0.1, -0.1])) == "SETS A"


def test_a_blank_before_the_pause_ends_its_word():
    heard = segment_all([("▁NIGHT", 10), ("▁", 12), ("F", 60), ("AR", 62)], 200)
    assert [segment.text for segment in heard.segments] == ["NIGHT", "FAR"]


@pytest.mark.parametrize("rule1, rule2", [(0.8, 1.2), (2.4, 0.8)])
def test_no_word_is_held_back_where_silence_ends_a_segment(rule1, rule2):
    """Rule 1 ends segments with words too, as in sherpa-onnx, and may be the shorter one."""
    tokens = [("▁GOOD", 5), ("▁MORNING", 12), ("▁ALL", 20), ("▁BED", 60)]
    heard = segment_all(tokens, 100, rule1_min_trailing_silence=rule1, rule2_min_trailing_silence=rule2)
    assert [segment.text for segment in heard.segments] == ["GOOD MORNING ALL", "BED"]


def test_a_word_without_an_end_is_cut():
    segmenter = Segmenter(EndpointConfig(rule3_min_utterance_length=1.0), spell)
    assert segmenter.ends(25, 24)
    segmenter.finish(25, TimedTokens(["A"] * 25, list(range(25)), [-0.1] * 25))
    assert [segment.text for segment in segmenter.segments] == ["A" * 25] and segmenter.growing(NOTHING) == ""


def test_scripts_without_blanks_are_joined_without_them():
    heard = segment_all([("日", 10), ("本", 20), ("語", 100), ("▁A", 200), ("▁B", 300)], 400)
    assert [segment.text for segment in heard.segments] == ["日本", "語", "A", "B"]
    assert heard.text(TimedTokens([], [], [])) == "日本語 A B"


def letters_of(text: str, begin: int) -> TimedTokens:
    """Each letter a token and a frame."""
    return TimedTokens(list(text.replace(" ", "▁")), list(range(begin, begin + len(text))), [-0.1] * len(text))


@pytest.mark.parametrize(
    "first, second, segments, text",
    [
        ("我们去BIG", "HELLO WORLD对吗", ["我们去BIG", "HELLO WORLD对吗"], "我们去BIG HELLO WORLD对吗"),
        ("BIG", "HELLO", ["BIG", "HELLO"], "BIG HELLO"),
        ("今天很好。", "我有3个", ["今天很好。", "我有3个"], "今天很好。我有3个"),
        ("我有3", "个", ["我有3", "个"], "我有3个"),
        ("我用TESLA", "去", ["我用TESLA", "去"], "我用TESLA去"),
        ("有BIG", " DAY", ["有BIG", "DAY"], "有BIG DAY"),
        (" 我有BIG", "GER", ["我有BIGGER"], "我有BIGGER"),  # these tokens put a blank first
        (" 我有BIG", "GER 车", ["我有BIGGER", "车"], "我有BIGGER 车"),
        (" 我有BIG", "GER车", ["我有BIGGER", "车"], "我有BIGGER车"),
        (" 我有BIG", " DAY", ["我有BIG", "DAY"], "我有BIG DAY"),
        (" 今天很好。", "我有3个", ["今天很好。", "我有3个"], "今天很好。我有3个"),
        (" 今天", " 很好", ["今天", "很好"], "今天很好"),
        (" 今天", "OK", ["今天", "OK"], "今天OK"),
    ],
)
def test_a_blank_stands_between_segments_where_the_tokens_have_one_or_could_have_none(first, second, segments, text):
    """Tokens of Chinese put no blank before an utterance, so what follows a pause completes no word there."""
    segmenter = Segmenter(EndpointConfig(), spell)
    segmenter.finish(60, letters_of(first, 0))
    rest = letters_of(second, 100)
    assert segmenter.text(rest) == text
    heard = segmenter.end("a.wav", 10.0, rest)
    assert (heard.text, [segment.text for segment in heard.segments]) == (text, segments)
    assert [word.text for word in heard.words] == split_words(text)


def test_without_blanks_first_the_longest_segment_s_word_and_a_parted_character_are_completed():
    segmenter = Segmenter(EndpointConfig(rule3_min_utterance_length=1.0), spell)
    assert segmenter.ends(25, 24)
    segmenter.finish(25, letters_of("A" * 25, 0))
    segmenter.finish(100, letters_of("BC", 25))  # a pause ends it
    segmenter.finish(200, letters_of("DE", 100))
    assert [segment.text for segment in segmenter.segments] == ["A" * 25 + "BC", "DE"]
    segmenter = Segmenter(EndpointConfig(), spell)
    segmenter.finish(60, TimedTokens(["去", "Z", "O", "<0xC3>"], [0, 1, 2, 3], [-0.1] * 4))
    assert segmenter.text(TimedTokens(["<0xAB>", "S"], [100, 101], [-0.1] * 2)) == "去ZO\ufffd\ufffdS"
    assert segmenter.text(TimedTokens(["<0xC3>", "<0xAB>", "S"], [100, 101, 102], [-0.1] * 3)) == "去ZO\ufffd ëS"


def test_nothing_completes_the_longest_segment_s_word_after_a_silence():
    segmenter = Segmenter(EndpointConfig(rule3_min_utterance_length=1.0), spell)
    segmenter.finish(25, letters_of("A" * 25, 0))
    assert not segmenter.ends(25 + 60, -1)
    assert segmenter.text(letters_of("BC", 90)) == "A" * 25 + " BC"


def test_without_endpoints_there_is_one_segment():
    tokens = [("▁A", 10), ("▁B", 300), ("▁C", 900)]
    heard = segment_all(tokens, 1000, enable_endpoint=False)
    assert [segment.text for segment in heard.segments] == ["A B C"]
    assert segment_all([], 1000, enable_endpoint=False).segments == []


def test_partial_text_holds_the_word_that_was_held_back():
    segmenter = Segmenter(EndpointConfig(rule3_min_utterance_length=1.0), spell)
    first = TimedTokens(["▁A", "▁BE"], [10, 24], [-0.1, -0.1])
    assert segmenter.growing(first) == "A BE" and segmenter.ends(25, 24)
    segmenter.finish(25, first)
    assert [segment.text for segment in segmenter.segments] == ["A"]
    rest = TimedTokens(["D"], [26], [-0.1])
    assert (segmenter.growing(rest), segmenter.text(rest)) == ("BED", "A BED")
    assert not segmenter.ends(27, 26) and segmenter.ends(27 + 30, 26)


def test_segments_are_taken_once_and_the_last_again_where_its_word_is_completed():
    segmenter = Segmenter(EndpointConfig(), spell)
    taken = []
    for now, tokens in ((50, (["▁A"], [10])), (100, (["▁SE"], [60])), (150, (["TS", "▁B"], [101, 110]))):
        segmenter.finish(now, TimedTokens(*tokens, [-0.1] * len(tokens[0])))
        taken.append({n: segment.text for n, segment in segmenter.take().items()})
    assert taken == [{0: "A"}, {1: "SE"}, {1: "SETS", 2: "B"}]
    assert segmenter.take() == {} and len(segmenter.segments) == 1


def test_a_segment_is_told_of_again_where_its_word_is_completed_and_all_are_kept():
    segmenter, told = Segmenter(EndpointConfig(), spell), []
    for now, tokens in ((50, (["▁A"], [10])), (100, (["▁HELL"], [60])), (150, (["O", "▁B"], [101, 110]))):
        segmenter.finish(now, TimedTokens(*tokens, [-0.1] * len(tokens[0])))
        told.append({n: segment.text for n, segment in segmenter.changed().items()})
    assert told == [{0: "A"}, {1: "HELL"}, {1: "HELLO", 2: "B"}]
    assert segmenter.changed() == segmenter.take() == {} and segmenter.end("", 6.0, NOTHING).text == "B"
