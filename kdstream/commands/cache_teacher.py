"""Stores what a teacher hears in the training cuts, so that students train without running it.

    kdstream cache-teacher --teacher-exp-dir exp/teacher --teacher-avg 3 --output exp/teacher/cache

then train.py --teacher-exp-dir exp/teacher --teacher-avg 3 --teacher-cache exp/teacher/cache ...  The teacher
hears the cuts as they are stored, speed-perturbed ones included: masks of SpecAugment and added noise then reach
the student alone, and time warping is refused.  Killed, it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdstream.config.command_line import CACHE_DATA_FLAGS, log_to_stderr, teacher_flags
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import add_overrides, override, parser_of
from kdstream.config.sections import CACHE_STORAGES, DataConfig, DistillConfig
from kdstream.errors import UserError, option


def all_cuts(data: DataConfig) -> DataConfig:
    """The training cuts as they are stored, pseudo-labelled ones among them, each once."""
    from kdstream.data.augment import without_transforms
    from kdstream.data.module import AsrDataModule

    if data.pseudo_cuts:
        labelled = map(str, AsrDataModule(data, seed=0).paths("train"))
        data = replace(data, train_cuts=(*labelled, *data.pseudo_cuts), pseudo_cuts=())
    return replace(without_transforms(data), shuffle=False, mux_weights=())


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="Directory of the cache.")
    parser.add_argument("--layers", default="", help="e.g. 1.0,2.1 (default: the last of each stack that downsamples)")
    parser.add_argument(
        "--storage", default="float16", choices=CACHE_STORAGES, help="float16, or lilcom (about 8 bits)."
    )
    parser.add_argument("--device", default="", help="cpu or cuda (default: a GPU if there is one)")
    add_overrides(parser, DistillConfig, *teacher_flags())
    add_overrides(parser, DataConfig, *CACHE_DATA_FLAGS)
    args = parser.parse_args(argv)

    from tqdm import tqdm

    from kdstream.data.features import FBANK_CONFIG
    from kdstream.data.module import AsrDataModule
    from kdstream.devices import find_device
    from kdstream.kd.layer_map import default_layers
    from kdstream.kd.teacher_cache import CacheWriter, fingerprint
    from kdstream.kd.teachers import load_teacher, type_of

    log_to_stderr()
    distill = override(DistillConfig(), args)
    if not type_of(distill).teacher.writes_tokens:
        raise UserError(
            "writes no tokens, so that it cannot be stored",
            flag=option("teacher_type", distill.teacher_type),
            fix="let train.py run it beside the student",
        )
    device = find_device(args.device)
    config = ExperimentConfig.load(distill.teacher_exp_dir) if distill.teacher_exp_dir else ExperimentConfig()
    config = replace(config, data=all_cuts(override(config.data, args)), distill=distill)
    teacher = load_teacher(config, device)
    if teacher is None:
        raise UserError("no teacher is named", flag="--teacher-exp-dir, --teacher-checkpoint", fix="name one to store")
    layers = [name for name in args.layers.split(",") if name] or default_layers(teacher.shapes)
    identity = fingerprint(teacher, FBANK_CONFIG.to_dict())
    writer = CacheWriter(args.output, teacher, layers, args.storage, identity)
    batches = AsrDataModule(config.data, config.train.seed).train_dataloader(1)
    for batch in tqdm(batches, total=batches.num_batches, desc="teacher", unit="batch", disable=None):
        writer.add(batch.to(device))
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"{args.output}: layers {', '.join(layers)} of {distill.teacher_name}, {size / 1e6:.0f} MB")
