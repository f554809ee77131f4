#!/usr/bin/env bash
# Prepares speech for training and decoding, in icefall's stages:
#
#   0  download the corpus (mini: speak it)    3  features and cuts
#   1  manifests                               4  features of MUSAN
#   2  manifests of MUSAN                      5  tokens
#
# bash egs/librispeech/prepare.sh                                   the embedded corpus
# bash egs/librispeech/prepare.sh --corpus mini-librispeech         download and prepare 5 hours
# bash egs/librispeech/prepare.sh --corpus-dir /data/mine --train-parts train --dev-parts dev --test-parts test
# bash egs/librispeech/prepare.sh --lhotse-recipe tedlium --corpus-dir /data/TEDLIUM_release-3 --text-remove '<unk>'
#
# writes DATA_DIR/manifests, DATA_DIR/fbank/librispeech_cuts_<part>.jsonl.gz (or <recipe>_cuts_<part>.jsonl.gz) and
# DATA_DIR/lang_bpe_<V>/ (lang_char/, lang_bbpe_<V>/ with other tokens).  It ends with a table of what it found.
# A second run skips what is finished, and goes on at the stage that was interrupted.

set -eou pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
source "$here/corpora.sh"

stage=0
stop_stage=5
corpus=mini               # mini, mini-librispeech, librispeech-100 or librispeech
corpus_dir=               # instead: any directory that holds LibriSpeech/<part>/<speaker>/<chapter>/, or with
lhotse_recipe=            # any corpus that Lhotse has a recipe of this name for
recipe_args=              # more arguments of it, e.g. 'languages=en'
text_remove=              # a regular expression of what to take out of texts, e.g. '[.,?!]'
channel=                  # with a recipe: the only channel to take; by default each segment's own
held_out_share=0.05       # with a recipe: of the training speech, for each of dev and test that the corpus lacks
train_parts=              # parts, separated by commas; by default those of the corpus
dev_parts=
test_parts=
token_type=bpe            # bpe, char (single letters) or byte-bpe (pieces, and bytes for letters that have none)
vocab_size=               # tokens; by default 500, for the mini corpus 64, of char one for each letter
text_case=keep            # or upper, lower: the case of the text that tokens are trained on, and spell
perturb_speed=            # copies of the training speech at speeds 0.9 and 1.1; by default true, for mini false
augment=                  # copies of the training speech, as augment_cuts.py makes them, e.g. narrowband,reverb
augment_share=0.5         # of that speech, for each of them
musan=false               # noise for --enable-musan
data_dir=$here/data       # with a recipe data-NAME
dl_dir=$here/download     # where stage 0 puts what it downloads or speaks
nj=2                      # processes

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') (prepare.sh:${BASH_LINENO[0]}) $*"; }

read_flags nj "$@"
check_numbers -1 stage stop_stage
check_numbers 1 nj ${vocab_size:+vocab_size}
check_numbers 0 ${channel:+channel}

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1

if ((stage < 5)); then choose_parts train dev test; else choose_parts train; fi
choose_tokens
choose_place data_dir "$here/data"
dl_dir=$(realpath -ms "$dl_dir")  # manifests hold paths below it
prefix=${lhotse_recipe:-librispeech}
if [[ -n $lhotse_recipe ]]; then
  corpus=custom
  [[ -d $corpus_dir ]] || fail "--corpus-dir $corpus_dir: no such directory; give what prepare_$lhotse_recipe reads"
  corpus_dir=$(cd "$corpus_dir" && pwd)
elif [[ -z $corpus_dir ]]; then
  corpus_dir=$dl_dir
  [[ $corpus != mini ]] || corpus_dir=$dl_dir/mini
else
  corpus=custom
  [[ -d $corpus_dir/LibriSpeech ]] || fail "--corpus-dir $corpus_dir: has no directory LibriSpeech;" \
    "give the directory that holds LibriSpeech/<part>/<speaker>/<chapter>"
  corpus_dir=$(cd "$corpus_dir" && pwd)
fi
[[ $corpus != mini ]] || perturb_speed=${perturb_speed:-false}
perturb_speed=${perturb_speed:-true}
case $text_case in
  keep | upper | lower) ;;
  *) fail "--text-case $text_case: not keep, upper or lower" ;;
esac
[[ -z $augment ]] || "$python" -c 'import sys; sys.path.insert(0, sys.argv[1])
from kdstream.commands import run
from kdstream.corpus.line_table import names_of
run(lambda: names_of(sys.argv[2]) and None)' "$root" "$augment" || exit
[[ $augment_share =~ ^(0?\.[0-9]*[1-9][0-9]*|1(\.0*)?)$ ]] || fail "--augment-share $augment_share: not above 0 and at most 1"
for name in musan perturb_speed; do
  case ${!name} in
    true | 1) printf -v $name true ;;
    false | 0) printf -v $name false ;;
    *) fail "--${name/_/-} ${!name}: not true or false" ;;
  esac
done

mkdir -p "$data_dir/manifests" "$data_dir/fbank"
data_dir=$(cd "$data_dir" && pwd)

# A marker holds the settings of a piece of work.  With other settings, without its result, or with other words in the
# transcripts or the manifest that it reads, the work is done again.
transcripts_of() { [[ ! -d $1 ]] || find -L "$1" -name '*.trans.txt' -print0 | sort -z | xargs -0r cat | cksum; }
content_of() { for file in "$@"; do [[ ! -f $file ]] || gzip -dc "$file" | cksum; done | paste -sd ' '; }
once() { # MARKER SETTINGS RESULT COMMAND...
  [[ ! -f $1 || $(<"$1") != "$2" || ! -e $3 ]] || return 0
  rm -f "$1"
  "${@:4}"
  echo "$2" >"$1"
}
in_stage() { ((stage <= $1 && stop_stage >= $1)); }
each() { tr , '\n' <<<"$1" | awk 'NF && !seen[$0]++'; } # names separated by commas, each on one line, once

speech=$corpus_dir  # which it is: with other speech, work is done again
if [[ -n $lhotse_recipe ]]; then
  speech+=" $lhotse_recipe $recipe_args $text_remove $channel $held_out_share $train_parts $dev_parts $test_parts"
  found=$data_dir/manifests/${lhotse_recipe}_parts.sh told=$data_dir/manifests/.recipe.done
  if in_stage 1; then
    log "Stage 1: manifests by Lhotse's recipe"
    [[ ! -f $told ]] || log "after a change of the corpus delete $told"
    once "$told" "$speech" "$found" \
      "$python" "$root/local/prepare_recipe.py" --lhotse-recipe "$lhotse_recipe" --corpus-dir "$corpus_dir" \
      --recipe-args "$recipe_args" --train-parts "$train_parts" --dev-parts "$dev_parts" --test-parts "$test_parts" \
      --text-remove "$text_remove" ${channel:+--channel "$channel"} --held-out-share "$held_out_share" \
      --output-dir "$data_dir/manifests" --jobs "$nj"
  fi
  read_found_parts "$found"
  [[ -f $told ]] || fail "$told: no such file; run stage 1"
  speech=$(<"$told")  # whatever a later stage is told
elif [[ -n $text_remove ]]; then
  speech+=" $text_remove"
fi
all_parts=$(each "$train_parts,$dev_parts,$test_parts")
for part in $(each "$train_parts"); do
  [[ ,$dev_parts,$test_parts, != *,$part,* ]] ||
    fail "part $part: is to be trained on, in shuffled order, and decoded; link its directory under a second name"
done

lang_dir=$data_dir/$lang_name
tokens_of="$speech $train_parts"
[[ $text_case == keep ]] || tokens_of+=" $text_case"
if in_stage 5 && [[ -f $lang_dir/bpe.model && -f $lang_dir/.done && $(<"$lang_dir/.done") != "$tokens_of" ]]; then
  fail "$lang_dir: has the tokens of other text ($(<"$lang_dir/.done")), which models may have been trained with;" \
    "give another --data-dir or --vocab-size, or delete it"
fi

if in_stage 0; then
  if [[ $corpus == mini ]]; then
    log "Stage 0: speak the embedded corpus into $corpus_dir"
    "$python" "$root/local/make_mini_corpus.py" --output-dir "$corpus_dir" --jobs "$nj"
  elif [[ $corpus != custom ]]; then
    log "Stage 0: download $corpus into $dl_dir"
    for part in $all_parts; do
      # Lhotse would remove what it has not downloaded itself
      if [[ -d $dl_dir/LibriSpeech/$part && ! -e $dl_dir/LibriSpeech/$part/.completed && ! -e $dl_dir/$part.tar.gz ]]; then
        log "$part: is there"
        continue
      fi
      "$python" -c 'import sys; from lhotse.recipes import download_librispeech as d; d(sys.argv[1], [sys.argv[2]])' \
        "$dl_dir" "$part" || fail "$part: not downloaded; is openslr.org within reach? A second run goes on from here"
    done
  fi
  if [[ $musan == true && -d $dl_dir/musan/noise && ! -e $dl_dir/musan.tar.gz ]]; then
    log "MUSAN: is there"
  elif [[ $musan == true ]]; then
    log "Stage 0: download MUSAN into $dl_dir"
    "$python" -c 'import sys; from lhotse.recipes import download_musan as d; d(sys.argv[1])' "$dl_dir" ||
      fail "MUSAN: not downloaded; is openslr.org within reach? A second run goes on from here"
  fi
fi

if in_stage 1 && [[ -z $lhotse_recipe ]]; then
  log "Stage 1: manifests"
  for part in $all_parts; do
    settings="$speech $(transcripts_of "$corpus_dir/LibriSpeech/$part")"
    once "$data_dir/manifests/.$part.done" "$settings" "$data_dir/manifests/librispeech_supervisions_$part.jsonl.gz" \
      "$python" "$root/local/prepare_manifests.py" --corpus-dir "$corpus_dir/LibriSpeech" --parts "$part" \
      --text-remove "$text_remove" --output-dir "$data_dir/manifests"
  done
fi

if in_stage 2 && [[ $musan == true ]]; then
  log "Stage 2: manifests of MUSAN"
  once "$data_dir/manifests/.musan.done" "$dl_dir" "$data_dir/manifests/musan_recordings_noise.jsonl.gz" \
    "$python" -c 'import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from kdstream.commands import run
from kdstream.config.command_line import log_to_stderr
from kdstream.corpus.musan import prepare_musan
log_to_stderr()
run(lambda: prepare_musan(*map(Path, sys.argv[2:])))' "$root" "$dl_dir/musan" "$data_dir/manifests"
fi

if in_stage 3; then
  log "Stage 3: features"
  for part in $all_parts; do
    cuts=$data_dir/fbank/${prefix}_cuts_$part.jsonl.gz kind=--parts settings=$speech
    if [[ ,$train_parts, == *,$part,* ]]; then
      kind=--train-parts settings="$speech perturb-speed $perturb_speed shuffled"
    fi
    settings+=" $(content_of "$data_dir/manifests/${prefix}"_{recordings,supervisions}_"$part.jsonl.gz")"
    once "$data_dir/fbank/.$part.done" "$settings" "$cuts" \
      "$python" "$root/local/compute_fbank.py" --manifest-dir "$data_dir/manifests" --output-dir "$data_dir/fbank" \
      --prefix "$prefix" "$kind" "$part" --perturb-speed "$perturb_speed" --table "$data_dir/fbank/.$part.table" --jobs "$nj"
    [[ $kind == --train-parts && -n $augment ]] || continue
    copies=${cuts%.jsonl.gz}_augmented.jsonl.gz
    once "$data_dir/fbank/.${part}_augmented.done" "$settings $augment $augment_share" "$copies" \
      "$python" "$root/local/augment_cuts.py" --cuts "$cuts" --augment "$augment" --share "$augment_share" \
      --output "$copies" --jobs "$nj"
  done
fi

if in_stage 4 && [[ $musan == true ]]; then
  log "Stage 4: features of MUSAN"
  settings="$dl_dir $(content_of "$data_dir"/manifests/musan_recordings_*.jsonl.gz)"
  once "$data_dir/fbank/.musan.done" "$settings" "$data_dir/fbank/musan_cuts.jsonl.gz" \
    "$python" "$root/local/compute_fbank.py" --manifest-dir "$data_dir/manifests" --output-dir "$data_dir/fbank" \
    --musan true --jobs "$nj"
fi

if in_stage 5; then
  log "Stage 5: tokens in $lang_dir"
  once "$lang_dir/.done" "$tokens_of" "$lang_dir/bpe.model" \
    "$python" "$root/local/train_bpe_model.py" --manifest-dir "$data_dir/manifests" --parts "$train_parts" \
    --prefix "$prefix" --token-type "$token_type" ${vocab_size:+--vocab-size "$vocab_size"} --text-case "$text_case" \
    --lang-dir "$lang_dir"
fi

log "Done: $data_dir"
for part in $all_parts; do
  table=$data_dir/fbank/.$part.table
  [[ ! -f $table ]] || cat "$table"
done | awk 'NR == 1 || !/^ *cuts /'  # one header
heard=$train_parts
[[ -z $augment ]] || heard=$(for part in $(each "$train_parts"); do echo "$part,${part}_augmented"; done | paste -sd ,)
echo "train.py:  --manifest-dir $data_dir/fbank --train-parts $heard ${dev_parts:+--dev-parts $dev_parts }\
${test_parts:+--test-parts $test_parts }$([[ ! -f $lang_dir/bpe.model ]] || echo "--bpe-model $lang_dir/bpe.model")"
[[ -z $test_parts ]] || echo "decode.py: --manifest-dir $data_dir/fbank --test-parts $test_parts (of a model from elsewhere)"
