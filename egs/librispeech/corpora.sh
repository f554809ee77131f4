# The corpora that prepare.sh can speak or download, their parts and their tokens, and how flags are read and checked.
# Sourced by prepare.sh and run.sh.

fail() { echo "error: $*" >&2; exit 1; }

# Gives the variables of the script that is run the values that are typed.  Its assignments from stage= to LAST= are its
# flags and their defaults.
read_flags() { # LAST FLAG VALUE...
  local known name
  known=$(sed -n "/^stage=/,/^$1=/p" "$0")
  shift
  while (($#)); do
    case $1 in
      -h | --help) usage "$known"; exit 0 ;;
      --*)
        name=${1#--} name=${name//-/_}
        [[ $'\n'$known == *$'\n'"$name="* ]] || fail "$1: no such flag; see --help"
        (($# > 1)) || fail "$1: needs a value; see --help"
        printf -v "$name" '%s' "$2"
        shift 2 ;;
      *) fail "$1: no such flag; see --help" ;;
    esac
  done
}

usage() { # the assignments
  sed -n '2,/^set /p' "$0" | sed '/^set /d; s/^# \{0,1\}//'
  echo "Flags and defaults:"
  sed 's/^\([^=]*\)=/  --\1 /' <<<"$1" | tr _ - | sed 's#\$here#egs/librispeech#'
}

# Gives train_parts, dev_parts and test_parts those of --corpus where they are empty.  --corpus-dir needs those that are
# named (train, dev, test); a recipe finds its own.
choose_parts() {
  local train dev=dev-clean,dev-other test=test-clean,test-other name
  for name in train_parts dev_parts test_parts; do  # as names_in of kdstream/config/flags.py reads them
    printf -v $name %s "$(sed -E 's/^[ ,]+|[ ,]+$//g; s/ *,[ ,]*/,/g' <<<"${!name}")"
  done
  if [[ -n $lhotse_recipe ]]; then
    [[ -n $corpus_dir ]] || fail "--lhotse-recipe $lhotse_recipe: say where the corpus is, with --corpus-dir"
    return
  fi
  for name in recipe_args channel; do
    [[ -z ${!name:-} ]] || fail "--${name/_/-} ${!name}: is for --lhotse-recipe; leave it out, and change the corpus itself"
  done
  if [[ -n $corpus_dir ]]; then
    for name in "$@"; do
      name=${name}_parts
      [[ -n ${!name} ]] ||
        fail "--corpus-dir $corpus_dir: name its parts too, with --train-parts, --dev-parts and --test-parts"
    done
    return
  fi
  case $corpus in
    mini) train=train dev=dev test=test ;;
    mini-librispeech) train=train-clean-5 dev=dev-clean-2 test=dev-clean-2 ;;
    librispeech-100) train=train-clean-100 ;;
    librispeech) train=train-clean-100,train-clean-360,train-other-500 ;;
    *) fail "--corpus $corpus: not mini, mini-librispeech, librispeech-100 or librispeech; or use --corpus-dir" ;;
  esac
  train_parts=${train_parts:-$train} dev_parts=${dev_parts:-$dev} test_parts=${test_parts:-$test}
}

# Gives vocab_size its default where it is empty, and lang_name, the directory of the tokens, as icefall calls it.
choose_tokens() {
  local size=500
  [[ -n $corpus_dir || $corpus != mini ]] || size=64
  case $token_type in
    bpe) vocab_size=${vocab_size:-$size} lang_name=lang_bpe_$vocab_size ;;
    byte-bpe) vocab_size=${vocab_size:-$((size < 320 ? 320 : size))} lang_name=lang_bbpe_$vocab_size ;;  # 256 are bytes
    char) lang_name=lang_char${vocab_size:+_$vocab_size} ;;
    *) fail "--token-type $token_type: not bpe, char or byte-bpe" ;;
  esac
}

# Ends the script where a flag of these names is no whole number, or is less than LEAST.
check_numbers() { # LEAST NAME...
  local name
  for name in "${@:2}"; do
    [[ ${!name} =~ ^(-1|0|[1-9][0-9]{0,8})$ ]] && ((${!name} >= $1)) ||
      fail "--${name//_/-} ${!name}: not a whole number of at least $1"
  done
}

# Gives a directory another name where it has its default one and the corpus is a recipe's: one corpus a directory.
choose_place() { # NAME DEFAULT
  [[ -z $lhotse_recipe || ${!1} != "$2" ]] || printf -v "$1" '%s' "$2-$lhotse_recipe"
}

# Gives train_parts, dev_parts and test_parts the parts that a recipe found.  What is typed stays, unless stage 1, which
# is told of it, has just looked for the parts.
read_found_parts() { # FILE
  local train=$train_parts dev=$dev_parts test=$test_parts
  [[ -f $1 ]] || fail "$1: no such file; run stage 1"
  source "$1"
  ((stage <= 1 && stop_stage >= 1)) ||
    train_parts=${train:-$train_parts} dev_parts=${dev:-$dev_parts} test_parts=${test:-$test_parts}
}
