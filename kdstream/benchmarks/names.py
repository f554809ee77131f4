"""What the benchmarks call the things that they measure."""

import time

STEPS = ("baseline step", "distilled step", "distilled step, cached teacher")
BOTH_MODES = "step in both modes"
SYNTHETIC_VOCABULARY = 500
RUNTIMES = ("torch", "onnxruntime", "sherpa-onnx", "sherpa-onnx-int8")
OWN = ("torch", "onnxruntime")  # StreamingDecoder's engines; the others search greedily alone, in exported files
FOR_ONE_STREAM = ("onnxruntime",)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # wall clock, or processor time
