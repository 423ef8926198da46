"""What a method is, gets and answers, held to the contract before anything moves."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsekit.dense_gradient import is_distributed
from sparsekit.masks import pack, unpack
from sparsekit.method import Masks, Method
from sparsekit.weights import Weight


def require_method(method: Any) -> None:
    """Raises TypeError for what is no method, or has no function to allocate by."""
    if not isinstance(method, Method):
        raise TypeError(
            f"method must be a sparsekit.method.Method, got {method!r}; a class needs "
            "its arguments: RigL(sparsity=0.9)"
        )
    allocation = getattr(method, "allocation", None)
    if allocation is not None and not callable(allocation):
        raise TypeError(
            "allocation must be a function, such as erk, uniform or by_layer({name: "
            f"sparsity}}) of sparsekit.allocation, got {allocation!r}"
        )


def require_finite(step: int, what: str, tensor: Tensor | None) -> None:
    """Raises ValueError for weights or gradients that no method can compare."""
    if tensor is not None and not torch.isfinite(tensor).all():
        raise ValueError(
            f"{what} has NaN or infinite entries in step {step}, so connections cannot "
            "be chosen; nothing was changed. Skip the step, or use attach() with a "
            "GradScaler, which skips it"
        )


def checked(who: str, new: Masks, weights: Mapping[str, Weight]) -> Masks:
    """The method's answer, validated, and equal on every process.

    Args:
        who: the method, as errors call it.

    Raises:
        TypeError, ValueError: naming the method and the weight.
    """
    if not isinstance(new, Mapping):
        raise TypeError(f"{who} must return {{name: bool mask}}, got {new!r}")
    if new.keys() != weights.keys():
        wrong = sorted(new.keys() ^ weights.keys())
        raise ValueError(f"{who} must return one mask a weight; differs in {wrong}")
    for name, weight in weights.items():
        mask = new[name]
        if not isinstance(mask, Tensor):
            raise TypeError(f"{who} must return a bool tensor for {name!r}")
        if mask.dtype != torch.bool or tuple(mask.shape) != weight.shape:
            raise ValueError(
                f"{who} must return a bool mask of shape {weight.shape} for "
                f"{name!r}, got {mask.dtype} {tuple(mask.shape)}"
            )
        frozen = weight.frozen()
        if frozen is not None and (frozen & ~mask.to(weight.device)).any():
            raise ValueError(
                f"{who} drops frozen weights of {name!r}: exclude it through "
                "params, or make them trainable first"
            )
    new = {name: new[name].to(weight.device) for name, weight in weights.items()}
    if is_distributed():
        new = {name: _from_rank_0(mask) for name, mask in new.items()}
    return new


def _from_rank_0(mask: Tensor) -> Tensor:
    packed = pack(mask)
    dist.broadcast(packed, src=0)
    return unpack(packed, mask.shape)
