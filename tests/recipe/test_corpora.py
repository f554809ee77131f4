"""Four corpora in their true layouts, from prepare.sh to a decoded test set."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from lhotse import CutSet
from lhotse.cut.data import DataCut

from kdstream.commands import decode, train
from kdstream.config.sections import DataConfig
from kdstream.data.cuts import iterate, text_of
from kdstream.evaluation.records import RESULTS_JSON, load_records
from support import corpora
from support.paths import ROOT
from support.training import experiment, typed


class Corpus(NamedTuple):
    """make: writes the tree.  flags: of prepare.sh, with {tree}.  cuts: by part.  rate: WER or CER."""

    make: Callable[[Path], Path]
    flags: str
    cuts: dict[str, int]
    rate: str = "WER"
    script: str = "librispeech"


CORPORA = {
    "aishell": Corpus(corpora.make_aishell, "", {"train": 8, "dev": 4, "test": 4}, "CER", "aishell"),
    "tedlium": Corpus(corpora.make_tedlium, "--lhotse-recipe tedlium", {"train": 8, "dev": 4, "test": 4}),
    "commonvoice": Corpus(
        corpora.make_commonvoice, "--lhotse-recipe commonvoice --text-case upper", {"train": 8, "dev": 4, "test": 4}
    ),
    "switchboard": Corpus(
        corpora.make_switchboard,
        "--lhotse-recipe switchboard --recipe-args transcripts_dir={tree}/swb_ms98_transcriptions",
        {"all": 12, "dev": 6, "test": 6},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_goes_from_its_tree_to_a_decoded_result(tmp_path: Path, name: str):
    corpus, data, exp = CORPORA[name], tmp_path / "data", tmp_path / "exp"
    tree = corpus.make(tmp_path / "tree")
    command = ["bash", str(ROOT / "egs" / corpus.script / "prepare.sh"), "--corpus-dir", str(tree)]
    command += [*corpus.flags.format(tree=tmp_path / "tree").split(), "--data-dir", str(data), "--vocab-size"]
    command += ["12" if corpus.rate == "CER" else "20", "--perturb-speed", "false"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.split()[:2] == ["cuts", "hours"])
    rows = [line.split() for line in lines[begin + 1 : begin + 4]]
    assert {row[-1]: int(row[0]) for row in rows} == {
        f"{name}_cuts_{part}.jsonl.gz": count for part, count in corpus.cuts.items()
    }
    check_cuts(name, data / "fbank")

    (flags,) = [shlex.split(line)[1:] for line in lines if line.startswith("train.py: ")]
    tiny = experiment(exp, DataConfig(num_workers=0), num_epochs=1)
    train.main([*typed(tiny), *flags, "--exp-dir", str(exp)])
    decode.main(["--exp-dir", str(exp), "--epoch", "1", "--avg", "1", "--use-averaged-model", "0"])
    logging.shutdown()
    (record,) = load_records(exp / RESULTS_JSON)
    assert (record.test_set, record.rate) == (f"{name}-test", corpus.rate)
    cuts = CutSet.from_file(data / "fbank" / f"{name}_cuts_test.jsonl.gz")
    texts = [text_of(cut) for cut in iterate(cuts)]
    assert record.words == sum(
        len("".join(text.split())) if corpus.rate == "CER" else len(text.split()) for text in texts
    )


def check_cuts(name: str, fbank: Path) -> None:
    """What is particular to each corpus."""
    parts = [list(iterate(CutSet.from_file(path))) for path in sorted(fbank.glob("*_cuts_*"))]
    cuts = [cut for part in parts for cut in part if isinstance(cut, DataCut)]
    assert len(cuts) == sum(map(len, parts))
    assert all(cut.sampling_rate == 16000 and cut.has_features for cut in cuts)
    whole = {cut.recording_id: cut.recording for cut in cuts if cut.recording}
    if name == "tedlium":  # of talks of some segments each
        assert all(cut.duration < whole[cut.recording_id].duration / 2 for cut in cuts)
        assert any(cut.start > 2 for cut in cuts)
    if name == "switchboard":
        assert {str(cut.channel) for cut in cuts} == {"0", "1"}
        assert all(its.num_channels == 2 for its in whole.values())
        of_part = [{cut.recording_id for cut in part if isinstance(cut, DataCut)} for part in parts]
        assert sum(map(len, of_part)) == len(whole) == 4
