"""Which chunk and which search the flags choose."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any

import pytest

from kdstream.config import flags
from kdstream.config.command_line import make_parser
from kdstream.config.decoding import DECODE_SECTIONS, SEARCHES, DecodeConfig
from kdstream.config.flags import flag, flags_of, from_args
from kdstream.config.sections import ModelConfig
from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.lattice import FastBeamSearch
from kdstream.decoding.settings import add_search, choose_chunk, choose_search
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig, chunks_of
from support.paths import ROOT


def parse(*argv: str) -> DecodeConfig:
    return from_args(DecodeConfig, make_parser("").parse_args(argv))


def test_the_chunk_is_the_flag_or_else_the_first_trained_with():
    model = ModelConfig(causal=True, chunk_size=(16, 32, -1), left_context_frames=(64, -1))
    assert choose_chunk(model, DecodeConfig()) == ChunkConfig(16, 64)
    assert choose_chunk(model, DecodeConfig(chunk_size=8)) == ChunkConfig(8, 64)
    assert choose_chunk(model, DecodeConfig(chunk_size=32, left_context_frames=-1)) == ChunkConfig(32, -1)
    assert choose_chunk(model, DecodeConfig(chunk_size=-1)) is None
    assert choose_chunk(ModelConfig(causal=False), DecodeConfig()) is None


@pytest.mark.parametrize(
    "sizes, lefts, rights, chunk",
    [
        ((32, 8), (16, 32), (0,), ChunkConfig(32, 32)),
        ((8,), (12, 32), (0,), ChunkConfig(8, 32)),
        ((8,), (-1, 32), (8, 0), ChunkConfig(8, -1)),
        ((8,), (-1, 32), (8,), ChunkConfig(8, 32, 8)),
    ],
)
def test_without_flags_the_chunk_is_the_first_that_training_draws(sizes, lefts, rights, chunk):
    model = ModelConfig(causal=True, chunk_size=sizes, left_context_frames=lefts, right_context_frames=rights)
    assert choose_chunk(model, DecodeConfig()) == chunks_of(model, sizes[0])[0] == chunk


def test_contexts_that_are_typed_hold_even_where_they_fit_no_chunk():
    model = ModelConfig(causal=True, left_context_frames=(-1, 32), right_context_frames=(0, 8))
    assert choose_chunk(model, DecodeConfig(right_context_frames=8)) == ChunkConfig(8, 32, 8)
    with pytest.raises(UserError, match="left context 12: not a multiple of chunk 8; use --left-context-frames 16"):
        choose_chunk(model, DecodeConfig(left_context_frames=12))
    with pytest.raises(UserError, match="right context 8 needs a limited left context"):
        choose_chunk(model, DecodeConfig(left_context_frames=-1, right_context_frames=8))
    with pytest.raises(UserError, match="chunk 0: must be positive"):
        choose_chunk(model, DecodeConfig(chunk_size=0))


def test_right_context_that_was_not_trained_with_is_pointed_out(caplog):
    model = ModelConfig(causal=True, right_context_frames=(8, 0))
    assert choose_chunk(model, DecodeConfig()) == ChunkConfig(8, 32, 8)
    assert choose_chunk(model, DecodeConfig(right_context_frames=0)) == ChunkConfig(8, 32)
    assert not caplog.messages
    assert choose_chunk(model, DecodeConfig(right_context_frames=16)) == ChunkConfig(8, 32, 16)
    assert "--right-context-frames 16: the model of exp was trained with 8,0 alone" in caplog.text
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("causal, chunk_size", [(True, -1), (False, None)])
def test_contexts_that_full_context_does_not_look_at_are_pointed_out(causal, chunk_size, caplog):
    decode = DecodeConfig(chunk_size=chunk_size, left_context_frames=64, right_context_frames=16)
    assert choose_chunk(ModelConfig(causal=causal), decode) is None
    assert caplog.messages == [
        f"--{side}-context-frames {frames}: has no effect in full context"
        for side, frames in (("left", 64), ("right", 16))
    ]


def test_the_search_and_its_settings_are_those_of_the_flags():
    assert choose_search(DecodeConfig()) == choose_search(parse()) == GreedySearch()
    assert choose_search(parse("--max-sym-per-frame", "2")) == GreedySearch(max_sym_per_frame=2)
    beam = parse("--decoding-method", "modified_beam_search", "--beam-size", "7", "--max-sym-per-frame", "2")
    assert choose_search(beam) == ModifiedBeamSearch(beam_size=7)


def test_settings_of_another_search_are_pointed_out(caplog):
    assert choose_search(parse("--beam-size", "8", "--max-sym-per-frame", "2")) == GreedySearch(max_sym_per_frame=2)
    assert caplog.messages == ["--beam-size 8: has no effect in greedy_search"]
    choose_search(parse("--decoding-method", "modified_beam_search", "--hotwords-score", "3", "--lm-scale-decode", "1"))
    assert caplog.messages[1:] == [
        "--hotwords-score 3.0: has no effect without --hotwords-file",
        "--lm-scale-decode 1.0: has no effect without --lm-exp-dir",
    ]
    caplog.clear()
    choose_search(parse("--decoding-method", "ctc_greedy_search", "--blank-penalty", "2"))
    assert caplog.messages == ["--blank-penalty 2.0: has no effect in ctc_greedy_search"]


def test_a_search_from_outside_with_a_flag_of_its_own_leaves_the_others_as_they_are(caplog, monkeypatch):
    @dataclass(frozen=True)
    class PatientSearch(GreedySearch):
        method = "patient_search"
        patience: int = flag(3, "How long it waits.")

    for table in ("settings", "_entries"):
        monkeypatch.setattr(SEARCHES, table, dict(getattr(SEARCHES, table)))
    monkeypatch.setattr(flags, "EXTENSIONS", {})
    add_search(PatientSearch)
    assert choose_search(parse()) == GreedySearch() and not caplog.messages
    assert choose_search(parse("--patience", "5")) == GreedySearch()
    assert caplog.messages == ["--patience 5: has no effect in greedy_search"]


def test_every_setting_of_a_search_is_a_flag_with_the_same_default():
    assert {"greedy_search", "modified_beam_search", "fast_beam_search"} <= set(SEARCHES)
    for search in SEARCHES.values():
        own = [item for item in fields(search) if item.init]
        assert {item.name: getattr(parse(), item.name) for item in own} == {item.name: item.default for item in own}


def test_the_sections_of_decoding_share_no_flag_and_are_all_of_its_settings():
    names = [item.name for section in DECODE_SECTIONS for item in flags_of(section)]
    assert sorted(names) == sorted(item.name for item in flags_of(DecodeConfig)) == sorted(set(names))


def test_an_unknown_search_is_refused_with_the_known_ones():
    known = "greedy_search, modified_beam_search, fast_beam_search, ctc_greedy_search, ctc_prefix_beam_search"
    with pytest.raises(UserError, match=f"--decoding-method prefix_search: unknown; use one of {known}"):
        choose_search(DecodeConfig(decoding_method="prefix_search"))


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"beam": 0.0}, "--beam 0.0: must be positive"),
        ({"max_contexts": 0}, "--max-contexts 0: must be positive"),
        ({"max_states": -1}, "--max-states -1: must be positive"),
    ],
)
def test_settings_of_a_lattice_are_checked_before_k2_is_needed(settings, named):
    with pytest.raises(UserError, match=named):
        FastBeamSearch(**settings)


@pytest.mark.parametrize(
    "flag, value, what",
    [
        ("--hotwords-file", "names.txt", "hotwords"),
        ("--lm-exp-dir", "lm", "language model"),
        ("--lodr-scale", "-0.1", "language model"),
        ("--nbest", "4", "n-best list"),
    ],
)
def test_what_a_search_would_not_look_at_is_refused(flag, value, what):
    with pytest.raises(UserError, match=f"{flag} {value}: greedy_search takes no {what}; use --decoding-method mod"):
        choose_search(parse(flag, value))


def test_without_k2_fast_beam_search_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"--decoding-method fast_beam_search: needs k2 .*; install k2 as docs/k2\.md"):
        choose_search(parse("--decoding-method", "fast_beam_search"))


@pytest.mark.slow
def test_help_lists_all_searches_without_importing_k2():
    code = "import sys; sys.modules['k2'] = None; from kdstream.commands.decode import main; main(['--help'])"
    command: list[Any] = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "greedy_search,modified_beam_search,fast_beam_search" in shown and "ctc_greedy_search" in shown
    assert "--beam-size" in shown and "--max-contexts" in shown
