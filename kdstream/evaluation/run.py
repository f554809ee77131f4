"""One trained model, decoded in one way: scores its test sets, writes their files and adds their records."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from kdstream.checkpoints.trained import Trained
from kdstream.config.command_line import LOG_FORMAT, typed_command
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import warn_of_unread
from kdstream.data.cuts import fingerprint_of
from kdstream.data.module import AsrDataModule
from kdstream.decoding.search import Result
from kdstream.decoding.settings import choose_chunk, choose_search
from kdstream.devices import to_device
from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.evaluation.latency import (
    COMPUTE,
    MEASURES,
    Latency,
    Spread,
    algorithmic_latency_ms,
    delays_file,
    measure_delays,
    summarise,
    write_delays,
)
from kdstream.evaluation.records import RESULTS_JSON, Record, add_record, check_test_set, warn_of_other_inputs
from kdstream.evaluation.references import read_word_ends
from kdstream.evaluation.scoring import Alignment, Transcript
from kdstream.files import sha256_of, write_text
from kdstream.words import RATES, split_words, unit_of


class DecodingRun:
    """A trained model and one way of decoding it; `save` scores what was decoded.

    Args:
      config, decode: from `read_flags`.
      trained: the model that they name.
      chunkwise: chunk by chunk; else whole utterances, in simulated streaming where there is a chunk.
    Raises:
      UserError: settings that are out of range, or full context where streaming is asked for.
    """

    def __init__(self, config: ExperimentConfig, decode: DecodeConfig, trained: Trained, chunkwise: bool) -> None:
        self.config, self.decode, self.trained, self.chunkwise = config, decode, trained, chunkwise
        self.chunk = choose_chunk(config.model, decode)
        if chunkwise and self.chunk is None:
            raise UserError(
                f"{decode.exp_dir}: full context cannot go chunk by chunk", fix="use decode.py, or see --chunk-size"
            )
        if not chunkwise:
            warn_of_unread(decode, ("num_decode_streams", "engine"), "on whole utterances")
        self.data = AsrDataModule(config.data, config.train.seed)
        self.search = choose_search(decode).for_tokens(self.data.tokenizer)
        self.mode = "chunkwise" if chunkwise else "simulated" if self.chunk else "full"
        self.folder = Path(decode.exp_dir, *["streaming"] * chunkwise, self.search.method)
        self.model = to_device(trained.model, decode.device)
        _log_to(self.folder / f"log-decode-{self._suffix()}")
        logging.info(
            f"{decode.exp_dir}, {trained.name}: {self.mode}, {self.chunk or 'full context'}, {self.search.name}"
        )
        paths = [Path(path) for path in decode.alignments]
        sets = self.data.test_sets() if paths else {}
        self._nbest: list[str] = []  # lines of the test set that is being decoded
        self.word_ends = {
            name: read_word_ends(paths, utterances.cuts, self.words_of) for name, utterances in sets.items()
        }

    @property
    def results_json(self) -> Path:
        return Path(self.decode.results_json or Path(self.decode.exp_dir, RESULTS_JSON))

    def check_test_sets(self) -> None:
        """Raises UserError where the results of a test set would replace those of another one of its name.

        Where only other weights, hotwords or another language model had the same name, a warning is logged.
        """
        for name, utterances in self.data.test_sets().items():
            check_test_set(self.results_json, name, fingerprint_of(cut.id for cut in utterances.cuts))
        warn_of_other_inputs(self.results_json, self._checkpoint, self.search.name, self._inputs)

    @property
    def _checkpoint(self) -> str:
        return self.trained.name + ("" if self.decode.use_averaged_model else "_use-averaged-model-0")

    @cached_property
    def _inputs(self) -> str:
        """A hash of the files that flags name, "" without such flags."""
        paths = [*([Path(self.decode.checkpoint)] if self.decode.checkpoint else []), *self.search.files]
        return fingerprint_of(map(sha256_of, paths)) if paths else ""

    def words_of(self, text: str) -> list[str]:
        """The words of a reference, as hypotheses have them: of the normalised text, by --score-by."""
        return split_words(self.data.tokenizer.normalise(text), self.decode.score_by)

    def transcript(self, cut_id: str, text: str, result: Result) -> Transcript:
        """Reference and hypothesis in words; with the times of the hypothesis where delays are measured."""
        tokenizer = self.data.tokenizer
        words = tokenizer.words(result.tokens, self.decode.score_by)
        frames = tuple(result.timestamps[word.last] for word in words) if self.word_ends else ()
        if self.decode.nbest:
            paths = [
                {"text": tokenizer.decode(path.tokens), "log_prob": path.log_prob, "tokens": len(path.tokens)}
                for path in result.nbest
            ]
            self._nbest.append(json.dumps({"id": cut_id, "ref": text, "nbest": paths}, ensure_ascii=False) + "\n")
        texts = (tokenizer.normalise(text), tokenizer.normalise(tokenizer.decode(result.tokens)))
        return Transcript(cut_id, self.words_of(text), [word.word for word in words], frames, texts)

    def save(self, test_set: str, transcripts: Sequence[Transcript], step_ms: Sequence[float] = ()) -> Record:
        """Scores a test set, writes its files as icefall names them, and adds its record to the results JSON.

        step_ms: the milliseconds that each step took, where streams were decoded chunk by chunk.
        """
        transcripts = sorted(transcripts)
        alignments = scoring.align(transcripts)
        score = scoring.score(alignments)
        recogs, errs, summary = (self._file(kind, test_set) for kind in ("recogs", "errs", "wer-summary"))
        scoring.write_recogs(recogs, transcripts)
        scoring.write_errs(errs, transcripts, alignments, score)
        scoring.write_wer_summary(summary, {self._key(): score.wer})
        unit = unit_of((word for transcript in transcripts for word in transcript.ref), self.decode.score_by)
        others = scoring.other_scores(transcripts, unit)
        for rate, shown in {RATES[unit]: score, **others}.items():
            logging.info(shown.log_line(f"{test_set}{'_' if self.chunkwise else '-'}{self._key()}", rate))
        logging.info(f"Wrote {recogs}, {errs.name} and {summary.name}")
        if self._nbest:
            write_text(self._file("nbest", test_set, "jsonl"), "".join(sorted(self._nbest)))
            self._nbest.clear()
        latency: Latency = {}
        if self.word_ends:
            latency.update(self._measure(test_set, transcripts, alignments, delays_file(recogs)))
        if step_ms:
            latency[COMPUTE] = Spread.of(step_ms)
        cuts = fingerprint_of(transcript.cut_id for transcript in transcripts)
        heard = os.path.relpath(recogs, self.results_json.parent)
        record = self._record(test_set, score, unit, heard, latency, cuts)
        record = replace(record, other_rates={rate: other.wer for rate, other in others.items()})
        add_record(self.results_json, record)
        return record

    def _measure(
        self, test_set: str, transcripts: Sequence[Transcript], alignments: Sequence[Alignment], path: Path
    ) -> Latency:
        """Delays against --alignments; those of each utterance are written to `path`."""
        ends = self.word_ends[test_set]
        delays = [
            measure_delays(t.cut_id, alignment, t.frames, ends[t.cut_id], self.chunk)
            for t, alignment in zip(transcripts, alignments, strict=True)
            if t.cut_id in ends
        ]
        write_delays(path, delays)
        latency = summarise(delays)
        for name, spread in latency.items():
            logging.info(f"{test_set}, {MEASURES[name].label}: {spread.shown()} ms, mean (50 / 90 / 99 %)")
        return latency

    def _record(
        self, test_set: str, score: scoring.Score, unit: str, recogs: str, latency: Latency, cuts: str
    ) -> Record:
        chunk, model, train = self.chunk, self.config.model, self.config.train
        return Record(
            system=self.decode.system or Path(self.decode.exp_dir).resolve().name,
            encoder=f"{model.encoder} {model.preset}",
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            method=self.config.distill.method,
            seed=train.seed,
            checkpoint=self._checkpoint,
            test_set=test_set,
            mode=self.mode,
            chunk_ms=chunk.chunk_ms if chunk else None,
            left_ms=chunk.left_ms if chunk else None,
            right_ms=chunk.right_ms if chunk else 0,
            latency_ms=algorithmic_latency_ms(chunk) if chunk else None,
            search=self.search.name,
            errors=score.errors,
            words=score.words,
            insertions=score.insertions,
            deletions=score.deletions,
            substitutions=score.substitutions,
            wer=score.wer,
            interval=scoring.bootstrap_wer(score),
            speech_hours=self.trained.speech_seconds / 3600,
            compute_hours=self.trained.compute_seconds / 3600,
            recogs=recogs,
            command=typed_command(),
            latency=latency,
            utterance_errors=tuple(score.utterance_errors.tolist()),
            utterance_words=tuple(score.utterance_words.tolist()),
            unit=unit,
            normalisation=self.data.tokenizer.normalisation,
            cuts=cuts,
            inputs=self._inputs,
            begins_with=": ".join(filter(None, (train.init_checkpoint, ",".join(train.init_modules)))),
        )

    def _file(self, kind: str, test_set: str, ending: str = "txt") -> Path:
        if self.chunkwise:
            separator = "_" if kind == "wer-summary" else "-"
            return self.folder / f"{kind}{separator}{test_set}_{self._key()}_{self._suffix()}.{ending}"
        return self.folder / f"{kind}-{test_set}-{self._suffix()}.{ending}"

    def _key(self) -> str:
        """The search, as icefall's streaming_decode.py (chunkwise) and decode.py call it."""
        return self.search.streaming_name if self.chunkwise else self.search.name

    def _suffix(self) -> str:
        """What distinguishes this run's files from those of others, as icefall's two scripts spell it."""
        suffix = self.trained.name
        if self.config.model.causal:
            chunk, left = (self.chunk.chunk, self.chunk.left) if self.chunk else (-1, -1)
            suffix += f"_chunk-{chunk}_left-context-{left}"
        if self.chunk and self.chunk.right:
            suffix += f"_right-context-{self.chunk.right}"
        if not self.chunkwise:
            suffix += self.search.file_suffix(self.config.model.context_size)
        averaged = f"{'-' if self.chunkwise else '_'}use-averaged-model"
        suffix += averaged if self.decode.use_averaged_model else ""
        return suffix + (f"_score-by-{self.decode.score_by}" if self.decode.score_by != "auto" else "")


def _log_to(prefix: Path) -> None:
    """Logs to `prefix`-<date> and to stderr, in icefall's format."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(f"{prefix}-{datetime.now():%Y-%m-%d-%H-%M-%S}")
    logging.basicConfig(
        level=logging.INFO,
        format=LOG_FORMAT,
        handlers=[file, logging.StreamHandler()],
        force=True,
    )
