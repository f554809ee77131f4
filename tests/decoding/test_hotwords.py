"""Contextual biasing: the automaton against its definition, and modified beam search with it against a slow one."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.hotwords import ContextGraph
from kdstream.decoding.search import Result
from kdstream.errors import UserError
from kdstream.models.transducer import Transducer
from support.decoding import log_probs, talkative_model
from support.searches import LENS, assert_same, decode, decode_in_pieces, encoder_frames
from support.tokenizers import tiny_tokenizer

VOCABULARY = 6
Hotwords = list[tuple[int, ...]]


def graph_of(hotwords: Hotwords, scores: list[float] | None = None, vocab_size: int = VOCABULARY) -> ContextGraph:
    return ContextGraph(hotwords, scores or [1.0] * len(hotwords), vocab_size)


def walk(graph: ContextGraph, tokens: list[int]) -> tuple[float, float]:
    """What a path of these tokens has been given, and what of it goes back."""
    state, total = graph.start(1, 1, torch.device("cpu")), 0.0
    for token in tokens:
        score, state = graph.advance(state, torch.tensor([[token]]), torch.tensor([[True]]))
        total += float(score)
    return total, float(graph.owed(state))


def slow_walk(hotwords: Hotwords, tokens: list[int]) -> tuple[float, float]:
    """The same by its definition, at a score of 1 a token."""
    kept, heard = 0, ()
    for token in tokens:
        heard = (*heard, token)
        complete = [len(word) for word in hotwords if heard[-len(word) :] == word]
        if complete:
            kept, heard = kept + max(complete), ()
    begun = [size for size in range(len(heard) + 1) for word in hotwords if word[:size] == heard[len(heard) - size :]]
    return float(kept + max(begun)), float(max(begun))


def test_a_hotword_scores_along_the_way_and_only_a_complete_one_keeps_it():
    graph = graph_of([(1, 2, 3)], [0.5])
    assert [walk(graph, tokens) for tokens in ([1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 1], [1, 2, 3, 4])] == [
        (0.5, 0.5), (1.0, 1.0), (1.5, 0.0), (0.0, 0.0), (0.5, 0.5), (1.5, 0.0),
    ]  # fmt: skip


def test_hotwords_inside_one_another_are_found_as_in_the_definition():
    rng = random.Random(0)
    for _ in range(300):
        hotwords = [tuple(rng.choices(range(1, 4), k=rng.randint(1, 4))) for _ in range(rng.randint(1, 5))]
        tokens = rng.choices(range(1, 5), k=12)
        assert walk(graph_of(hotwords), tokens) == slow_walk(hotwords, tokens), (hotwords, tokens)


def test_the_greatest_score_holds_for_a_common_beginning():
    graph = graph_of([(1, 2), (1, 3)], [0.5, 2.0])
    assert walk(graph, [1]) == (2.0, 2.0)
    assert walk(graph, [1, 2]) == (2.5, 0.0)
    assert walk(graph, [1, 3]) == (4.0, 0.0)


def test_a_hotword_without_a_token_is_refused(tmp_path):
    """A path would say it at every step, and begin anew there: no other one could be completed."""
    with pytest.raises(ValueError, match="a hotword has no token"):
        ContextGraph([[3, 4], []], [1.0, 1.0], vocab_size=9)
    tokenizer, names = tiny_tokenizer(tmp_path / "bpe.model", ["NEW YORK"] * 3, model_type="char"), tmp_path / "names"
    names.write_text("NEW YORK\n\u200b\n", encoding="utf8")
    with pytest.raises(UserError) as error:
        ModifiedBeamSearch(hotwords_file=str(names)).for_tokens(tokenizer)
    assert str(error.value) == f"--hotwords-file {names}: '\\u200b' says nothing; take its line out"


IN_ENGLISH = ["TELL US ABOUT 北京 AND THE WEATHER", "THE MEETING IS OVER 我在北京开会 OK", "CAN YOU HEAR ME"]
IN_CHINESE = ["我买TESLA SELL TESLA了", "我在北京BUY TESLA去公司", "他们都喜欢北京的冬天和夏天"]


@pytest.mark.parametrize("model_type", ["char", "bpe"])
@pytest.mark.parametrize(
    "texts, blank_first, phrase, sentence",
    [
        (IN_ENGLISH, True, "北京", "我在北京开会"),
        (IN_ENGLISH, True, "北京", "北京"),
        (IN_ENGLISH, True, "ABOUT 北京", "TELL US ABOUT 北京 AND"),
        (IN_CHINESE, False, "北京", "去北京"),
        (IN_CHINESE, False, "TESLA", "TESLA了"),
        (IN_CHINESE, False, "TESLA", "我买TESLA了"),
        (IN_CHINESE, False, "TESLA", "BUY TESLA"),
    ],
)
def test_a_hotword_is_found_at_the_beginning_and_within_a_sentence(
    tmp_path, model_type, texts, blank_first, phrase, sentence
):
    settings = dict(model_type=model_type, add_dummy_prefix=blank_first)
    tokenizer, names = tiny_tokenizer(tmp_path / "bpe.model", texts, **settings), tmp_path / "names"
    assert tokenizer.joins == (not blank_first)
    names.write_text(f"{phrase} :1", encoding="utf8")
    (graph,) = ModifiedBeamSearch(hotwords_file=str(names)).for_tokens(tokenizer).scorers
    assert isinstance(graph, ContextGraph)
    total, owed = walk(graph, tokenizer.encode([sentence])[0])
    assert total > 0 and owed == 0


def test_blanks_change_nothing():
    graph = graph_of([(1, 2)])
    _, state = graph.advance(
        graph.start(1, 2, torch.device("cpu")), torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    )
    score, after = graph.advance(state, torch.tensor([[0, 0]]), torch.tensor([[False, False]]))
    assert score.tolist() == [[0.0, 0.0]] and after[0].equal(state[0])
    assert graph.owed(after).tolist() == [[1.0, 0.0]]


def slow_beam(model: Transducer, frames: Tensor, beam: int, graph: ContextGraph) -> Result:
    """As the definition reads: a dict from tokens to (log probability, timestamps, the tokens' own), and `walk`."""
    paths: dict[tuple[int, ...], tuple[float, list[int], list[float]]] = {(): (0.0, [], [])}
    for t, frame in enumerate(frames):
        candidates = []
        for tokens, (total, times, own) in paths.items():
            for token, score in enumerate(log_probs(model, frame, tokens).tolist()):
                said = ((token,), [t], [score]) if token else ((), [], [])
                candidates.append((total + score, tokens, said, times, own))
        candidates.sort(key=lambda candidate: -candidate[0])
        paths = {}
        for total, before, said, times, own in candidates[:beam]:
            tokens = before + said[0]
            total += walk(graph, list(tokens))[0] - walk(graph, list(before))[0]
            times, own = times + said[1], own + said[2]
            if tokens in paths:
                other, times, own = paths[tokens]
                total = max(total, other) + math.log1p(math.exp(-abs(total - other)))
            paths[tokens] = (total, times, own)
    finals = {tokens: total - walk(graph, list(tokens))[1] for tokens, (total, _, _) in paths.items()}
    best = max(finals, key=lambda tokens: finals[tokens] / (model.config.context_size + len(tokens)))
    return Result(list(best), paths[best][1], finals[best], paths[best][2])


@pytest.fixture(scope="module")
def model() -> Transducer:
    return talkative_model()


def biased(graph: ContextGraph, beam: int = 4) -> ModifiedBeamSearch:
    search = ModifiedBeamSearch(beam_size=beam, hotwords_file="hotwords.txt")
    object.__setattr__(search, "scorers", (graph,))
    return search


@pytest.mark.parametrize("beam", [1, 4, 7])
def test_the_search_equals_a_slow_reference(model, beam):
    encoder_out = encoder_frames(model)
    plain = decode(model, ModifiedBeamSearch(beam_size=beam), encoder_out, LENS)
    hotwords = [(first, second + 1) for first, second in pairwise(plain[0].tokens[:6])]  # that it nearly said
    graph = graph_of(
        [word for word in hotwords if max(word) < model.config.vocab_size], vocab_size=model.config.vocab_size
    )
    ours = decode(model, biased(graph, beam), encoder_out, LENS)
    for result, frames, length in zip(ours, encoder_out, LENS, strict=True):
        assert_same(result, slow_beam(model, frames[:length], beam, graph))
    if beam > 1:
        assert [r.tokens for r in ours] != [r.tokens for r in plain]


def test_chunk_by_chunk_and_stacked_streams_equal_whole_ones(model):
    encoder_out = encoder_frames(model)
    graph = graph_of([(3, 4, 5), (4, 4), (7,)], [2.0, 1.0, 0.5], model.config.vocab_size)
    search = biased(graph)
    whole = decode(model, search, encoder_out, LENS)
    for ours, theirs in zip(decode_in_pieces(model, search, encoder_out, LENS), whole, strict=True):
        assert_same(ours, theirs)


def test_its_settings_are_in_its_names():
    search = replace(ModifiedBeamSearch(), hotwords_file="lists/names.txt", hotwords_score=2.0)
    assert search.name == "modified_beam_search_beam-size-4_hotwords-names-2"
    assert search.file_suffix(2) == "__modified_beam_search__beam-size-4-hotwords-names-2"
    assert search.streaming_name == "num-active-paths-4-hotwords-names-2"
