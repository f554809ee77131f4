#!/usr/bin/env bash
# Teacher, baseline and distilled student on AISHELL-1: characters as tokens, character error rates, and schedules for
# 178 hours.  All else, and all other flags, are those of ../librispeech/run.sh.
#
# bash egs/aishell/run.sh --corpus-dir /data/aishell --preset small --num-epochs 7 --max-duration 200

set -eou pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# schedules of train.py's own defaults, where those of run.sh suit an hour; and the rate that keeps a teacher's weights
exec bash "$here/../librispeech/run.sh" --lhotse-recipe aishell --token-type char \
  --train-flags "--use-ctc 1 --base-lr 0.045 --ref-duration 600 --warm-step 2000 --lr-warmup-batches 500 \
    --lr-batches 7500 --lr-epochs 3.5 --average-period 200 --valid-interval 3000 --save-every-n 4000" \
  --distill-flags "--init-from-teacher 1 --kd-token-scale 0.5 --base-lr 0.02" \
  --data-dir "$here/data" --exp-root "$here/exp" "$@"
