"""Small models and batches that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdstream.config.sections import ModelConfig
from kdstream.data.batch import Batch
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig, EncoderState
from kdstream.models.transducer import Tokens, Transducer, build_model

CHEAP_FRONT_END: dict[str, Any] = dict(frontend_channels=(8, 8, 128), frontend_hidden_dim=64)  # as in tiny presets
SETTINGS: dict[str, dict[str, Any]] = {
    "zipformer": dict(  # stacks at 20, 40 and 80 ms; the shape of the golden vectors
        num_encoder_layers=(1, 2, 1),
        downsampling_factor=(1, 2, 4),
        encoder_dim=(32, 48, 32),
        encoder_unmasked_dim=(24, 32, 24),
        feedforward_dim=(48, 64, 48),
        num_heads=(4,),
        query_head_dim=(8,),
        value_head_dim=(6,),
        pos_head_dim=(4,),
        cnn_module_kernel=(31, 15, 15),
    ),
    "conformer": dict(
        num_encoder_layers=(3,),
        encoder_dim=(48,),
        feedforward_dim=(64,),
        num_heads=(4,),
        query_head_dim=(6,),
        cnn_module_kernel=(15,),
    ),
}


def tiny_test_config(causal: bool, vocab_size: int = 30, encoder: str = "zipformer", **overrides) -> ModelConfig:
    """A model of a few narrow layers."""
    settings = dict(
        encoder=encoder, preset="small", causal=causal, decoder_dim=64, joiner_dim=64, vocab_size=vocab_size
    )
    return resolve(ModelConfig(**{**settings, **SETTINGS[encoder], **overrides}))


def tiny_test_model(causal: bool, seed: int = 0, **overrides) -> Transducer:
    """A model of `tiny_test_config` in eval mode, its quiet initial weights made loud enough to matter."""
    torch.manual_seed(seed)
    model = build_model(tiny_test_config(causal, **overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "chunkwise_conv_scale" in name:
                parameter.normal_(std=0.1)  # icefall's trained ones are as large
            elif "downsample" in name:
                parameter.normal_(std=0.5)
            elif parameter.ndim >= 2:
                parameter.mul_(2.0)
    return model


def run_chunks(model: Transducer, features: Tensor, chunk: ChunkConfig) -> tuple[Tensor, EncoderState]:
    """Output (N, T', D) of all complete steps over features (N, T, F), and the last state."""
    state = model.init_state(features.size(0), chunk)
    lens = torch.full((features.size(0),), chunk.input_frames)
    outputs = []
    for start in range(0, features.size(1) - chunk.input_frames + 1, chunk.shift):
        out, _, state = model.encode(features[:, start : start + chunk.input_frames], lens, chunk, state)
        outputs.append(out)
    return torch.cat(outputs, dim=1), state


def difference(a: Tensor, b: Tensor) -> float:
    """The largest, of two tensors of one shape."""
    assert a.shape == b.shape
    return float((a - b).abs().max())


def random_batch(
    lens: tuple[int, ...] = (120, 90), vocab_size: int = 30, symbols: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor, Tokens]:
    """Features (N, T, 80), lengths (N,) and tokens of random utterances."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lens), max(lens), 80, generator=generator) * 3 - 6
    tokens = torch.randint(3, vocab_size, (len(lens), symbols), generator=generator)
    return features, torch.tensor(lens), Tokens(tokens, torch.full((len(lens),), symbols))


def batch_of(features: Tensor, lens: Tensor, cut_ids: Sequence[str] = ()) -> Batch:
    """A batch of features (N, T, 80) and lengths (N,) without texts."""
    return Batch(features, lens, [""] * len(lens), list(cut_ids) or [str(n) for n in range(len(lens))])
