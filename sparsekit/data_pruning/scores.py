"""Scores of one batch: how hard each example is for a model. Larger = harder.

Each function takes a model and a batch and returns one number an example, [B]. The
model is put into evaluation mode for the call and back afterwards, and nothing else of
it changes: dropout is off, batch norm uses its running statistics. The losses are
summed, so a score does not depend on the batch around the example. `score` runs any of
them over a data set.
"""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.data_pruning.per_sample import gradient_norms
from sparsekit.modes import in_mode


def el2n(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Length of the error vector: ||softmax(f(x)) - onehot(y)||_2, in [0, sqrt(2)].

    It is also the gradient's norm with respect to the last bias.

    Args:
        model: trained for an epoch at least; returns logits [B, K].
        inputs: [B, ...]; targets: [B] int64, 0 ... K - 1.

    Raises:
        ValueError: for logits that are not [B, K] or not finite, outputs that are
            probabilities, or targets that are no classes.

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
    one_by_one: bool = False,
) -> Tensor:
    """Norm of the loss gradient, ||d CE(f(x), y) / d w||_2, exact, in one pass.

    Args:
        model: a classifier that returns logits [B, K]; its layers as in
            `per_sample.gradient_norms`, which raises for others.
        inputs: [B, ...]; targets: [B] int64.
        params: "all" that require a gradient; "last", the linear layer that makes the
            logits, which takes hardly more than a forward pass; or names.
        masks: {parameter name: bool mask} of a sparse model: entries that count.
        one_by_one: a backward pass for each example, for models with other layers.

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
    if isinstance(params, str) and params not in ("all", "last"):
        raise ValueError(f"params is 'all', 'last' or names, got {params!r}")
    names = None if params == "all" else params
    if params == "last":
        names = _last_layer(model, inputs[:1])
    with in_mode(model, training=False):
        return gradient_norms(
            model,
            inputs,
            targets,
            loss=_cross_entropy,
            params=names,
            masks=masks,
            one_by_one=one_by_one,
        )


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


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with in_mode(model, training=False):
        logits = model(inputs)
    _require_classes(logits, targets)
    return logits if logits.dtype == torch.float64 else logits.float()


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
    # Logits that are not negative and add up to 1, for every example, are none.
    if logits.min() >= 0 and (logits.float().sum(1) - 1).abs().max() < 1e-4:
        raise ValueError(
            "the model returns probabilities, and scores apply softmax to logits: "
            "leave the softmax out of the model, or let it return the logarithm"
        )


def _margins(probabilities: Tensor, targets: Tensor) -> Tensor:
    """p_y - max of the others."""
    own = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    others = probabilities.scatter(1, targets.unsqueeze(1), -torch.inf).amax(1)
    return own - others


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    _require_classes(logits, targets)
    return F.cross_entropy(logits, targets, reduction="none")


@torch.no_grad()
def _last_layer(model: nn.Module, sample: Tensor) -> list[str]:
    """Names of the parameters of the linear layer that makes the logits."""
    made: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, output: made.append((m, output)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with in_mode(model, training=False), torch.random.fork_rng(devices=[]):
            logits = model(sample)
    finally:
        for handle in handles:
            handle.remove()
    known = {id(p): name for name, p in model.named_parameters()}
    for layer, output in made:
        if output is logits:
            return [known[id(p)] for p in layer.parameters()]
    raise ValueError(
        "params='last' needs a model whose logits come straight from an nn.Linear: "
        "name the parameters of your last layer through params=[...]"
    )
