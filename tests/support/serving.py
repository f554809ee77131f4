"""For tests of the live page: a talkative model of the tiny preset, exported; clients that behave, and that do not."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import torch

from kdstream.checkpoints.trained import load_trained
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import ModelConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.transcribe import Transcriber
from kdstream.endpoints import EndpointConfig
from kdstream.export.onnx import export_onnx, quantize
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer, build_model
from kdstream.serving.runtime import ExportedModel, find_model
from kdstream.serving.server import Server
from kdstream.units import SAMPLE_RATE
from support.paths import ROOT
from support.training import train_tokenizer

SCRIPT = ROOT / "egs/librispeech/serve.py"
CHUNK = ChunkConfig(8, 32)
START = {"type": "start", "sample_rate": SAMPLE_RATE, "format": "f32le"}
END = {"type": "end"}
DEFAULT_RULES = EndpointConfig()


def export_with_tokens(exp_dir: Path, folder: Path) -> None:
    """What export.py writes of an experiment, with CHUNK, in float32 and in int8."""
    config = ExperimentConfig.load(exp_dir)
    trained = load_trained(config, DecodeConfig(exp_dir=str(exp_dir)))
    quantize(export_onnx(trained.model, CHUNK, folder, "epoch-3-avg-2"))
    tokenizer = Tokenizer(config.data.bpe_model)
    tokenizer.save_tokens(folder / "tokens.txt")
    tokenizer.save_vocabulary(folder / "bpe.vocab")


class Served(NamedTuple):
    """A model, and its files."""

    model: Transducer
    tokenizer: Tokenizer
    files: ExportedModel

    def offline(self, audio: dict[str, np.ndarray], rules: EndpointConfig = DEFAULT_RULES) -> dict[str, str]:
        """What torch hears in samples (S,) at 16 kHz, chunk by chunk."""
        transcriber = Transcriber(
            self.model, self.tokenizer, GreedySearch(), CHUNK, 1, 1000.0, engine="torch", endpoints=rules
        )
        return {name: transcriber.samples(torch.from_numpy(samples)).text for name, samples in audio.items()}


def serve_tiny_preset(folder: Path) -> Served:
    """A random model of the tiny preset that says much, exported into `folder`."""
    tokenizer = Tokenizer(train_tokenizer(folder))
    torch.manual_seed(0)
    config = resolve(ModelConfig(preset="tiny", causal=True, vocab_size=tokenizer.vocab_size))
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # its quiet initial weights made loud enough to matter
            if parameter.ndim >= 2:
                parameter.mul_(2.0)
            elif "chunkwise_conv_scale" in name or "downsample" in name:
                parameter.normal_(std=0.5)
        model.joiner.output_linear.weight.normal_(std=0.5)
        model.joiner.output_linear.bias.zero_()
        model.joiner.output_linear.bias[0] = 2.0
        model.joiner.output_linear.bias[2] = -1e4  # <unk>, which sherpa-onnx leaves out
        model.joiner.encoder_proj.weight.mul_(3.0)
        model.decoder.embedding.weight.normal_(std=0.8)
    files = export_onnx(model, CHUNK, folder, "random")
    tokenizer.save_tokens(folder / "tokens.txt")
    return Served(model, tokenizer, find_model(files.encoder))


def noise(seconds: float, seed: int, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Float32 samples (S,) whose loudness changes every 50 ms, the last of them silence."""
    generator = np.random.default_rng(seed)
    loudness = np.repeat(generator.uniform(0.01, 0.5, int(seconds * 20)), rate // 20)
    loudness[-rate // 20 :] = 0.0
    return (loudness * generator.uniform(-1, 1, len(loudness))).astype(np.float32)


@dataclass
class Heard:
    """What a client was sent.

    final: the text of all segments, once the server has said that there are no more.
    lag: seconds from its last message until then.
    """

    session: dict[str, Any] = field(default_factory=dict)
    segments: dict[int, dict[str, Any]] = field(default_factory=dict)
    partials: list[str] = field(default_factory=list)
    final: str | None = None
    error: str | None = None
    close_code: int | None = None
    lag: float = 0.0

    def take(self, answer: dict[str, Any]) -> None:
        match answer["type"]:
            case "session":
                self.session = answer
            case "segment":
                self.segments[answer["id"]] = answer
            case "partial":
                self.partials.append(answer["text"])
            case "final":
                self.final = " ".join(segment["text"] for segment in self.segments.values())
                self.lag += time.monotonic()
            case _:
                self.error = answer["message"]


async def speak(
    url: str,
    samples: np.ndarray,
    start: dict[str, object] = START,
    speed: float | None = 1.0,
    delay: float = 0.0,
    session: aiohttp.ClientSession | None = None,
) -> Heard:
    """A client that behaves: sends `samples` in messages of 100 ms, `speed` times as fast as they last, and reads.

    Args:
      speed: None sends as fast as the server takes them.
      delay: seconds to wait before.
    """
    if session is None:
        async with aiohttp.ClientSession() as session:
            return await speak(url, samples, start, speed, delay, session)
    heard, size = Heard(), int(start["sample_rate"]) // 10
    await asyncio.sleep(delay)
    async with session.ws_connect(url + "stream") as ws:

        async def talk() -> None:
            await ws.send_json(start)
            begin = time.monotonic()
            for n, place in enumerate(range(0, len(samples), size), 1):
                if speed is not None:
                    await asyncio.sleep(begin + n * 0.1 / speed - time.monotonic())
                await ws.send_bytes(samples[place : place + size].tobytes())
            await ws.send_json(END)
            heard.lag = -time.monotonic()

        talking = asyncio.create_task(talk())
        async for message in ws:
            answer = message.json()
            heard.take(answer)
        heard.close_code = ws.close_code
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
    return heard


class RawClient:
    """A websocket without a library: what it sends need not be right, and nothing is read unless it is asked for.

    Blocking: run it in a thread beside the server's loop.
    """

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        address = urlsplit(url)
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.socket.connect((address.hostname, address.port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /stream HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self.socket.recv(1)
        assert answer.startswith(b"HTTP/1.1 101")

    def frame(self, opcode: int, payload: bytes, first_bits: int = 0x80) -> None:
        """Sends a frame masked with zeros; opcode 1: text, 2: binary, 0: continuation; 0x80: the message's last."""
        head = bytes([first_bits | opcode, 0xFF]) + len(payload).to_bytes(8, "big") + bytes(4)
        self.socket.sendall(head + payload)

    def frames_until_refused(self, opcode: int, payload: bytes, count: int, first_bits: int = 0x80) -> int:
        """Sends up to `count` frames; returns how many bytes of them were taken before the server let go."""
        for n in range(count):
            try:
                self.frame(opcode if n == 0 or first_bits else 0, payload, first_bits)
            except OSError:
                return n * len(payload)
        return count * len(payload)

    def reset(self) -> None:
        """Vanishes without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


class Running:
    """A server in this process; counts whom it hears."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url

    async def empty(self) -> None:
        """Waits until it has let every client go."""
        deadline = time.monotonic() + 60
        while self.server.clients:
            assert time.monotonic() < deadline, "a client is still held"
            await asyncio.sleep(0.02)


@contextmanager
def running_script(encoder: Path, *flags: object) -> Iterator[str]:
    """The address of serve.py in a process of its own, which must end well when it is asked to."""
    command: Sequence[str] = [sys.executable, str(SCRIPT), str(encoder), "--port", "0", *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
