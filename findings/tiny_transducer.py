"""A streaming transducer of blank, A and B, as sherpa-onnx reads it; its last token alone decides the next one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
LSTM = {  # metadata of an encoder that hears 9 frames of features and moves on by 4
    "model_type": "lstm",
    "version": 1,
    "model_author": "nobody",
    "T": 9,
    "decode_chunk_len": 4,
    "num_encoder_layers": 1,
}


def write(after_blank: np.ndarray, after_a: np.ndarray) -> None:
    """Writes encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt here.

    Args:
      after_blank, after_a: the logits (1, 3) in float32 of the joiner, while the last token is a blank, and is A.
    """
    # The encoder hears 9 frames, moves on by 4, and gives 2 frames of zeros; its two states stay as they are.
    save(
        "encoder",
        [
            helper.make_node("Gather", ["x", "frames"], ["some"], axis=1),
            helper.make_node("Gather", ["some", "frames"], ["few"], axis=2),
            helper.make_node("Mul", ["few", "zero"], ["encoder_out"]),
            helper.make_node("Identity", ["h"], ["new_h"]),
            helper.make_node("Identity", ["c"], ["new_c"]),
        ],
        [value("x", FLOAT, "N", 9, 80), value("h", FLOAT, 1, "N", 2), value("c", FLOAT, 1, "N", 2)],
        [value("encoder_out", FLOAT, "N", 2, 2), value("new_h", FLOAT, 1, "N", 2), value("new_c", FLOAT, 1, "N", 2)],
        {"frames": np.array([0, 1]), "zero": np.float32([0])},
        **LSTM,
        rnn_hidden_size=2,
        d_model=2,
    )
    # The decoder gives the last two tokens as they are; none yet is -1 and then blank, 0.
    save(
        "decoder",
        [helper.make_node("Cast", ["y"], ["decoder_out"], to=FLOAT)],
        [value("y", INT64, "N", 2)],
        [value("decoder_out", FLOAT, "N", 2)],
        {},
        vocab_size=3,
        context_size=2,
    )
    # The joiner looks at the second of them: 0 after a blank, 1 after A.
    save(
        "joiner",
        [
            helper.make_node("Add", ["encoder_out", "decoder_out"], ["both"]),
            helper.make_node("Gemm", ["both", "weight", "bias"], ["logit"]),
        ],
        [value("encoder_out", FLOAT, "N", 2), value("decoder_out", FLOAT, "N", 2)],
        [value("logit", FLOAT, "N", 3)],
        {"weight": np.concatenate([np.zeros_like(after_a), after_a - after_blank]), "bias": after_blank},
        joiner_dim=2,
    )
    with open("tokens.txt", "w") as file:
        file.write("<blk> 0\nA 1\nB 2\n")


def write_offline_encoder() -> None:
    """Writes offline_encoder.onnx here, which gives the frames of a whole utterance in one call: zeros too."""
    save(
        "offline_encoder",
        [
            helper.make_node("Slice", ["x", "start", "frames", "time", "step"], ["some"]),
            helper.make_node("Slice", ["some", "start", "bins", "bin"], ["few"]),
            helper.make_node("Mul", ["few", "zero"], ["encoder_out"]),
            helper.make_node("Add", ["x_lens", "one"], ["longer"]),
            helper.make_node("Div", ["longer", "step"], ["encoder_out_lens"]),
        ],
        [value("x", FLOAT, "N", "T", 80), value("x_lens", INT64, "N")],
        [value("encoder_out", FLOAT, "N", "S", 2), value("encoder_out_lens", INT64, "N")],
        {
            "start": np.array([0]),
            "frames": np.array([2**30]),
            "time": np.array([1]),
            "step": np.array([2]),
            "bins": np.array([2]),
            "bin": np.array([2]),
            "zero": np.float32([0]),
            "one": np.array([1]),
        },
    )


def value(name, dtype, *shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def save(name, nodes, inputs, outputs, constants, **metadata):
    weights = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {key: str(item) for key, item in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")
