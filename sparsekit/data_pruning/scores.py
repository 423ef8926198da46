"""Scores of one batch: how hard each example is for a model. Larger = harder.

Each function takes a model and a batch and returns one number an example, [B]. The
model is put into evaluation mode for the call and back afterwards, and nothing else of
it changes: dropout is off, batch norm uses its running statistics. The losses are
summed, so a score does not depend on the batch around the example. `score` runs any of
them over a data set.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.data_pruning.per_sample import gradient_norms


def el2n(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Length of the error vector: ||softmax(f(x)) - onehot(y)||_2, in [0, sqrt(2)].

    It is also the gradient's norm with respect to the last bias.

    Args:
        model: trained for an epoch at least; returns logits [B, K].
        inputs: [B, ...]; targets: [B] int64, 0 ... K - 1.

    Raises:
        ValueError: for logits that are not [B, K] or not finite, or targets that are no
            classes.

    >>> model = torch.nn.Identity()
    >>> el2n(model, torch.zeros(1, 4), torch.tensor([2]))  # sqrt(1 - 1/4)
    tensor([0.8660])

    Source: Paul, Ganguli, Dziugaite 2021, arXiv 2107.07075, definition 2.2. There it is
    averaged over ten or more trainings; average the scores of yours.
    """
    logits = _logits(model, inputs, targets)
    error = logits.softmax(1) - F.one_hot(targets, logits.shape[1])
    return error.norm(dim=1)


def grand(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    params: str | Collection[str] = "all",
    masks: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Norm of the loss gradient, ||d CE(f(x), y) / d w||_2, exact, in one pass.

    Args:
        model: a classifier that returns logits [B, K]; its layers as in
            `per_sample.gradient_norms`, which raises for others.
        inputs: [B, ...]; targets: [B] int64.
        params: "all"; "last", the layer that makes the logits, which takes a forward
            pass only; or names of parameters.
        masks: {parameter name: bool mask} of a sparse model: entries that count.

    Raises:
        ValueError: as `gradient_norms`, and for "last" if the logits do not come from a
            linear layer.

    >>> model = torch.nn.Linear(2, 2)
    >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    >>> x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([0])
    >>> grand(model, x, y), grand(model, x, y, params="last")  # sqrt(1/2) sqrt(25 + 1)
    (tensor([3.6056]), tensor([3.6056]))

    Source: Paul, Ganguli, Dziugaite 2021, arXiv 2107.07075, definition 2.1.
    At initialisation it ranks examples by the length of the input, not by their
    difficulty: Kirsch 2023, arXiv 2303.14753. Train first.
    """
    if params == "last":
        return _last_layer_norms(model, inputs, targets, masks or {})
    if isinstance(params, str) and params != "all":
        raise ValueError(f"params is 'all', 'last' or names, got {params!r}")
    names = None if isinstance(params, str) else params
    _logits(model, inputs[:1], targets[:1])
    with evaluating(model):
        return gradient_norms(model, inputs, targets, params=names, masks=masks)


def margin(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """max over i != y of p_i, minus p_y; in [-1, 1], above 0 if the example is wrong.

    >>> margin(torch.nn.Identity(), torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor([-0.7616])
    """
    return -_margins(_logits(model, inputs, targets).softmax(1), targets)


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the example, in nats.

    >>> loss(torch.nn.Identity(), torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """
    logits = _logits(model, inputs, targets)
    return F.cross_entropy(logits, targets, reduction="none")


def least_confidence(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """1 - max p, in [0, 1 - 1/K]; the targets are not used.

    >>> x = torch.zeros(1, 4)
    >>> least_confidence(torch.nn.Identity(), x, torch.tensor([0]))
    tensor([0.7500])
    """
    return 1 - _logits(model, inputs, targets).softmax(1).amax(1)


def entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """-sum p log p, in nats, in [0, log K]; the targets are not used.

    >>> entropy(torch.nn.Identity(), torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931])
    """
    return torch.special.entr(_logits(model, inputs, targets).softmax(1)).sum(1)


def input_norm(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """||x||_2: a control, which needs no model.

    >>> x = torch.tensor([[3.0, 4.0]])
    >>> input_norm(torch.nn.Identity(), x, torch.tensor([0]))
    tensor([5.])
    """
    return inputs.flatten(1).float().norm(dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with evaluating(model):
        logits = model(inputs)
    _require_classes(logits, targets)
    return logits.float()


def _require_classes(logits: Tensor, targets: Tensor) -> None:
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            "scores need logits [B, K] and targets [B], got "
            f"{list(logits.shape)} and {list(targets.shape)}"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are classes, int64, got {targets.dtype}")
    if len(targets) == 0:
        raise ValueError("the batch is empty")
    if int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
        raise ValueError(
            f"targets are classes 0 ... {logits.shape[1] - 1}, got "
            f"{int(targets.min())} ... {int(targets.max())}"
        )
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        raise ValueError(
            f"the model's outputs are NaN or infinite for {int((~finite).sum())} of "
            f"{len(logits)} examples, first for number {int((~finite).nonzero()[0])}"
        )


def _margins(probabilities: Tensor, targets: Tensor) -> Tensor:
    """p_y - max of the others."""
    own = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    others = probabilities.scatter(1, targets.unsqueeze(1), -torch.inf).amax(1)
    return own - others


@torch.no_grad()
def _last_layer_norms(
    model: nn.Module, inputs: Tensor, targets: Tensor, masks: Mapping[str, Tensor]
) -> Tensor:
    """EL2N times the length of (h, 1), h the input of the last linear layer."""
    made: list[tuple[nn.Linear, Tensor, Tensor]] = []
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    handles = [
        m.register_forward_hook(lambda m, args, out: made.append((m, args[0], out)))
        for m in linear
    ]
    try:
        with evaluating(model):
            logits = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    _require_classes(logits, targets)
    last = [(m, h) for m, h, out in made if out is logits]
    if not last:
        raise ValueError(
            "params='last' needs a model whose logits come straight from an nn.Linear: "
            "name the parameters of your last layer through params=[...]"
        )
    layer, hidden = last[0]
    name = next(n for n, module in model.named_modules() if module is layer)
    error = logits.float().softmax(1) - F.one_hot(targets, logits.shape[1])
    squares, prefix = hidden.float().square(), f"{name}." if name else ""
    weights = masks.get(f"{prefix}weight")
    if weights is None:
        total = error.square().sum(1) * squares.sum(1)
    else:
        total = (error.square() @ weights.float() * squares).sum(1)
    if layer.bias is not None:
        total += error.square().sum(1)
    return total.sqrt()
