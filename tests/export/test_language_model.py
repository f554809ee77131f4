"""Exported language models: the same numbers in onnxruntime, and the same words in sherpa-onnx, as in torch."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
import torch

from kdstream.checkpoints.store import save_pretrained
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.export.language_model import LM_FILE, export_lm
from kdstream.export.runtimes import run
from kdstream.lm.bigram import BIGRAM_FILE, FST_FILE
from support.decoding import make_experiment, run_script, write_noise
from support.lm import random_bigram, tiny_lm

SIZE = 9


@pytest.mark.parametrize("num_layers", [1, 2])
def test_onnxruntime_computes_what_torch_does_for_any_number_of_paths(tmp_path, num_layers):
    lm = tiny_lm(SIZE, num_layers)
    assert export_lm(lm, None, tmp_path) == [tmp_path / LM_FILE]
    session = onnxruntime.InferenceSession(str(tmp_path / LM_FILE), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map.items() >= {
        ("model_type", "rnnlm"), ("sos_id", "1"), ("num_layers", str(num_layers)), ("hidden_size", "8"),
    }  # fmt: skip
    for count in (1, 3):
        state = lm.start(count)
        theirs = [part.numpy() for part in state]
        for seed in range(4):
            x = torch.from_numpy(np.random.default_rng(seed).integers(0, SIZE, (count, 1)))
            with torch.no_grad():
                hidden, state = lm.step(x, state)
                expected = (lm.log_probs(hidden[:, 0]), *state)
            log_probs, *theirs = run(session, dict(zip(("x", "h0", "c0"), (x.numpy(), *theirs), strict=True)))
            for ours, other in zip(expected, (log_probs, *theirs), strict=True):
                np.testing.assert_allclose(ours.numpy(), other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lodr", [0.0, -0.3])
def test_sherpa_onnx_says_what_torch_says_with_the_exported_files(tmp_path, monkeypatch, capsys, lodr):
    exp_dir, lm_dir = make_experiment(tmp_path, causal=True), tmp_path / "lm"
    tokenizer = Tokenizer(ExperimentConfig.load(exp_dir).data.bpe_model)
    save_pretrained(lm_dir, tiny_lm(tokenizer.vocab_size))
    random_bigram(tokenizer.vocab_size).save(lm_dir / BIGRAM_FILE)
    noise = [write_noise(tmp_path / "audio" / f"{n}.wav", 1.5, seed=n) for n in range(4)]
    flags = ("--lm-exp-dir", lm_dir, "--lm-scale-decode", 0.5, "--lodr-scale", lodr, "--blank-penalty", 1)
    assert not run_script(monkeypatch, "egs/librispeech/export.py", "--exp-dir", exp_dir, *flags, "--check", *noise)
    output = capsys.readouterr().out
    assert (exp_dir / LM_FILE).is_file() and (exp_dir / FST_FILE).is_file()
    said = {name: re.findall(rf"^  {name} +RTF \S+ +(.*)$", output, re.MULTILINE) for name in ("torch", "torch, LM")}
    assert len(said["torch"]) == 4 and said["torch"] != said["torch, LM"]
    assert "words of sherpa-onnx that are not torch's: 0 of" in output
