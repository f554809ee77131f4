"""The package: its extras, what each command imports, what the wheel holds."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kdstream
from kdstream.commands import COMMANDS
from kdstream.config.experiment import ExperimentConfig
from support.decoding import make_experiment, write_noise
from support.packaging import extras_of_pyproject, read_requirements, run_without
from support.paths import ROOT

pytestmark = pytest.mark.slow

PACKAGE_OF_IMPORT = {
    "hibari": "hibari-tts",
    "piper": "piper-tts",
    "espeakng_loader": "espeakng-loader",
    "sherpa_onnx": "sherpa-onnx",
}
LEFT_OUT = ("label",)  # extras that the tests do without
HEAVY = ("torch", "lhotse", "sherpa_onnx", "onnxruntime", "onnx", "aiohttp", "matplotlib")


def test_requirements_are_the_extra_all_and_all_is_all_extras():
    extras = extras_of_pyproject()
    assert read_requirements(ROOT / "requirements.txt") == extras["all"]
    others = [extra for name, extra in extras.items() if name not in LEFT_OUT]
    assert extras["all"] == {name: bounds for extra in others for name, bounds in extra.items()}
    assert all(bounds.startswith(">=") for bounds in extras["all"].values())


def version(bounds: str) -> tuple[int, ...]:
    return tuple(int(part) for part in bounds.partition(",")[0].strip("=>").split(".") if part.isdigit())


@pytest.mark.parametrize(
    "constraints, extras", [("constraints.txt", ("all", *LEFT_OUT)), ("constraints-k2.txt", ["all"])]
)
def test_constraints_pin_every_requirement_within_its_bounds(constraints, extras):
    pinned = read_requirements(ROOT / constraints)
    for name, bounds in (item for extra in extras for item in extras_of_pyproject()[extra].items()):
        assert version(pinned[name]) >= version(bounds), name


def third_party_imports(module: str, seen: set[str]) -> set[str]:
    """Packages that importing a module of kdstream imports, through the modules that it imports."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not path.is_file():
        return set()
    seen.add(module)
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    # Commands import what they run in functions; elsewhere, and in what only looks around, such imports are optional.
    is_command = module.startswith("kdstream.commands.") and not module.endswith(".doctor")
    for node in ast.walk(tree) if is_command else tree.body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    found: set[str] = set()
    for name in names:
        top = name.split(".")[0]
        if top == "kdstream":
            found |= third_party_imports(name, seen)
        elif top not in sys.stdlib_module_names:
            found.add(PACKAGE_OF_IMPORT.get(top, top))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_extra_of_a_command_brings_all_that_it_imports(name):
    command = COMMANDS[name]
    brought = extras_of_pyproject()[command.extra]
    imported = third_party_imports(f"kdstream.{command.module}", set())
    assert imported <= set(brought), f"kdstream[{command.extra}] lacks {sorted(imported - set(brought))}"


def test_kdstream_imports_nothing_heavy():
    done = run_without(HEAVY, "import kdstream, kdstream.commands; print(kdstream.load.__name__)")
    assert done.stdout == "load\n", done.stderr


def test_transcribe_runs_without_onnx_scores_or_locks(tmp_path):
    exp_dir, wav = make_experiment(tmp_path, causal=True), write_noise(tmp_path / "a.wav", 1.5)
    hidden = (
        "onnx", "onnxruntime", "sherpa_onnx", "aiohttp", "kaldialign", "fcntl", "torchaudio", "tensorboard",
        "matplotlib", "scipy",
    )  # fmt: skip
    main = "from kdstream.commands import main; main()"
    done = run_without(hidden, main, "transcribe", "--exp-dir", exp_dir, "--chunk-size", 8, wav)
    assert done.returncode == 0 and done.stdout.startswith(f"{wav}: "), done.stderr
    api = "import sys, kdstream; print(kdstream.load(sys.argv[1]).transcribe(sys.argv[2]).text)"
    other = write_noise(tmp_path / "other.flac", 1.5, rate=44100, channels=2)
    done = run_without(hidden, api, exp_dir, other)
    assert len(done.stdout) > 10, done.stderr


def test_a_missing_package_is_named_with_its_extra(tmp_path):
    main = "from kdstream.commands import main; main()"
    ExperimentConfig().save(tmp_path)
    for package, command, extra, *flags in (
        ("onnx", "export", "export"),
        ("aiohttp", "serve", "serve", "encoder.onnx"),
        ("torch", "decode", "decode", "--exp-dir", tmp_path),
        ("tensorboard", "report", "report", "--exp-root", tmp_path),
    ):
        assert run_without([package], main, command, "--help").returncode == 0
        done = run_without([package], main, command, *flags)
        assert done.returncode == 1
        assert done.stderr == (
            f"error: kdstream {command}: needs {package}, which is not installed; "
            f"run: pip install 'kdstream[{extra}]'\n"
        )
    (tmp_path / "config.json").write_text("{}")
    api = "import sys, kdstream; kdstream.load(sys.argv[1], runtime='torch')"
    done = run_without(["torch"], api, tmp_path)
    assert done.stderr.endswith("needs torch, which is not installed; run: pip install 'kdstream[decode]'\n")


def fake_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_constraints_let_pip_take_torch_without_cuda_where_an_index_offers_it(tmp_path):
    pinned = read_requirements(ROOT / "constraints.txt")
    torch, cublas = pinned["torch"].strip("="), pinned["nvidia-cublas"].strip("=")
    fake_wheel(tmp_path, "torch", torch, "nvidia-cublas")
    fake_wheel(tmp_path, "nvidia_cublas", cublas)
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-index",
        "--find-links", tmp_path, "-c", ROOT / "constraints.txt", "torch",
    ]  # fmt: skip

    def taken() -> str:
        last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        return last.replace("_", "-")

    assert taken() == f"Would install nvidia-cublas-{cublas} torch-{torch}"
    fake_wheel(tmp_path, "torch", f"{torch}+cpu")
    assert taken() == f"Would install torch-{torch}+cpu"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built from a copy of what it needs."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("kdstream", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("kdstream-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        entry_points = archive.read(metadata).decode()
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "kdstream").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    data = {"kdstream/py.typed", "kdstream/serving/page.html", "kdstream/commands/icefall_results.json"}
    assert data <= package
    assert {name for name in names if ".dist-info/" not in name} == package
    assert "kdstream = kdstream.commands:main" in entry_points
    assert wheel.name == f"kdstream-{kdstream.__version__}-py3-none-any.whl"


@pytest.mark.slow
def test_the_wheel_transcribes_away_from_the_checkout(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(command, check=True)
    (tmp_path / "exp").mkdir()
    exp_dir, wav = make_experiment(tmp_path / "exp", causal=True), write_noise(tmp_path / "a.wav", 1.5)
    done = subprocess.run(
        [tmp_path / "site/bin/kdstream", "transcribe", "--exp-dir", exp_dir, wav],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith(f"{wav}: "), done.stderr
