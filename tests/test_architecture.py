"""The layout holds: imports run one way, inference never reaches distillation, files stay readable."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "kdstream").rglob("*.py"))
SOURCES = LIBRARY + sorted(path for room in ("egs", "local", "tests") for path in (ROOT / room).rglob("*.py"))
MAX_LINES = 450
MAX_FUNCTION_LINES = 60

# The rooms of the library from the ground up, each with what it may import of those before it.  A new room needs a row.
MAY_IMPORT: dict[str, set[str]] = {
    "units": set(),
    "errors": set(),
    "files": {"errors"},
    "processes": set(),
    "words": set(),
    "hotwords": {"errors", "files", "words"},
    "transcription": {"units", "words"},
    "formats": {"errors", "transcription", "words"},
    "audio": {"units", "errors"},
    "config": {"units", "errors", "files", "words"},
    "endpoints": {"words", "transcription", "config"},
    "models": {"units", "errors", "config"},
    "devices": {"errors", "models"},
    "data": {"units", "errors", "audio", "files", "words", "config", "models"},
    "checkpoints": {"errors", "files", "config", "data", "models"},
    "lm": {"errors", "files", "words", "config", "data", "models", "checkpoints", "devices"},
    "decoding": {
        "units", "errors", "audio", "words", "hotwords", "transcription", "config", "endpoints", "data", "models",
        "checkpoints", "devices", "lm",
    },
    "evaluation": {
        "units", "errors", "files", "words", "config", "data", "models", "checkpoints", "devices", "decoding",
    },
    "kd": {"units", "errors", "files", "config", "data", "models", "checkpoints", "decoding"},
    "training": {"units", "errors", "files", "processes", "config", "data", "models", "checkpoints", "devices", "kd"},
    "export": {
        "units", "errors", "audio", "files", "words", "config", "data", "models", "lm", "decoding", "evaluation",
    },
    "serving": {"units", "errors", "audio", "words", "hotwords", "transcription", "config", "endpoints"},
    "recognizer": {
        "units", "errors", "audio", "words", "transcription", "config", "endpoints", "data", "checkpoints", "devices",
        "decoding", "serving",
    },
    "reporting": {
        "units", "errors", "files", "config", "data", "models", "checkpoints", "kd", "decoding", "evaluation",
    },
    "experiments": {
        "errors", "files", "processes", "words", "config", "checkpoints", "kd", "decoding", "evaluation", "reporting",
    },
    "benchmarks": {
        "units", "errors", "audio", "config", "data", "models", "checkpoints", "devices", "kd", "training", "decoding",
        "evaluation", "export", "reporting",
    },
    "corpus": {
        "units", "errors", "audio", "files", "words", "config", "data", "models", "checkpoints", "devices", "decoding",
        "evaluation",
    },
    "__init__": {"errors", "transcription", "recognizer"},
}  # fmt: skip
ON_TOP = ("commands", "__main__")  # they may import every room
FORBIDDEN_AT_INFERENCE = ("kdstream.kd", "kdstream.training")
INFERENCE_ROOMS = ("decoding", "evaluation", "export", "serving", "recognizer")
INFERENCE_COMMANDS = ("decode", "streaming_decode", "export", "transcribe", "serve", "align")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {module_name(path): path for path in LIBRARY}


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def imported_modules(path: Path) -> set[str]:
    """Every module of kdstream that a file imports, inside functions too, with the packages on the way to it."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(above + ([base] if base else []))
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)  # "from kdstream import data"
    found = {name for name in names if name in MODULES}
    return found | {".".join(name.split(".")[:i]) for name in found for i in range(1, name.count(".") + 1)}


def reachable_modules(path: Path) -> dict[str, str]:
    """Module -> the chain of imports by which `path` reaches it."""
    chains = {name: name for name in imported_modules(path)}
    queue = list(chains)
    while queue:
        module = queue.pop()
        for name in imported_modules(MODULES[module]):
            if name not in chains:
                chains[name] = f"{chains[module]} -> {name}"
                queue.append(name)
    return chains


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def forbidden(chains: dict[str, str]) -> list[str]:
    return [
        chain
        for module, chain in chains.items()
        if any(module == name or module.startswith(name + ".") for name in FORBIDDEN_AT_INFERENCE)
    ]


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_import_reader_follows_chains_and_knows_what_is_forbidden() -> None:
    models, kd = ROOT / "kdstream" / "models", ROOT / "kdstream" / "kd"
    assert {"kdstream", "kdstream.models", "kdstream.models.rnnt_lattice"} <= imported_modules(models / "rnnt_loss.py")
    chain = reachable_modules(models / "transducer.py")["kdstream.models.rnnt_lattice"]
    assert chain == "kdstream.models.rnnt_loss -> kdstream.models.rnnt_lattice"
    assert forbidden(reachable_modules(kd / "distiller.py")) != []
    assert forbidden({"kdstream.training.loop": "a", "kdstream.trainings": "b", "kdstream.kdx": "c"}) == ["a"]


def test_rooms_import_only_rooms_below_them() -> None:
    below: set[str] = set()
    for room, may_import in MAY_IMPORT.items():
        assert may_import <= below, f"{room}: {sorted(may_import - below)} stand after it"
        below.add(room)


@pytest.mark.parametrize("path", [p for p in LIBRARY if room_of(module_name(p)) not in ON_TOP], ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(module_name(path))
    assert room in MAY_IMPORT, f"{path}: a new room; say in MAY_IMPORT what it may import"
    rooms = {room_of(module) for module in imported_modules(path)} - {room, "__init__"}
    assert rooms <= MAY_IMPORT[room], f"{path} imports {sorted(rooms - MAY_IMPORT[room])}"


def circles() -> list[str]:
    """Modules that import themselves by way of others; a package on the way does not count."""

    def is_package(name: str) -> bool:
        return MODULES[name].name == "__init__.py"

    graph = {
        name: [module for module in imported_modules(path) if not is_package(module)]
        for name, path in MODULES.items()
        if not is_package(name)
    }

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        queue = [name]
        while queue:
            new = set(graph[queue.pop()]) - found
            found |= new
            queue += new
        return found

    return [name for name in graph if name in reached(name)]


def test_no_modules_import_each_other() -> None:
    assert circles() == []


@pytest.mark.parametrize("path", [p for p in LIBRARY if room_of(module_name(p)) in INFERENCE_ROOMS], ids=module_name)
def test_inference_never_reaches_distillation_or_training(path: Path) -> None:
    assert forbidden(reachable_modules(path)) == []


@pytest.mark.parametrize("name", INFERENCE_COMMANDS)
def test_inference_commands_never_reach_distillation_or_training(name: str) -> None:
    assert forbidden(reachable_modules(MODULES[f"kdstream.commands.{name}"])) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_readable(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{path}: {lines} lines; split it"
    tree = parse(path)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines; split it"
        wildcard = isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        assert not wildcard, f"{path}:{node.lineno}: wildcard import"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_checkpoints_are_loaded_as_weights_only(path: Path) -> None:
    for name, call in calls(parse(path)):
        if name == "torch.load":
            flags = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert flags.get("weights_only") == "True", f"{path}:{call.lineno}: torch.load without weights_only=True"
