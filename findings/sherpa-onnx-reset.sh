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

here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sherpa-onnx==2.0.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
"""A transducer whose predictor decides alone: A after a blank, a blank after A."""

import sys

import numpy as np
import sherpa_onnx
import tiny_transducer

tiny_transducer.write(after_blank=np.float32([[0, 4, 0]]), after_a=np.float32([[4, 0, 0]]))
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
