"""Settings of distillation, and of what guides a student besides its transcripts; one field is one flag."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.config.flags import Section, flag, flags_of
from kdstream.config.registry import ListsOf, Registry

TEACHER_HEARS = ("clean", "augmented")
TOKEN_FORMS = ("full", "collapsed", "one-best")
CACHE_STORAGES = ("float16", "int8")  # of a teacher's cache
NO_LAYERS = "none"  # of the layers to store in it
POSTERIORS = ("token", "ctc")  # losses that are not between layers
SCALE_OF_A_LOSS = re.compile(r"kd_(\w+)_scale")

# kdstream.kd.teachers, which fills the table, has torch in it; what a parser must know stands here.
TEACHERS: Registry[Any] = Registry(
    "teacher-type",
    lambda: DistillConfig,
    filled_by="kdstream.kd.teachers",
    own={"kdstream": (), "icefall": (), "torchaudio": (), "transformers": ()},
)


@dataclass(frozen=True)
class DistillConfig(Section):
    """Distillation through auxiliary non-streaming branches (arXiv 2308.16415), and between a student's two modes."""

    teacher_exp_dir: str = flag("", "Experiment directory of the frozen teacher; empty: no distillation.")
    teacher_epoch: int = flag(0, "Teacher's epoch-N.pt (0: the last one there is).", minimum=0)
    teacher_avg: int = flag(1, "Teacher's checkpoints to average, as in decode.py.", minimum=1)
    teacher_use_averaged_model: bool = flag(
        True, "Average over every batch of those epochs (model_avg), not only over their last ones."
    )
    teacher_type: str = flag(
        "kdstream",
        "What the teacher is: an experiment of ours (--teacher-exp-dir), icefall's Zipformer, or a speech encoder of "
        "torchaudio's or of Hugging Face transformers' (--teacher-checkpoint).  Several at once: icefall,transformers.",
        choices=ListsOf(TEACHERS),
    )
    teacher_scales: tuple[float, ...] = flag(
        (), "Of several teachers, what the losses of each are multiplied by; empty: 1.", minimum=0
    )
    teacher_losses: tuple[str, ...] = flag(
        (),
        "Of several teachers, the losses that each gives, e.g. token,feature+apc; empty: all that the --kd-*-scale "
        "weigh and it can give.",
    )
    teacher_checkpoint: str = flag(
        "",
        "The teacher's weights: pretrained.pt, epoch-N.pt, state dict or .safetensors; of transformers, the directory.",
    )
    teacher_model: str = flag(
        "",
        "What those weights are of.  icefall: the model flags that it was trained with, e.g. '--preset medium'; empty: "
        "those in its epoch-N.pt.  torchaudio: a function of torchaudio.models and, as JSON, its arguments, e.g. "
        "hubert_base.",
    )
    teacher_bpe_model: str = flag("", "icefall teacher's sentencepiece model, if not --bpe-model.")
    teacher_cache: str = flag(
        "",
        "Read the teacher's output from here, where kdstream cache-teacher wrote it.  Of several teachers: a,b; one "
        "without a name, as in a, is run.",
    )
    kd_teacher_hears: str = flag(
        "clean",
        "What the teacher hears: the cut without noise and masks, as a cache holds it, or the student's features.",
        choices=TEACHER_HEARS,
    )
    init_from_teacher: bool = flag(
        False,
        "Start the student from the teacher's weights; they must have one shape.  Schedules that training begins with "
        "(--warm-step, rates of dropout and of skipped layers) have run out for it, as in icefall's finetune.py.",
    )
    kd_layers: tuple[str, ...] = flag(
        (),
        "Tapped layers as stack.layer, e.g. 2.0,3.1, or with the teacher's, 2.0:3.1; "
        "empty: the last one of every stack that downsamples by 2 or more.  Of several teachers: 2.0:3.1/2.0:0.5.",
    )
    kd_layer_map: str = flag(
        "same",
        "Which layer of the teacher guides a tapped layer: the same, one at equal depth, one of the last k, "
        "the most similar (needs --kd-similarity-file), or all with learned weights.",
        choices=("same", "uniform", "last", "similar", "learned"),
    )
    kd_similarity_file: str = flag("", "Similarity of layers, as kdstream layer-similarity writes it.")
    kd_branch: str = flag(
        "transformer",
        "What stands between the student's layer and the teacher's: an auxiliary non-streaming layer; the teacher's "
        "own layer, frozen, on what the student's is given; a copy of that layer, which is learned; or nothing.",
        choices=("transformer", "teacher", "teacher-copy", "none"),
    )
    kd_share_branches: bool = flag(False, "One auxiliary layer and predictor for all tapped layers of equal width.")
    kd_feature_scale: float = flag(1.0, "Weight of the feature distance (teacher layer to auxiliary layer).", minimum=0)
    kd_relation_scale: float = flag(
        0.0,
        "Weight of the query-query, key-key and value-value relation losses; 0.1 to use them.  Off, for no comparison "
        "showed a gain.",
        minimum=0,
    )
    kd_apc_scale: float = flag(0.5, "Weight of the autoregressive prediction of the teacher's features.", minimum=0)
    kd_warmup_batches: int = flag(500, "Batches over which the weights rise linearly from 0.", minimum=0)
    kd_distance: str = flag("l1_cosine", "Feature distance.", choices=("l1_cosine", "l2", "cosine"))
    kd_relation_heads: int = flag(4, "Relation heads into which queries, keys and values are re-split.", minimum=1)
    kd_branch_heads: int = flag(4, "Attention heads of the auxiliary Transformer layer.", minimum=1)
    kd_branch_feedforward_dim: int = flag(512, "Feed-forward width of the auxiliary Transformer layer.", minimum=1)
    kd_apc_shift: int = flag(
        2, "Frames ahead that APC predicts, at the slower rate of the tapped layer and its guide.", minimum=1
    )
    kd_apc_dim: int = flag(0, "Width of the APC branch's LSTM (0: that of the teacher's layer).", minimum=0)
    kd_token_scale: float = flag(0.0, "Weight of token distillation over the student's pruned lattice.", minimum=0)
    kd_token_form: str = flag(
        "full",
        "Token distillation of the full posterior, of three classes (next symbol, blank, rest), or on the teacher's "
        "one best path.",
        choices=TOKEN_FORMS,
    )
    kd_token_temperature: float = flag(1.0, "Divides the logits of both in token distillation.", above=0)
    kd_token_shift: int | str = flag(
        2,
        "Output frames (40 ms) by which the student emits later than its teacher; 0 forces the full-context teacher's "
        "timing on it.  auto:4: for each utterance the number from 0 to 4 at which the two agree best.",
        minimum=0,
        text=re.compile(r"auto:[1-9]\d?"),
        example="auto:4",
    )
    kd_ctc_scale: float = flag(
        0.0,
        "Weight of distillation of CTC posteriors; both need --use-ctc 1.  It reads --kd-token-shift too.",
        minimum=0,
    )
    full_context_scale: float = flag(
        0.0,
        "Weight of the transducer loss of a streaming student that is run in full context too, on every batch.  It "
        "needs no teacher.",
        minimum=0,
    )
    mode_consistency_scale: float = flag(
        0.0,
        "Weight of the divergence between the student's posteriors in streaming and in full context, over the pruned "
        "lattice of streaming; either one learns from the other.  It needs no teacher.  --kd-token-shift says by how "
        "much streaming is later.  The weight rises over --kd-warmup-batches.",
        minimum=0,
    )
    mode_consistency_type: str = flag(
        "full",
        "Divergence between the modes of the full posterior, or of three classes (next symbol, blank, rest).",
        choices=("full", "collapsed"),
    )
    mode_consistency_weights: str = flag(
        "even",
        "What a cell of the lattice weighs in it: all of a frame the same, or by its probability of not being blank.",
        choices=("even", "non-blank"),
    )

    def __post_init__(self) -> None:
        if self.teacher_exp_dir:  # exp/teacher/ is exp/teacher
            folders = ",".join(folder and str(Path(folder)) for folder in self.teacher_exp_dir.split(","))
            object.__setattr__(self, "teacher_exp_dir", folders)

    @property
    def has_teacher(self) -> bool:
        return bool(self.teacher_exp_dir or self.teacher_checkpoint)

    @property
    def gives_weights_alone(self) -> bool:
        """Whether the teacher gives its weights to begin with, and nothing else."""
        return self.init_from_teacher and not any(self.loss_scales.values())

    @property
    def runs_both_modes(self) -> bool:
        """Whether a streaming student is run in full context too."""
        return self.full_context_scale > 0 or self.mode_consistency_scale > 0

    @property
    def teacher_name(self) -> str:
        """Where the teacher is from, for messages."""
        return self.teacher_exp_dir or self.teacher_checkpoint

    def risen(self, batch_idx: float) -> float:
        """From 0 to 1: how far the weights of distillation have risen over --kd-warmup-batches."""
        return min(1.0, batch_idx / self.kd_warmup_batches) if self.kd_warmup_batches > 0 else 1.0

    @property
    def loss_scales(self) -> dict[str, float]:
        """The weight of every distillation loss by its name.

        The loss NAME has the flag --kd-NAME-scale.  Losses that others have added come last; those that config.json
        has are among them, even if the program that added them is not loaded here.
        """
        settings = dict.fromkeys([*(item.name for item in flags_of(DistillConfig)), *self.extensions])
        found = [(match[1], setting) for setting in settings if (match := SCALE_OF_A_LOSS.fullmatch(setting))]
        return {name: getattr(self, setting) for name, setting in found}

    @property
    def method(self) -> str:
        """What guides the student, for tables: feature+apc, init+token-one-best and so on, or none."""
        modes = "mode-consistency" if self.mode_consistency_scale else "full-context" if self.full_context_scale else ""
        if not self.has_teacher:
            return modes or "none"
        weighed = [name for name, scale in self.loss_scales.items() if scale]
        if self.teacher_losses and "," in self.teacher_type:  # of one teacher they have no effect
            given = {name.strip() for losses in self.teacher_losses for name in losses.split("+")}
            weighed = [name for name in weighed if name in given]
        hidden = "+".join(name for name in weighed if name not in POSTERIORS)
        if hidden and self.kd_branch == "none":
            hidden = f"direct-{hidden}"
        elif hidden and self.kd_branch != "transformer":
            hidden = f"{self.kd_branch}-{hidden}"
        init = "init" if self.init_from_teacher else ""
        tokens = f"token-{self.kd_token_form}" if "token" in weighed else ""
        ctc = "ctc" if "ctc" in weighed else ""
        return "+".join(filter(None, (init, hidden, tokens, ctc, modes))) or "none"
