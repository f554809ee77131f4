"""Flags of train.py that nothing reads are named, and those that something reads are not."""

from __future__ import annotations

import pytest

from kdstream.commands.train import get_parser
from kdstream.training.start import config_of_start, warn_of_flags_without_effect


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
