#!/usr/bin/env bash
# sherpa-onnx 2.0.1: by default the token log probabilities of a streaming transducer are not the model's.
#
# Expected: recognizer.ys_probs(stream), "the output log probabilities for each recognized token", are the
#   log-softmax of the joiner's logits.  A token of probability 0.9 has -0.1054.
# Happens: OnlineRecognizer.from_transducer has temperature_scale=2.0, and the softmax is that of logits / 2.  The same
#   token has -0.3862, which is a probability of 0.68.  So it is in greedy_search and in modified_beam_search.
#   Its help says that it affects only confidences; the default stands in the signature alone.
# So: pass temperature_scale=1.0 where ys_probs should be the model's own probabilities.
#
#   bash findings/sherpa-onnx-confidence.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   sherpa-onnx 2.0.1: temperature_scale is 2.0 by default
#   expected, log-softmax of the model's logits: -0.1054; of logits / 2: -0.3862
#   greedy_search, default: tokens ['A'], ys_probs [-0.3862]
#   greedy_search, temperature_scale=1.0: tokens ['A'], ys_probs [-0.1054]
#   modified_beam_search, default: tokens ['A'], ys_probs [-0.3862]
#   modified_beam_search, temperature_scale=1.0: tokens ['A'], ys_probs [-0.1054]
#   as stated
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  sherpa-onnx==2.0.1 onnx==1.23.2 numpy==2.4.6 onnxruntime==1.31.1
cd "$folder"
PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
"""A transducer that says A once, with probability 0.9, and then blanks."""

import inspect
import sys

import numpy as np
import onnxruntime
import sherpa_onnx
import tiny_transducer

SAY_A = np.log([[0.05, 0.9, 0.05]]).astype(np.float32)  # blank, A, B
SAY_BLANK = np.log([[0.998, 0.001, 0.001]]).astype(np.float32)
METHODS = "greedy_search", "modified_beam_search"


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def recognized(method, **options):
    """The tokens of one second of silence, and their log probabilities."""
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens="tokens.txt",
        encoder="encoder.onnx",
        decoder="decoder.onnx",
        joiner="joiner.onnx",
        num_threads=1,
        decoding_method=method,
        **options,
    )
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, np.zeros(16000, np.float32))
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    return recognizer.tokens(stream), recognizer.ys_probs(stream)


tiny_transducer.write(SAY_A, SAY_BLANK)
zeros = np.zeros((1, 2), np.float32)
(logits,) = onnxruntime.InferenceSession("joiner.onnx").run(None, {"encoder_out": zeros, "decoder_out": zeros})
own, halved = log_softmax(logits)[0, 1], log_softmax(logits / 2)[0, 1]
default = inspect.signature(sherpa_onnx.OnlineRecognizer.from_transducer).parameters["temperature_scale"].default
print(f"sherpa-onnx {sherpa_onnx.version}: temperature_scale is {default} by default")
print(f"expected, log-softmax of the model's logits: {own:.4f}; of logits / 2: {halved:.4f}")
as_stated = default == 2.0
for method in METHODS:
    for options, stated in ({}, halved), ({"temperature_scale": 1.0}, own):
        tokens, seen = recognized(method, **options)
        shown = ", ".join(f"{each:.4f}" for each in seen)
        print(f"{method}, {'temperature_scale=1.0' if options else 'default'}: tokens {tokens}, ys_probs [{shown}]")
        as_stated &= tokens == ["A"] and len(seen) == 1 and abs(seen[0] - stated) < 1e-4
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
