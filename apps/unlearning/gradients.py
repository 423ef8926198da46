"""Gradients and curvature of a trained model, over the weights that exist.

All in evaluation mode (batch norm by its running statistics) and on a copy, in float64
unless said otherwise. A vector has one entry for each parameter entry that exists, [P].
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from apps.common.images import Split
from apps.unlearning.fitting import Loss


class Curvature:
    """Derivatives of the loss at the model's weights.

    Args:
        model: not changed.
        masks: {name: bool}; absent weights are no coordinates.
        loss: (outputs, y) -> [B].
        dtype: float64; float32 for networks on a GPU, where float64 takes many times
            as long.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> squared = Curvature(model, {}, lambda z, y: (z.squeeze(1) - y).square() / 2)
    >>> squared.gradient(Split(torch.tensor([[3.0, 4.0]]), torch.tensor([1])))
    tensor([-3., -4.], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        loss: Loss,
        dtype: torch.dtype = torch.float64,
    ):
        self.model = copy.deepcopy(model).to(dtype).eval()
        self.loss, self.dtype = loss, dtype
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach() for n, p in named.items()}
        self.masks = {n: masks[n] for n in self.weights if n in masks}
        self.sizes = {
            n: int(self.masks[n].sum()) if n in self.masks else w.numel()
            for n, w in self.weights.items()
        }

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Entries of {name: tensor} that exist, [P]."""
        parts = [
            t[self.masks[n]] if n in self.masks else t.reshape(-1)
            for n, t in ((n, tensors[n]) for n in self.weights)
        ]
        return torch.cat(parts)

    def tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """{name: tensor} of a vector [P], zero where a weight is absent."""
        found, parts = {}, vector.split(list(self.sizes.values()))
        for (name, weight), part in zip(self.weights.items(), parts, strict=True):
            full = torch.zeros_like(weight)
            if name in self.masks:
                full[self.masks[name]] = part
            else:
                full = part.view_as(weight)
            found[name] = full
        return found

    def outputs(self, weights: Mapping[str, Tensor], x: Tensor):
        """What the model answers with other weights in place."""
        return torch.func.functional_call(self.model, dict(weights), (self._in(x),))

    def gradient(self, split: Split, batch: int = 500) -> Tensor:
        """Gradient of the mean loss over a set, [P]."""
        total = torch.zeros(sum(self.sizes.values()), dtype=self.dtype)
        for x, y in zip(split.x.split(batch), split.y.split(batch), strict=True):
            leaves = {n: w.clone().requires_grad_() for n, w in self.weights.items()}
            summed = self.loss(self.outputs(leaves, x), y).sum()
            found = torch.autograd.grad(
                summed, list(leaves.values()), materialize_grads=True
            )
            grads = dict(zip(leaves, found, strict=True))
            total = total.to(x.device) + self.vector(grads)
        return total / len(split)

    def sample_gradients(self, split: Split, batch: int = 50) -> Tensor:
        """The gradient of every record's loss, [N, P]: N P numbers in memory."""

        def one(weights, x, y):
            return self.loss(self.outputs(weights, x[None]), y[None]).sum()

        each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))
        size = len(split), sum(self.sizes.values())
        rows = torch.empty(size, dtype=self.dtype, device=split.x.device)
        for first in range(0, len(split), batch):
            x, y = split.x[first : first + batch], split.y[first : first + batch]
            grads = each(self.weights, self._in(x), y)
            for i in range(len(y)):
                row = {n: g[i] for n, g in grads.items()}
                rows[first + i] = self.vector(row)
        return rows

    def hessian(self, split: Split) -> Callable[[Tensor], Tensor]:
        """v -> H v, H the Hessian of the mean loss."""

        def product(v: Tensor) -> Tensor:
            leaves = {n: w.clone().requires_grad_() for n, w in self.weights.items()}
            mean = self.loss(self.outputs(leaves, split.x), split.y).mean()
            grads = torch.autograd.grad(
                mean, list(leaves.values()), create_graph=True, materialize_grads=True
            )
            dot = (self.vector(dict(zip(leaves, grads, strict=True))) * v).sum()
            second = torch.autograd.grad(
                dot, list(leaves.values()), materialize_grads=True
            )
            return self.vector(dict(zip(leaves, second, strict=True)))

        return product

    def gauss_newton(self, split: Split) -> Callable[[Tensor], Tensor]:
        """v -> J' H_out J v, the mean over a set.

        J is the derivative of the outputs by the weights, H_out the loss's Hessian by
        the outputs. Never negative for a convex loss; for softmax and cross-entropy it
        is the Fisher matrix.
        """

        def outputs(weights):
            return self.outputs(weights, split.x)

        def slope(z):
            return torch.func.grad(lambda z: self.loss(z, split.y).mean())(z)

        z, pull = torch.func.vjp(outputs, self.weights)

        def product(v: Tensor) -> Tensor:
            _, moved = torch.func.jvp(outputs, (self.weights,), (self.tensors(v),))
            _, bent = torch.func.jvp(slope, (z,), (moved,))
            return self.vector(pull(bent)[0])

        return product

    def _in(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) if x.is_floating_point() else x


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    v: Tensor,
    damping: float,
    tolerance: float = 1e-10,
    limit: int = 1000,
) -> tuple[Tensor, int, float]:
    """x with (A + damping I) x = v; steps taken; final |residual| / |v|.

    A must be positive definite with the damping. Raises ValueError if it is not, which
    is found by a direction of negative curvature.

    >>> a = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> conjugate_gradients(lambda v: a @ v, torch.ones(2, dtype=torch.float64), 1.0)[0]
    tensor([0.3333, 0.5000], dtype=torch.float64)

    Hestenes & Stiefel 1952.
    """
    x, residual = torch.zeros_like(v), v.clone()
    direction, size = residual.clone(), float(v @ v)
    target = tolerance**2 * size
    steps = 0
    for steps in range(1, limit + 1):
        if size <= target:
            steps -= 1
            break
        image = product(direction) + damping * direction
        bend = float(direction @ image)
        if bend <= 0:
            raise ValueError(
                f"the curvature is negative ({bend:.3g}) with damping {damping}: raise "
                "damping, or use curvature = gauss-newton"
            )
        x += size / bend * direction
        residual -= size / bend * image
        size, before = float(residual @ residual), size
        direction = residual + size / before * direction
    return x, steps, (size / max(float(v @ v), 1e-300)) ** 0.5


def dual_solve(rows: Tensor, v: Tensor, damping: float) -> Tensor:
    """x with (damping I + rows' rows / n) x = v, by an n x n system (Woodbury):

        x = (v - rows' (n damping I + rows rows')^-1 rows v) / damping

    rows: [n, P]; damping > 0. The system is solved in float64.

    >>> rows = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    >>> dual_solve(rows, torch.ones(2, dtype=torch.float64), 1.0)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    n = len(rows)
    gram = (rows @ rows.T).double()
    gram.diagonal().add_(n * damping)
    right = (rows @ v).double()[:, None]
    small = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
    return (v - rows.T @ small.squeeze(1).to(rows.dtype)) / damping
