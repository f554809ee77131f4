"""Every setting of an experiment, as frozen dataclasses; one field is one flag in icefall's spelling."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdstream.config.flags import Section, flag, flags_of
from kdstream.config.registry import ListsOf, Registry
from kdstream.errors import UserError, option
from kdstream.words import SCORE_BY

TEACHER_HEARS = ("clean", "augmented")
TOKEN_FORMS = ("full", "collapsed", "one-best")
CACHE_STORAGES = ("float16", "int8")  # of a teacher's cache
ENGINES = ("auto", "torch", "onnxruntime")
POSTERIORS = ("token", "ctc")  # losses that are not between layers
SCALE_OF_A_LOSS = re.compile(r"kd_(\w+)_scale")

# The modules that fill these tables have torch in them; what a parser must know stands here.
SEARCHES: Registry[Any] = Registry(
    "decoding-method",
    lambda: DecodeConfig,
    filled_by="kdstream.decoding.settings",
    own={
        "greedy_search": ("max_sym_per_frame",),
        "modified_beam_search": (
            "beam_size",
            "hotwords_file",
            "hotwords_score",
            "lm_exp_dir",
            "lm_scale_decode",
            "lodr_scale",
            "nbest",
        ),  # fmt: skip
        "fast_beam_search": ("beam", "max_contexts", "max_states"),
        "ctc_greedy_search": (),
        "ctc_prefix_beam_search": ("beam_size",),
    },
)
ENCODERS: Registry[Any] = Registry(
    "encoder", lambda: ModelConfig, filled_by="kdstream.models.encoders", own={"zipformer": (), "conformer": ()}
)
TEACHERS: Registry[Any] = Registry(
    "teacher-type",
    lambda: DistillConfig,
    filled_by="kdstream.kd.teachers",
    own={"kdstream": (), "icefall": (), "torchaudio": (), "transformers": ()},
)


@dataclass(frozen=True)
class ModelConfig(Section):
    """Architecture of a transducer.

    None in a flag means: as the preset has it.  The types are those of a config that `resolve` has filled in.
    """

    encoder: str = flag("zipformer", "Encoder architecture.", choices=ENCODERS)
    preset: str = flag("tiny", "Named architecture: tiny, small, medium, large; the flags below override it.")
    causal: bool = flag(False, "Build a streaming encoder (chunk-wise causal convolution).")
    chunk_size: tuple[int, ...] = flag(
        (8,), "Chunk sizes to train with, in 20 ms encoder frames, e.g. 8,16,32,-1 (-1: full context)."
    )
    left_context_frames: tuple[int, ...] = flag(
        (32,), "Left contexts to train with, in 20 ms encoder frames; multiples of the chunk (-1: unlimited)."
    )
    right_context_frames: tuple[int, ...] = flag(
        (0,),
        "Right contexts to train with, in 20 ms encoder frames, e.g. 0,8; an unlimited left context goes with 0 alone.",
    )
    num_encoder_layers: tuple[int, ...] = flag(None, "Layers of each stack.", minimum=1)
    downsampling_factor: tuple[int, ...] = flag(None, "Downsampling of each stack against 20 ms frames.", minimum=1)
    encoder_dim: tuple[int, ...] = flag(None, "Model width of each stack.", minimum=1)
    encoder_unmasked_dim: tuple[int, ...] = flag(None, "Width of each stack that feature masking spares.", minimum=1)
    feedforward_dim: tuple[int, ...] = flag(None, "Hidden width of each stack's feed-forward modules.", minimum=1)
    num_heads: tuple[int, ...] = flag(None, "Attention heads of each stack.", minimum=1)
    query_head_dim: tuple[int, ...] = flag(None, "Query and key width per head (Conformer: value too).", minimum=1)
    value_head_dim: tuple[int, ...] = flag(None, "Value width per head.", minimum=1)
    pos_head_dim: tuple[int, ...] = flag(None, "Positional query width per head.", minimum=1)
    pos_dim: int = flag(None, "Width of the relative positional encoding.", minimum=1)
    cnn_module_kernel: tuple[int, ...] = flag(None, "Kernel of each stack's convolution modules (odd).", minimum=1)
    frontend_channels: tuple[int, ...] = flag(
        None,
        "Channels of the three front-end convolutions; the last must be 128 for sherpa-onnx.",
        minimum=1,
    )
    frontend_hidden_dim: int = flag(None, "Hidden width of the front end's ConvNeXt.", minimum=1)
    decoder_dim: int = flag(None, "Width of the stateless predictor.", minimum=1)
    joiner_dim: int = flag(None, "Width of the joiner.", minimum=1)
    context_size: int = flag(2, "Tokens that the stateless predictor sees.", minimum=1)
    use_ctc: bool = flag(False, "Add a CTC head, trained with --ctc-loss-scale.")
    feature_dim: int = field(default=80)
    vocab_size: int = field(default=0)
    blank_id: int = field(default=0)


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the cuts come from and how they become batches."""

    manifest_dir: str = flag("data/fbank", "Directory of librispeech_cuts_<part>.jsonl.gz, as prepare.sh writes it.")
    train_parts: tuple[str, ...] = flag(("train",), "Parts under --manifest-dir to train on.")
    dev_parts: tuple[str, ...] = flag(("dev",), "Parts under --manifest-dir to validate on.")
    test_parts: tuple[str, ...] = flag(("test",), "Parts under --manifest-dir to decode.")
    train_cuts: tuple[str, ...] = flag(
        (), "Lhotse manifests or Shar directories to train on, instead of --train-parts."
    )
    mux_weights: tuple[float, ...] = flag(
        (),
        "Weights of the training manifests, e.g. 0.7,0.3 of an epoch's utterances.  An epoch ends where the first "
        "manifest has been gone through once; the next one continues in the others.  Empty: all cuts of all manifests.",
        above=0,
    )
    valid_cuts: tuple[str, ...] = flag((), "Manifests or Shar directories to validate on, instead of --dev-parts.")
    test_cuts: tuple[str, ...] = flag((), "Manifests or Shar directories to decode, instead of --test-parts.")
    pseudo_cuts: tuple[str, ...] = flag((), "Cut manifests of local/pseudo_label.py to mix into the training cuts.")
    pseudo_ratio: float = flag(0.5, "Share of --pseudo-cuts in an epoch's utterances; it has all labelled ones once.")
    unlabelled_cuts: tuple[str, ...] = flag(
        (), "Cut manifests to learn from the teacher on, without their texts; the transducer loss is not for them."
    )
    unlabelled_ratio: float = flag(0.5, "Share of --unlabelled-cuts in an epoch's utterances, beside all others.")
    bpe_model: str = flag("data/lang_bpe_500/bpe.model", "Sentencepiece model; tokens.txt lies beside it.")
    max_duration: float = flag(200.0, "Seconds of speech in a batch of one process, padding included.", above=0)
    num_buckets: int = flag(30, "Buckets of like lengths that batches are drawn from.", minimum=1)
    shuffle: bool = flag(True, "Shuffle the training cuts.")
    num_workers: int = flag(2, "Data loading processes.", minimum=0)
    on_the_fly_feats: bool = flag(False, "Compute features from audio while training, instead of reading them.")
    feature_extractor: str = flag("lhotse", "What computes features from audio.", choices=("lhotse", "kaldifeat"))
    enable_spec_aug: bool = flag(True, "SpecAugment on the training features.")
    spec_aug_time_warp_factor: int = flag(80, "Time warp of SpecAugment in feature frames; below 1 switches it off.")
    time_mask_ratio: float = flag(2.5, "Factor of SpecAugment's masks in time, with --cr-ctc-scale.", minimum=0)
    enable_musan: bool = flag(False, "Mix MUSAN noise into the training cuts (needs musan_cuts.jsonl.gz).")
    min_utterance_seconds: float = flag(1.0, "Leave out shorter training cuts.")
    max_utterance_seconds: float = flag(20.0, "Leave out longer training cuts.", above=0)


@dataclass(frozen=True)
class TrainConfig(Section):
    """The training loop, its losses, optimiser, checkpoints and logs."""

    exp_dir: str = flag("exp", "Experiment directory: checkpoints, logs, TensorBoard, config.json.")
    world_size: int = flag(1, "Processes (GPUs, or CPU processes with gloo); torchrun overrides it.")
    master_port: int = flag(12354, "Port of the process group.")
    tensorboard: bool = flag(True, "Write TensorBoard curves.")
    seed: int = flag(42, "Seed of initialisation, data order, chunk choice and augmentation.")
    num_epochs: int = flag(30, "Epochs to train.", minimum=1)
    start_epoch: int = flag(1, "Resume from epoch-{start-epoch - 1}.pt.", minimum=1)
    start_batch: int = flag(0, "Resume from checkpoint-{start-batch}.pt.", minimum=0)
    resume: bool = flag(
        False,
        "Resume from the last checkpoint in --exp-dir, if any; flags that are not typed are as in its config.json.",
    )
    init_checkpoint: str = flag(
        "",
        "Begin with the weights in this file (epoch-N.pt, pretrained.pt, a state dict or .safetensors; ours or "
        "icefall's) or exp-dir.  Schedules that suit random weights are left out, as in icefall's finetune.py.",
    )
    init_modules: tuple[str, ...] = flag(
        (), "Parts that begin with these weights, e.g. encoder_embed,encoder; others begin at random.  Empty: all."
    )
    init_epoch: int = flag(0, "epoch-N.pt of that exp-dir (0: the last one there is).", minimum=0)
    init_avg: int = flag(1, "Checkpoints of that exp-dir to average, as in decode.py.", minimum=1)
    init_use_averaged_model: bool = flag(
        True, "Average over every batch of those epochs, not only over their last ones."
    )
    base_lr: float = flag(0.045, "Base learning rate of ScaledAdam.", above=0)
    lr_batches: float = flag(7500.0, "Batches after which Eden's learning rate begins to fall.", above=0)
    lr_epochs: float = flag(3.5, "Epochs after which Eden's learning rate begins to fall.", above=0)
    lr_warmup_batches: float = flag(
        500.0, "Batches over which Eden's learning rate rises from half to full.", minimum=0
    )
    ref_duration: float = flag(600.0, "Reference seconds per batch; scales batch counts in schedules.", above=0)
    accum_grad: int = flag(1, "Batches whose gradients are summed before one optimiser step.", minimum=1)
    warm_step: int = flag(2000, "Batches over which the pruned loss takes over from the simple loss.", minimum=0)
    prune_range: int = flag(5, "Symbols per frame that the pruned loss keeps.", minimum=2)
    lm_scale: float = flag(0.25, "Weight of the predictor-only term in the smoothed loss.", minimum=0)
    am_scale: float = flag(0.0, "Weight of the encoder-only term in the smoothed loss.", minimum=0)
    simple_loss_scale: float = flag(0.5, "Weight of the simple (smoothed) loss after warm-up.", minimum=0)
    ctc_loss_scale: float = flag(0.2, "Weight of the CTC loss, with --use-ctc 1.", minimum=0)
    cr_ctc_scale: float = flag(
        0.0,
        "Weight of the divergence between CTC posteriors of two SpecAugment views of a batch (CR-CTC; try 0.2).  "
        "Needs --use-ctc 1, and the memory of twice --max-duration.",
        minimum=0,
    )
    delay_penalty: float = flag(
        0.0,
        "Reward of a symbol for every 40 ms frame that it comes earlier, as k2 has it; positive: less delay.  "
        "In force from twice --warm-step on.",
        minimum=0,
    )
    rnnt_type: str = flag("regular", "Transitions of the lattice.", choices=("regular", "modified", "constrained"))
    rnnt_backend: str = flag(
        "auto",
        "What computes the transducer loss.  auto: k2 on a GPU if it is installed, and torch on a CPU, where k2 takes "
        "about twice as long.",
        choices=("auto", "k2", "torch"),
    )
    use_fp16: bool = flag(False, "float16 autocast with a gradient scaler (CUDA).")
    use_bf16: bool = flag(False, "bfloat16 autocast.")
    checkpoint_activations: bool = flag(False, "Compute each encoder layer twice, to keep less memory.")
    save_every_n: int = flag(4000, "Batches between checkpoint-N.pt files.", minimum=1)
    keep_last_k: int = flag(30, "checkpoint-N.pt files to keep.", minimum=1)
    average_period: int = flag(200, "Batches between updates of the running model average.", minimum=1)
    log_interval: int = flag(50, "Batches between log lines.", minimum=1)
    valid_interval: int = flag(3000, "Batches between validations.", minimum=1)
    max_train_batches: int = flag(0, "Stop after so many batches in all (0: no limit).", minimum=0)
    print_diagnostics: bool = flag(False, "Print statistics of activations, parameters and gradients, and exit.")
    profile: int = flag(0, "Log where the time of so many steps goes, and write EXP_DIR/profile-trace.json.", minimum=0)
    inf_check: bool = flag(False, "Name the first module whose output or gradient is not finite.")


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
        "Read the teacher's output from here, where local/cache_teacher.py wrote it.  Of several teachers: a,b; one "
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
    kd_similarity_file: str = flag("", "Similarity of layers, as local/layer_similarity.py writes it.")
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
            folders = ",".join(str(Path(folder)) for folder in self.teacher_exp_dir.split(","))
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
        hidden = "+".join(name for name, scale in self.loss_scales.items() if scale and name not in POSTERIORS)
        if hidden and self.kd_branch == "none":
            hidden = f"direct-{hidden}"
        elif hidden and self.kd_branch != "transformer":
            hidden = f"{self.kd_branch}-{hidden}"
        init = "init" if self.init_from_teacher else ""
        tokens = f"token-{self.kd_token_form}" if self.kd_token_scale else ""
        ctc = "ctc" if self.kd_ctc_scale else ""
        return "+".join(filter(None, (init, hidden, tokens, ctc, modes))) or "none"


@dataclass(frozen=True)
class DecodeConfig(Section):
    """Which checkpoint to decode with, how, and where the score goes."""

    exp_dir: str = flag("exp", "Experiment directory that train.py wrote.")
    epoch: int = flag(0, "Decode with epoch-N.pt (0: the last one there is).")
    iter: int = flag(0, "Decode with checkpoint-N.pt instead of an epoch (0: off).")
    avg: int = flag(1, "Checkpoints to average, the given one and those before it.")
    use_averaged_model: bool = flag(True, "Average over all batches of these checkpoints, not over the files alone.")
    checkpoint: str = flag(
        "", "Decode with the weights in this file, e.g. EXP_DIR/pretrained.pt, instead of those of an epoch."
    )
    decoding_method: str = flag(
        "greedy_search",
        "Search; fast_beam_search is k2's and needs it, those of CTC need a model with --use-ctc 1.",
        choices=SEARCHES,
    )
    max_sym_per_frame: int = flag(1, "Symbols that greedy_search may emit in one 40 ms frame.")
    beam_size: int = flag(4, "Paths that modified_beam_search and ctc_prefix_beam_search keep.")
    hotwords_file: str = flag(
        "", "Phrases that modified_beam_search prefers: one a line, perhaps with a score, e.g. NEW YORK :2.5."
    )
    hotwords_score: float = flag(1.5, "What each token of a hotword without a score of its own adds.")
    lm_exp_dir: str = flag("", "Directory of a language model of train_lm.py, which modified_beam_search asks too.")
    lm_scale_decode: float = flag(0.3, "Scale of the language model's log probabilities.", minimum=0)
    lodr_scale: float = flag(0.0, "Scale, below 0, of the bigram beside the language model (LODR; 0: off).")
    nbest: int = flag(
        0, "Write so many of modified_beam_search's paths of each utterance to nbest-*.jsonl (0: none).", minimum=0
    )
    beam: float = flag(20.0, "fast_beam_search keeps what scores at most so much less than the best path.")
    max_contexts: int = flag(8, "Predictor contexts that fast_beam_search keeps per frame.")
    max_states: int = flag(64, "States that fast_beam_search keeps per frame.")
    chunk_size: int | None = flag(
        None, "Chunk in 20 ms encoder frames (-1: full context).", unset="the first that config.json names"
    )
    left_context_frames: int | None = flag(
        None, "Left context in 20 ms encoder frames (-1: unlimited).", unset="the first that config.json names"
    )
    right_context_frames: int | None = flag(
        None,
        "Right context in 20 ms encoder frames, by which words come later.",
        unset="the first that config.json names",
    )
    num_decode_streams: int = flag(64, "Streams that streaming_decode.py decodes at once.")
    engine: str = flag(
        "auto",
        "What runs the encoder chunk by chunk: torch; onnxruntime, which is faster for one stream on a CPU; or (auto) "
        "the faster one of those that are installed.",
        choices=ENGINES,
    )
    device: str = flag("", "Device, e.g. cpu or cuda:0 (empty: a GPU if there is one).")
    alignments: tuple[str, ...] = flag(
        (),
        "Reference alignments to measure the delay of words against: what local/align.py wrote, other Lhotse "
        "manifests with word alignments, LibriSpeech's *.alignment.txt, or directories of these last.",
    )
    score_by: str = flag(
        "auto",
        "What counts as a word: what blanks part, every character, or (auto) what blanks part and in it each character "
        "of a script without blanks, such as Chinese, Japanese and Thai.",
        choices=SCORE_BY,
    )
    system: str = flag("", "Name of the system in result tables (empty: that of the experiment directory).")
    results_json: str = flag("", "File to add the result records to (empty: EXP_DIR/results.json).")

    def check_used(self, own: Collection[str]) -> None:
        """Raises UserError for hotwords or a language model that a search with the settings `own` would not look at."""
        for name, what in (("hotwords_file", "hotwords"), ("lm_exp_dir", "language model"), ("nbest", "n-best list")):
            if getattr(self, name) and name not in own:
                raise UserError(
                    f"{self.decoding_method} takes no {what}",
                    flag=option(name, getattr(self, name)),
                    fix="use --decoding-method modified_beam_search",
                )
