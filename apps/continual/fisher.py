"""The diagonal of the Fisher information, from gradients of single examples."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from apps.continual.strategy import evaluating

CHUNK = 32  # examples whose gradients are in memory at once


def diagonal_fisher(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    restrict: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """F(w) = mean over examples of (d log p(y | x) / d w)^2, for every parameter.

    The square is taken of each example's gradient: the gradient of the mean loss,
    squared, is something else, and near 0 for a trained model.

    Args:
        model: evaluated in evaluation mode, and not changed.
        x: [N, ...].
        y: [N] labels: the empirical Fisher. None: the expectation over the model's own
            answers, sum_c p_c (d log p_c / d w)^2, the Fisher itself; K times the work.
        restrict: changes logits [1, K] before the softmax.

    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> diagonal_fisher(model, torch.tensor([[2.0]]))["weight"].flatten()  # p(1-p) x^2
    tensor([1., 1.])

    Kirkpatrick et al.: Overcoming catastrophic forgetting in neural networks, 2017.
    """
    weights = {name: p.detach() for name, p in model.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in weights.items()}

    def log_likelihood(values: dict[str, Tensor], one: Tensor, c: Tensor) -> Tensor:
        logits = functional_call(model, values, (one[None],))
        logits = logits if restrict is None else restrict(logits)
        return -F.cross_entropy(logits, c[None])

    gradients = vmap(grad(log_likelihood), in_dims=(None, 0, 0))
    with evaluating(model):
        for start in range(0, len(x), CHUNK):
            part = x[start : start + CHUNK]
            if y is not None:
                answers = [(y[start : start + CHUNK], torch.ones(len(part)))]
            else:
                logits = model(part)
                logits = logits if restrict is None else restrict(logits)
                p = logits.softmax(1)
                answers = [
                    (torch.full((len(part),), c, device=x.device), p[:, c])
                    for c in range(p.shape[1])
                    if bool((p[:, c] > 0).any())
                ]
            for labels, weight in answers:
                for name, g in gradients(weights, part, labels).items():
                    squares = g.flatten(1).square()
                    mean = (weight.to(squares) @ squares) / len(x)
                    total[name] += mean.view_as(total[name])
    return total
