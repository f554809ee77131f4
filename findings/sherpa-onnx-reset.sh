#!/usr/bin/env bash
# sherpa-onnx 2.0.1: after reset(stream) greedy search remembers the last tokens, and modified beam search does not.
#
# Expected: OnlineRecognizer.reset(stream) does the same to a streaming transducer's predictor with both searches.
# Happens: greedy_search goes on from the last tokens, and modified_beam_search from blanks, as a new stream does.  So
#   the words after an endpoint depend on the search.
# So: where each segment is to begin as an utterance does, take modified_beam_search; with max_active_paths=1 its beam
#   is one path.
#
#   bash findings/sherpa-onnx-reset.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   sherpa-onnx 2.0.1, greedy_search: ['A'] before the reset, [] after it
#   sherpa-onnx 2.0.1, modified_beam_search: ['A'] before the reset, ['A'] after it
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sherpa-onnx==2.0.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""A transducer of three tokens whose predictor decides alone: A after a blank, a blank after A."""

import sys

import numpy as np
import onnx
import sherpa_onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
AFTER_BLANK = np.float32([[0, 4, 0]])  # logits of blank, A, B
AFTER_A = np.float32([[4, 0, 0]])


def value(name, dtype, *shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def save(name, nodes, inputs, outputs, constants, **metadata):
    weights = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {key: str(item) for key, item in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")


# Hears 9 frames, moves on by 4, gives 2 frames of zeros.
save(
    "encoder",
    [
        helper.make_node("Gather", ["x", "two"], ["frames"], axis=1),
        helper.make_node("Gather", ["frames", "two"], ["bins"], axis=2),
        helper.make_node("Mul", ["bins", "zero"], ["encoder_out"]),
        helper.make_node("Identity", ["h"], ["new_h"]),
        helper.make_node("Identity", ["c"], ["new_c"]),
    ],
    [value("x", FLOAT, "N", 9, 80), value("h", FLOAT, 1, "N", 2), value("c", FLOAT, 1, "N", 2)],
    [value("encoder_out", FLOAT, "N", 2, 2), value("new_h", FLOAT, 1, "N", 2), value("new_c", FLOAT, 1, "N", 2)],
    {"two": np.array([0, 1]), "zero": np.float32([0])},
    model_type="lstm",
    version=1,
    model_author="nobody",
    T=9,
    decode_chunk_len=4,
    num_encoder_layers=1,
    rnn_hidden_size=2,
    d_model=2,
)
# Gives the last two tokens as numbers; a new stream's are below 1.
save(
    "decoder",
    [helper.make_node("Cast", ["y"], ["tokens"], to=FLOAT), helper.make_node("Relu", ["tokens"], ["decoder_out"])],
    [value("y", INT64, "N", 2)],
    [value("decoder_out", FLOAT, "N", 2)],
    {},
    vocab_size=3,
    context_size=2,
)
save(
    "joiner",
    [
        helper.make_node("Add", ["encoder_out", "decoder_out"], ["both"]),
        helper.make_node("Gemm", ["both", "weight", "bias"], ["logit"]),
    ],
    [value("encoder_out", FLOAT, "N", 2), value("decoder_out", FLOAT, "N", 2)],
    [value("logit", FLOAT, "N", 3)],
    {"weight": np.concatenate([np.zeros_like(AFTER_A), AFTER_A - AFTER_BLANK]), "bias": AFTER_BLANK},
    joiner_dim=2,
)
with open("tokens.txt", "w") as file:
    file.write("<blk> 0\nA 1\nB 2\n")
# One second of silence, a reset, and one more second: the tokens of each.
as_stated = True
for method, after in ("greedy_search", []), ("modified_beam_search", ["A"]):
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens="tokens.txt",
        encoder="encoder.onnx",
        decoder="decoder.onnx",
        joiner="joiner.onnx",
        num_threads=1,
        decoding_method=method,
    )
    stream = recognizer.create_stream()
    seen = []
    for _ in range(2):
        stream.accept_waveform(16000, np.zeros(16000, np.float32))
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        seen.append(recognizer.tokens(stream))
        recognizer.reset(stream)
    print(f"sherpa-onnx {sherpa_onnx.version}, {method}: {seen[0]} before the reset, {seen[1]} after it")
    as_stated &= seen == [["A"], after]
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
