"""Random search over sparse sub-networks: the baseline of architecture search."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch

from sparsekit.allocation import apportion, erk
from sparsekit.masks import count_active, topk_mask
from sparsekit.method import (
    Allocation,
    Context,
    Masks,
    Method,
    Shape,
    random_masks,
    require_sparsity,
    require_steps,
)
from sparsekit.scores import random


@dataclass(frozen=True)
class RandomSearch(Method):
    """Draws random masks and keeps the one with the lowest objective.

    Needs `Sparsifier(..., objective=lambda model: loss)`. The candidates share the
    model's current weights and are evaluated without training; with `candidates=1` it
    is `Static`, or a random choice of nodes.

    Args:
        sparsity: fraction of zeros over all masked tensors, in [0, 1).
        candidates: how many masks are drawn.
        allocation: (shapes, sparsity) -> active weights a tensor; unused with `nodes`.
        nodes: drop hidden units instead of connections. The masked tensors must be the
            weights of a chain of linear layers, in order. The number of active weights
            is the nearest to the budget that whole nodes can reach, see `node_counts`.

    Raises:
        ValueError: with `nodes`, naming the parameter that is not the next of a chain.

    Source: Farahani 2024, arXiv 2403.08265.
    Differs from the paper: searches over connections by default; with `nodes` every
    hidden layer keeps the same share of its nodes. Read from the abstract, so details
    of its search may differ too.
    """

    sparsity: float
    candidates: int = 16
    allocation: Allocation = erk
    nodes: bool = False

    def __post_init__(self) -> None:
        require_sparsity(self.sparsity)
        require_steps(candidates=self.candidates)

    @torch.no_grad()
    def start(self, context: Context) -> Masks:
        choose = node_counts if self.nodes else self.allocation
        draw = node_masks if self.nodes else random_masks
        counts = choose(context.shapes, self.sparsity)
        best, lowest = draw(context, counts), float("inf")
        for i in range(self.candidates):
            masks = best if i == 0 else draw(context, counts)
            values = {name: w * masks[name] for name, w in context.weights.items()}
            loss = float(context.objective(values, training=False))
            if loss < lowest:
                best, lowest = masks, loss
        return best

    def sparsity_at(self, step: int) -> float:
        return self.sparsity


def node_counts(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, int]:
    """Outputs that each linear layer of a chain keeps; all of the last one's.

    With k_l of n_l nodes in hidden layer l, the inputs k_0 and the outputs k_L whole,
    sum_l k_l k_(l-1) weights are active. k_l is n_l's share of K hidden nodes, by
    largest remainder and at least 1; K is chosen such that the count is nearest to the
    budget, and the smaller of two that are equally near.

    Args:
        shapes: (out, in) of each layer, from the input to the output.
        sparsity: fraction of zeros over all of `shapes`, in [0, 1).

    Raises:
        ValueError: naming the first tensor that is no matrix, or whose inputs are not
            the outputs of the one before; for fewer than two tensors.

    >>> node_counts({"a": (10, 7), "b": (5, 10), "c": (2, 5)}, 0.6)  # 49; budget 52
    {'a': 5, 'b': 2, 'c': 2}
    """
    _require_chain(shapes)
    *hidden, last = shapes
    widths = {name: shapes[name][0] for name in hidden}
    nodes = sum(widths.values())
    total = sum(out * n_in for out, n_in in shapes.values())
    budget = count_active(total, sparsity)

    def kept(n_kept: int) -> dict[str, int]:
        real = {name: width * n_kept / nodes for name, width in widths.items()}
        return apportion(real, n_kept, widths) | {last: shapes[last][0]}

    def active(n_kept: int) -> int:
        sizes = [shapes[hidden[0]][1], *kept(n_kept).values()]
        return sum(n_in * out for n_in, out in pairwise(sizes))

    reachable = range(len(hidden), nodes + 1)
    return kept(min(reachable, key=lambda n: (abs(active(n) - budget), n)))


def node_masks(context: Context, counts: Mapping[str, int]) -> Masks:
    """Masks of a chain that keeps `counts` random outputs of each layer.

    A node that is dropped loses its row here and its column in the layer after.
    """
    masks, before = {}, None
    for name, weight in context.weights.items():
        noise = random(weight.shape[:1], context.generator)
        rows = topk_mask(noise, counts[name]).to(weight.device)
        columns = torch.ones_like(weight[0], dtype=torch.bool)
        masks[name] = rows[:, None] & (columns if before is None else before)
        before = rows
    return masks


def _require_chain(shapes: Mapping[str, Shape]) -> None:
    fix = "leave it out through params, or search connections (nodes=False)"
    for name, shape in shapes.items():
        if len(shape) != 2:
            raise ValueError(
                f"nodes=True needs a chain of linear layers, but {name!r} has shape "
                f"{tuple(shape)}: {fix}"
            )
    for (before, first), (name, second) in pairwise(shapes.items()):
        if second[1] != first[0]:
            raise ValueError(
                f"nodes=True needs a chain of linear layers, but {name!r} takes "
                f"{second[1]} inputs and {before!r} before it has {first[0]} outputs: "
                f"{fix}"
            )
    if len(shapes) < 2:
        raise ValueError(
            f"nodes=True needs two linear layers or more to have hidden nodes, got "
            f"{list(shapes)}"
        )
