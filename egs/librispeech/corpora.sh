# The corpora that prepare.sh can speak or download, and what their parts are for.  Sourced by prepare.sh and run.sh.

# Gives train_parts, dev_parts and test_parts those of --corpus where they are empty; --corpus-dir needs all three.
choose_parts() {
  local train dev=dev-clean,dev-other test=test-clean,test-other
  if [[ -n $corpus_dir ]]; then
    [[ -n $train_parts && -n $dev_parts && -n $test_parts ]] ||
      fail "--corpus-dir $corpus_dir: name its parts too, with --train-parts, --dev-parts and --test-parts"
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
