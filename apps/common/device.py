"""Whether a device of the settings is there."""

import torch


def require_device(name: str) -> torch.device:
    """The device with that name; ValueError if torch knows none such, or finds no GPU.

    >>> require_device("cpu").type
    'cpu'
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown: use cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name}: torch finds no GPU here; use cpu")
    return device
