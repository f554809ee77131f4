"""Trains a token language model, and estimates the bigram that LODR needs.

    kdstream train-lm --exp-dir exp/lm --text novels.txt --dev-text dev.txt --bpe-model data/lang_bpe_500/bpe.model \
        --transcripts data/lang_bpe_500/transcript_words.txt

reads text files, a sentence a line, spelt as the transcripts are.  It writes into EXP_DIR epoch-N.pt, tokens.txt,
bigram.npz where --transcripts are given, and as pretrained.pt the weights of the epoch with the lowest perplexity on
--dev-text.  The parameters are named as in icefall's RNN-LM.  The decoding commands use the model with
`--decoding-method modified_beam_search --lm-exp-dir EXP_DIR`; docs/deployment.md says more.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdstream.config.command_line import log_to_stderr
from kdstream.config.flags import add_arguments, from_args, parser_of
from kdstream.lm.settings import LmConfig


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    add_arguments(parser, LmConfig)
    config = from_args(LmConfig, parser.parse_args(argv))

    from kdstream.lm.train import LmTrainer

    log_to_stderr()
    LmTrainer(config).run()
