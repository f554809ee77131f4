#!/usr/bin/env bash
# Runs the whole suite: the k2 tests with the real k2 in .venv-k2, then everything in .venv, making either
# environment if need be.  Where there is a C++ compiler, kaldifeat is built into .venv and compared with too.
#
#   bash tests/run.sh
#   bash tests/run.sh tests/models/test_rnnt_loss.py -k ranges     # arguments go to the second pytest
#
# The live page is tested in chromium where it is installed (apt-get install chromium chromium-driver).
#
# KDSTREAM_WITHOUT_K2=1 leaves the k2 tests out, where no k2 wheel fits the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

cores=$(nproc)
export OMP_NUM_THREADS=1 # the cores go to pytest's workers

bash local/setup_env.sh
# Nothing but the k2 tests needs k2, so it is installed meanwhile.
if [ "${KDSTREAM_WITHOUT_K2:-0}" != 1 ]; then
  bash local/setup_env.sh --k2 &
  installing_k2=$!
fi
if command -v g++ >/dev/null; then
  bash local/setup_env.sh --kaldifeat || echo "kaldifeat was not built: what compares with it is skipped" >&2
fi
status=0
if [ "${KDSTREAM_WITHOUT_K2:-0}" != 1 ]; then
  wait "$installing_k2" || {
    echo "error: no environment with k2; KDSTREAM_WITHOUT_K2=1 bash tests/run.sh runs the suite without it" >&2
    exit 1
  }
  .venv-k2/bin/python -m pytest -q --durations=10 tests/models/test_k2_parity.py tests/models/test_rnnt_loss.py \
    tests/decoding/test_lattice.py || status=$?
fi
workers=$((cores < 4 ? cores + 1 : 4)) # one more than cores, as some tests wait for what they have killed
.venv/bin/python -m pytest -q --durations=10 -n "$workers" --dist loadfile "$@" || status=$?
exit "$status"
