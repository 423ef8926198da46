"""2:4 and block-sparse linear layers on NVIDIA GPUs, by torch's own kernels.

For inference: the weights are fixed. A call costs up to a millisecond of host time, so
small layers gain only inside a CUDA graph (`cuda_graph`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.execution.layer import linear_of

HALF = (torch.float16, torch.bfloat16)


class SemiStructuredLinear(nn.Module):
    """y = W x + b with 2 of every 4 consecutive inputs, by the GPU's sparse units.

    The packed weight lives on the GPU only; `state_dict` holds the dense weight, under
    the names of `nn.Linear`.

    Args:
        weight: (out, in) float16 or bfloat16 on a GPU, 2:4 along its rows.
        bias: (out,) or None.

    Raises:
        ValueError: naming the first row and group with more than 2 non-zeros, or a
            shape, dtype or device that the GPU's 2:4 units do not take.

    Source: Mishra et al. 2021, arXiv 2104.08378; torch.sparse.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        _require_two_of_four(weight)
        _require_gpu(weight, HALF)
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.clone(), False)
        self._pack(weight)

    @classmethod
    def from_dense(
        cls, module: nn.Linear, mask: Tensor | None = None
    ) -> "SemiStructuredLinear":
        """A 2:4 layer of a dense one. mask: bool (out, in); default: where w != 0."""
        weight = module.weight if mask is None else module.weight * mask
        return cls(weight, module.bias).train(module.training)

    def to_module(self) -> nn.Linear:
        """The dense layer, with zeros where no weight exists."""
        return linear_of(self.to_dense(), self.bias, self.training)

    def to_dense(self) -> Tensor:
        """The dense weight (out, in), exactly: a product with the identity."""
        return self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features). No gradients."""
        return F.linear(x, self._packed, self.bias)

    def _pack(self, weight: Tensor) -> None:
        try:
            self._packed = torch.sparse.to_sparse_semi_structured(
                weight.detach().contiguous()
            )
        except RuntimeError as error:  # sizes differ by dtype and library
            raise ValueError(
                f"the GPU takes no 2:4 weight of {self.out_features} x "
                f"{self.in_features} {weight.dtype}: {error}. Sizes that are multiples "
                "of 64 fit; else leave this layer dense"
            ) from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        weight = fn(self.to_dense())
        _require_gpu(weight, HALF)
        super()._apply(fn, recurse)
        self._pack(weight)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "SemiStructuredLinear":
        copied = type(self)(self.to_dense(), self.bias).train(self.training)
        memo[id(self)] = copied
        return copied

    def _save_to_state_dict(self, destination: Any, prefix: str, keep: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep)
        destination[prefix + "weight"] = self.to_dense()

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        weight = state.get(prefix + "weight")
        if isinstance(weight, Tensor):
            if weight.shape != (self.out_features, self.in_features):
                raise ValueError(
                    f"{prefix}weight is {tuple(weight.shape)}, this layer "
                    f"{self.out_features} x {self.in_features}"
                )
            _require_two_of_four(weight)
            self._pack(weight.to(self._packed.device, self._packed.dtype))
        super()._load_from_state_dict(state, prefix, *args)
        missing, unexpected = args[2], args[3]
        if prefix + "weight" in unexpected:
            unexpected.remove(prefix + "weight")
        if weight is None:
            missing.append(prefix + "weight")

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class BSRLinear(nn.Module):
    """y = W x + b, with the non-zero blocks of W only, by torch's Triton kernel.

    Unlike `BlockLinear`, block rows may have different numbers of blocks, nothing is
    gathered, and nothing trains.

    Args:
        weight: (out, in), float16, bfloat16 or float32 on a GPU.
        block: 16, 32, 64 or 128, a divisor of both sizes.
        bias: (out,) or None.
    """

    crow: Tensor
    col: Tensor
    blocks: Tensor

    def __init__(self, weight: Tensor, block: int, bias: Tensor | None):
        super().__init__()
        out, inputs = weight.shape
        if block not in (16, 32, 64, 128) or out % block or inputs % block:
            raise ValueError(
                f"block is 16, 32, 64 or 128 and divides {out} and {inputs}, got "
                f"{block}"
            )
        _require_gpu(weight, (*HALF, torch.float32))
        self.out_features, self.in_features, self.block = out, inputs, block
        self.bias = None if bias is None else nn.Parameter(bias.clone(), False)
        packed = weight.detach().to_sparse_bsr((block, block))
        self.register_buffer("crow", packed.crow_indices())
        self.register_buffer("col", packed.col_indices())
        self.register_buffer("blocks", packed.values())

    @classmethod
    def from_dense(
        cls, module: nn.Linear, block: int = 64, mask: Tensor | None = None
    ) -> "BSRLinear":
        """The blocks of a dense layer that are not all zero (or masked away)."""
        weight = module.weight if mask is None else module.weight * mask
        return cls(weight, block, module.bias).train(module.training)

    def to_module(self) -> nn.Linear:
        """The dense layer, with zeros where no block exists."""
        return linear_of(self.packed().to_dense(), self.bias, self.training)

    def packed(self) -> Tensor:
        """The weight as torch's BSR tensor, on the buffers of this layer."""
        size = (self.out_features, self.in_features)
        return torch.sparse_bsr_tensor(
            self.crow, self.col, self.blocks, size, check_invariants=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features). No gradients."""
        return F.linear(x, self.packed(), self.bias)

    def extra_repr(self) -> str:
        share = len(self.col) * self.block**2 / (self.in_features * self.out_features)
        return (
            f"{self.in_features}, {self.out_features}, block={self.block}, {share:.1%}"
        )


def cuda_graph(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """The module in evaluation, recorded once: a call costs no host time per layer.

    Args:
        module: on a GPU; its memory must stay where it is.
        example: an input; later ones must have its shape and dtype.

    Returns:
        call(x) -> output. The output is overwritten by the next call: clone it to
        keep it.

    Raises:
        ValueError: if the example is not on a GPU; by the call, for another shape.
    """
    _require_gpu(example, (example.dtype,))
    held = example.detach().clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):  # kernels are chosen and memory is reserved outside
            module(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = module(held)

    def call(x: Tensor) -> Tensor:
        if x.shape != held.shape or x.dtype != held.dtype:
            raise ValueError(
                f"the graph was recorded for {tuple(held.shape)} {held.dtype}, got "
                f"{tuple(x.shape)} {x.dtype}"
            )
        if x.data_ptr() != held.data_ptr():
            held.copy_(x)
        graph.replay()
        return output

    call.input = held  # type: ignore[attr-defined]  # fill it in place: no copy
    return call


def _require_gpu(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.device.type != "cuda":
        raise ValueError(
            f"this form runs on NVIDIA GPUs only, and the layer is on {tensor.device}: "
            "move it with .to('cuda'), or on a CPU use to='blocks' or to='values'"
        )
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"{wanted} is needed, got {tensor.dtype}: cast the layer first"
        )


def _require_two_of_four(weight: Tensor) -> None:
    if weight.dim() != 2 or weight.shape[1] % 4:
        raise ValueError(
            f"2:4 needs a weight (out, in) with in a multiple of 4, got "
            f"{tuple(weight.shape)}"
        )
    counts = (weight.view(len(weight), -1, 4) != 0).sum(dim=2)
    if bool((counts > 2).any()):
        row, group = (counts > 2).nonzero()[0].tolist()
        raise ValueError(
            f"the weight is not 2:4: row {row} has {int(counts[row, group])} non-zeros "
            f"in inputs {4 * group} to {4 * group + 3}. Prune it with the pattern "
            "NM(2, 4) first"
        )
