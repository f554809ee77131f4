"""Trains the LSTM language model and estimates the bigram; kdstream train-lm is the command around it.

EXP_DIR gets epoch-N.pt, the last checkpoint-N.pt, tokens.txt, and as pretrained.pt and pretrained.safetensors the
weights of the epoch with the lowest perplexity on --dev-text.  A training that resumes takes the steps that it would
have taken without the interruption.
"""

from __future__ import annotations

import logging
import math
import shlex
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kdstream.checkpoints.store import (
    PRETRAINED,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    remove_leftovers,
    remove_old_checkpoints,
    restore,
    save_checkpoint,
    save_pretrained,
)
from kdstream.config.experiment import TOKENS_FILE
from kdstream.config.flags import flag_value, settings_of
from kdstream.data.tokenizer import Tokenizer, difference_of_tokens, read_tokens
from kdstream.devices import find_device
from kdstream.errors import UserError, option
from kdstream.lm.bigram import BIGRAM_FILE, estimate_bigram
from kdstream.lm.model import RnnLm, is_lm
from kdstream.lm.settings import LmConfig
from kdstream.lm.text import SOS_EOS_ID, TokenText, read_text
from kdstream.words import BYTE_PIECE, is_symbol

MAX_NORM = 5.0  # of the gradient
DIVERGED = 100.0  # mean loss per token; one that knows nothing has the logarithm of the number of tokens
MAY_CHANGE = ("exp_dir", "transcripts", "num_epochs", "save_every_n", "resume", "device")  # when a training goes on


@torch.no_grad()
def perplexity(model: RnnLm, text: TokenText, max_tokens: int) -> float:
    """exp of the mean loss per token, <sos/eos> at the end of sentences counted."""
    model.eval()
    device = model.output_linear.weight.device
    total = 0.0
    for sentences in text.batches(max_tokens):
        x, lens = text.batch(sentences)
        total += float(model(x.to(device), lens.to(device)).double().sum())
    return _exp(total / text.num_tokens)


def _exp(loss: float) -> float:
    """The perplexity that a mean loss per token is.  Raises UserError for one that only diverging weights have."""
    if not loss < DIVERGED:
        raise UserError(f"the training diverges: a loss of {loss:g} per token", flag=option("lr"), fix="lower it")
    return math.exp(loss)


def kept_settings(config: LmConfig) -> dict[str, Any]:
    """The settings that a training keeps from its beginning to its end."""
    return {name: value for name, value in settings_of(config).items() if name not in MAY_CHANGE}


def check_symbol(tokenizer: Tokenizer, bpe_model: str) -> None:
    """Raises UserError where what begins and ends sentences is a token that spells texts."""
    token = tokenizer.tokens[SOS_EOS_ID]
    if not is_symbol(token) or BYTE_PIECE.fullmatch(token):
        raise UserError(
            f"{bpe_model}: token {SOS_EOS_ID} is {token!r}, and not <sos/eos>, between which sentences stand",
            flag=option("bpe_model"),
            fix="train one with kdstream train-bpe-model, or as icefall does",
        )


def find_begun(config: LmConfig) -> tuple[dict[str, Any], Path] | None:
    """The last checkpoint in --exp-dir and its path; None where the training begins.

    Raises UserError where the directory holds another model, whose weights would be replaced, and where it holds a
    training that must not go on: --resume is 0, or it was begun with other settings.
    """
    exp_dir = Path(config.exp_dir)
    started, pretrained = latest_checkpoint(exp_dir), exp_dir / PRETRAINED
    checkpoint = {} if started is None else load_checkpoint(started)
    of_another = None if "settings" in checkpoint else started
    if started is None and pretrained.is_file() and not is_lm(load_weights(pretrained)):
        of_another = pretrained
    if of_another is not None:
        problem = f"{of_another}: is of another model, whose files would be replaced"
        raise UserError(problem, flag=option("exp_dir"), fix="name another directory")
    if not config.resume and (started is not None or pretrained.is_file()):
        fix = f"go on with {option('resume', 1)}, or use another {option('exp_dir')}"
        raise UserError(f"{exp_dir}: holds a training already", fix=fix)
    if started is None:
        return None
    check_settings(config, checkpoint, started)
    return checkpoint, started


def check_settings(config: LmConfig, checkpoint: dict[str, Any], path: Path) -> None:
    """Raises UserError, which names the flags, where the training of this checkpoint was begun with others."""
    begun, now = checkpoint["settings"], kept_settings(config)
    flags = [f"{option(name)} {shlex.quote(flag_value(value))}" for name, value in begun.items() if value != now[name]]
    if flags:
        fix = f"give {' '.join(flags)}, or use another {option('exp_dir')}"
        raise UserError(f"{path}: this training was begun with other settings", flag=option("resume", 1), fix=fix)


def check_tokens(tokenizer: Tokenizer, config: LmConfig) -> None:
    """Raises UserError where the training in --exp-dir has other tokens, as its tokens.txt tells."""
    table = Path(config.exp_dir) / TOKENS_FILE
    if table.is_file() and (difference := difference_of_tokens(tokenizer.tokens, read_tokens(table), "the training")):
        problem = f"{config.bpe_model}: not the tokens in {table}, with which this training began ({difference})"
        fix = f"give the bpe.model that it began with, or use another {option('exp_dir')}"
        raise UserError(problem, flag=option("bpe_model"), fix=fix)


def check_texts(config: LmConfig, checkpoint: dict[str, Any], texts: dict[str, str]) -> None:
    """Raises UserError where a text has changed since this checkpoint; older ones do not tell.

    texts: hashes by the flags' names.
    """
    for name, begun in checkpoint.get("texts", {}).items():
        if texts[name] != begun:
            problem = f"{getattr(config, name)}: has changed since this training began, or {option('bpe_model')} has"
            fix = f"give it as it was, or use another {option('exp_dir')}"
            raise UserError(problem, flag=option(name), fix=fix)


class LmTrainer:
    """A language model in training.

    Raises UserError for texts or a folder that do not serve, and for other settings, tokens or texts than the training
    was begun with.
    """

    def __init__(self, config: LmConfig) -> None:
        self.config, self.exp_dir = config, Path(config.exp_dir)
        tokenizer = Tokenizer(config.bpe_model)
        check_symbol(tokenizer, config.bpe_model)
        self.vocab_size = tokenizer.vocab_size
        if not config.text:
            raise UserError("not given", flag=option("text"), fix="name a text file, a sentence a line")
        resumed = find_begun(config)
        if resumed is not None:
            check_tokens(tokenizer, config)
        self.text, self.dev, transcripts = (
            read_text(Path(path), tokenizer, config.max_sent_len, option(name)) if path else None
            for name, path in (
                ("text", config.text), ("dev_text", config.dev_text), ("transcripts", config.transcripts)
            )
        )  # fmt: skip
        given = {"text": self.text, "dev_text": self.dev}
        self.fingerprints = {name: text.fingerprint for name, text in given.items() if text is not None}
        if resumed is not None:
            check_texts(config, resumed[0], self.fingerprints)
        remove_leftovers(self.exp_dir)
        tokenizer.save_tokens(self.exp_dir / TOKENS_FILE)
        if transcripts is not None:
            estimate_bigram(transcripts, self.vocab_size).save(self.exp_dir / BIGRAM_FILE)
            logging.info(f"Wrote {self.exp_dir / BIGRAM_FILE}, of {transcripts.num_tokens} tokens")
        torch.manual_seed(config.seed)
        sizes = (config.embedding_dim, config.hidden_dim, config.num_layers)
        self.model = RnnLm(self.vocab_size, *sizes, config.dropout).to(find_device(config.device))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.5, patience=0)
        self.steps, self.best, self.epoch, self.used = 0, math.inf, 1, 0  # used: batches of this epoch
        self.total, self.count = 0.0, 0  # loss and tokens of this epoch
        if resumed is not None:
            self._restore(*resumed)

    def _restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        restore(checkpoint, path, self.model, optimizer=self.optimizer, scheduler=self.scheduler)
        self.steps, self.best = checkpoint["batch_idx_train"], checkpoint["best_valid_loss"]
        self.total, self.count = checkpoint["tot_loss"], checkpoint["tot_tokens"]
        self.epoch, self.used = checkpoint["sampler"]["epoch"], checkpoint["sampler"]["batch"]
        logging.info(f"Going on from {path}")

    def _save(self, name: str) -> None:
        params: dict[str, Any] = {
            "batch_idx_train": self.steps, "best_valid_loss": self.best,
            "tot_loss": self.total, "tot_tokens": self.count, "settings": kept_settings(self.config),
            "texts": self.fingerprints,
        }  # fmt: skip
        position = {"epoch": self.epoch, "batch": self.used}
        save_checkpoint(
            self.exp_dir / name,
            self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            sampler=position,
            params=params,
        )

    def run(self) -> None:
        """Trains up to --num-epochs."""
        while self.epoch <= self.config.num_epochs:
            self._train_epoch()

    def _train_epoch(self) -> None:
        config, epoch = self.config, self.epoch
        assert self.text is not None
        batches = self.text.batches(config.max_tokens, config.seed + epoch)
        todo = batches[self.used :]
        with tqdm(todo, initial=self.used, total=len(batches), desc=f"epoch {epoch}", disable=None) as progress:
            for sentences in progress:
                self._step(*self.text.batch(sentences))
                progress.set_postfix(perplexity=f"{_exp(self.total / self.count):.2f}", refresh=False)
                if self.steps % config.save_every_n == 0:
                    self._save(f"checkpoint-{self.steps}.pt")
                    remove_old_checkpoints(self.exp_dir, 1)
        train_loss = self.total / self.count
        shown = f"epoch {epoch}: perplexity {_exp(train_loss):.2f} in training"
        loss = train_loss
        if self.dev is not None:
            dev = perplexity(self.model, self.dev, config.max_tokens)
            shown += f", {dev:.2f} on {config.dev_text}"
            loss = math.log(dev)
        logging.info(f"{shown}; learning rate {self.optimizer.param_groups[0]['lr']:g}")
        self.scheduler.step(loss)
        if self.dev is None or loss < self.best:
            self.best = loss
            save_pretrained(self.exp_dir, self.model)
        self.epoch, self.used, self.total, self.count = epoch + 1, 0, 0.0, 0
        self._save(f"epoch-{epoch}.pt")

    def _step(self, x: torch.Tensor, lens: torch.Tensor) -> None:
        torch.manual_seed(self.config.seed + self.steps)  # of dropout, the same after an interruption
        self.model.train()
        device = self.model.output_linear.weight.device
        count = int(lens.sum()) + len(lens)
        loss = self.model(x.to(device), lens.to(device)).sum() / count
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.steps, self.used = self.steps + 1, self.used + 1
        self.total, self.count = self.total + float(loss.detach()) * count, self.count + count
