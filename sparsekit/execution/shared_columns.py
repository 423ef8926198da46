"""Column-shared N:M: a whole tile of outputs reads the same n of every m inputs.

This is a stronger constraint than N:M, where every output chooses for itself. With one
tile it is the removal of input features, in a balanced layout. That is why it runs at
the speed of a smaller dense layer on any device, and why N:M on a CPU does not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.execution.packed_linear import PackedLinear
from sparsekit.patterns import NM

MIN_TILE = 64  # rows: below, the products are too small to pay for the gather


class SharedColumnsLinear(PackedLinear):
    """y = W x + b, with one N:M pattern along the inputs for every tile of outputs.

    With C_t the inputs that tile t reads, n of every m consecutive ones:

        y_t = W_t x[C_t] + b_t

    Args:
        weight: (T, tile, in * n / m), the columns that exist.
        columns: (T, in * n / m) integers in [0, in).
        in_features: number of inputs.
        bias: (T * tile,) or None.

    Raises:
        ValueError: if shapes do not fit, or a column is out of range.

    >>> layer = nn.Linear(4, 2, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, 2, 9, 0], [3, 4, 5, 6]])
    >>> sparse = SharedColumnsLinear.from_dense(layer, 1, 2)
    >>> sparse.columns.tolist()  # sums of |w|: 4 and 6, 14 and 6
    [[1, 2]]
    >>> sparse(torch.ones(1, 4)).tolist()
    [[11.0, 9.0]]
    """

    def __init__(
        self, weight: Tensor, columns: Tensor, in_features: int, bias: Tensor | None
    ):
        super().__init__()
        tiles, tile, n_columns = weight.shape
        if columns.shape != (tiles, n_columns) or columns.numel() == 0:
            raise ValueError(
                f"weight (T, tile, n) and columns (T, n) do not fit: "
                f"{tuple(weight.shape)} and {tuple(columns.shape)}"
            )
        if int(columns.min()) < 0 or int(columns.max()) >= in_features:
            raise ValueError(f"columns must be in [0, {in_features})")
        if bias is not None and bias.shape != (tiles * tile,):
            raise ValueError(f"bias must be ({tiles * tile},), got {tuple(bias.shape)}")
        self.in_features, self.out_features = in_features, tiles * tile
        self.weight = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.register_buffer("columns", columns.to(torch.int32, copy=True))

    @classmethod
    def from_dense(
        cls,
        module: nn.Linear,
        n: int,
        m: int,
        tile: int | None = None,
        mask: Tensor | None = None,
    ) -> "SharedColumnsLinear":
        """The n best of every m inputs of each tile, by the tile's sum of |w|.

        Args:
            module: its inputs are a multiple of m, its outputs of `tile`.
            n: of every `m` consecutive inputs. Ties: the first.
            tile: outputs that share a pattern, at least 64; default all.
            mask: bool (out, in), which already is such a pattern.

        Raises:
            ValueError: for sizes that do not fit, or for a mask that is no such
                pattern, naming the row.
        """
        weight = module.weight
        out, inputs = weight.shape
        tile = out if tile is None else tile
        if tile < 1 or out % tile or (tile < MIN_TILE and tile != out):
            raise ValueError(
                f"tile divides the {out} outputs and is at least {MIN_TILE}, got {tile}"
            )
        tiles = weight.view(out // tile, tile, inputs)
        pattern = NM(n, m)
        wanted = pattern.count((len(tiles), inputs), 0.0)
        if mask is None:
            sums = tiles.abs().sum(
                dim=1, dtype=torch.promote_types(weight.dtype, torch.float32)
            )
            shared = pattern.mask(sums, wanted)
        else:
            shared = _shared(mask, tile, pattern)
        columns = shared.nonzero()[:, 1].view(len(tiles), -1)
        packed = tiles.take_along_dim(columns[:, None], dim=2)
        return cls._like(module, packed, columns)

    def _scatter(self, values: Tensor) -> Tensor:
        dense = values.new_zeros(*values.shape[:2], self.in_features)
        places = self.columns.long()[:, None].expand(values.shape)
        return dense.scatter_(2, places, values).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features); many tiles: feature-major."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"{self.in_features} input features are needed, got {tuple(x.shape)}"
            )
        if len(self.weight) == 1:
            return F.linear(
                x.index_select(-1, self.columns[0]), self.weight[0], self.bias
            )
        flat = x.reshape(-1, self.in_features)
        gathered = flat.t().contiguous().index_select(0, self.columns.flatten())
        y = torch.bmm(self.weight, gathered.view(*self.columns.shape, len(flat)))
        if self.bias is not None:
            y = y + self.bias.view(len(self.weight), -1, 1)
        y = y.view(self.out_features, len(flat)).t()
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        tiles, tile, n_columns = self.weight.shape
        return (
            f"{self.in_features}, {self.out_features}, {n_columns} columns for each of "
            f"{tiles} x {tile} outputs, bias={self.bias is not None}"
        )


def _shared(mask: Tensor, tile: int, pattern: NM) -> Tensor:
    """(T, in): the pattern of each tile of a mask."""
    tiles = mask.view(-1, tile, mask.shape[1])
    differs = (tiles != tiles[:, :1]).any(dim=2)
    if bool(differs.any()):
        t, row = differs.nonzero()[0].tolist()
        raise ValueError(
            f"rows {t * tile} and {t * tile + row} of the mask differ: all {tile} rows "
            "of a tile read the same columns. Without mask= they are chosen"
        )
    counts = tiles[:, 0].view(len(tiles), -1, pattern.m).sum(dim=2)
    if bool((counts != pattern.n).any()):
        t, group = (counts != pattern.n).nonzero()[0].tolist()
        raise ValueError(
            f"row {t * tile} of the mask has {int(counts[t, group])} of the "
            f"{pattern.m} inputs from {group * pattern.m}: {pattern} needs {pattern.n}"
        )
    return tiles[:, 0]
