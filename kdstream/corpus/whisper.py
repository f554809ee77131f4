"""Labels by a Whisper model in CTranslate2's format, through the package faster-whisper.

Cuts of at most --max-segment-seconds are heard whole.  Longer ones are cut in their silences, which faster-whisper's
voice activity detection (Silero's) finds; each piece becomes a cut.  Whisper hears every cut for itself, without the
text before it, and at temperature 0: the same cuts get the same labels each time.

What it hears is kept in a file beside the output before any rule is applied, see `Journal`.  A command that was killed
continues from there.  Other rules or spellings need no second hearing.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy
from tqdm import tqdm

from kdstream.config.decoding import DecodeConfig
from kdstream.config.flags import flags_of
from kdstream.config.labels import WINDOW_SECONDS, LabelConfig
from kdstream.config.sections import DataConfig
from kdstream.corpus.label_journal import Heard, Journal
from kdstream.corpus.label_text import SPOKEN, StudentText
from kdstream.corpus.pseudo_labels import Hypothesis
from kdstream.data.cuts import text_of
from kdstream.data.reading import read_audio
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError, option, packages_of
from kdstream.evaluation.scoring import Transcript
from kdstream.files import sha256_of
from kdstream.units import SAMPLE_RATE
from kdstream.words import split_words

EXTRA = "label"  # of pyproject.toml
FILES = ("model.bin", "config.json", "tokenizer.json")  # without the last one faster-whisper would download it
NEVER_SAID = -1  # faster-whisper's number for the signs that stand for no speech
HEARING = (  # settings on which depends what is heard
    "language", "compute_type", "batch_size", "max_segment_seconds", "min_silence_seconds", "spell_numbers",
)  # fmt: skip
READ = ("beam_size", "device", "bpe_model")  # of decoding and data

Piece = tuple[Heard, np.ndarray]  # without a text so far; its samples (S,) at 16 kHz, none where there is no speech


class FasterWhisper:
    """Raises UserError for a model, tokens or settings that it cannot use, before it hears anything."""

    hears_audio = True
    min_confidence = 0.37  # exp(-1): Whisper's own threshold

    def __init__(self, config: LabelConfig, decode: DecodeConfig, data_of: Callable[[DataConfig], DataConfig]) -> None:
        self.config, self.decode = config, decode
        if config.max_segment_seconds > WINDOW_SECONDS:
            flag = option("max_segment_seconds", f"{config.max_segment_seconds:g}")
            raise UserError(f"Whisper hears {WINDOW_SECONDS:g} s at once", flag=flag, fix="try 20")
        data = data_of(DataConfig())
        for section in (decode, data):
            config.refuse_unread(section, {item.name for item in flags_of(type(section))}.difference(READ))
        check_model(config.model)
        self._tokenizer = Tokenizer(data.bpe_model)
        self._text = StudentText(self._tokenizer, config)
        self._whisper = Whisper(config, decode)

    def label(self, cuts: Sequence[DataCut], journal: Path) -> list[Hypothesis]:
        """The hypotheses of all cuts, or of the pieces of longer ones, in their order."""
        settings = {name: getattr(self.config, name) for name in HEARING}
        settings["beam_size"] = self.decode.beam_size
        settings["model"] = sha256_of(Path(self.config.model, FILES[0]))
        settings["cuts"] = fingerprint(cuts)
        with Journal(journal, settings) as kept:
            total = round(sum(cut.duration for cut in cuts))
            pieces = self._pieces(cuts, kept)
            with tqdm(total=total, initial=round(kept.seconds), unit="s", desc="labels", disable=None) as bar:
                while batch := list(islice(pieces, self.config.batch_size)):
                    kept.add(self._whisper.hear(batch))
                    bar.update(round(kept.seconds) - bar.n)
            by_id = {cut.id: cut for cut in cuts}
            return [self._hypothesis(by_id[heard.cut], heard) for heard in kept.heard]

    def _pieces(self, cuts: Sequence[DataCut], journal: Journal) -> Iterator[Piece]:
        """What the journal lacks."""
        for cut, begun in journal.missing(cuts):
            samples = read_audio(cut).numpy()
            whole = Heard(cut.id, 0.0, cut.duration, cut.duration, is_last=True)
            if cut.duration <= self.config.max_segment_seconds:
                yield whole, samples
                continue
            spans = speech_spans(samples, self.config)
            if not spans:
                yield whole, samples[:0]
            before = 0.0  # seconds of the cut that are done
            for number, (begin, end) in enumerate(spans):
                start, is_last = begin / SAMPLE_RATE, number == len(spans) - 1
                stop = min(end / SAMPLE_RATE, cut.duration)
                done = cut.duration if is_last else stop
                if number >= begun:
                    yield Heard(cut.id, start, stop - start, done - before, is_last), samples[begin:end]
                before = done

    def _hypothesis(self, cut: DataCut, heard: Heard) -> Hypothesis:
        text = self._text.spell(heard.text)
        words, said = (split_words(self._tokenizer.normalise(some)) for some in (text_of(cut), text))
        return Hypothesis(
            cut if heard.duration == cut.duration else piece_of(cut, heard),
            Transcript(cut.id, words, said),
            text,
            float(np.exp(heard.avg_logprob)) if text else None,
            unknown=self._tokenizer.unknown_letters(text),
            compression_ratio=heard.compression_ratio,
            no_speech=heard.no_speech,
        )


class Whisper:
    """A model of faster-whisper."""

    def __init__(self, config: LabelConfig, decode: DecodeConfig) -> None:
        with packages_of(EXTRA, option("labeller", config.labeller)):
            from faster_whisper import (  # pyright: ignore[reportMissingImports]  # optional
                BatchedInferencePipeline,
                WhisperModel,
            )
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it has a line for each batch
        device, _, index = decode.device.partition(":")
        try:
            model = WhisperModel(
                config.model,
                device=device or "auto",
                device_index=int(index or 0),
                compute_type=config.compute_type,
                cpu_threads=torch.get_num_threads(),
                local_files_only=True,
            )
        except (RuntimeError, ValueError) as error:
            what = " ".join(str(error).split())
            fix = "see --compute-type and --device, or convert the model again with ct2-transformers-converter"
            raise UserError(what, flag=option("model", config.model), fix=fix) from error
        bins, needed = model.feature_extractor.mel_filters.shape[0], model.model.n_mels
        if bins != needed:  # without the file, faster-whisper computes 80
            problem = f"hears {needed} mel bins, and its preprocessor_config.json does not say so"
            raise UserError(
                problem, flag=option("model", config.model), fix="copy that file from the model it is made of"
            )
        if config.language not in model.supported_languages:
            flag = option("language", config.language)
            raise UserError(f"not among those of {config.model}", flag=flag, fix="give a code such as en or de")
        self._pipeline = BatchedInferencePipeline(model)
        self._options = {
            "language": config.language,
            "beam_size": decode.beam_size,
            "batch_size": config.batch_size,
            "temperature": 0.0,
            "without_timestamps": True,  # a cut is one segment
            "suppress_tokens": [NEVER_SAID, *(number_tokens(model) if config.spell_numbers else [])],
        }

    def hear(self, batch: Sequence[Piece]) -> list[Heard]:
        """What is said in each piece."""
        spoken = [samples for _, samples in batch if len(samples)]
        said: Iterable[Any] = ()
        if spoken:
            ends = np.cumsum([len(samples) for samples in spoken])
            clips = [
                # faster-whisper rounds them down to samples
                {"start": (end - len(samples) + 0.5) / SAMPLE_RATE, "end": (end + 0.5) / SAMPLE_RATE}
                for samples, end in zip(spoken, ends.tolist(), strict=True)
            ]
            said, _ = self._pipeline.transcribe(np.concatenate(spoken), clip_timestamps=clips, **self._options)
        segments = iter(said)
        heard = [self._with_text(piece, next(segments)) if len(samples) else piece for piece, samples in batch]
        assert next(segments, None) is None
        return heard

    @staticmethod
    def _with_text(piece: Heard, segment: Any) -> Heard:
        return piece._replace(
            text=segment.text.strip(),
            avg_logprob=float(segment.avg_logprob),
            compression_ratio=float(segment.compression_ratio),
            no_speech=float(segment.no_speech_prob),
        )


def check_model(folder: str) -> None:
    """Raises UserError unless `folder` holds all that faster-whisper reads; it would download what is missing."""
    fix = "give a local directory of a Whisper model in CTranslate2's format; nothing is downloaded"
    if not folder:
        raise UserError("needed by --labeller faster-whisper", flag=option("model"), fix=fix)
    if not Path(folder).is_dir():
        raise UserError("no such directory", flag=option("model", folder), fix=fix)
    for name in FILES:
        if not Path(folder, name).is_file():
            raise UserError(f"holds no {name}", flag=option("model", folder), fix=fix)


def number_tokens(model: Any) -> list[int]:
    """The tokens that are written with digits, signs of currency, or the like; without them it writes words."""

    def is_number(text: str) -> bool:
        return any(sign.isnumeric() or unicodedata.category(sign) == "Sc" or sign in SPOKEN for sign in text)

    tokenizer = model.hf_tokenizer
    texts = tokenizer.decode_batch([[index] for index in range(tokenizer.token_to_id("<|endoftext|>"))])
    return [index for index, text in enumerate(texts) if is_number(text)]


def speech_spans(samples: np.ndarray, config: LabelConfig) -> list[tuple[int, int]]:
    """Where there is speech: first sample and end of each piece, which has silence on both sides where there is any."""
    from faster_whisper.vad import (  # pyright: ignore[reportMissingImports]  # optional
        VadOptions,
        get_speech_timestamps,
    )

    options = VadOptions(
        max_speech_duration_s=config.max_segment_seconds,
        min_silence_duration_ms=round(1000 * config.min_silence_seconds),
    )
    return [(span["start"], span["end"]) for span in get_speech_timestamps(samples, options)]


def piece_of(cut: DataCut, heard: Heard) -> DataCut:
    """A part of a cut, named as Kaldi names segments: by its beginning and its end in hundredths of a second."""
    begin, end = (round(100 * seconds) for seconds in (heard.start, heard.start + heard.duration))
    name = f"{cut.id}-{begin:07d}-{end:07d}"
    piece = fastcopy(cut, supervisions=[]).truncate(offset=heard.start, duration=heard.duration)
    return fastcopy(piece, id=name, supervisions=[fastcopy(known, id=name) for known in cut.supervisions])


def fingerprint(cuts: Sequence[DataCut]) -> str:
    """A hash of which cuts they are."""
    lines = (f"{cut.id} {cut.recording_id} {cut.start} {cut.duration}\n" for cut in cuts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
