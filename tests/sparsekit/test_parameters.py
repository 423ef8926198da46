"""Which parameters are masked by default, and what cannot be."""

import pytest
import torch
from torch import nn

from sparsekit.parameters import select


class Model(nn.Module):
    """One of each kind; the decoder shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.bag = nn.EmbeddingBag(7, 5)
        self.conv = nn.Conv1d(2, 3, 5)
        self.lstm = nn.LSTM(5, 3)
        self.norm = nn.LayerNorm((5, 3))
        self.frozen = nn.Linear(5, 3).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(3))
        self.decoder = nn.Linear(5, 11, bias=False)
        self.decoder.weight = self.embedding.weight


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def test_default_is_matrices_outside_of_embeddings() -> None:
    model = Model()
    # A norm over two dimensions has a matrix as its scale: it counts as one.
    assert list(select(model, sgd(model), None)) == [
        "conv.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "norm.weight",
        "norm.bias",
    ]


def test_by_name_and_by_function() -> None:
    model = Model()
    names = ["scale", "embedding.weight"]
    found = select(model, sgd(model), names)
    assert list(found) == names
    assert found["scale"] is model.scale
    assert list(select(model, sgd(model), "conv.weight")) == ["conv.weight"]
    chosen = select(model, sgd(model), lambda name, p: p.dim() == 3)
    assert list(chosen) == ["conv.weight"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["conv.wieght"], r"no parameter 'conv\.wieght'; it has .*conv\.weight"),
        ([], "no parameter to mask"),
        (lambda name, p: False, "no parameter to mask"),
    ],
)
def test_unknown_and_no_names(params, message: str) -> None:
    model = Model()
    with pytest.raises(ValueError, match=message):
        select(model, sgd(model), params)


def test_the_optimizer_must_hold_them() -> None:
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    with pytest.raises(ValueError, match="optimizer does not hold 'weight'"):
        select(model, sgd(other), None)


def test_only_real_floats_with_values() -> None:
    complex_model = nn.Linear(5, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"'weight' is torch\.complex64"):
        select(complex_model, sgd(complex_model), None)
    empty = nn.Linear(5, 3, device="meta")
    with pytest.raises(ValueError, match=r"'weight' is on the meta device.*to_empty"):
        select(empty, sgd(empty), None)


class Tagged(torch.Tensor):
    """A subclass, as sharded and quantised tensors are."""


def test_subclassed_tensors_are_refused() -> None:
    model = nn.Linear(5, 3)
    model.weight = nn.Parameter(torch.randn(3, 5).as_subclass(Tagged))
    with pytest.raises(TypeError, match="'weight' is a Tagged"):
        select(model, sgd(model), None)
