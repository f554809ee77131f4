"""What cuts must be: refused, or left out of training, by their manifests alone and in every set alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import (
    CutSet,
    Fbank,
    FbankConfig,
    LilcomChunkyWriter,
    Mfcc,
    MonoCut,
    Recording,
    RecordingSet,
    SupervisionSegment,
    SupervisionSet,
)
from lhotse.features import FeatureExtractor
from lhotse.utils import fastcopy

from kdstream.corpus.pseudo_labels import read_cuts
from kdstream.corpus.validate import check_cut
from kdstream.data.checks import FRAME_TOLERANCE, STREAM, TEXT_TOLERANCE, WHOLE_SECONDS, check_length, check_text
from kdstream.data.cuts import iterate, read_manifest
from kdstream.data.features import FBANK
from kdstream.data.module import AsrDataModule
from kdstream.data.reading import read_utterance
from kdstream.models.streaming import ChunkConfig
from support.data import batches_of, config_of, error_of, feature_cut

TRIM = "cuts.trim_to_supervisions(keep_overlapping=False)"
SETS = ("train", "dev", "test", "pseudo-label", "validate")


def cuts_of(corpus: Path, part: str = "train") -> list[MonoCut]:
    return list(CutSet.from_file(corpus / "fbank" / f"librispeech_cuts_{part}.jsonl.gz"))


def written(cuts: Iterable[MonoCut], path: Path) -> Path:
    CutSet.from_cuts(cuts).to_file(path)
    return path


def reading(kind: str, corpus: Path, path: Path, **settings) -> Callable[[], Any]:
    """What looks at the cuts of `path` before any is heard."""
    if kind == "pseudo-label":
        return lambda: read_cuts(path)
    if kind == "validate":
        return lambda: [check_cut(cut, path) for cut in iterate(read_manifest(path))]
    cuts = (str(path),)
    module = AsrDataModule(config_of(corpus, train_cuts=cuts, valid_cuts=cuts, test_cuts=cuts, **settings), 0)
    return {"train": lambda: module.train_dataloader(1), "dev": module.valid_dataloader, "test": module.test_sets}[kind]


@pytest.fixture(scope="module")
def lecture(corpus, tmp_path_factory) -> CutSet:
    """One recording of ten utterances, with their texts."""
    folder = tmp_path_factory.mktemp("lecture")
    samples, supervisions, seconds = [], [], 0.0
    for index, cut in enumerate(cuts_of(corpus)[:10]):
        samples.append(cut.load_audio()[0])
        text = cut.supervisions[0].text
        supervisions.append(SupervisionSegment(f"s{index}", "lecture", seconds, cut.duration, text=text))
        seconds += cut.duration
    soundfile.write(folder / "lecture.wav", np.concatenate(samples), 16000)
    recording = Recording.from_file(folder / "lecture.wav", recording_id="lecture")
    recordings = RecordingSet.from_recordings([recording])
    return CutSet.from_manifests(recordings, SupervisionSet.from_segments(supervisions))


@pytest.mark.parametrize("kind", SETS)
def test_windows_of_a_recording_are_refused_in_every_set_and_its_trimmed_cuts_are_taken(
    corpus, lecture, tmp_path, kind
):
    windows = written([c for c in lecture.cut_into_windows(1.5) if c.supervisions], tmp_path / "windows.jsonl.gz")
    message = error_of(reading(kind, corpus, windows))
    assert TRIM in message and "windows or truncation" in message
    assert ("lecture" in message) if kind == "train" else (f"{windows}: cut lecture-0-0: its text is said" in message)
    whole = written(lecture, tmp_path / "whole.jsonl.gz")
    message = error_of(reading(kind, corpus, whole))
    assert TRIM in message and ("several supervisions" if kind == "train" else "10 supervisions") in message
    trimmed = written(lecture.trim_to_supervisions(keep_overlapping=False), tmp_path / "trimmed.jsonl.gz")
    reading(kind, corpus, trimmed)()
    shorter = written(
        (cut.truncate(duration=cut.duration / 2) for cut in read_manifest(trimmed)), tmp_path / "s.jsonl.gz"
    )
    assert TRIM in error_of(reading(kind, corpus, shorter))


def test_training_leaves_few_cuts_with_text_outside_them_out_by_name(corpus, tmp_path, caplog):
    cuts = cuts_of(corpus)
    cuts[3] = cuts[3].truncate(duration=cuts[3].duration - 0.15, preserve_id=True)
    cuts[4].supervisions.append(fastcopy(cuts[4].supervisions[0], id="more"))
    path = written(cuts, tmp_path / "cuts.jsonl.gz")
    with caplog.at_level(logging.INFO):
        ids = sorted(i for b in batches_of(config_of(corpus, train_cuts=(str(path),))) for i in b.cut_ids)
    assert ids == sorted(cut.id for index, cut in enumerate(cuts) if index not in (3, 4))
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("training cuts: 38 kept")]
    assert f"1 with text outside them ({cuts[3].id}); 1 with several supervisions ({cuts[4].id})" in line


def test_training_needs_most_of_its_cuts_to_have_their_text(corpus, tmp_path):
    cuts = cuts_of(corpus)
    for count, refused in ((20, False), (21, True)):
        spoilt = [cut.truncate(duration=cut.duration / 2, preserve_id=True) for cut in cuts[:count]]
        train = reading("train", corpus, written(spoilt + cuts[count:], tmp_path / "cuts.jsonl.gz"))
        if refused:
            assert f"training cuts: 21 have text outside them or several supervisions ({cuts[0].id}" in error_of(train)
        else:
            train()


@pytest.mark.parametrize("start, end", [(-0.09, 1.0), (0.0, 1.09), (-0.11, 1.0), (0.0, 1.11), (0.2, 0.8)])
def test_a_text_may_reach_beyond_its_cut_by_the_tolerance_alone(tmp_path, start, end):
    cut = feature_cut(tmp_path, "cut", np.zeros((100, 80), dtype=np.float32), "ONE")
    cut.supervisions = [fastcopy(cut.supervisions[0], start=start, duration=end - start)]
    if start >= -TEXT_TOLERANCE and end <= 1.0 + TEXT_TOLERANCE:
        check_text(cut, tmp_path)
    else:
        assert "its text is said from" in error_of(lambda: check_text(cut, tmp_path))


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"start": 0.2}, "of a recording of"),
        ({"start": -0.2}, "lies from -0.200 to"),
        ({"duration": 9.0}, "lies from 0.000 to 9.000 s of a recording of"),
        ({"channel": 1}, "is of channel 1, and its recording has 0"),
    ],
)
def test_a_cut_that_is_no_part_of_its_recording_is_refused_by_its_manifest(corpus, tmp_path, kind, changes, problem):
    cuts = [cut.drop_features() for cut in cuts_of(corpus)]
    cuts[3] = fastcopy(cuts[3], **changes)
    message = error_of(reading(kind, corpus, written(cuts, tmp_path / "cuts.jsonl.gz")))
    assert f"cuts.jsonl.gz: cut {cuts[3].id}: " in message and problem in message


@pytest.mark.parametrize("kind", ["train", "dev", "pseudo-label", "validate"])
@pytest.mark.parametrize(
    "changes, of_features, problem",
    [
        ({"start": -0.2}, {}, "lies from -0.20 to"),
        ({"duration": 9.0}, {}, "lies from 0.00 to 9.00 s, and its stored features from 0.00 to"),
        ({}, {"duration": 1.0, "num_frames": 100}, "and its stored features from 0.00 to 1.00 s"),
        ({}, {"num_frames": 50}, "its stored features have 50 frames (10 ms each) for"),
    ],
)
def test_stored_features_that_are_not_of_their_cut_are_refused_by_its_manifest(
    corpus, tmp_path, kind, changes, of_features, problem
):
    cuts = cuts_of(corpus)
    cuts[3] = fastcopy(cuts[3], features=fastcopy(cuts[3].features, **of_features), **changes)
    message = error_of(reading(kind, corpus, written(cuts, tmp_path / "cuts.jsonl.gz")))
    assert f"cuts.jsonl.gz: cut {cuts[3].id}: " in message and problem in message


@pytest.mark.parametrize("view", ["whole", "end"])
@pytest.mark.parametrize("fewer", [FRAME_TOLERANCE, FRAME_TOLERANCE + 1])
def test_a_few_frames_may_be_lacking_of_stored_features_and_no_more(tmp_path, view, fewer):
    cut: Any = feature_cut(tmp_path, "cut", np.zeros((100 - fewer, 80), dtype=np.float32), "ONE")
    cut.features = fastcopy(cut.features, num_frames=100, duration=1.0)
    cut = fastcopy(cut, duration=1.0)
    cut = cut if view == "whole" else cut.truncate(offset=0.3)
    if fewer <= FRAME_TOLERANCE:
        assert len(read_utterance(cut, from_audio=False).features) == cut.num_frames - fewer
    else:
        message = error_of(lambda: read_utterance(cut, from_audio=False))
        assert f"feature frames are stored of the {cut.num_frames} that cut {cut.id} has; compute its" in message


OTHER_FEATURES = {
    "40 bins": Fbank(FbankConfig(num_filters=40)),
    "20 ms": Fbank(FbankConfig(num_filters=80, frame_shift=0.02)),
    "mfcc": Mfcc(),
}
OTHER_FREQUENCIES = {
    "low": Fbank(FbankConfig(num_filters=80, low_freq=0.0)),
    "high": Fbank(FbankConfig(num_filters=80, high_freq=0.0)),
}


def with_features(corpus: Path, folder: Path, extractor: FeatureExtractor) -> Path:
    plain = CutSet.from_cuts(cut.drop_features() for cut in cuts_of(corpus)[:6])
    stored = plain.compute_and_store_features(extractor, folder / "feats", num_jobs=1, storage_type=LilcomChunkyWriter)
    return written(stored, folder / "cuts.jsonl.gz")


@pytest.mark.parametrize("name", [*OTHER_FEATURES, *OTHER_FREQUENCIES])
def test_features_of_another_kind_are_refused_before_they_are_read_and_audio_is_the_fix(corpus, tmp_path, name):
    path = with_features(corpus, tmp_path, {**OTHER_FEATURES, **OTHER_FREQUENCIES}[name])
    first = cuts_of(corpus)[0].id
    for kind in ("train", "dev", "pseudo-label"):
        message = error_of(reading(kind, corpus, path))
        assert f"{path}: cut {first}: stored features are" in message
        assert "--on-the-fly-feats 1" in message and "cuts.drop_features()" in message
    for kind in ("train", "dev", "test"):
        reading(kind, corpus, path, on_the_fly_feats=True)()
    dropped = written((cut.drop_features() for cut in read_manifest(path)), tmp_path / "dropped.jsonl.gz")
    for kind in SETS:
        reading(kind, corpus, dropped)()


def test_pseudo_labelled_cuts_are_checked_like_labelled_ones(corpus, tmp_path):
    path = with_features(corpus, tmp_path, OTHER_FEATURES["mfcc"])
    labelled = corpus / "fbank" / "librispeech_cuts_train.jsonl.gz"
    assert f"{path}: cut" in error_of(reading("train", corpus, labelled, pseudo_cuts=(str(path),)))


@pytest.mark.parametrize("louder", [1.0, 32768.0])
def test_features_of_louder_audio_are_refused(corpus, tmp_path, louder):
    """As of Kaldi, which reads samples as integers."""
    cut = cuts_of(corpus)[0]
    with LilcomChunkyWriter(tmp_path / "feats") as writer:
        features = FBANK.extract_from_samples_and_store(louder * cut.load_audio(), writer, 16000)
        stored = fastcopy(cut, features=fastcopy(features, recording_id=cut.recording_id))
    path = written([stored], tmp_path / "cuts.jsonl.gz")
    if louder == 1.0:
        reading("train", corpus, path)()
    else:
        assert "log energies that differ by 20.79" in error_of(reading("train", corpus, path))


@pytest.mark.parametrize("kind", ["dev", "test", "pseudo-label", "validate"])
def test_what_cannot_be_read_is_named_before_anything_is(corpus, tmp_path, kind):
    good, bad = cuts_of(corpus)[:2]
    source = bad.recording.sources[0]
    heard = bad.drop_features()
    short = [fastcopy(heard, duration=ms / 1000) for ms in (0, 1, 4, 6, 20, 84)]
    gone = fastcopy(heard, recording=fastcopy(heard.recording, sources=[fastcopy(source, source="/gone/a.flac")]))
    for cut, problem in (
        *((cut, "") for cut in short),
        (gone, "/gone/a.flac: no such file"),
        (fastcopy(heard, recording=None), "neither a recording nor stored features"),
    ):
        path = written([good, cut], tmp_path / "cuts.jsonl.gz")
        problem = problem or ("its text is said from 0.00" if kind == "dev" else "only ")
        assert f"{path}: cut {bad.id}: {problem}" in error_of(reading(kind, corpus, path))
    if kind == "dev":  # where the loss cannot take a cut, it is left out
        wordless = fastcopy(short[-1], supervisions=[fastcopy(s, duration=0.08) for s in bad.supervisions])
        batches = reading(kind, corpus, written([good, wordless], tmp_path / "cuts.jsonl.gz"))()
        assert [cut_id for batch in batches for cut_id in batch.cut_ids] == [good.id]


def test_lost_features_are_named_before_training(corpus, tmp_path):
    cut = cuts_of(corpus)[0]
    path = written(
        [fastcopy(cut, features=fastcopy(cut.features, storage_path="/gone/f.lca"))], tmp_path / "c.jsonl.gz"
    )
    assert f"{path}: cut {cut.id}: /gone/f.lca: no such file" in error_of(reading("dev", corpus, path))
    reading("dev", corpus, path, on_the_fly_feats=True)()


def test_cuts_with_features_alone_are_decoded_from_them(corpus, tmp_path):
    cuts = cuts_of(corpus)[:3]
    path = written((fastcopy(cut, recording=None) for cut in cuts), tmp_path / "cuts.jsonl.gz")
    utterances = AsrDataModule(config_of(corpus, test_cuts=(str(path),)), 0).test_sets()["cuts"]
    for cut, utterance in zip(cuts, utterances, strict=True):
        assert np.array_equal(utterance.features.numpy(), cut.load_features())
    other = with_features(corpus, tmp_path, OTHER_FEATURES["mfcc"])
    path = written((fastcopy(cut, recording=None) for cut in read_manifest(other)), tmp_path / "others.jsonl.gz")
    message = error_of(reading("test", corpus, path))
    assert "stored features are kaldi-mfcc of 13 bins" in message and "--on-the-fly-feats" not in message


def test_a_cut_of_a_minute_or_of_max_duration_is_heard_whole():
    for seconds, max_duration in ((WHOLE_SECONDS, 1.0), (35.0, 200.0), (199.0, 200.0)):
        check_length("cut", seconds, max_duration, STREAM)
    a_minute = "a minute, all that a model hears at once with --max-duration"
    whole = ", all that a model hears at once"
    for seconds, max_duration, limit in (
        (61.0, 60.5, f"--max-duration 60.5{whole}"),
        (61.0, 1.0, f"{a_minute} 1"),
        (61.0, 60.0, f"{a_minute} 60"),
        (201.0, 200.0, f"--max-duration 200{whole}"),
    ):
        message = error_of(lambda s=seconds, m=max_duration: check_length("cut", s, m, STREAM))
        assert message.startswith("cut: ") and "--left-context-frames 64" in message
        assert f"{seconds:.0f} s are more than {limit}; split it, raise the flag to {seconds:.0f}, or" in message


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("train", "lower --max-utterance-seconds"),
        ("dev", "take it out of the validation cuts"),
        ("test", "decode with a streaming model and --left-context-frames 64 or the like"),
    ],
)
def test_a_long_cut_is_refused_where_it_is_heard_whole(corpus, tmp_path, kind, way_out):
    cut = feature_cut(tmp_path, "ten-minutes", np.zeros((60000, 80), dtype=np.float32), "ONE")
    path = str(written([cut], tmp_path / "cuts.jsonl.gz"))
    paths = dict(train_cuts=(path,), valid_cuts=(path,), test_cuts=(path,), max_utterance_seconds=1000.0)
    module = AsrDataModule(config_of(corpus, **paths), 0)
    assert len(module.test_sets()["cuts"].cuts) == 1  # chunk by chunk
    call = {
        "train": lambda: module.train_dataloader(1),
        "dev": module.valid_dataloader,
        "test": module.test_dataloaders,
    }[kind]
    message = error_of(call)
    assert (
        "cut ten-minutes: 600 s are more than a minute, all that a model hears at once with --max-duration 8" in message
    )
    assert message.endswith(f"; split it, raise the flag to 600, or {way_out}")


@pytest.mark.parametrize("chunk", [None, ChunkConfig(8, -1), ChunkConfig(8, 64)], ids=str)
def test_a_long_cut_is_refused_unless_the_left_context_is_limited(corpus, tmp_path, chunk):
    cut = feature_cut(tmp_path, "ten-minutes", np.zeros((60000, 80), dtype=np.float32), "ONE")
    module = AsrDataModule(config_of(corpus), 0)
    if chunk is not None and chunk.is_limited:
        (batch,) = module.in_order([cut], False, chunk=chunk)
        assert batch.feature_lens.tolist() == [60000]
    else:
        assert "600 s are more than" in error_of(lambda: module.in_order([cut], False, chunk=chunk))
