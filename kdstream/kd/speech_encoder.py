"""Teachers that were trained without text: torchaudio's wav2vec 2.0, HuBERT and WavLM encoders.

They listen to samples, have frames of 20 ms and write no tokens; feature, relation and prediction losses
need none.  Layers are "0.0", "0.1", ... from the bottom up.

Shapes: N batch, T frames of 20 ms, S samples at 16 kHz, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdstream.checkpoints.store import check_finite
from kdstream.data.batch import Batch
from kdstream.errors import UserError
from kdstream.kd.taps import Tap, TapShape
from kdstream.kd.teacher import Heard, Teacher, freeze
from kdstream.units import SAMPLE_RATE, SUBSAMPLING_LOSS

# The middle of our frame t lies 45 + 20 t ms into the utterance, that of theirs 12.5 + 20 t ms.
FRAMES_AHEAD = 2


def load_speech_encoder(model: str, weights: Mapping[str, Tensor], path: str) -> Any:
    """Builds an encoder, a Wav2Vec2Model, by torchaudio's own code.

    Args:
      model: a function of torchaudio.models, and its arguments as JSON: 'wavlm_base' or
        'wav2vec2_model {"extractor_mode": "group_norm", ...}'.
      weights: its state dict; path is where it is from, for errors.
    Raises:
      UserError: torchaudio is missing or has no such function, or weights that do not fit.
    """
    try:
        from torchaudio import models
    except (ImportError, OSError) as error:
        raise UserError(
            f"torchaudio cannot be imported ({error})", flag="--teacher-type torchaudio", fix="pip install torchaudio"
        ) from error
    name, _, arguments = model.strip().partition(" ")
    if not name.startswith(("wav2vec2_", "hubert_", "wavlm_")) or not hasattr(models, name):
        raise UserError(
            "no speech encoder of torchaudio.models", flag=f"--teacher-model {model!r}", fix="give e.g. hubert_base"
        )
    try:
        encoder = getattr(models, name)(**json.loads(arguments or "{}"))
        encoder.load_state_dict(weights, strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            " ".join(str(error).split())[:300],
            flag=f"--teacher-model {model!r}",
            fix=f"give the arguments with which {path} was made",
        ) from error
    check_finite(weights, path)
    return encoder


class SpeechEncoderTeacher(Teacher):
    """One of torchaudio's Wav2Vec2Models.  Utterances run one by one: group normalisation would hear padding."""

    needs_audio = True

    def __init__(self, encoder: Any, device: torch.device) -> None:
        self.encoder: Any = freeze(encoder).to(device)
        self.normalises = isinstance(encoder.feature_extractor.conv_layers[0].layer_norm, nn.LayerNorm)
        self.layers = {f"0.{i}": layer for i, layer in enumerate(encoder.encoder.transformer.layers)}
        taps = self.taps_of(torch.zeros(SAMPLE_RATE, device=device), list(self.layers))
        self.shapes: dict[str, TapShape] = {
            name: TapShape(*(x.size(-1) for x in tensors), stride=1) for name, tensors in taps.items()
        }

    @torch.no_grad()
    def listen(self, batch: Batch, layers: Iterable[str]) -> Heard:
        names = list(layers)
        host = batch.host
        if batch.audio is None or host.audio_lens is None:
            raise ValueError("the batch was read without audio; see Teacher.needs_audio")
        utterances = [
            self.taps_of(audio[:n], names) for audio, n in zip(batch.audio, host.audio_lens.tolist(), strict=True)
        ]
        lens = torch.div(host.feature_lens - SUBSAMPLING_LOSS, 2, rounding_mode="floor")
        frames, there = int(lens.max()), batch.feature_lens.device
        taps = {}
        for name in names:
            tensors = [pad_sequence([u[name][i] for u in utterances], batch_first=True) for i in range(4)]
            tensors = [F.pad(x, (0, 0, 0, max(0, frames - x.size(1)))) for x in tensors]
            shortest = torch.tensor([len(u[name][0]) for u in utterances])
            taps[name] = Tap(*tensors, lens=torch.minimum(lens, shortest).to(there), stride=1)
        return Heard(taps)

    def taps_of(self, audio: Tensor, names: list[str]) -> dict[str, list[Tensor]]:
        """Features, query, key and value (T, D) of the named layers for one utterance (S,)."""
        if self.normalises:
            audio = F.layer_norm(audio, audio.shape)
        seen: dict[str, list[Tensor]] = {}
        with ExitStack() as hooks:
            for name in names:
                record_outputs(self.layers[name], seen.setdefault(name, []), hooks)
            self.encoder.extract_features(audio.unsqueeze(0))
        return {name: [x[0, FRAMES_AHEAD:].float() for x in (seen[name][-1], *seen[name][:-1])] for name in names}


def record_outputs(layer: Any, seen: list[Tensor], hooks: ExitStack) -> None:
    """Lets `layer` append query, key, value and its output, each (1, T, D), to `seen` as it runs."""
    attention = layer.attention
    if hasattr(attention, "q_proj"):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            hooks.callback(projection.register_forward_hook(lambda _, __, output: seen.append(output)).remove)
    else:  # WavLM's: one matrix for all three, and no module that computes them

        def project(_: nn.Module, arguments: tuple) -> None:
            inner = attention.attention
            seen.extend(F.linear(arguments[0], inner.in_proj_weight, inner.in_proj_bias).chunk(3, dim=-1))

        hooks.callback(attention.register_forward_pre_hook(project).remove)
    hooks.callback(layer.register_forward_hook(lambda _, __, output: seen.append(output[0])).remove)
