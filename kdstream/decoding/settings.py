"""How a model is decoded: its chunk, its search and its tokens, from config.json and the flags."""

from __future__ import annotations

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DecodeConfig, ModelConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.search import Search
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig


def choose_chunk(model: ModelConfig, decode: DecodeConfig) -> ChunkConfig | None:
    """The chunk to decode with; None for full context.  A flag goes before the first value in config.json."""
    if decode.chunk_size is None and not model.causal:
        return None
    chunk = model.chunk_size[0] if decode.chunk_size is None else decode.chunk_size
    left = model.left_context_frames[0] if decode.left_context_frames is None else decode.left_context_frames
    return None if chunk == -1 else ChunkConfig(chunk, left)


def choose_search(decode: DecodeConfig) -> Search:
    """The search that the flags name.  Raises UserError on one that is out of range, or not there."""
    return Search(
        decode.decoding_method,
        decode.beam_size,
        decode.max_sym_per_frame,
        decode.beam,
        decode.max_contexts,
        decode.max_states,
    )


def check_vocabulary(tokenizer: Tokenizer, config: ExperimentConfig, decode: DecodeConfig) -> None:
    """Raises UserError where the model of `decode` was trained with other tokens."""
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{config.data.bpe_model}: {tokenizer.vocab_size} tokens, the model of {decode.exp_dir} has "
            f"{config.model.vocab_size}; give the --bpe-model it was trained with"
        )
