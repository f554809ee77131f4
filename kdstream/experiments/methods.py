"""Trains every distillation method under one budget, with several seeds, and compares them.

    python local/compare_methods.py --exp-root egs/librispeech/exp/methods --jobs 2

By default on the embedded corpus, which `prepare.sh --corpus mini` makes, with the settings of run.sh, to which
--train-flags adds or of which it changes any.  The teacher is trained first if --teacher-exp-dir is not there, and
longer than the students: they have one budget, and a teacher that they overtake has nothing to say.  What is
finished is not done again, what was killed goes on.  With --cache-teacher 1 what the teacher hears is stored once,
below EXP_ROOT, and no student runs it.

Writes EXP_ROOT/comparison.json and comparison.md: word error rates over the seeds, the relative reduction against
--baseline and against the best form of token distillation, with intervals (95 %, bootstrap over utterances), and the
commands.  With --publish egs/librispeech/results/NAME also NAME.json (the records) and NAME-comparison.json, which
local/render_results.py turns into tables of RESULTS.md.  --add-results takes NAME.json of another machine, or of
another day, whose seeds then count too.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdstream.config.command_line import CACHE_DATA_FLAGS
from kdstream.config.experiment import CONFIG_FILE
from kdstream.config.flags import flag_value, parser_of, str2bool
from kdstream.config.sections import DataConfig, DistillConfig
from kdstream.errors import UserError
from kdstream.evaluation.compare import compare_seeds
from kdstream.evaluation.records import Record, load_records, publish, write_json
from kdstream.evaluation.tables import rows_table
from kdstream.experiments.cells import (
    FLAGS_FILE,
    Cell,
    add_runner_flags,
    as_typed,
    read_config,
    report_failures,
    run_cells,
    seen_from,
)

NO_HIDDEN = "--kd-feature-scale 0 --kd-relation-scale 0 --kd-apc-scale 0"
TOKENS = f"{NO_HIDDEN} --kd-token-scale 0.5"
FEATURE = "--kd-feature-scale 1 --kd-relation-scale 0 --kd-apc-scale 0"
FEATURE_RELATION = "--kd-feature-scale 1 --kd-relation-scale 0.1 --kd-apc-scale 0"
FEATURE_APC = "--kd-feature-scale 1 --kd-relation-scale 0 --kd-apc-scale 0.5"
FEATURE_RELATION_APC = "--kd-feature-scale 1 --kd-relation-scale 0.1 --kd-apc-scale 0.5"
TEACHERS_WEIGHTS = "--init-from-teacher 1"

# The flags of train.py that make a method.  One that has any gets the teacher too.
METHODS = {
    "baseline": "",
    "init-from-teacher": f"{NO_HIDDEN} {TEACHERS_WEIGHTS}",
    "token-full": f"{TOKENS} --kd-token-form full",
    "token-collapsed": f"{TOKENS} --kd-token-form collapsed",
    "token-one-best": f"{TOKENS} --kd-token-form one-best",
    "direct-feature": f"{FEATURE} --kd-branch none",
    "branch-feature": FEATURE,
    "branch-feature-relation": FEATURE_RELATION,
    "branch-feature-apc": FEATURE_APC,
    "branch-feature-relation-apc": FEATURE_RELATION_APC,
    "init-feature-relation-apc": f"{FEATURE_RELATION_APC} {TEACHERS_WEIGHTS}",
    "best": f"{FEATURE_APC} {TEACHERS_WEIGHTS} --kd-token-scale 0.5",
}
TEACHER = "teacher"
TOKEN_FORMS = [name for name in METHODS if name.startswith("token-")]

# run.sh's; one process takes two batches to a step where its two take one each, which gives the same gradients.
# The learning rate is the one at which the baseline ends best.
EMBEDDED_CORPUS = (
    "--preset tiny --causal 1 --chunk-size 8 --left-context-frames 32 --bpe-model data/lang_bpe_64/bpe.model "
    "--max-duration 15 --accum-grad 2 --num-workers 0 --ref-duration 1.5 --warm-step 200 --lr-warmup-batches 100 "
    "--lr-batches 300 --lr-epochs 6 --average-period 10 --valid-interval 100000 --save-every-n 50 --keep-last-k 1 "
    "--use-ctc 1 --ctc-loss-scale 0.5 --enable-spec-aug 0 --kd-warmup-batches 100 --base-lr 0.07"
)


def all_cells(args: argparse.Namespace) -> list[Cell]:
    """The teacher, if a method needs it, and every method with every seed."""
    teacher = teacher_cell(args)
    guided = ["--teacher-exp-dir", teacher.exp_dir, "--teacher-avg", str(args.avg)]
    if args.cache_teacher:
        teacher = replace(teacher, cache=cache_dir(args), cache_flags=cache_flags(args))
        guided += ["--teacher-cache", teacher.cache]
    cells = [teacher] if any(METHODS[method] for method in args.methods) else []
    for method in args.methods:
        flags = METHODS[method].split()
        for seed in args.seeds:
            cell = make_cell(args, args.exp_root / f"{method}-{seed}", method, [*guided, *flags] if flags else [], seed)
            cells.append(replace(cell, after=teacher) if flags else cell)
    return cells


def teacher_cell(args: argparse.Namespace) -> Cell:
    """The teacher's training, with the students' flags but in full context; if it is another's, its decoding alone.

    Only one that --teacher-exp-dir names can be another's: in EXP_ROOT other flags are refused, as a student's are.
    """
    exp_dir = args.teacher_exp_dir or args.exp_root / TEACHER
    ours = make_cell(args, exp_dir, TEACHER, ["--num-epochs", str(args.teacher_num_epochs), "--causal", "0"], seed=1)
    begun = exp_dir / FLAGS_FILE
    is_new = not (exp_dir / CONFIG_FILE).is_file()
    if not args.teacher_exp_dir or is_new or begun.is_file() and begun.read_text() == ours.flags_text():
        return ours
    elsewhere = ("--results-json", seen_from(args.recipe, args.exp_root / "teacher.json"))
    return Cell(args.recipe, ours.exp_dir, None, (decoding(args, TEACHER) + elsewhere,))


def cache_dir(args: argparse.Namespace) -> str:
    """Where what the teacher hears is stored, another place for other layers."""
    layers = args.cache_layers.split(",") if args.cache_layers else []
    return seen_from(args.recipe, args.exp_root / "-".join(["teacher-cache", *layers]))


def cache_flags(args: argparse.Namespace) -> tuple[str, ...]:
    """Of cache_teacher.py: the students' teacher and cuts, whatever that was trained on, and the layers."""
    epoch, data = read_config(DistillConfig, args.train_flags).teacher_epoch, read_config(DataConfig, budget(args))
    flags = {"teacher_avg": args.avg, "teacher_epoch": epoch, "layers": args.cache_layers}
    flags.update({name: getattr(data, name) for name in CACHE_DATA_FLAGS})
    return tuple(word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), flag_value(value)))


def budget(args: argparse.Namespace) -> tuple[str, ...]:
    """The flags of train.py that all share."""
    return ("--num-epochs", str(args.num_epochs), *shlex.split(EMBEDDED_CORPUS), *args.train_flags)


def make_cell(args: argparse.Namespace, exp_dir: Path, system: str, flags: Sequence[str], seed: int) -> Cell:
    train_flags = (*budget(args), *flags, "--seed", str(seed))
    return Cell(args.recipe, seen_from(args.recipe, exp_dir), train_flags, (decoding(args, system),))


def decoding(args: argparse.Namespace, system: str) -> tuple[str, ...]:
    flags = without_chunks(args.decode_flags) if system == TEACHER else args.decode_flags
    return ("decode.py", "--avg", str(args.avg), *flags, "--system", system)


def without_chunks(flags: Sequence[str]) -> list[str]:
    """Flags of decode.py for a model that hears everything."""
    parser = parser_of(None, add_help=False)
    parser.add_argument("--chunk-size")
    parser.add_argument("--left-context-frames")
    return parser.parse_known_args(flags)[1]


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError where what --cache-teacher stores is not what --train-flags tap, or nothing is stored."""
    distill = read_config(DistillConfig, args.train_flags)
    other_layers = distill.kd_layers or distill.kd_layer_map != DistillConfig.kd_layer_map
    if args.cache_teacher and other_layers and not args.cache_layers:
        raise UserError(
            "--cache-teacher 1: stores the last layer of each stack that downsamples, and --train-flags ask for "
            "others; name those of the teacher with --cache-layers, e.g. 1.0,2.1"
        )
    if args.cache_layers and not args.cache_teacher:
        raise UserError("--cache-layers: of what cache? give --cache-teacher 1 too")


def others_records(paths: Sequence[Path]) -> list[Record]:
    """Of results JSONs that --add-results names.  Raises UserError if one has a system that is no method."""
    found = []
    for path in paths:
        records = load_records(path)
        strangers = {record.system for record in records}.difference(METHODS, [TEACHER])
        if strangers:
            raise UserError(f"--add-results {path}: not of a comparison of methods; it has {', '.join(strangers)}")
        found += records
    return found


def all_records(cells: Sequence[Cell], others: Sequence[Record]) -> list[Record]:
    """What the cells' decodings have left so far, and of `others` what they have not; in the order of METHODS."""
    ours = [record for cell in cells for record in cell.all_records()]
    by_key = {record.key: record for record in [*others, *ours]}
    order = [TEACHER, *METHODS]
    return sorted(by_key.values(), key=lambda record: (order.index(record.system), record.seed))


def page(rows: Sequence[dict[str, object]], cells: Sequence[Cell], others: Sequence[Path]) -> str:
    """comparison.md."""
    trainings = [cell.train_command() for cell in cells if cell.train_flags is not None]
    commands = trainings + [command for cell in cells for command in cell.decode_commands()]
    lines = "\n".join(map(as_typed, commands))
    more = f" Seeds that are not among the commands are those of {', '.join(map(str, others))}." if others else ""
    return (
        "# Comparison of methods\n\nWER: mean ± standard deviation over the seeds. Relative reductions are of the "
        "errors of all seeds together, in brackets their 95 % interval (paired bootstrap over utterances)."
        f"{more}\n\n{rows_table(rows)}\n```bash\n{lines}\n```\n"
    )


def methods(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    return names


def paths(text: str) -> list[Path]:
    return [Path(path) for path in text.split(",")]


def get_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    add_runner_flags(parser, seeds="1,2,3,4,5")
    add = parser.add_argument
    add("--teacher-exp-dir", type=Path, help="The teacher (default: EXP_ROOT/teacher)")
    add("--cache-teacher", type=str2bool, default=False, help="Store what the teacher hears (default: %(default)s)")
    add("--cache-layers", default="", help="Its layers to store (default: the last of each stack that downsamples)")
    add("--methods", type=methods, default=",".join(METHODS), help="Methods (default: %(default)s)")
    add("--baseline", choices=list(METHODS), default="baseline", help="What to compare with (default: %(default)s)")
    add("--num-epochs", type=int, default=8, help="Epochs to train a student (default: %(default)s)")
    add("--teacher-num-epochs", type=int, default=24, help="Epochs to train the teacher (default: %(default)s)")
    add("--avg", type=int, default=1, help="Epochs whose mean teaches and is decoded (default: %(default)s)")
    add("--add-results", type=paths, default=(), help="Results JSONs whose seeds count too (default: none)")
    add("--publish", type=Path, help="Where to write the JSON files, without .json (default: nowhere)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    check_flags(args)
    args.exp_root.mkdir(parents=True, exist_ok=True)
    cells = all_cells(args)
    others = others_records(args.add_results)
    failures = run_cells(cells, args.jobs)
    records = all_records(cells, others)
    if records:
        if args.baseline not in {record.system for record in records}:
            print(
                f"no record of {args.baseline}, so nothing is compared with it; add it to --methods, bring its records "
                "with --add-results, or name another --baseline",
                file=sys.stderr,
            )
        rows = compare_seeds(records, args.baseline, TOKEN_FORMS)
        write_json(args.exp_root / "comparison.json", rows)
        (args.exp_root / "comparison.md").write_text(page(rows, cells, args.add_results), encoding="utf8")
        if args.publish:
            publish(args.publish, records, comparison=rows)
        print(f"comparison: {args.exp_root / 'comparison.md'}")
    report_failures(failures)
