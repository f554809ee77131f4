#!/usr/bin/env bash
# Do two commits compute the same?  Both train, decode, align, export, transcribe and fill a teacher's cache with their
# own scripts, on one small corpus; what they write is compared, bit for bit.
#
#   bash tests/compare_commits.sh main HEAD
#   OUTPUTS=/tmp/outputs bash tests/compare_commits.sh main HEAD
#
# With OUTPUTS, what a commit wrote is kept in that directory, and is not computed again the next time.  It holds for
# one machine and one Python environment: delete it when either changes.
#
# The end is a line for each thing that was compared, and one for each file that differs.  The exit status is 1 if
# anything differs, 2 if a script fails.  Clock readings are not compared, nor are settings that only one of the two
# commits knows.  Changes that are not committed are not seen.
#
# Both commits run at once, on one core each, for about four minutes.  Each takes 600 MB in TMPDIR or OUTPUTS.
#
# PYTHON=/path/to/python runs both commits (default: .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
  echo "error: $*" >&2
  exit 2
}

[ $# = 2 ] || die "usage: bash tests/compare_commits.sh COMMIT COMMIT"
python=$(command -v "${PYTHON:-$PWD/.venv/bin/python}") ||
  die "${PYTHON:-.venv/bin/python}: no such program; run local/setup_env.sh, or set PYTHON"
for commit in "$@"; do
  git rev-parse --quiet --verify "$commit^{commit}" >/dev/null || die "$commit: no such commit"
done

work=$(mktemp -d)
child=""
finish() {
  trap '' INT TERM # a second signal must not end this half-way
  [ -z "$child" ] || kill -- "-$child" 2>/dev/null || true
  for checkout in "$work"/?/checkout; do
    [ ! -e "$checkout" ] || git worktree remove --force "$checkout"
  done
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What a commit wrote depends on what it was told to do, too.
this=$(cat tests/support/compare_commits.py tests/support/tone_corpus.py | sha256sum | cut -c 1-12)
declare -A kept
for side in A B; do
  kept[$side]=${OUTPUTS:+$OUTPUTS/$(git rev-parse "$1")-$this}
  if [ -n "${kept[$side]}" ] && [ -d "${kept[$side]}" ]; then
    ln -s "$(realpath "${kept[$side]}")" "$work/$side"
  else
    mkdir "$work/$side"
    git worktree add --quiet --detach "$work/$side/checkout" "$1"
  fi
  echo "$side: $(git log -1 --format='%h %s' "$1")"
  shift
done

set -m # a process group for Python and all that it starts, so that all of it can be stopped
PYTHONPATH=$PWD/tests "$python" -m support.compare_commits "$work" &
child=$!
status=0
wait "$child" || status=$?
child=""
if [ -n "${OUTPUTS:-}" ] && [ "$status" -le 1 ]; then
  mkdir -p "$OUTPUTS"
  for side in A B; do
    [ -L "$work/$side" ] || git worktree remove --force "$work/$side/checkout"
    [ -e "${kept[$side]}" ] || mv -T "$work/$side" "${kept[$side]}"
  done
fi
exit "$status"
