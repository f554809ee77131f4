"""icefall's small random models, with what they compute; see tests/golden/README.md."""

from __future__ import annotations

import json

import torch
from safetensors import safe_open

from kdstream.config.sections import ModelConfig
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import build_model
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden"


class Golden:
    """A golden model with its inputs and outputs."""

    def __init__(self, name: str) -> None:
        with safe_open(GOLDEN / f"zipformer_{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata()
        shape = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(metadata["config"]).items()}
        del shape["output_downsampling_factor"]
        causal = name == "causal"
        config = ModelConfig(preset="small", causal=causal, decoder_dim=64, joiner_dim=64, vocab_size=30, **shape)
        self.chunk = ChunkConfig(int(metadata["chunk_size"]), int(metadata["left_context_frames"])) if causal else None
        self.model = build_model(resolve(config)).eval()
        prefix = "model."
        state = {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}
        self.model.load_state_dict(state, strict=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]
