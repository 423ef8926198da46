"""Relearn time: is the knowledge gone, or only hidden?

    steps(unlearned, forget, below=0.1) / steps(retrained, forget, below=0.1)

A model that only hides the forget set learns it again sooner than one that never saw
it: a ratio far below 1. Far above 1 the method has made the records harder to learn
than new ones, which gives them away as well.
"""

import copy

import torch
from torch import nn

from apps.common.images import Split
from apps.common.training import evaluate, freeze_batchnorm
from apps.unlearning.fitting import batches
from sparsekit.data_pruning.per_sample import cross_entropy


def steps(
    model: nn.Module,
    forget: Split,
    below: float,
    *,
    lr: float = 0.01,
    batch: int = 50,
    most: int = 1000,
    seed: int = 0,
) -> int | None:
    """Steps of SGD on the forget set until its mean loss is at most `below`.

    theta <- theta - lr grad CE(batch), without momentum, in passes over the forget set
    in an order that depends on the seed alone; batch norm keeps its statistics. The
    loss of the whole set is looked at before each step.

    Args:
        model: logits [B, K]; it is not changed.
        forget: records with the labels that they had in training.
        below: a loss in nats per record, say that of the original model; the same for
            all models that are compared.
        most: steps after which it gives up.

    Returns the number of steps, 0 if the loss is that low already, None after `most`.
    Raises ValueError for an empty set, or settings that are not positive.

    Source: Kurmanji et al. 2023, arXiv 2302.09880 (SCRUB), after Golatkar et al. 2020.
    Differs from their code: small steps, all records of the set in turn, no draws with
    replacement.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> line = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.zeros_(line.weight)
    >>> steps(line, Split(x, torch.tensor([0, 1])), below=0.6, lr=1.0)
    1
    """
    if len(forget) == 0:
        raise ValueError("there is no record to relearn")
    if not (below > 0 and lr > 0 and batch >= 1 and most >= 1):
        raise ValueError(
            f"below and lr must be positive, batch and most at least 1, got {below}, "
            f"{lr}, {batch} and {most}"
        )
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    done, epoch = 0, 0
    while True:
        for x, y in batches(forget, batch, seed, epoch, drop_last=False):
            if float(cross_entropy(evaluate(model, forget), forget.y).mean()) <= below:
                return done
            if done == most:
                return None
            model.train()
            freeze_batchnorm(model)
            optimizer.zero_grad()
            cross_entropy(model(x), y).mean().backward()
            optimizer.step()
            done += 1
        epoch += 1
