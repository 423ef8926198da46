"""A plain training, as short as scores need it, that records its trace."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparsekit.data_pruning.dynamics import TrainingTrace


class Numbered(Dataset[Any]):
    """(i, x, y) in place of (x, y), for examples among `members`; default all."""

    def __init__(self, dataset: Any, members: Tensor | None = None):
        self.dataset = dataset
        self.members = torch.arange(len(dataset)) if members is None else members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> tuple[int, Any, Any]:
        member = int(self.members[i])
        x, y = self.dataset[member]
        return member, x, y


def train(
    make: Callable[[], nn.Module],
    dataset: Any,
    *,
    epochs: int,
    seed: int,
    members: Tensor | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    device: str = "cpu",
) -> tuple[nn.Module, TrainingTrace | None]:
    """A model trained with AdamW and cross-entropy, in evaluation mode, and its trace.

    Args:
        make: the model, anew; called and trained under `seed`.
        dataset: dataset[i] is (x, y), y a class 0, 1, ...
        members: train on these examples only; then there is no trace.
        batch_size: about; batches are of nearly equal size, at least two examples,
            since batch norm cannot take one.

    The random state of the process is as it was afterwards.
    """
    numbered = Numbered(dataset, members)
    n_batches = max(1, min(-(-len(numbered) // batch_size), len(numbered) // 2))
    trace = TrainingTrace(len(dataset)) if members is None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        for epoch in range(epochs):
            order = torch.randperm(len(numbered)).tensor_split(n_batches)
            batches = [part.tolist() for part in order]
            for index, x, y in DataLoader(numbered, batch_sampler=batches):
                logits = model(x.to(device))
                optimizer.zero_grad()
                F.cross_entropy(logits, y.to(device)).backward()
                optimizer.step()
                if trace is not None:
                    trace.record(epoch, index, logits.cpu(), y)
    return model.eval(), trace
