"""Attention relations of one utterance: in the teacher, in the auxiliary branch and in the student.

These are the maps that the relation loss compares (kd/losses.py), A_X = softmax(X X^T / sqrt(d)) for X in Q, K and V,
here as means over the relation heads.  Shapes: T tap frames, W width, R relation heads, d head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdstream.checkpoints.store import find_epochs, load_checkpoint, restore
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.batch import Utterance, make_batch
from kdstream.data.module import AsrDataModule
from kdstream.data.reading import read_audio
from kdstream.decoding.settings import choose_chunk
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.layer_map import LayerPair
from kdstream.kd.losses import relation_loss
from kdstream.kd.several import SeveralDistillers, build_distiller
from kdstream.kd.teachers import load_teacher, needs_audio, without_cache
from kdstream.models.presets import resolve
from kdstream.models.transducer import Transducer, build_model
from kdstream.units import ENCODER_FRAME_MS

TEACHER, BRANCH, STUDENT = "teacher", "auxiliary branch", "student"
SECONDS = (3.0, 8.0)  # of the utterance: long enough to have structure, short enough to see frames

Vectors = tuple[Tensor, Tensor, Tensor]  # query, key and value, each (1, T, W)


@dataclass(frozen=True)
class Relations:
    """Relation maps of one utterance at one tapped layer.

    layers: names of the tapped layer in the student and in the teacher.
    frame_ms: length of a frame of the maps.
    weights: the checkpoint of student and branches.
    maps: (T, T) by (whose, X), every row a distribution; X is "Q", "K" or "V".
    divergences: KL from the teacher's map in nats, mean over heads and frames, by (whose, X).
    """

    cut_id: str
    text: str
    layers: tuple[str, str]
    frame_ms: int
    weights: Path
    maps: dict[tuple[str, str], Tensor]
    divergences: dict[tuple[str, str], float]


def relation_map(x: Tensor, heads: int) -> Tensor:
    """softmax(X X^T / sqrt(d)), mean over `heads` heads: (T, W) -> (T, T)."""
    x = x.double().unflatten(-1, (heads, -1)).transpose(0, 1)  # (R, T, d)
    return (torch.matmul(x, x.transpose(1, 2)) / math.sqrt(x.size(2))).softmax(dim=-1).mean(dim=0)


@torch.no_grad()
def read_relations(exp_dir: Path) -> Relations:
    """Runs an utterance of the test set through a distilled student, its branches and its teacher.

    Student and branches have the weights of the last epoch-N.pt, in which they were trained together; the
    teacher's are those that training used.  Paths in config.json are as seen from where train.py ran.

    Raises:
      UserError: no teacher, no auxiliary branch, or a checkpoint or data that are not there.
    """
    config = ExperimentConfig.load(exp_dir)
    if not config.distill.has_teacher:
        raise UserError(f"{exp_dir}: trained without a teacher", fix="name a distilled student")
    utterance = choose_utterance(config)
    student, distiller, weights = load_distilled(exp_dir, config)
    batch = make_batch([utterance])
    taps = distiller.student_taps()
    student.encode(batch.features, batch.feature_lens, choose_chunk(config.model, DecodeConfig()), taps=taps)
    if config.distill.kd_branch == "none":
        raise UserError(f"{exp_dir}: no layer has an auxiliary branch", fix="name a student with branches")
    index, pair = finest_pair(distiller)
    heard = distiller.teacher.listen(batch, [pair.teacher])
    student_tap, teacher_tap = pair.align(taps[pair.student], heard.layers[pair.teacher])
    branch = distiller.branches[index](student_tap)
    if branch.query is None:
        raise UserError(f"{exp_dir}: its branches have no auxiliary layer", fix="see --kd-branch transformer")
    vectors = {
        TEACHER: (teacher_tap.query, teacher_tap.key, teacher_tap.value),
        BRANCH: (branch.query, branch.key, branch.value),
        STUDENT: (student_tap.query, student_tap.key, student_tap.value),
    }
    maps, divergences = compare_maps(vectors, config.distill.kd_relation_heads)
    frame_ms = pair.stride * ENCODER_FRAME_MS
    layers = (pair.student, pair.teacher)
    return Relations(utterance.cut_id, utterance.text, layers, frame_ms, weights, maps, divergences)


def compare_maps(
    vectors: dict[str, Vectors], heads: int
) -> tuple[dict[tuple[str, str], Tensor], dict[tuple[str, str], float]]:
    """Maps and divergences as in `Relations`; with fewer heads where `heads` does not divide a width."""
    maps, divergences = {}, {}
    for name, *of_all in zip("QKV", *vectors.values(), strict=True):
        heads_here = math.gcd(heads, *(x.size(-1) for x in of_all))
        by_whose = dict(zip(vectors, of_all, strict=True))
        frames = by_whose[TEACHER].size(1)
        weights = torch.full((1, frames), 1 / frames)
        for whose, x in by_whose.items():
            maps[whose, name] = relation_map(x[0], heads_here)
            if whose != TEACHER:
                divergences[whose, name] = relation_loss([by_whose[TEACHER]], [x], weights, heads_here).item()
    return maps, divergences


def choose_utterance(config: ExperimentConfig) -> Utterance:
    """The first utterance of the first test set that lasts `SECONDS`; with audio where the teacher needs it."""
    test_set, utterances = next(iter(AsrDataModule(config.data, config.train.seed).test_sets().items()))
    low, high = SECONDS
    for index, cut in enumerate(utterances.cuts):
        if low <= cut.duration <= high:
            utterance = utterances[index]
            return (
                utterance._replace(audio=read_audio(cut)) if needs_audio(without_cache(config).distill) else utterance
            )
    raise UserError(f"test set {test_set}: no cut lasts between {low:g} and {high:g} s", fix="name another test set")


def load_distilled(exp_dir: Path, config: ExperimentConfig) -> tuple[Transducer, Distiller, Path]:
    """Student, distiller (branches and teacher) in eval mode, on the CPU, and the checkpoint they are from.

    Of several teachers, the first that guides layers.
    """
    weights = next(iter(find_epochs(exp_dir)), None)
    if weights is None:
        raise UserError(f"{exp_dir}: no epoch-N.pt", fix="train it for an epoch first")
    checkpoint, no_branches = load_checkpoint(weights), f"{weights}: holds no branches"
    if checkpoint.get("branches") is None:
        raise UserError(no_branches, fix="name a distilled student")
    student = build_model(resolve(config.model))
    distiller = build_distiller(config.distill, student, load_teacher(without_cache(config), torch.device("cpu")))
    restore(checkpoint, weights, student, branches=distiller)
    members = distiller.members if isinstance(distiller, SeveralDistillers) else [distiller]
    guides = [member for member in members if isinstance(member, Distiller) and member.pairs]
    if not guides:  # it learned posteriors alone
        raise UserError(no_branches, fix="name a student that was distilled between layers")
    return student.eval(), guides[0].eval(), weights


def finest_pair(distiller: Distiller) -> tuple[int, LayerPair]:
    """The last of the tapped layers with the shortest frames, and its place among the branches."""
    return min(enumerate(distiller.pairs), key=lambda item: (item[1].stride, -item[0]))
