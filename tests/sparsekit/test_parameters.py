"""Which parameters are masked by default, and what cannot be."""

import pytest
import torch
from torch import nn

from sparsekit import Sparsifier
from sparsekit.methods.static import Static
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
        self.token = nn.Parameter(torch.ones(1, 1, 5))
        self.positions = nn.Parameter(torch.ones(1, 7, 5))
        self.prompts = nn.ParameterList([torch.ones(1, 5)])
        self.experts = nn.Parameter(torch.ones(2, 5, 3))
        self.attention = nn.MultiheadAttention(5, 1, add_bias_kv=True)
        self.score = nn.Linear(5, 1)
        self.decoder = nn.Linear(5, 11, bias=False)
        self.decoder.weight = self.embedding.weight


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def test_default_is_matrices_outside_of_embeddings() -> None:
    model = Model()
    # No table, position, class token or scale of a norm, whatever its dimensions.
    assert list(select(model, sgd(model), None)) == [
        "experts",
        "conv.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "score.weight",
    ]


def test_by_name_and_by_function() -> None:
    model = Model()
    names = ["scale", "embedding.weight"]
    found = select(model, sgd(model), names)
    assert list(found) == names
    assert found["scale"] is model.scale
    assert list(select(model, sgd(model), "conv.weight")) == ["conv.weight"]
    chosen = select(model, sgd(model), lambda name, p: name.startswith("conv."))
    assert list(chosen) == ["conv.weight", "conv.bias"]


def test_a_module_stands_for_what_is_masked_in_it() -> None:
    model = Model()
    chosen = select(model, sgd(model), ["attention", "scale", "score.weight"])
    assert list(chosen) == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "scale",
        "score.weight",
    ]
    everything = set(select(model, sgd(model), None))
    left = select(model, sgd(model), None, exclude=["lstm", "score.weight", "norm"])
    assert everything - set(left) == {
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "score.weight"
    }  # fmt: skip
    assert set(select(model, sgd(model), None, exclude="experts")) == everything - {
        "experts"
    }
    ones = select(model, sgd(model), lambda n, p: len(p) == 1, ["attention", "score"])
    assert set(ones) == {"token", "positions", "prompts.0"}


def test_names_that_cannot_be_left_out() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"exclude: .*'lsmt'; did you mean 'lstm'\?"):
        select(model, sgd(model), None, exclude=["lsmt"])
    with pytest.raises(ValueError, match="none is left by params and exclude"):
        select(model, sgd(model), ["conv"], exclude=["conv"])


@pytest.mark.parametrize(
    "wrapper",
    [torch.compile, nn.DataParallel, lambda m: torch.compile(nn.DataParallel(m))],
)
def test_wrapped_models_keep_the_names_inside(wrapper) -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    wrapped = wrapper(model)
    sparsifier = Sparsifier(wrapped, sgd(wrapped), Static(0.5))
    assert list(sparsifier.alive) == ["0.weight"]
    assert sparsifier.model is model


def test_weights_computed_from_parameters_are_not_masked_unasked() -> None:
    """Zeros of the parameters of a norm or an orthogonal map are not the weight's."""
    made = [
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)),
        torch.nn.utils.parametrizations.orthogonal(nn.Linear(5, 5)),
    ]
    with pytest.warns(FutureWarning):
        made.append(torch.nn.utils.weight_norm(nn.Linear(5, 3)))
    for layer in made:
        model = nn.Sequential(nn.Linear(4, 5), layer)
        with pytest.raises(ValueError, match=r"computed from '1\..*remove_parametriz"):
            select(model, sgd(model), None)
        assert list(select(model, sgd(model), None, ["1"])) == ["0.weight"]
    assert list(select(model, sgd(model), ["1.weight_v"])) == ["1.weight_v"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["conv.wieght"], r"no parameter 'conv\.wieght'; did you mean 'conv\.weight'"),
        (["decoder.weight"], r"goes by the name 'embedding\.weight'"),
        (["embedding"], r"no parameter of the module 'embedding' is masked by default"),
        ([], "no parameter to mask"),
        (lambda name, p: False, "no parameter to mask"),
    ],
)
def test_unknown_and_no_names(params, message: str) -> None:
    model = Model()
    with pytest.raises(ValueError, match=message):
        select(model, sgd(model), params)


def test_names_are_strings_and_the_optimizer_is_one() -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(TypeError, match=r"params holds names.*Parameter"):
        select(model, sgd(model), [model.weight])
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer, got None"):
        select(model, None, None)


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
