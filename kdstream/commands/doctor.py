"""What is installed, and what kdstream will therefore use.

    python -m kdstream

Exits with 1 when a package that kdstream needs is missing.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

NEEDED = (
    ("torch", "models and training"),
    ("numpy", "models and training"),
    ("safetensors", "checkpoints without pickle"),
    ("tqdm", "progress bars"),
    ("lhotse", "data and features"),
    ("sentencepiece", "tokens"),
    ("soundfile", "reading audio"),
    ("kaldialign", "word error rates"),
    ("tensorboard", "training curves"),
)
OPTIONAL = (
    ("k2", "pruned RNN-T loss, instead of kdstream's own; fast_beam_search"),
    ("kaldifeat", "features with --feature-extractor kaldifeat, instead of lhotse's"),
    ("onnx", "export"),
    ("onnxruntime", "checking the export"),
    ("sherpa-onnx", "running the export"),
    ("aiohttp", "the live page"),
    ("sounddevice", "transcribing the microphone"),
    ("matplotlib", "plots of the report"),
    ("torchaudio", "reference alignments by a CTC head"),
    ("hibari-tts", "voices of the embedded corpus"),
    ("piper-tts", "voices of the embedded corpus"),
    ("espeakng-loader", "voices of the embedded corpus"),
)


def installed_versions(names: list[str]) -> dict[str, str | None]:
    """Package name -> version, None where it is missing."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def package_table(versions: dict[str, str | None]) -> list[str]:
    """One line per package: name, version or missing, what it is for."""
    rows: list[tuple[str, str, str]] = [("package", "version", "for")]
    for group, absent in ((NEEDED, "MISSING"), (OPTIONAL, "missing")):
        rows += [(name, versions[name] or absent, purpose) for name, purpose in group]
    return [f"{name:16s} {version:10s} {purpose}" for name, version, purpose in rows]


def rnnt_loss_line() -> str:
    """Which implementation of the pruned RNN-T loss training will use."""
    from kdstream.models.rnnt_loss import backend

    if backend() == "k2":
        return "RNN-T loss: k2"
    return "RNN-T loss: kdstream's own, in torch (the same definition as k2's)"


def device_line() -> str:
    """Which device training will use."""
    import torch

    if not torch.cuda.is_available():
        return f"device: CPU, {torch.get_num_threads()} threads (no CUDA device)"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"device: CUDA {torch.version.cuda}, {torch.cuda.device_count()} x {names}"


def advice(versions: dict[str, str | None]) -> list[str]:
    """What to do about packages that are not there."""
    lines = []
    torch_version = versions["torch"]
    missing = [name for name, _ in NEEDED if versions[name] is None]
    if missing:
        lines.append(f"missing: {', '.join(missing)}; run: bash local/setup_env.sh")
    if versions["k2"] is None:
        lines.append(
            f"k2: find the version built for torch {torch_version or 'X'} and Python {platform.python_version()} on "
            "https://k2-fsa.github.io/k2/cpu.html (with CUDA: cuda.html beside it), then: "
            "pip install k2==VERSION -f https://k2-fsa.github.io/k2/cpu.html; "
            "for the k2 tests alone: bash local/setup_env.sh --k2"
        )
    if versions["kaldifeat"] is None:
        lines.append(
            "kaldifeat: bash local/setup_env.sh --kaldifeat builds it (some minutes, needs g++); with CUDA: a wheel "
            f"for torch {torch_version or 'X'} from https://csukuangfj.github.io/kaldifeat/cuda.html"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    versions = installed_versions([name for name, _ in (*NEEDED, *OPTIONAL)])
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print("\n".join(package_table(versions)))
    print()
    if versions["torch"]:
        print(rnnt_loss_line())
        print(device_line())
    if versions["lhotse"]:
        print("features: lhotse's Fbank, 80 bins" + ", or kaldifeat's where asked for" * bool(versions["kaldifeat"]))
    lines = advice(versions)
    if lines:
        print("\nto get what is missing:")
        print("\n".join(f"  {line}" for line in lines))
    return int(any(versions[name] is None for name, _ in NEEDED))
