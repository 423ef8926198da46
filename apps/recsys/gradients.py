"""Loss and gradients of a batch: step by step, or recorded as a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from apps.common import processes
from apps.recsys.models.network import Network

Gradients = Callable[[Tensor], Tensor]  # batch -> loss; sets the parameters' .grad


def prepared(
    network: Network, optimizer: Optimizer, shape: tuple[int, ...]
) -> Gradients:
    """Recorded on a GPU if the network allows it, else eager. shape: of a batch.

    Several processes compute a part of the batch each: its loss is a mean.
    """
    if network.device.type == "cuda" and network.capturable:
        zeros = torch.zeros(shape, dtype=torch.int64, device=network.device)
        run = recorded(network, optimizer, processes.equal_part(zeros))
    else:
        run = eager(network, optimizer)
    return run if processes.count() == 1 else divided(run, network)


def divided(run: Gradients, network: Network) -> Gradients:
    """Loss and gradients of the whole batch, from the parts of all processes."""

    def run_part(batch: Tensor) -> Tensor:
        loss = run(processes.equal_part(batch).contiguous()).clone()
        processes.average(network.parameters(), loss)
        return loss

    return run_part


def eager(network: Network, optimizer: Optimizer) -> Gradients:
    """Loss and gradients as PyTorch runs them."""

    def run(batch: Tensor) -> Tensor:
        loss = network.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    return run


def recorded(network: Network, optimizer: Optimizer, batch: Tensor) -> Gradients:
    """The same work, recorded once and replayed: one launch a step.

    batch: any on the GPU; every later one must have its shape. The network must be
    `capturable`. The returned loss and the gradients are overwritten by the next call.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries prepare themselves before the recording
        for _ in range(3):
            eager(network, optimizer)(batch)
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()  # so that gradients are written in the graph, not added to
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = network.loss(batch)
        loss.backward()
    gradients = [(p, p.grad) for p in network.parameters()]
    loss = loss.detach()

    def run(new: Tensor) -> Tensor:
        batch.copy_(new)
        graph.replay()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return loss

    return run
