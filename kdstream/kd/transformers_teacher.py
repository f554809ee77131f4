"""Speech encoders of Hugging Face transformers as teachers; see speech_encoder.py.

wav2vec 2.0, HuBERT, WavLM, w2v-BERT 2.0, Whisper's encoder, and what else is built as they are, from a local
directory: config.json, preprocessor_config.json and model.safetensors.  Only the code of transformers runs, no file is
unpickled, and nothing is asked of a network.

Shapes: N batch, T' frames of theirs, S samples at 16 kHz, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.checkpoints.store import check_finite
from kdstream.data.resampling import resample
from kdstream.errors import UserError, option
from kdstream.kd.speech_encoder import FrameGrid, SpeechEncoderTeacher, TappedLayer
from kdstream.kd.teacher import freeze
from kdstream.units import SAMPLE_RATE

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("linear_q", "linear_k", "linear_v"))  # of a self-attention
ONLY_IN_TRAINING = ("masked_spec_embed",)  # parameters that a checkpoint may lack


def samples_grid(extractor: Any) -> FrameGrid:
    return FrameGrid(1000 / extractor.sampling_rate, 500 / extractor.sampling_rate)


def whisper_grid(extractor: Any) -> FrameGrid:
    """Its windows are centred: the middle of the first one is the first sample."""
    return FrameGrid(1000 * extractor.hop_length / extractor.sampling_rate, 0.0)


def fbank_grid(extractor: Any) -> FrameGrid:
    """w2v-BERT's: windows of 400 samples every 160, of which `stride` make one frame."""
    hop_ms, window_ms = 160_000 / extractor.sampling_rate, 400_000 / extractor.sampling_rate
    return FrameGrid(hop_ms * extractor.stride, window_ms / 2 + hop_ms * (extractor.stride - 1) / 2)


# What the front ends of the models read, by the class that makes it of samples.
GRIDS: dict[str, Callable[[Any], FrameGrid]] = {
    "Wav2Vec2FeatureExtractor": samples_grid,
    "WhisperFeatureExtractor": whisper_grid,
    "SeamlessM4TFeatureExtractor": fbank_grid,
}


def load_transformers_teacher(path: str, device: torch.device) -> TransformersTeacher:
    """The encoder in a directory; in float16 on a GPU.

    Raises:
      UserError: transformers is missing, there is no such model in the directory, or it cannot be a teacher.
    """
    flag = option("teacher_checkpoint", path)
    check_directory(Path(path), flag)
    try:
        import transformers  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise UserError(
            f"transformers cannot be imported ({error})",
            flag="--teacher-type transformers",
            fix="pip install 'kdstream[teachers]'",
        ) from error
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(path, **local)
        model, found = transformers.AutoModel.from_pretrained(
            path, use_safetensors=True, dtype=dtype, output_loading_info=True, **local
        )
    except Exception as error:  # readers of other people's files raise any kind
        raise UserError(
            f"transformers cannot load it ({' '.join(str(error).split())[:300]})",
            flag=flag,
            fix="give a directory that save_pretrained of a speech encoder wrote, its feature extractor included",
        ) from error
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    of_encoder = {name for name, _ in model.named_parameters() if encoder is model or name.startswith("encoder.")}
    missing = sorted(of_encoder.intersection(found["missing_keys"]) - set(ONLY_IN_TRAINING))
    if missing:
        raise UserError(
            f"its weights lack {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
            flag=flag,
            fix="give the directory of a whole model",
        )
    check_finite(encoder.state_dict(), path)
    return TransformersTeacher(encoder, extractor, device, path)


def check_directory(path: Path, flag: str) -> None:
    """Raises UserError unless a directory holds a model, in a format that cannot hold code."""
    if not (path / "config.json").is_file():
        raise UserError(
            "no config.json there",
            flag=flag,
            fix="give a directory that holds a model of Hugging Face transformers; nothing is downloaded",
        )
    if any((path / name).is_file() for name in WEIGHTS):
        return
    pickled = [name for name in PICKLED if (path / name).is_file()]
    if pickled:
        raise UserError(
            f"{path / pickled[0]}: pickled weights can hold code and are not read",
            flag=flag,
            fix="take the model's model.safetensors, or convert it where you trust it: "
            "AutoModel.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)",
        )
    raise UserError(f"no {WEIGHTS[0]} there", flag=flag, fix="copy it beside config.json")


class TransformersTeacher(SpeechEncoderTeacher):
    """A speech encoder of transformers and the feature extractor that prepares what it hears.

    Args:
      path: where it is from, for errors.

    window: samples at 16 kHz that the encoder always hears, silence behind shorter utterances; 0: any length.
    """

    def __init__(self, encoder: Any, extractor: Any, device: torch.device, path: str) -> None:
        self.extractor, self.flag = extractor, option("teacher_checkpoint", path)
        kind = type(extractor).__name__
        if kind not in GRIDS:
            raise UserError(
                f"its {kind} is none of {', '.join(GRIDS)}",
                flag=self.flag,
                fix="give a wav2vec 2.0, HuBERT, WavLM, w2v-BERT 2.0 or Whisper model, or one built as these are",
            )
        grid = reduce(FrameGrid.through, convolutions_of(encoder), GRIDS[kind](extractor))
        seconds = getattr(extractor, "chunk_length", 0) if kind == "WhisperFeatureExtractor" else 0
        self.window = int(seconds * SAMPLE_RATE)
        self.hears_together = bool(self.window)
        layers = [tapped(layer, self.flag) for layer in layers_of(encoder, self.flag)]
        super().__init__(freeze(encoder).to(device), layers, grid, plain(extractor.to_dict()))

    def check_lengths(self, cut_ids: Sequence[str], samples: Sequence[int]) -> None:
        for cut_id, length in zip(cut_ids, samples, strict=True):
            if self.window and length > self.window:
                window = self.window / SAMPLE_RATE
                raise UserError(
                    f"cut {cut_id} has {length / SAMPLE_RATE:.2f} s, and this teacher hears {window:g} s at most",
                    flag=self.flag,
                    fix=f"give {option('max_utterance_seconds', f'{window:g}')}, or cut it",
                )

    def run(self, utterances: Sequence[Tensor]) -> None:
        rate = self.extractor.sampling_rate
        audio = [resample(samples, SAMPLE_RATE, rate).numpy() for samples in utterances]
        computed_on = {"device": str(self.device)} if self.window else {}  # Whisper's alone can choose
        heard = self.extractor(audio, sampling_rate=rate, return_tensors="pt", **computed_on)
        names = [name for name in self.extractor.model_input_names if name in heard]
        dtype = next(self.model.parameters()).dtype
        inputs = {name: heard[name].to(self.device) for name in names}
        self.model(**{name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()})


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can say of settings."""
    return {name: value for name, value in settings.items() if isinstance(value, str | int | float | bool)}


def convolutions_of(encoder: Any) -> list[nn.Conv1d]:
    """Of an encoder's front end, those that change where frames lie: wav2vec 2.0's, Whisper's two, or none."""
    front_end = getattr(encoder, "feature_extractor", None)
    if front_end is not None:
        return [layer.conv for layer in front_end.conv_layers]
    return [getattr(encoder, name) for name in ("conv1", "conv2") if hasattr(encoder, name)]


def layers_of(encoder: Any, flag: str) -> Sequence[nn.Module]:
    """Raises UserError where there is no list of layers."""
    layers = getattr(getattr(encoder, "encoder", encoder), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(encoder).__name__} has no list of layers", flag=flag, fix="give another speech encoder")
    return list(layers)


def tapped(layer: Any, flag: str) -> TappedLayer:
    """Raises UserError where a layer has no self-attention with separate projections."""
    for attention in layer.modules():
        for names in PROJECTIONS:
            if all(hasattr(attention, name) for name in names):
                parts = tuple(getattr(attention, name) for name in names)
                if hasattr(attention, "torch_multi_head_self_attention"):  # WavLM's reads their weights
                    return TappedLayer(layer, attention, None, partial(project, parts))
                return TappedLayer(layer, attention, parts)
    raise UserError(
        f"{type(layer).__name__} has no self-attention with projections of its own",
        flag=flag,
        fix="give another speech encoder",
    )


def project(parts: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    return [part(x) for part in parts]
