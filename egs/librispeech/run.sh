#!/usr/bin/env bash
# The whole main job: a full-context teacher, a streaming student distilled from it, and a streaming baseline that trains
# as long as both together.
#
#   0  environment (.venv)      3  train the baseline
#   1  data (prepare.sh)        4  train the distilled student
#   2  train the teacher        5  decode all three      6  report
#
# bash egs/librispeech/run.sh                                       the embedded corpus, 20 to 30 minutes on 2 cores
# bash egs/librispeech/run.sh --corpus mini-librispeech --preset small --num-epochs 10 \
#     --distill-flags "--init-from-teacher 1 --kd-token-scale 0.5 --base-lr 0.02"
# bash egs/librispeech/run.sh --encoder conformer --exp-root exp/conformer
# bash egs/librispeech/run.sh --corpus-dir /data/mine --train-parts train --dev-parts dev --test-parts test \
#     --data-dir exp/mine/data --exp-root exp/mine
# bash egs/librispeech/run.sh --lhotse-recipe tedlium --corpus-dir /data/TEDLIUM_release-3 --text-remove '<unk>'
#
# A second run skips what is finished; a training that was killed goes on from its last checkpoint.
# The result is EXP_ROOT/report/report.html, one page that needs no network.

set -eou pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/corpora.sh"

stage=0
stop_stage=6
corpus=mini               # as for prepare.sh: mini, mini-librispeech, librispeech-100 or librispeech
corpus_dir=               # instead: any directory that holds LibriSpeech/<part>/, with its parts, or with
lhotse_recipe=            # any corpus that Lhotse has a recipe of this name for
recipe_args=              # more arguments of it, as for prepare.sh
text_remove=              # what to take out of texts, as for prepare.sh
train_parts=              # by default those of the corpus
dev_parts=
test_parts=
token_type=bpe            # as for prepare.sh: bpe, char or byte-bpe
vocab_size=               # by default 64 for the embedded corpus, else 500; of char one for each letter
text_case=keep            # as for prepare.sh: keep, upper or lower
data_dir=$here/data       # with a recipe data-NAME
exp_root=$here/exp        # with a recipe exp-NAME
encoder=zipformer         # or conformer
preset=tiny
chunk_size=8              # 20 ms frames: 160 ms
left_context_frames=32    # 640 ms
num_epochs=5              # of the distilled student
teacher_num_epochs=       # by default twice as many
baseline_num_epochs=      # by default as many as teacher and student together
avg=1                     # epochs whose mean is decoded
world_size=               # processes; by default one per GPU, or two where there is none
use_bf16=0                # 1: bfloat16 autocast; on a processor it compiles kernels for each new length of a batch
max_duration=15           # seconds of speech in a batch, per process
train_flags="--use-ctc 1 --ctc-loss-scale 0.5 --enable-spec-aug 0 --base-lr 0.07"  # more flags for every train.py; these suit an hour
distill_flags="--init-from-teacher 1 --kd-token-scale 0.5"  # more flags for the distilled student's train.py

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') (run.sh) $*"; }

read_flags distill_flags "$@"
check_numbers -1 stage stop_stage left_context_frames
check_numbers 1 chunk_size num_epochs avg ${teacher_num_epochs:+teacher_num_epochs} \
  ${baseline_num_epochs:+baseline_num_epochs} ${world_size:+world_size} ${vocab_size:+vocab_size}
choose_parts train dev test
choose_place data_dir "$here/data"
choose_place exp_root "$here/exp"
teacher_num_epochs=${teacher_num_epochs:-$((2 * num_epochs))}
baseline_num_epochs=${baseline_num_epochs:-$((teacher_num_epochs + num_epochs))}
for epochs in num_epochs teacher_num_epochs baseline_num_epochs; do
  ((avg <= ${!epochs})) || fail "--avg $avg: is more than --${epochs//_/-} ${!epochs}"
done
declare -A last=([teacher]=$teacher_num_epochs [baseline]=$baseline_num_epochs [distilled]=$num_epochs)  # epochs

# from here on, paths are relative to the recipe, so that records and config.json hold none of this machine
[[ -z $corpus_dir ]] || corpus_dir=$(realpath -ms --relative-to="$here" "$corpus_dir")
data_dir=$(realpath -ms --relative-to="$here" "$data_dir")
exp_root=$(realpath -ms --relative-to="$here" "$exp_root")
cd "$here"

choose_tokens

stages() { ((stage <= $1 && $1 <= stop_stage)); }
python=../../.venv/bin/python

if stages 0; then
  log "Stage 0: environment"
  bash ../../local/setup_env.sh
fi
[[ -x $python ]] || fail "$python: not there; run with --stage 0"

if stages 1; then
  log "Stage 1: data"
  source=(--corpus "$corpus" --text-remove "$text_remove")
  [[ -z $corpus_dir ]] || source+=(--corpus-dir "$corpus_dir")
  [[ -z $lhotse_recipe ]] || source+=(--lhotse-recipe "$lhotse_recipe" --recipe-args "$recipe_args")
  bash prepare.sh "${source[@]}" --train-parts "$train_parts" --dev-parts "$dev_parts" --test-parts "$test_parts" \
    --token-type "$token_type" --vocab-size "$vocab_size" --text-case "$text_case" --data-dir "$data_dir"
fi
[[ -z $lhotse_recipe ]] || read_found_parts "$data_dir/manifests/${lhotse_recipe}_parts.sh"
cores=$(env -u OMP_NUM_THREADS nproc)  # nproc would print that variable
if ((stage <= 4 && stop_stage >= 2)); then  # something is trained
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}  # large pages: a step on a CPU takes 0.96 of its time
  gpus=$($python -c 'import torch; print(torch.cuda.device_count())')
  if [[ -z $world_size ]]; then
    world_size=$((gpus ? gpus : cores < 2 ? 1 : 2))  # two processes of one thread beat one of two
  fi
fi

# has_ended EXP_DIR EPOCHS: its last epoch-N.pt is there before its validation, in which a training can be killed
has_ended() {
  $python -c 'import sys; from kdstream.checkpoints.store import has_ended
sys.exit(not has_ended(sys.argv[1], int(sys.argv[2])))' "$@"
}

# train NAME FLAGS...: trains the experiment EXP_ROOT/NAME until its last epoch-N.pt exists and is validated
train() {
  local name=$1 epochs=${last[$1]}
  shift
  # shellcheck disable=SC2206  # train_flags holds several words
  local flags=(--encoder "$encoder" --preset "$preset" \
    --manifest-dir "$data_dir/fbank" --train-parts "$train_parts" --dev-parts "$dev_parts" --test-parts "$test_parts" \
    --bpe-model "$data_dir/$lang_name/bpe.model" --max-duration "$max_duration" \
    --world-size "$world_size" --num-workers 0 --use-bf16 "$use_bf16" \
    --ref-duration 1.5 --warm-step 200 --lr-warmup-batches 100 --lr-batches 300 --lr-epochs 20 \
    --average-period 10 --valid-interval 100000 --save-every-n 50 --keep-last-k 1 \
    $train_flags "$@")
  local noted=$exp_root/$name/train-flags.txt
  # a start that came to no checkpoint may be started anew in any way
  if compgen -G "$exp_root/$name/*.pt" >/dev/null && [[ -f $noted && $(<"$noted") != "${flags[*]}" ]]; then
    fail "$noted: this training was begun with other flags; use another --exp-root"
  fi
  if [[ -f $exp_root/$name/epoch-$epochs.pt ]] && has_ended "$exp_root/$name" "$epochs"; then
    log "$name: already trained"
    return
  fi
  mkdir -p "$exp_root/$name"
  compgen -G "$exp_root/$name/*.pt" >/dev/null || rm -f "$exp_root/$name/config.json"
  echo "${flags[*]}" >"$noted.tmp"
  mv "$noted.tmp" "$noted"
  $python train.py --exp-dir "$exp_root/$name" --resume 1 --num-epochs "$epochs" "${flags[@]}"
}

streaming=(--causal 1 --chunk-size "$chunk_size" --left-context-frames "$left_context_frames")
if stages 2; then
  log "Stage 2: teacher"
  train teacher --causal 0
fi
if stages 3; then
  log "Stage 3: baseline"
  train baseline "${streaming[@]}"
fi
if stages 4; then
  log "Stage 4: distilled student"
  # shellcheck disable=SC2086
  train distilled "${streaming[@]}" --teacher-exp-dir "$exp_root/teacher" --teacher-avg "$avg" --kd-warmup-batches 100 \
    $distill_flags
fi

heard=(--manifest-dir "$data_dir/fbank" --test-parts "$test_parts")

# up_to_date FILE NAME: whether it is younger than the last epoch of experiment NAME and than the test cuts
up_to_date() {
  local part cuts
  [[ $1 -nt $exp_root/$2/epoch-${last[$2]}.pt ]] || return
  for part in ${test_parts//,/ }; do
    for cuts in "$data_dir"/fbank/*_cuts_"$part".jsonl.gz; do
      [[ ! $cuts -nt $1 ]] || return
    done
  done
}

# decode NAME SCRIPT FLAGS...: decodes once for each checkpoint, test set and set of flags
decode() {
  local name=$1 script=$2
  shift 2
  local flags="--epoch ${last[$name]} --avg $avg $*"
  local done_file="$exp_root/$name/.decoded_$script$(tr -c 'a-z0-9.-' _ <<<"$flags $test_parts${alignments:+ aligned}")"
  if up_to_date "$done_file" "$name"; then
    log "$name, $script $*: already decoded"
    return
  fi
  # shellcheck disable=SC2086
  $python "$script" --exp-dir "$exp_root/$name" $flags "${heard[@]}" ${alignments:+--alignments "$alignments"}
  touch "$done_file"
}

decode_streaming() {  # decodes a system simulated, chunk by chunk, and with longer chunks for WER against latency
  local chunk left wider
  decode "$1" decode.py
  decode "$1" streaming_decode.py
  for wider in 2 4; do
    chunk=$((chunk_size * wider))
    left=$((left_context_frames > chunk ? left_context_frames : chunk))
    decode "$1" streaming_decode.py --chunk-size $chunk --left-context-frames $left
  done
}

alignments=
if stages 5; then
  log "Stage 5: decoding"
  if grep -q '"use_ctc": true' "$exp_root/teacher/config.json"; then  # its CTC head knows when words end
    alignments=$exp_root/teacher/alignments-epoch-${last[teacher]}_avg-${avg}_${test_parts//,/_}.jsonl.gz
    up_to_date "$alignments" teacher ||
      $python ../../local/align.py --exp-dir "$exp_root/teacher" --epoch "${last[teacher]}" --avg "$avg" "${heard[@]}" \
        --output "$alignments"
  fi
  decode teacher decode.py
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores < 4 ? 1 : cores / 2))}  # two systems at a time
  set -m  # in a process group of its own, which ends with this script
  decode_streaming baseline &
  baseline=$!
  set +m
  trap 'kill -TERM -- -$baseline 2>/dev/null || true' EXIT
  decode_streaming distilled
  wait $baseline
  trap - EXIT
fi

if stages 6; then
  report=$exp_root/report/report.html
  newer=$(find "$exp_root" -maxdepth 2 \( -name results.json -o -name layer_similarity.json -o -name 'sweep*.png' \) \
    -newer "$report" 2>/dev/null || echo none)
  if [[ -f $report && -z $newer ]]; then
    log "Stage 6: report: already written"
  else
    log "Stage 6: report"
    $python ../../local/report.py --exp-root "$exp_root" --systems teacher,baseline,distilled --baseline baseline
  fi
  log "$report"
fi
