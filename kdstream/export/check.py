"""The proof that an exported model gives the same tokens in every runtime as in torch.

All runtimes get the same samples: an utterance and, in a stream, the silence that a client sends after it
(`ChunkConfig.tail`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from lhotse.cut import Cut
from torch import Tensor

from kdstream.audio.find import find_audio
from kdstream.config.experiment import TOKENS_FILE
from kdstream.data.cuts import MANIFEST_SUFFIXES, DistinctIds, read_manifest, text_of
from kdstream.data.reading import read_audio
from kdstream.data.shar import find_shards
from kdstream.data.tokenizer import Tokenizer, UnknownLetters
from kdstream.decoding.audio import read_audio_file
from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.ctc import CtcGreedySearch
from kdstream.decoding.greedy import GreedySearch
from kdstream.errors import UserError, option, printable
from kdstream.evaluation import scoring
from kdstream.export.language_model import LM_FILE
from kdstream.export.onnx import OnnxFiles
from kdstream.export.runtimes import (
    OnnxCtc,
    OnnxRecognizer,
    Runtime,
    SherpaCtc,
    SherpaOffline,
    SherpaOfflineCtc,
    SherpaRecognizer,
    torch_runtime,
)
from kdstream.lm.bigram import FST_FILE
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from kdstream.units import FRAMES_PER_SECOND, SAMPLE_RATE
from kdstream.words import BYTE_PIECE, RATES, WORD_START, as_text, spell, split_words, unit_of

MOST_DIFFERENT = 0.5  # per cent of words: in a beam, rounding decides between paths that are as good


class Speech(NamedTuple):
    """An utterance to check with: what reads its samples (S,) at 16 kHz, and its transcript, "" where there is none."""

    read: Callable[[], Tensor]
    text: str = ""


class RuntimeResult(NamedTuple):
    """Pieces, the seconds that the runtime took, and the place of the first piece that is not as expected."""

    pieces: list[str]
    seconds: float
    difference: int | None


def read_speech(paths: Sequence[str], fewest: int = 0) -> dict[str, Speech]:
    """Audio files, those in directories, and the cuts of manifests, by path and cut.

    Args:
      fewest: feature frames (10 ms) that an utterance needs.
    Raises:
      UserError: one is missing, damaged or too short: each is read once, and not kept.
    """
    speech: dict[str, Speech] = {}
    for path in paths:
        is_shar = Path(path).is_dir() and bool(find_shards(Path(path)))
        if is_shar or path.endswith(MANIFEST_SUFFIXES):
            if not is_shar and not Path(path).is_file():
                fix = "give audio, a directory of it, or a manifest of cuts"
                raise UserError("no such file", flag=option("check", path), fix=fix)
            manifest = cast(Iterable[Cut], read_manifest(Path(path)))  # lhotse does not say that a CutSet is iterable
            cuts, ids = {}, DistinctIds(path)
            for cut in manifest:
                ids.add(cut.id)
                cuts[f"{path} {cut.id}"] = Speech(partial(read_audio, cut), text_of(cut))
            if not cuts:
                raise UserError(
                    "no cuts in it", flag=option("check", path), fix="give another manifest, or audio files"
                )
            speech.update(cuts)
        else:
            speech.update((printable(str(file)), Speech(partial(read_audio_file, file))) for file in find_audio([path]))
    for name, utterance in speech.items():
        frames = round(len(utterance.read()) * FRAMES_PER_SECOND / SAMPLE_RATE)
        if frames < fewest:
            problem = f"{name}: only {frames} frames (10 ms each), and an utterance needs {fewest}"
            raise UserError(problem, flag=option("check"), fix="leave it out")
    return speech


def compare_runtimes(
    runtimes: dict[str, Runtime],
    speech: dict[str, Speech],
    chunk: ChunkConfig | None,
    normalise: Callable[[str], str] = str,
) -> dict[str, int]:
    """Prints each runtime's tokens of each utterance, and its compute time per second of speech (real-time factor).

    At the end it prints a line for each runtime, with the word error rate of the utterances that have a transcript, and
    how much higher or lower that is than the first runtime's.

    Args:
      runtimes: the others are compared with the first one.
      speech: by name.
      normalise: the tokenizer's, for transcripts and what is heard.
    Returns:
      For each runtime, the number of utterances in which it differs from the first one.
    """
    width = max(map(len, runtimes))
    differing, busy = dict.fromkeys(runtimes, 0), dict.fromkeys(runtimes, 0.0)
    transcripts: dict[str, list[scoring.Transcript]] = {runtime: [] for runtime in runtimes}
    for runtime in runtimes.values():
        runtime(torch.zeros(SAMPLE_RATE))  # the first call of all is slower
    seconds = 0.0
    for name, (read, text) in speech.items():
        samples = read()
        seconds += len(samples) / SAMPLE_RATE
        print(f"{name}: {len(samples) / SAMPLE_RATE:.2f} s")
        for runtime, result in run_all(runtimes, with_tail(samples, chunk)).items():
            factor = result.seconds * SAMPLE_RATE / len(samples)
            print(f"  {runtime:{width}}  RTF {factor:.3f}  {' '.join(result.pieces)}")
            busy[runtime] += result.seconds
            if text:
                said, heard = (split_words(normalise(some)) for some in (text, as_text(spell(result.pieces))))
                transcripts[runtime].append(scoring.Transcript(name, said, heard))
            if result.difference is not None:
                differing[runtime] += 1
                print(f"  {'':{width}}  differs from its token {result.difference + 1} on")
    rates = word_error_rates(transcripts)
    for runtime in runtimes:
        same = len(speech) - differing[runtime]
        line = f"{runtime:{width}}  RTF {busy[runtime] / seconds:.3f}  the same tokens in {same} of {len(speech)}"
        print(f"{line}  {rates[runtime]}".rstrip())
    return differing


def meant(piece: str) -> bytes:
    """What a piece stands for: runtimes print one byte in several ways."""
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(WORD_START, " ").encode()


def word_error_rates(transcripts: dict[str, list[scoring.Transcript]]) -> dict[str, str]:
    """For each runtime "WER 3.06 % (+0.7 % of torch's)", the first one without brackets; "" without transcripts."""
    if not any(transcripts.values()):
        return dict.fromkeys(transcripts, "")
    wers = {runtime: scoring.score(scoring.align(of_runtime)).wer for runtime, of_runtime in transcripts.items()}
    first, expected = next(iter(wers.items()))
    rate = RATES[unit_of(word for transcript in transcripts[first] for word in transcript.ref)]
    shown = {runtime: f"{rate} {wer:.2f} %" for runtime, wer in wers.items()}
    for runtime, wer in wers.items():
        if runtime != first and expected:
            shown[runtime] += f" ({100 * (wer / expected - 1):+.1f} % of {first}'s)"
    return shown


def with_tail(samples: Tensor, chunk: ChunkConfig | None) -> Tensor:
    """The samples and the silence that a client sends after them; in full context it sends none."""
    return samples if chunk is None else F.pad(samples, (0, chunk.tail * SAMPLE_RATE // FRAMES_PER_SECOND))


def run_all(runtimes: dict[str, Runtime], samples: Tensor) -> dict[str, RuntimeResult]:
    """The answer of each runtime, and where it first differs from that of the first runtime."""
    results: dict[str, RuntimeResult] = {}
    expected: list[str] | None = None
    for name, runtime in runtimes.items():
        start = time.perf_counter()
        pieces = runtime(samples)
        seconds = time.perf_counter() - start
        expected = pieces if expected is None else expected
        pairs = enumerate(zip_longest(map(meant, expected), map(meant, pieces)))
        results[name] = RuntimeResult(pieces, seconds, next((place for place, (a, b) in pairs if a != b), None))
    return results


def check_exported(
    model: Transducer,
    chunk: ChunkConfig | None,
    files: OnnxFiles,
    int8: OnnxFiles,
    tokenizer: Tokenizer,
    speech: dict[str, Speech],
    ctc: tuple[Path, Path] | None = None,
    blank_penalty: float = 0.0,
) -> None:
    """Compares all runtimes on `speech`.  Raises UserError where one in float32 differs from torch.

    chunk: None for full context.
    ctc: the exported CTC head in float32 and in int8, if there is one.
    blank_penalty: of the transducer's search.
    """
    torch.set_num_threads(1)
    unknown = UnknownLetters(tokenizer)
    for _, text in speech.values():
        unknown.add(text)
    unknown.warn("--check")
    sherpa, sherpa_ctc = (SherpaOffline, SherpaOfflineCtc) if chunk is None else (SherpaRecognizer, SherpaCtc)
    tokens, pieces = files.encoder.with_name(TOKENS_FILE), tokenizer.tokens
    runtimes: dict[str, Runtime] = {
        "torch": torch_runtime(model, chunk, pieces, GreedySearch(blank_penalty=blank_penalty)),
        "onnxruntime": OnnxRecognizer(files, pieces, blank_penalty),
        "sherpa-onnx": sherpa(files, tokens, blank_penalty=blank_penalty),
        "sherpa-onnx int8": sherpa(int8, tokens, blank_penalty=blank_penalty),
    }
    compare_exact(runtimes, chunk, tokenizer, speech)
    if ctc is None:
        return
    print("\nCTC head:")
    heads: dict[str, Runtime] = {
        "torch": torch_runtime(model, chunk, pieces, CtcGreedySearch()),
        "onnxruntime": OnnxCtc(ctc[0], pieces),
        "sherpa-onnx": sherpa_ctc(ctc[0], tokens),
        "sherpa-onnx int8": sherpa_ctc(ctc[1], tokens),
    }
    compare_exact(heads, chunk, tokenizer, speech)


def compare_exact(
    runtimes: dict[str, Runtime], chunk: ChunkConfig | None, tokenizer: Tokenizer, speech: dict[str, Speech]
) -> None:
    """`compare_runtimes`.  Raises UserError where one but the last, which is int8, differs from the first."""
    differing = compare_runtimes(runtimes, speech, chunk, tokenizer.normalise)
    wrong = [name for name in list(runtimes)[:-1] if differing[name]]
    if wrong:
        raise UserError(f"{' and '.join(wrong)}: not the tokens of torch", fix="do not deploy what was exported")


def check_fused(
    model: Transducer,
    chunk: ChunkConfig,
    files: OnnxFiles,
    search: ModifiedBeamSearch,
    tokenizer: Tokenizer,
    speech: dict[str, Speech],
) -> None:
    """Compares torch with sherpa-onnx where both ask the language model that `export_lm` wrote beside `files`.

    Args:
      search: fitted to the tokens.
    Raises:
      UserError: more than MOST_DIFFERENT per cent of torch's words are others in sherpa-onnx.
    """
    folder = files.encoder.parent
    settings: dict[str, Any] = {"lm": str(folder / LM_FILE), "lm_scale": search.lm_scale_decode}
    if search.lodr_scale:
        settings.update(lodr_fst=str(folder / FST_FILE), lodr_scale=search.lodr_scale)
    settings.update(
        decoding_method=search.method, max_active_paths=search.beam_size, blank_penalty=search.blank_penalty
    )
    heard: dict[str, list[list[str]]] = {}

    def listening(name: str, runtime: Runtime) -> Runtime:
        def transcribe(samples: Tensor) -> list[str]:
            pieces = runtime(samples)
            heard.setdefault(name, []).append(split_words(tokenizer.normalise(as_text(spell(pieces)))))
            return pieces

        return transcribe

    runtimes = {
        "torch, LM": torch_runtime(model, chunk, tokenizer.tokens, search),
        "sherpa-onnx, LM": SherpaRecognizer(files, folder / TOKENS_FILE, **settings),
    }
    compare_runtimes(
        {name: listening(name, runtime) for name, runtime in runtimes.items()}, speech, chunk, tokenizer.normalise
    )
    if not any(heard["torch, LM"]):
        print("torch hears no word, so there is none to compare")
        return
    pairs = zip(*heard.values(), strict=True)
    score = scoring.score(scoring.align([scoring.Transcript(str(n), *pair) for n, pair in enumerate(pairs)]))
    print(f"words of sherpa-onnx that are not torch's: {score.errors} of {score.words}")
    if score.wer > MOST_DIFFERENT:
        raise UserError("sherpa-onnx: other words than torch with a language model", fix=f"do not deploy {LM_FILE}")
