"""A corpus by Lhotse's recipe: its manifests, of segments that can be used, in parts that have a purpose."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lhotse import RecordingSet, SupervisionSet
from tqdm import tqdm

from kdstream.corpus.parts import Roles, apart_by_channel, choose_roles, hold_out
from kdstream.corpus.recipes import Part, run_recipe
from kdstream.corpus.segments import LeftOut, usable_part
from kdstream.corpus.text_remove import REMOVE_THEM, check_no_special
from kdstream.data.cuts import write_manifest
from kdstream.data.sources import check_files
from kdstream.errors import UserError
from kdstream.files import write_text

RAW = "lhotse"  # the folder of what the recipe writes itself


def parts_file(output_dir: Path, recipe: str) -> Path:
    """Tells prepare.sh, which sources it, what the parts are for."""
    return output_dir / f"{recipe}_parts.sh"


def prepare_recipe(
    recipe: str,
    corpus_dir: Path,
    output_dir: Path,
    arguments: Mapping[str, Any],
    given: Roles,
    held_out_share: float,
    jobs: int,
    channel: int | None = None,
    text_remove: str = "",
) -> Roles:
    """Writes RECIPE_{recordings,supervisions}_<part>.jsonl.gz and `parts_file`.

    Args: see `run_recipe`, `choose_roles`, `hold_out` and `usable_part`.
    """
    if not corpus_dir.is_dir():
        raise UserError(f"{corpus_dir}: no such directory", flag="--corpus-dir", fix="name where the corpus is")
    shutil.rmtree(output_dir / RAW, ignore_errors=True)  # some recipes would read there what other arguments gave
    found = run_recipe(recipe, corpus_dir, output_dir / RAW, arguments, jobs)
    logging.info(f"prepare_{recipe} found {', '.join(f'{name} ({len(p.segments)})' for name, p in found.items())}")
    roles = choose_roles(list(found), given)
    parts = {}
    for name in roles.all:
        left_out = LeftOut(name)
        parts[name] = apart_by_channel(usable_part(found[name], left_out, channel, text_remove))
        left_out.log(len(parts[name].segments), output_dir / f"{recipe}_left_out_{name}.txt")
        if not parts[name].segments:
            raise UserError(f"part {name}: has no segments", flag="--*-parts", fix=f"name others of {', '.join(found)}")
        check_no_special((each.text or "" for each in parts[name].segments), f"part {name}", REMOVE_THEM)
    for name in roles.all:
        _check_audio(parts[name], name)
    parts, roles = hold_out(parts, roles, held_out_share)
    for name in roles.all:
        _write(parts[name], output_dir, recipe, name)
    lines = {"train_parts": roles.train, "dev_parts": roles.dev, "test_parts": roles.test}
    write_text(parts_file(output_dir, recipe), "".join(f"{key}={','.join(names)}\n" for key, names in lines.items()))
    return roles


def _check_audio(part: Part, name: str) -> None:
    """Raises UserError for a file of which a part would be heard: its transcript tells of more."""
    for recording in tqdm(part.recordings.values(), desc=f"audio of {name}", unit=" files", disable=None):
        check_files(recording, f"take {recording.id} out of the corpus")


def _write(part: Part, output_dir: Path, recipe: str, name: str) -> None:
    recordings, segments = RecordingSet.from_recordings(part.recordings.values()), part.segments
    write_manifest(recordings, output_dir / f"{recipe}_recordings_{name}.jsonl.gz")
    write_manifest(SupervisionSet.from_segments(segments), output_dir / f"{recipe}_supervisions_{name}.jsonl.gz")
    hours = sum(segment.duration for segment in segments) / 3600
    logging.info(f"{name}: {len(segments)} segments of {len(part.recordings)} recordings, {hours:.2f} h")
