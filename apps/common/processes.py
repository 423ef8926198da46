"""Several processes train one model, on one machine or more.

    torchrun --nproc-per-node 2 -m apps.classify train --out runs/a

Every process runs the same loop on the same batches. Only the costly part is divided: a
`Shared` model passes a part of the batch through the layers and gathers the outputs, so
that the loss, and what a strategy keeps of it, is that of the whole batch everywhere.
After the backward pass gradients are averaged, as DistributedDataParallel does:

    forward = processes.shared(model)
    loss = F.cross_entropy(forward(x), y)
    loss.backward()
    processes.average(model.parameters())

With one process the model is called as it is and nothing is averaged. With several the
training is that of one process up to rounding, batch norm included: its statistics are
those of the whole batch. Dropout draws other numbers. Process 0 writes; all read.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Forward = Callable[[Tensor], Tensor]  # x [B, ...] -> outputs [B, ...]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if _several() else 0


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def launched() -> int:
    """How many processes `torchrun` has started, of which this is one; else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that `torchrun` has started; alone it does nothing.

    Only process 0 prints to stdout. Process i of a machine uses GPU i if there are any.
    """
    if launched() < 2 or _several():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        with contextlib.ExitStack() as stack:
            if rank() > 0:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield
    finally:
        dist.destroy_process_group()


def rows(n: int) -> slice:
    """The part of n rows that is this process's; parts differ by one row at most.

    >>> rows(5)  # alone
    slice(0, 5, None)
    """
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def equal_part(batch: Tensor) -> Tensor:
    """This process's part of a batch along its last dimension, as large as the others.

    Raises ValueError if it cannot be divided.
    """
    n = batch.shape[-1]
    if n % count():
        raise ValueError(
            f"batch {n} cannot be divided among {count()} processes: take a multiple"
        )
    return batch[..., rows(n)]


def shared(model: nn.Module) -> Forward:
    """The model's forward pass, of which each process does a part.

    Raises ValueError for normalisation whose statistics cannot be shared.
    """
    return model if count() == 1 else Shared(model)


class Shared:
    """Calls a model on a part of the batch; returns the outputs of the whole batch."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.rows: slice | None = None  # in a call
        self.n = 0
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                if type(module) not in NORMS:
                    raise ValueError(
                        f"{name}: {type(module).__name__} cannot be shared by "
                        "processes: use backend masked, or a model without batch norm"
                    )
                module.register_forward_pre_hook(self._before_norm)
                module.register_forward_hook(self._after_norm)

    def __call__(self, x: Tensor) -> Tensor:
        n = len(x)
        if n < count():
            raise ValueError(
                f"{n} examples cannot be divided among {count()} processes"
            )
        self.rows, self.n = rows(n), n
        try:
            return _Gather.apply(self.model(x[self.rows]), self.rows, n, True)
        finally:
            self.rows = None

    def _before_norm(self, module: nn.Module, args: tuple[Tensor]) -> Any:
        """Statistics are those of the whole batch."""
        if self.rows is not None and module.training:
            return (_Gather.apply(args[0], self.rows, self.n, False), *args[1:])
        return None

    def _after_norm(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        if self.rows is not None and module.training:
            return output[self.rows]
        return None


class _Gather(torch.autograd.Function):
    """Parts [b, ...] of all processes -> the whole [n, ...].

    Backward: where every process goes on with the same (`alike`), each has the gradient
    of the whole; times the number of processes, since gradients are averaged. Else the
    gradients that the processes found are added up.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, rows: slice, n: int, alike: bool) -> Tensor:
        ctx.rows, ctx.alike = rows, alike
        whole = torch.zeros(n, *part.shape[1:], dtype=part.dtype, device=part.device)
        whole[rows] = part
        dist.all_reduce(whole)
        return laid_out(whole, like=part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if ctx.alike:
            return grad[ctx.rows] * count(), None, None, None
        whole = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return laid_out(whole[ctx.rows], like=grad), None, None, None


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x, with its dimensions in memory in the same order as those of `like`.

    Batch norm of channels that lie innermost rounds otherwise than of outermost ones,
    and where an activation is near 0 that decides whether it has a gradient.

    >>> inner = torch.zeros(2, 5, 3).transpose(1, 2)
    >>> laid_out(torch.zeros(4, 3, 5), like=inner).stride()
    (15, 1, 3)
    """
    order = sorted(range(x.dim()), key=lambda i: (-like.stride(i), i))
    back = sorted(range(x.dim()), key=order.__getitem__)
    return x.permute(order).contiguous().permute(back)


@torch.no_grad()
def average(parameters: Iterable[nn.Parameter], *others: Tensor) -> None:
    """Replaces gradients, and other tensors, by their means over the processes."""
    if count() == 1:
        return
    tensors = [p.grad for p in parameters if p.grad is not None]
    tensors += others
    for kind in dict.fromkeys((t.dtype, t.device) for t in tensors):
        some = [t for t in tensors if (t.dtype, t.device) == kind]
        flat = torch.cat([t.flatten() for t in some]).div_(count())
        dist.all_reduce(flat)
        for tensor, mean in zip(
            some, flat.split([t.numel() for t in some]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))


def gathered(part: np.ndarray, n: int) -> np.ndarray:
    """Rows [n, ...] of all processes, from the `rows(n)` of each."""
    if count() == 1:
        return part
    whole = torch.zeros((n, *part.shape[1:]), dtype=torch.from_numpy(part).dtype)
    whole[rows(n)] = torch.from_numpy(part)
    dist.all_reduce(whole)
    return whole.numpy()
