"""kdstream: streaming speech recognition by distillation from a non-streaming teacher.

    recognizer = kdstream.load("exp/distilled")
    print(recognizer.transcribe("audio.wav").text)

numpy, torch, sherpa-onnx and the rest are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdstream.errors import UserError
    from kdstream.recognizer import Recognizer, Stream, load
    from kdstream.transcription import Transcription, Word

__all__ = ["Recognizer", "Stream", "Transcription", "UserError", "Word", "__version__", "load"]

__version__ = "0.2.0"  # pyproject.toml reads it here

_ROOMS = {
    "UserError": "errors",
    "Recognizer": "recognizer",
    "Stream": "recognizer",
    "load": "recognizer",
    "Transcription": "transcription",
    "Word": "transcription",
}


def __getattr__(name: str) -> Any:
    """Imports what `__all__` names at its first use, so that a command's --help waits for none of it."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kdstream.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value
