"""To which parameter a product belongs, in less usual forms; and what uses say."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.flops import forward_flops


class Of(nn.Module):
    """Parameters, and a function of them and the input."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **tensors):
        super().__init__()
        self.function = forward
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


W, B = torch.randn(3, 7), torch.randn(3, 5)
CASES: dict[str, tuple[nn.Module, Tensor, dict[str, int], int]] = {
    "to the left of the input": (
        Of(lambda m, x: torch.addmm(m.b, m.w, x), w=W, b=B), torch.randn(7, 5),
        {"w": 2 * 3 * 7 * 5, "b": 0}, 0,
    ),
    "in batches": (
        Of(lambda m, x: torch.baddbmm(m.b.expand(2, 3, 5), m.w.expand(2, 3, 7), x),
           w=W, b=B),
        torch.randn(2, 7, 5), {"w": 2 * 2 * 3 * 7 * 5, "b": 0}, 0,
    ),
    "of a vector": (
        Of(lambda m, x: torch.addmv(m.b, m.w, x), w=W, b=torch.randn(3)),
        torch.randn(7), {"w": 2 * 3 * 7, "b": 0}, 0,
    ),
    "with a vector": (
        Of(lambda m, x: torch.mv(x, m.v), v=torch.randn(7)), torch.randn(5, 7),
        {"v": 2 * 5 * 7}, 0,
    ),
    "repeated for each": (
        Of(lambda m, x: torch.bmm(x, (2 * m.w).t().expand(2, 7, 3).contiguous()), w=W),
        torch.randn(2, 5, 7), {"w": 2 * 2 * 5 * 7 * 3}, 0,
    ),
    "of two weights, one made of another": (
        Of(lambda m, x: F.linear(x, torch.cat([m.w, m.v])), w=W, v=torch.randn(2, 7)),
        torch.randn(5, 7), {"w": 2 * 5 * 7 * 3, "v": 2 * 5 * 7 * 2}, 0,
    ),
    "of a part": (
        Of(lambda m, x: F.linear(x, m.w[1:]), w=W), torch.randn(5, 7),
        {"w": 2 * 5 * 7 * 2}, 0,
    ),
    "masked": (
        Of(lambda m, x: F.linear(x, m.w * (m.w > 0)), w=W), torch.randn(5, 7),
        {"w": 2 * 5 * 7 * 3}, 0,
    ),
    "made by the input": (
        Of(lambda m, x: F.linear(x, m.w * x.mean()), w=W), torch.randn(5, 7),
        {"w": 0}, 2 * 5 * 7 * 3,
    ),
    "written over": (
        Of(lambda m, x: F.linear(x, m.w.clone().copy_(x[:3])), w=W), torch.randn(5, 7),
        {"w": 0}, 2 * 5 * 7 * 3,
    ),
    "written into": (
        Of(lambda m, x: F.linear(x, torch.zeros(3, 7).add_(m.w)), w=W),
        torch.randn(5, 7), {"w": 2 * 5 * 7 * 3}, 0,
    ),
    "of two weights, added": (
        Of(lambda m, x: F.linear(x, m.w + m.v), w=W, v=torch.randn(3, 7)),
        torch.randn(5, 7), {"w": 0, "v": 0}, 2 * 5 * 7 * 3,
    ),
    "of two weights, one added to a copy of the other": (
        Of(lambda m, x: F.linear(x, m.w.clone().add_(m.v)), w=W, v=torch.randn(3, 7)),
        torch.randn(5, 7), {"w": 0, "v": 0}, 2 * 5 * 7 * 3,
    ),
    "of a part of what a weight makes": (  # which part, is not known
        Of(lambda m, x: F.linear(x, (2 * m.w)[:2].contiguous()), w=W),
        torch.randn(5, 7), {"w": 0}, 2 * 5 * 7 * 2,
    ),
    "of an empty part": (
        Of(lambda m, x: F.linear(x, m.w[3:]), w=W), torch.randn(5, 7), {"w": 0}, 0,
    ),
    "of a row at the end": (
        Of(lambda m, x: F.linear(x, m.w[2:]), w=W), torch.randn(5, 7),
        {"w": 2 * 5 * 7}, 0,
    ),
    "of every other column": (
        Of(lambda m, x: F.linear(x[:, ::2], m.w[:, ::2]), w=W), torch.randn(5, 7),
        {"w": 2 * 5 * 4 * 3}, 0,
    ),
    "written into by the input, then added": (
        Of(lambda m, x: F.linear(x, m.w.clone().mul_(x.mean()) + m.v), w=W,
           v=torch.randn(3, 7)),
        torch.randn(5, 7), {"w": 0, "v": 0}, 2 * 5 * 7 * 3,
    ),
    "of two numbers in a row": (
        Of(lambda m, x: x.new_ones(5) * torch.dot(m.v, x[0]), v=torch.randn(7)),
        torch.randn(5, 7), {"v": 2 * 7}, 0,
    ),
    "of the input alone": (
        Of(lambda m, x: (x @ x.t()) + m.v.sum(), v=torch.randn(7)), torch.randn(5, 7),
        {"v": 0}, 2 * 5 * 5 * 7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products_belong_to(name: str) -> None:
    model, x, parameters, other = CASES[name]
    flops = forward_flops(model, x)
    assert flops.parameters == parameters
    assert flops.other == other
    assert flops.total == sum(parameters.values()) + other


@pytest.mark.parametrize("name", CASES)
def test_it_may_be_counted_inside_of_inference_mode(name: str) -> None:
    """There torch hands over whole operations, such as linear, in one piece."""
    model, x, parameters, other = CASES[name]
    with torch.inference_mode():
        flops = forward_flops(model, x)
    assert flops.parameters == parameters
    assert flops.other == other


def test_an_unknown_operation_may_read_vectors_but_no_weight_matrix() -> None:
    """Neither `searchsorted` nor `trace` is in a list; they multiply nothing."""
    of_vector = Of(lambda m, x: torch.searchsorted(m.v, x), v=torch.arange(7.0))
    assert forward_flops(of_vector, torch.randn(5, 7)).total == 0
    of_input = Of(lambda m, x: x.trace() + m.v, v=torch.randn(7))
    assert forward_flops(of_input, torch.randn(5, 7)).total == 0
    of_weight = Of(lambda m, x: x + m.w.trace(), w=W)
    with pytest.raises(NotImplementedError, match=r"FLOPs of aten.trace.* on \[\(3, 7"):
        forward_flops(of_weight, torch.randn(5, 7))
    of_copy = Of(lambda m, x: x + (2 * m.w).trace(), w=W)
    with pytest.raises(NotImplementedError, match="pass forward_flops"):
        forward_flops(of_copy, torch.randn(5, 7))


def test_nothing_of_a_model_changes_not_even_if_it_fails() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(2))
            self.register_buffer("other", torch.zeros(1))
            self.layer, self.drop = nn.Linear(3, 2), nn.Dropout()

        def forward(self, x: Tensor, fail: bool) -> Tensor:
            self.calls += 1
            self.other = self.other + 1  # another tensor
            torch.rand(3)
            assert self.training is self.drop.training is False
            if fail:
                raise ArithmeticError
            return self.drop(self.layer(x))

    model = Counting()
    buffers = model.calls, model.other
    state = torch.get_rng_state()
    assert forward_flops(model, torch.zeros(4, 3), False).total == 2 * 4 * 3 * 2
    assert forward_flops(model, torch.zeros(4, 3), fail=False).total == 2 * 4 * 3 * 2
    with pytest.raises(ArithmeticError):
        forward_flops(model, torch.zeros(4, 3), True)
    assert model.training
    assert model.drop.training
    assert (model.calls, model.other) == buffers  # the very tensors
    assert not model.calls.any()
    assert not model.other.any()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.layer.weight.grad is None


def test_a_formula_of_ones_own_sees_shapes_and_counts_for_the_last_weight() -> None:
    seen = []

    def formula(*shapes, out_shape=None) -> int:
        seen.append((*map(tuple, shapes), tuple(out_shape)))
        return 11

    model = Of(lambda m, x: torch.searchsorted(m.v, x), v=torch.arange(7.0))
    op = torch.ops.aten.searchsorted
    flops = forward_flops(model, torch.randn(5, 7), formulas={op: formula})
    assert flops.parameters == {"v": 11}
    assert seen == [((7,), (5, 7), (5, 7))]


def test_parameters_that_share_memory_are_told_apart() -> None:
    """As in a flat buffer of all weights."""
    flat = torch.randn(40)
    parts = {"a": flat[4:16].view(3, 4), "b": flat[16:28].view(3, 4), "c": flat[28:40]}
    model = Of(
        lambda m, x: F.linear(x, m.a) + F.linear(x, m.b) + F.linear(x, m.c.view(3, 4)),
        **parts,
    )
    assert model.a.untyped_storage().data_ptr() == model.b.untyped_storage().data_ptr()
    flops = forward_flops(model, torch.randn(5, 4))
    assert flops.parameters == dict.fromkeys("abc", 2 * 5 * 4 * 3)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    assert flops.sparse({"b": mask}).parameters == {"a": 120, "b": 0, "c": 120}


def test_uses_add_up_to_the_parameters_sparse_or_not() -> None:
    model = Of(
        lambda m, x: F.linear(x, m.w[:1])
        + F.linear(x[:, :2], m.w[1:, 3:5]).sum(1, True),
        w=W,
    )  # fmt: skip
    flops = forward_flops(model, torch.randn(5, 7))
    mask = torch.arange(21).view(3, 7) % 2 == 0
    for found in (flops, flops.sparse({"w": mask})):
        by_name = {"w": 0}
        for view, count in found.uses:
            by_name[view.name] += count
        assert by_name == found.parameters
    assert flops.sparse({"w": mask}).parameters["w"] == 2 * 5 * int(mask[0].sum()) + (
        2 * 5 * int(mask[1:, 3:5].sum())
    )


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(nn.Linear(7, 3), backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_compiled_parts_are_counted_like_plain_ones() -> None:
    flops = forward_flops(Compiled(), torch.randn(5, 7))
    assert flops.total == 2 * 5 * 7 * 3


@pytest.mark.parametrize("name", ["mkldnn", "cudnn"])
def test_switches_of_torch_are_as_before(name: str) -> None:
    backend = getattr(torch.backends, name)
    for state in (True, False):
        with backend.flags(enabled=state):
            forward_flops(nn.Linear(2, 2), torch.zeros(1, 2))
            get = getattr(torch._C, f"_get_{name}_enabled")
            assert get() is state


def test_a_fast_path_is_put_back() -> None:
    for state in (True, False):
        torch.backends.mha.set_fastpath_enabled(state)
        forward_flops(nn.Linear(2, 2), torch.zeros(1, 2))
        assert torch.backends.mha.get_fastpath_enabled() is state
    torch.backends.mha.set_fastpath_enabled(True)
