"""Accounting: floating-point operations, bytes and an energy proxy.

A masked weight saves a FLOP only where a backend skips it: `sparse` numbers say what is
needed, not what a masked dense kernel executes (see `executed_flops`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparsekit.flops import Flops, forward_flops, require_mask_of
from sparsekit.packing import FORMATS, predicted_nbytes

__all__ = [
    "Flops", "Layer", "energy", "executed_flops", "forward_flops", "layers",
    "training_bytes", "training_flops",
]  # fmt: skip


def training_flops(
    forward_sparse: float,
    forward_dense: float,
    *,
    dense_gradient_every: int | None = None,
) -> float:
    """FLOPs of one training step on average, by RigL's convention.

    With f_S, f_D the forward FLOPs of the sparse and the dense model: the backward pass
    costs two forward passes, one for the gradient of the activations and one for that
    of the weights, so a step costs 3 f_S. With a dense weight gradient after every T =
    `dense_gradient_every` steps, that extra step costs 2 f_S + f_D:

        (3 f_S T + 2 f_S + f_D) / (T + 1)

    None: static, SET and other methods without a dense gradient, 3 f_S. T = 0: a dense
    gradient in every step (SNFS), 2 f_S + f_D. A dense model: f_S = f_D, 3 f_D.

    >>> training_flops(20, 100), training_flops(20, 100, dense_gradient_every=99)
    (60, 60.8)
    >>> training_flops(100, 100)
    300

    Source: Evci et al. 2020 (RigL), arXiv 1911.11134; formula recalled, not re-read.
    """
    if not 0 <= forward_sparse <= forward_dense:
        raise ValueError(
            "0 <= forward_sparse <= forward_dense is needed, got "
            f"{forward_sparse} and {forward_dense}"
        )
    if dense_gradient_every is None:
        return 3 * forward_sparse
    if dense_gradient_every < 0:
        raise ValueError(f"dense_gradient_every is >= 0, got {dense_gradient_every}")
    period = dense_gradient_every
    return (3 * forward_sparse * period + 2 * forward_sparse + forward_dense) / (
        period + 1
    )


def executed_flops(forward_dense: float) -> float:
    """FLOPs that a masked training step really executes: 3 f_D, at any sparsity.

    Masks in front of dense kernels save nothing.

    >>> executed_flops(100)
    300
    """
    return 3 * forward_dense


def training_bytes(
    mask: Tensor, optimizer_moments: int, format: str = "dense", itemsize: int = 4
) -> int:
    """Bytes of a weight in training: weight, gradient and moments of the optimizer.

    All of them share one structure (indices or bits), stored once. "dense" is masked
    training: every array is full, and the mask takes one byte an entry.

    Args:
        mask: bool, which entries are alive.
        optimizer_moments: arrays a weight has: SGD 0, momentum 1, Adam 2.
        format: one of `packing.FORMATS`.
        itemsize: bytes of a value.

    >>> import torch
    >>> mask = torch.arange(1000) < 100
    >>> training_bytes(mask, 2), training_bytes(mask, 2, "bitmask")
    (17000, 1725)
    """
    if optimizer_moments < 0:
        raise ValueError(f"optimizer_moments is >= 0, got {optimizer_moments}")
    stored = mask.numel() if format == "dense" else int(mask.sum())
    structure = predicted_nbytes(mask, format, itemsize) - itemsize * stored
    if format == "dense":
        structure = mask.numel()
    return structure + itemsize * stored * (2 + optimizer_moments)


def energy(flops: float, dram_bytes: float) -> float:
    """Energy in joules by a proxy: arithmetic plus reading from memory.

        E = flops / 2 * (3.7 + 0.9) pJ  +  dram_bytes / 4 * 640 pJ

    float32 multiply 3.7 pJ, add 0.9 pJ, a 32-bit word from DRAM 640 pJ, in a 45 nm
    process. No caches, no control, no leakage: compare models with it, and do not
    quote it as a measurement.

    >>> round(energy(2e9, 4e6) * 1e3, 3)  # millijoules
    5.24

    Source: Horowitz 2014, Computing's energy problem, ISSCC, table of energies.
    """
    picojoules = flops / 2 * (3.7 + 0.9) + dram_bytes / 4 * 640
    return picojoules * 1e-12


@dataclass(frozen=True)
class Layer:
    """One parameter's row in the account."""

    name: str
    shape: tuple[int, ...]
    numel: int
    active: int
    dense_flops: int | None  # None: no input was given
    sparse_flops: int | None
    nbytes: dict[str, int]  # by format; a parameter without a mask is stored dense

    @property
    def sparsity(self) -> float:
        return 1 - self.active / self.numel


def layers(
    model: nn.Module, masks: Mapping[str, Tensor], flops: Flops | None = None
) -> list[Layer]:
    """The account of every parameter, masked or not, in the model's order.

    Args:
        model: any module.
        masks: {parameter name: bool mask}.
        flops: of `forward_flops(model, ...)`, dense.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> masks = {"weight": torch.arange(8).view(2, 4) < 2}
    >>> row = layers(model, masks, forward_flops(model, torch.zeros(1, 4)))[0]
    >>> row.active, row.sparsity, row.dense_flops, row.sparse_flops
    (2, 0.75, 16, 4)
    """
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    for name in masks:
        require_mask_of(shapes, name, masks[name])
    sparse = flops.sparse(masks) if flops else None
    rows = []
    for name, parameter in parameters.items():
        numel, itemsize = parameter.numel(), parameter.element_size()
        mask = masks.get(name)
        rows.append(
            Layer(
                name=name,
                shape=tuple(parameter.shape),
                numel=numel,
                active=numel if mask is None else int(mask.sum()),
                dense_flops=flops.parameters[name] if flops else None,
                sparse_flops=sparse.parameters[name] if sparse else None,
                nbytes={
                    format: numel * itemsize
                    if mask is None
                    else predicted_nbytes(mask, format, itemsize)
                    for format in FORMATS
                },
            )
        )
    return rows
