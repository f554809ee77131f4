"""A search that the package does not know: one class, one table entry, and the commands decode with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sentencepiece
import torch

from kdstream.checkpoints.store import save_pretrained
from kdstream.config.command_line import search_flags
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import EXTENSIONS, flag
from kdstream.config.sections import SEARCHES, DecodeConfig
from kdstream.decoding.search import Result, Search, joiner_log_probs, predict
from kdstream.decoding.settings import add_search
from kdstream.evaluation.records import load_records
from kdstream.evaluation.scoring import read_recogs
from kdstream.evaluation.tables import wer_table
from support.decoding import SCRIPTS, noise_test_set, run_script, talkative_model


@dataclass
class SpokenState:
    """The results of N streams so far."""

    spoken: list[Result]
    frames: list[int]

    @classmethod
    def stack(cls, states: Sequence[SpokenState]) -> SpokenState:
        return cls(
            [result for state in states for result in state.spoken], [n for state in states for n in state.frames]
        )

    def unstack(self) -> list[SpokenState]:
        return [SpokenState([result], [n]) for result, n in zip(self.spoken, self.frames, strict=True)]

    def results(self) -> list[Result]:
        return self.spoken


@dataclass(frozen=True)
class SparseSearch(Search[SpokenState]):
    """Looks at every n-th frame only, and never at what was said before."""

    method = "sparse_search"
    sparse_step: int = flag(2, "Frames from one at which sparse_search looks to the next.")

    @property
    def settings(self) -> list[str]:
        return [f"sparse-step-{self.sparse_step}"]

    def start(self, model, num_streams):
        return SpokenState([Result([], [], 0.0)] * num_streams, [0] * num_streams)

    @torch.no_grad()
    def advance(self, model, encoder_out, encoder_out_lens, state):
        context = torch.tensor([[-1] * (model.config.context_size - 1) + [model.config.blank_id]])
        best, tokens = joiner_log_probs(model, model.joiner.encoder_proj(encoder_out), predict(model, context)).max(
            dim=2
        )
        after = []
        for n, result in enumerate(state.spoken):
            for t in range(int(encoder_out_lens[n])):
                time, token = state.frames[n] + t, int(tokens[n, t])
                if time % self.sparse_step == 0 and token != model.config.blank_id:
                    result = replace(result, tokens=[*result.tokens, token], timestamps=[*result.timestamps, time])
            after.append(result)
        frames = [done + more for done, more in zip(state.frames, encoder_out_lens.tolist(), strict=True)]
        return SpokenState(after, frames)


@pytest.fixture()
def added(monkeypatch):
    """The search is in the table during a test."""
    monkeypatch.setattr(SEARCHES, "_entries", dict(SEARCHES))
    monkeypatch.setitem(EXTENSIONS, DecodeConfig, dict(EXTENSIONS[DecodeConfig]))
    add_search(SparseSearch)


@pytest.fixture()
def exp_dir(tmp_path) -> Path:
    data = noise_test_set(tmp_path)
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=data.bpe_model).get_piece_size()
    model = talkative_model(causal=True, vocab_size=vocab_size, chunk_size=(8,))
    folder = tmp_path / "exp"
    folder.mkdir()
    ExperimentConfig(model.config, data).save(folder)
    save_pretrained(folder, model)
    return folder


def test_both_commands_decode_with_it_under_its_own_name(added, exp_dir, monkeypatch):
    flags = ("--exp-dir", exp_dir, "--decoding-method", "sparse_search", "--sparse-step", 3)
    for script in SCRIPTS.values():
        assert run_script(monkeypatch, script, *flags) == ""
    simulated, chunkwise = load_records(exp_dir / "results.json")
    assert simulated.search == chunkwise.search == "sparse_search_sparse-step-3"
    assert Path(simulated.recogs).parts == (
        "sparse_search",
        "recogs-noise-pretrained_chunk-8_left-context-32_sparse_search_sparse-step-3_use-averaged-model.txt",
    )
    assert Path(chunkwise.recogs).parts == (
        "streaming",
        "sparse_search",
        "recogs-noise_sparse_search_sparse-step-3_pretrained_chunk-8_left-context-32-use-averaged-model.txt",
    )
    first, second = (read_recogs(exp_dir / record.recogs) for record in (simulated, chunkwise))
    assert first == second and any(transcript.hyp for transcript in first)
    assert wer_table([simulated, chunkwise]).count("| sparse_search_sparse-step-3 |") == 2


def test_its_flag_has_its_default_and_is_left_out_with_those_of_other_searches(added, exp_dir, monkeypatch):
    flags = ("--exp-dir", exp_dir, "--decoding-method", "sparse_search")
    assert run_script(monkeypatch, SCRIPTS["whole"], *flags) == ""
    (record,) = load_records(exp_dir / "results.json")
    assert record.search == "sparse_search_sparse-step-2"
    assert "sparse_step" in search_flags()


def test_help_lists_it_with_its_flag(added, monkeypatch, capsys):
    run_script(monkeypatch, SCRIPTS["whole"], "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "fast_beam_search,sparse_search}" in shown
    assert "Frames from one at which sparse_search looks to the next. (default: 2)" in shown


def test_a_name_is_taken_once(added):
    with pytest.raises(ValueError, match="sparse"):
        add_search(SparseSearch)
