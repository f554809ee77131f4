"""Speech to text in a few lines: a trained model, or an exported one without torch, behind one interface.

base.py has the interface.  trained.py runs an exp-dir in torch.  exported.py runs what `export` wrote in sherpa-onnx.
loading.py chooses between the two.
"""

from kdstream.recognizer.base import Recognizer, Stream
from kdstream.recognizer.loading import load

__all__ = ["Recognizer", "Stream", "load"]
