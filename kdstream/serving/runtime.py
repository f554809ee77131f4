"""An exported model in sherpa-onnx: its files, its recogniser, and streams whose text comes in segments."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import sherpa_onnx

from kdstream import words
from kdstream.config.decoding import SearchConfig
from kdstream.config.experiment import TOKENS_FILE, VOCABULARY_FILE
from kdstream.endpoints import NOTHING, EndpointConfig, Segmenter, TimedTokens
from kdstream.errors import UserError, option
from kdstream.hotwords import Hotword, check_score, parse_hotwords, read_hotwords, shown
from kdstream.transcription import OUTPUT_FRAME_SECONDS, Segment, Transcription
from kdstream.units import FEATURE_FRAMES_PER_OUTPUT_FRAME, FRAMES_PER_SECOND, SAMPLE_RATE, tail_frames

SCALES_ACTIVATIONS = b"DynamicQuantizeLinear"  # the ONNX operator: one scale for a tensor, all rows of a batch in it
NO_LETTERS = ":#@"  # to sherpa-onnx, where a word of a hotword begins with them: a score, a threshold, another name
GREEDY, BEAM = "greedy_search", "modified_beam_search"
SEARCH_SETTINGS: dict[str, tuple[str, ...]] = {  # of sherpa-onnx's searches for transducers
    GREEDY: ("blank_penalty",),
    BEAM: ("beam_size", "blank_penalty", "hotwords_file", "hotwords_score"),
}


class ExportedModel(NamedTuple):
    """The files of a streaming model, how long its chunks are, and how much silence its clients' audio ends with.

    chunk: output frames (40 ms) that a step decodes.
    tail: feature frames of 10 ms; see `tail_frames`.
    """

    encoder: Path
    decoder: Path
    joiner: Path
    tokens: Path
    chunk: int
    tail: int

    def silence(self, sample_rate: int) -> np.ndarray:
        """Zeros (S,) at `sample_rate`, which a client sends after an utterance."""
        # a resampler holds back the last fraction of a millisecond: one frame more, or the last chunk could stay short
        frames = self.tail + (sample_rate != SAMPLE_RATE)
        return np.zeros(frames * sample_rate // FRAMES_PER_SECOND, np.float32)

    @property
    def vocabulary(self) -> Path:
        """bpe.vocab, which spells hotwords; older exports lack it."""
        return self.tokens.with_name(VOCABULARY_FILE)

    @property
    def mixes_rows(self) -> bool:
        """Whether a client's words would depend on the others in its batch: true of int8 files."""
        return any(SCALES_ACTIVATIONS in path.read_bytes() for path in (self.encoder, self.decoder, self.joiner))


def find_model(encoder: Path) -> ExportedModel:
    """The model whose encoder is `encoder`, as kdstream export writes it: the other files lie beside it.

    Raises UserError where a file is missing, or is no such encoder.
    """
    if not encoder.is_file():
        raise UserError(
            f"{encoder}: no such file", fix="give an encoder-...onnx that kdstream export wrote, or its directory"
        )
    if not encoder.name.startswith("encoder-"):
        raise UserError(f"{encoder}: not an encoder", fix="name it encoder-...onnx, as kdstream export does")
    rest = encoder.name[len("encoder") :]
    others = [encoder.with_name(name) for name in (f"decoder{rest}", f"joiner{rest}", TOKENS_FILE)]
    for path in others:
        if not path.is_file():
            fix = "kdstream export writes encoder, decoder, joiner and tokens.txt together"
            raise UserError(f"{path}: no such file", fix=fix)
    chunk, tail = _lengths(encoder)
    return ExportedModel(encoder, *others, chunk=chunk, tail=tail)


def _lengths(encoder: Path) -> tuple[int, int]:
    """`chunk` and `tail` of an ExportedModel."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is never run
    try:
        session = onnxruntime.InferenceSession(str(encoder), options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        step = int(metadata["decode_chunk_len"]) // FEATURE_FRAMES_PER_OUTPUT_FRAME
        return step, tail_frames(int(metadata["T"]))
    except KeyError as error:
        problem = f"{encoder}: no encoder of a streaming model, or an encoder of whole utterances, which cannot stream"
        fix = "write a streaming one with kdstream export, or give this one to sherpa-onnx's OfflineRecognizer"
        raise UserError(problem, fix=fix) from error
    except Exception as error:  # onnxruntime's own errors have no common class
        raise UserError(f"{encoder}: {error}", fix="write it anew with kdstream export") from error


def settings_of_search(method: str) -> tuple[str, ...]:
    """The settings of a search.  Raises UserError if sherpa-onnx does not have it."""
    if method not in SEARCH_SETTINGS:
        raise UserError(f"search {method}: not in sherpa-onnx", fix=f"use {' or '.join(SEARCH_SETTINGS)}")
    return SEARCH_SETTINGS[method]


def load_recognizer(
    model: ExportedModel,
    num_threads: int,
    method: str = GREEDY,
    beam_size: int = SearchConfig.beam_size,
    blank_penalty: float = SearchConfig.blank_penalty,
    hotwords_file: str = "",
    hotwords_score: float = SearchConfig.hotwords_score,
) -> sherpa_onnx.OnlineRecognizer:
    """sherpa-onnx on the model's files.

    Args:
      num_threads: of onnxruntime.
      method: greedy_search, or modified_beam_search, with `beam_size` paths and hotwords.
      blank_penalty: what is taken from blank's logit; token probabilities are without it.
      hotwords_file, hotwords_score: see `read_hotwords`.
    Raises:
      UserError: hotwords that cannot be read or spelt, or a score out of range.
    """
    settings: dict[str, Any] = {}
    speller = Speller(model) if hotwords_file or takes_hotwords(model, method) else None
    if speller is not None:  # those of a stream are spelt with the vocabulary too
        check_score(hotwords_score)
        unit = "cjkchar" if speller.by_letter else "bpe"
        settings = {"modeling_unit": unit, "bpe_vocab": str(model.vocabulary), "hotwords_score": hotwords_score}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf8") as spelt:
        if speller is not None and hotwords_file:
            # sherpa-onnx reads the file at once, and would pass over those that cannot be spelt in silence
            hotwords = read_hotwords(Path(hotwords_file), hotwords_score, speller.unknown_letters)
            speller.warn(hotwords_file, hotwords)
            spelt.write("\n".join(map(speller.line, hotwords)))
            spelt.flush()
            settings["hotwords_file"] = spelt.name
        return sherpa_onnx.OnlineRecognizer.from_transducer(
            tokens=str(model.tokens),
            encoder=str(model.encoder),
            decoder=str(model.decoder),
            joiner=str(model.joiner),
            num_threads=num_threads,
            decoding_method=BEAM,  # with one path it is greedy search; sherpa-onnx's own cannot begin anew in a stream
            max_active_paths=beam_size if method == BEAM else 1,
            blank_penalty=blank_penalty,
            temperature_scale=1.0,  # token probabilities are the model's own
            **settings,
        )


def takes_hotwords(model: ExportedModel, method: str) -> bool:
    return "hotwords_file" in settings_of_search(method) and model.vocabulary.is_file()


class Speller:
    """How sherpa-onnx is told of hotwords.  Raises UserError for an older export, which has no vocabulary.

    by_letter: every token is a letter, of a script without blanks.
    """

    def __init__(self, model: ExportedModel) -> None:
        if not model.vocabulary.is_file():
            raise UserError(f"{model.vocabulary}: no such file; it spells hotwords", fix="run kdstream export anew")
        pieces = [line.split("\t")[0] for line in model.vocabulary.read_text(encoding="utf8").splitlines()]
        bare = (piece.removeprefix(words.WORD_START) for piece in pieces)
        self._letters = {" ", *(piece for piece in bare if len(piece) == 1)}
        self._in_bytes = any(map(words.BYTE_PIECE.fullmatch, pieces))
        self._case = words.case_of(pieces)
        spelling = [piece for piece in pieces if not words.is_symbol(piece)]
        self._normalises = all(words.nfkc(piece) == piece for piece in spelling)  # as sentencepiece does by default
        self._unspaced = words.mostly_unspaced(spelling)
        single = all(len(piece) == 1 or words.is_symbol(piece) for piece in pieces)
        self.by_letter = self._unspaced and single and not self._in_bytes

    def normalise(self, text: str) -> str:
        """The text as the tokens were trained on it, which their letters tell: sherpa-onnx does not normalise."""
        plain = words.nfkc(text) if self._normalises else text
        return text if self._letters.issuperset(text) and not self._letters.issuperset(plain) else plain

    def unknown_letters(self, text: str) -> str:
        """The letters that no token spells, or that sherpa-onnx does not take for letters."""
        if not (plain := self.normalise(text)):  # signs without width, which say nothing
            return text
        text = plain
        unknown = "" if self._in_bytes else "".join(letter for letter in text if letter not in self._letters)
        begins = text if self.by_letter else (word[0] for word in text.split())
        return unknown or "".join(letter for letter in begins if letter in NO_LETTERS)

    def warn(self, source: str, hotwords: Sequence[Hotword]) -> None:
        """Logs where sherpa-onnx cannot do what was asked of it: it puts a blank before each phrase."""
        within = [hotword.phrase for hotword in hotwords if self._unspaced or words.UNSPACED.match(hotword.phrase)]
        if within and not self.by_letter:
            advice = "train with --token-type char" if self._unspaced else "torch prefers them within a sentence too"
            logging.warning(
                f"{source}: sherpa-onnx prefers hotwords such as {shown(within[0])} after a blank alone; {advice}"
            )

    def line(self, hotword: Hotword) -> str:
        """As a file of hotwords has it."""
        phrase = words.in_case(self.normalise(hotword.phrase), self._case)
        if self.by_letter:  # sherpa-onnx would take a Latin word for one letter
            phrase = " ".join(words.without_blanks_beside_unspaced(phrase).replace(" ", words.WORD_START))
        return f"{phrase} :{hotword.score:.9f}"  # without an exponent: it reads those of a float32 alone


class Runtime:
    """A model in sherpa-onnx, and where the text of its streams is cut.

    Args:
      num_threads, method, settings: see `load_recognizer`.
    """

    def __init__(
        self,
        model: ExportedModel,
        num_threads: int = 1,
        rules: EndpointConfig = EndpointConfig(),  # noqa: B008  # it is frozen
        method: str = GREEDY,
        **settings: Any,
    ) -> None:
        self.model, self.rules = model, rules
        self.recognizer = load_recognizer(model, num_threads, method, **settings)
        self._score = settings.get("hotwords_score", SearchConfig.hotwords_score)
        self._speller = Speller(model) if takes_hotwords(model, method) else None

    @property
    def takes_hotwords(self) -> bool:
        """Whether a stream may have hotwords of its own."""
        return self._speller is not None

    def spell(self, hotwords: Sequence[str]) -> str:
        """Hotwords, written as in a file of them, for `SegmentedStream`.  Raises UserError for any that is no such."""
        speller = self._speller
        if speller is None:
            raise UserError("the model takes no hotwords", fix=f"serve it with {option('decoding_method', BEAM)}")

        def unknown_letters(text: str) -> str:
            slash = "/" in speller.normalise(text)  # it parts those of a stream
            return speller.unknown_letters(text) or "/" * slash

        return "/".join(map(speller.line, parse_hotwords(hotwords, "hotwords", self._score, unknown_letters)))


class SegmentedStream:
    """What one stream says, in segments: those of torch, as the rules are the same code.

    sherpa-onnx's own endpoints would come where nothing was said too, and cut words.

    Args:
      hotwords: from `Runtime.spell`.
    """

    def __init__(self, runtime: Runtime, hotwords: str = "") -> None:
        self._runtime, self._recognizer = runtime, runtime.recognizer
        self.stream = self._recognizer.create_stream(*[hotwords] * bool(hotwords))
        self._segmenter = Segmenter(runtime.rules, words.spell)
        self._now = 0  # output frames that are decoded
        self._begin = 0  # of them before the last endpoint: sherpa-onnx counts from there
        self._tokens = NOTHING  # since then

    @property
    def ready(self) -> bool:
        """Whether there is a whole chunk; `sherpa_onnx.OnlineRecognizer` decodes that of `stream`."""
        return self._recognizer.is_ready(self.stream)

    def decoded(self) -> None:
        """Takes notice of a chunk that was decoded."""
        self._now += self._runtime.model.chunk
        result = self._recognizer.get_result_all(self.stream)
        frames = [self._begin + round(seconds / OUTPUT_FRAME_SECONDS) for seconds in result.timestamps]
        self._tokens = TimedTokens(result.tokens, frames, result.ys_probs)
        if not self._segmenter.ends(self._now, frames[-1] if frames else -1):
            return
        self._segmenter.finish(self._now, self._tokens)
        for _ in range(2):  # older versions keep the last tokens after a reset, and drop them at a second one
            self._recognizer.reset(self.stream)
        self._begin, self._tokens = self._now, NOTHING

    def accept(self, samples: np.ndarray, sample_rate: int) -> None:
        """Takes float32 samples (S,)."""
        self.stream.accept_waveform(sample_rate, samples)

    def finish(self) -> None:
        """Says that no more samples come."""
        self.stream.input_finished()

    def decode(self) -> None:
        """Decodes what is ready."""
        while self.ready:
            self._recognizer.decode_stream(self.stream)
            self.decoded()

    @property
    def segments(self) -> list[Segment]:
        """The finished ones."""
        return self._segmenter.segments

    @property
    def growing(self) -> str:
        """The text since the last endpoint."""
        return self._segmenter.growing(self._tokens)

    @property
    def text(self) -> str:
        """All text so far."""
        return self._segmenter.text(self._tokens)

    def take(self) -> dict[int, Segment]:
        """See `Segmenter.take`."""
        return self._segmenter.take()

    def end(self, audio: str = "", seconds: float = 0.0) -> Transcription:
        """Finishes the last segment at the end of the stream; what `take` has taken is not in the transcription."""
        tokens, self._tokens = self._tokens, NOTHING
        return self._segmenter.end(audio, seconds, tokens)
