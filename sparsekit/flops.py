"""FLOPs of a forward pass, by parameter, read off the operations that run.

A multiply-accumulate is 2 FLOPs. Matrix products, convolutions and attention count;
biases, activations, norms and look-ups do not, as in torch.utils.flop_counter.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekit.flop_counter import FlopCounter, Formula, View
from sparsekit.modes import in_mode


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass.

    Attributes:
        parameters: {name: FLOPs of products with that parameter}; 0 if it has none.
        other: FLOPs of products between activations, such as attention scores.
        uses: which part of which parameter, and its FLOPs.
        layouts: {name: shape and strides}, to read `uses`.
    """

    parameters: dict[str, int]
    other: int
    uses: tuple[tuple[View, int], ...]
    layouts: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def total(self) -> int:
        return sum(self.parameters.values()) + self.other

    def sparse(self, masks: Mapping[str, Tensor]) -> "Flops":
        """FLOPs that remain if absent weights are skipped.

        Each product counts with the density of the part of the parameter that it uses:
        in a linear layer or a convolution every weight is used equally often (padding
        counts as input). Parameters without a mask, and `other`, stay dense.

        Raises:
            ValueError: for a mask of an unknown parameter or of another shape.
        """
        shapes = {name: shape for name, (shape, _) in self.layouts.items()}
        laid_out = {}
        for name, mask in masks.items():
            require_mask_of(shapes, name, mask)
            # The parameter's own strides (channels_last, say), so that the recorded
            # views apply to the mask.
            laid_out[name] = torch.empty_strided(
                *self.layouts[name], dtype=torch.bool, device=mask.device
            ).copy_(mask)
        counts = dict.fromkeys(self.parameters, 0)
        uses = []
        for view, flops in self.uses:
            if view.name in laid_out:
                mask = laid_out[view.name]
                used = mask.as_strided(view.size, view.stride, view.offset)
                flops = flops * int(used.sum()) // view.numel
            counts[view.name] += flops
            uses.append((view, flops))
        return Flops(counts, self.other, tuple(uses), self.layouts)


def forward_flops(
    model: nn.Module,
    *inputs: Any,
    formulas: Mapping[Any, Formula] | None = None,
    **keywords: Any,
) -> Flops:
    """FLOPs of `model(*inputs, **keywords)` in evaluation mode, by parameter.

    Runs the model once and reads the shapes of its operations, so any model works:
    shared weights, loops, recurrent layers, attention. Nothing of the model changes:
    mode, buffers, gradients and the random state are as before.

    Args:
        model: any module.
        inputs, keywords: what to call it with; the batch size counts.
        formulas: {operation: (*shapes, out_shape=...) -> FLOPs} for operations that are
            not known, such as `torch.ops.mylib.foo`. The parameter among their
            arguments that comes last is the one they count for.

    Raises:
        NotImplementedError: naming an operation that may do heavy work and is not
            known. Never a silent 0.

    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2))
    >>> flops = forward_flops(model, torch.zeros(7, 5))
    >>> flops.parameters["0.weight"], flops.parameters["1.weight"], flops.total
    (210, 84, 294)

    Differs from torch.utils.flop_counter.FlopCounterMode: by parameter; counts the
    attention kernel of the CPU and recurrent layers, which are 0 there; refuses what it
    does not know.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    counter = FlopCounter(model, formulas or {})
    counter.see_inputs(tree_leaves((inputs, keywords)))
    with _unchanged(model), _plain_kernels(), torch.no_grad(), counter:
        model(*inputs, **keywords)
    layouts = {
        name: (tuple(p.shape), tuple(p.stride()))
        for name, p in counter.parameters.items()
    }
    return Flops(counter.counts, counter.other, tuple(counter.uses.items()), layouts)


def require_mask_of(
    shapes: Mapping[str, tuple[int, ...]], name: str, mask: Tensor
) -> None:
    """ValueError unless the mask is bool and of a known parameter's shape."""
    if name not in shapes:
        raise ValueError(f"mask {name!r} is not a parameter: {list(shapes)}")
    if mask.dtype != torch.bool or mask.shape != shapes[name]:
        raise ValueError(
            f"the mask of {name!r} is bool of shape {shapes[name]}, got "
            f"{mask.dtype} of shape {tuple(mask.shape)}"
        )


# Leaving no trace


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; modes, buffers and random state put back after."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)), in_mode(model, False):
            yield
    finally:
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without fused kernels that hide their products from the dispatcher.

    oneDNN's and cuDNN's recurrent layers and the encoder's fast path are single
    operations; without them the same model runs as visible products.
    """
    with ExitStack() as stack:
        mkldnn = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        stack.callback(torch._C._set_mkldnn_enabled, mkldnn)
        cudnn = torch._C._get_cudnn_enabled()
        torch._C._set_cudnn_enabled(False)
        stack.callback(torch._C._set_cudnn_enabled, cudnn)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
