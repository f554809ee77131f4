"""The training steps of one checkout, in a process of their own; `against.py` starts one for each of two commits.

    python step_of_checkout.py CHECKOUT [flags of bench-train-step]

It reads lines {"row": name, "repetition": number}.  It runs that step, and answers with a line {"seconds": processor
time, "loss": total loss}.  It imports the kdstream of CHECKOUT alone, and the training benchmark from where that commit
has it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any


def benchmark_of(checkout: str) -> dict[str, Any]:
    """The names that the checkout's training benchmark and its command define or import."""
    sys.path[:1] = [checkout, os.path.join(checkout, "local")]  # instead of the folder of this file
    # Of a package that is installed in place, Python finds a module that the checkout lacks.
    if os.path.exists(os.path.join(checkout, "kdstream", "commands", "bench_train_step.py")):
        modules = [import_module(f"kdstream.{name}") for name in ("commands.bench_train_step", "benchmarks.train_step")]
    else:  # of older commits; there the whole benchmark was one script
        modules = [import_module("bench_train_step")]
    return {name: value for module in modules for name, value in vars(module).items()}


def main(checkout: str, *flags: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    names = benchmark_of(checkout)
    import torch

    from kdstream.training.dist import keep_freed_memory
    from kdstream.training.step import StudentWithBranches

    losses: list[torch.Tensor] = []

    class Remembering(StudentWithBranches):
        def forward(self, *args: Any) -> Any:
            returned = super().forward(*args)
            losses.append(returned[0].detach())
            return returned

    names["Bench"].step.__globals__["StudentWithBranches"] = Remembering
    args = names["get_parser"]().parse_args(flags)
    if args.threads:
        torch.set_num_threads(args.threads)
    data = names["from_args"](names["DataConfig"], args)
    if args.train_cuts:
        *made, vocab_size = names["real_batch"](data)
    else:
        vocab_size = getattr(args, "vocab_size", names["SYNTHETIC_VOCABULARY"])  # older commits have no such flag
        sizes = {"vocab_size": vocab_size} if "vocab_size" in args else {}
        made = names["synthetic_batch"](data, args.utterance_seconds, **sizes)
        made = made if isinstance(made, tuple) else (made,)  # older commits have the tokens beside the batch
    bench = names["Bench"](args, *made, vocab_size)
    keep_freed_memory()
    for line in sys.stdin:
        request = json.loads(line)
        if request["row"] not in bench.rows:
            bench.add_distillation()
        started = time.process_time()
        bench.run(request["row"], request["repetition"])
        seconds = time.process_time() - started
        print(json.dumps({"seconds": seconds, "loss": float(losses[-1])}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
