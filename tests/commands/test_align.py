"""local/align.py: the best CTC path found by trying all, and alignments that decoding reads back."""

from __future__ import annotations

from itertools import groupby, product
from pathlib import Path

import pytest
import torch
from lhotse import CutSet, SupervisionSet
from lhotse.utils import fastcopy
from torch import Tensor

from kdstream.checkpoints.store import save_checkpoint
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, TrainConfig
from kdstream.data.cuts import read_manifest
from kdstream.data.tokenizer import Tokenizer
from kdstream.evaluation.forced_alignment import token_spans
from kdstream.evaluation.latency import frame_start_ms
from kdstream.evaluation.references import read_word_ends
from support.decoding import run_script, talkative_model
from support.training import make_corpus

SCRIPT = "local/align.py"


def certain(path: list[int], vocabulary: int = 5) -> Tensor:
    """Log probabilities of a toy CTC model that is sure of a path."""
    return torch.nn.functional.one_hot(torch.tensor(path), vocabulary).float().mul(20).log_softmax(dim=1)


def word_spans(log_probs: Tensor, words: list[list[int]]) -> list[tuple[int, int]] | None:
    """Of words, which are lists of tokens."""
    spans = token_spans(log_probs, [token for word in words for token in word], blank=0)
    if spans is None:
        return None
    left = iter(spans)
    of_words = [[next(left) for _ in word] for word in words]
    return [(of_word[0][0], of_word[-1][1]) for of_word in of_words]


@pytest.mark.parametrize(
    "path, words, spans",
    [
        ([0, 1, 1, 0, 2, 0, 0, 3, 0], [[1, 2], [3]], [(1, 5), (7, 8)]),
        ([1, 0, 1, 0, 1, 1], [[1], [1, 1]], [(0, 1), (2, 6)]),  # a blank parts equal tokens, of one word or of two
        ([4, 3, 2, 1], [[4], [3], [2], [1]], [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([0, 0, 2], [[2]], [(2, 3)]),
    ],
)
def test_words_of_a_toy_model_are_where_it_says(path, words, spans):
    assert word_spans(certain(path), words) == spans


def slow_spans(log_probs: Tensor, words: list[list[int]]) -> list[tuple[int, int]] | None:
    """Tries every path that says the words."""
    tokens = [token for word in words for token in word]
    best, spans = -torch.inf, None
    for path in product(range(log_probs.size(1)), repeat=len(log_probs)):
        runs = [(token, [place for place, _ in run]) for token, run in groupby(enumerate(path), key=lambda x: x[1])]
        said = [(token, places[0], places[-1] + 1) for token, places in runs if token]
        score = sum(float(log_probs[place, token]) for place, token in enumerate(path))
        if [token for token, *_ in said] == tokens and score > best:
            begins, ends = iter([begin for _, begin, _ in said]), iter([end for *_, end in said])
            of_words = [([next(begins) for _ in word][0], [next(ends) for _ in word][-1]) for word in words]
            best, spans = score, of_words
    return spans


@pytest.mark.parametrize("words", [[[1], [2]], [[1, 1], [2]], [[2], [2]], [[1, 2, 1], [2]]], ids=str)
def test_the_best_of_all_paths_is_found(words):
    torch.manual_seed(0)
    for _ in range(3):
        log_probs = torch.randn(7, 3).log_softmax(dim=1)
        assert word_spans(log_probs, words) == slow_spans(log_probs, words)


def test_too_few_frames_for_the_tokens_is_no_alignment():
    assert word_spans(certain([1, 2]), [[1], [2]]) == [(0, 1), (1, 2)]
    assert word_spans(certain([1, 1]), [[1], [1]]) is None
    assert word_spans(certain([1]), [[1], [2]]) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """A few utterances; their words are letters, a token each."""
    return make_corpus(tmp_path_factory.mktemp("corpus"), 5)


def make_exp_dir(folder: Path, data: DataConfig, use_ctc: bool) -> Path:
    model = talkative_model(causal=False, vocab_size=Tokenizer(data.bpe_model).vocab_size, use_ctc=use_ctc)
    params = {"batch_idx_train": 10, "average_period": 1}
    save_checkpoint(folder / "epoch-1.pt", model, model_avg=model, params=params)
    ExperimentConfig(model.config, data, TrainConfig(exp_dir=str(folder))).save(folder)
    return folder


def test_every_word_gets_a_place_within_its_cut_and_is_read_back_as_that(tmp_path, data, monkeypatch):
    exp_dir = make_exp_dir(tmp_path / "exp", data, use_ctc=True)
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir) == ""
    cuts = list(read_manifest(Path(data.test_cuts[0])))
    ends = read_word_ends([exp_dir / "alignments.jsonl.gz"], cuts)
    aligned = SupervisionSet.from_jsonl(exp_dir / "alignments.jsonl.gz")
    assert set(ends) == {cut.id for cut in cuts}
    for cut in cuts:
        items = aligned[cut.id].alignment["word"]
        assert [item.symbol for item in items] == cut.supervisions[0].text.split()
        assert ends[cut.id] == pytest.approx([1000 * item.end for item in items])
        for item, after in zip(items, [*items[1:], None], strict=True):
            assert 0 < item.duration and item.end <= (after.start if after else cut.duration)
            frame = (1000 * item.start - frame_start_ms(0)) / 40
            assert frame == pytest.approx(round(frame), abs=1e-6)


def test_a_cut_whose_text_cannot_be_said_in_it_is_left_out(tmp_path, data, monkeypatch):
    exp_dir = make_exp_dir(tmp_path / "exp", data, use_ctc=True)
    cuts = CutSet.from_jsonl(data.test_cuts[0]).to_eager()
    odd = fastcopy(cuts[0], supervisions=[fastcopy(cuts[0].supervisions[0], text="A A " * 50)])
    CutSet.from_cuts([odd, cuts[1]]).to_file(tmp_path / "some.jsonl.gz")
    flags = ("--test-cuts", tmp_path / "some.jsonl.gz", "--output", tmp_path / "words.jsonl.gz")
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags) == ""
    assert [s.id for s in SupervisionSet.from_jsonl(tmp_path / "words.jsonl.gz")] == [cuts[1].id]


@pytest.mark.parametrize("name, ending", [("words.txt", "end it with .jsonl.gz"), ("new/words.jsonl.gz", "")])
def test_what_cannot_be_written_is_refused_at_once_and_directories_are_made(tmp_path, data, monkeypatch, name, ending):
    exp_dir = make_exp_dir(tmp_path / "exp", data, use_ctc=True)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--output", tmp_path / name)
    assert error.endswith(ending) and (tmp_path / name).is_file() == (not ending)


def test_places_are_the_same_where_the_supervision_begins_after_the_cut(tmp_path, data, monkeypatch):
    exp_dir = make_exp_dir(tmp_path / "exp", data, use_ctc=True)
    ends = []
    for name, delay in (("now", 0.0), ("later", 0.25)):
        cuts = CutSet.from_jsonl(data.test_cuts[0]).to_eager()
        cuts = [
            cut.map_supervisions(lambda s, delay=delay: fastcopy(s, start=delay, duration=s.duration - delay))
            for cut in cuts
        ]
        CutSet.from_cuts(cuts).to_file(tmp_path / f"{name}.jsonl.gz")
        flags = ("--test-cuts", tmp_path / f"{name}.jsonl.gz", "--output", tmp_path / "words.jsonl.gz")
        assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags) == ""
        ends.append(read_word_ends([tmp_path / "words.jsonl.gz"], cuts))
    assert ends[0] == ends[1]


def test_a_model_without_a_ctc_head_is_told_so(tmp_path, data, monkeypatch):
    exp_dir = make_exp_dir(tmp_path / "exp", data, use_ctc=False)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir)
    assert "--use-ctc 1" in error and str(exp_dir) in error and "\n" not in error
    assert not (exp_dir / "alignments.jsonl.gz").exists()
