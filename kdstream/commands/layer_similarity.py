"""Measures how similar every layer of a student is to every layer of a teacher, by linear CKA.

    kdstream layer-similarity --exp-dir exp/baseline --teacher-exp-dir exp/teacher

writes exp/baseline/layer_similarity.json and a heat map beside it.  train.py takes the file as
--kd-similarity-file with --kd-layer-map similar.  The student listens as it streams, the teacher to whole
utterances of the validation set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kdstream.config.command_line import log_to_stderr, override_data, teacher_flags
from kdstream.config.decoding import DecodeConfig, WeightsConfig
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import add_arguments, add_overrides, from_args, in_range, override, parser_of
from kdstream.config.sections import DataConfig
from kdstream.errors import UserError, option
from kdstream.files import write_text

DATA_FLAGS = ("manifest_dir", "dev_parts", "valid_cuts", "bpe_model", "max_duration", "num_workers", "on_the_fly_feats")


def measure(config: ExperimentConfig, decode: DecodeConfig, num_batches: int) -> dict:
    """The similarities, as layer_map.py reads them."""
    import torch
    from tqdm import tqdm

    from kdstream.checkpoints.trained import load_trained
    from kdstream.data.module import AsrDataModule
    from kdstream.decoding.settings import choose_chunk
    from kdstream.kd.several import SeveralTeachers
    from kdstream.kd.similarity import LayerSimilarity
    from kdstream.kd.taps import Taps, tap_shapes
    from kdstream.kd.teachers import load_teacher, needs_audio, without_cache

    config = without_cache(config)
    student = load_trained(config, decode).model
    teacher = load_teacher(config, torch.device("cpu"))
    if teacher is None or isinstance(teacher, SeveralTeachers):
        which = "no teacher is named" if teacher is None else "compares with one teacher"
        raise UserError(which, flag="--teacher-exp-dir", fix="name the one to compare with")
    chunk = choose_chunk(config.model, decode)
    similarity = LayerSimilarity()
    data = AsrDataModule(config.data, config.train.seed)
    batches = data.valid_dataloader(with_audio=needs_audio(config.distill))
    for batch in tqdm(islice(batches, num_batches), total=num_batches, desc="batches", disable=None):
        ours = Taps()
        student.encode(batch.features, batch.feature_lens, chunk, taps=ours)
        heard = teacher.listen(batch, teacher.shapes)
        similarity.add({name: ours[name] for name in ours.names()}, heard.layers)
    names = list(tap_shapes(student))
    return {
        "student_layers": names,
        "teacher_layers": list(teacher.shapes),
        "cka": similarity.cka(len(names)).tolist(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    add_arguments(parser, WeightsConfig)
    parser.add_argument(
        "--num-batches", type=in_range(int, minimum=1), default=10, help="Batches to look at (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="JSON to write (default: EXP_DIR/layer_similarity.json)")
    add_overrides(parser, DistillConfig, *teacher_flags())
    add_overrides(parser, DataConfig, *DATA_FLAGS)
    args = parser.parse_args(argv)
    output = args.output or Path(args.exp_dir) / "layer_similarity.json"
    if output.suffix != ".json":  # beside it goes a picture, of this name but its ending
        raise UserError("is a JSON file", flag=option("output", output), fix="end it with .json")

    import numpy as np
    import torch

    from kdstream.reporting.plots import plot_similarity
    from kdstream.reporting.sources import Similarity
    from kdstream.reporting.style import phone_style

    log_to_stderr()
    config = ExperimentConfig.load(args.exp_dir)
    data = replace(override_data(config.data, args), enable_spec_aug=False)  # the validation set is not augmented
    teacher = DistillConfig() if args.teacher_exp_dir or args.teacher_checkpoint else config.distill
    config = replace(config, data=data, distill=override(teacher, args))
    decode = from_args(DecodeConfig, args)
    with torch.no_grad():
        similarity = measure(config, decode, args.num_batches)
    write_text(output, json.dumps(similarity) + "\n")
    with phone_style():
        measured = Similarity(**{**similarity, "cka": np.array(similarity["cka"])})
        plot_similarity(measured, f"{args.exp_dir} and its teacher", output.with_suffix(".png"))
    print(f"{output}\n{output.with_suffix('.png')}")
