#!/usr/bin/env bash
# sherpa-onnx 2.0.1: streaming NeMo CTC models have half the times and wait twice as long for an endpoint.
#
# Expected: a NeMo FastConformer gives a frame for 80 ms, and its file says so: subsampling_factor is 8.  sherpa-onnx
#   requires that entry.  So timestamps are seconds of the audio, and rule2_min_trailing_silence=1.2 wants 1.2 s.
# Happens: OnlineRecognizer.from_nemo_ctc counts each frame as 40 ms, whatever the file says.  A word at 4 s has the
#   timestamp 2 s, and the endpoint comes after 2.4 s of silence.  Nothing is logged.  The same model with a frame for
#   40 ms, as a Conformer has, is right on both.
# So: multiply the timestamps by subsampling_factor / 4, and divide the silences of the endpoint's rules by it.
#
#   bash findings/sherpa-onnx-nemo-times.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   sherpa-onnx 2.0.1: words at 2.0, 4.0 and 6.0 s, and an endpoint after 1.2 s of silence
#   subsampling_factor 4: timestamps [2.0, 4.0, 6.0], endpoint after 1.4 s
#   subsampling_factor 8: timestamps [1.0, 2.0, 3.0], endpoint after 2.5 s
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sherpa-onnx==2.0.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""A CTC model that says A where it hears noise, for three words of noise, with frames of 40 and of 80 ms."""

import sys

import numpy as np
import onnx
import sherpa_onnx
from onnx import TensorProto, helper, numpy_helper

RATE, CHUNK, BINS = 16000, 16, 80
WORDS, END, SILENCE = (2, 4, 6), 6.5, 1.2  # each word is 0.5 s long
CACHES = "cache_last_channel", "cache_last_time"


def write(factor):
    """Writes model.onnx with the inputs, outputs and metadata of NeMo's export, where factor features become a frame.

    A's logit is the mean of the log-mel features, and the blank's is -8.
    """
    size = factor * BINS
    constants = {
        "start": np.array([0]),
        "end": np.array([CHUNK]),
        "axis": np.array([2]),
        "shape": np.array([0, CHUNK // factor, size]),
        "weight": np.concatenate([np.full((size, 1), 1 / size), np.zeros((size, 1))], 1).astype(np.float32),
        "bias": np.float32([0, -8]),
        "frames": np.array([CHUNK // factor]),
    }
    nodes = [
        helper.make_node("Slice", ["audio_signal", "start", "end", "axis"], ["chunk"]),
        helper.make_node("Transpose", ["chunk"], ["features"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["features", "shape"], ["joined"]),
        helper.make_node("MatMul", ["joined", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["logprobs"], axis=2),
        helper.make_node("Identity", ["frames"], ["encoded_lengths"]),
        *(helper.make_node("Identity", [cache], [f"{cache}_next"]) for cache in CACHES),
        helper.make_node("Identity", ["cache_last_channel_len"], ["cache_last_channel_next_len"]),
    ]
    real, whole = TensorProto.FLOAT, TensorProto.INT64
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "model",
        [
            value("audio_signal", real, ["N", BINS, "T"]),
            value("length", whole, ["N"]),
            *(value(cache, real, ["N", 1, 1, 1]) for cache in CACHES),
            value("cache_last_channel_len", whole, ["N"]),
        ],
        [
            value("logprobs", real, ["N", "L", 2]),
            value("encoded_lengths", whole, [1]),
            *(value(f"{cache}_next", real, ["N", 1, 1, 1]) for cache in CACHES),
            value("cache_last_channel_next_len", whole, ["N"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    metadata = {
        "model_type": "EncDecCTCModelBPE",
        "window_size": CHUNK + 1,
        "chunk_shift": CHUNK,
        "subsampling_factor": factor,
        "vocab_size": 1,  # without the blank
        **{f"{cache}_dim{axis}": 1 for cache in CACHES for axis in (1, 2, 3)},
    }
    helper.set_model_props(model, {key: str(item) for key, item in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "model.onnx")


def decode(audio):
    """The tokens' timestamps, and the silence after the last word when the endpoint came."""
    recognizer = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
        tokens="tokens.txt",
        model="model.onnx",
        num_threads=1,
        enable_endpoint_detection=True,
        rule1_min_trailing_silence=60,
        rule2_min_trailing_silence=SILENCE,
        rule3_min_utterance_length=60,
    )
    stream = recognizer.create_stream()
    for end in range(RATE // 10, len(audio) + 1, RATE // 10):
        stream.accept_waveform(RATE, audio[end - RATE // 10 : end])
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        if recognizer.is_endpoint(stream) and end / RATE > END:
            return recognizer.timestamps(stream), end / RATE - END
    raise RuntimeError("no endpoint")


audio = np.zeros(12 * RATE, np.float32)
for start in WORDS:
    audio[start * RATE : start * RATE + RATE // 2] = 0.1 * np.random.default_rng(0).standard_normal(RATE // 2)
with open("tokens.txt", "w") as file:
    file.write("A 0\n<blk> 1\n")
print(f"sherpa-onnx {sherpa_onnx.version}: words at 2.0, 4.0 and 6.0 s, and an endpoint after {SILENCE} s of silence")
as_stated = True
for factor, ratio in (4, 1), (8, 0.5):
    write(factor)
    times, silence = decode(audio)
    rounded = [round(time, 1) for time in times]
    print(f"subsampling_factor {factor}: timestamps {rounded}, endpoint after {silence:.1f} s")
    as_stated &= len(times) == 3 and all(abs(time - ratio * word) < 0.1 for time, word in zip(times, WORDS))
    as_stated &= SILENCE <= silence * ratio < SILENCE + 0.3
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
