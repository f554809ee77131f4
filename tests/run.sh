#!/usr/bin/env bash
# Runs the whole suite: everything in .venv, and meanwhile the k2 tests with the real k2 in .venv-k2, making either
# environment if need be.  Where there is a C++ compiler, kaldifeat is built into .venv and compared with too.
#
#   bash tests/run.sh
#   bash tests/run.sh tests/models/test_rnnt_loss.py -k ranges     # arguments go to the pytest in .venv
#
# The live page is tested in chromium where it is installed (apt-get install chromium chromium-driver).
#
# KDSTREAM_WITHOUT_K2=1 leaves the k2 tests out, where no k2 wheel fits the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

cores=$(nproc)
export OMP_NUM_THREADS=1 # the cores go to pytest's workers

bash local/setup_env.sh
# These tests have an environment of their own: it is made, and they run, beside everything else.
test_with_k2() {
  bash local/setup_env.sh --k2 || {
    echo "error: no environment with k2; KDSTREAM_WITHOUT_K2=1 bash tests/run.sh runs the suite without it" >&2
    return 1
  }
  .venv-k2/bin/python -m pytest -q --durations=10 tests/models/test_k2_parity.py tests/models/test_rnnt_loss.py \
    tests/decoding/test_lattice.py
}
k2_log=$(mktemp)
trap 'rm -f "$k2_log"' EXIT
if [ "${KDSTREAM_WITHOUT_K2:-0}" != 1 ]; then
  test_with_k2 >"$k2_log" 2>&1 &
  testing_with_k2=$!
fi
if command -v g++ >/dev/null; then
  bash local/setup_env.sh --kaldifeat || echo "kaldifeat was not built: what compares with it is skipped" >&2
fi
status=0
workers=$((cores < 4 ? cores + 1 : 4)) # one more than cores, as some tests wait for what they have killed
.venv/bin/python -m pytest -q --durations=10 -n "$workers" --dist loadfile "$@" || status=$?
if [ -n "${testing_with_k2:-}" ]; then
  wait "$testing_with_k2" || status=$?
  cat "$k2_log"
fi
exit "$status"
