"""Made-up transcripts and result records that several tests share."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdstream.evaluation import scoring
from kdstream.evaluation.latency import COMPUTE, SHOWN, Spread
from kdstream.evaluation.records import Record, add_record
from kdstream.evaluation.scoring import Transcript

LATENCY = {SHOWN: Spread(200, 151.25, 175.0, 255.0, 375.5), COMPUTE: Spread(50, 8.46, 8.5, 9.0, 36.04)}


def random_transcripts(count: int, seed: int = 0, vocabulary: str = "ABCDEFG", noise: float = 0.3) -> list[Transcript]:
    rng = random.Random(seed)
    transcripts = []
    for n in range(count):
        ref = rng.choices(vocabulary, k=rng.randint(1, 12))
        hyp = [word if rng.random() > noise else rng.choice(vocabulary) for word in ref if rng.random() > noise / 4]
        transcripts.append(Transcript(f"utt-{n:03d}", ref, hyp + rng.choices(vocabulary, k=rng.randint(0, 1))))
    return transcripts


def make_record(**changes: Any) -> Record:
    record = Record(
        system="baseline",
        encoder="zipformer tiny",
        parameters=2_345_678,
        method="none",
        seed=42,
        checkpoint="epoch-30_avg-9",
        test_set="test-clean",
        mode="simulated",
        chunk_ms=160,
        left_ms=640,
        latency_ms=255,
        search="greedy_search",
        errors=30,
        words=240,
        insertions=5,
        deletions=5,
        substitutions=20,
        wer=12.5,
        interval=(11.0, 14.25),
        speech_hours=100.0,
        compute_hours=2.5,
        recogs="greedy_search/recogs.txt",
        command="decode.py --exp-dir exp/baseline",
    )
    return replace(record, **changes)


def scored(score: scoring.Score, **changes: Any) -> Record:
    counts = ("insertions", "deletions", "substitutions", "errors", "words", "wer")
    per_utterance = {name: tuple(getattr(score, name).tolist()) for name in ("utterance_errors", "utterance_words")}
    same = {name: getattr(score, name) for name in counts}
    return make_record(interval=scoring.bootstrap_wer(score), **same, **per_utterance, **changes)


def trained(system: str, seed: int, noise: float, **changes: Any) -> Record:
    """A training of a system: the same 40 utterances for all, of which each seed gets other words wrong."""
    rng = random.Random(f"{system} {seed}")
    spoilt = [t._replace(hyp=[word if rng.random() > noise else "X" for word in t.ref]) for t in random_transcripts(40)]
    return scored(scoring.score(scoring.align(spoilt)), system=system, seed=seed, **changes)


def write_runs(root: Path) -> None:
    """Two experiments: 'distilled' is 'baseline' with every error of every third utterance mended."""
    for test_set in ("test-clean", "test-other"):
        before = random_transcripts(60, seed=len(test_set))
        after = [t._replace(hyp=t.ref) if n % 3 == 0 else t for n, t in enumerate(before)]
        for system, transcripts in (("baseline", before), ("distilled", after)):
            folder = root / system
            folder.mkdir(exist_ok=True)
            recogs = folder / f"recogs-{test_set}.txt"
            scoring.write_recogs(recogs, transcripts)
            score = scoring.score(scoring.align(transcripts))
            for mode in ("simulated", "chunkwise"):
                record = scored(score, system=system, test_set=test_set, mode=mode, recogs=recogs.name)
                add_record(folder / "results.json", record)
