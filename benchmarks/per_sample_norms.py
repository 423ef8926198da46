"""Per-sample gradient norms: ours against a loop, vmap(grad) and Opacus.

    python -m benchmarks.per_sample_norms                # both networks, batch 128
    python -m benchmarks.per_sample_norms --quick        # batch 16, one round
    python -m benchmarks.per_sample_norms --device cuda --out gpu.json

Time is measured in rounds, every method once a round, and compared within rounds; the
median ratio is what counts. Memory is the peak of a fresh process above what it had
before the call, and is compared with one plain forward and backward pass. The error is
the largest relative difference from a loop in float64, so a GPU computes in float32
proper, without TF32. Opacus is measured if it is installed; it is no dependency. Beside
torch it needs numpy.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from apps.common.provenance import stored_provenance
from benchmarks import reports
from benchmarks.networks import NETWORKS
from benchmarks.reports import save, table
from sparsekit.data_pruning.per_sample import gradient_norms
from sparsekit.memory import peak_rss, restart_peak


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One forward and backward pass: the price of a training step, no norms."""
    F.cross_entropy(model(x), y, reduction="sum").backward()
    model.zero_grad(set_to_none=True)
    return torch.zeros(len(x))


def ours(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return gradient_norms(model, x, y)


def loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    norms = []
    parameters = list(model.parameters())
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, parameters)
        norms.append(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
    return torch.stack(norms)


def vmap(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (x.unsqueeze(0),))
        return F.cross_entropy(logits, y.unsqueeze(0))

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    squares = [g.flatten(1).square().sum(1) for g in grads.values()]
    return torch.stack(squares).sum(0).sqrt()


def vmap_unfused(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Where fused attention has no batching rule, vmap loops over it."""
    with sdpa_kernel(SDPBackend.MATH):
        return vmap(model, x, y)


def opacus(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Ghost norms for linear and embedding layers, per-sample gradients for others.

    Raises NotImplementedError for layers with buffers, batch norm among them, even in
    evaluation mode.
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")
    model.train()  # it records activations in this mode only
    try:
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        return wrapped.get_norm_sample().detach()
    finally:
        wrapped.zero_grad(set_to_none=True)
        wrapped.to_standard_module().eval()


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "ours": ours,
    "vmap": vmap,
    "vmap_unfused": vmap_unfused,
    "loop": loop,
}
if find_spec("opacus"):
    METHODS["opacus"] = opacus


def subject(network: str, batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network whose batch norms have seen data, and a batch of noise."""
    torch.manual_seed(0)
    model = NETWORKS[network]().to(device)
    x = torch.randn(batch, 3, 32, 32, device=device)
    with torch.no_grad():
        model(x[:64])
    return model.eval(), x, torch.randint(0, 10, (batch,), device=device)


def seconds(call: Callable[[], Any], device: str) -> float:
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_bytes(network: str, batch: int, device: str, method: str) -> int:
    """In this process: call it once, in a fresh one, and only once."""
    model, x, y = subject(network, batch, device)
    if device == "cuda":
        METHODS[method](model, x[:2], y[:2])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        METHODS[method](model, x, y)
        return torch.cuda.max_memory_allocated() - before
    METHODS[method](model, x[:2], y[:2])  # loads what is loaded late
    restart_peak()
    before = peak_rss()
    METHODS[method](model, x, y)
    return peak_rss() - before


def peak_in_fresh_process(network: str, args: argparse.Namespace, method: str) -> int:
    return reports.fresh(
        "per_sample_norms", "--peak", method, "--network", network,
        "--batch", args.batch, "--device", args.device, "--threads", args.threads,
    )  # fmt: skip


def errors(network: str, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """{method: largest relative error}, without the rivals that cannot do it."""
    exact = loop(model.double(), x.double(), y)
    model.float()
    found = {}
    for name, method in METHODS.items():  # also warms up
        try:
            norms = method(model, x, y).double().to(x.device)
        except RuntimeError as error:  # NotImplementedError is one
            if name in ("plain", "ours"):
                raise
            print(f"{name} fails on {network}: {error}", file=sys.stderr)
        else:
            found[name] = float(((norms - exact) / exact).abs().max())
    return found


def measure(network: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{method: {seconds, time_over_plain, times_ours, peak_mb, peak_over_plain,
    error}}."""
    model, x, y = subject(network, args.batch, args.device)
    error = errors(network, model, x, y)
    methods = {name: METHODS[name] for name in error}
    rounds = [
        {
            name: seconds(lambda method=method: method(model, x, y), args.device)
            for name, method in methods.items()
        }
        for _ in range(args.rounds)
    ]
    peaks = {name: peak_in_fresh_process(network, args, name) for name in methods}
    return {
        name: {
            "seconds": median(r[name] for r in rounds),
            "time_over_plain": median(r[name] / r["plain"] for r in rounds),
            "times_ours": median(r[name] / r["ours"] for r in rounds),
            "peak_mb": peaks[name] / 1e6,
            "peak_over_plain": peaks[name] / max(peaks["plain"], 1),
            "error": 0.0 if name == "plain" else error[name],
        }
        for name in methods
    }


TITLE = "Per-sample gradient norms"


def markdown(report: dict[str, Any]) -> list[str]:
    lines = [
        f"Batch {report['batch']} of 3x32x32, {report['provenance']['device']}, torch "
        f"{report['provenance']['versions']['torch']}, medians of {report['rounds']} "
        f"rounds. {report['opacus']}",
    ]
    for network, rows in report["networks"].items():
        cells = (
            f"{name} | {1000 * row['seconds']:.1f} | {row['time_over_plain']:.2f} | "
            f"{row['times_ours']:.2f} | {row['peak_mb']:.0f} | "
            f"{row['peak_over_plain']:.2f} | "
            + ("–" if name == "plain" else f"{row['error']:.1e}")
            for name, row in rows.items()
        )
        titles = "method | ms | over plain | over ours | peak MB | over plain | error"
        lines += ["", f"## {network}", "", *table(titles, cells)]
    return lines


def main() -> None:
    parser = reports.parser(
        __doc__, out="per_sample_norms.json", quick="batch 16, one round",
        batch=128, rounds=5, threads=1,
    )  # fmt: skip
    parser.add_argument("--network", choices=NETWORKS, help="default: all")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--commit", help="of the code, where there is no checkout")
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    if args.peak:
        print(peak_bytes(args.network, args.batch, args.device, args.peak))
        return
    if args.quick:
        args.batch, args.rounds = 16, 1
    networks = [args.network] if args.network else NETWORKS
    measured = {name: measure(name, args) for name in networks}
    origin = stored_provenance("full", args.commit)
    report = {
        "batch": args.batch,
        "rounds": args.rounds,
        "opacus": "" if "opacus" in METHODS else "Opacus is not installed: left out.",
        "networks": measured,
        "provenance": origin,
    }
    save(args.out, report, markdown(report), TITLE)


if __name__ == "__main__":
    main()
