"""What an operation says of its result is so: sizes, strides and types, of every op."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsekit.execution import blocked, pool
from sparsekit.execution.blocks import BlockLinear
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.execution.linear import SparseLinear
from sparsekit.execution.norm import BlockedBatchNorm2d


class Calls(TorchDispatchMode):
    """Keeps arguments and results of all our operations."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "sparsekit":
            self.made.append((func, args, result))
        return result


def mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3


def used(module: Callable[[Tensor], Tensor], x: Tensor) -> None:
    y = module(x.requires_grad_(x.is_floating_point()))
    y.backward(torch.randn_like(y))


def linear() -> None:
    for bias in (True, False):
        dense = nn.Linear(23, 11, bias=bias)
        used(SparseLinear.from_dense(dense, mask(11, 23)), torch.randn(5, 23))


def conv() -> None:
    for kernel, stride in ((3, 1), (3, 2), (1, 2)):
        dense = nn.Conv2d(6, 17, kernel, stride, kernel // 2)
        layer = SparseConv2d.from_dense(dense, mask(17, 6, kernel, kernel))
        used(layer, torch.randn(19, 6, 7, 5))


def embedding() -> None:
    layer = SparseEmbedding.from_dense(nn.Embedding(9, 13, padding_idx=2), mask(9, 13))
    used(layer, torch.tensor([[0, 2], [8, 8], [1, 0]]))


def block() -> None:
    dense = nn.Linear(32, 24)
    for batch in (1, 5):
        layer = BlockLinear.from_dense(dense, block=8, keep=0.5)
        used(layer, torch.randn(batch, 32))


def norm() -> None:
    for relu in (True, False):
        module = BlockedBatchNorm2d(5)
        used(
            lambda x, m=module, relu=relu: m(blocked.to_blocked(x), len(x), None, relu),
            torch.randn(18, 5, 4, 3),
        )


def pools() -> None:
    def module(x: Tensor) -> Tensor:
        x = pool.max_pool(blocked.to_blocked(x), 3, 2, 1)
        return pool.global_mean(pool.average_pool(x, 2, 1), 18)

    used(module, torch.randn(18, 5, 11, 9))
    used(
        lambda x: blocked.from_blocked(blocked.to_blocked(x), 18),
        torch.randn(18, 5, 4, 3),
    )


PARTS = {
    "linear": linear, "conv": conv, "embedding": embedding, "block": block,
    "norm": norm, "pool": pools,
}  # fmt: skip


def facts(result: Any) -> list[tuple]:
    return [(t.shape, t.stride(), t.dtype, t.device.type) for t in tree_leaves(result)]


@pytest.mark.parametrize("part", PARTS)
def test_fakes_tell_the_truth(part: str) -> None:
    torch.manual_seed(0)
    with Calls() as calls:
        PARTS[part]()
    assert calls.made
    for func, args, result in calls.made:
        with FakeTensorMode() as mode:
            fakes = tree_map_only(Tensor, mode.from_tensor, args)
            assert facts(func(*fakes)) == facts(result), func


def test_no_operation_is_forgotten() -> None:
    with Calls() as calls:
        for run in PARTS.values():
            run()
    names = {func.name().split(".")[0] for func, _, _ in calls.made}
    known = {
        name.split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("sparsekit::")
    }
    assert names == known
