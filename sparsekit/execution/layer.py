"""What every layer in values mode has: the weights that exist, and where they are."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

INDEX_MAX = torch.iinfo(torch.int32).max


class SparseLayer(nn.Module):
    """A layer that stores the alive weights only: values and their places.

    The weight is seen as a matrix with a row an output: `dense_shape[0]` rows of
    `prod(dense_shape[1:])` columns. Values lie row by row, columns ascending, which is
    the order of the flattened dense weight.

    Args:
        weight: dense, at least 2 dimensions; only its alive entries are kept.
        mask: bool, the same shape; True = the weight exists, whatever its value.

    Attributes:
        values: Parameter (nnz,), the alive weights.
        crow: (rows + 1,) int32, row r has values[crow[r] : crow[r + 1]].
        col: (nnz,) int32, the column of each value.
        dense_shape: shape of the dense weight.
        probe: None, or what collects the dense gradient, see `watch_dense_gradient`.

    Subclasses derive what their kernels need from `crow` and `col` in `_derive`, into
    buffers that are not saved.
    """

    by_default = True  # whether a Sparsifier takes it without being told so by name

    values: nn.Parameter
    crow: Tensor
    col: Tensor

    def __init__(self, weight: Tensor, mask: Tensor):
        super().__init__()
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"mask must be bool of shape {tuple(weight.shape)}, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        if weight.dim() < 2:
            raise ValueError(f"weight needs 2 dimensions, got {tuple(weight.shape)}")
        self.dense_shape = tuple(weight.shape)
        self.probe: Tensor | None = None
        self.values = nn.Parameter(
            weight.masked_select(mask),  # an index by it takes 8 times as much
            requires_grad=weight.requires_grad,
        )
        crow, col = _index(mask)
        self.register_buffer("crow", crow)
        self.register_buffer("col", col)
        self._stale = True
        if len(col) < mask.numel():  # a dense start is about to be pruned
            self.build()

    @abstractmethod
    def to_module(self) -> nn.Module:
        """The dense layer that computes the same, with the weight as `weight`."""

    # ---- the structure -----------------------------------------------------------

    @abstractmethod
    def _derive(self) -> None:
        """Rebuild what the kernels need from `crow` and `col`."""

    def hold(self, **arrays: Tensor) -> None:
        """Registers what was derived, in buffers that are not saved."""
        for name, array in arrays.items():
            self.register_buffer(name, array, persistent=False)

    def build(self) -> None:
        """Derives the kernels' indices, if the structure has changed since."""
        if self._stale:
            self._derive()
            self._stale = False

    @property
    def nnz(self) -> int:
        return len(self.values)

    @property
    def density(self) -> float:
        return self.nnz / _numel(self.dense_shape)

    def positions(self) -> Tensor:
        """(nnz,) int64, ascending: places of the values in the flattened weight."""
        counts = self.crow.diff().long()
        columns = _numel(self.dense_shape[1:])
        rows = torch.arange(len(counts), device=counts.device)
        return rows.repeat_interleave(counts) * columns + self.col

    def mask(self) -> Tensor:
        """bool, `dense_shape`: True where a weight exists."""
        return self.scatter(torch.ones_like(self.values, dtype=torch.bool))

    def to_dense(self) -> Tensor:
        """The dense weight, detached, 0 where none exists."""
        return self.scatter(self.values.detach())

    def scatter(self, values: Tensor) -> Tensor:
        """(nnz,) of any dtype -> `dense_shape`, 0 (False) where no weight exists."""
        dense = values.new_zeros(_numel(self.dense_shape))
        dense[self.positions()] = values
        return dense.view(self.dense_shape)

    @torch.no_grad()
    def move(self, mask: Tensor) -> Tensor:
        """Takes over a new structure. Kept weights keep their value, new ones are 0.

        In place while their number stays the same, so that optimizers and compiled
        graphs go on; else `values` stays the same Parameter with another length, and
        its gradient is dropped. Memory: for a moment some bytes an entry of
        `dense_shape`; what a method reads to choose the mask takes more.

        Args:
            mask: bool, `dense_shape`.

        Returns:
            source: (new nnz,) int64, where each value was before; -1 for a new one.
            `carry(old, source)` moves what belongs to the values in the same way.
        """
        if mask.dtype != torch.bool or tuple(mask.shape) != self.dense_shape:
            raise ValueError(
                f"mask must be bool of shape {self.dense_shape}, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
        old = self.positions()
        new = mask.flatten().nonzero().flatten()
        source = torch.full_like(new, -1)
        if len(old) and len(new):
            found = torch.searchsorted(old, new).clamp_(max=len(old) - 1)
            source = torch.where(old[found] == new, found, source)
        values = carry(self.values.detach(), source)
        crow, col = _index(mask)
        self.crow.copy_(crow)
        if len(new) == len(old):
            self.values.copy_(values)
            self.col.copy_(col)
        else:
            self._resize(values)
            self.col = col
        self._stale = True
        return source

    def _resize(self, values: Tensor) -> None:
        """Gives `values` another length.

        While a loss of an earlier step is alive, so is the node that accumulates this
        gradient, which knows the old length; torch makes a new one for another type.
        """
        self.values.grad = None
        other = torch.float32 if values.dtype == torch.float64 else torch.float64
        self.values.data = values.new_empty(0, dtype=other)
        self.values.data = values

    # ---- the dense gradient ------------------------------------------------------

    def watch_dense_gradient(self) -> None:
        """Makes the next backward passes compute the gradient of absent weights too.

        It costs a dense product a pass: methods that grow by gradient (RigL) ask for it
        in the steps that move connections.
        """
        if self.probe is None:
            probe = self.values.new_zeros(()).expand(self.dense_shape)  # no memory
            self.probe = probe.requires_grad_()

    def take_dense_gradient(self) -> Tensor | None:
        """What was collected since `watch_dense_gradient`, which ends."""
        grad = None if self.probe is None else self.probe.grad
        self.probe = None
        return grad

    # ---- saving ------------------------------------------------------------------

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any
    ) -> None:
        """Loads another structure too: the number of values may differ."""
        names = [prefix + name for name in ("values", "crow", "col")]
        if all(isinstance(state_dict.get(name), Tensor) for name in names):
            values, crow, col = (state_dict[name] for name in names)
            require_structure(prefix.rstrip("."), self.dense_shape, values, crow, col)
            if len(values) != len(self.values):
                with torch.no_grad():
                    self._resize(self.values.new_empty(len(values)))
                self.col = self.col.new_empty(len(values))
            self._stale = True
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._stale and self.density < 1:
            self.build()

    def extra_repr(self) -> str:
        shape = " x ".join(map(str, self.dense_shape))
        return f"{shape}, nnz={self.nnz} ({self.density:.2%})"


def carry(old: Tensor, source: Tensor) -> Tensor:
    """`old` rearranged as `SparseLayer.move` says: (new nnz,), 0 for new weights."""
    if not len(old):
        return old.new_zeros(len(source))
    return torch.where(source >= 0, old[source.clamp(min=0)], 0)


def require_unmoved(went: int, left: int) -> None:
    """Raises RuntimeError if a layer has not as many values as it had going forward.

    Kernels read where the indices of the forward pass say, so other values would be
    read beyond their end. Moves that keep the number are noticed by torch.
    """
    if went != left:
        raise RuntimeError(
            f"{went} connections went forward, {left} are left: move them after the "
            "backward pass"
        )


def own_parameter(tensor: Tensor | None) -> nn.Parameter | None:
    """A copy, trained if the tensor was; None stays None."""
    if tensor is None:
        return None
    return nn.Parameter(tensor.clone(), requires_grad=tensor.requires_grad)


def linear_of(weight: Tensor, bias: Tensor | None, training: bool) -> nn.Linear:
    """A plain layer with copies of a dense weight (out, in) and a bias."""
    out, inputs = weight.shape
    module = nn.Linear(inputs, out, bias is not None, weight.device, weight.dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)
    return module.train(training)


def unwatched(x: Tensor) -> bool:
    """Whether nothing traces or counts operations: a direct call then saves 20 us."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
    )


def direct(
    function: Callable[..., Any],
    keep: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """An operation with its gradient, past torch's dispatcher; for `unwatched` calls.

    Args:
        keep, backward: as for `torch.library.register_autograd`.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function(*inputs)
            keep(ctx, inputs, output)
            return output

    Direct.backward = staticmethod(backward)  # type: ignore[method-assign]
    return Direct.apply


def require_structure(
    name: str, shape: tuple[int, ...], values: Any, crow: Any, col: Any
) -> None:
    """Raises ValueError for index buffers that do not fit a weight of `shape`.

    Kernels read memory where the indices say, so a file must not say anything else.
    """
    rows, columns = shape[0], _numel(shape[1:])
    problem = None
    if values.dim() != 1 or col.shape != values.shape or crow.shape != (rows + 1,):
        problem = (
            f"values {tuple(values.shape)}, crow {tuple(crow.shape)} and col "
            f"{tuple(col.shape)} do not fit {rows} rows"
        )
    elif crow.is_floating_point() or col.is_floating_point():
        problem = "crow and col must be integers"
    elif crow[0] != 0 or crow[-1] != len(col) or (crow.diff() < 0).any():
        problem = "crow must ascend from 0 to the number of values"
    elif len(col) and (col.min() < 0 or col.max() >= columns):
        problem = f"col must be in [0, {columns})"
    else:
        firsts = torch.zeros(len(col) + 1, dtype=torch.bool, device=col.device)
        firsts[crow.long()] = True  # the first value of a row may have any column
        if (col.diff() <= 0).logical_and(~firsts[1:-1]).any():
            problem = "col must ascend within a row"
    if problem:
        raise ValueError(
            f"{name!r} holds no valid sparse weight of shape {shape}: {problem}. "
            "Nothing was loaded into this layer; the file is damaged or of another "
            "model"
        )


def _index(mask: Tensor) -> tuple[Tensor, Tensor]:
    """crow and col of a mask, int32."""
    rows = mask.flatten(1)
    counts = rows.sum(1)
    if int(counts.sum()) > INDEX_MAX or rows.shape[1] > INDEX_MAX:
        raise ValueError(
            f"a weight of shape {tuple(mask.shape)} has more than {INDEX_MAX} alive "
            "entries, too many for 32-bit indices; split the layer"
        )
    crow = torch.zeros(len(rows) + 1, dtype=torch.int32, device=mask.device)
    crow[1:] = counts.cumsum(0)
    columns = torch.arange(rows.shape[1], dtype=torch.int32, device=mask.device)
    return crow, columns.expand_as(rows).masked_select(rows)


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
