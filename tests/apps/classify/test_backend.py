"""Training on alive weights only: the same masks, the same files, resumable."""

from dataclasses import replace

import pytest
import torch

from apps.classify.config import Config
from apps.classify.result import load_result
from apps.classify.train import train


def config(**changes) -> Config:
    settings = {
        "model": "mlp",
        "width": 30,
        "depth": 1,
        "method": "set",
        "options": {"every": 10},
        "sparsity": 0.8,
        "epochs": 2,
    }
    return Config(**{**settings, **changes})


def test_both_backends_train_the_same_network():
    """Rounding differs, so a late move may choose another weight of equal size."""
    masked, values = (
        train(config(method="static", options={}, backend=backend))
        for backend in ("masked", "values")
    )
    assert values.masks.keys() == masked.masks.keys()
    for name, mask in masked.masks.items():
        assert torch.equal(mask, values.masks[name])
    state = masked.model.state_dict()
    for name, tensor in values.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-2, atol=1e-3)
    assert values.cost["bytes_on_disk"] == masked.cost["bytes_on_disk"]
    assert values.cost["train_flops"] == masked.cost["train_flops"]


def test_resuming_equals_training_in_one_go(tmp_path):
    whole = train(config(backend="values"))

    class Cut(Exception):
        pass

    def cut(epoch, model, sparsifier):
        if epoch == 1:
            raise Cut

    folder = tmp_path / "run"
    with pytest.raises(Cut):
        train(config(backend="values", out=folder), watch=cut)
    settings = config(backend="values", out=folder, resume=True)
    resumed = train(settings)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    loaded = load_result(folder, settings)
    assert loaded.accuracy == whole.accuracy


@pytest.mark.parametrize("model", ["resnet", "mobilenet"])
def test_networks_of_convolutions_train(model):
    masked, values = (
        train(config(model=model, width=8, depth=2, backend=b, epochs=1, batch=96))
        for b in ("masked", "values")
    )
    loss = [result.history[0]["loss"] for result in (masked, values)]
    assert loss[1] == pytest.approx(loss[0], rel=0.02)
    assert values.cost["params_active"] == masked.cost["params_active"]


@pytest.mark.parametrize(("model", "dense"), [("mlp", "3.*"), ("resnet", "0.*")])
def test_layers_that_stay_dense_do_so_in_both_backends(model, dense):
    settings = config(
        model=model, width=8, depth=2, method="static", options={}, epochs=1,
        batch=96, keep_dense=(dense,),
    )  # fmt: skip
    masked, values = (
        train(replace(settings, backend=backend)) for backend in ("masked", "values")
    )
    assert masked.masks.keys() == values.masks.keys()
    assert f"{dense[0]}.weight" not in masked.masks
    for name, mask in masked.masks.items():
        assert torch.equal(mask, values.masks[name])
    state = masked.model.state_dict()
    for name, tensor in values.model.state_dict().items():
        if model == "mlp":  # others carry differences in rounding further
            torch.testing.assert_close(tensor, state[name], rtol=1e-2, atol=1e-3)
    loss = [result.history[0]["loss"] for result in (masked, values)]
    assert loss[1] == pytest.approx(loss[0], rel=0.02)
    assert values.cost["bytes_on_disk"] == masked.cost["bytes_on_disk"]


def test_dense_training_has_no_values():
    with pytest.raises(ValueError, match="needs backend masked"):
        config(method="dense", backend="values")
