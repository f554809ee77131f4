"""Text to token ids and back, with a sentencepiece model, and the letters that it lacks."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import sentencepiece

from kdstream.errors import UserError
from kdstream.files import read_utf8, write_text
from kdstream.words import (
    BLANKS_BESIDE_UNSPACED,
    UNSPACED,
    WORD_START,
    Letter,
    Located,
    case_of,
    in_case,
    locate,
    spell,
    without_blanks_beside_unspaced,
)

UNKNOWN_PIECE = "<unk>"  # what runtimes take for blank by its name in tokens.txt
UNKNOWN_SPELLED = " \u2047 "  # as sentencepiece decodes it
UNKNOWN_FIX = "train tokens on such text, or take these characters out of it"
LETTERS_SHOWN = 10
PIECE_AND_ID = re.compile(r"(.+?)[ \t]+(\d+)\s*")  # a line of tokens.txt
OF_LEXICONS = re.compile(r"#\d+")  # #0, #1, ... tell words that sound alike apart; icefall's files end with them

BLANK, BLANK_ID = "<blk>", 0


class Tokenizer:
    """A sentencepiece model with icefall's ids: <blk> 0, <sos/eos> 1, <unk> 2.

    It takes texts as its tokens can spell them.  Tokens that have letters of one case alone give every text that case.
    A model that puts no blank before a text leaves out the blanks beside Chinese and other characters that need none.

    case: "upper" or "lower", the one case of its tokens; "" where they have both, or none.
    joins: whether it leaves out these blanks.
    normalisation: what `normalise` does: the name of the model's rule, e.g. nmt_nfkc, and the case, e.g. "upper case".
    fingerprint: a hash of the model.
    """

    def __init__(self, bpe_model: str | Path) -> None:
        if Path(bpe_model).is_dir():
            raise UserError(f"--bpe-model {bpe_model}: a directory", fix=f"give {Path(bpe_model, 'bpe.model')}")
        if not Path(bpe_model).is_file():
            fix = "give --bpe-model, or write one with kdstream train-bpe-model"
            raise UserError(f"{bpe_model}: no such file", fix=fix)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(bpe_model))
        except RuntimeError as error:
            raise UserError(
                f"{bpe_model}: not a sentencepiece model", fix="write it anew with kdstream train-bpe-model"
            ) from error
        first = self._model.id_to_piece(BLANK_ID)
        if first != BLANK:
            raise UserError(
                f"{bpe_model}: token {BLANK_ID} is {first}, and not {BLANK}, which a transducer says where "
                "nothing is said",
                fix="train one with kdstream train-bpe-model, or as icefall does",
            )
        self.unk_id: int = self._model.unk_id()
        model = self._model.serialized_model_proto()
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._spellings = [self._spelling(i) for i in range(self.vocab_size)]
        self.case = case_of(self.tokens)
        self.joins = WORD_START not in self._model.normalize("A")
        self._otherwise: sentencepiece.SentencePieceProcessor | None = None
        rules = (_name_of_normalisation(model), f"{self.case} case" if self.case else "")
        self.normalisation = ", ".join(filter(None, rules))

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @property
    def tokens(self) -> list[str]:
        """All pieces, in the order of their ids; runtimes know the unknown one by its name, whatever it has here."""
        return [UNKNOWN_PIECE if i == self.unk_id else self._model.id_to_piece(i) for i in range(self.vocab_size)]

    def save_tokens(self, path: Path) -> None:
        """Writes tokens.txt: "piece id" a line, in the order of the ids."""
        lines = [f"{piece} {index}\n" for index, piece in enumerate(self.tokens)]
        write_text(path, "".join(lines))

    def save_vocabulary(self, path: Path) -> None:
        """Writes bpe.vocab: "piece<TAB>score" a line, as sentencepiece's trainer does; sherpa-onnx spells with it."""
        pieces = ((self._model.id_to_piece(i), self._model.get_score(i)) for i in range(self.vocab_size))
        write_text(path, "".join(f"{piece}\t{score:g}\n" for piece, score in pieces))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode([self._as_tokens_have_it(text) for text in texts], out_type=int)

    def spellings(self, phrase: str) -> list[list[int]]:
        """The tokens of a phrase as a text begins with it and, where they are others, as it stands within a sentence.

        There no blank stands before Chinese and the like, and one before a Latin word, whatever a text begins with.
        """
        begun = self.encode([phrase])[0]
        if not begun or bool(UNSPACED.match(self.normalise(phrase))) == self.joins:
            return [begun]
        if self._otherwise is None:
            self._otherwise = _begun_otherwise(self._model, blank_first=self.joins)
        within = self._otherwise.encode(self._as_tokens_have_it(phrase), out_type=int)
        return [begun] if within[-len(begun) :] == begun else [begun, within]

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])

    def normalise(self, text: str) -> str:
        """`text` as the model was trained on it, with one blank between words; texts that are compared pass through it.

        That is sentencepiece's normalisation, by default NFKC, and blanks for what has no width; then `case`, `joins`.
        """
        return self._plain(self._as_tokens_have_it(text))

    def letters(self, ids: Sequence[int]) -> list[Letter]:
        """The characters that tokens spell, as `decode` has them."""
        return spell([self._spellings[i] for i in ids])

    def words(self, ids: Sequence[int], score_by: str = "auto") -> list[Located]:
        """The words of the normalised text that tokens spell, and the places of their first and last tokens."""
        return locate(self._normalised(self.letters(ids)), score_by)

    def words_of(self, text: str) -> tuple[list[int], list[Located]]:
        """The tokens of a text, and the words of its normalised form with the places of their first and last tokens."""
        pieces = self._pieces(text)
        return self.encode([text])[0], locate(spell(pieces))

    def unknown_letters(self, text: str) -> str:
        """The letters, each as often as it is there, that no token spells."""
        ids, pieces = self.encode([text])[0], self._pieces(text)
        return "".join(piece for token, piece in zip(ids, pieces, strict=True) if token == self.unk_id)

    def _as_tokens_have_it(self, text: str) -> str:
        if self.joins:
            text = without_blanks_beside_unspaced(text)
        if not self.case:
            return text
        # a sign may be letters of another case once it is normalised
        return in_case(text if text.isascii() else self._plain(text), self.case)

    def _plain(self, text: str) -> str:
        return " ".join(self._model.normalize(text).replace(WORD_START, " ").split())

    def _pieces(self, text: str) -> list[str]:
        """The pieces of a text; a token that is unknown has its letters here."""
        return self._model.encode(self._as_tokens_have_it(text), out_type=str)

    def _normalised(self, letters: Sequence[Letter]) -> list[Letter]:
        """What `normalise` makes of them, each with the tokens that it comes from."""
        if self.joins:
            blanks = BLANKS_BESIDE_UNSPACED.finditer("".join(letter.character for letter in letters))
            left_out = {place for match in blanks for place in range(*match.span())}
            letters = [letter for place, letter in enumerate(letters) if place not in left_out]
        if not letters:
            return []
        text, origins = self._model.normalize("".join(letter.character for letter in letters), with_offsets=True)
        last = len(letters) - 1
        normalised = []
        for place, character in enumerate(text):  # it comes from the letters between its origin and the next one's
            begin = min(origins[place], last)
            end = min(max(begin, origins[place + 1] - 1), last)
            spelt = in_case(character.replace(WORD_START, " "), self.case)
            normalised += (Letter(one, letters[begin].first, letters[end].last) for one in spelt)
        return normalised

    def _spelling(self, index: int) -> str:
        if index == self.unk_id:
            return UNKNOWN_SPELLED
        return "" if self._model.is_control(index) else self._model.id_to_piece(index)


def read_tokens(path: Path) -> list[str]:
    """The pieces of a tokens.txt, in the order of their ids, without the symbols of lexicons that icefall adds.

    Raises UserError if there is no such file, or where a line is not a piece and its id.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix="kdstream train-bpe-model writes it beside bpe.model")
    found: list[tuple[int, str]] = []
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if match := PIECE_AND_ID.fullmatch(line):
            found.append((int(match[2]), match[1]))
        elif line.strip():
            problem = f"{path}: line {number}, {line.strip()[:40]!r}, is not a piece and its id"
            raise UserError(problem, fix="copy the one that was written with its bpe.model")
    tokens = [piece for _, piece in sorted(found)]
    while tokens and OF_LEXICONS.fullmatch(tokens[-1]):
        tokens.pop()
    return tokens


def difference_of_tokens(theirs: Sequence[str], ours: Sequence[str], whose: str = "the student") -> str:
    """The first difference of others' tokens from ours; "" if they are the same in the same order.

    whose: ours are, for the message.
    """
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} tokens, {whose} {len(ours)}"
    different = (
        f"its token {index} is {their!r}, {whose}'s {our!r}"
        for index, (their, our) in enumerate(zip(theirs, ours, strict=True))
        if their != our
    )
    return next(different, "")


class UnknownLetters:
    """Keeps account of the transcripts with letters that a tokenizer lacks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts = self.with_unknown = 0
        self.letters: Counter[str] = Counter()

    def add(self, text: str, tokens: Sequence[int] | None = None) -> None:
        """Looks at a transcript; `tokens` are its own, where they are known."""
        tokens = self.tokenizer.encode([text])[0] if tokens is None else tokens
        self.texts += 1
        if self.tokenizer.unk_id in tokens:
            self.with_unknown += 1
            self.letters.update(self.tokenizer.unknown_letters(text))

    def add_counts(self, texts: int, with_unknown: int, letters: Mapping[str, int]) -> None:
        """Adds the account of other transcripts."""
        self.texts += texts
        self.with_unknown += with_unknown
        self.letters.update(letters)

    def warn(self, what: str) -> None:
        """Logs how many transcripts have which letters, if any has."""
        if self.with_unknown:
            logging.warning(f"{what}: {self}; {UNKNOWN_FIX}")

    def __str__(self) -> str:
        most = ", ".join(f"{letter!r} ({times})" for letter, times in self.letters.most_common(LETTERS_SHOWN))
        more = ", ..." if len(self.letters) > LETTERS_SHOWN else ""
        return f"{self.with_unknown} of {self.texts} transcripts have characters unknown to --bpe-model: {most}{more}"


def _begun_otherwise(
    model: sentencepiece.SentencePieceProcessor, blank_first: bool
) -> sentencepiece.SentencePieceProcessor:
    """The model with or without a blank before each text: NormalizerSpec's field 3, add_dummy_prefix.

    What is behind a message of protocol buffers replaces the same fields in it.
    """
    setting = bytes([3 << 3 | 2, 2, 3 << 3, blank_first])
    return sentencepiece.SentencePieceProcessor(model_proto=model.serialized_model_proto() + setting)


def _name_of_normalisation(model: bytes) -> str:
    """ModelProto's field 3 is NormalizerSpec, whose field 1 is its name (sentencepiece_model.proto)."""
    return b"".join(_fields(b"".join(_fields(model, 3)), 1)).decode()


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The values of a field of texts or messages, in a message of protocol buffers."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if number == wanted and kind == 2:
            yield message[place : place + size]
        place += size
