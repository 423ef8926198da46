"""Balanced blocks: a linear layer that reads a few whole blocks of inputs a block row.

Every block row reads as many block columns, so the layer is a gather and one batched
dense product, on any device and in any dtype.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.execution.packed_linear import PackedLinear
from sparsekit.masks import count_active

# Inputs gathered at a time. On a CPU, more would be fresh memory in every call, whose
# page faults cost as much as the product; on a GPU many products cost their launches.
GATHER_BYTES = {"cpu": 2**22}
GATHER_BYTES_ELSEWHERE = 2**28


class BlockLinear(PackedLinear):
    """y = W x + b, with k whole blocks of W in every row of blocks.

    With O = out / b rows of blocks, K_o the k block columns that row o reads, and x_c
    the c-th block of inputs:

        y_o = sum_{c in K_o} W_oc x_c + bias_o

    The result is feature-major: y has the shape (..., out), but the features of one
    sample are not neighbours in memory. A stack of such layers transposes nothing
    between them.

    Args:
        weight: (O, b, k * b), the blocks of each block row side by side.
        columns: (O, k) integers in [0, in / b): the blocks that each block row reads.
        in_features: multiple of b.
        bias: (out,) or None.

    Attributes:
        gather_bytes: so many of gathered inputs at a time; None: 4 MiB on a CPU, 256
            MiB on a GPU.

    Raises:
        ValueError: if the shapes do not fit each other, or an index is out of range.

    >>> dense = torch.tensor([[1.0, 2, 0, 0], [3, 4, 0, 0], [0, 0, 5, 6], [0, 0, 7, 8]])
    >>> layer = nn.Linear(4, 4, bias=False)
    >>> layer.weight.data = dense
    >>> sparse = BlockLinear.from_dense(layer, block=2)
    >>> sparse.columns.tolist()
    [[0], [1]]
    >>> sparse(torch.ones(1, 4)).tolist()
    [[3.0, 7.0, 11.0, 15.0]]

    Source: the idea is that of balanced (load-balanced) block sparsity, Yao et al.
    2019, arXiv 1811.00206, with whole blocks in place of single weights.
    """

    def __init__(
        self, weight: Tensor, columns: Tensor, in_features: int, bias: Tensor | None
    ):
        super().__init__()
        rows, block = weight.shape[:2]
        if columns.dim() != 2 or weight.shape != (
            rows,
            block,
            columns.shape[1] * block,
        ):
            raise ValueError(
                f"weight (O, b, k * b) and columns (O, k) do not fit: "
                f"{tuple(weight.shape)} and {tuple(columns.shape)}"
            )
        if in_features % block or columns.shape[0] != rows or columns.shape[1] < 1:
            raise ValueError(
                f"{in_features} inputs, {rows} block rows of {block} and columns "
                f"{tuple(columns.shape)} do not fit"
            )
        if int(columns.min()) < 0 or int(columns.max()) >= in_features // block:
            raise ValueError(f"columns must be in [0, {in_features // block})")
        if bias is not None and bias.shape != (rows * block,):
            raise ValueError(f"bias must be ({rows * block},), got {tuple(bias.shape)}")
        self.in_features, self.out_features = in_features, rows * block
        self.block, self.k = block, columns.shape[1]
        self.gather_bytes: int | None = None
        self.weight = _parameter(weight)
        self.bias = None if bias is None else _parameter(bias)
        self.register_buffer("columns", columns.to(torch.int32, copy=True))

    # ---- from and to dense -------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
        block: int = 64,
        keep: float | None = None,
        mask: Tensor | None = None,
    ) -> "BlockLinear":
        """Blocks of a dense layer: the best of every block row, or those of a mask.

        Args:
            module: its sizes are multiples of `block`.
            block: side of the square blocks. Below 64 the gather costs more than the
                product saves.
            keep: share of the blocks that stay, in (0, 1], as many in every block row:
                those of the largest mean |w|. Of equal ones the first.
            mask: bool (out, in), whole blocks, as many in every block row. Neither
                `keep` nor `mask`: the blocks that are not all zero.

        Raises:
            ValueError: for sizes that are no multiples, both `keep` and `mask`, a mask
                of parts of blocks, or one whose block rows differ, naming the row.
        """
        weight = module.weight
        blocks = _blocks(weight, block)  # (O, in / b, b, b)
        if keep is not None:
            if mask is not None:
                raise ValueError("pass keep or mask, not both")
            if not 0 < keep <= 1:
                raise ValueError(f"keep is a share of the blocks in (0, 1], got {keep}")
            k = count_active(blocks.shape[1], 1 - keep)
            means = blocks.abs().mean(dim=(2, 3), dtype=torch.float32)
            order = means.argsort(dim=1, descending=True, stable=True)
            columns = order[:, :k].sort(dim=1).values
        else:
            columns = _columns_of(weight != 0 if mask is None else mask, block)
            if mask is not None:
                _require_whole(mask, block)
        k = columns.shape[1]
        chosen = blocks.take_along_dim(columns[:, :, None, None], dim=1)
        packed = chosen.transpose(1, 2).reshape(len(blocks), block, k * block)
        return cls._like(module, packed, columns)

    def _scatter(self, values: Tensor) -> Tensor:
        rows, b, k = len(values), self.block, self.k
        dense = values.new_zeros(rows, self.in_features // b, b, b)
        blocks = values.view(rows, b, k, b).transpose(1, 2)
        every = torch.arange(rows, device=values.device)[:, None]
        dense[every, self.columns.long()] = blocks
        return dense.transpose(1, 2).reshape(self.out_features, self.in_features)

    def unread(self) -> list[int]:
        """The blocks of inputs that no block row reads: the layer ignores them."""
        read = set(self.columns.flatten().tolist())
        return [c for c in range(self.in_features // self.block) if c not in read]

    # ---- running -----------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features), feature-major."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"{self.in_features} input features are needed, got {tuple(x.shape)}"
            )
        weight: Tensor = self.weight
        bias, device = self.bias, x.device.type
        if torch.is_autocast_enabled(device):  # which knows no operation of ours
            x, weight = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight))
        flat = x.reshape(-1, self.in_features)
        budget = self.gather_bytes or GATHER_BYTES.get(device, GATHER_BYTES_ELSEWHERE)
        y = product(weight, self.columns, flat.t().contiguous(), budget)
        if bias is not None:
            y = y + bias.to(y.dtype)[:, None]
        return y.t().view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        blocks = self.in_features // self.block
        return (
            f"{self.in_features}, {self.out_features}, block={self.block}, "
            f"{self.k} of {blocks} in a row, bias={self.bias is not None}"
        )


# ---- operations ----------------------------------------------------------------------
# inputs: (in, B); weight: (O, b, k b); columns: (O, k). `budget` is gather_bytes.


@torch.library.custom_op("sparsekit::block_product", mutates_args=())
def product(weight: Tensor, columns: Tensor, inputs: Tensor, budget: int) -> Tensor:
    """W x, feature-major: (O b, B)."""
    n = inputs.shape[1]
    result = weight.new_empty(len(weight), weight.shape[1], n)
    for rows in _parts(weight, inputs, budget):
        gathered = _gather(weight, columns[rows], inputs)
        torch.bmm(weight[rows], gathered, out=result[rows])
    return result.flatten(0, 1)


@torch.library.custom_op("sparsekit::block_input_gradient", mutates_args=())
def input_gradient(
    weight: Tensor, columns: Tensor, gradient: Tensor, in_features: int, budget: int
) -> Tensor:
    """W^T g: (in, B)."""
    n = gradient.shape[1]
    blocks, block = in_features // weight.shape[1], weight.shape[1]
    result = gradient.new_zeros(blocks, block * n)
    parts = gradient.view(len(weight), block, n)
    for rows in _parts(weight, gradient, budget):
        gathered = torch.bmm(weight[rows].transpose(1, 2), parts[rows])
        result.index_add_(
            0, columns[rows].flatten(), gathered.view(columns[rows].numel(), block * n)
        )
    return result.view(in_features, n)


@torch.library.custom_op("sparsekit::block_weight_gradient", mutates_args=())
def weight_gradient(
    weight: Tensor, columns: Tensor, inputs: Tensor, gradient: Tensor, budget: int
) -> Tensor:
    """g x^T in the blocks that exist: (O, b, k b)."""
    parts = gradient.view(len(weight), weight.shape[1], -1)
    result = torch.empty_like(weight)
    for rows in _parts(weight, inputs, budget):
        gathered = _gather(weight, columns[rows], inputs)
        torch.bmm(parts[rows], gathered.transpose(1, 2), out=result[rows])
    return result


def _parts(weight: Tensor, inputs: Tensor, budget: int) -> list[slice]:
    """Block rows whose gathered inputs fit the budget, at least one at a time."""
    bytes_a_row = weight.shape[2] * inputs.shape[1] * inputs.element_size()
    size = max(1, budget // max(1, bytes_a_row))
    return [slice(i, i + size) for i in range(0, len(weight), size)]


def _gather(weight: Tensor, columns: Tensor, inputs: Tensor) -> Tensor:
    """(O, k b, B): what each of these block rows reads."""
    block, n = weight.shape[1], inputs.shape[1]
    blocks = inputs.view(inputs.shape[0] // block, block * n)
    gathered = blocks.index_select(0, columns.flatten())
    return gathered.view(len(columns), weight.shape[2], n)


@product.register_fake
def _(weight: Tensor, columns: Tensor, inputs: Tensor, budget: int) -> Tensor:
    return weight.new_empty(weight.shape[0] * weight.shape[1], inputs.shape[1])


@input_gradient.register_fake
def _(
    weight: Tensor, columns: Tensor, gradient: Tensor, in_features: int, budget: int
) -> Tensor:
    return gradient.new_empty(in_features, gradient.shape[1])


@weight_gradient.register_fake
def _(
    weight: Tensor, columns: Tensor, inputs: Tensor, gradient: Tensor, budget: int
) -> Tensor:
    return torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, columns, x, ctx.budget = inputs
    ctx.save_for_backward(weight, columns, x)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weight, columns, x = ctx.saved_tensors
    gradient = gradient.contiguous()
    of_weight = of_inputs = None
    if ctx.needs_input_grad[0]:
        of_weight = weight_gradient(weight, columns, x, gradient, ctx.budget)
    if ctx.needs_input_grad[2]:
        of_inputs = input_gradient(weight, columns, gradient, x.shape[0], ctx.budget)
    return of_weight, None, of_inputs, None


product.register_autograd(_backward, setup_context=_setup)


# ---- blocks of a matrix --------------------------------------------------------------


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.clone(memory_format=torch.contiguous_format))


def _blocks(matrix: Tensor, block: int) -> Tensor:
    """(out, in) -> (out / b, in / b, b, b)."""
    rows, columns = matrix.shape
    if block < 1 or rows % block or columns % block:
        raise ValueError(
            f"a weight of {rows} x {columns} has no whole blocks of {block}: choose a "
            f"block that divides both, or leave this layer dense"
        )
    view = matrix.reshape(rows // block, block, columns // block, block)
    return view.transpose(1, 2)


def _columns_of(mask: Tensor, block: int) -> Tensor:
    """(O, k), ascending: the blocks of a mask that are not empty."""
    alive = _blocks(mask, block).flatten(2).any(dim=2)
    counts = alive.sum(dim=1)
    k = int(counts[0])
    if bool((counts != k).any()):
        odd = int((counts != k).nonzero()[0])
        raise ValueError(
            f"every block row needs as many blocks: row 0 has {k}, row {odd} has "
            f"{int(counts[odd])} of {alive.shape[1]} (blocks of {block}). Pass keep= "
            "to choose as many in every row"
        )
    if k == 0:
        raise ValueError("no block is alive: the layer is its bias")
    return alive.nonzero()[:, 1].view(-1, k)


def _require_whole(mask: Tensor, block: int) -> None:
    counts = _blocks(mask, block).sum(dim=(2, 3))
    parts = ((counts > 0) & (counts < block * block)).nonzero()
    if len(parts):
        row, column = parts[0].tolist()
        raise ValueError(
            f"the mask has {int(counts[row, column])} of {block * block} weights of "
            f"block ({row}, {column}): blocks exist whole. Use the pattern "
            f"Block({block}, {block}), or pass keep= to choose blocks anew"
        )
