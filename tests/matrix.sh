#!/usr/bin/env bash
# Runs the fast tests with several sets of versions, each in an environment of its own, and prints a table.
#
#   bash tests/matrix.sh                              # all sets
#   bash tests/matrix.sh k2 lowest                    # two of them
#   bash tests/matrix.sh newest -- tests/models -x    # what follows -- goes to pytest
#
#   pinned    constraints.txt
#   k2        constraints-k2.txt, with the newest torch for which k2 has wheels; k2 itself is not installed
#   newest    the newest of everything: torch 2.15 or newer, lhotse below 2
#   lhotse2   constraints.txt, but with the pre-release of lhotse 2
#   lowest    the lowest versions that requirements.txt allows, with Python 3.10
#
# The environments are .venv-matrix/SET.  Each takes about 6 GB, or 2 GB with PyTorch's CPU wheels, and stays there.
# With KEEP=0 it is deleted after its tests.  The next run does not install again what is there: to look for newer
# versions, delete .venv-matrix/newest.
#
# PYTHON="python3.11 /path/to/python3.10" names the interpreters.  The status is 1 if a set fails or cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.venv-matrix
all="pinned k2 newest lhotse2 lowest"
sets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case " $all " in
    *" $1 "*) sets+=("$1") ;;
    *)
      echo "error: $1: no such set; there are $all; arguments of pytest follow --" >&2
      exit 2
      ;;
  esac
  shift
done
[ $# = 0 ] || shift
[ ${#sets[@]} -gt 0 ] || read -ra sets <<<"$all"

# Makes the environment of a set.  The first line of a file of constraints names the Python that it is for.
install() { # SET
  local constraints=$folder/$1-constraints.txt requirements=requirements.txt
  case $1 in
    pinned) constraints=constraints.txt ;;
    k2) constraints=constraints-k2.txt ;;
    newest) printf '%s\n' "# Python 3.11" "torch>=2.15" "lhotse<2" >"$constraints" ;;
    lhotse2) # a bound that is a pre-release lets pip take pre-releases of this package alone
      requirements=$folder/$1-requirements.txt
      sed 's/^lhotse.*/lhotse>=2.0.0a1/' requirements.txt >"$requirements"
      sed '/^lhotse==/d' constraints.txt >"$constraints"
      ;;
    lowest)
      echo "# Python 3.10" >"$constraints"
      sed -n 's/^\([a-z][a-z0-9-]*\)>=\([^,]*\).*/\1==\2/p' requirements.txt >>"$constraints"
      ;;
  esac
  bash local/setup_env.sh --into "$folder/$1" "$constraints" "$requirements"
}

installed() { # SET; prints the versions of Python, torch and lhotse
  "$folder/$1/bin/python" -c 'import platform; from importlib.metadata import version
print(platform.python_version(), version("torch"), version("lhotse"))'
}

mkdir -p "$folder"
export OMP_NUM_THREADS=1 # the cores go to pytest's workers
status=0
table=$(printf '%-8s %-8s %-14s %-8s %8s  %s' set Python torch lhotse seconds tests)
for set in "${sets[@]}"; do
  versions=("" "" "") result="not installed" SECONDS=0
  if install "$set"; then
    read -ra versions <<<"$(installed "$set")"
    echo "$set: Python ${versions[0]}, torch ${versions[1]}, lhotse ${versions[2]} in $folder/$set"
    SECONDS=0 log=$folder/$set.log
    "$folder/$set/bin/python" -m pytest -q -n "$(nproc)" --dist loadfile -m "not slow" "$@" 2>&1 | tee "$log" || status=1
    result=$(tail -n 1 "$log" | sed 's/ in [0-9.]*s.*//')
    [ "${KEEP:-1}" != 0 ] || rm -r "${folder:?}/$set"
  else
    status=1
  fi
  table+=$'\n'$(printf '%-8s %-8s %-14s %-8s %8s  %s' "$set" "${versions[@]}" "$SECONDS" "$result")
done
printf '\n%s\n' "$table"
exit "$status"
