"""Texts as tokens, and batches of sentences of like length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from kdstream.data.tokenizer import Tokenizer, UnknownLetters
from kdstream.errors import UserError

SOS_EOS_ID = 1  # begins and ends a sentence
LINES_AT_ONCE = 10_000


@dataclass(frozen=True)
class TokenText:
    """Sentences as one row of tokens: <sos/eos>, the first one, <sos/eos>, the second one, ..., <sos/eos>.

    stream: (S,) int32: of the texts that language models are made of there are billions of tokens.
    starts: (N,), where each sentence begins in it.
    lens: (N,), its tokens without <sos/eos>.
    """

    stream: np.ndarray
    starts: np.ndarray
    lens: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens that a model has to say: <sos/eos> at the end of each sentence counts."""
        return len(self.stream) - 1

    @property
    def fingerprint(self) -> str:
        """A hash of its tokens."""
        return hashlib.sha256(self.stream.data).hexdigest()

    def batch(self, sentences: np.ndarray) -> tuple[Tensor, Tensor]:
        """Some sentences as tokens (N, L) and their lengths (N,)."""
        rows = [torch.from_numpy(self.stream[self.starts[n] : self.starts[n] + self.lens[n]]) for n in sentences]
        return pad_sequence(rows, batch_first=True).long(), torch.from_numpy(self.lens[sentences])

    def batches(self, max_tokens: int, seed: int | None = None) -> list[np.ndarray]:
        """The sentences in batches of like length, of at most `max_tokens` padded tokens each.

        Args:
          seed: of the order; None: the shortest first.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        order = np.arange(len(self.lens)) if rng is None else rng.permutation(len(self.lens))
        order = order[np.argsort(self.lens[order], kind="stable")]
        batches, begin = [], 0
        for end in range(1, len(order) + 1):
            longest = self.lens[order[min(end, len(order) - 1)]] + 1
            if end == len(order) or (end + 1 - begin) * longest > max_tokens:
                batches.append(order[begin:end])
                begin = end
        return batches if rng is None else [batches[n] for n in rng.permutation(len(batches))]


def read_text(path: Path, tokenizer: Tokenizer, longest: int, flag: str) -> TokenText:
    """A text file, one sentence a line, as tokens.  Warns of letters that no token spells.

    Args:
      longest: lines of more tokens are cut.
      flag: that names the file, for messages.
    Raises:
      UserError: a file that is missing, is not text or has no line.
    """
    unknown = UnknownLetters(tokenizer)
    parts, lens = [np.array([SOS_EOS_ID], np.int32)], []
    try:
        with open(path, encoding="utf-8-sig") as file, tqdm(desc=str(path), unit=" lines", disable=None) as progress:
            while lines := list(islice(file, LINES_AT_ONCE)):
                progress.update(len(lines))
                stream: list[int] = []
                for text, tokens in _encode(lines, tokenizer):
                    unknown.add(text, tokens)
                    for begin in range(0, len(tokens), longest):
                        piece = tokens[begin : begin + longest]
                        stream += [*piece, SOS_EOS_ID]
                        lens.append(len(piece))
                parts.append(np.array(stream, np.int32))
    except (OSError, UnicodeDecodeError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise UserError(f"{path}: {problem}", flag=flag, fix="give a text file in UTF-8, a sentence a line") from error
    if not lens:
        raise UserError(f"{path}: holds no sentence", flag=flag, fix="write one a line")
    unknown.warn(str(path))
    sizes = np.array(lens)
    return TokenText(np.concatenate(parts), np.concatenate([[1], 1 + np.cumsum(sizes + 1)[:-1]]), sizes)


def _encode(lines: list[str], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    texts = [line.strip() for line in lines if line.strip()]
    return zip(texts, tokenizer.encode(texts), strict=True)
