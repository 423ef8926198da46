"""A training step of a sparse ResNet-18, against the fastest dense engine.

    python -m benchmarks.resnet_training                 # widths 64 and 16, batch 32
    python -m benchmarks.resnet_training --threads 2
    python -m benchmarks.resnet_training --quick         # width 4, batch 8, one round

A step is forward, cross-entropy, backward and fused SGD with momentum and decay. The
sparse network has its convolutions in values mode at one density (the stem, of 3 input
channels, keeps all weights). Rivals are torch eager in both memory formats and
torch.compile of both, on the same network, with the absent weights at zero; and, with a
ratio of its own, autocast to bfloat16 in both formats, which processors with such units
run faster at 8 bits of precision (torch.compile of it is no faster here). Every
engine takes three steps in a row a round, and the last two are timed, as in a training
that goes on; ratios are taken within rounds, and the median counts.

The error is that of the gradients of all alive weights, against float64: the median
over layers of |g - exact| / |exact|, ours and torch's. Memory is the peak of a fresh
process above what it had before its first step, with gradients; the state is weights,
indices and momentum.

What bounds a sparse step: `gflops` are floating-point operations a nanosecond of the
three products, those with absent weights not counted. The dense network's are near what
one core can do, twice as many: a sparse product loads a vector for every one that it
multiplies, most of them from the second-level cache. Norms and the rest, which no
sparsity makes smaller, are a quarter of a step at density 0.1 and a third at 0.05.
"""

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import reports
from benchmarks.networks import resnet18
from benchmarks.reports import save, table
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.kernels import conv, norm
from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.network import blocked_network
from sparsekit.flops import forward_flops
from sparsekit.memory import peak_rss, restart_peak

DENSITIES = (0.25, 0.1, 0.05, 0.02)
DENSE = ("nchw", "channels last", "compiled nchw", "compiled channels last")
BFLOAT16 = ("bfloat16 nchw", "bfloat16 channels last")
PARTS = {  # what runs the kernels, by part; the remaining time is the rest
    "convolution": (conv, "forward"),
    "input gradient": (conv, "input_gradient"),
    "weight gradient": (conv, "weight_gradient"),
    "norm": (norm, "forward"),
    "norm gradient": (norm, "backward"),
}


def masked_resnet(width: int, density: float) -> nn.Module:
    """Random masks of one density in all convolutions but the stem."""
    torch.manual_seed(0)
    model = resnet18(width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            mask = torch.rand(module.weight.shape) < density
            module.weight.data.mul_(mask).div_(density**0.5)
    return model


def sparse_resnet(dense: nn.Module) -> nn.Module:
    model = copy.deepcopy(dense)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.Conv2d):
                parent._modules[name] = SparseConv2d.from_dense(child)
    network, reason = blocked_network(model)
    if reason:
        raise RuntimeError(reason)
    return network


def batch(size: int, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, side, side, generator=generator)
    return x, torch.randint(0, 10, (size,), generator=generator)


def stepper(model: nn.Module, engine: str, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A call that takes one training step of its own copy of the model."""
    model = copy.deepcopy(model)
    if "channels last" in engine:
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    called = torch.compile(model) if "compiled" in engine else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
    )

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in engine):
            logits = called(x)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()

    return step


def gradient_errors(dense: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """{engine: median over layers of |gradient - exact| / |exact|}."""

    def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        model = copy.deepcopy(model)
        F.cross_entropy(model(x), y).backward()
        return {
            name: m.values.grad if isinstance(m, SparseLayer) else m.weight.grad
            for name, m in model.named_modules()
            if isinstance(m, (SparseLayer, nn.Conv2d))
        }

    sparse = sparse_resnet(dense)
    masks = {n: m.mask() for n, m in sparse.named_modules() if hasattr(m, "mask")}
    exact = gradients(copy.deepcopy(dense).double(), x.double())
    found = {"sparse": gradients(sparse, x), "dense": gradients(dense, x)}
    errors = {}
    for engine, grads in found.items():
        ratios = []
        for name, mask in masks.items():
            answer = exact[name][mask]
            got = grads[name] if engine == "sparse" else grads[name][mask]
            ratios.append(float((got - answer).norm() / answer.norm()))
        errors[engine] = median(ratios)
    return errors


def parts(step: Callable[[], None], rounds: int = 3) -> dict[str, float]:
    """Share of a step that each part takes."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            result = function(*args)
            spent[part] += time.perf_counter() - began
            return result

        return call

    with ExitStack() as stack:
        for part, (module, name) in PARTS.items():
            function = timed(part, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, function))
        total = seconds(lambda: [step() for _ in range(rounds)])
    shares = {part: spent[part] / total for part in PARTS}
    return shares | {"rest": 1 - sum(shares.values())}


def rates(dense: nn.Module, x: Tensor, spent: dict[str, float]) -> dict[str, float]:
    """GFLOP/s of the products with alive weights; spent: seconds of each."""
    masks = {
        f"{name}.weight": module.weight != 0
        for name, module in dense.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    flops = forward_flops(dense, x).sparse(masks).parameters
    total = sum(flops[name] for name in masks)
    stem = flops[next(iter(masks))]  # whose input needs no gradient
    products = {"convolution": total, "input gradient": total - stem}
    products["weight gradient"] = total
    return {part: products[part] / spent[part] / 1e9 for part in products}


def state_bytes(model: nn.Module) -> int:
    """Weights, buffers and one momentum a weight."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    momentum = sum(p.numel() * 4 for p in model.parameters())
    return sum(t.numel() * t.element_size() for t in tensors.values()) + momentum


def peak_bytes(width: int, density: float, engine: str, x: Tensor, y: Tensor) -> int:
    """Of three steps; in this process: call it once, in a fresh one."""
    model = masked_resnet(width, density)
    if engine == "sparse":
        model = sparse_resnet(model)
    stepper(resnet18(4), "nchw", x[:2], y[:2])()  # loads what is loaded late
    step = stepper(model, engine, x, y)
    restart_peak()
    before = peak_rss()
    for _ in range(3):
        step()
    return peak_rss() - before


def peak_in_fresh_process(
    width: int, density: float, engine: str, args: argparse.Namespace
) -> int:
    return reports.fresh(
        "resnet_training", "--peak", engine, "--widths", width,
        "--densities", density, "--batch", args.batch, "--side", args.side,
    )  # fmt: skip


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def seconds_of_a_step(step: Callable[[], None]) -> float:
    step()  # fetches what other engines have driven out of the caches
    return seconds(lambda: (step(), step())) / 2


def measure(width: int, args: argparse.Namespace) -> dict[str, Any]:
    x, y = batch(args.batch, args.side)
    dense = {d: masked_resnet(width, d) for d in args.densities}
    first = dense[args.densities[0]]
    engines = {name: stepper(first, name, x, y) for name in (*args.dense, *BFLOAT16)}
    sparse = {d: sparse_resnet(model) for d, model in dense.items()}
    engines |= {str(d): stepper(m, "sparse", x, y) for d, m in sparse.items()}
    for step in engines.values():  # compiles, and fills the memory that is used again
        step()
        step()
    rounds = [
        {name: seconds_of_a_step(step) for name, step in engines.items()}
        for _ in range(args.rounds)
    ]
    times = {name: median(r[name] for r in rounds) for name in engines}
    fastest, half = (min(n, key=times.__getitem__) for n in (args.dense, BFLOAT16))
    rival = "channels last" if "channels last" in fastest else "nchw"
    rows = {}
    for d, model in sparse.items():
        shares = parts(engines[str(d)])
        spent = {part: share * times[str(d)] for part, share in shares.items()}
        ratios = sorted(r[fastest] / r[str(d)] for r in rounds)
        rows[str(d)] = {
            "seconds": times[str(d)],
            "speedup": median(ratios),
            "speedup_low": ratios[len(ratios) // 10],
            "speedup_high": ratios[-1 - len(ratios) // 10],
            "speedup_over_bfloat16": median(r[half] / r[str(d)] for r in rounds),
            "parts": shares,
            "gflops": rates(dense[d], x, spent),
            "errors": gradient_errors(dense[d], x, y),
            "state_bytes": state_bytes(model),
            "peak_bytes": peak_in_fresh_process(width, d, "sparse", args),
        }
    return {
        "dense_seconds": {name: times[name] for name in (*args.dense, *BFLOAT16)},
        "fastest": fastest,
        "fastest_bfloat16": half,
        "dense_state_bytes": state_bytes(first),
        "dense_peak_bytes": peak_in_fresh_process(width, 1.0, rival, args),
        "sparse": rows,
    }


TITLE = "Training step of a sparse ResNet-18"


def markdown(report: dict[str, Any]) -> list[str]:
    lines = [
        f"Batch {report['batch']} of 3x{report['side']}x{report['side']}, "
        f"{report['machine']}, {report['threads']} thread(s), torch {report['torch']}, "
        f"medians of {report['rounds']} rounds; in brackets, 80 % of the rounds.",
    ]
    for width, result in report["widths"].items():
        shown = reports.milliseconds(result["dense_seconds"], 1)
        lines += [
            "",
            f"## Width {width}",
            "",
            f"Dense: {shown}. Peak {result['dense_peak_bytes'] / 1e6:.0f} MB, state "
            f"{result['dense_state_bytes'] / 1e6:.1f} MB.",
            "",
            *table(
                f"density | ms | over {result['fastest']} | over "
                f"{result['fastest_bfloat16']} | conv (GFLOP/s) | input gradient | "
                "weight gradient | norm | rest | error (torch's) | peak MB | state MB",
                (cells(density, row) for density, row in result["sparse"].items()),
            ),
        ]
    return lines


def cells(density: str, row: dict[str, Any]) -> str:
    p, rate = row["parts"], row["gflops"]
    norm = p["norm"] + p["norm gradient"]
    return (
        f"{density} | {row['seconds'] * 1e3:.1f} | {row['speedup']:.2f}x "
        f"({row['speedup_low']:.2f}–{row['speedup_high']:.2f}) | "
        f"{row['speedup_over_bfloat16']:.2f}x | "
        f"{' | '.join(f'{p[part]:.0%} ({r:.0f})' for part, r in rate.items())} "
        f"| {norm:.0%} | {p['rest']:.0%} | "
        f"{row['errors']['sparse']:.0e} ({row['errors']['dense']:.0e}) | "
        f"{row['peak_bytes'] / 1e6:.0f} | {row['state_bytes'] / 1e6:.1f}"
    )


def main() -> None:
    parser = reports.parser(
        __doc__, quick="width 4, one round", batch=32, side=32, rounds=11, threads=1
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--dense", nargs="+", choices=DENSE, default=DENSE)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        x, y = batch(args.batch, args.side)
        print(peak_bytes(args.widths[0], args.densities[0], args.peak, x, y))
        return
    if args.quick:
        args.widths, args.densities, args.dense = [4], [0.1], DENSE[:2]
        args.batch, args.side, args.rounds = 8, 16, 1
    widths = {str(width): measure(width, args) for width in args.widths}
    report = {**reports.setting(args), "widths": widths}
    save(args.out / "resnet_training.json", report, markdown(report), TITLE)


if __name__ == "__main__":
    main()
