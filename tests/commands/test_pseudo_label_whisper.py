"""local/pseudo_label.py --labeller faster-whisper, on a stand-in for the package and its model."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from lhotse import CutSet, MonoCut

from kdstream.checkpoints.store import load_checkpoint
from kdstream.commands import main
from kdstream.config.sections import DataConfig
from kdstream.corpus.label_journal import Heard, Journal
from kdstream.training.process import train_experiment
from support.decoding import run_script
from support.tokenizers import ICEFALLS
from support.training import experiment
from support.whisper import Said, StandIn, sound, write_cuts, write_model

SENTENCES = {1: "One fine day.", 2: "It rained, again!", 3: "Don\u2019t go there", 4: "We waited.", 5: "Nobody came"}
PLANTED = {level: Said(text) for level, text in SENTENCES.items()}
SPELT = {1: "ONE FINE DAY", 2: "IT RAINED AGAIN", 3: "DON'T GO THERE", 4: "WE WAITED", 5: "NOBODY CAME"}


@pytest.fixture(autouse=True)
def all_log_lines(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def bpe_model(tmp_path_factory) -> Path:
    """A token for each upper-case letter and the apostrophe."""
    folder = tmp_path_factory.mktemp("tokens")
    text = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG AND DOESN'T STOP"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 3), model_prefix=str(folder / "bpe"), vocab_size=60, hard_vocab_limit=False,
        model_type="char", minloglevel=3, **ICEFALLS,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    (folder / "tokens.txt").write_text("".join(f"{model.id_to_piece(i)} {i}\n" for i in range(len(model))))
    return folder / "bpe.model"


@pytest.fixture
def flags(tmp_path, bpe_model) -> list[Any]:
    """All that the command needs but --cuts."""
    model = write_model(tmp_path / "whisper")
    output = tmp_path / "pseudo.jsonl.gz"
    needed = ["--labeller", "faster-whisper", "--model", model, "--bpe-model", bpe_model, "--output", output]
    return [*needed, "--device", "cpu"]


def label(monkeypatch, flags: list[Any], cuts: Path, *more: Any) -> dict[str, MonoCut]:
    """Runs the script, which succeeds; the cuts that it wrote, by id."""
    assert run_script(monkeypatch, "local/pseudo_label.py", *flags, "--cuts", cuts, *more) == ""
    return {cut.id: cut for cut in CutSet.from_file(flags[flags.index("--output") + 1])}


def texts_of(cuts: dict[str, MonoCut]) -> dict[str, str]:
    return {name: cut.supervisions[0].text for name, cut in sorted(cuts.items())}


def account_of(flags: list[Any]) -> dict[str, Any]:
    return json.loads(Path(flags[flags.index("--output") + 1]).with_name("pseudo.dropped.json").read_text())


def test_short_cuts_stay_whole_and_get_their_text_in_the_students_letters(tmp_path, monkeypatch, flags, caplog):
    whisper = StandIn(PLANTED).install(monkeypatch)
    texts = {"a": "ONE FINE DAY", "b": "IT RAINS AGAIN"}
    given = write_cuts(tmp_path, {"a": sound((1, 1.5)), "b": sound((2, 2.0)), "c": sound((3, 1.2))}, texts)
    cuts = label(monkeypatch, flags, given, "--batch-size", 2)
    assert texts_of(cuts) == {"a": SPELT[1], "b": SPELT[2], "c": SPELT[3]}
    assert whisper.heard == [[1, 2], [3]]
    for cut in CutSet.from_file(given):
        ours = cuts[cut.id]
        assert (ours.recording, ours.start, ours.duration) == (cut.recording, cut.start, cut.duration)
        assert ours.supervisions[0].custom["confidence"] == pytest.approx(0.904837, rel=1e-5)  # exp(-0.1)
        assert ours.supervisions[0].duration == cut.duration
    assert cuts["a"].supervisions[0].speaker == "bob"
    printed = caplog.text
    assert "3 of 3 cuts kept (0.00 of 0.00 h)" in printed and "[all] %WER 16.67% [1 / 6," in printed
    assert whisper.options["temperature"] == 0.0 and whisper.options["suppress_tokens"] == [-1, 1, 2]
    label(monkeypatch, [*flags, "--spell-numbers", 0, "--output", tmp_path / "pseudo2.jsonl"], given)
    assert whisper.options["suppress_tokens"] == [-1]


def test_a_long_recording_is_cut_in_its_silences(tmp_path, monkeypatch, flags, caplog):
    whisper = StandIn({**PLANTED, 5: Said("")}).install(monkeypatch)
    parts = [(0, 3.0), (1, 2.5), (0, 0.3), (1, 0.7), (0, 1.0), (2, 8.0), (0, 4.0), (3, 2.0), (0, 2.0)]
    text = "ONE FINE DAY IT RAINED AGAIN IT RAINED DON'T GO THERE"
    given = write_cuts(tmp_path, {"talk": sound(*parts), "hum": sound((0, 9.0))}, {"talk": text})
    cuts = label(monkeypatch, flags, given, "--max-segment-seconds", 5)
    places = {(1, 3.0, 6.5), (2, 7.5, 12.5), (2, 12.5, 15.5), (3, 19.5, 21.5)}
    names = {f"talk-{round(100 * start):07d}-{round(100 * end):07d}": SPELT[level] for level, start, end in places}
    assert texts_of(cuts) == dict(sorted(names.items()))
    assert whisper.heard == [[1, 2, 2, 3]]
    for level, start, end in places:
        cut = cuts[f"talk-{round(100 * start):07d}-{round(100 * end):07d}"]
        assert (cut.recording_id, cut.start, cut.duration) == ("talk", start, pytest.approx(end - start, abs=1e-9))
        assert cut.supervisions[0].id == cut.id and cut.supervisions[0].speaker == "bob"
        assert float(cut.load_audio().max()) == pytest.approx(level / 10)
    printed = caplog.text
    assert "[kept] %WER 9.09% [1 / 11, 1 ins, 0 del, 0 sub ]" in printed
    account = account_of(flags)
    assert account["silent_hours"] == pytest.approx((23.5 - 13.5) / 3600)
    assert account["dropped"][0] == {"rule": "no text", "setting": "", "cuts": 1, "hours": 9 / 3600}


HALLUCINATIONS = {  # by loudness: what is planted in 2 s of sound, the rule that drops it, the flag that keeps it
    1: (Said("..."), "no text", None),
    2: (Said("It costs 7"), "letters that no token spells", None),
    3: (Said("One fine day", avg_logprob=-1.2), "confidence", ("--min-confidence", 0.3)),
    4: (Said("One fine day", compression_ratio=2.5), "compression ratio", ("--max-compression-ratio", 3)),
    5: (Said("One fine day", no_speech_prob=0.7), "probability of no speech", ("--max-no-speech", 0.8)),
    6: (Said("So it is so it is so it is so it is"), "repeated words", ("--max-repeats", 4)),
    7: (Said("You."), "few letters a second", ("--min-chars-per-second", 1)),
    8: (Said("One day" + " and another day and one more" * 2), "many letters a second", ("--max-chars-per-second", 30)),
}  # fmt: skip


def test_each_rule_drops_its_hallucination_and_nothing_else(tmp_path, monkeypatch, flags, caplog):
    planted = {level: said for level, (said, _, _) in HALLUCINATIONS.items()}
    whisper = StandIn({**planted, 9: Said("So it is, so it is, so it is")}).install(monkeypatch)
    given = write_cuts(tmp_path, {f"level-{level}": sound((level, 2.0)) for level in range(1, 10)})
    assert set(label(monkeypatch, flags, given)) == {"level-9"}
    account = account_of(flags)
    assert {item["id"]: item["rule"] for item in account["dropped_cuts"]} == {
        f"level-{level}": rule for level, (_, rule, _) in HALLUCINATIONS.items()
    }
    assert [item["cuts"] for item in account["dropped"]] == [1] * 8 and account["kept"]["cuts"] == 1
    assert account["unknown_letters"] == {"7": 1}
    table = caplog.text
    for _, rule, loosened in HALLUCINATIONS.values():
        assert f"| {rule} | " in table
        assert loosened is None or f"{loosened[0]} " in table
    loosened = [word for _, _, flag in HALLUCINATIONS.values() if flag for word in flag]
    assert set(label(monkeypatch, flags, given, *loosened)) == {f"level-{level}" for level in range(3, 10)}
    assert len(whisper.heard) == 2  # batches of 8: other rules need no second hearing


def test_rules_that_drop_all_are_named_and_nothing_is_written(tmp_path, monkeypatch, flags):
    StandIn({1: Said("You.")}).install(monkeypatch)
    given = write_cuts(tmp_path, {"a": sound((1, 4.0))})
    error = run_script(monkeypatch, "local/pseudo_label.py", *flags, "--cuts", given)
    assert error.startswith("error: the rules drop every cut; see ") and "pseudo.dropped.json" in error
    assert not (tmp_path / "pseudo.jsonl.gz").exists()


def in_a_child(function: Any) -> int:
    """The exit status of a process that calls it; negative: the signal that killed it."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("torn", [False, True], ids=["between batches", "while it writes"])
def test_a_killed_command_continues_and_gives_what_an_undisturbed_one_does(tmp_path, monkeypatch, flags, torn):
    whisper = StandIn(PLANTED).install(monkeypatch)
    talk = sound((1, 2.0), (0, 1.0), (2, 2.0), (0, 1.0), (3, 2.0), (0, 1.0), (4, 2.0))
    given = write_cuts(tmp_path, {"a": sound((5, 1.5)), "talk": talk, "b": sound((1, 1.5))})
    more = ["--batch-size", 2, "--max-segment-seconds", 4, "--cuts", given]
    argv = ["pseudo-label", *map(str, [*flags, *more])]
    journal = tmp_path / "pseudo.heard.jsonl"

    def killed() -> None:
        whisper.before = lambda batches: os.kill(os.getpid(), signal.SIGKILL) if batches == 2 else None
        main(argv)

    assert in_a_child(killed) == -signal.SIGKILL
    assert len(journal.read_text().splitlines()) == 3  # the settings and two batches
    assert not (tmp_path / "pseudo.jsonl.gz").exists()
    if torn:
        journal.write_bytes(journal.read_bytes()[:-20])
    cuts = label(monkeypatch, flags, *more[-1:], *more[:-2])
    assert whisper.heard == [[2, 3], [4, 1]][not torn :]
    written = (tmp_path / "pseudo.jsonl.gz").read_bytes()
    resumed = journal.read_bytes()
    journal.unlink()
    assert label(monkeypatch, flags, given, *more[:-2]) == cuts
    assert (tmp_path / "pseudo.jsonl.gz").read_bytes()[10:] == written[10:]  # gzip notes the time
    assert journal.read_bytes() == resumed


def test_what_was_heard_with_other_settings_is_refused(tmp_path, monkeypatch, flags):
    StandIn(PLANTED).install(monkeypatch)
    given = write_cuts(tmp_path, {"a": sound((1, 1.5))})
    label(monkeypatch, flags, given)
    heard = tmp_path / "pseudo.heard.jsonl"
    for more in (["--language", "de"], ["--batch-size", 4]):
        error = run_script(monkeypatch, "local/pseudo_label.py", *flags, "--cuts", given, *more)
        name = more[0][2:].replace("-", "_")
        assert error.startswith(f"error: {heard}: holds labels of other settings ({name}); delete it")
    heard.write_text("{}\n[[1]]\n")
    error = run_script(monkeypatch, "local/pseudo_label.py", *flags, "--cuts", given)
    assert error.startswith(f"error: {heard}: damaged; delete it")


def test_a_journal_has_one_writer(tmp_path):
    with Journal(tmp_path / "heard.jsonl", {}) as journal:
        journal.add([Heard("a", 0.0, 1.0, 1.0, True, "A")])
        with pytest.raises(Exception, match="another command writes it"):
            Journal(tmp_path / "heard.jsonl", {}).__enter__()


@pytest.mark.parametrize(
    "spoil, expected",
    [
        (["--model", ""], "--model: needed by --labeller faster-whisper; give a local directory"),
        (["--model", "base"], "--model base: no such directory; give a local directory"),
        (["--model", "empty"], "--model empty: holds no model.bin; give a local directory"),
        (["--model", "damaged"], "--model damaged: File model.bin is incomplete; see --compute-type"),
        (
            ["--model", "large-v3"],
            "--model large-v3: hears 128 mel bins, and its preprocessor_config.json does not say",
        ),
        (["--language", "xx"], "--language xx: not among those of "),
        (["--max-segment-seconds", 31], "--max-segment-seconds 31: Whisper hears 30 s at once"),
        (["--bpe-model", "none.model"], "none.model: no such file"),
        (["--spellings", "none.txt"], "--spellings none.txt: no such file"),
        (["--cuts", "features.jsonl"], "features.jsonl: cut a has no recording"),
        *(
            ([flag, value], f"{flag} {value}: is not read by --labeller faster-whisper; drop it")
            for flag, value in (
                ("--exp-dir", "none"),
                ("--epoch", 7),
                ("--chunk-size", 8),
                ("--hotwords-file", "none.txt"),
                ("--decoding-method", "modified_beam_search"),
                ("--max-duration", 30.0),
                ("--num-workers", 9),
            )
        ),
    ],
)
def test_bad_flags_are_named_in_one_line(tmp_path, monkeypatch, flags, spoil, expected):
    StandIn(PLANTED).install(monkeypatch)
    given = write_cuts(tmp_path, {"a": sound((1, 1.5))})
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("damaged", "large-v3"):
        (write_model(tmp_path / name) / "model.bin").write_text(name)
    CutSet.from_cuts(replace(cut, recording=None) for cut in CutSet.from_file(given)).to_file("features.jsonl")
    error = run_script(monkeypatch, "local/pseudo_label.py", *flags, "--cuts", given, *spoil)
    assert error.startswith(f"error: {expected}") and "\n" not in error


def test_without_the_package_its_extra_is_named(tmp_path, monkeypatch, flags):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    given = write_cuts(tmp_path, {"a": sound((1, 1.5))})
    error = run_script(monkeypatch, "local/pseudo_label.py", *flags, "--cuts", given)
    assert error.startswith("error: --labeller faster-whisper: needs faster_whisper, which is not installed")
    assert "pip install 'kdstream[label]'" in error


@pytest.mark.slow
def test_a_student_trains_on_what_whisper_labelled(tmp_path, monkeypatch, flags, bpe_model):
    StandIn(PLANTED).install(monkeypatch)
    talk = sound((1, 2.0), (0, 1.0), (2, 2.0), (0, 1.0), (3, 2.0))
    pseudo = label(monkeypatch, flags, write_cuts(tmp_path, {"talk": talk}), "--max-segment-seconds", 4)
    (tmp_path / "own").mkdir()
    own = {f"own-{level}": sound((level, 1.5)) for level in (1, 2, 4)}
    labelled = write_cuts(tmp_path / "own", own, {f"own-{level}": SPELT[level] for level in (1, 2, 4)})
    data = DataConfig(
        bpe_model=str(bpe_model), train_cuts=(str(labelled),), valid_cuts=(str(labelled),), num_workers=0,
        pseudo_cuts=(str(tmp_path / "pseudo.jsonl.gz"),), pseudo_ratio=0.5, on_the_fly_feats=True, max_duration=5.0,
        num_buckets=2, enable_spec_aug=False,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_experiment(experiment(tmp_path / "student", data, num_epochs=1))
    torch.set_num_threads(threads)
    saved = load_checkpoint(tmp_path / "student" / "epoch-1.pt")
    assert saved["speech_seconds_trained"] == pytest.approx(4.5 + sum(cut.duration for cut in pseudo.values()))
