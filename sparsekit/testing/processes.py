"""Two processes train as one does, on the halves of each batch."""

import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from sparsekit.method import Method
from sparsekit.sparsifier import Sparsifier
from sparsekit.testing.training import BATCH, Training, batch, load, require_equal

WORLD = 2


@dataclass(frozen=True)
class _Plan:
    """What every process is told. Trainings stop after `end` steps for a checkpoint."""

    folder: str
    trainings: Sequence[tuple[Method, str, bool]]  # optimizer; in values mode
    sparsifier: type[Sparsifier]
    n_steps: int
    end: int
    resumed: bool = False


def check_processes(
    methods: Sequence[Method],
    n_steps: int = 13,
    sparsifier: type[Sparsifier] = Sparsifier,
    values: Sequence[bool] = (False,),
    optimizers: Sequence[str] = ("AdamW",),
    killed_after: int | None = None,
) -> None:
    """Masks, weights and moments of two gloo processes equal those of one.

    Takes several methods, since starting processes takes seconds. Methods and the
    sparsifier must be importable by their names, as for any new process. `values` says
    whether the layers are in values mode; each is tried. With `killed_after` the second
    process is killed after so many steps of every training, and two new processes go on
    from the checkpoints that the first one wrote.

    Raises:
        AssertionError: naming the method, the optimizer and the first tensor that
            differs.
    """
    trainings = list(product(methods, optimizers, values))
    with tempfile.TemporaryDirectory() as folder:
        make = (folder, trainings, sparsifier, n_steps)
        if killed_after is None:
            _spawn(_Plan(*make, end=n_steps))
        else:
            _kill_one(_Plan(*make, end=killed_after))
            _spawn(_Plan(*make, end=n_steps, resumed=True))
        results = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=True)
            for rank in range(WORLD)
        ]
        alone = _Plan(*make, end=n_steps)
    for i, (method, optimizer, in_values) in enumerate(trainings):
        what = f"{method} with {optimizer}{' in values mode' if in_values else ''}"
        first, second = (result[i] for result in results)
        require_equal(second, first, f"{what}: the second process")
        expected = _trained(alone, i, range(WORLD)).tensors(buffers=False)
        require_equal(first, expected, f"{what}: two processes instead of one")


def _spawn(plan: _Plan) -> None:
    (Path(plan.folder) / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_process, (plan,), nprocs=WORLD)


def _kill_one(plan: _Plan) -> None:
    try:
        _spawn(plan)
    except (ProcessExitedException, ProcessRaisedException):
        return  # whichever is noticed first: it died, or the other one misses it
    raise AssertionError("no process was killed")


def _process(rank: int, plan: _Plan) -> None:
    torch.set_num_threads(1)
    folder = Path(plan.folder)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=WORLD)
    torch.manual_seed(rank)  # what a method must not depend on
    trained = []
    for i in range(len(plan.trainings)):
        training = _trained(plan, i, [rank])
        if plan.end == plan.n_steps:
            trained.append(training.tensors(buffers=False))
        elif rank == 0:
            (folder / f"{i}.checkpoint").write_bytes(training.save())
    if plan.end < plan.n_steps:
        dist.barrier()  # the checkpoints are complete
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()  # never: the other process is gone
    torch.save(trained, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _trained(plan: _Plan, i: int, halves: Sequence[int]) -> Training:
    """Trains on the given halves of each batch and averages their gradients.

    (g0 + g1) / 2 is computed as g0 / 2 + g1 / 2 both here and by
    DistributedDataParallel, so that the sums are equal to the last bit.
    """
    method, optimizer, values = plan.trainings[i]
    training = Training(method, plan.sparsifier, optimizer, values=values)
    begin = 0
    if plan.resumed:
        saved = load((Path(plan.folder) / f"{i}.checkpoint").read_bytes())
        training.sparsifier.load_state_dict(saved["sparsifier"])
        training.model.load_state_dict(saved["model"])
        training.optimizer.load_state_dict(saved["optimizer"])
        begin = training.sparsifier.step
    model: nn.Module = training.model
    sizes: list[int] = []
    for t in range(begin, plan.end):
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
    return training
