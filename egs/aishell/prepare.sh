#!/usr/bin/env bash
# Prepares AISHELL-1: characters as tokens.  All else, and all other flags, are those of ../librispeech/prepare.sh.
#
# bash egs/aishell/prepare.sh --corpus-dir /data/aishell           the directory that holds data_aishell/

set -eou pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$here/../librispeech/prepare.sh" --lhotse-recipe aishell --token-type char --data-dir "$here/data" "$@"
