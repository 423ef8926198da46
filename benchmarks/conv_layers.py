"""Sparse against dense convolutions, layer by layer: forward and both gradients.

    python -m benchmarks.conv_layers                # 40 cases, one minute
    python -m benchmarks.conv_layers --quick        # one small layer, two rounds
    GOMP_SPINCOUNT=1000 python -m benchmarks.conv_layers --threads 2

The layers are those of a ResNet-18 for 32x32 images, with weights kept at random. The
dense time is that of the faster of torch's two memory layouts, product by product. In
a round every call runs once, one after the other, so that no call finds its operands in
the caches, as in training; speed-ups are medians of ratios within a round. Sparse times
are without the change of layout, which happens at the ends of a network. GFLOP/s count
the multiplications of weights that exist, twice. The error is the largest difference
from the dense product, over its largest value. On several threads, torch's spin after
each dense call and slow down what follows; the variable shortens that.
"""

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import reports
from benchmarks.reports import save, table
from sparsekit.execution.blocked import from_blocked, to_blocked
from sparsekit.execution.conv import (
    SparseConv2d,
    conv,
    input_gradient,
    weight_gradient,
)

PRODUCTS = ("forward", "input gradient", "weight gradient")
LAYERS = [  # inputs, outputs, side of the image, of the kernel, stride
    (64, 64, 32, 3, 1),
    (128, 128, 16, 3, 1),
    (256, 256, 8, 3, 1),
    (512, 512, 4, 3, 1),
    (64, 128, 32, 3, 2),
    (128, 256, 16, 3, 2),
    (64, 128, 32, 1, 2),
    (256, 512, 8, 1, 2),
    (16, 16, 32, 3, 1),
    (64, 64, 8, 3, 1),
]
DENSITIES = (0.25, 0.1, 0.05, 0.02)
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}

Calls = dict[str, Callable[[], Tensor]]


def dense_calls(module: nn.Conv2d, x: Tensor, grad: Tensor) -> dict[str, Calls]:
    """{product: {layout: call}}."""
    stride, padding = list(module.stride), list(module.padding)
    calls: dict[str, Calls] = {product: {} for product in PRODUCTS}
    for name, layout in LAYOUTS.items():
        a, g, w = (
            t.detach().to(memory_format=layout, copy=True)
            for t in (x, grad, module.weight)
        )

        def backward(index: int, a=a, g=g, w=w) -> Tensor:
            wanted = [index == 0, index == 1, False]
            return torch.ops.aten.convolution_backward(
                g, a, w, None, stride, padding, [1, 1], False, [0, 0], 1, wanted
            )[index]

        calls["forward"][name] = lambda a=a, w=w: F.conv2d(a, w, None, stride, padding)
        calls["input gradient"][name] = lambda call=backward: call(0)
        calls["weight gradient"][name] = lambda call=backward: call(1)
    return calls


def sparse_calls(layer: SparseConv2d, x: Tensor, grad: Tensor) -> Calls:
    """{product: call} on blocked tensors."""
    a, g, values = to_blocked(x), to_blocked(grad), layer.values.detach()
    taps, stride = layer.dense_shape[2] ** 2, layer.stride
    rows = layer.col, layer.starts
    columns = layer.transposed_col, layer.transposed_starts, layer.permutation
    return {
        "forward": lambda: conv(a, values, None, None, *rows, *columns, taps, stride),
        "input gradient": lambda: input_gradient(
            g, values, *columns, *x.shape[2:], taps, stride
        ),
        "weight gradient": lambda: weight_gradient(a, g, *rows, taps, stride),
    }


def errors(dense: dict[str, Calls], sparse: Calls, layer: SparseConv2d) -> float:
    """Over the three products."""
    worst = 0.0
    for product in PRODUCTS:
        expected, got = dense[product]["NCHW"](), sparse[product]()
        if product == "weight gradient":
            expected = expected[layer.mask()]
        else:
            got = from_blocked(got, len(expected))
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst


def measure(
    shape: tuple[int, ...], density: float, batch: int, rounds: int
) -> dict[str, Any]:
    inputs, outputs, side, kernel, stride = shape
    torch.manual_seed(0)
    module = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    mask = torch.rand(module.weight.shape) < density
    with torch.no_grad():
        module.weight *= mask
        x = torch.randn(batch, inputs, side, side)
        grad = torch.randn(module(x).shape)
    layer = SparseConv2d.from_dense(module, mask)
    dense, sparse = dense_calls(module, x, grad), sparse_calls(layer, x, grad)
    error = errors(dense, sparse, layer)  # also warms up
    times = [
        {
            product: {
                name: milliseconds(call)
                for name, call in (dense[product] | {"sparse": sparse[product]}).items()
            }
            for product in PRODUCTS
        }
        for _ in range(rounds)
    ]
    operations = 2 * layer.nnz * batch * grad.shape[2] * grad.shape[3]
    row: dict[str, Any] = {"layer": shape, "density": density, "error": error}
    for product in PRODUCTS:
        found = [t[product] for t in times]
        best = min(LAYOUTS, key=lambda name: median(t[name] for t in found))
        ms = median(t["sparse"] for t in found)
        row[product] = {
            "dense_ms": median(t[best] for t in found),
            "layout": best,
            "sparse_ms": ms,
            "gflops": operations / ms / 1e6,
            "speedup": median(t[best] / t["sparse"] for t in found),
        }
    return row


def milliseconds(call: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


TITLE = "Sparse convolutions, layer by layer"


def markdown(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['machine']}, {report['threads']} thread(s), batch {report['batch']}, "
        f"torch {report['torch']}, medians of {report['rounds']} rounds. Dense ms of "
        "the faster layout; speed-up and, in brackets, useful GFLOP/s.",
        "",
    ]
    titles = "layer | density | dense ms | forward | input gradient | weight gradient"
    return lines + table(f"{titles} | error", map(cells, report["rows"]))


def cells(row: dict[str, Any]) -> str:
    inputs, outputs, side, kernel, stride = row["layer"]
    dense = " / ".join(f"{row[p]['dense_ms']:.2f}" for p in PRODUCTS)
    gains = [f"{row[p]['speedup']:.1f} ({row[p]['gflops']:.0f})" for p in PRODUCTS]
    return (
        f"{inputs}→{outputs}, {side}x{side}, {kernel}x{kernel} /{stride} "
        f"| {row['density']:.2f} | {dense} | {' | '.join(gains)} | {row['error']:.0e}"
    )


def main() -> None:
    args = reports.parser(
        __doc__, quick="one layer, two rounds", batch=32, rounds=15, threads=1
    ).parse_args()
    layers, densities = LAYERS, DENSITIES
    if args.quick:
        layers, densities, args.rounds = [(16, 16, 8, 3, 1)], (0.1,), 2
    torch.set_num_threads(args.threads)
    report = {
        **reports.setting(args),
        "spin_count": os.environ.get("GOMP_SPINCOUNT"),
        "rows": [
            measure(shape, density, args.batch, args.rounds)
            for shape in layers
            for density in densities
        ],
    }
    save(args.out / "conv_layers.json", report, markdown(report), TITLE)


if __name__ == "__main__":
    main()
