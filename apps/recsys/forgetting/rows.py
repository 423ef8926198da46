"""Networks without the rows of those who are forgotten."""

import numpy as np
import torch
from torch import Tensor

from apps.recsys.models.network import Network


def moved(
    old: Network, new: Network, shape: tuple[int, int], users: np.ndarray,
    items: np.ndarray,
) -> Network:  # fmt: skip
    """`new` with the weights of `old`, of users and items that stay; returns `new`.

    shape: users and items of `old`. users, items: their indices that stay, rising;
    `new` has as many. Tensors without such an axis are copied whole.
    """
    state = old.state_dict()
    new.load_state_dict(
        {name: kept(new, name, t, shape, users, items) for name, t in state.items()}
    )
    return new


def kept(
    network: Network, name: str, tensor: Tensor, shape: tuple[int, int],
    users: np.ndarray, items: np.ndarray,
) -> Tensor:  # fmt: skip
    """What stays of a tensor called `name`, or of its mask. Arguments as `moved`."""
    for own, axis, side in network.row_axes:
        if own == name:
            rows = {"users": users, "items": items}.get(side)
            if rows is None:  # both, users first
                rows = np.concatenate([users, items + shape[0]])
            index = torch.from_numpy(rows).to(tensor.device)
            return tensor.index_select(axis, index)
    return tensor
