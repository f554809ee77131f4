"""What the benchmarks call the things that they measure."""

STEPS = ("baseline step", "distilled step", "distilled step, cached teacher")
SYNTHETIC_VOCABULARY = 500
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-int8", "sherpa-onnx", "sherpa-onnx-int8")
CLOCKS = ("wall", "cpu")  # wall clock, or processor time
