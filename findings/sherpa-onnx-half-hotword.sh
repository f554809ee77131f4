#!/usr/bin/env bash
# sherpa-onnx 2.0.1: a streaming recogniser keeps the bonus of a hotword that was not said to its end.
#
# Expected: as its documentation says, a path is favoured while it matches a part of a hotword, and "if the path finally
#   fails to full match any hotwords, the boosted score will be canceled".
# Happens: OnlineRecognizer takes the bonus back when another token follows, and not at the end of the stream.  So an
#   utterance that ends with something like the beginning of a hotword ends with that beginning: the model gives B
#   2.7 times A's probability, and with the hotword "A B" the text is "A", after a second of blanks and
#   input_finished().  OfflineRecognizer takes the bonus back, and its text is "B" as without hotwords.
# So: where a stream's text ends with the beginning of a hotword, decode the stream once more without hotwords.
#
#   bash findings/sherpa-onnx-half-hotword.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   sherpa-onnx 2.0.1, modified_beam_search
#   no hotword: online ['B'], offline ['B']
#   hotword A B, score 1.5: online ['A'], offline ['B']
#   hotword A B, score 3.0: online ['A'], offline ['B']
#   as stated
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sherpa-onnx==2.0.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
"""A transducer that says one token, B rather than A, and blanks after it."""

import sys

import numpy as np
import sherpa_onnx
import tiny_transducer

SILENCE = np.zeros(16000, np.float32)

tiny_transducer.write(after_blank=np.float32([[0, 3, 4]]), after_a=np.float32([[10, 0, 0]]))
tiny_transducer.write_offline_encoder()
with open("hotwords.txt", "w") as file:
    file.write("A B\n")


def online(**options):
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(encoder="encoder.onnx", **options)
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, SILENCE)
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    return recognizer.tokens(stream)


def offline(**options):
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(encoder="offline_encoder.onnx", **options)
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, SILENCE)
    recognizer.decode_stream(stream)
    return stream.result.tokens


print(f"sherpa-onnx {sherpa_onnx.version}, modified_beam_search")
as_stated = True
for what, hotwords, token in (
    ("no hotword", {}, "B"),
    ("hotword A B, score 1.5", {"hotwords_file": "hotwords.txt", "hotwords_score": 1.5}, "A"),
    ("hotword A B, score 3.0", {"hotwords_file": "hotwords.txt", "hotwords_score": 3.0}, "A"),
):
    options = {
        "tokens": "tokens.txt",
        "decoder": "decoder.onnx",
        "joiner": "joiner.onnx",
        "num_threads": 1,
        "decoding_method": "modified_beam_search",
        **hotwords,
    }
    seen = online(**options), offline(**options)
    print(f"{what}: online {seen[0]}, offline {seen[1]}")
    as_stated &= seen == ([token], ["B"])
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
