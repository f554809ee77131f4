#!/usr/bin/env bash
# Runs the fast tests with the lowest versions that requirements.txt allows, in .venv-lowest (about 6 GB).
#
#   bash tests/lowest_versions.sh
#   bash tests/lowest_versions.sh tests/decoding      # arguments go to pytest
#
# PYTHON=/path/to/python3.10 chooses the interpreter: the oldest that pyproject.toml allows is the one to test.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv-lowest/bin/python
[ -x "$python" ] || "${PYTHON:-python3.10}" -m venv .venv-lowest
sed -n 's/^\([a-z][a-z0-9-]*\)>=\(.*\)$/\1==\2/p' requirements.txt >.venv-lowest/constraints.txt
"$python" -m pip install -q --no-compile -r requirements.txt -c .venv-lowest/constraints.txt
"$python" -m pip install -q --no-compile --no-deps --no-build-isolation -e .
export OMP_NUM_THREADS=1 # the cores go to pytest's workers
exec "$python" -m pytest -q -n "$(nproc)" --dist loadfile -m "not slow" "$@"
