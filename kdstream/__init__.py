"""kdstream: streaming speech recognition by distillation from a non-streaming teacher.

    recognizer = kdstream.load("exp/distilled")
    print(recognizer.transcribe("audio.wav").text)

torch, sherpa-onnx and the rest are imported when they are used.
"""

from kdstream.errors import UserError
from kdstream.recognizer import Recognizer, Stream, load
from kdstream.transcription import Transcription, Word

__all__ = ["Recognizer", "Stream", "Transcription", "UserError", "Word", "__version__", "load"]

__version__ = "0.2.0"  # pyproject.toml reads it here
