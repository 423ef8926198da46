"""Sparse linear layers on one GPU: 2:4, block-sparse and balanced blocks against dense.

    python -m benchmarks.gpu_sparse                       # writes build/benchmarks/
    python -m benchmarks.gpu_sparse --out results.json
    python -m benchmarks.gpu_sparse --device cpu --quick  # the script itself, no GPU

Every form is called eagerly and inside a CUDA graph, and compared with the dense layer
in the same mode: an eager call of some forms costs more on the host than on the GPU.
Times are medians over rounds, ratios medians of paired rounds, the error is the largest
difference from a float32 product with the same weights, over the largest output. What
raises is reported with its message. Weights and inputs are random.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.provenance import provenance
from benchmarks import reports
from benchmarks.networks import Encoder
from benchmarks.reports import table, write
from benchmarks.rounds import race
from sparsekit.execution.blocks import BlockLinear
from sparsekit.execution.semi_structured import (
    BSRLinear,
    SemiStructuredLinear,
    cuda_graph,
)
from sparsekit.patterns import NM

REPEATS = 10  # calls in one graph

Make = Callable[[nn.Linear], nn.Module]


class CSRLinear(nn.Module):
    """What torch offers for weights without structure."""

    def __init__(self, dense: nn.Linear, density: float):
        super().__init__()
        alive = torch.rand_like(dense.weight, dtype=torch.float32) < density
        self.weight = (dense.weight.detach() * alive).to_sparse_csr()

    def to_module(self) -> nn.Linear:
        return linear_of(self.weight.to_dense())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Repeated(nn.Module):
    """A layer called several times, so that a graph's launch does not count."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(REPEATS):
            y = self.module(x)
        return y


def linear_of(weight: Tensor) -> nn.Linear:
    out, n = weight.shape
    module = nn.Linear(n, out, False, weight.device, weight.dtype)
    module.weight.data.copy_(weight)
    return module


def dense(module: nn.Linear) -> nn.Module:
    return module


def two_of_four(module: nn.Linear) -> nn.Module:
    scores = module.weight.detach().abs()
    mask = NM(2, 4).mask(scores, scores.numel() // 2)
    return SemiStructuredLinear.from_dense(module, mask)


def bsr(block: int, keep: float) -> Make:
    def make(module: nn.Linear) -> nn.Module:
        mask = BlockLinear.from_dense(module, block, keep).mask()
        return BSRLinear.from_dense(module, block, mask)

    return make


def blocks(block: int, keep: float, gather_bytes: int = 2**40) -> Make:
    def make(module: nn.Linear) -> nn.Module:
        layer = BlockLinear.from_dense(module, block, keep)
        layer.gather_bytes = gather_bytes
        return layer

    return make


def forms(dtype: torch.dtype, quick: bool) -> dict[str, Make]:
    found: dict[str, Make] = {"dense": dense}
    if dtype == torch.bfloat16:
        found["2:4 cuSPARSELt"] = two_of_four
    for keep in (0.3, 0.1):
        found[f"BSR 64, {keep:.0%}"] = bsr(64, keep)
        for block in (64, 128):
            found[f"blocks {block}, {keep:.0%}"] = blocks(block, keep)
            if not quick:
                name = f"blocks {block}, {keep:.0%}, 32 MB"
                found[name] = blocks(block, keep, 2**25)
    if dtype == torch.float32:
        found["CSR 2%"] = lambda module: CSRLinear(module, 0.02)
    return found


# ---- timing --------------------------------------------------------------------------


@contextmanager
def recorded(failures: dict[str, str], name: str) -> Iterator[None]:
    """A form that raises is a result too."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        failures[name] = f"{type(error).__name__}: {lines[0][:200]}"


def compare(
    modules: dict[str, nn.Module], x: Tensor, rounds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """{form: {eager, graph: {ms, speedup}}}, and {form: why it failed}."""
    device = x.device.type
    failures: dict[str, str] = {}
    eager: dict[str, Callable[[], Any]] = {}
    graphs: dict[str, Callable[[], Any]] = {}
    for name, module in modules.items():
        with recorded(failures, name):
            module(x)
            eager[name] = lambda module=module: module(x)
        if name in eager and device == "cuda":
            with recorded(failures, f"{name}, graph"):
                replay = cuda_graph(Repeated(module), x)
                graphs[name] = lambda replay=replay: replay(replay.input)
    rows: dict[str, dict[str, Any]] = {
        name: {"eager": row} for name, row in race(eager, rounds, device).items()
    }
    for name, row in (
        race(graphs, rounds, device) if "dense" in graphs else {}
    ).items():
        rows[name]["graph"] = {"ms": row["ms"] / REPEATS, "speedup": row["speedup"]}
    return rows, failures


# ---- what is measured ----------------------------------------------------------------


@torch.no_grad()
def layers(n: int, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """One n x n layer, batch n."""
    weight = torch.randn(n, n, device=args.device).to(dtype) / n**0.5
    module = linear_of(weight)
    x = torch.randn(n, n, device=args.device).to(dtype)
    modules: dict[str, nn.Module] = {}
    failures: dict[str, str] = {}
    checks: dict[str, dict[str, float]] = {}
    for name, make in forms(dtype, args.quick).items():
        with recorded(failures, name):
            made = make(module)
            checks[name] = check(made, x)
            modules[name] = made
    rows, failed = compare(modules, x, args.rounds)
    for name, row in rows.items():
        row.update(checks[name])
    return {
        "case": f"{n} x {n}, batch {n}, {str(dtype).removeprefix('torch.')}",
        "forms": rows,
        "failures": failures | failed,
    }


def check(made: nn.Module, x: Tensor) -> dict[str, float]:
    """The density that it really has, and the error."""
    plain = made if isinstance(made, nn.Linear) else made.to_module()
    exact = x.float() @ plain.weight.float().t()
    error = (made(x).float() - exact).abs().max() / exact.abs().max()
    density = (plain.weight != 0).float().mean()
    return {"density": float(density), "error": float(error)}


def training(n: int, args: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward to the input and the weights, eagerly, bfloat16."""
    weight = torch.randn(n, n, device=args.device).bfloat16() / n**0.5
    x = torch.randn(n, n, device=args.device).bfloat16().requires_grad_()
    wanted = {"dense": dense}
    for keep in (0.3, 0.1):
        for block in (64, 128):
            wanted[f"blocks {block}, {keep:.0%}"] = blocks(block, keep)
    calls: dict[str, Callable[[], Any]] = {}
    failures: dict[str, str] = {}
    for name, make in wanted.items():
        with recorded(failures, name):
            calls[name] = step(make(linear_of(weight)), x)
            calls[name]()
    rows = race(calls, args.rounds, args.device)
    return {
        "case": f"training, {n} x {n}, batch {n}, bfloat16",
        "forms": {name: {"eager": row} for name, row in rows.items()},
        "failures": failures,
    }


def step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    gradient = torch.randn_like(x)

    def call() -> None:
        module(x).backward(gradient)
        x.grad = None
        module.zero_grad(set_to_none=True)

    return call


@torch.no_grad()
def encoder(args: argparse.Namespace) -> dict[str, Any]:
    """Transformer encoders, ViT-L's sizes: sparse are the two layers of each MLP."""
    width, heads, depth, batch = (1024, 16, 4, 64)
    if args.quick:
        width, heads, depth, batch = (256, 4, 1, 1)
    x = torch.randn(batch, 192, width, device=args.device).bfloat16()
    modules: dict[str, nn.Module] = {}
    failures: dict[str, str] = {}
    for name, make in forms(torch.bfloat16, args.quick).items():
        with recorded(failures, name):
            torch.manual_seed(0)
            model = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
            model = model.to(args.device, torch.bfloat16).eval()
            for block in model:
                block.up, block.down = make(block.up), make(block.down)
            modules[name] = model
    rows, failed = compare(modules, x, args.rounds)
    return {
        "case": f"{depth} encoders of width {width}, {batch} x 192 tokens, bfloat16",
        "forms": rows,
        "failures": failures | failed,
    }


TITLE = "Sparse layers on a GPU"


def markdown(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['device']}, torch {torch.__version__}, medians of "
        f"{report['rounds']} rounds. Speed-up over dense in the same mode. In `32 MB` "
        "the blocks' inputs are gathered in parts of that size.",
    ]
    for case in report["cases"]:
        titles = "form | density | eager ms | speed-up | graph ms | speed-up | error"
        rows = (cells(name, row) for name, row in case["forms"].items())
        lines += ["", f"## {case['case']}", "", *table(titles, rows)]
        lines += [f"\n{name}: {why}" for name, why in case["failures"].items()]
    return lines


def cells(name: str, row: dict[str, Any]) -> str:
    found = [name, f"{row['density']:.1%}" if "density" in row else "–"]
    for mode in ("eager", "graph"):
        got = row.get(mode)
        found += [f"{got['ms']:.3f}" if got else "–"]
        found += [f"{got['speedup']:.2f}" if got else "–"]
    return " | ".join([*found, f"{row['error']:.1e}" if "error" in row else "–"])


def main() -> None:
    parser = reports.parser(
        __doc__, out="gpu_sparse.json", quick="n = 256, two rounds", rounds=15
    )
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU here; --device cpu --quick runs the script itself")
    if args.quick:
        args.rounds = 2
    sizes = args.sizes or ([256] if args.quick else [1024, 2048, 4096, 8192])
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    gpu = args.device == "cuda"
    report: dict[str, Any] = {
        "provenance": provenance("smoke" if args.quick else "full"),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "rounds": args.rounds,
        "cases": [],
    }
    planned: list[tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]] = []
    planned += [(layers, (n, torch.bfloat16, args)) for n in sizes]
    planned += [(layers, (n, torch.float32, args)) for n in sizes if n in (256, 4096)]
    planned += [(training, (n, args)) for n in sizes if n >= 4096 or args.quick]
    planned += [(encoder, (args,))]
    for measure, values in planned:
        began = time.perf_counter()
        failures: dict[str, str] = {}
        with recorded(failures, measure.__name__):
            report["cases"].append(measure(*values))
        if failures:
            report["cases"].append(
                {"case": str(values[:-1]), "forms": {}, "failures": failures}
            )
        took = time.perf_counter() - began
        print(f"{report['cases'][-1]['case']}: {took:.0f} s", flush=True)
        page = write(args.out, report, markdown(report), TITLE)  # as it goes
        if gpu:
            torch.cuda.empty_cache()
    print(page)


if __name__ == "__main__":
    main()
