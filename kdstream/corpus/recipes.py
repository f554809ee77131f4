"""Any corpus that Lhotse knows: runs its prepare function, and gives back the parts that it finds."""

from __future__ import annotations

import inspect
import json
import logging
import multiprocessing
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import CutSet, Recording, SupervisionSegment, SupervisionSet, recipes
from lhotse.audio import AudioSource

from kdstream.data.sources import last_line
from kdstream.data.sphere import sphere_without_sph2pipe
from kdstream.errors import UserError, option

WHOLE = "all"  # the name of the only part of a corpus that has no parts
NO_NAME = re.compile(r"[^\w.-]+")  # what the name of a part may not hold: it becomes part of file names
LEFT_OUT = ("no such file", "no transcript", "missing", "skipping")  # how recipes log what they pass over


class Part(NamedTuple):
    """recordings: by id.  segments: what is said in them, with times from the beginning of the recording."""

    recordings: dict[str, Recording]
    segments: list[SupervisionSegment]


def find_recipe(name: str) -> Callable[..., Any]:
    """Lhotse's prepare_NAME.  Raises UserError, which names like ones, where there is none."""
    recipe = getattr(recipes, f"prepare_{name}", None)
    if recipe is None:
        known = [each.removeprefix("prepare_") for each in sorted(dir(recipes)) if each.startswith("prepare_")]
        raise UserError("Lhotse has no such recipe", flag=option("lhotse_recipe", name), fix=f"use {', '.join(known)}")
    return recipe


def parse_arguments(text: str) -> dict[str, Any]:
    """The arguments of a recipe from words such as languages=en,de and num_jobs=4, with blanks between them.

    A value is true, false, null, a number, or a word.  With commas it is a list: en,de or, of one, en,
    """
    arguments: dict[str, Any] = {}
    for pair in shlex.split(text):
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            fix = "write NAME=VALUE, with blanks between them, e.g. 'languages=en normalize_text=none'"
            raise UserError(f"{pair} names no argument", flag="--recipe-args", fix=fix)
        arguments[name] = [_value(each) for each in value.split(",") if each] if "," in value else _value(value)
    return arguments


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def run_recipe(
    name: str, corpus_dir: Path, output_dir: Path, arguments: Mapping[str, Any], jobs: int
) -> dict[str, Part]:
    """The parts that Lhotse's recipe finds in `corpus_dir`, by name.

    Args:
      output_dir: where the recipe itself writes, if it wants to.
      arguments: of the recipe, beside those that are known here: directories, processes, and whole paths.
    Raises:
      UserError: an argument that the recipe does not have or lacks, or what the recipe itself refuses.
    """
    recipe = find_recipe(name)
    parameters = inspect.signature(recipe).parameters
    unknown = sorted(set(arguments) - set(parameters))
    if unknown:
        raise UserError(
            f"prepare_{name} has no {', '.join(unknown)}", flag="--recipe-args", fix=f"it has {', '.join(parameters)}"
        )
    corpus_argument = "corpus_dir" if "corpus_dir" in parameters else next(iter(parameters))
    if multiprocessing.get_start_method() != "fork":
        jobs = 1  # other processes would not know of SphereBackend
    given = {corpus_argument: corpus_dir, "output_dir": output_dir, "absolute_paths": True, "num_jobs": jobs}
    given = {key: value for key, value in given.items() if key in parameters} | dict(arguments)
    lacking = [key for key, it in parameters.items() if it.default is it.empty and key not in given]
    if lacking:
        values = " ".join(f"{each}=..." for each in lacking)
        raise UserError(f"prepare_{name} needs {', '.join(lacking)}", flag="--recipe-args", fix=f"add '{values}'")
    output_dir.mkdir(parents=True, exist_ok=True)
    with _left_out_is_counted(name), sphere_without_sph2pipe():
        try:
            found = recipe(**given)
        except Exception as error:  # each recipe raises its own kinds at a tree that is not as it expects
            reason = f"{type(error).__name__}: {last_line(error)}"
            fix = f"see the layout that it expects: python -c 'import lhotse.recipes as r; help(r.prepare_{name})'"
            raise UserError(f"{corpus_dir}: Lhotse's prepare_{name} stopped ({reason})", fix=fix) from error
    parts = dict(_parts(found, ()))
    if not any(part.segments for part in parts.values()):
        fix = "a recipe for speech recognition is needed; see --recipe-args too"
        raise UserError(f"{corpus_dir}: Lhotse's prepare_{name} found no transcribed speech", fix=fix)
    return {part: _with_whole_paths(its, corpus_dir) for part, its in parts.items()}


@contextmanager
def _left_out_is_counted(name: str) -> Iterator[None]:
    """Repeats as one warning what a recipe logged that it left out, which scrolls by among its other lines."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if any(word in line.lower() for word in LEFT_OUT):
                lines.append(line)

    collector = Collector(logging.INFO)
    logging.getLogger().addHandler(collector)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(collector)
    if lines:
        shown = "; ".join(dict.fromkeys(lines[:3]))
        logging.warning(f"prepare_{name} logged {len(lines)} times that something is not there: {shown}")


def _parts(found: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Part]]:
    """Recipes return a set, a dict of kinds to sets, or dicts of parts, languages and the like to these."""
    if isinstance(found, Mapping) and "cuts" in found and "recordings" not in found:
        found = found["cuts"]
    if isinstance(found, CutSet):
        recordings, supervisions, _ = found.decompose()
        found = {"recordings": recordings, "supervisions": supervisions}
    if _is_part(found):
        segments = found.get("supervisions") or SupervisionSet.from_segments([])
        name = "-".join(NO_NAME.sub("_", each) for each in path) or WHOLE
        yield name, Part({recording.id: recording for recording in found["recordings"]}, list(segments))
    elif isinstance(found, Mapping):
        for name, below in found.items():
            parts_something = len(found) > 1 or _is_part(below)  # one language alone does not
            yield from _parts(below, (*path, str(name)) if parts_something else path)


def _is_part(found: Any) -> bool:
    return isinstance(found, CutSet) or (isinstance(found, Mapping) and ("recordings" in found or "cuts" in found))


def _with_whole_paths(part: Part, corpus_dir: Path) -> Part:
    recordings = {key: replace(its, sources=[_whole(it, corpus_dir) for it in its.sources])
                  for key, its in part.recordings.items()}  # fmt: skip
    return part._replace(recordings=recordings)


def _whole(source: AudioSource, corpus_dir: Path) -> AudioSource:
    """The source with an absolute path: of the file as it is named, or of one by this name in the corpus."""
    named = Path(str(source.source))
    if source.type != "file" or named.is_absolute():
        return source
    places = (named, corpus_dir / named, corpus_dir.parent / named)
    return replace(source, source=str(next((p for p in places if p.exists()), named).absolute()))
