"""Training, validation, decoding and streams on a device that is not there: what mixes devices, who waits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lhotse import CutSet
from torch import nn

from kdstream.commands import cache_teacher
from kdstream.config.distillation import DistillConfig
from kdstream.config.sections import DataConfig
from kdstream.data.batch import Batch
from kdstream.decoding.beam import ModifiedBeamSearch
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.stream import StreamingDecoder, decode_streams, decode_whole
from kdstream.models.streaming import ChunkConfig
from kdstream.models.zipformer_modules import FeedForward
from kdstream.training.loop import Trainer
from kdstream.training.optim import ScaledAdam
from kdstream.training.process import train_experiment
from kdstream.training.step import validation_loss
from support.decoding import talkative_model
from support.models import SETTINGS, difference, random_batch, tiny_test_config
from support.pretend_device import DEVICE, Traffic, pretend_device, values_of
from support.recording import make_trainer
from support.training import experiment


def test_values_are_those_of_the_cpu_forward_and_backward():
    torch.manual_seed(0)
    x, layer = torch.randn(3, 4), nn.Linear(4, 2)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    with pretend_device() as traffic:
        layer.to(DEVICE)
        traffic.clear()
        there = x.to(DEVICE)
        assert there.device == DEVICE and layer.weight.device == DEVICE
        layer(there).square().sum().backward()
    assert torch.equal(values_of(layer.weight.grad), expected)
    assert sum(traffic.copies.values()) == 1 and not traffic.reads


READS = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "repeat_interleave": lambda x: x.repeat_interleave((x > 0).long()),
    "cpu": lambda x: x.cpu(),
    "copy_": lambda x: torch.empty(3).copy_(x),
    "mask of tensors": lambda x: x.index_put_((x > 0,), x[:1]),
}
COPIES = {
    "to": lambda x: torch.ones(3).to(DEVICE),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "index by a list": lambda x: x[[0, 2]],
    "index by a tensor": lambda x: x[torch.tensor([0, 2])],
}
NEITHER = {
    "number": lambda x: x * 2.0 + torch.tensor(1.0),
    "fill by mask": lambda x: x.__setitem__(x > 0, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "factory": lambda x: torch.arange(3, device=DEVICE) + torch.zeros_like(x) + torch.rand(3, device=DEVICE),
    "index": lambda x: x[1:] + x.index_select(0, torch.arange(2, device=DEVICE)),
}


@pytest.mark.parametrize(
    "run, reads, copies",
    [(run, 1, 0) for run in READS.values()]
    + [(run, 0, 1) for run in COPIES.values()]
    + [(run, 0, 0) for run in NEITHER.values()],
    ids=[*READS, *COPIES, *NEITHER],
)
def test_reads_and_copies_are_counted(run, reads, copies):
    with pretend_device() as traffic:
        x = torch.randn(3).to(DEVICE)
        traffic.clear()
        run(x)
    assert (sum(traffic.reads.values()), sum(traffic.copies.values())) == (reads, copies)
    assert all("test_device.py" in place for place in (*traffic.reads, *traffic.copies))


@pytest.mark.parametrize(
    "run", [lambda x: x + torch.ones(3), lambda x: F.linear(x, torch.ones(2, 3))], ids=["sum", "product"]
)
def test_tensors_of_two_devices_do_not_mix(run):
    with pretend_device(), pytest.raises(RuntimeError, match=r"test_device\.py:\d+ \(<lambda>\): aten\."):
        run(torch.randn(3).to(DEVICE))


def test_tensors_are_of_no_use_where_there_is_no_device():
    with pretend_device():
        x = torch.ones(3).to(DEVICE)
    with pytest.raises(RuntimeError, match=re.escape("outside of pretend_device()")):
        x + 1


ALL = dict(kd_relation_scale=0.1, kd_token_scale=0.5)
KINDS: dict[str, dict[str, Any]] = {
    "teacher": dict(causal=False),
    "baseline": {},
    "conformer": dict(model=SETTINGS["conformer"], encoder="conformer"),
    "ctc": dict(use_ctc=True),
    "constrained lattice": dict(train=dict(rnnt_type="constrained", delay_penalty=0.1, warm_step=0)),
    "encoder-only scale": dict(train=dict(am_scale=0.1)),
    "features, relations, prediction": dict(distill=dict(kd_relation_scale=0.1)),
    "tokens": dict(distill=ALL),
    "tokens of one path": dict(distill=dict(ALL, kd_token_form="one-best", kd_token_shift=2)),
    "collapsed tokens": dict(distill=dict(ALL, kd_token_form="collapsed", kd_layer_map="learned")),
    "no branch": dict(distill=dict(ALL, kd_branch="none")),
    "streaming teacher": dict(distill=ALL, teacher="streaming"),
    "cached teacher": dict(distill=ALL, teacher="cached"),
    "two views": dict(use_ctc=True, train=dict(cr_ctc_scale=0.2), views=True),
    "two views, guided": dict(
        use_ctc=True, train=dict(cr_ctc_scale=0.2), distill=dict(ALL, kd_ctc_scale=0.5), teacher="ctc", views=True
    ),
    "ctc posteriors": dict(use_ctc=True, distill=dict(ALL, kd_ctc_scale=0.5, kd_token_shift="auto:3"), teacher="ctc"),
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, data: DataConfig, teacher: Path) -> dict[str, dict[str, Any]]:
    """The flags of each teacher."""
    streaming, cache = tmp_path_factory.mktemp("streaming") / "exp", tmp_path_factory.mktemp("cache") / "cache"
    with_ctc = experiment(tmp_path_factory.mktemp("ctc") / "exp", data, causal=False, num_epochs=1, average_period=1)
    train_experiment(replace(with_ctc, model=replace(with_ctc.model, use_ctc=True)))
    train_experiment(experiment(streaming, data, num_epochs=1, average_period=1))
    cache_teacher.main(["--teacher-exp-dir", str(teacher), "--output", str(cache)])
    return {
        "": dict(teacher_exp_dir=str(teacher)),
        "streaming": dict(teacher_exp_dir=str(streaming)),
        "cached": dict(teacher_exp_dir=str(teacher), teacher_cache=str(cache)),
        "ctc": dict(teacher_exp_dir=with_ctc.train.exp_dir),
    }


def trainer_of(
    exp_dir: Path,
    data: DataConfig,
    device: torch.device,
    teachers: dict[str, dict[str, Any]] | None = None,
    **kind: Any,
) -> Trainer:
    """A trainer of an entry of KINDS."""
    config = experiment(exp_dir, data, causal=kind.pop("causal", True), **kind.pop("train", {}))
    distill, whose = kind.pop("distill", None), kind.pop("teacher", "")
    if kind.pop("views", False):
        config = replace(config, data=replace(config.data, enable_spec_aug=True))
    if distill is not None and teachers is not None:
        config = replace(config, distill=DistillConfig(**teachers[whose], **distill))
    if kind:
        sizes = dict(frontend_channels=(4, 8, 32), frontend_hidden_dim=32, chunk_size=(8,), left_context_frames=(16,))
        config = replace(config, model=tiny_test_config(config.model.causal, **sizes, **kind.pop("model", {}), **kind))
    return make_trainer(config, device)


READERS = ("(read_sums)", "(_clipping_factor)")  # of the metrics, and of the gradient's norm
SENDER = "kdstream/data/batch.py"


def overdrawn(traffic: Traffic, batches: list[Batch]) -> list[str]:
    """The lines by which a step goes beyond its budget: two reads, and one copy of each tensor of its batches."""
    others = [place for place in traffic.reads if not place.endswith(READERS)]
    others += [place for place in traffic.copies if not place.startswith(SENDER)]
    tensors = sum(isinstance(x, torch.Tensor) for batch in batches for x in vars(batch).values())
    counts = sum(traffic.reads.values()), sum(traffic.copies.values())
    return others or ([] if counts == (2, tensors) else [f"{counts} reads and copies, instead of {(2, tensors)}"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_twice_and_sends_each_tensor_of_its_batches_once(tmp_path, data, teachers, kind):
    here = trainer_of(tmp_path / "here", data, torch.device("cpu"), teachers, **KINDS[kind])
    batches = list(here.data.train_dataloader(1))[:2]
    expected = [here.train_step([batch]) for batch in batches]
    with pretend_device() as traffic:
        there = trainer_of(tmp_path / "there", data, DEVICE, teachers, **KINDS[kind])
        for batch, metrics in zip(batches, expected, strict=True):
            traffic.clear()  # the first step sends tables, for all steps
            assert there.train_step([batch]) == pytest.approx(metrics, rel=2e-3)
        assert not overdrawn(traffic, batches[1:])
    for name, parameter in there.student.named_parameters():
        assert difference(values_of(parameter), here.student.get_parameter(name)) < 1e-3, name


@pytest.mark.slow
def test_tokens_of_unlabelled_speech_are_read_for_each_8_frames_and_each_token_at_most(tmp_path, data, teachers):
    """A step's own budget where a teacher's search tells what unlabelled utterances say."""
    path = tmp_path / "unlabelled.jsonl.gz"
    CutSet.from_cuts(cut.with_id(f"un-{cut.id}") for cut in CutSet.from_file(data.train_cuts[0])).to_file(path)
    data, said = replace(data, unlabelled_cuts=(str(path),)), []
    with pretend_device() as traffic:
        trainer = trainer_of(tmp_path / "there", data, DEVICE, teachers, distill=ALL)
        teacher = trainer.distiller.writer_of_tokens
        with torch.no_grad():
            values_of(teacher.model.joiner.output_linear.bias)[3] += 1.0  # so that it has something to say
        hypotheses = teacher.hypotheses
        teacher.hypotheses = lambda *heard: said.append(hypotheses(*heard)) or said[-1]
        batches = [batch for batch in trainer.data.train_dataloader(1) if not batch.token_lens.all()][:2]
        trainer.train_step(batches[:1])
        traffic.clear()
        trainer.train_step(batches[1:])
    tokens, frames = sum(map(len, said[-1])), int(batches[1].feature_lens.max()) // 4
    reads = {place: count for place, count in traffic.reads.items() if not place.endswith(READERS)}
    assert tokens > 0 and reads and all(place.endswith(("(_ask)", "(_ranked)")) for place in reads)
    # at each question a token, its log probability and the model's own; in the end the score of the path
    assert sum(reads.values()) <= 3 * (frames // 8 + 1 + tokens) + 1
    senders = (SENDER, "kdstream/kd/unlabelled.py", "kdstream/decoding/")
    others = [place for place in traffic.copies if not place.startswith(senders)]
    assert [place.partition(" ")[2] for place in others] == ["(sum_of_known)"]  # which utterances are labelled


def test_accumulating_over_batches_takes_no_more_reads(tmp_path, data):
    with pretend_device() as traffic:
        trainer = trainer_of(tmp_path, data, DEVICE)
        batches = list(trainer.data.train_dataloader(1))[:2]
        traffic.clear()
        trainer.train_step(batches)
        assert not overdrawn(traffic, batches)


FAULTS = {
    "read": lambda x: x * float(x.abs().max()),
    "read of one utterance": lambda x: x * torch.stack([row.sum() > 0 for row in x.unbind() if bool(row.any())])[0],
    "list": lambda x: x * x.detach().flatten()[:1].tolist()[0],
    "mask": lambda x: x + x[x > 0].sum() * 0,
    "sent": lambda x: x * torch.tensor([2.0], device=x.device),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_layer_that_reads_or_sends_is_named(tmp_path, data, monkeypatch, fault):
    forward = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: fault(forward(self, x)))
    with pretend_device() as traffic:
        trainer = trainer_of(tmp_path, data, DEVICE)
        batch = next(iter(trainer.data.train_dataloader(1)))
        traffic.clear()
        trainer.train_step([batch])
    place, *others = overdrawn(traffic, [batch])
    assert place.startswith(f"tests/training/test_device.py:{fault.__code__.co_firstlineno} (")
    assert all(other.endswith("(backward)") for other in others)  # the gradient of a mask reads it again


@pytest.mark.slow
def test_a_gradient_that_is_read_is_named(tmp_path, data, monkeypatch):
    class Peek(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return grad if grad.norm().item() > 0 else -grad

    forward = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: Peek.apply(forward(self, x)))
    with pretend_device() as traffic:
        trainer = trainer_of(tmp_path, data, DEVICE)
        batch = next(iter(trainer.data.train_dataloader(1)))
        traffic.clear()
        trainer.train_step([batch])
    assert any(re.fullmatch(r"tests/training/test_device\.py:\d+ \(backward\)", x) for x in overdrawn(traffic, [batch]))


@pytest.mark.slow
def test_a_layer_with_a_tensor_on_the_cpu_is_named(tmp_path, data, monkeypatch):
    def misplaced(self, x):
        return forward(self, x) + torch.zeros(x.size(-1))

    forward = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", misplaced)
    with pretend_device():
        trainer = trainer_of(tmp_path, data, DEVICE)
        batch = next(iter(trainer.data.train_dataloader(1)))
        line = misplaced.__code__.co_firstlineno + 1
        with pytest.raises(RuntimeError, match=rf"tests/training/test_device\.py:{line} \(misplaced\): aten\.add"):
            trainer.train_step([batch])


def overflow(optimizer, args, kwargs):
    """A hook that has one gradient overflow."""
    kwargs["found_inf"].fill_(1.0)


@pytest.mark.slow
def test_a_scaled_step_waits_no_more_and_skips_what_overflowed(tmp_path, data):
    with pretend_device() as traffic:
        trainer = trainer_of(tmp_path, data, DEVICE)
        trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # as torch has none for DEVICE
        batches = list(trainer.data.train_dataloader(1))[:2]
        trainer.train_step(batches[:1])
        before = [values_of(p).clone() for p in trainer.student.parameters()]
        trainer.optimizer.register_step_pre_hook(overflow)
        traffic.clear()
        trainer.train_step(batches[1:])
        assert not overdrawn(traffic, batches[1:])
        assert all(torch.equal(values_of(p), old) for p, old in zip(trainer.student.parameters(), before, strict=True))
        assert trainer.precision.grad_scale == 2.0 and trainer.optimizer.param_groups[0]["step"] == 1


@pytest.mark.slow
def test_validation_waits_once(tmp_path, data):
    here = trainer_of(tmp_path / "here", data, torch.device("cpu"))
    expected = validation_loss(here.student, here.valid_loader, here.choices[0][0], here.device)
    with pretend_device() as traffic:
        there = trainer_of(tmp_path / "there", data, DEVICE)
        batches = list(there.valid_loader)
        assert len(batches) > 1
        traffic.clear()
        assert validation_loss(there.student, batches, there.choices[0][0], DEVICE) == pytest.approx(expected, rel=1e-4)
    assert sum(traffic.reads.values()) == 1 and sum(traffic.copies.values()) == 4 * len(batches)


SEARCHES = [GreedySearch(), GreedySearch(max_sym_per_frame=3), ModifiedBeamSearch(4)]


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("encoder", SETTINGS)
def test_decoding_and_streams_write_the_tokens_of_the_cpu(encoder, search, monkeypatch):
    # torch wraps no tensors in inference mode
    monkeypatch.setattr(StreamingDecoder, "step", torch.no_grad()(StreamingDecoder.step.__wrapped__))
    features, lens, _ = random_batch((150, 120, 90))
    utterances = [(n, features[n, :length]) for n, length in enumerate(lens.tolist())]
    model, chunk = talkative_model(encoder=encoder), ChunkConfig(8, 16)
    whole = decode_whole(model, features, lens, chunk, search)
    with pretend_device() as traffic:
        model.to(DEVICE)
        traffic.clear()
        there = decode_whole(model, features, lens, chunk, search)
        streams = dict(decode_streams(StreamingDecoder(model, chunk, search, max_streams=2), utterances))
    assert len({token for result in whole for token in result.tokens}) > 5
    assert [result.tokens for result in there] == [result.tokens for result in whole]
    assert [streams[n].tokens for n in range(len(whole))] == [result.tokens for result in whole]


def test_the_optimisers_operations_do_not_grow_with_the_number_of_tensors():
    counts = []
    for layers in (4, 40):
        with pretend_device() as traffic:
            model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)]).to(DEVICE)
            optimizer = ScaledAdam(list(model.named_parameters()), lr=0.01, clipping_scale=2.0)
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            traffic.clear()
            optimizer.step()
            counts.append(traffic.operations)
            assert sum(traffic.reads.values()) == 1 and not traffic.copies
    assert counts[0] == counts[1]
