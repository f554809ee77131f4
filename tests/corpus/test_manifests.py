"""Manifests of LibriSpeech's layout, and what is wrong with a corpus."""

from __future__ import annotations

import logging
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, SupervisionSet
from lhotse.utils import fastcopy

from kdstream.commands import augment_cuts, compute_fbank, prepare_manifests, train_bpe_model
from kdstream.corpus.bpe import transcripts_of_parts
from kdstream.corpus.fbank import compute_part, read_part
from kdstream.corpus.manifests import prepare_part
from kdstream.corpus.text_remove import removed
from kdstream.errors import UserError
from support.data import (
    error_of,
    make_part,
    store,
)
from support.sound import encoded, flac_without_length, tone, wav, with_sizes

SUPERVISIONS = "librispeech_supervisions_train.jsonl.gz"


@pytest.fixture
def small(tmp_path) -> Path:
    """A corpus to spoil: 6 training utterances."""
    make_part(tmp_path, "train", 1, 6, seed=0)
    return tmp_path


def test_speakers_behind_links_are_read_and_transcripts_may_begin_with_a_byte_order_mark(tmp_path):
    make_part(tmp_path, "train", 1, 3, seed=1)
    make_part(tmp_path / "elsewhere", "more", 2, 2, seed=2)
    (tmp_path / "LibriSpeech" / "train" / "2").symlink_to(tmp_path / "elsewhere" / "LibriSpeech" / "more" / "2")
    marked = tmp_path / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())
    store(tmp_path, ("train",))
    cuts = CutSet.from_file(tmp_path / "fbank" / "librispeech_cuts_train.jsonl.gz")
    assert sorted(cut.id for cut in cuts) == ["1-1-0000", "1-1-0001", "1-1-0002", "2-1-0000", "2-1-0001"]


def test_transcripts_in_a_wrong_place_or_encoding_are_named(small):
    part = small / "LibriSpeech" / "train"
    stray = part / "1-1.trans.txt"
    stray.write_text("1-1-0000 ONE\n")
    assert f"{stray}: lies beside the speakers' directories" in error_of(lambda: store(small, ("train",)))
    stray.unlink()
    path = part / "1" / "1" / "1-1.trans.txt"
    path.write_bytes("1-1-0000 CAF\u00c9\n".encode("latin-1"))
    assert f"{path}: is not in UTF-8" in error_of(lambda: store(small, ("train",)))


def test_notes_of_macos_beside_transcripts_and_audio_are_passed_by(small, caplog):
    folder = small / "LibriSpeech" / "train" / "1" / "1"
    for path in (folder / "._1-1.trans.txt", folder / "._1-1-0000.flac", small / "LibriSpeech/train/._1.trans.txt"):
        path.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x80")
    prepare_part(small / "LibriSpeech", "train", small)
    assert len(texts_of(small)) == 6 and not [each for each in caplog.records if each.levelno > logging.INFO]


@pytest.mark.parametrize("line", ["1-1-0002", "1-1-0002 ", "1-1-0002 \t "])
def test_empty_transcript_names_the_line(small, line):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    assert f"{path}:3: 1-1-0002" in error_of(lambda: store(small, ("train",)))


def test_repeated_utterance_names_the_line(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    path.write_text(path.read_text() + "1-1-0001 ONE\n")
    assert f"{path}:7: 1-1-0001 appears twice" in error_of(lambda: store(small, ("train",)))


@pytest.mark.parametrize("blank", [" ", "\t", "  ", " \t"])
def test_any_blank_parts_an_id_from_its_text(small, blank):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    expected = [line.partition(" ")[2] for line in path.read_text().splitlines()]
    lines = [line.replace(" ", blank, 1) + "\r\n" for line in path.read_text().splitlines()]
    path.write_bytes("".join(lines).encode())
    prepare_part(small / "LibriSpeech", "train", small)
    assert texts_of(small) == expected


@pytest.mark.parametrize("blank", ["\u2028", "\x0b", "\x85", "\t", "\u00a0"])
def test_a_line_of_text_may_hold_any_blank(small, blank):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    expected = [line.partition(" ")[2] for line in path.read_text().splitlines()]
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(" ", "+", 1).replace(" ", blank).replace("+", " ")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare_part(small / "LibriSpeech", "train", small)
    assert texts_of(small) == expected


def texts_of(folder: Path) -> list[str]:
    return [supervision.text for supervision in SupervisionSet.from_file(folder / SUPERVISIONS)]


@pytest.mark.parametrize("ending", [".WAV", ".Wav", ".FLAC"])
def test_endings_may_have_any_case(small, ending):
    folder = small / "LibriSpeech" / "train" / "1" / "1"
    samples, rate = soundfile.read(folder / "1-1-0003.flac")
    (folder / "1-1-0003.flac").unlink()
    soundfile.write(folder / f"1-1-0003{ending}", samples, rate, format=ending[1:].upper())
    store(small, ("train",))
    assert len(list(CutSet.from_file(small / "fbank" / "librispeech_cuts_train.jsonl.gz"))) == 6


def test_what_lies_in_place_of_an_utterance_is_named(small):
    folder = small / "LibriSpeech" / "train" / "1" / "1"
    path, transcripts = folder / "1-1-0003.flac", folder / "1-1.trans.txt"
    text = transcripts.read_text()

    for other in (".mp3", ".m4a", ".OPUS"):
        path.rename(path.with_suffix(other))
        message = error_of(lambda: store(small, ("train",)))
        assert f"{path.with_suffix(other)}: not FLAC or WAV; convert it: ffmpeg -i 1-1-0003{other}" in message
        path.with_suffix(other).rename(path)
    transcripts.write_text(text.replace("1-1-0003", "1-1-0003.flac"))
    assert f"{path}: is named with its ending in the .trans.txt; write 1-1-0003" in error_of(
        lambda: store(small, ("train",))
    )
    transcripts.write_text(text.replace("1-1-0003", "A-1-0003"))
    path.rename(folder / "a-1-0003.flac")
    message = error_of(lambda: store(small, ("train",)))
    assert "A-1-0003.flac: no such file; a-1-0003.flac lies there" in message


def test_channels_and_lengths_that_no_model_takes_are_refused_with_what_to_do(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    soundfile.write(path, np.zeros((16000, 2)), 16000)
    assert f"{path}: 2 channels; make it mono: ffmpeg -i" in error_of(lambda: store(small, ("train",)))
    for num_samples, frames in ((1, 0), (100, 1), (1300, 8)):
        soundfile.write(path, np.zeros(num_samples), 16000)
        problem = f"{path}: only {frames} frames (10 ms each), and a model needs 9; take 1-1-0003 out"
        assert problem in error_of(lambda: store(small, ("train",)))


def test_audio_that_no_transcript_names_is_counted(small, caplog):
    folder = small / "LibriSpeech" / "train" / "1" / "1"
    with caplog.at_level(logging.WARNING):
        prepare_part(small / "LibriSpeech", "train", small)
        assert not caplog.records
        for name in ("extra.flac", "more.mp3", "._hidden.flac", "notes.pdf"):
            (folder / name).write_bytes(b"")
        prepare_part(small / "LibriSpeech", "train", small)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "2 audio files are left out, for no .trans.txt names them" in warning
    assert f"{folder / 'extra.flac'}, {folder / 'more.mp3'}" in warning


def test_what_is_taken_out_of_texts_leaves_a_blank_and_utterances_without_text_are_counted(small, caplog):
    folder = small / "LibriSpeech" / "train" / "1" / "1"
    lines = (folder / "1-1.trans.txt").read_text().splitlines()
    lines[:3] = ["1-1-0000 Well,  DON'T!", "1-1-0001 [noise]", "1-1-0002 A [noise] B"]
    (folder / "1-1.trans.txt").write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        prepare_part(small / "LibriSpeech", "train", small, r"\[[^]]*\]|[,!']")
    assert texts_of(small) == ["Well DON T", "A B", *(line.split(maxsplit=1)[1] for line in lines[3:])]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "1 audio files are left out, for --text-remove " in warning and "1-1-0001.flac" in warning
    with pytest.raises(UserError, match=r"--text-remove \.: .*train: no text is left"):
        prepare_part(small / "LibriSpeech", "train", small, ".")


@pytest.mark.parametrize("name", ["<unk>", "<UNK>", "<blk>", "<sos/eos>"])
def test_names_of_special_tokens_in_texts_are_counted_and_refused_with_how_to_take_them_out(small, name):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    lines = path.read_text().splitlines()
    lines[:2] = [f"1-1-0000 ONE {name} TWO {name}", f"1-1-0001 {name}THREE"]
    path.write_text("\n".join(lines) + "\n")
    message = error_of(lambda: prepare_part(small / "LibriSpeech", "train", small))
    assert f"train: {name.lower()} in 2 of 6 transcripts, which is the name of a token" in message
    prepare_part(small / "LibriSpeech", "train", small, message.partition("--text-remove '")[2].rstrip("'"))
    assert texts_of(small)[:2] == ["ONE TWO", "THREE"]


@pytest.mark.parametrize("expression", ["[.,]*", "[.,]?", "|[.,]", "[.,]+", r"(?=\w)[.,]*|[.,]"])
def test_an_expression_that_may_find_nothing_leaves_words_whole(expression):
    assert removed("Well,don't..., she said.", expression) == "Well don't she said"


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"--text-remove \[: no regular expression .*; for marks in brackets write"):
        prepare_manifests.main(["--corpus-dir", "x", "--parts", "x", "--text-remove", "["])


def test_missing_part_and_empty_part(small):
    message = error_of(lambda: store(small, ("nowhere",)))
    assert "nowhere: no such directory" in message and "(train)" in message
    (small / "LibriSpeech" / "empty").mkdir()
    assert "empty: no *.trans.txt" in error_of(lambda: store(small, ("empty",)))


@pytest.mark.parametrize(
    "suffix, data, named",
    [
        (".wav", wav(tone())[:-3000], "cut short: 0.91 s of the 1.00 s that its header states"),
        (".wav", with_sizes(wav(tone()), 0, 0), "its header states another length than it has: 0.00 s of 1.00 s"),
        (".wav", wav(tone()[:0]), "holds no samples"),
        (".wav", b"on another disk\n", "text, not audio"),
        (".flac", b"", "an empty file"),
        (
            ".flac",
            flac_without_length(encoded(tone(), format="FLAC")),
            "its header lacks the length; convert it: ffmpeg",
        ),
        (".flac", 2 * encoded(tone(), format="FLAC"), "several files joined into one, of which only the first"),
    ],
)
def test_audio_whose_header_does_not_say_how_much_there_is_is_named(small, suffix, data, named):
    audio = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    audio.unlink()
    path = audio.with_suffix(suffix)
    path.write_bytes(data)
    error = error_of(lambda: store(small, ("train",)))
    assert f"{path}: {named}" in error and "take 1-1-0003 out of the .trans.txt" in error


@pytest.mark.parametrize(
    "command, flag",
    [
        (prepare_manifests, "--corpus-dir {0} --output-dir {0} --parts"),
        (train_bpe_model, "--manifest-dir {0} --lang-dir {0} --parts"),
        (train_bpe_model, "--manifest-dir {0} --lang-dir {0} --cuts"),
        (augment_cuts, "--augment volume --output {0}/copies.jsonl.gz --cuts"),
    ],
)
@pytest.mark.parametrize("nothing", ["", " ,"])
def test_a_flag_that_names_nothing_is_refused(tmp_path, command, flag, nothing):
    message = error_of(lambda: command.main([*flag.format(tmp_path).split(), nothing]))
    assert message.startswith(f"{flag.split()[-1]} {nothing}".strip()) and "names nothing; name one" in message
    assert not any(tmp_path.iterdir())


def test_a_comma_at_the_end_and_blanks_name_no_part(small):
    flags = ["--corpus-dir", str(small / "LibriSpeech"), "--output-dir", str(small / "manifests")]
    prepare_manifests.main([*flags, "--parts", " train, "])
    texts = transcripts_of_parts(small / "manifests", "train")
    assert texts == transcripts_of_parts(small / "manifests", "train, ")
    found = sorted(path.name for path in (small / "manifests").iterdir())
    assert found == ["librispeech_recordings_train.jsonl.gz", "librispeech_supervisions_train.jsonl.gz"]


@pytest.mark.parametrize("parts", [[], ["--parts", ",", "--train-parts", ""]])
def test_features_of_no_parts_are_refused(tmp_path, parts):
    message = error_of(lambda: compute_fbank.main([*parts, "--output-dir", str(tmp_path / "fbank")]))
    assert message == "--train-parts and --parts: name nothing; name parts, or give --musan true"
    assert not (tmp_path / "fbank").exists()


def test_audio_that_holds_more_than_its_manifest_says_is_refused_before_features_are_computed(small):
    prepare_part(small / "LibriSpeech", "train", small)
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    path.write_bytes(2 * path.read_bytes())
    with ThreadPool(1) as pool:
        message = error_of(lambda: compute_part(small, small / "fbank", "train", pool))
    assert f"{path}: several files joined into one" in message
    assert message.endswith(", or take recording 1-1-0003 out of the manifests")
    assert not (small / "fbank").exists()


def test_cuts_with_text_outside_them_are_refused_before_their_features_are_computed(small):
    prepare_part(small / "LibriSpeech", "train", small)
    longer = [fastcopy(s, duration=s.duration + 1.0) for s in SupervisionSet.from_file(small / SUPERVISIONS)]
    SupervisionSet.from_segments(longer).to_file(small / SUPERVISIONS)
    message = error_of(lambda: read_part(small, "train"))
    assert f"{small / SUPERVISIONS}: cut " in message and "cuts.trim_to_supervisions" in message
