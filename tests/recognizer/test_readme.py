"""README's lines of Python, run as they are written there."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import soundfile

from support.paths import ROOT
from support.serving import noise


@pytest.mark.slow
@pytest.mark.parametrize("model", ["exp_dir", "exported"])
def test_readmes_lines_of_python_run_as_they_are(model, request, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shutil.copytree(request.getfixturevalue(model), tmp_path / "exp/distilled")
    samples = noise(2.0, seed=1)
    soundfile.write(tmp_path / "talk.wav", samples, 16000, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    exec(code, {"blocks": np.split(samples, 20)})
    first, *partial, last = capsys.readouterr().out.splitlines()
    assert len(partial) == 20 and len(last) > 10
    assert first.startswith(f"{last} [Word(text=")
