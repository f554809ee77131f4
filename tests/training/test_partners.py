"""What the processes of a training say when one of them ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessContext

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.training import dist, partners
from support.killing import free_port

original_join = ProcessContext.join


def end_in_second(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """The second process ends as the file `how` says; what the first one raises is in the file `said`."""
    folder = Path(config.train.exp_dir)
    dist.setup_logging(folder, rank, world_size)
    try:
        with partners.in_company(rank, world_size, config.train.master_port):
            torch.distributed.barrier()
            if rank == 1:
                how = (folder / "how").read_text()
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise (UserError("a.wav: cut short") if how == "user" else RuntimeError("no such kernel"))
            torch.distributed.barrier()
    except UserError as error:
        (folder / f"said-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise


@pytest.mark.parametrize(
    "error, expected",
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("[enforce fail at /pytorch/third_party/gloo/gloo/allreduce.cc:9] timeout"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("Broken pipe"), True),  # of the store, before torch 2.1
        (OSError(5, "Input/output error", "/data/gloo/a.flac"), False),
        (BrokenPipeError(32, "Broken pipe"), False),
        (RuntimeError("/data/gloo/a.flac: cannot be read"), False),
        (RuntimeError("/data/NCCL/a.flac: cannot be read"), False),
    ],
)
def test_an_error_of_a_process_is_its_own_whatever_names_it_holds(error: Exception, expected: bool) -> None:
    assert partners.is_of_communication(error) == expected


@pytest.mark.skipif(not hasattr(torch.distributed, "DistNetworkError"), reason="torch before 2.1")
def test_torchs_own_types_are_of_communication() -> None:
    assert partners.is_of_communication(torch.distributed.DistNetworkError("wait timeout"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, printed, said",
    [
        ("user", "^a.wav: cut short$", "LostPartner: process 1 of 2 failed: a.wav: cut short"),
        ("bug", "(?s)no such kernel", "LostPartner: process 1 of 2 failed: RuntimeError: no such kernel"),
        (
            "kill",
            "process 1 .*(SIGKILL|was killed)",
            "LostPartner: process 1 of 2 was killed, or is out of reach",
        ),
    ],
)
def test_the_process_that_ended_is_named_with_its_reason(tmp_path: Path, monkeypatch, how, printed, said) -> None:
    (tmp_path / "how").write_text(how)
    monkeypatch.setattr(ProcessContext, "join", join_all)
    config = ExperimentConfig(train=TrainConfig(exp_dir=str(tmp_path), world_size=2, master_port=free_port()))
    with pytest.raises(Exception, match=printed):
        dist.launch(end_in_second, config)
    assert (tmp_path / "said-0").read_text().startswith(said)
    logs = {path.name[-1]: path.read_text() for path in (tmp_path / "log").iterdir()}
    assert "process 0 of 2 ends: process 1 of 2" in logs["0"]
    if how != "kill":
        assert f"process 1 of 2 ends: {said.split('failed: ')[1]}" in logs["1"]
    assert ("Traceback" in logs["1"]) == (how == "bug")


def join_all(context, timeout=None, grace_period=None) -> bool:
    """torch's join kills the others as soon as one has ended; on other machines they have time to say why they end."""
    for process in context.processes:
        process.join()
    return original_join(context)
