"""Text to token ids and back, with a sentencepiece model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from kdstream.errors import UserError
from kdstream.files import write_text

WORD_START = "\u2581"  # how sentencepiece marks a piece that begins a word

BLANK = "<blk>"


class Tokenizer:
    """A sentencepiece model with icefall's ids: <blk> 0, <sos/eos> 1, <unk> 2."""

    def __init__(self, bpe_model: str | Path) -> None:
        if not Path(bpe_model).is_file():
            raise UserError(f"{bpe_model}: no such file", fix="run prepare.sh stage 5 or give --bpe-model")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(bpe_model))
        except RuntimeError as error:
            raise UserError(
                f"{bpe_model}: not a sentencepiece model", fix="delete it and run prepare.sh again"
            ) from error
        if self._model.id_to_piece(0) != BLANK:
            raise UserError(
                f"{bpe_model}: token 0 is {self._model.id_to_piece(0)}, and not {BLANK}, which a transducer says where "
                "nothing is said",
                fix="train one with kdstream train-bpe-model, or as icefall does",
            )
        self.unk_id: int = self._model.unk_id()

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @property
    def tokens(self) -> list[str]:
        """All pieces, in the order of their ids."""
        return [self._model.id_to_piece(i) for i in range(self.vocab_size)]

    def save_tokens(self, path: Path) -> None:
        """Writes tokens.txt: "piece id" a line, in the order of the ids."""
        lines = [f"{piece} {index}\n" for index, piece in enumerate(self.tokens)]
        write_text(path, "".join(lines))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), out_type=int)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])

    def word_ends(self, ids: Sequence[int]) -> list[int]:
        """Of each word that `ids` decode to, the place among them of the token that completes it."""
        words = self.decode(ids).split()
        ends: list[int] = []
        for place in range(len(ids)):
            said = self.decode(ids[: place + 1]).split()
            while len(ends) < len(said) and said[len(ends)] == words[len(ends)]:
                ends.append(place)
        return ends
