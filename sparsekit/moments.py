"""What happens to optimizer state when connections move.

State is recognised by the weight's shape, never by the optimizer's type, so that
subclasses and new optimizers are covered.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Adagrad, Optimizer

# Averages of squared gradients in torch.optim. A zero here makes Adam's next steps too
# large, because its step count is one number for the whole tensor.
SECOND_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}
POLICIES = ("zero", "mean")


def require_policy(moments: str) -> None:
    if moments not in POLICIES:
        raise ValueError(f"moments must be one of {POLICIES}, got {moments!r}")


def shaped_state(
    optimizer: Optimizer, parameter: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the optimizer's state with the parameter's shape."""
    for name, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            yield name, value


@torch.no_grad()
def clear(optimizer: Optimizer, parameter: Tensor, where: Tensor) -> None:
    """Zero every moment at `where` (bool, the parameter's shape)."""
    for _, moment in shaped_state(optimizer, parameter):
        moment.masked_fill_(where, 0)


@torch.no_grad()
def fill_mean(
    optimizer: Optimizer, parameter: Tensor, grown: Tensor, old: Tensor
) -> None:
    """Second moments of grown weights := their mean over the weights in `old`.

    With zero moments the k-th Adam step after a return at step t is
    (1 - b1^k) / sqrt((1 - b2^k) / (1 - b2^(t+k))) learning rates long: up to 6.6 with
    the usual betas, in the 12th step. With the mean it starts at 0.1 and rises to 1.
    """
    if not old.any():
        return
    for name, moment in shaped_state(optimizer, parameter):
        if name in SECOND_MOMENTS:
            moment.masked_fill_(grown, moment[old].mean().item())


@torch.no_grad()
def reset(optimizer: Optimizer) -> None:
    """The state of an optimizer that has not stepped yet, step counts included."""
    optimizer.state.clear()  # made anew in the next step
    if isinstance(optimizer, Adagrad):  # the one that makes its state when it is built
        first = optimizer.defaults["initial_accumulator_value"]
        new = Adagrad(optimizer.param_groups, initial_accumulator_value=first)
        optimizer.state.update(new.state)
