"""Devices that are not there are errors that name the fix."""

import pytest
import torch

from apps.common.device import require_device
from apps.common.images import Split


def test_devices() -> None:
    assert require_device("cpu") == torch.device("cpu")
    for name in ("cuad", "", "cuda:x", "cuda 0"):
        with pytest.raises(ValueError, match="is unknown: use cpu or cuda"):
            require_device(name)
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:1"):
            with pytest.raises(ValueError, match=f"device {name}: torch finds no GPU"):
                require_device(name)


@pytest.mark.parametrize("app", ["classify", "continual", "data_pruning", "unlearning"])
def test_every_app_says_so(app: str, monkeypatch, capsys) -> None:
    from importlib import import_module

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main = import_module(f"apps.{app}.cli").main
    assert main(["train", "--device", "cuda", "--dataset", "mnist5k"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("error: device cuda: torch finds no GPU here; use cpu\n")
    assert len(Split(torch.zeros(2, 1, 4, 4), torch.zeros(2)).to("cpu")) == 2
