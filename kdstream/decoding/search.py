"""What a search is: from the encoder's output to tokens, for many streams at once, continuing where it stopped.

Each search is a class in a file of its own: greedy.py, beam.py, lattice.py.  Its fields are its settings, and each of
them is a command-line flag.  settings.py has the table of all searches, and `add_search`, which adds others to it.

A search never asks whether it was given whole utterances or one chunk: `Search.advance` takes the encoder's output for
some more frames and a state, and returns the state after them.  Decoding a whole utterance is one call, and decoding
chunk by chunk is one call per chunk.

Every search takes <unk> for blank, as sherpa-onnx does: it is not said, and the predictor's context does not move.
(icefall's greedy_search and modified_beam_search do so where a model has an unk_id; its fast_beam_search says <unk>.)

Shapes: N streams, T output frames (40 ms), C predictor context, D joiner width, V vocabulary.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from kdstream.config.flags import flag_value
from kdstream.data.tokenizer import Tokenizer
from kdstream.endpoints import TimedTokens
from kdstream.errors import UserError, option
from kdstream.models.transducer import Transducer
from kdstream.transcription import mean_probability

AnyState = TypeVar("AnyState", bound="State")


@dataclass(frozen=True)
class Result:
    """What a stream says: token ids, the output frame (40 ms, from the stream's start) of each, log probability.

    log_prob: as the search counts, with what it adds or takes away.
    token_log_probs: the model's own, of each token, given those before it, on the frame where the path took it.
    nbest: the best paths, this one first, where the search was told to list them.
    """

    tokens: list[int]
    timestamps: list[int]
    log_prob: float
    token_log_probs: list[float] = field(default_factory=list)
    nbest: list[Result] = field(default_factory=list)

    @property
    def confidence(self) -> float | None:
        """The geometric mean of the tokens' probabilities, in (0, 1]; None where nothing is said."""
        return mean_probability(self.token_log_probs)

    def as_tokens(self) -> TimedTokens:
        return TimedTokens(self.tokens, self.timestamps, self.token_log_probs)


class State(Protocol):
    """What a search knows of N streams between two calls.

    frames: output frames that each stream has consumed.
    """

    frames: list[int]

    @classmethod
    def stack(cls: type[AnyState], states: Sequence[AnyState]) -> AnyState:
        """One state of all the streams of `states`."""
        ...

    def row(self: AnyState, n: int) -> AnyState:
        """The state of stream n alone."""
        ...

    def results(self) -> list[Result]:
        """The best path of each stream so far.  Changes nothing: it may be called at any time, and more than once."""
        ...

    def last_frames(self) -> list[int]:
        """The output frame of the last token of each stream's best path; -1 where it has none."""
        ...


class Scorer(Protocol):
    """What adds to the log probability of paths beside the transducer: hotwords, a language model.

    As in icefall and sherpa-onnx it is asked about the tokens that the transducer has chosen, not about all of them.
    """

    def start(self, num_streams: int, num_paths: int, device: torch.device) -> tuple[Tensor, ...]:
        """Its tensors (N, B, ...) for paths that have said nothing."""
        ...

    def advance(self, state: tuple[Tensor, ...], token: Tensor, emits: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Args:
          state: its tensors.
          token: (N, B), what each path takes.
          emits: (N, B) bool, whether it is said; where it is not, nothing changes.
        Returns:
          What is added, (N, B), and the tensors after it.
        """
        ...

    def owed(self, state: tuple[Tensor, ...]) -> Tensor:
        """(N, B), what of all that was added is taken back where a path ends here."""
        ...


class Search(ABC, Generic[AnyState]):
    """A decoding method and its settings.

    A subclass is a frozen dataclass.  Each of its fields is a flag of the commands that decode, but those that __init__
    does not take.  A search that is added brings its flags: `my_size: int = flag(4, "Paths that are kept.")`.  A plain
    field, `beam_size: int = 4`, reads the flag of this name that there is already; those of kdstream's own searches
    stand in SearchConfig.

    method: what --decoding-method calls it, and the directory of its results.
    """

    method: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # subclasses are dataclasses, and this class is none

    @property
    def settings(self) -> list[str]:
        """What distinguishes two searches of one method, in icefall's spelling, e.g. ["beam-size-4"].

        All names have it; of a search from outside it is every setting.
        """
        return self._settings_beyond()

    @property
    def name(self) -> str:
        """The method and its settings, as icefall's decode.py names it in its summaries; records and tables show it."""
        return "_".join([self.method, *self.settings])

    @property
    def files(self) -> list[Path]:
        """Those that its settings name, on which depends what it hears."""
        return []

    @property
    def streaming_name(self) -> str:
        """The same, as icefall's streaming_decode.py spells it in its summaries and file names."""
        return self.name

    def file_suffix(self, context_size: int) -> str:
        """What distinguishes decode.py's files from those of other searches, in icefall's spelling.

        Args:
          context_size: of the model's predictor.
        """
        return f"_{self.name}"

    def for_tokens(self, tokenizer: Tokenizer) -> Search[AnyState]:
        """The same search for a model that says these tokens.  Raises UserError where a setting does not fit them."""
        return self

    @abstractmethod
    def start(self, model: Transducer, num_streams: int) -> AnyState:
        """The state of `num_streams` streams that have heard nothing."""

    @abstractmethod
    def advance(self, model: Transducer, encoder_out: Tensor, encoder_out_lens: Tensor, state: AnyState) -> AnyState:
        """Decodes some more frames of every stream.

        Args:
          model: in eval mode.
          encoder_out: (N, T, encoder width).
          encoder_out_lens: (N,); frames at and after it change nothing.
          state: of N streams.  Its results stay what they are, but only the state that is returned can be advanced.
        Returns:
          The state after these frames.
        """

    def restart(self, model: Transducer, state: AnyState) -> AnyState:
        """The state of one stream after an endpoint: it begins anew, and its frames count on.

        The predictor has learned how utterances begin, and after the end of one says little.
        """
        fresh = self.start(model, 1)
        fresh.frames = state.frames
        return fresh

    def _settings_beyond(self, known: Sequence[Field[Any]] = ()) -> list[str]:
        """The settings that are not among the fields `known`, as names have them: those of a search from outside."""
        names = {item.name for item in known}
        others = [item.name for item in fields(self) if item.init and item.name not in names]
        typed = [option(name, flag_value(getattr(self, name))).removeprefix("--") for name in others]
        return [re.sub(r"[^\w.,+-]+", "-", setting) for setting in typed]  # of which file names are made

    def _require(self, name: str, condition: bool, problem: str) -> None:
        """Raises UserError, with the flag, unless the setting `name` fulfils a condition."""
        if not condition:
            raise UserError(problem, flag=option(name, getattr(self, name)))


def without_unknown(model: Transducer, token: Tensor) -> Tensor:
    """Tokens (...) with blank for <unk>."""
    return token if model.unk_id is None else token.masked_fill(token == model.unk_id, model.config.blank_id)


def penalise_blank(model: Transducer, log_probs: Tensor, penalty: float) -> Tensor:
    """Log probabilities (..., V) where `penalty` is taken from blank's logit before the softmax.

    So do icefall's greedy_search and modified_beam_search, and sherpa-onnx's, whose probabilities of tokens are without
    it in modified_beam_search.
    """
    if not penalty:
        return log_probs
    taken = log_probs.new_zeros(log_probs.size(-1))
    taken[model.config.blank_id] = penalty
    return (log_probs - taken).log_softmax(dim=-1)  # the softmax does not see that these are logits less a constant


def predict(model: Transducer, context: Tensor) -> Tensor:
    """(..., C) token ids to the predictor's part of the joiner's input (..., D)."""
    out = model.decoder(context.flatten(0, -2), need_pad=False)  # (M, 1, decoder width)
    return model.joiner.decoder_proj(out).view(*context.shape[:-1], -1)


def joiner_log_probs(model: Transducer, encoded: Tensor, predicted: Tensor) -> Tensor:
    """(..., D) from the encoder and (..., D) from the predictor to (..., V) log probabilities."""
    return model.joiner(encoded, predicted, project_input=False).float().log_softmax(dim=-1)
