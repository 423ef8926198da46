"""Embedding tables in values mode: rows that store their alive entries only."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.execution.kernels import embedding as kernels
from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.linear import HALF, derive, product


class SparseEmbedding(SparseLayer):
    """Rows of a table of which only the alive entries exist: y_i = W[indices_i].

    A row may have as few entries as its budget allows, none included. Forward and
    backward take memory for the rows that were read and for the values that exist,
    never for rows x dim. The gradient of `values` is dense, (nnz,), and 0 in rows that
    were not read, so that every optimizer takes it; Adam moves such rows on by their
    moments, as it does those of a dense table.

    Args:
        weight: (rows, dim).
        mask: bool, like weight; True = the entry exists.
        padding_idx: a row that gets no gradient, or None.

    Raises:
        IndexError: for an index outside the table.
        ValueError: for indices that are no integers, or a table that is not on the CPU.

    >>> table = nn.Embedding(3, 4)
    >>> table.weight.data = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 0], [0, 3, 4, 0]])
    >>> sparse = SparseEmbedding.from_dense(table)
    >>> sparse(torch.tensor([2, 0])).tolist()
    [[0.0, 3.0, 4.0, 0.0], [1.0, 0.0, 0.0, 2.0]]
    >>> sparse.scores(torch.tensor([[1.0, 10, 100, 1000]])).tolist()
    [[2001.0, 0.0, 430.0]]
    """

    by_default = False  # a Sparsifier leaves plain embeddings dense, too

    def __init__(self, weight: Tensor, mask: Tensor, padding_idx: int | None = None):
        if weight.dim() != 2 or weight.device.type != "cpu":
            raise ValueError(
                "SparseEmbedding takes a table (rows, dim) on the CPU, got "
                f"{tuple(weight.shape)} on {weight.device}"
            )
        rows = len(weight)
        if padding_idx is not None and not -rows <= padding_idx < rows:
            raise ValueError(f"padding_idx must be in [-{rows}, {rows}): {padding_idx}")
        self.padding_idx = None if padding_idx is None else padding_idx % rows
        self._scoring = False
        super().__init__(weight, mask)

    @classmethod
    def from_dense(
        cls, module: nn.Embedding, mask: Tensor | None = None
    ) -> "SparseEmbedding":
        """A table with the entries of `module` that `mask` keeps.

        Args:
            mask: bool, like the weight; default: the entries that are not 0.

        Raises:
            ValueError: for options that have no sparse form, with the option.
        """
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(module, option):
                raise ValueError(
                    f"{module} has no sparse form: {option} is set; keep it dense"
                )
        weight = module.weight
        mask = weight != 0 if mask is None else mask
        return cls(weight, mask, module.padding_idx).train(module.training)

    def to_module(self) -> nn.Embedding:
        """The dense table with the same entries."""
        module = nn.utils.skip_init(
            nn.Embedding, *self.dense_shape, self.padding_idx, dtype=self.values.dtype
        )
        with torch.no_grad():
            module.weight.copy_(self.to_dense())
        module.weight.requires_grad_(self.values.requires_grad)
        return module.train(self.training)

    def _derive(self) -> None:
        if self._scoring:
            derive(self)

    def forward(self, indices: Tensor) -> Tensor:
        """(...) integers -> (..., dim)."""
        if indices.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"indices must be int64 or int32, got {indices.dtype}")
        if indices.device.type != "cpu" or self.values.device.type != "cpu":
            raise ValueError(
                f"{self} works on the CPU; it is on {self.values.device}, its indices "
                f"on {indices.device}: call .cpu()"
            )
        padding = -1 if self.padding_idx is None else self.padding_idx
        dim = self.dense_shape[1]
        out = _embedding(
            indices.reshape(-1).long(), self.values, self.probe, self.crow, self.col,
            dim, padding,
        )  # fmt: skip
        return out.view(*indices.shape, dim)

    def scores(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., rows): x W^T, as a sparse linear layer computes it.

        The first call derives an index of 8 bytes a value; values are not copied.
        """
        if not self._scoring:
            self._scoring = self._stale = True
        return product(self, x)

    def extra_repr(self) -> str:
        padding = self.padding_idx
        end = "" if padding is None else f", padding_idx={padding}"
        return super().extra_repr() + end


# ---- the operations ------------------------------------------------------------------


@torch.library.custom_op("sparsekit::embedding", mutates_args=(), device_types="cpu")
def _embedding(
    indices: Tensor,
    values: Tensor,
    probe: Tensor | None,
    crow: Tensor,
    col: Tensor,
    dim: int,
    padding: int,
) -> Tensor:
    """(n,) int64 -> (n, dim)"""
    rows = len(crow) - 1
    bad = kernels.first_outside(indices.numpy(), rows)
    if bad >= 0:
        raise IndexError(
            f"index {int(indices[bad])} at position {bad} is outside a table of {rows} "
            "rows"
        )
    out = values.new_empty(len(indices), dim)
    stored, target = values.detach(), out
    if values.dtype in HALF:  # moved as bits: numba knows no such numbers
        stored, target = stored.view(torch.int16), out.view(torch.int16)
    kernels.gather(
        indices.numpy(), stored.numpy(), crow.numpy(), col.numpy(), target.numpy()
    )
    return out


@_embedding.register_fake
def _(
    indices: Tensor, values: Tensor, probe: Any, crow: Any, col: Any, dim: int, pad: int
) -> Tensor:
    return values.new_empty(len(indices), dim)


@torch.library.custom_op(
    "sparsekit::embedding_gradient", mutates_args=(), device_types="cpu"
)
def _gradient(
    grad: Tensor, indices: Tensor, crow: Tensor, col: Tensor, padding: int
) -> Tensor:
    """(n, dim) -> (nnz,)"""
    wide = grad.float() if grad.dtype in HALF else grad
    out = wide.new_empty(len(col))
    arrays = indices.numpy(), wide.detach().numpy(), crow.numpy(), col.numpy()
    kernels.accumulate(*arrays, padding, out.numpy())
    return out.to(grad.dtype)


@_gradient.register_fake
def _(grad: Tensor, indices: Tensor, crow: Tensor, col: Tensor, pad: int) -> Tensor:
    return grad.new_empty(len(col))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, _, _, crow, col, _, ctx.padding = inputs
    ctx.save_for_backward(indices, crow, col)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    indices, crow, col = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 7
    if ctx.needs_input_grad[1]:
        grads[1] = _gradient(grad.contiguous(), indices, crow, col, ctx.padding)
    if ctx.needs_input_grad[2]:
        grads[2] = torch.ops.aten.embedding_dense_backward(
            grad.contiguous(), indices, len(crow) - 1, ctx.padding, False
        )
    return tuple(grads)


_embedding.register_autograd(_backward, setup_context=_keep)
