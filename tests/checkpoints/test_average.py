"""Averages of checkpoints are those of icefall."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdstream.checkpoints import average, store
from kdstream.errors import UserError
from kdstream.training.optim import ScaledAdam
from support.checkpoints import make_model, save_model, train_steps


def test_running_average_is_the_mean_of_the_models(tmp_path: Path):
    model = make_model()
    optimizer = ScaledAdam(model.named_parameters(), lr=0.03)
    model_avg = average.float64_copy(model)
    history = []
    for step in range(1, 13):
        history += train_steps(model, optimizer, 1)
        if step % 3 == 0:
            average.update_averaged_model(model, model_avg, updated=step - 3, batch_idx_train=step)
    expected = torch.stack([history[i]["2.weight"].double() for i in (2, 5, 8, 11)]).mean(dim=0)
    torch.testing.assert_close(model_avg[2].weight, expected, atol=1e-12, rtol=0)
    assert torch.equal(model_avg[1].num_batches_tracked, model[1].num_batches_tracked)


def test_of_another_period_a_model_weighs_by_the_batches_since_the_last_update():
    model = make_model()
    optimizer = ScaledAdam(model.named_parameters(), lr=0.03)
    model_avg, history, updated = average.float64_copy(model), [], 0
    for step in range(1, 13):
        history += train_steps(model, optimizer, 1)
        if step in (4, 8, 10, 12):  # every 4 batches up to 8, and then every 2
            average.update_averaged_model(model, model_avg, updated, step)
            updated = step
        if step == 4:  # the first update leaves nothing of the initial weights
            torch.testing.assert_close(model_avg[2].weight, history[3]["2.weight"].double(), atol=1e-12, rtol=0)
    weights = {4: 4 / 12, 8: 4 / 12, 10: 2 / 12, 12: 2 / 12}
    expected = sum(weight * history[step - 1]["2.weight"].double() for step, weight in weights.items())
    torch.testing.assert_close(model_avg[2].weight, expected, atol=1e-12, rtol=0)


def test_an_average_covers_the_batches_up_to_its_last_update():
    assert average.averaged_until({"batch_idx_train": 30, "average_period": 8}) == 24  # icefall's, and older ones
    assert average.averaged_until({"batch_idx_train": 30, "average_period": 8, "batch_idx_averaged": 20}) == 20


def test_saving_leaves_the_running_average_in_float64(tmp_path: Path):
    model = make_model()
    model_avg = average.float64_copy(model)
    save_model(tmp_path / "epoch-1.pt", model, model_avg=model_avg)
    assert model_avg[0].weight.dtype == torch.float64


@pytest.fixture
def trained(tmp_path: Path):
    """An exp-dir with four epochs of five steps, checkpoints every four, and the model after each step."""
    model = make_model()
    optimizer = ScaledAdam(model.named_parameters(), lr=0.03)
    model_avg = average.float64_copy(model)
    history = []
    for step in range(1, 21):
        history += train_steps(model, optimizer, 1)
        average.update_averaged_model(model, model_avg, updated=step - 1, batch_idx_train=step)
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
    ],
)
def test_impossible_averages_are_refused(trained, choice: dict, message: str):
    with pytest.raises(UserError, match=message):
        average.load_averaged(average.CheckpointChoice(trained[0], **choice))


def test_average_that_was_never_updated_is_refused(tmp_path: Path):
    model = make_model()
    params = {"batch_idx_train": 30, "average_period": 200}
    store.save_checkpoint(tmp_path / "epoch-1.pt", model, average.float64_copy(model), params=params)
    store.save_checkpoint(tmp_path / "epoch-2.pt", model, average.float64_copy(model), params=params)
    for avg in (1, 2):  # a higher --avg would not help
        with pytest.raises(UserError, match="not updated after .*; give --use-averaged-model 0, or train with a lower"):
            average.load_averaged(average.CheckpointChoice(tmp_path, epoch=2, avg=avg))
    params["batch_idx_train"] = 230
    for epoch in (1, 2):
        store.save_checkpoint(tmp_path / f"epoch-{epoch}.pt", model, average.float64_copy(model), params=params)
    with pytest.raises(UserError, match="not updated after .*; raise --avg, give --use-averaged-model 0, or train"):
        average.load_averaged(average.CheckpointChoice(tmp_path, epoch=2))


@pytest.mark.parametrize("use_averaged_model", [True, False])
def test_an_average_of_two_models_is_refused_with_both_names(tmp_path: Path, use_averaged_model: bool):
    other = torch.nn.Linear(2, 2)
    save_model(tmp_path / "epoch-1.pt", make_model(), 1, model_avg=make_model())
    save_model(tmp_path / "epoch-2.pt", other, 2, model_avg=other)
    choice = average.CheckpointChoice(
        tmp_path, epoch=2, avg=2 - use_averaged_model, use_averaged_model=use_averaged_model
    )
    with pytest.raises(UserError, match=r"epoch-2\.pt: not of the same model as .*epoch-1\.pt \(.* differs\); average"):
        average.load_averaged(choice)


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


def test_the_average_comes_with_the_parameters_of_its_last_file(trained):
    exp_dir, _ = trained
    for averaged_model in (True, False):
        choice = average.CheckpointChoice(exp_dir, epoch=3, avg=2, use_averaged_model=averaged_model)
        averaged = average.load_averaged(choice)
        assert averaged.last == exp_dir / "epoch-3.pt"
        assert averaged.params == {"batch_idx_train": 15, "average_period": 1}


def test_messages_name_the_flags_with_their_prefix(trained):
    choice = average.CheckpointChoice(trained[0], epoch=2, avg=5, prefix="teacher_")
    with pytest.raises(UserError, match="^--teacher-epoch 2 --teacher-avg 5: .*; lower --teacher-avg$"):
        average.load_averaged(choice)
