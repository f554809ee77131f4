#!/usr/bin/env bash
# torch 2.14.1: two caches that were given the same zeros as examples become one in an exported model, and verify=True
#   finds nothing.
#
# Expected: torch.onnx.export(model, (x, zeros, zeros), dynamo=True), the default exporter, takes the tensors as examples
#   of shapes and types.  Each input stays an input of its own, as with dynamo=False.
# Happens: inputs that are one tensor object become one value.  The file keeps both names, and whatever the model did
#   with the first cache it does with the second: the first is read by no node.  There is no warning.  verify=True runs
#   the file on the same examples, where it is right.  So does torch.export.export.  A streaming model whose caches
#   begin as [zeros] * layers says the right thing for its first chunk alone.
# So: give each cache a tensor of its own, and check an export with different random caches.
#
#   bash findings/torch-export-caches.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64):
#   torch 2.14.1; x + cache_1 + cache_2 is 111
#   dynamo=True, [zeros] * 2: y is 201, nodes read cache_2, x, verified
#   dynamo=True, two zeros: y is 111, nodes read cache_1, cache_2, x, verified
#   dynamo=False, [zeros] * 2: y is 111, nodes read cache_1, cache_2, x
#   torch.export.export, [zeros] * 2: y is 201
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
"""Two layers that remember their last input, exported with equal zeros and run with different caches."""

import contextlib
import io
import sys

import numpy as np
import onnx
import onnxruntime
import torch

INPUTS, OUTPUTS = ["x", "cache_1", "cache_2"], ["y", "new_cache_1", "new_cache_2"]


class TwoLayers(torch.nn.Module):
    """Each layer adds what it has heard last to what it hears now."""

    def forward(self, x, cache_1, cache_2):
        middle = x + cache_1
        return middle + cache_2, x, middle


def export(caches, name, **options):
    """Writes the file.  Returns whether the exporter says that it has checked the outputs and found them right."""
    said = io.StringIO()
    examples = (torch.ones(1, 2), *caches)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        torch.onnx.export(TwoLayers(), examples, name, input_names=INPUTS, output_names=OUTPUTS, **options)
    return "Verify output accuracy... \N{WHITE HEAVY CHECK MARK}" in said.getvalue()


def of_file(name):
    """y for x = 1, cache_1 = 10 and cache_2 = 100, and the inputs that a node reads."""
    feeds = {key: np.full((1, 2), number, np.float32) for key, number in zip(INPUTS, (1, 10, 100))}
    y = onnxruntime.InferenceSession(name).run(["y"], feeds)[0][0, 0]
    read = {key for node in onnx.load(name).graph.node for key in node.input}
    return float(y), sorted(read.intersection(INPUTS))


print(f"torch {torch.__version__.partition('+')[0]}; x + cache_1 + cache_2 is 111")
zeros = torch.zeros(1, 2)
as_stated = True
for what, caches, options, stated in (
    ("dynamo=True, [zeros] * 2", [zeros] * 2, {"dynamo": True, "verify": True}, 201),
    ("dynamo=True, two zeros", [zeros, zeros.clone()], {"dynamo": True, "verify": True}, 111),
    ("dynamo=False, [zeros] * 2", [zeros] * 2, {"dynamo": False}, 111),
):
    verified = export(caches, "model.onnx", **options)
    y, read = of_file("model.onnx")
    print(f"{what}: y is {y:.0f}, nodes read {', '.join(read)}" + ", verified" * verified)
    as_stated &= y == stated and verified == ("verify" in options)
program = torch.export.export(TwoLayers(), (torch.ones(1, 2), zeros, zeros))
y = float(program.module()(*(torch.full((1, 2), number) for number in (1.0, 10.0, 100.0)))[0][0, 0])
print(f"torch.export.export, [zeros] * 2: y is {y:.0f}")
as_stated &= y == 201
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
