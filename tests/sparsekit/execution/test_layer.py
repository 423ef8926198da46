"""What all layers in values mode share, against plain indexing of dense tensors."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsekit.execution import layer as layers
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.execution.layer import carry, linear_of, require_structure
from sparsekit.execution.linear import SparseLinear

DENSE = {
    "linear": lambda **kw: nn.Linear(5, 4, **kw),
    "conv": lambda **kw: nn.Conv2d(5, 4, 1, **kw),
    "embedding": lambda **kw: nn.Embedding(4, 5),
}
KINDS = {"linear": SparseLinear, "conv": SparseConv2d, "embedding": SparseEmbedding}


def masks(rows=4, columns=5):
    bits = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
    return bits.map(lambda b: torch.tensor(b).view(rows, columns))


def sparse_linear(mask, dtype=torch.float32):
    weight = torch.arange(1.0, mask.numel() + 1, dtype=dtype).view(mask.shape)
    return SparseLinear(weight.requires_grad_(), mask)


# ---- from and to dense ---------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(masks())
def test_values_and_places_are_those_of_the_flattened_weight(mask):
    layer = sparse_linear(mask)
    places = mask.flatten().nonzero().flatten()
    assert layer.positions().tolist() == places.tolist()
    assert layer.values.tolist() == [float(p + 1) for p in places]
    assert layer.crow.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert layer.col.tolist() == (places % 5).tolist()
    assert (layer.crow.dtype, layer.col.dtype) == (torch.int32, torch.int32)
    assert torch.equal(layer.mask(), mask)
    assert layer.nnz == int(mask.sum())
    assert layer.density == pytest.approx(float(mask.float().mean()))
    dense = layer.to_dense()
    assert torch.equal(dense, torch.arange(1.0, 21).view(4, 5) * mask)
    assert not dense.requires_grad
    half = layer.scatter(torch.full((layer.nnz,), 2, dtype=torch.int8))
    assert half.dtype == torch.int8
    assert torch.equal(half, 2 * mask.to(torch.int8))


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_owns_its_tensors_and_trains_as_before(kind, trains):
    module = DENSE[kind]().requires_grad_(trains).train(trains)
    weight = module.weight.detach().clone()
    mask = torch.rand(weight.shape) < 0.5
    layer = KINDS[kind].from_dense(module, mask)
    parameters = list(layer.parameters())
    assert layer.training is trains
    assert all(p.requires_grad is trains and p.is_leaf for p in parameters)
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert torch.equal(layer.to_dense(), weight * mask)
    back = layer.to_module()
    assert back.training is trains
    assert back.weight.requires_grad is trains
    assert torch.equal(back.weight, weight * mask)
    assert type(back) is type(module)
    with torch.no_grad():
        for p in back.parameters():
            p.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.to_dense(), layer.to_dense())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_biases_are_there_or_not(kind):
    for bias in (True, False):
        module = DENSE[kind](bias=bias)
        layer = KINDS[kind].from_dense(module)
        assert (layer.bias is None) is (layer.to_module().bias is None) is not bias
        assert set(layer.state_dict()) == {"values", "crow", "col"} | (
            {"bias"} if bias else set()
        )
        if bias:
            assert torch.equal(layer.to_module().bias, module.bias)
            module.bias.requires_grad_(False)
            assert layer.bias.requires_grad
            assert not KINDS[kind].from_dense(module).bias.requires_grad


def test_without_a_mask_what_is_not_zero_exists():
    for kind, made in KINDS.items():
        module = DENSE[kind]()
        module.weight.data[1] = 0
        assert torch.equal(made.from_dense(module).mask(), module.weight != 0)


@pytest.mark.parametrize(
    ("weight", "mask", "message"),
    [
        ((4, 5), torch.ones(4, 5), r"bool of shape \(4, 5\), got torch.float32 \(4, 5"),
        ((4, 5), torch.ones(5, 4) > 0, r"bool of shape \(4, 5\), got torch.bool \(5"),
    ],
)
def test_masks_that_do_not_fit(weight, mask, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(torch.zeros(weight), mask)
    layer = sparse_linear(torch.rand(4, 5) < 0.5)
    with pytest.raises(ValueError, match=message):
        layer.move(mask)


def test_a_vector_is_no_weight():
    class Any(layers.SparseLayer):
        def _derive(self):
            pass

    with pytest.raises(ValueError, match=r"weight needs 2 dimensions, got \(3,\)"):
        Any(torch.ones(3), torch.ones(3) > 0)
    assert Any(torch.ones(3, 1), torch.ones(3, 1) > 0).nnz == 3


def test_a_dense_start_derives_nothing_yet():
    """It is about to be pruned."""
    full = torch.ones(4, 5) > 0
    layer = sparse_linear(full)
    assert "starts" not in dict(layer.named_buffers())
    layer.load_state_dict(sparse_linear(full).state_dict())
    assert "starts" not in dict(layer.named_buffers())
    mask = full.clone()
    mask[3, 4] = False
    assert "starts" in dict(sparse_linear(mask).named_buffers())
    layer.load_state_dict(sparse_linear(mask).state_dict())
    assert "starts" in dict(layer.named_buffers())


@pytest.mark.parametrize("most", [4, 5, 6])
def test_indices_have_32_bits(monkeypatch, most):
    monkeypatch.setattr(layers, "INDEX_MAX", most)
    wide, many = torch.zeros(1, 5) > 0, torch.zeros(5, 2) > 0
    many[:, 0] = True
    for mask in (wide, many):
        if most < 5:
            with pytest.raises(ValueError, match="more than 4 alive entries"):
                layers._index(mask)
        else:
            crow, col = layers._index(mask)
            assert len(crow) == len(mask) + 1
            assert len(col) == int(mask.sum())


def test_the_largest_index():
    assert layers.INDEX_MAX == 2**31 - 1


# ---- moving --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(masks(3, 4), masks(3, 4), st.sampled_from([torch.float32, torch.float64]))
def test_moving_keeps_the_values_of_places_that_stay(old, new, dtype):
    layer = sparse_linear(old, dtype)
    parameter, before = layer.values, layer.to_dense()
    parameter.grad = torch.ones_like(parameter)
    objects = parameter.data_ptr(), layer.col.data_ptr(), layer.crow.data_ptr()
    had = old.flatten().nonzero().flatten().tolist()
    source = layer.move(new)
    now = new.flatten().nonzero().flatten().tolist()
    assert source.tolist() == [had.index(p) if p in had else -1 for p in now]
    assert torch.equal(layer.to_dense(), before * new)
    assert torch.equal(layer.mask(), new)
    assert layer.values is parameter
    assert layer.values.dtype == dtype
    assert layer._stale
    assert layer.crow.data_ptr() == objects[2]
    if len(now) == len(had):
        assert objects[:2] == (layer.values.data_ptr(), layer.col.data_ptr())
        assert parameter.grad is not None
    else:
        assert parameter.grad is None
    moments = torch.arange(1.0, len(had) + 1)
    moved = [float(had.index(p) + 1) if p in had else 0.0 for p in now]
    assert carry(moments, source).tolist() == moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_trains_on_after_growing_beside_an_older_loss(dtype):
    layer = sparse_linear(torch.eye(4, 5) > 0, dtype)
    x = torch.randn(3, 5, dtype=dtype)
    older = layer(x).sum()  # its graph knows the old length
    layer.move(torch.ones(4, 5) > 0)
    layer(x).sum().backward()
    assert layer.values.grad.shape == (20,)
    assert layer.values.grad.dtype == dtype
    del older


def test_the_dense_gradient_is_collected_once_asked_for():
    layer = sparse_linear(torch.eye(4, 5) > 0)
    assert layer.take_dense_gradient() is None
    x = torch.randn(3, 5)
    layer.watch_dense_gradient()
    assert layer.take_dense_gradient() is None  # nothing went backward
    layer.watch_dense_gradient()
    layer(x).sum().backward()
    layer.watch_dense_gradient()  # goes on
    layer(x).sum().backward()
    expected = 2 * x.sum(0).expand(4, 5)
    torch.testing.assert_close(layer.take_dense_gradient(), expected)
    assert layer.probe is None
    layer(x).sum().backward()
    assert layer.take_dense_gradient() is None


# ---- files ---------------------------------------------------------------------------


def state(crow=(0, 2, 2, 3), col=(0, 3, 3), values=(1.0, 2.0, 3.0), kind=torch.int32):
    return (
        torch.tensor(values), torch.tensor(crow, dtype=kind),
        torch.tensor(col, dtype=kind),
    )  # fmt: skip


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_structures_that_fit(kind):
    require_structure("a", (3, 4), *state(kind=kind))
    require_structure("a", (3, 2, 2), *state(kind=kind))
    require_structure("a", (3, 4), *state((0, 0, 0, 0), (), (), kind))
    require_structure("a", (2, 2), *state((0, 2, 4), (0, 1, 0, 1), (1.0,) * 4, kind))
    require_structure("a", (3, 4), *state((0, 3, 3, 3), (0, 1, 2), kind=kind))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"col": (0, 3)}, r"values \(3,\), crow \(4,\) and col \(2,\) do not fit 3 ro"),
        ({"crow": (0, 2, 3)}, r"crow \(3,\) and col \(3,\) do not fit 3 rows"),
        ({"values": ((1.0, 2.0, 3.0),)}, "do not fit 3 rows"),
        ({"crow": (1, 2, 2, 3)}, "crow must ascend from 0 to the number"),
        ({"crow": (0, 2, 2, 2)}, "crow must ascend from 0 to the number"),
        ({"crow": (0, 2, 2, 4)}, "crow must ascend from 0 to the number"),
        ({"crow": (0, 3, 2, 3)}, "crow must ascend from 0 to the number"),
        ({"col": (-1, 3, 3)}, r"col must be in \[0, 4\)"),
        ({"col": (0, 4, 3)}, r"col must be in \[0, 4\)"),
        ({"col": (0, 3, 4)}, r"col must be in \[0, 4\)"),
        ({"col": (3, 0, 3)}, "col must ascend within a row"),
        ({"col": (3, 3, 3)}, "col must ascend within a row"),
    ],
)
def test_structures_that_do_not_fit(changed, message):
    with pytest.raises(ValueError, match=f"'a' holds no valid .* shape .*{message}"):
        require_structure("a", (3, 4), *state(**changed))


def test_indices_are_integers():
    values, crow, col = state()
    for arguments in ((crow.float(), col), (crow, col.float())):
        with pytest.raises(ValueError, match="crow and col must be integers"):
            require_structure("a", (3, 4), values, *arguments)


def test_loading_takes_another_structure_and_names_a_bad_one():
    layer = sparse_linear(torch.eye(4, 5) > 0)
    parameter = layer.values
    other = sparse_linear(torch.rand(4, 5) < 0.9)
    layer.load_state_dict(other.state_dict())
    assert layer.values is parameter
    assert torch.equal(layer.to_dense(), other.to_dense())
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), x @ other.to_dense().t())
    same = sparse_linear(other.mask().roll(1, 0))  # as many values, elsewhere
    layer.load_state_dict(same.state_dict())
    torch.testing.assert_close(layer(x), x @ same.to_dense().t())
    damaged = same.state_dict() | {"col": same.col + 5}
    network = nn.Sequential(layer)
    with pytest.raises(ValueError, match=r"'0' holds no valid .*Nothing was loaded"):
        network.load_state_dict({f"0.{k}": v for k, v in damaged.items()})
    assert torch.equal(layer.to_dense(), same.to_dense())
    with pytest.raises(RuntimeError, match="Missing"):
        layer.load_state_dict({"values": same.values})


def test_says_what_it_is():
    layer = sparse_linear(torch.eye(4, 5) > 0)
    assert repr(layer) == "SparseLinear(4 x 5, nnz=4 (20.00%), bias=False)"
    assert layer.by_default
    assert not SparseEmbedding.by_default


# ---- small things --------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plain_layer_of_a_weight(training, dtype):
    weight, bias = torch.randn(3, 2, dtype=dtype), torch.randn(3, dtype=dtype)
    module = linear_of(weight, bias, training)
    assert module.training is training
    assert (module.in_features, module.out_features) == (2, 3)
    assert module.weight.dtype == module.bias.dtype == dtype
    weight.zero_()
    bias.zero_()
    assert module.weight.count_nonzero() == 6
    assert module.bias.count_nonzero() == 3
    assert linear_of(weight, None, training).bias is None


def test_carrying_nothing_gives_zeros():
    source = torch.tensor([-1, -1])
    assert carry(torch.zeros(0, dtype=torch.float64), source).tolist() == [0.0, 0.0]
    assert carry(torch.zeros(0, dtype=torch.float64), source).dtype == torch.float64
    assert carry(torch.tensor([5.0]), torch.tensor([0, -1])).tolist() == [5.0, 0.0]


def test_moved_between_forward_and_backward():
    layers.require_unmoved(3, 3)
    with pytest.raises(RuntimeError, match="3 connections went forward, 4 are left"):
        layers.require_unmoved(3, 4)


def test_the_dense_gradient_while_all_weights_exist():
    layer, x = sparse_linear(torch.ones(4, 5) > 0), torch.randn(3, 5)
    layer.watch_dense_gradient()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.take_dense_gradient(), x.sum(0).expand(4, 5))
