"""What several tests of distillation share: a chunk, small branches, a vocabulary on disk."""

from __future__ import annotations

from kdstream.config.distillation import DistillConfig
from kdstream.config.sections import DataConfig
from kdstream.models.streaming import ChunkConfig

CHUNK = ChunkConfig(chunk=8, left=16)


SMALL = DistillConfig(kd_relation_scale=0.1, kd_branch_feedforward_dim=32, kd_apc_dim=16)


def write_tokens(directory, tokens) -> DataConfig:
    directory.mkdir()
    (directory / "tokens.txt").write_text("".join(f"{token} {i}\n" for i, token in enumerate(tokens)))
    return DataConfig(bpe_model=str(directory / "bpe.model"))
