"""Two processes train as one does, on the halves of each batch."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsekit.method import Method
from sparsekit.sparsifier import Sparsifier
from sparsekit.testing.training import BATCH, Training, batch, require_equal

WORLD = 2


def check_processes(
    methods: Sequence[Method],
    n_steps: int = 13,
    sparsifier: type[Sparsifier] = Sparsifier,
    values: bool = False,
) -> None:
    """Masks, weights and moments of two gloo processes equal those of one.

    Takes several methods, since starting processes takes seconds. Methods and the
    sparsifier must be importable by their names, as for any new process. With `values`
    the layers are in values mode.

    Raises:
        AssertionError: naming the method and the first tensor that differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _process, (folder, methods, n_steps, sparsifier, values), nprocs=WORLD
        )
        results = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=True)
            for rank in range(WORLD)
        ]
    for i, method in enumerate(methods):
        first, second = (result[i] for result in results)
        require_equal(second, first, f"{method}: the second process")
        alone = _trained(method, n_steps, sparsifier, values, range(WORLD))
        require_equal(first, alone, f"{method}: two processes instead of one")


def _process(
    rank: int,
    folder: str,
    methods: Sequence[Method],
    n_steps: int,
    sparsifier: type[Sparsifier],
    values: bool,
) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=WORLD)
    try:
        torch.manual_seed(rank)  # what a method must not depend on
        trained = [_trained(m, n_steps, sparsifier, values, [rank]) for m in methods]
        torch.save(trained, os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def _trained(
    method: Method,
    n_steps: int,
    sparsifier: type[Sparsifier],
    values: bool,
    halves: Sequence[int],
) -> dict[str, Tensor]:
    """Trains on the given halves of each batch and averages their gradients.

    (g0 + g1) / 2 is computed as g0 / 2 + g1 / 2 both here and by
    DistributedDataParallel, so that the sums are equal to the last bit.
    """
    training = Training(method, sparsifier, values=values)
    model: nn.Module = training.model
    sizes: list[int] = []
    for t in range(n_steps):
        now = [parameter.numel() for parameter in training.model.parameters()]
        if len(halves) < WORLD and now != sizes:  # it keeps the sizes that it has seen
            model, sizes = nn.parallel.DistributedDataParallel(training.model), now
        training.optimizer.zero_grad()
        for half in halves:
            rows = slice(half * BATCH // WORLD, (half + 1) * BATCH // WORLD)
            x, y = (tensor[rows] for tensor in batch(t))
            ((model(x) - y).square().mean() / len(halves)).backward()
        training.sparsifier.before_step()
        training.update()
        training.sparsifier.after_step()
    return training.tensors(buffers=False)
