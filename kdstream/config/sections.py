"""Every setting of an experiment, as frozen dataclasses; one field is one flag in icefall's spelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdstream.config.flags import LARGEST_PORT, Section, flag
from kdstream.config.registry import Registry

# kdstream.models.encoders, which fills the table, has torch in it; what a parser must know stands here.
ENCODERS: Registry[Any] = Registry(
    "encoder", lambda: ModelConfig, filled_by="kdstream.models.encoders", own={"zipformer": (), "conformer": ()}
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


LIBRISPEECH = "librispeech"  # how the names of its manifests begin; those of others with the name of their recipe


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the cuts come from and how they become batches."""

    manifest_dir: str = flag("data/fbank", f"Directory of {LIBRISPEECH}_cuts_<part>.jsonl.gz, as prepare.sh writes it.")
    train_parts: tuple[str, ...] = flag(("train",), "Parts under --manifest-dir to train on.")
    dev_parts: tuple[str, ...] = flag(("dev",), "Parts under --manifest-dir to validate on.")
    test_parts: tuple[str, ...] = flag(("test",), "Parts under --manifest-dir to decode.")
    train_cuts: tuple[str, ...] = flag(
        (), "Lhotse manifests or Shar directories to train on, instead of --train-parts."
    )
    mux_weights: tuple[float, ...] = flag(
        (),
        "Weights of the training manifests, e.g. 0.7,0.3 of an epoch's utterances.  An epoch ends where the first "
        "manifest has been gone through once; the next one continues in the others.",
        above=0,
        unset="all cuts of all manifests",
    )
    valid_cuts: tuple[str, ...] = flag((), "Manifests or Shar directories to validate on, instead of --dev-parts.")
    test_cuts: tuple[str, ...] = flag((), "Manifests or Shar directories to decode, instead of --test-parts.")
    pseudo_cuts: tuple[str, ...] = flag((), "Cut manifests of kdstream pseudo-label to mix into the training cuts.")
    pseudo_ratio: float = flag(
        0.5, "Share of --pseudo-cuts among an epoch's cuts with texts; it has all other ones once."
    )
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
    time_mask_ratio: float = flag(
        2.5, "Factor of SpecAugment's masks in time, with --cr-ctc-scale.", minimum=0, maximum=6
    )
    enable_musan: bool = flag(False, "Mix MUSAN noise into the training cuts (needs musan_cuts.jsonl.gz).")
    min_utterance_seconds: float = flag(1.0, "Leave out shorter training cuts.")
    max_utterance_seconds: float = flag(20.0, "Leave out longer training cuts.", above=0)


@dataclass(frozen=True)
class TrainConfig(Section):
    """The training loop, its losses, optimiser, checkpoints and logs."""

    exp_dir: str = flag("exp", "Experiment directory: checkpoints, logs, TensorBoard, config.json.")
    world_size: int = flag(1, "Processes (GPUs, or CPU processes with gloo); torchrun overrides it.", minimum=1)
    master_port: int = flag(12354, "Port of the process group.", minimum=1, maximum=LARGEST_PORT)
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
        (), "Parts that begin with these weights, e.g. encoder_embed,encoder; others begin at random.", unset="all"
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
        "Weight of the divergence between CTC posteriors of two SpecAugment views of a batch (CR-CTC); try a fifth of "
        "--ctc-loss-scale.  Needs --use-ctc 1, and the memory of twice --max-duration.",
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
