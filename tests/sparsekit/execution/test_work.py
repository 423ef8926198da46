"""What a kernel is guessed to take, which decides about threads, grows with work."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsekit.execution import blocked, export, pool, reader, threads
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.execution.linear import SparseLinear
from sparsekit.execution.norm import BlockedBatchNorm2d


@pytest.fixture
def guessed(monkeypatch):
    """{kernel: nanoseconds} of a call."""
    run = threads.run

    def guesses(call: Callable[[], object]) -> dict[str, float]:
        found: dict[str, float] = {}

        def noted(kernel, tasks, *args, nanoseconds=None, **more):
            name = getattr(kernel, "__name__", repr(kernel))
            found[name] = found.get(name, 0.0) + (nanoseconds or 0.0)
            run(kernel, tasks, *args, nanoseconds=nanoseconds, **more)

        monkeypatch.setattr(threads, "run", noted)
        call()
        monkeypatch.setattr(threads, "run", run)
        return found

    return guesses


def mask(*shape: int, density: float) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density


def used(module: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def call() -> None:
        y = module(x.requires_grad_(x.is_floating_point()))
        y.backward(torch.ones_like(y))

    return call


def linear(batch: int, density: float) -> Callable[[], None]:
    dense = nn.Linear(96, 80)
    layer = SparseLinear.from_dense(dense, mask(80, 96, density=density))
    return used(layer, torch.randn(batch, 96))


def conv(batch: int, density: float) -> Callable[[], None]:
    dense = nn.Conv2d(32, 32, 3, padding=1)
    layer = SparseConv2d.from_dense(dense, mask(32, 32, 3, 3, density=density))
    return used(layer, torch.randn(batch, 32, 6, 6))


def embedding(batch: int, density: float) -> Callable[[], None]:
    layer = SparseEmbedding.from_dense(
        nn.Embedding(50, 64), mask(50, 64, density=density)
    )
    return used(layer, torch.arange(batch) % 50)


def norm(batch: int, density: float) -> Callable[[], None]:
    module = BlockedBatchNorm2d(8)
    return used(
        lambda x: module(blocked.to_blocked(x), len(x)), torch.randn(batch, 8, 6, 6)
    )


def pools(batch: int, density: float) -> Callable[[], None]:
    def module(x: Tensor) -> Tensor:
        x = blocked.to_blocked(x)
        x = pool.average_pool(pool.max_pool(x, 2, 2), 2, 1)
        return pool.global_mean(x, batch)

    return used(module, torch.randn(batch, 8, 12, 12))


PARTS = {"linear": linear, "conv": conv, "embedding": embedding, "norm": norm,
         "pools": pools}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_four_times_the_examples_are_four_times_the_work(name, guessed) -> None:
    small, large = (guessed(PARTS[name](n, 0.2)) for n in (32, 128))
    assert small.keys() == large.keys()
    for kernel, guess in small.items():
        assert large[kernel] == pytest.approx(4 * guess, rel=0.1), kernel


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_four_times_the_weights_are_four_times_the_work(name, guessed) -> None:
    few, many = (guessed(PARTS[name](32, density)) for density in (0.1, 0.4))
    grown = {k: many[k] / few[k] for k in few if few.get(k) and many.get(k)}
    assert max(grown.values()) == pytest.approx(4, rel=0.2)
    assert all(1 / 1.01 < ratio < 5 for ratio in grown.values())


@pytest.mark.parametrize("name", PARTS)
def test_a_processor_does_a_few_to_a_few_hundred_operations_a_nanosecond(
    name, guessed
) -> None:
    """Of the whole: between 1 and 400, whatever the kernel."""
    entries = {
        "linear": 3 * 2 * 128 * 0.2 * 96 * 80,
        "conv": 3 * 2 * 128 * 0.2 * 36 * 32**2 * 9,
        "embedding": 128 * 64, "norm": 128 * 8 * 36, "pools": 128 * 8 * 144,
    }  # fmt: skip
    total = sum(guessed(PARTS[name](128, 0.2)).values())
    assert 1 / 4 < entries[name] / total < 400


class Served(nn.Module):
    """A pointwise, a depthwise and a 3x3 convolution, sparse or not."""

    def __init__(self, density: float):
        super().__init__()
        self.first = nn.Conv2d(16, 64, 1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.last = nn.Conv2d(64, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 64)
        for module in (self.first, self.last, self.head):
            module.weight.data *= mask(*module.weight.shape, density=density)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(self.last(torch.relu(self.deep(x))).mean((2, 3)))


@pytest.mark.parametrize("side", [9, 40])
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_files_guess_too(tmp_path, guessed, side: int, density: float) -> None:
    torch.manual_seed(0)
    model = Served(density).eval()
    export.save(model, torch.randn(2, 16, side, side), tmp_path / "model")
    loaded = reader.load(tmp_path / "model")
    small, large = (
        guessed(lambda n=n: loaded(torch.randn(n, 16, side, side).numpy()))
        for n in (64, 256)
    )
    assert small
    for kernel in small.keys() & large.keys():
        if small[kernel]:
            assert large[kernel] == pytest.approx(4 * small[kernel], rel=0.1), kernel
    assert sum(large.values()) > 0
