"""data/cuts.py: manifests, and pseudo-labelled cuts beside labelled ones, as the batches of data.py show them."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, NumpyFilesWriter, Recording, RecordingSet, SupervisionSegment

from kdstream.config.sections import DataConfig
from kdstream.data.batch import Batch
from kdstream.data.checks import check_data, check_readable
from kdstream.data.cuts import read_manifest, text_of, write_cuts
from kdstream.data.mixture import CutsBeside
from kdstream.data.module import AsrDataModule
from kdstream.data.reading import read_audio
from kdstream.errors import UserError
from support.training import make_corpus, make_cut

LABELLED, PSEUDO = 30, 25


def write(cuts: Iterable[MonoCut], path: Path) -> str:
    CutSet.from_cuts(cuts).to_file(path)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """30 labelled utterances, and 25 pseudo-labelled ones named pseudo-*."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "more").mkdir()
    more = CutSet.from_file(make_corpus(folder / "more", PSEUDO, noise=1.0).train_cuts[0])
    pseudo = write((cut.with_id(f"pseudo-{cut.id}") for cut in more), folder / "pseudo.jsonl.gz")
    return replace(make_corpus(folder, LABELLED), pseudo_cuts=(pseudo,), enable_spec_aug=True)


def batches_of(data: DataConfig, epoch: int = 1, **arguments) -> list[Batch]:
    return list(AsrDataModule(data, seed=3).train_dataloader(epoch, **arguments))


def ids_of(batches: Iterable[Batch]) -> list[str]:
    return [cut_id for batch in batches for cut_id in batch.cut_ids]


def pseudo_ids(data: DataConfig, epoch: int = 1) -> list[str]:
    return [cut_id for cut_id in ids_of(batches_of(data, epoch)) if cut_id.startswith("pseudo-")]


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [(b.cut_ids, b.texts) for b in ours] == [(b.cut_ids, b.texts) for b in theirs]
    assert all(torch.equal(a.features, b.features) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_an_epoch_has_every_labelled_cut_once_and_the_share_of_pseudo_labelled_ones(data, ratio):
    for epoch in (1, 2, 3):
        ids = ids_of(batches_of(replace(data, pseudo_ratio=ratio), epoch))
        labelled = [cut_id for cut_id in ids if not cut_id.startswith("pseudo-")]
        assert sorted(labelled) == [f"utterance-{n:02d}" for n in range(LABELLED)]
        assert len(ids) - len(labelled) == pytest.approx(ratio * len(ids), abs=0.5)
        assert len(set(ids)) == len(ids)


def test_epochs_take_different_cuts_and_in_the_end_all_equally_often(data):
    data = replace(data, pseudo_ratio=0.25)  # 10 of 25 in an epoch
    taken = [pseudo_ids(data, epoch) for epoch in range(1, 6)]
    assert not set(taken[0]) & set(taken[1])
    everything = sorted(cut_id for epoch in taken for cut_id in epoch)
    assert everything == sorted(2 * [f"pseudo-utterance-{n:02d}" for n in range(PSEUDO)])
    assert sorted(taken[0]) != sorted(pseudo_ids(replace(data, pseudo_ratio=0.1), 1))


@pytest.mark.parametrize("num_cuts, num_labelled, ratio", [(7, 30, 0.5), (1000, 30, 0.2), (25, 25, 0.5), (1, 3, 0.9)])
def test_uses_differ_by_one_at_most_after_any_epoch(num_cuts, num_labelled, ratio):
    pseudo = CutsBeside(CutSet([]), num_cuts, num_labelled, ratio, seed=0)
    total = np.zeros(num_cuts, dtype=int)
    for epoch in range(1, 12):
        uses = pseudo.uses(epoch)
        assert uses.sum() == pseudo.per_epoch
        total += uses
        assert total.max() - total.min() <= 1


def test_any_stretch_of_an_epoch_holds_the_share(data):
    """The sampler reads through a window: 800 of a stream of 4000 must look like the whole."""
    cut = CutSet.from_file(data.train_cuts[0])[0]
    labelled = CutSet([cut.with_id(f"l{n}") for n in range(3000)])
    pseudo = CutsBeside(CutSet([cut.with_id(f"p{n}") for n in range(500)]), 500, 3000, ratio=0.25, seed=0)
    stream = iter(pseudo.mixed_into(labelled, epoch=2))
    for _ in range(4):
        share = np.mean([cut.id.startswith("p") for cut in islice(stream, 800)])
        assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 800) ** 0.5)


def test_more_uses_than_cuts_repeat_them_under_other_masks(data):
    batches = batches_of(replace(data, pseudo_ratio=0.7))
    features = {i: f[:n] for b in batches for i, f, n in zip(b.cut_ids, b.features, b.feature_lens, strict=True)}
    repeated = [cut_id for cut_id in features if cut_id.endswith("_repeat1")]
    assert len(repeated) == PSEUDO
    assert not any(torch.equal(features[cut_id], features[cut_id[: -len("_repeat1")]]) for cut_id in repeated)


@pytest.mark.slow
def test_a_resumed_epoch_goes_on_with_the_same_batches(data):
    for epoch in (1, 2):
        whole = batches_of(data, epoch)
        assert len(whole) > 6
        assert_same(whole[4:], batches_of(data, epoch, done=4))


def test_two_processes_see_the_batches_of_one_in_turn(data):
    one = batches_of(data)
    two = [batches_of(data, world_size=2, rank=rank) for rank in (0, 1)]
    whole = len(one) // 2
    assert whole > 2 and len(two[0]) == len(two[1])
    assert_same([b for pair in zip(two[0][:whole], two[1][:whole], strict=True) for b in pair], one[: 2 * whole])
    assert sorted(ids_of(two[0] + two[1])) == sorted(ids_of(one))


def test_worker_processes_do_not_change_batches(data):
    assert_same(batches_of(data), batches_of(replace(data, num_workers=2)))


@pytest.mark.parametrize("twin", ["within", "across manifests", "across labels"])
def test_two_training_cuts_with_one_id_are_refused(data, tmp_path, twin):
    """Augmentation is seeded by the id, and a teacher's cache finds by it."""
    labelled, pseudo = list(CutSet.from_file(data.train_cuts[0])), list(CutSet.from_file(data.pseudo_cuts[0]))
    named = {"within": labelled[1], "across manifests": pseudo[0], "across labels": labelled[2]}[twin].id
    train, more = [write(labelled, tmp_path / "a.jsonl.gz")], write(pseudo, tmp_path / "pseudo.jsonl.gz")
    if twin == "within":
        train = [write([*labelled, labelled[1].with_id(named)], tmp_path / "a.jsonl.gz")]
    elif twin == "across manifests":
        train.append(write([labelled[0].with_id(named)], tmp_path / "b.jsonl.gz"))
    else:
        more = write([*pseudo, pseudo[0].with_id(named)], tmp_path / "pseudo.jsonl.gz")
    message = error_of(lambda: batches_of(replace(data, train_cuts=tuple(train), pseudo_cuts=(more,))))
    at = train[0] if twin == "within" else f"--pseudo-cuts: {more}"
    assert message.startswith(f"{at}: training cuts: two cuts have the id {named}; rename one with cut.with_id()")


def test_pseudo_labelled_cuts_that_the_loss_cannot_take_are_left_out_with_one_line(data, tmp_path, caplog):
    writer = NumpyFilesWriter(tmp_path / "feats")
    cuts = [
        make_cut(name, np.zeros((frames, 80), dtype=np.float32), text, writer)
        for name, frames, text in (
            ("fits", 200, "A B C"),
            ("short", 99, "A"),
            ("long", 2001, "A"),
            ("crowded", 120, " ".join(30 * "AB")),
        )
    ]
    mixed = replace(data, pseudo_cuts=(write(cuts, tmp_path / "pseudo.jsonl.gz"),), pseudo_ratio=1 / 31)
    with caplog.at_level(logging.INFO):
        ids = ids_of(batches_of(mixed))
    assert sorted(ids) == ["fits", *(f"utterance-{n:02d}" for n in range(LABELLED))]
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("pseudo-labelled cuts: 1 kept")]
    assert len(lines) == 1
    assert all(name in lines[0] for name in ("(short)", "(long)", "(crowded)"))


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and ";" in message  # what; the fix
    return message


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused(data, ratio):
    assert f"--pseudo-ratio {ratio:g}" in error_of(lambda: batches_of(replace(data, pseudo_ratio=ratio)))


def test_a_missing_manifest_and_cuts_without_text_or_use_are_named(data, tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    mixed = replace(data, pseudo_cuts=(str(path),))
    assert f"{path}: no such manifest" in error_of(lambda: batches_of(mixed))
    cuts = list(CutSet.from_file(data.pseudo_cuts[0]))
    cuts[7].supervisions[0].text = " "
    write(cuts, path)
    assert f"{path}: cut pseudo-utterance-07 has no text" in error_of(lambda: batches_of(mixed))
    for cut in cuts:
        cut.supervisions = []
    write(cuts, path)
    assert f"{path}: cut pseudo-utterance-00 has no text" in error_of(lambda: batches_of(mixed))
    short = make_cut("short", np.zeros((99, 80), dtype=np.float32), "A", NumpyFilesWriter(tmp_path / "feats"))
    write([short], path)
    assert "no pseudo-labelled cut is left" in error_of(lambda: batches_of(mixed))


@pytest.mark.parametrize("name", ["a.b_cuts.jsonl.gz", "cuts.jsonl"])
def test_a_manifest_of_cuts_is_written_whole_or_not_at_all(tmp_path, monkeypatch, data, name):
    cuts = list(CutSet.from_file(data.train_cuts[0]))
    path = tmp_path / "new" / name
    write_cuts(cuts, path)
    assert list(CutSet.from_file(path)) == cuts
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")

    def fail(self: CutSet, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    before = path.read_bytes()
    monkeypatch.setattr(CutSet, "to_file", fail)
    with pytest.raises(OSError, match="no space"):
        write_cuts(cuts[:1], path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [name]


FORMATS = ("jsonl.gz", "jsonl", "json", "json.gz", "yaml", "yaml.gz")


@pytest.mark.parametrize("ending", FORMATS)
def test_manifests_of_every_format_of_lhotse_are_read_and_those_of_no_cuts_refused(tmp_path, data, ending):
    cuts = list(CutSet.from_file(data.train_cuts[0]))
    path = tmp_path / f"cuts.{ending}"
    write(cuts, path)
    assert list(read_manifest(path)) == list(read_manifest(path)) == cuts
    recordings = tmp_path / f"recordings.{ending}"
    RecordingSet.from_recordings([Recording("r", [], 16000, 16000, 1.0)]).to_file(recordings)
    assert f"{recordings}: damaged or not a manifest of cuts" in error_of(lambda: list(read_manifest(recordings)))
    for index, content in enumerate((b"", b"{]", b"- {a: [", b"\xff\x00", path.read_bytes()[:-40])):
        broken = tmp_path / f"broken-{index}.{ending}"
        broken.write_bytes(content)
        empty = not content and ending.startswith("jsonl")
        fault = "holds no cuts; name another" if empty else "damaged or not a manifest of cuts"
        assert f"{broken}: {fault}" in error_of(lambda b=broken: list(read_manifest(b)))


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl"])
@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda line: line[:-9], "column 1, Unterminated string"),
        (lambda line: "", "column 1, Expecting value"),
        (lambda line: line.replace('"start"', '"begin"', 1), "MonoCut"),
        (lambda line: line[: line.index('"supervisions"')] + '"custom": 5, "type": "MonoCut"}', "'int' object"),
    ],
)
def test_the_line_that_is_no_cut_is_named(tmp_path, data, ending, spoil, said):
    path = tmp_path / f"cuts.{ending}"
    write(list(CutSet.from_file(data.train_cuts[0]))[:4], path)
    unpacked, packed = (gzip.decompress, gzip.compress) if ending.endswith("gz") else (bytes, bytes)
    lines = unpacked(path.read_bytes()).decode().splitlines()
    lines[2] = spoil(lines[2])
    path.write_bytes(packed("\n".join([*lines, ""]).encode()))
    message = error_of(lambda: list(read_manifest(path)))
    assert f"{path}: damaged or not a manifest of cuts (line 3: " in message and said.split()[0] in message
    assert "line 1" not in message


def test_a_shar_directory_is_read_like_a_manifest_and_a_file_of_its_cuts_names_it(tmp_path):
    cuts = []
    for name in "abc":
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 32000), 16000, subtype="FLOAT")
        cuts.append(Recording.from_file(path).to_cut().with_id(name))
        cuts[-1].supervisions = [SupervisionSegment(name, name, 0.0, 2.0, text="A")]
    folder = tmp_path / "shar"
    folder.mkdir()
    CutSet.from_cuts(cuts).to_shar(folder, fields={"recording": "wav"}, shard_size=2)
    found = list(read_manifest(folder))
    assert [(cut.id, text_of(cut)) for cut in found] == [("a", "A"), ("b", "A"), ("c", "A")]
    for cut, original in zip(found, cuts, strict=True):
        check_readable(cut, from_audio=True, path=folder)
        np.testing.assert_allclose(read_audio(cut).numpy(), original.load_audio()[0], atol=1e-4)
    fields = folder / "cuts.000000.jsonl.gz"
    of_fields = list(read_manifest(fields))[0]
    message = error_of(lambda: check_data(of_fields, from_audio=True, path=fields))
    assert f"its audio is in a Shar directory; name the directory, {folder}" in message
    (folder / "recording.000001.tar").unlink()
    assert "neither recording.000001.tar nor" in error_of(lambda: read_manifest(folder))
    other = tmp_path / "folder"
    other.mkdir()
    assert f"{other}: a directory instead of a manifest" in error_of(lambda: read_manifest(other))
