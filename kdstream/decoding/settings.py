"""The table of searches, and the choice of chunk and search from config.json and the flags."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from typing import Any

from kdstream.config.decoding import SEARCHES, DecodeConfig
from kdstream.config.flags import flag_value, warn_of_unread
from kdstream.config.sections import ModelConfig
from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.ctc import CtcGreedySearch, CtcPrefixBeamSearch
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.lattice import FastBeamSearch
from kdstream.decoding.search import Search
from kdstream.errors import option
from kdstream.models.streaming import ChunkConfig, chunks_of


def add_search(search: Any) -> Any:
    """Adds a search to the table of --decoding-method, and its flags to SearchConfig.  Serves as a class decorator.

    Args:
      search: a dataclass that is a subclass of Search.
    Raises:
      ValueError: a search or a flag of this name is there already.
    """
    return SEARCHES.add(search.method, search, **{f.name: f for f in fields(search) if "help" in f.metadata})


for _search in (GreedySearch, ModifiedBeamSearch, FastBeamSearch, CtcGreedySearch, CtcPrefixBeamSearch):
    add_search(_search)


def choose_chunk(model: ModelConfig, decode: DecodeConfig) -> ChunkConfig | None:
    """The chunk to decode with; None for full context.

    What no flag says is as in config.json: the first chunk size, and the first left and right context that fit.

    Logs a warning for right context that the model was not trained with: it has not learned what to do with it.
    """
    size = decode.chunk_size
    if size is None:
        size = model.chunk_size[0] if model.causal else -1
    if size == -1:
        warn_of_unread(decode, ("left_context_frames", "right_context_frames"), "in full context")
        return None
    typed = {
        name: (value,)
        for name in ("left_context_frames", "right_context_frames")
        if (value := getattr(decode, name)) is not None
    }
    chunk = chunks_of(replace(model, **typed), size)[0]
    if chunk.right not in model.right_context_frames:
        trained = flag_value(model.right_context_frames)
        logging.warning(
            f"{option('right_context_frames', chunk.right)}: the model of {decode.exp_dir} was trained with {trained} "
            "alone, so its words may get worse"
        )
    return chunk


def choose_search(decode: DecodeConfig) -> Search:
    """The search that the flags name; `Search.for_tokens` fits it to a model's tokens.

    Raises UserError for a search that is unknown or cannot run here, for a setting that is out of range, and for
    hotwords or a language model that the search would not look at.  Other settings of other searches are warned of.
    """
    own = settings_of_search(decode.decoding_method)
    search = build_search(decode)
    decode.warn_of_others(own)
    for scale, of in (("hotwords_score", "hotwords_file"), ("lm_scale_decode", "lm_exp_dir")):
        if scale in own and not getattr(decode, of):
            warn_of_unread(decode, [scale], f"without {option(of)}")
    return search


def build_search(decode: DecodeConfig) -> Search:
    """`choose_search` without a warning."""
    own = settings_of_search(decode.decoding_method)
    decode.check_used(own)
    return SEARCHES.find(decode.decoding_method)(**{name: getattr(decode, name) for name in own})


def settings_of_search(method: str) -> list[str]:
    """The settings of a search, by the names of their flags.  Raises UserError if it is unknown."""
    return [item.name for item in fields(SEARCHES.find(method)) if item.init]
