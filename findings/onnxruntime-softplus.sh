#!/usr/bin/env bash
# onnxruntime 1.31.1: one Softplus takes four times as long as the five operators that it stands for.
#
# Expected: Softplus is one node with a kernel of its own, so it is at least as fast as Clip, Exp, Add, Log and Max.
# Happens: on one thread of an x86-64 processor the five together take a quarter of Softplus's time, and agree with it
#   within 1e-6.
# So: a Zipformer's file, which has a Softplus in each Swoosh, runs faster where the same arithmetic is written out.
#
#   bash findings/onnxruntime-softplus.sh    # needs python3 (3.11 or newer) with venv; exits 1 if this has changed
#
# Output seen (Python 3.11, Linux x86-64, AVX-512):
#   onnxruntime 1.31.1
#   largest difference of the outputs: 1e-06
#   five operators take 0.24 of the time of Softplus
#   as stated
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
"""Softplus as one node and as five, in turn, on activations of a hidden layer."""

import sys
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

SHAPE = (64, 1024)
LIMIT = 80.0  # beyond it exp would overflow, and log(1 + exp(x)) is x


def session(*nodes, **constants):
    """The nodes, from input x to output y, on one thread."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy")
    numbers = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "softplus", [x], [y], numbers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


node = helper.make_node
one = session(node("Softplus", ["x"], ["y"]))
five = session(
    node("Clip", ["x", "", "limit"], ["below"]),
    node("Exp", ["below"], ["exp"]),
    node("Add", ["exp", "unit"], ["sum"]),
    node("Log", ["sum"], ["log"]),
    node("Max", ["x", "log"], ["y"]),
    limit=LIMIT,
    unit=1.0,
)
print(f"onnxruntime {onnxruntime.__version__}")
x = {"x": (3 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)}
difference = float(np.abs(one.run(None, x)[0] - five.run(None, x)[0]).max())
print(f"largest difference of the outputs: {difference:.0e}")
ratios = []
for repetition in range(25):
    taken = []
    for which in one, five:
        started = time.process_time()
        for _ in range(20):
            which.run(None, x)
        taken.append(time.process_time() - started)
    ratios.append(taken[1] / taken[0])
ratio = float(np.median(ratios))
print(f"five operators take {ratio:.2f} of the time of Softplus")
as_stated = difference < 1e-5 and ratio < 0.6
print("as stated" if as_stated else "CHANGED: not as the head of this script states")
sys.exit(not as_stated)
PYTHON
