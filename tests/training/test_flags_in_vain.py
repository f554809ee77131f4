"""Flags of train.py that nothing reads are named, and those that something reads are not."""

from __future__ import annotations

import pytest

from kdstream.commands.train import get_parser
from kdstream.training.start import config_of_start, warn_of_contexts_never_drawn, warn_of_flags_without_effect


@pytest.mark.parametrize(
    "given, why, read_with",
    [
        ("--chunk-size 16,-1", "with --causal 0, which hears the whole utterance", "--causal 1"),
        ("--left-context-frames 64", "with --causal 0, which hears the whole utterance", "--causal 1"),
        ("--right-context-frames 8,0", "with --causal 0, which hears the whole utterance", "--causal 1"),
        ("--ctc-loss-scale 0.5", "without --use-ctc 1", "--use-ctc 1"),
        ("--init-epoch 3", "without --init-checkpoint", "--init-checkpoint exp/a"),
        ("--init-avg 3", "without --init-checkpoint", "--init-checkpoint exp/a"),
        ("--init-use-averaged-model False", "without --init-checkpoint", "--init-checkpoint exp/a"),
        ("--time-mask-ratio 1.5", "without --cr-ctc-scale", "--cr-ctc-scale 0.1"),
        ("--spec-aug-time-warp-factor 0", "with --enable-spec-aug 0", ""),
        ("--start-epoch 3", "beside --start-batch", ""),
        ("--pseudo-ratio 0.3", "without --pseudo-cuts", "--pseudo-cuts a.jsonl"),
    ],
)
def test_a_flag_that_nothing_reads_is_named(caplog, given: str, why: str, read_with: str):
    vain = {"--spec-aug-time-warp-factor 0": "--enable-spec-aug 0", "--start-epoch 3": "--start-batch 9"}.get(given, "")
    for flags, is_read in ((f"{given} {vain}", False), (f"{given} {read_with}", True), ("", True)):
        caplog.clear()
        warn_of_flags_without_effect(config_of_start(get_parser().parse_args(flags.split())))
        assert caplog.messages == ([] if is_read else [f"{given}: has no effect {why}"])


def test_the_commands_of_the_recipe_name_no_flag_that_nothing_reads(caplog):
    shared = "--use-ctc 1 --ctc-loss-scale 0.5 --enable-spec-aug 0"
    streaming = "--causal 1 --chunk-size 8 --left-context-frames 32"
    for flags in ("--causal 0", streaming, f"{streaming} --causal 0"):
        warn_of_flags_without_effect(config_of_start(get_parser().parse_args(f"{shared} {flags}".split())))
    assert not caplog.messages


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--causal 1 --left-context-frames 12,32", ["--left-context-frames 12"]),
        ("--causal 1 --left-context-frames -1 --right-context-frames 0,8", ["--right-context-frames 8"]),
        ("--causal 1 --left-context-frames -1,32 --right-context-frames 8", ["--left-context-frames -1"]),
        ("--causal 1 --chunk-size 8,16,-1 --left-context-frames 16,32,-1 --right-context-frames 0,8", []),
        ("--causal 1 --chunk-size -1 --left-context-frames 12", []),
        ("--causal 0 --left-context-frames 12", []),
    ],
)
def test_a_context_that_no_batch_has_is_named(caplog, flags: str, named: list[str]):
    warn_of_contexts_never_drawn(config_of_start(get_parser().parse_args(flags.split())).model)
    why = "goes with no chunk and other context here, so no batch has it"
    assert caplog.messages == [f"{context}: {why}" for context in named]
