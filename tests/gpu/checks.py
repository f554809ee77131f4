"""The checks.  Each gives rows: what was measured, the limit if there is one, and whether it was kept."""

from __future__ import annotations

import gc
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from steps import (
    CHUNK,
    Sizes,
    Training,
    build,
    cached_teacher,
    live_teacher,
    make_batch,
    seconds_of,
)

from kdstream.benchmarks.layouts import measure_layouts
from kdstream.checkpoints.store import load_checkpoint, restore, save_checkpoint
from kdstream.config.sections import TrainConfig
from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.stream import StreamingDecoder, decode_streams, decode_whole
from kdstream.kd.teacher import Teacher

Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """device: that is checked.  missing: packages that are not installed.  icefall: folder of its zipformer recipe."""

    device: torch.device
    sizes: Sizes
    missing: frozenset[str]
    icefall: str

    @property
    def halves(self) -> dict[str, TrainConfig]:
        """Settings of half precision that the device can do."""
        found = {"bfloat16": TrainConfig(use_bf16=True)}
        if self.device.type == "cuda":
            found["float16"] = TrainConfig(use_fp16=True)
        return found


def row(check: str, what: str, value: Any, limit: str = "", passed: bool | None = None) -> Row:
    shown = "" if passed is None else "yes" if passed else "NO"
    return {"check": check, "what": what, "value": value, "limit": limit, "passed": shown}


def in_full_float32() -> AbstractContextManager[None]:
    """Within it cuDNN's convolutions do not round float32 to TF32, as they do by default."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def parity(world: World) -> Iterator[Row]:
    """Losses and gradients in float32, the device's beside the CPU's."""
    found = []
    for device in (torch.device("cpu"), world.device):
        with in_full_float32():
            training = Training(world.sizes, device, live_teacher(world.sizes, device), TrainConfig())
            found.append(training.gradients(make_batch(device, 6.0, 3.0)))
    (losses, grads), (theirs, their_grads) = found
    for name, value in losses.items():
        off = float((value - theirs[name]).abs() / value.abs().clamp(min=1e-6))
        yield row("parity", f"{name}: relative difference", f"{off:.1e}", "<= 1e-3", off <= 1e-3)
    cosine = float(torch.cosine_similarity(grads, their_grads, dim=0))
    yield row("parity", "cosine of the gradients", f"{cosine:.6f}", ">= 0.999", cosine >= 0.999)


def half_precision(world: World) -> Iterator[Row]:
    """Trainings with all losses; the live and the cached teacher."""
    sizes, device = world.sizes, world.device
    batch = make_batch(device, min(sizes.seconds, 60.0), min(sizes.utterance_seconds, 6.0))
    teacher = live_teacher(sizes, device)
    for name, train in world.halves.items():
        with tempfile.TemporaryDirectory() as folder:
            teachers: dict[str, Teacher] = {"live": teacher}
            if "lhotse" in world.missing:
                yield row(name, "cached teacher", "left out: needs lhotse")
            else:
                distiller = Training(sizes, device, teacher, train).module.distiller
                layers = sorted({pair.teacher for pair in distiller.pairs}) if distiller is not None else []
                teachers["cached"] = cached_teacher(teacher, layers, batch, Path(folder))
            for kind, listened in teachers.items():
                training = Training(sizes, device, listened, train)
                losses = [training.step(number, batch) for number in range(sizes.steps)]
                finite, what = all(map(math.isfinite, losses)), f"{kind} teacher, {sizes.steps} steps"
                yield row(name, f"{what}: losses are finite", finite, "yes", finite)
                fell = losses[-1] < losses[0] or sizes.tiny
                yield row(name, f"{what}: first and last loss", f"{losses[0]:.1f}, {losses[-1]:.1f}", "it falls", fell)
                if name == "float16":
                    scale = training.precision.grad_scale
                    yield row(name, f"{what}: gradient scale", f"{scale:g}", ">= 0.01", scale >= 0.01)


def oom_scan(world: World) -> Iterator[Row]:
    """The largest batch of a limited memory; a step must still be possible after one that was too large."""
    sizes, device = world.sizes, world.device
    training = Training(sizes, device, None, next(iter(world.halves.values())))
    seconds, fits, largest = sizes.seconds / 4, 0.0, 64 * sizes.seconds
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 8e9 / total), device)
    try:
        while seconds <= largest:
            try:
                if device.type == "cpu" and seconds > sizes.seconds:
                    raise RuntimeError("out of memory: there is no GPU to run out of")
                training.step(0, make_batch(device, seconds, sizes.utterance_seconds))
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise
                break
            fits, seconds = seconds, 2 * seconds
    finally:
        training.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    yield row("out of memory", "small, 8 GB: largest batch that fits, in doublings (s of speech)", fits)
    loss = training.step(1, make_batch(device, sizes.seconds / 4, sizes.utterance_seconds))
    yield row("out of memory", "the next step has a finite loss", math.isfinite(loss), "yes", math.isfinite(loss))


def resume(world: World) -> Iterator[Row]:
    """Steps after a checkpoint equal those of a training that was not interrupted."""
    sizes, device = world.sizes, world.device
    batch = make_batch(device, 8.0, 4.0)
    teacher = live_teacher(sizes, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint-2.pt"
        first = Training(sizes, device, teacher, TrainConfig())
        for number in range(2):
            first.step(number, batch)
        save_checkpoint(path, first.model, branches=first.module.distiller, optimizer=first.optimizer)
        expected = [first.step(number, batch) for number in (2, 3)]
        second = Training(sizes, device, teacher, TrainConfig())
        restore(load_checkpoint(path), path, second.model, branches=second.module.distiller, optimizer=second.optimizer)
        losses = [second.step(number, batch) for number in (2, 3)]
    off = max(abs(a - b) / abs(a) for a, b in zip(expected, losses, strict=True))
    limit = 1e-6 if device.type == "cpu" else 1e-3  # a GPU adds in an order that differs from run to run
    yield row("resume", "two losses after it: relative difference", f"{off:.1e}", f"<= {limit:g}", off <= limit)


def decoding(world: World) -> Iterator[Row]:
    """Tokens of whole utterances and of streams are the CPU's."""
    batch, searches = make_batch(torch.device("cpu"), 12.0, 3.0), (GreedySearch(), ModifiedBeamSearch())
    models = [build(world.sizes, device).eval() for device in (torch.device("cpu"), world.device)]
    for model in models:
        with torch.no_grad():
            model.joiner.output_linear.bias[0] = 0.0
    for search in searches:
        whole, streamed = [], []
        with in_full_float32():
            for model in models:
                found = decode_whole(model, batch.features, batch.feature_lens, CHUNK, search)
                whole.append([result.tokens for result in found])
                pairs = zip(batch.cut_ids, batch.features, batch.feature_lens.tolist(), strict=True)
                utterances = [(name, x[:length]) for name, x, length in pairs]
                results = dict(decode_streams(StreamingDecoder(model, CHUNK, search, len(utterances)), utterances))
                streamed.append([results[name].tokens for name in batch.cut_ids])
        for kind, (cpu, ours) in {"whole": whole, "streams": streamed}.items():
            count = sum(map(len, cpu))
            yield row(
                "decoding", f"{search.method}, {kind}: {count} tokens are the CPU's", cpu == ours, "yes", cpu == ours
            )


def layouts(world: World) -> Iterator[Row]:
    """Both memory layouts of depthwise convolutions."""
    size = dict(utterances=2, frames=40) if world.sizes.tiny else dict(utterances=50, frames=1000)
    dtypes = (torch.float32,) if world.device.type == "cpu" else (torch.float32, torch.bfloat16, torch.float16)
    for measured in measure_layouts(world.device, dtypes, **size, repetitions=world.sizes.repetitions):
        limit = 1e-4 if measured["dtype"] == "float32" else 2e-2
        times = f"{measured['channels last (ms)']:.2f} ms, {measured['plain (ms)']:.2f} ms"
        what = f"{measured['convolution']}, {measured['dtype']}: "
        yield row("layouts", what + "channels last, plain", times)
        off = measured["results differ by"]
        yield row("layouts", what + "results differ by", off, f"<= {limit:g}", float(off) <= limit)


def compiled(world: World) -> Iterator[Row]:
    """torch.compile of the encoder in eval mode, at one shape."""
    if not hasattr(torch, "compile"):
        yield row("compile", "encoder", "left out: torch before 2.0")
        return
    model = build(world.sizes, world.device).eval()
    batch = make_batch(world.device, world.sizes.seconds / 4, world.sizes.utterance_seconds)
    with torch.no_grad():
        x, lens, _ = model.encoder_embed(batch.features, batch.feature_lens)
        plain = model.encoder(x, lens, CHUNK)[0]
        before = seconds_of(lambda: model.encoder(x, lens, CHUNK), world.device, world.sizes.repetitions)
        yield row("compile", "off: the encoder's forward (ms)", round(1000 * before, 2))
        try:
            encoder = torch.compile(model.encoder, dynamic=False, backend="eager" if world.sizes.tiny else "inductor")
            off = float((encoder(x, lens, CHUNK)[0] - plain).norm() / plain.norm())
        except Exception as error:  # whatever a compiler may raise is a result, and no end of the checks
            yield row("compile", "on", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}")
            return
        after = seconds_of(lambda: encoder(x, lens, CHUNK), world.device, world.sizes.repetitions)
        yield row("compile", "on: the encoder's forward (ms)", round(1000 * after, 2))
        yield row("compile", "on: relative difference", f"{off:.1e}", "<= 1e-3", off <= 1e-3)


def speed(world: World) -> Iterator[Row]:
    """Seconds of speech in a second, and memory, of baseline and distilled steps."""
    sizes, device = world.sizes, world.device
    name, train = next(reversed(world.halves.items()))
    batch = make_batch(device, sizes.seconds, sizes.utterance_seconds)
    for preset in sizes.presets:
        for kind in ("baseline", "distilled", "baseline, activations checkpointed"):
            gc.collect()
            settings = replace(train, checkpoint_activations="checkpointed" in kind)
            teacher = live_teacher(sizes, device, preset) if kind == "distilled" else None
            run = partial(Training(sizes, device, teacher, settings, preset).step, 0, batch)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            taken = seconds_of(run, device, sizes.repetitions)
            what = f"{preset}, {kind}, {name}, {batch.duration:.0f} s: "
            yield row("speed", what + "seconds of speech a second", round(batch.duration / taken))
            if device.type == "cuda":
                yield row("memory", what + "peak (MB)", torch.cuda.max_memory_allocated(device) // 1_000_000)
            del run, teacher


def icefall_encoder(world: World) -> Iterator[Row]:
    """icefall's encoder of the medium recipe and ours, forward and backward."""
    if not world.icefall:
        yield row("icefall", "encoder", "left out: --icefall names its zipformer recipe")
        return
    sys.path.insert(0, world.icefall)
    try:
        from zipformer import Zipformer2  # pyright: ignore[reportMissingImports]  # icefall's
    except ImportError as error:
        yield row("icefall", "encoder", f"left out: {error}")
        return
    config = world.sizes.config("medium")
    names = ("num_encoder_layers", "downsampling_factor", "encoder_dim", "encoder_unmasked_dim", "num_heads")
    names += ("feedforward_dim", "query_head_dim", "value_head_dim", "pos_head_dim", "pos_dim", "cnn_module_kernel")
    sizes = {name: getattr(config, name) for name in names}
    theirs = Zipformer2(causal=True, chunk_size=(16,), left_context_frames=(64,), **sizes).to(world.device).train()
    ours = build(world.sizes, world.device, "medium").encoder.train()
    frames, batch = int(50 * world.sizes.utterance_seconds), max(1, int(world.sizes.seconds / 12))
    x = torch.randn(batch, frames, config.encoder_dim[0], device=world.device)
    lens = torch.full((batch,), frames, device=world.device)
    padding = torch.zeros(batch, frames, dtype=torch.bool, device=world.device)
    dtype = torch.float16 if world.device.type == "cuda" else torch.bfloat16
    runs = {
        "icefall": lambda: theirs(x.transpose(0, 1).requires_grad_(), lens, padding)[0],
        "ours": lambda: ours(x.requires_grad_(), lens, CHUNK)[0],
    }
    for name, run in runs.items():

        def step(run: Any = run) -> None:
            with torch.autocast(world.device.type, dtype):
                out = run()
            out.float().square().sum().backward()

        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        taken = seconds_of(step, world.device, world.sizes.repetitions)
        yield row("icefall", f"{name}, medium encoder: forward and backward (ms)", round(1000 * taken, 1))
        if world.device.type == "cuda":
            yield row("icefall", f"{name}: peak (MB)", torch.cuda.max_memory_allocated(world.device) // 1_000_000)


CHECKS = (parity, decoding, resume, half_precision, layouts, speed, oom_scan, compiled, icefall_encoder)
