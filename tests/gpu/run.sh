#!/usr/bin/env bash
# Checks on one GPU, in at most six minutes, what no CPU can show; all it needs is torch.
#
#   bash tests/gpu/run.sh                                  # writes gpu.json
#   bash tests/gpu/run.sh --icefall icefall/egs/librispeech/ASR/zipformer     # and measures icefall's encoder too
#   bash tests/gpu/run.sh --dry-run                        # all of it on a CPU, with tiny sizes
#
# To publish the figures, move gpu.json to egs/librispeech/results and give a page the lines `<!-- table: gpu -->` and
# `<!-- end -->`; `kdstream render-results` fills in the table.  PYTHON=... names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${PYTHON:-.venv/bin/python}"
command -v "$python" >/dev/null || python=python3
PYTHONPATH="$PWD" exec "$python" tests/gpu/main.py "$@"
