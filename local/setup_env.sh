#!/usr/bin/env bash
# Makes the Python environment; does nothing when it is already there for the same requirements.
#
#   bash local/setup_env.sh          # .venv: kdstream and everything that it can use (about 6 GB)
#   bash local/setup_env.sh --k2     # .venv-k2: the real k2, for the k2 tests (about 4 GB)
#   bash local/setup_env.sh --kaldifeat   # into .venv: kaldifeat, built from its sources (some minutes; needs g++)
#   bash local/setup_env.sh --into .venv-gpu constraints-k2.txt   # another folder, another tested set of versions
#
# PYTHON=/path/to/python3.11 chooses the interpreter (3.10 or newer; k2: 3.10 or 3.11; --into: the one that the first
# line of the constraints names).  It may name several, of which the first that fits is taken.  pip's own settings
# (index, proxy, cache) are the user's.  With PIP_EXTRA_INDEX_URL=ADDRESS, where ADDRESS is PyTorch's index of wheels
# for CPUs (it ends in /whl/cpu), pip takes torch without CUDA, and .venv has 2 GB.
# After an interruption it continues; delete the folder to start anew.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
  echo "error: $*" >&2
  exit 1
}

# The first interpreter of a version that the environment can have, with the modules that make environments.
find_python() { # allowed versions, as a regular expression
  local candidate version seen=""
  for candidate in ${PYTHON:-python3.11 python3.10 python3}; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    seen="$seen $candidate($version)"
    [[ $version =~ ^($1)$ ]] || continue
    "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
      die "$candidate cannot make environments; run: apt-get install python$version-venv"
    echo "$candidate"
    return
  done
  die "no Python of version ${1//\\/} (found:${seen:- none}); set PYTHON=/path/to/it, or run: apt-get install python3.11-venv"
}

# Runs a command with its output in the log; shows the log's end if it fails.
quietly() {
  "$@" >>"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    die "failed: $*  (all of it: $log)"
  }
}

# The Python that a file of constraints is for: its first line says it.
python_of() { # constraints
  [ -f "$1" ] || die "$1: no such file of constraints"
  sed -n '1s/^# Python \([0-9.]*\).*/\1/p' "$1"
}

install_main() {
  local only=(-c "$constraints")
  if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$(python_of "$constraints")" ]; then
    echo "$constraints holds for Python $(python_of "$constraints"); installing the newest that $requirements allows"
    only=()
  fi
  quietly "$python" -m pip install --no-compile -r "$requirements" "${only[@]}"
  quietly "$python" -m pip install --no-compile --no-build-isolation --no-deps -e . # with the setuptools from above
}

install_k2() {
  quietly "$python" -m pip install "pip<=25.2" # newer ones refuse the name of k2's wheel
  quietly "$python" -m pip install --no-compile -r requirements-k2.txt
  local hash # one wheel per Python; given both hashes, pip would take the wrong one
  case $("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') in
    3.11) hash=5b5f709b12b9cd092b583984d0b7d940c9f898101259c998d68d1f4adefa48d4 ;;
    3.10) hash=1404589732fdb7f6f5bf62297a20dd73318b7b4f2e10dd52dc3d5b6669688a4c ;;
  esac
  echo "k2==1.23.4 --hash=sha256:$hash" >"$venv/k2.txt"
  quietly "$python" -m pip install --no-compile --no-deps -r "$venv/k2.txt"
  quietly "$python" -m pip install --no-compile --no-deps -e . # pip finds a setuptools that can build it
}

# kaldifeat's cmake would download pybind11, and look for a CUDA toolkit beside a torch that was built with CUDA.
# Two small cmake packages tell it where both already are, for the CPU.
install_kaldifeat() {
  command -v g++ >/dev/null || die "g++ is missing; run: apt-get install g++"
  quietly "$python" -m pip install --no-compile "setuptools<81" wheel cmake ninja pybind11
  local work
  work=$(realpath "$venv")/kaldifeat
  mkdir -p "$work/pybind11" "$work/torch"
  cat >"$work/pybind11/CMakeLists.txt" <<'EOF'
include(GNUInstallDirs)
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL TRUE)
find_package(pybind11 CONFIG REQUIRED)
set(PYTHON_INCLUDE_DIRS ${PYTHON_INCLUDE_DIRS} CACHE INTERNAL "")
EOF
  "$python" - "$work/torch/TorchConfig.cmake" <<'EOF'
import sys
from pathlib import Path

import torch

home = Path(torch.__file__).parent
include = [home / "include", home / "include/torch/csrc/api/include"]
libraries = [home / "lib" / f"lib{name}.so" for name in ("torch", "torch_cpu", "c10")]
Path(sys.argv[1]).write_text(f"""
add_library(torch INTERFACE IMPORTED)
target_include_directories(torch SYSTEM INTERFACE {' '.join(map(str, include))})
target_compile_definitions(torch INTERFACE _GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)})
target_link_libraries(torch INTERFACE -Wl,--no-as-needed {' '.join(map(str, libraries))} -Wl,--as-needed)
set(TORCH_LIBRARIES torch)
set(TORCH_FOUND TRUE)
""")
EOF
  export KALDIFEAT_CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_STANDARD=20 -DPYBIND11_FINDPYTHON=OFF \
    -DPYTHON_EXECUTABLE=$(realpath -s "$python") -DFETCHCONTENT_SOURCE_DIR_PYBIND11=$work/pybind11 \
    -Dpybind11_DIR=$("$python" -m pybind11 --cmakedir) -DTorch_DIR=$work/torch"
  export KALDIFEAT_MAKE_ARGS="-j$(nproc)"
  PATH=$(realpath -s "$venv")/bin:$PATH quietly "$python" -m pip install --no-build-isolation --no-deps kaldifeat==1.24
}

marker=.done
case "${1:-}" in
  "" | --into)
    venv=${2:-.venv} constraints=${3:-constraints.txt} requirements=${4:-requirements.txt}
    versions='3\.1[0-4]' install=install_main files="pyproject.toml $requirements $constraints"
    [ $# = 0 ] || versions=$(python_of "$constraints")
    imports="torch, lhotse, sentencepiece, soundfile" gigabytes=6
    ;;
  --k2)
    venv=.venv-k2 versions='3\.1[01]' install=install_k2 files="pyproject.toml requirements-k2.txt"
    imports="torch, k2, lhotse, soundfile" gigabytes=4
    ;;
  --kaldifeat)
    bash local/setup_env.sh
    venv=.venv versions='3\.1[0-4]' install=install_kaldifeat files="requirements.txt constraints.txt"
    imports="torch, kaldifeat" marker=.done-kaldifeat gigabytes=1
    ;;
  *) die "$1: unknown; usage: bash local/setup_env.sh [--k2 | --kaldifeat | --into FOLDER CONSTRAINTS [REQUIREMENTS]]" ;;
esac

wanted=$(cat $files local/setup_env.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$venv/$marker" 2>/dev/null)" != "$wanted" ] || exit 0

base=$(find_python "$versions")
case "$install $("$base" -m pip config list 2>/dev/null)" in install_main\ */whl/cpu*) gigabytes=2 ;; esac
free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1000000))
[ -d "$venv" ] || [ "$free" -ge "$gigabytes" ] || die "$venv takes about $gigabytes GB; $PWD has $free GB free"
python=$venv/bin/python
"$python" -m pip --version >/dev/null 2>&1 || "$base" -m venv --clear "$venv"
log=$venv/setup.log
echo "installing into $venv, some minutes (log: $log)"
export PIP_DISABLE_PIP_VERSION_CHECK=1
$install
# Where Python may not keep what it compiles, all is compiled now; files for other versions of Python are no error.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || "$python" -m compileall -q -j 0 "$venv"/lib >>"$log" 2>&1 || true
if ! "$python" -c "import $imports" >>"$log" 2>&1; then
  tail -n 5 "$log" >&2
  if tail -n 5 "$log" | grep -q sndfile; then die "libsndfile is missing; run: apt-get install libsndfile1"; fi
  die "$venv was installed but does not import $imports; delete it and run this again"
fi
echo "$wanted" >"$venv/$marker"
