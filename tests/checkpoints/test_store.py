"""Checkpoint files: complete, in icefall's format, and safe against a kill."""

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
from support.checkpoints import make_model, save_model, train_steps
from support.disk import full_disk


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


def test_parameter_with_the_name_of_an_entry_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="optimizer"):
        store.save_checkpoint(tmp_path / "epoch-1.pt", make_model(), params={"optimizer": "sgd"})


@pytest.mark.parametrize("keep", [0, 1, 10, 1000, -1])
def test_checkpoint_cut_short_is_named_with_the_fix(tmp_path: Path, keep: int):
    path = tmp_path / "epoch-3.pt"
    save_model(path, make_model())
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"epoch-3\.pt: cut short or damaged; delete it"):
        store.load_checkpoint(path)


def test_a_bit_that_has_changed_is_noticed(tmp_path: Path):
    path = tmp_path / "epoch-3.pt"
    model = make_model()
    save_model(path, model)
    data = bytearray(path.read_bytes())
    place = data.find(model[0].weight.detach().numpy().tobytes())
    assert place > 0
    data[place + 2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"epoch-3\.pt: cut short or damaged; delete it"):
        store.load_checkpoint(path)


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always writes checksums")
def test_a_checkpoint_without_checksums_is_read(tmp_path: Path):
    try:
        torch.serialization.set_crc32_options(False)
        save_model(tmp_path / "epoch-3.pt", make_model())
    finally:
        torch.serialization.set_crc32_options(True)
    assert "model" in store.load_checkpoint(tmp_path / "epoch-3.pt")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path):
    model = make_model()
    with torch.no_grad():
        model[0].bias[1] = float("nan")
    with pytest.raises(UserError, match="epoch-1.pt: 0.bias holds NaN or infinity; take an earlier checkpoint"):
        store.load_strictly(make_model(), model.state_dict(), "epoch-1.pt")


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


@pytest.mark.parametrize(
    "save",
    [
        lambda folder, model: save_model(folder / "epoch-1.pt", model),
        lambda folder, model: store.save_pretrained(folder, model),
    ],
    ids=["checkpoint", "pretrained"],
)
def test_on_a_full_disk_the_old_files_stay_and_no_litter(tmp_path: Path, save):
    save(tmp_path, nn.Linear(100, 100))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(30_000), pytest.raises(UserError, match=r"\.pt: cannot be written \(.*\); free space on its disk"):
        save(tmp_path, nn.Linear(100, 100))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_leftovers_of_a_killed_save_go_away(tmp_path: Path):
    save_model(tmp_path / "epoch-1.pt", make_model())
    (tmp_path / ".checkpoint-10.pt.tmp").write_bytes(b"half")
    store.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-1.pt"]


@pytest.mark.parametrize(
    "name", ["epoch-1.pt", "checkpoint-2.pt", "bad-model-0.pt", "pretrained.safetensors", "a.onnx"]
)
def test_settings_count_beside_weights_alone(tmp_path: Path, name: str):
    assert not store.has_begun(tmp_path / "nowhere")
    for other in ("config.json", "bpe.model", "log", f".{name}", f".{name}.tmp"):
        (tmp_path / other).touch()
        assert not store.has_begun(tmp_path)
    (tmp_path / name).touch()
    assert store.has_begun(tmp_path)


def test_an_epoch_that_awaits_its_validation_is_told_from_one_that_does_not(tmp_path: Path):
    for sampler, awaits in (({"epoch": 1, "batch": 4}, True), ({"epoch": 2, "batch": 0}, False), (None, False)):
        save_model(tmp_path / "epoch-1.pt", make_model(), sampler=sampler)
        assert store.awaits_validation(tmp_path / "epoch-1.pt") == awaits
        assert store.has_ended(tmp_path, 1) == (not awaits) and not store.has_ended(tmp_path, 2)
    (tmp_path / "epoch-1.pt").write_bytes(b"")
    assert not store.awaits_validation(tmp_path / "epoch-1.pt")


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


def test_what_was_saved_after_a_step_is_found_by_the_batches_that_it_saw(tmp_path: Path):
    for name, steps in (("checkpoint-8", 8), ("epoch-1", 10), ("checkpoint-12", 12), ("checkpoint-100", 100)):
        save_model(tmp_path / f"{name}.pt", make_model(), steps)
    save_model(tmp_path / "best-valid-loss.pt", make_model(), 10)
    torch.save({"model": make_model().state_dict()}, tmp_path / "pretrained.pt")

    def names(steps: int) -> list[str]:
        return [path.name for path in store.saved_after(tmp_path, steps)]

    assert names(8) == ["epoch-1.pt", "checkpoint-100.pt", "checkpoint-12.pt", "best-valid-loss.pt"]
    assert names(10) == ["checkpoint-100.pt", "checkpoint-12.pt"]
    assert names(100) == []
    save_model(tmp_path / "epoch-2.pt", make_model(), 101)
    assert names(100) == ["epoch-2.pt"]


@pytest.mark.parametrize("old_torch", [False, True])
def test_an_epoch_that_does_not_say_how_many_batches_it_saw_is_named(tmp_path: Path, monkeypatch, old_torch: bool):
    if old_torch:  # which cannot leave tensors on the disk
        monkeypatch.setattr(store, "MMAP", False)
    save_model(tmp_path / "checkpoint-8.pt", make_model(), 8)
    torch.save({"model": make_model().state_dict()}, tmp_path / "epoch-1.pt")
    with pytest.raises(UserError, match="epoch-1.pt: holds no batch_idx_train, .* --start-batch 8, or move epoch"):
        store.latest_checkpoint(tmp_path)
    save_model(tmp_path / "epoch-1.pt", make_model(), 9)
    assert store.latest_checkpoint(tmp_path).name == "epoch-1.pt"


def test_a_checkpoint_that_is_read_lazily_is_the_same(tmp_path: Path):
    save_model(tmp_path / "epoch-1.pt", make_model(), 7)
    whole, lazy = (store.load_checkpoint(tmp_path / "epoch-1.pt", lazily=lazily) for lazily in (False, True))
    torch.testing.assert_close(lazy, whole, rtol=0, atol=0)
    (tmp_path / "epoch-1.pt").write_bytes((tmp_path / "epoch-1.pt").read_bytes()[:100])
    with pytest.raises(UserError, match="epoch-1.pt: cut short or damaged"):
        store.load_checkpoint(tmp_path / "epoch-1.pt", lazily=True)
