"""Which parts of a corpus are trained on, validated on and decoded; and speech held out of training where some lack."""

from __future__ import annotations

import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lhotse import SupervisionSegment
from lhotse.utils import fastcopy

from kdstream.corpus.recipes import Part
from kdstream.errors import UserError, option

TRAIN, DEV, TEST = "train", "dev", "test"
NAMES = {TRAIN: ("train",), DEV: ("dev", "valid"), TEST: ("test", "eval")}  # how the names of such parts begin
OVERSHOOT = 1.5  # held-out speech may be so many times what was asked for: the next speaker may talk long


@dataclass
class Roles:
    """The names of the parts that are trained on, validated on and decoded."""

    train: list[str] = field(default_factory=list)
    dev: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.train, *self.dev, *self.test]))


def choose_roles(found: Sequence[str], given: Roles) -> Roles:
    """What each part is for: as `given`, or else by how its name begins (see NAMES), or how a word of it does.

    A part that no name tells of is trained on, where it is the only one and no part is called train.  Parts for
    dev or test may lack.
    Raises:
      UserError: a part that is not there, or nothing to train on.
    """
    for name in given.all:
        if name not in found:
            raise UserError(f"the corpus has no part {name}", flag="--*-parts", fix=f"its parts are {', '.join(found)}")
    by_name: dict[str, list[str]] = {TRAIN: [], DEV: [], TEST: [], "": []}
    for name in found:
        words = re.split(r"[^a-z]+", name.lower())
        role = next((role for role, begins in NAMES.items() if any(word.startswith(begins) for word in words)), "")
        by_name[role].append(name)
    if not by_name[TRAIN] and len(by_name[""]) == 1:
        by_name[TRAIN] = by_name[""]
    roles = Roles(given.train or by_name[TRAIN], given.dev or by_name[DEV], given.test or by_name[TEST])
    if not roles.train:
        fix = f"name them with --train-parts; there are {', '.join(found)}"
        raise UserError("no name of a part tells what to train on", flag=option("train_parts"), fix=fix)
    both = sorted(set(roles.train) & {*roles.dev, *roles.test})
    if both:
        raise UserError(f"part {both[0]} is trained on and decoded", flag="--*-parts", fix="name other parts")
    return roles


def hold_out(parts: Mapping[str, Part], roles: Roles, share: float) -> tuple[dict[str, Part], Roles]:
    """The parts, and new ones of the names "dev" and "test" in place of those that lack, taken from the training parts.

    Each new part has about `share` of the seconds of the training speech.  A speaker, and a recording, is in one part
    alone.  Where there are too few speakers, recordings are held out.  The same speech is held out each time.

    Raises:
      UserError: too few recordings to hold some out.
    """
    lacking = [role for role in (TEST, DEV) if not getattr(roles, role)]
    if not lacking:
        return dict(parts), roles
    segments = [segment for name in roles.train for segment in parts[name].segments]
    groups = _groups(segments, len(lacking))
    seconds = share * sum(segment.duration for segment in segments)
    held = {role: _taken(groups, seconds) for role in lacking}
    by_recording = {key: role for role, keys in held.items() for key in keys}
    recordings = {key: its for name in roles.train for key, its in parts[name].recordings.items()}
    made = dict(parts)
    for name in roles.train:
        kept = [segment for segment in parts[name].segments if segment.recording_id not in by_recording]
        made[name] = _part(kept, recordings)
    for role in lacking:
        made[role] = _part([each for each in segments if by_recording.get(each.recording_id) == role], recordings)
    train = [name for name in roles.train if made[name].segments]
    return made, Roles(train, roles.dev or [DEV], roles.test or [TEST])


def _groups(segments: Sequence[SupervisionSegment], lacking: int) -> list[list[SupervisionSegment]]:
    """Segments that must stay together, in a random order that is the same each time."""
    with_speaker = sum(bool(segment.speaker) for segment in segments)
    by_speaker, by_recording = (_connected(segments, keys) for keys in (("speaker", "recording_id"), ("recording_id",)))
    for groups, what in ((by_speaker if with_speaker else [], "speakers"), (by_recording, "recordings")):
        if len(groups) > lacking:
            random.Random(0).shuffle(groups)
            if what == "recordings":
                why = "there are too few speakers" if with_speaker else "no segment names its speaker"
                how = f", for {why}: the same voice may be on both sides"
            else:
                without = len(segments) - with_speaker
                how = f"; {without} segments name no speaker, and go by their recordings" if without else ""
            logging.info(f"{what} are held out of the training parts for the parts that lack{how}")
            return groups
    fix = "name parts with --dev-parts and --test-parts"
    raise UserError(
        f"{len(groups)} recordings are too few to hold {lacking} parts out", flag="--held-out-share", fix=fix
    )


def _connected(segments: Iterable[SupervisionSegment], keys: Sequence[str]) -> list[list[SupervisionSegment]]:
    """Groups of segments, such that two with one value of any of the keys are in one group."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for segment in segments:
        nodes = [(key, value) for key in keys if (value := getattr(segment, key))]
        for node in nodes[1:]:
            parent[root(node)] = root(nodes[0])
    groups = defaultdict(list)
    for segment in segments:
        groups[root(("recording_id", segment.recording_id))].append(segment)
    return sorted(groups.values(), key=lambda group: min(segment.recording_id for segment in group))


def _taken(groups: list[list[SupervisionSegment]], seconds: float) -> set[str]:
    """Takes groups of about `seconds` out of `groups`, one at least; returns their recordings."""
    taken, total = [], 0.0
    for group in list(groups):
        duration = sum(segment.duration for segment in group)
        if total < seconds and total + duration <= OVERSHOOT * seconds:
            taken.append(group)
            total += duration
    if not taken:
        taken = [min(groups, key=lambda group: sum(segment.duration for segment in group))]
    for group in taken:
        groups.remove(group)
    return {segment.recording_id for group in taken for segment in group}


def _part(segments: list[SupervisionSegment], recordings: Mapping) -> Part:
    return Part({segment.recording_id: recordings[segment.recording_id] for segment in segments}, segments)


def apart_by_channel(part: Part) -> Part:
    """The part with a speaker for each channel: some recipes give both sides of a call one name."""
    channels = defaultdict(set)
    for segment in part.segments:
        channels[segment.recording_id, segment.speaker].add(segment.channel)
    segments = [
        segment if not segment.speaker or len(channels[segment.recording_id, segment.speaker]) == 1
        else fastcopy(segment, speaker=f"{segment.speaker}-{segment.channel}")
        for segment in part.segments
    ]  # fmt: skip
    return part._replace(segments=segments)
