"""Checkpoints: complete, in icefall's format, safe against a kill, and averaged as icefall averages."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdstream.checkpoints import average, store
from kdstream.errors import UserError
from kdstream.training.optim import Eden, ScaledAdam


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model


def train_steps(model: nn.Module, optimizer: ScaledAdam, count: int) -> list[dict[str, torch.Tensor]]:
    """The parameters after each step."""
    history = []
    for _ in range(count):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    return history


def save_model(path: Path, model: nn.Module, step: int = 1, **parts) -> None:
    store.save_checkpoint(path, model, params={"batch_idx_train": step, "average_period": 1}, **parts)


def test_everything_comes_back(tmp_path: Path):
    model, branches = make_model(), nn.Linear(2, 2)
    optimizer = ScaledAdam(model.named_parameters(), lr=0.03)
    scheduler = Eden(optimizer, 100, 10)
    train_steps(model, optimizer, 5)
    scheduler.step_batch(5)
    model_avg = average.float64_copy(model)
    store.save_checkpoint(
        tmp_path / "epoch-1.pt",
        model,
        model_avg,
        branches,
        optimizer,
        scheduler,
        None,
        {"epoch": 2, "batch": 0},
        {"batch_idx_train": 5, "best_valid_loss": float("inf"), "chunk_size": (8, 16)},
    )
    saved = store.load_checkpoint(tmp_path / "epoch-1.pt")
    other, other_branches = make_model(1), nn.Linear(2, 2)
    other_optimizer = ScaledAdam(other.named_parameters(), lr=0.5)
    other_scheduler = Eden(other_optimizer, 100, 10)
    other_avg = average.float64_copy(other)
    store.restore(saved, "epoch-1.pt", other, other_avg, other_branches, other_optimizer, other_scheduler)
    for ours, theirs in ((model, other), (branches, other_branches)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name])
    assert other_scheduler.state_dict() == {"epoch": 0, "batch": 5}
    assert other_optimizer.param_groups[0]["step"] == 5
    assert saved["sampler"] == {"epoch": 2, "batch": 0}
    assert saved["chunk_size"] == (8, 16) and saved["best_valid_loss"] == float("inf")


def test_layout_is_icefalls_and_model_holds_the_student_alone(tmp_path: Path):
    model = make_model()
    save_model(tmp_path / "epoch-1.pt", model, model_avg=average.float64_copy(model), branches=nn.Linear(2, 2))
    saved = torch.load(tmp_path / "epoch-1.pt", weights_only=True)
    for key in ("model", "model_avg", "optimizer", "scheduler", "grad_scaler", "sampler", "batch_idx_train"):
        assert key in saved
    assert list(saved["model"]) == list(saved["model_avg"]) == list(model.state_dict())
    assert saved["model_avg"]["0.weight"].dtype == torch.float32


def test_saving_leaves_the_running_average_in_float64(tmp_path: Path):
    model = make_model()
    model_avg = average.float64_copy(model)
    save_model(tmp_path / "epoch-1.pt", model, model_avg=model_avg)
    assert model_avg[0].weight.dtype == torch.float64


def test_parameter_with_the_name_of_an_entry_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="optimizer"):
        store.save_checkpoint(tmp_path / "epoch-1.pt", make_model(), params={"optimizer": "sgd"})


def test_running_average_is_the_mean_of_the_models(tmp_path: Path):
    model = make_model()
    optimizer = ScaledAdam(model.named_parameters(), lr=0.03)
    model_avg = average.float64_copy(model)
    history = []
    for step in range(1, 13):
        history += train_steps(model, optimizer, 1)
        if step % 3 == 0:
            average.update_averaged_model(model, model_avg, average_period=3, batch_idx_train=step)
    expected = torch.stack([history[i]["2.weight"].double() for i in (2, 5, 8, 11)]).mean(dim=0)
    torch.testing.assert_close(model_avg[2].weight, expected, atol=1e-12, rtol=0)
    assert torch.equal(model_avg[1].num_batches_tracked, model[1].num_batches_tracked)


@pytest.fixture
def trained(tmp_path: Path):
    """An exp-dir with four epochs of five steps, checkpoints every four, and the model after each step."""
    model = make_model()
    optimizer = ScaledAdam(model.named_parameters(), lr=0.03)
    model_avg = average.float64_copy(model)
    history = []
    for step in range(1, 21):
        history += train_steps(model, optimizer, 1)
        average.update_averaged_model(model, model_avg, average_period=1, batch_idx_train=step)
        if step % 5 == 0:
            save_model(tmp_path / f"epoch-{step // 5}.pt", model, step, model_avg=model_avg)
        if step % 4 == 0:
            save_model(tmp_path / f"checkpoint-{step}.pt", model, step, model_avg=model_avg)
    return tmp_path, history


def mean_of(history: list[dict[str, torch.Tensor]], steps: range, name: str = "0.weight") -> torch.Tensor:
    return torch.stack([history[step - 1][name].double() for step in steps]).mean(dim=0).float()


@pytest.mark.parametrize(
    "choice, steps",
    [
        (dict(epoch=4, iter=0, avg=2, use_averaged_model=True), range(11, 21)),
        (dict(epoch=3, iter=0, avg=1, use_averaged_model=True), range(11, 16)),
        (dict(epoch=3, iter=0, avg=3, use_averaged_model=True), range(1, 16)),  # from the start
        (dict(epoch=0, iter=0, avg=1, use_averaged_model=True), range(16, 21)),  # the last there is
        (dict(epoch=0, iter=16, avg=2, use_averaged_model=True), range(9, 17)),
        (dict(epoch=4, iter=0, avg=2, use_averaged_model=False), range(15, 21, 5)),
        (dict(epoch=2, iter=0, avg=1, use_averaged_model=False), range(10, 11)),
        (dict(epoch=0, iter=14, avg=3, use_averaged_model=False), range(4, 13, 4)),
    ],
)
def test_averaged_parameters_are_the_mean_over_the_steps(trained, choice: dict, steps: range):
    exp_dir, history = trained
    averaged = average.load_averaged(average.CheckpointChoice(exp_dir, **choice)).weights
    torch.testing.assert_close(averaged["0.weight"], mean_of(history, steps), atol=1e-6, rtol=1e-5)
    assert averaged["0.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    "choice, message",
    [
        (dict(epoch=9, iter=0, avg=1, use_averaged_model=False), "epoch-9.pt: no such checkpoint; .* holds epoch-4"),
        (dict(epoch=2, iter=0, avg=5, use_averaged_model=True), "lower --avg"),
        (dict(epoch=0, iter=8, avg=2, use_averaged_model=True), "needs 3 .* holds 2; lower --avg"),
        (dict(epoch=0, iter=4, avg=1, use_averaged_model=True), "holds 1; give --use-averaged-model 0"),
        (dict(epoch=2, iter=0, avg=0, use_averaged_model=True), "--avg 0"),
    ],
)
def test_impossible_averages_are_refused(trained, choice: dict, message: str):
    with pytest.raises(UserError, match=message):
        average.load_averaged(average.CheckpointChoice(trained[0], **choice))


def test_average_that_was_never_updated_is_refused(tmp_path: Path):
    model = make_model()
    params = {"batch_idx_train": 30, "average_period": 200}
    store.save_checkpoint(tmp_path / "epoch-1.pt", model, average.float64_copy(model), params=params)
    with pytest.raises(UserError, match="--use-averaged-model 0"):
        average.load_averaged(average.CheckpointChoice(tmp_path, epoch=1))


def test_bare_pretrained_model_is_accepted(tmp_path: Path):
    model = make_model()
    torch.save({"model": model.state_dict()}, tmp_path / "pretrained.pt")
    for choice in (dict(use_averaged_model=True), dict(use_averaged_model=False)):
        averaged = average.load_averaged(average.CheckpointChoice(tmp_path, **choice)).weights
        assert torch.equal(averaged["0.weight"], model[0].weight)
    (tmp_path / "pretrained.pt").rename(tmp_path / "epoch-99.pt")  # icefall's way
    icefalls = average.CheckpointChoice(tmp_path, epoch=99, use_averaged_model=False)
    averaged = average.load_averaged(icefalls).weights
    assert torch.equal(averaged["0.weight"], model[0].weight)
    with pytest.raises(UserError, match="--use-averaged-model 0"):
        average.load_averaged(average.CheckpointChoice(tmp_path, epoch=99, avg=99))


@pytest.mark.parametrize("keep", [0, 1, 10, 1000, -1])
def test_checkpoint_cut_short_is_named_with_the_fix(tmp_path: Path, keep: int):
    path = tmp_path / "epoch-3.pt"
    save_model(path, make_model())
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"epoch-3\.pt: cut short or damaged; delete it"):
        store.load_checkpoint(path)


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path):
    torch.save([1, 2, 3], tmp_path / "epoch-1.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        store.load_checkpoint(tmp_path / "epoch-1.pt")
    torch.save({"model": {}, "args": argparse.Namespace()}, tmp_path / "epoch-2.pt")
    with pytest.raises(UserError, match="holds Python objects"):
        store.load_checkpoint(tmp_path / "epoch-2.pt")


def test_icefalls_directories_in_a_checkpoint_are_read(tmp_path: Path):
    torch.save({"model": {}, "exp_dir": Path("exp")}, tmp_path / "epoch-1.pt")
    assert store.load_checkpoint(tmp_path / "epoch-1.pt")["exp_dir"] == Path("exp")


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"model": weights}])
def test_weights_alone_are_read_from_any_of_their_files(tmp_path: Path, wrap):
    weights = make_model().state_dict()
    torch.save(wrap(weights), tmp_path / "weights.pt")
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("weights.pt", "weights.safetensors"):
        torch.testing.assert_close(store.load_weights(tmp_path / name), weights, rtol=0, atol=0)
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="weights.safetensors: cannot be read as safetensors"):
        store.load_weights(tmp_path / "weights.safetensors")


def test_parameters_of_another_model_are_refused_in_one_line(tmp_path: Path):
    save_model(tmp_path / "epoch-1.pt", nn.Linear(2, 2))
    with pytest.raises(UserError, match="does not fit the model") as info:
        store.restore(store.load_checkpoint(tmp_path / "epoch-1.pt"), tmp_path / "epoch-1.pt", make_model())
    assert "\n" not in str(info.value)


def test_weights_alone_cannot_be_resumed_from(tmp_path: Path):
    model = make_model()
    save_model(tmp_path / "epoch-1.pt", model)
    with pytest.raises(UserError, match="holds no optimizer"):
        saved = store.load_checkpoint(tmp_path / "epoch-1.pt")
        store.restore(saved, "epoch-1.pt", model, optimizer=ScaledAdam(model.parameters()))


def test_failed_save_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch):
    path = tmp_path / "epoch-1.pt"
    save_model(path, make_model())
    before = path.read_bytes()

    def half_written(checkpoint: dict, target: Path) -> None:
        Path(target).write_bytes(before[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="no space"):
        save_model(path, make_model(1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-1.pt"]


def test_leftovers_of_a_killed_save_go_away(tmp_path: Path):
    save_model(tmp_path / "epoch-1.pt", make_model())
    (tmp_path / ".checkpoint-10.pt.tmp").write_bytes(b"half")
    store.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-1.pt"]


def test_oldest_checkpoints_are_removed_by_number(tmp_path: Path):
    for step in (4, 100, 20, 3000):
        save_model(tmp_path / f"checkpoint-{step}.pt", make_model(), step)
    save_model(tmp_path / "epoch-1.pt", make_model(), 10)
    store.remove_old_checkpoints(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-100.pt", "checkpoint-3000.pt", "epoch-1.pt"]


def test_latest_checkpoint_is_the_one_that_saw_most_batches(tmp_path: Path):
    assert store.latest_checkpoint(tmp_path) is None
    save_model(tmp_path / "checkpoint-8.pt", make_model(), 8)
    assert store.latest_checkpoint(tmp_path).name == "checkpoint-8.pt"
    save_model(tmp_path / "epoch-2.pt", make_model(), 10)
    assert store.latest_checkpoint(tmp_path).name == "epoch-2.pt"
    save_model(tmp_path / "checkpoint-12.pt", make_model(), 12)
    save_model(tmp_path / "epoch-10.pt", make_model(), 11)
    assert store.latest_checkpoint(tmp_path).name == "checkpoint-12.pt"
