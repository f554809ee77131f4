#!/usr/bin/env bash
# Teacher, baseline and distilled student on AISHELL-1: characters as tokens, character error rates.  All else, and all
# other flags, are those of ../librispeech/run.sh.
#
# bash egs/aishell/run.sh --corpus-dir /data/aishell --preset small --num-epochs 20 --avg 5 --max-duration 200

set -eou pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$here/../librispeech/run.sh" --lhotse-recipe aishell --token-type char \
  --data-dir "$here/data" --exp-root "$here/exp" "$@"
