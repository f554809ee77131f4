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
from lhotse.audio import AudioLoadingError, AudioSource

from kdstream.audio.files import open_sound, read_head
from kdstream.audio.find import find_audio
from kdstream.corpus.without_audio import warn_of_transcripts_without_audio
from kdstream.data.sources import last_line
from kdstream.data.sphere import sphere_without_sph2pipe
from kdstream.errors import UserError, option

WHOLE = "all"  # the name of the only part of a corpus that has no parts
NO_NAME = re.compile(r"[^\w.-]+")  # what the name of a part may not hold: it becomes part of file names
# How recipes log what they pass over
LEFT_OUT = ("no such file", "no transcript", "no corresponding", "missing", "skipping")


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
    Raises UserError for a word that is none of them, and a quotation mark without its other one.
    """
    arguments: dict[str, Any] = {}
    try:
        pairs = shlex.split(text)
    except ValueError as error:
        fix = """put a value with an apostrophe into double quotes, e.g. "speaker=\\"O'Neil\\"\""""
        raise UserError(str(error).lower(), flag=option("recipe_args", text), fix=fix) from error
    for pair in pairs:
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
    with _listening(name, recipe) as log, sphere_without_sph2pipe():
        try:
            found = recipe(**given)
        except Exception as error:  # each recipe raises its own kinds at a tree that is not as it expects
            raise _explained(error, name, corpus_dir, log.last) from error
    parts = dict(_parts(found, ()))
    if not any(part.segments for part in parts.values()):
        fix = "a recipe for speech recognition is needed; see --recipe-args too"
        raise UserError(f"{corpus_dir}: Lhotse's prepare_{name} found no transcribed speech", fix=fix)
    warn_of_transcripts_without_audio(
        name, corpus_dir, arguments, {each for part in parts.values() for each in part.recordings}
    )
    return {part: _with_whole_paths(its, corpus_dir) for part, its in parts.items()}


def _explained(error: Exception, name: str, corpus_dir: Path, logged: str) -> UserError:
    """Why a recipe stopped, with the file where it is one that cannot be opened: Lhotse's own error names none.

    logged: what the recipe logged last, which often says in which part it is.
    """
    stopped = f"Lhotse's prepare_{name} stopped"
    unreadable = _first_unreadable(corpus_dir) if isinstance(error, AudioLoadingError) else None
    if unreadable is not None:
        return UserError(f"{unreadable.problem}: {stopped}", fix=f"{unreadable.fix}, or take it out of the corpus")
    after = f" after '{logged}'" if logged else ""
    fix = f"see the layout that it expects: python -c 'import lhotse.recipes as r; help(r.prepare_{name})'"
    return UserError(f"{corpus_dir}: {stopped}{after} ({type(error).__name__}: {last_line(error)})", fix=fix)


def _first_unreadable(corpus_dir: Path) -> UserError | None:
    """What is wrong with the first audio file of the corpus that libsndfile does not open."""
    try:
        paths = find_audio([str(corpus_dir)])
    except UserError:  # it lies elsewhere, or is of other kinds
        return None
    for path in paths:
        try:
            open_sound(path, read_head(path), look_for_more=False).close()
        except UserError as error:
            return error
    return None


class _Log(logging.Handler):
    """Hears what is logged while a recipe runs.

    module: of the recipe.
    last: what that logged last.
    left_out: lines by which Lhotse says that it passes something over.
    """

    def __init__(self, module: str) -> None:
        super().__init__(logging.INFO)
        self.module, self.last = module, ""
        self.left_out: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.module == self.module:
            self.last = line
        if any(word in line.lower() for word in LEFT_OUT):
            self.left_out.append(line)


@contextmanager
def _listening(name: str, recipe: Callable[..., Any]) -> Iterator[_Log]:
    """Repeats as one warning what a recipe logged that it left out, which scrolls by among its other lines."""
    log = _Log(recipe.__module__.rpartition(".")[2])
    logging.getLogger().addHandler(log)
    try:
        yield log
    finally:
        logging.getLogger().removeHandler(log)
    if log.left_out:
        shown = "; ".join(dict.fromkeys(log.left_out[:3]))
        logging.warning(f"prepare_{name} logged {len(log.left_out)} times that something is not there: {shown}")


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
