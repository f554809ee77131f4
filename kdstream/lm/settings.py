"""The flags of kdstream train-lm."""

from __future__ import annotations

from dataclasses import dataclass

from kdstream.config.flags import Section, flag


@dataclass(frozen=True)
class LmConfig(Section):
    """A language model, its texts and its training."""

    exp_dir: str = flag("lm", "Directory to write.")
    text: str = flag("", "Text to train on: a sentence a line, spelt as the transcripts are.")
    dev_text: str = flag("", "Text to measure perplexity on, which chooses the epoch (empty: the last one).")
    transcripts: str = flag(
        "", "Text that the speech model was trained on: its bigram, for LODR, is estimated too (empty: none)."
    )
    bpe_model: str = flag("data/lang_bpe_500/bpe.model", "The speech model's sentencepiece model.")
    embedding_dim: int = flag(512, "Width of the embedding.", minimum=1)
    hidden_dim: int = flag(512, "Width of the LSTM layers.", minimum=1)
    num_layers: int = flag(2, "LSTM layers.", minimum=1)
    dropout: float = flag(0.1, "Dropout before each layer and before the output.", minimum=0, maximum=1)
    num_epochs: int = flag(20, "Epochs.", minimum=1)
    lr: float = flag(2e-3, "Learning rate of Adam; halved when the perplexity did not fall.", above=0)
    max_tokens: int = flag(4000, "Padded tokens in a batch.", minimum=1)
    max_sent_len: int = flag(200, "Lines of more tokens are split into several sentences.", minimum=1)
    save_every_n: int = flag(2000, "Write checkpoint-N.pt after so many batches.", minimum=1)
    seed: int = flag(42, "Seed of the weights, the batches and dropout.", minimum=0)
    resume: bool = flag(False, "Go on from the last checkpoint in EXP_DIR.")
    device: str = flag("", "Device, e.g. cpu or cuda:0 (empty: a GPU if there is one).")
