"""Odd manifests, cuts and texts, read by every command that reads cuts."""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from odd import accounts
from odd.harness import Case
from odd.world import World

COUNT = 5  # cuts of a manifest
Item = dict[str, Any]


def case_of(
    world: World, rng: random.Random, folder: Path, kind: str, what: str, manifest: Path, ids: list[str], **more: Any
) -> Case:
    """A command, drawn at random, on a manifest that holds `ids`."""
    names = [manifest.name, "--min-confidence", "--vocab-size", *[cut_id for cut_id in ids if cut_id]]
    command = more.pop("command", "") or rng.choice(sorted(COMMANDS))
    argv, check = COMMANDS[command](world, folder, manifest, ids)
    return Case(kind, f"{what}, {command}", argv, names, check, **more)


def _train(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    argv = world.train(folder / "exp", manifest, "", "--max-train-batches", "2", "--num-epochs", "9")
    return argv, lambda outcome: accounts.trained(folder / "exp", ids)


def _train_from_audio(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    argv, check = _train(world, folder, manifest, ids)
    return [*argv, "--on-the-fly-feats", "1"], check


def _validate(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    argv = world.train(folder / "exp", world.manifest("train"), manifest, "--num-epochs", "1")
    return argv, lambda outcome: "" if (folder / "exp" / "epoch-1.pt").is_file() else "no epoch-1.pt"


def _decode(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    exp_dir = world.copy_of("teacher", folder)
    argv = ["decode", "--exp-dir", str(exp_dir), "--avg", "1", "--num-workers", "0", "--test-cuts", str(manifest)]
    return argv, lambda outcome: accounts.decoded(exp_dir, ids)


def _streaming_decode(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    exp_dir = world.copy_of("student", folder)
    argv = ["streaming-decode", "--exp-dir", str(exp_dir), "--avg", "1", "--test-cuts", str(manifest)]
    return argv, lambda outcome: accounts.decoded(exp_dir, ids)


def _align(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    output = folder / "aligned.jsonl.gz"
    exp_dir = world.copy_of("teacher", folder)
    argv = ["align", "--exp-dir", str(exp_dir), "--avg", "1", "--num-workers", "0", "--test-cuts", str(manifest)]
    return [*argv, "--output", str(output)], lambda outcome: accounts.written(output, ids, outcome)


def _pseudo_label(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    output = folder / "pseudo.jsonl.gz"
    exp_dir = world.copy_of("teacher", folder)
    argv = ["pseudo-label", "--exp-dir", str(exp_dir), "--avg", "1", "--num-workers", "0", "--cuts", str(manifest)]
    argv += ["--output", str(output), "--min-confidence", "0"]
    return argv, lambda outcome: accounts.written(output, ids, outcome)


def _cache(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    output = folder / "cache"
    argv = ["cache-teacher", "--teacher-exp-dir", str(world.teacher), "--output", str(output), "--num-workers", "0"]
    argv += ["--train-cuts", str(manifest), "--min-utterance-seconds", "0.2"]
    return argv, lambda outcome: accounts.cached(output, ids, outcome)


def _validate_manifest(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    return ["validate-manifest", str(manifest), "--read", "1"], lambda outcome: accounts.counted(ids, outcome)


def _train_tokenizer(world: World, folder: Path, manifest: Path, ids: list[str]) -> Any:
    argv = ["train-bpe-model", "--cuts", str(manifest), "--vocab-size", "12", "--lang-dir", str(folder / "lang")]
    return argv, lambda outcome: "" if (folder / "lang" / "tokens.txt").is_file() else "no tokens.txt"


COMMANDS: dict[str, Callable[[World, Path, Path, list[str]], Any]] = {
    "train": _train,
    "train on the fly": _train_from_audio,
    "train, validation": _validate,
    "decode": _decode,
    "streaming-decode": _streaming_decode,
    "align": _align,
    "pseudo-label": _pseudo_label,
    "cache-teacher": _cache,
    "validate-manifest": _validate_manifest,
    "train-bpe-model": _train_tokenizer,
}


def items_of(world: World, count: int = COUNT) -> list[Item]:
    """Cuts as their manifest has them."""
    with gzip.open(world.manifest("test"), "rt") as file:
        return [json.loads(line) for line in file][:count]


def store(path: Path, items: list[Item]) -> Path:
    text = "".join(json.dumps(item) + "\n" for item in items)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def odd_manifest(world: World, rng: random.Random, folder: Path) -> Case:
    """A file that is damaged, of another kind or packed otherwise."""
    items = items_of(world)
    lines = [json.dumps(item) for item in items]
    sound = "\n".join(lines).encode() + b"\n"
    packed = gzip.compress(sound)
    place = rng.randrange(len(lines))
    garbage = rng.choice(
        ["{", "[]", "null", '"x"', "1", "{}", '{"type": "MonoCut"}', "\x00\x00", "no json", '{"id": 1}']
    )
    broken = "\n".join([*lines[:place], garbage, *lines[place + 1 :]]).encode()
    cut_short = rng.randrange(1, len(packed))
    flipped = bytearray(packed)
    flipped[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
    twice = "\n".join([*lines, lines[place]]).encode()
    makers: dict[str, tuple[str, bytes, str]] = {
        "cut short": ("cuts.jsonl.gz", packed[:cut_short], ""),
        "a bit flipped": ("cuts.jsonl.gz", bytes(flipped), ""),
        "plain, cut short": ("cuts.jsonl", sound[: rng.randrange(2, len(sound) - 1)], ""),
        f"line {garbage!r}": ("cuts.jsonl", broken, "refuse"),
        "byte order mark": ("cuts.jsonl", b"\xef\xbb\xbf" + sound, ""),
        "line ends of Windows": ("cuts.jsonl", sound.replace(b"\n", b"\r\n"), "handle"),
        "blank lines": ("cuts.jsonl", sound.replace(b"\n", b"\n\n"), ""),
        "a line twice": ("cuts.jsonl", twice, ""),
        "no bytes": (rng.choice(["cuts.jsonl.gz", "cuts.jsonl", "cuts.json"]), b"", "refuse"),
        "plain, named gz": ("cuts.jsonl.gz", sound, ""),
        "packed, named plain": ("cuts.jsonl", packed, ""),
        "bytes that are no text": ("cuts.jsonl", rng.randbytes(200), "refuse"),
        "json.gz": ("cuts.json.gz", gzip.compress(json.dumps(items).encode()), ""),
        "json": ("cuts.json", json.dumps(items).encode(), ""),
        "csv": ("cuts.csv", b"id,start\n1,0\n", "refuse"),
    }
    more = ["recordings", "supervisions", "yaml", "directory", "missing", "shar"]
    what = rng.choice([*makers, *more])
    ids, must = [item["id"] for item in items], ""
    if what in makers:
        name, content, must = makers[what]
        (folder / name).write_bytes(content)
        manifest = folder / name
        if what == "a line twice":
            ids = [*ids, ids[place]]
    else:
        manifest, must = _of_another_kind(world, folder, what)
    command = rng.choice(sorted(COMMANDS))
    if command == "pseudo-label":
        must = must if must == "refuse" else ""  # its teacher may find no words
    if what == "a line twice" and not command.startswith("train-bpe"):
        must = "refuse"
    return case_of(world, rng, folder, "manifest", what, manifest, ids, must=must, command=command)


def _of_another_kind(world: World, folder: Path, what: str) -> tuple[Path, str]:
    cuts = world.cuts("test", COUNT)
    if what == "recordings":
        path = folder / "recordings.jsonl.gz"
        RecordingSet.from_recordings(cut.recording for cut in cuts).to_file(path)
        return path, "refuse"
    if what == "supervisions":
        path = folder / "supervisions.jsonl.gz"
        SupervisionSet.from_segments(cut.supervisions[0] for cut in cuts).to_file(path)
        return path, "refuse"
    if what == "yaml":
        path = folder / "cuts.yaml"
        CutSet.from_cuts(cuts).to_file(path)
        return path, ""
    path = folder / "cuts.jsonl.gz"
    if what == "directory":
        path.mkdir()
    if what == "shar":
        path = folder / "shar"
        path.mkdir()
        CutSet.from_cuts(cut.drop_features() for cut in cuts).to_shar(path, fields={"recording": "wav"})
        return path, ""
    return path, "refuse"


ODD_VALUES: list[Any] = [
    None, -1, 0, 0.0, -0.5, 1e300, -1e300, math.nan, math.inf, "", " ", "x", "x" * 3000, "a/b", "../x", [], {}, [None],
    {"type": "x"}, True, 10**30, "\n", "\u2028", "NaN", "0", [0], [[]], 1.5,
]  # fmt: skip


def odd_field(world: World, rng: random.Random, folder: Path) -> Case:
    """One value, anywhere in a cut, that is missing or another."""
    items = items_of(world)
    cut = rng.choice(items)
    place, name = rng.choice(list(places(cut)))
    before = copy.deepcopy(place[name])
    if rng.random() < 0.25:
        del place[name]
        what = f"no {name}"
    else:
        place[name] = rng.choice(ODD_VALUES)
        what = f"{name} {before!r} is {place[name]!r}"[:90]
    ids = [str(item.get("id")) for item in items]
    manifest = store(folder / "cuts.jsonl.gz", items)
    return case_of(world, rng, folder, "field of a cut", what, manifest, ids)


def places(value: Any) -> Any:
    """All (container, key) in a JSON object."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def odd_cut(world: World, rng: random.Random, folder: Path) -> Case:
    """A cut that Lhotse makes without complaint."""
    cuts = world.cuts("test", COUNT)
    place = rng.randrange(COUNT)
    what = rng.choice(list(CUTS))
    cuts[place] = CUTS[what](cuts[place] if what == FEATURES_ALONE else cuts[place].drop_features(), rng)
    manifest = folder / "cuts.jsonl.gz"
    with gzip.open(manifest, "wt") as file:  # CutSet would refuse some of them
        file.writelines(json.dumps(item.to_dict()) + "\n" for item in cuts)
    command = rng.choice(sorted(COMMANDS))
    must = "refuse" if what in TO_REFUSE else ""
    if command in ("train-bpe-model", "train") or (command == "validate-manifest" and what != NOTHING_TO_HEAR):
        must = ""  # it reads no sound
    return case_of(world, rng, folder, "cut", what, manifest, [item.id for item in cuts], command=command, must=must)


def _spoken(cut: Cut, **changes: Any) -> Cut:
    cut.supervisions[0] = fastcopy(cut.supervisions[0], **changes)
    return cut


def _said_twice(cut: Cut, rng: random.Random) -> Cut:
    cut.supervisions.append(fastcopy(cut.supervisions[0], id=cut.supervisions[0].id + "-2"))
    return cut


def _short(cut: Cut, rng: random.Random) -> Cut:
    seconds = rng.choice([0.0, 0.0005, 0.001, 0.004, 0.02, 0.08])
    return _spoken(fastcopy(cut, duration=seconds), duration=seconds)


def _shorter_than_it_says(cut: Cut, rng: random.Random) -> Cut:
    samples = cut.recording.num_samples + rng.choice([100, 4000, 8000, 64000])
    recording = fastcopy(cut.recording, num_samples=samples, duration=samples / 16000)
    return fastcopy(cut, recording=recording, duration=recording.duration)


def _gone(cut: Cut, rng: random.Random) -> Cut:
    source = fastcopy(cut.recording.sources[0], source="gone.wav")
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=[source]))


FEATURES_ALONE, NOTHING_TO_HEAR = "features alone", "neither features nor a recording"
SHORTER, GONE = "the recording is shorter than it says", "the recording is not there"
TO_REFUSE = (SHORTER, GONE, NOTHING_TO_HEAR)
IDS = ["a b", "a/b", "a:\tb", "é", "日本", "a\nb", "x" * 300, " "]
CUTS: dict[str, Callable[[Cut, random.Random], Cut]] = {
    "supervision begins before the cut": lambda cut, rng: _spoken(cut, start=-rng.uniform(0.2, 1.0)),
    "supervision ends after the cut": lambda cut, rng: _spoken(cut, duration=cut.duration + rng.uniform(0.2, 1.0)),
    "truncated": lambda cut, rng: cut.truncate(duration=cut.duration / 2),
    "two supervisions": _said_twice,
    "no supervision": lambda cut, rng: fastcopy(cut, supervisions=[]),
    "very short": _short,
    "a mix": lambda cut, rng: cut.append(cut.with_id("other")),
    "padded": lambda cut, rng: cut.pad(duration=cut.duration + rng.uniform(0.1, 3.0)),
    "its sound is resampled": lambda cut, rng: cut.resample(rng.choice([8000, 11025, 22050, 44100, 48000])),
    "faster or slower": lambda cut, rng: cut.perturb_speed(rng.choice([0.5, 0.9, 1.1, 2.0])),
    "louder or silent": lambda cut, rng: cut.perturb_volume(rng.choice([0.0, 0.1, 50.0])),
    SHORTER: _shorter_than_it_says,
    GONE: _gone,
    NOTHING_TO_HEAR: lambda cut, rng: fastcopy(cut, recording=None),
    "another id": lambda cut, rng: cut.with_id(rng.choice(IDS)),
    FEATURES_ALONE: lambda cut, rng: fastcopy(cut, recording=None),
    "no speaker": lambda cut, rng: _spoken(cut, speaker=None, language=None),
}


TEXTS = [
    "", " ", "\t", "\n", "ab cd", "AB, CD.", "AB\tCD", "AB\nCD", "AB\u2028CD", "AB\u00a0CD", "AB  CD", "*", "* AB *",
    "⁇", "<unk>", "<blk> AB", "</s>", "▁AB", "▁", "é", "e\u0301", "한국어", "\u1112\u1161\u11ab", "漢字仮名",
    "ภาษาไทย", "می\u200cروم", "ＡＢ", "①", "\ufeffAB", "\x00", "AB\x07", "🙂", "A" * 5000, "AB " * 2000, "\ud800", "-",
    "0", "null", "['A']", "AB:\thyp=['A']", "\u200b", "\u202eAB",
]  # fmt: skip


SCRIPTS = [  # from and to which character
    (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x590, 0x700), (0xE00, 0xE5C), (0x2000, 0x2070), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
]  # fmt: skip


def odd_text(world: World, rng: random.Random, folder: Path) -> Case:
    """A transcript that is odd."""
    items = items_of(world)
    cut = rng.choice(items)
    text = (
        rng.choice(TEXTS)
        if rng.random() < 0.7
        else "".join(chr(rng.randrange(*rng.choice(SCRIPTS))) for _ in range(rng.randrange(1, 12)))
    )
    cut["supervisions"][0]["text"] = text
    manifest = store(folder / "cuts.jsonl.gz", items)
    ids = [item["id"] for item in items]
    return case_of(world, rng, folder, "text", f"text {ascii(text)[:60]}", manifest, ids)
