"""Trains a sentencepiece model on transcripts, and writes tokens.txt.

    kdstream train-bpe-model --manifest-dir data/manifests --parts train-clean-5 --vocab-size 500 \
        --lang-dir data/lang_bpe_500
    kdstream train-bpe-model --cuts a.jsonl.gz,b.jsonl.gz --vocab-size 500 --lang-dir data-mine/lang_bpe_500
    kdstream train-bpe-model --cuts aishell.jsonl.gz --token-type char --lang-dir data-aishell/lang_char

writes bpe.model, unigram_<V>.model, transcript_words.txt and tokens.txt into LANG_DIR, as icefall does.  Each line of
tokens.txt holds a piece and its id; <blk> is 0, <sos/eos> 1 and <unk> 2.  Of cuts it reads every supervision.

Token types: bpe are the pieces of a unigram model, as icefall's; char are single letters, and the blank between words;
byte-bpe are pieces and the 256 bytes, which spell every letter that has no piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.command_line import log_to_stderr
from kdstream.config.experiment import BPE_MODEL_FILE, TOKENS_FILE
from kdstream.config.flags import in_range, parser_of
from kdstream.config.sections import LIBRISPEECH
from kdstream.corpus.text_remove import check_no_special
from kdstream.corpus.token_types import TEXT_CASES, TOKEN_TYPES
from kdstream.files import write_text


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    texts_of = parser.add_mutually_exclusive_group(required=True)
    texts_of.add_argument("--parts", help="Parts whose transcripts to train on, separated by commas.")
    texts_of.add_argument("--cuts", help="Cut manifests whose transcripts to train on instead, separated by commas.")
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/manifests"), help="Where --parts are.")
    parser.add_argument("--prefix", default=LIBRISPEECH, help="What names of these manifests begin with.")
    parser.add_argument("--token-type", choices=TOKEN_TYPES, default="bpe", help="Kind of tokens (default: bpe)")
    tokens = "Tokens (default: 500; of char one for each letter)"
    parser.add_argument("--vocab-size", type=in_range(int, minimum=1), help=tokens)
    parser.add_argument("--text-case", choices=TEXT_CASES, default="keep", help="Case of the text (default: keep)")
    parser.add_argument("--lang-dir", type=Path, required=True, help="Directory to write.")
    args = parser.parse_args(argv)

    from kdstream.corpus.bpe import (
        log_text,
        texts_for_tokens,
        train_bpe_model,
        transcripts_of_cuts,
        transcripts_of_parts,
    )
    from kdstream.data.tokenizer import Tokenizer

    log_to_stderr()
    if args.cuts is not None:
        texts = transcripts_of_cuts(args.cuts)
    else:
        texts = transcripts_of_parts(args.manifest_dir, args.parts, args.prefix)
    check_no_special(texts, args.cuts or args.parts, "take it out of the texts of the manifests")
    texts = texts_for_tokens(texts, args.text_case)
    args.lang_dir.mkdir(parents=True, exist_ok=True)
    transcripts = args.lang_dir / "transcript_words.txt"
    write_text(transcripts, "".join(text + "\n" for text in texts))
    train_bpe_model(transcripts, args.lang_dir, args.vocab_size, args.token_type)
    log_text(texts, args.lang_dir / BPE_MODEL_FILE)
    Tokenizer(args.lang_dir / BPE_MODEL_FILE).save_tokens(args.lang_dir / TOKENS_FILE)
