"""The device that a flag names."""

from __future__ import annotations

import torch

from kdstream.errors import UserError, option
from kdstream.models.transducer import Transducer


def find_device(name: str) -> torch.device:
    """--device; "" is a GPU if there is one.  Raises UserError if there is no such device."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        problem, fix = str(error).splitlines()[0], "use cpu, or cuda:0 on a GPU"
        raise UserError(problem, flag=option("device", name), fix=fix) from error


def synchronize(device: torch.device) -> None:
    """Waits for what a GPU still has to do; a clock that is read before tells how long it took to ask for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(model: Transducer, device: str) -> Transducer:
    """Moves the model to --device; see `find_device`."""
    model = model.to(find_device(device))
    torch.backends.cudnn.allow_tf32 = False  # its rounding depends on the shape: simulated and chunkwise would differ
    return model
