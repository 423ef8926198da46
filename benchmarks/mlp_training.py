"""A training step of a sparse MLP, against the fastest dense one, a masked one and MKL.

    python -m benchmarks.mlp_training                   # widths 4096, 2048 and 1024
    python -m benchmarks.mlp_training --width 4096 --threads 2
    python -m benchmarks.mlp_training --quick           # width 256, one round

A step is zero_grad, forward, squared error, backward and Adam, for three square layers
without biases with ReLU between. Dense is torch eager with Adam's multi-tensor and
fused form, and torch.compile with the fused one; the fastest counts. A processor with
bfloat16 units makes dense products faster at the price of 8 bits of precision: dense
under autocast, eager and compiled, weights and Adam in float32, is the second rival,
with a ratio of its own. (Everything in bfloat16, weights and moments too, is faster
still, but no longer the same training: an update of less than 1/256 of a weight is
lost. torch.compile's mode max-autotune was not measured.) Masked is the
dense model under a `Sparsifier` with `Static`; MKL is values mode on torch's CSR
products with a stored transposed index, ours the same on our kernels. All sparse ones
have the same masks and fused Adam. Every arm takes one step a round, one after the
other; ratios are taken within rounds, and the median counts.

State is weights, indices and moments, counted from the tensors. The error is that of
the gradients against the masked dense model, |difference| / |gradient|, of the worst
layer, given the same inputs and gradients of outputs. Over the whole network one ReLU
whose input is within rounding of zero may switch, which alone makes 1e-3 of a layer's
gradient.

The second table holds single products of one square layer against torch's CSR (MKL) and
scipy, activations feature-major for all three, and batch 1 as matrix times vector.
"""

import argparse
import copy
import json
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common.provenance import stored_provenance
from benchmarks import reports
from benchmarks.reports import save, table
from benchmarks.rounds import milliseconds, race
from sparsekit.execution.linear import SparseLinear, linear, weight_gradient
from sparsekit.methods.static import Static
from sparsekit.sparsifier import Sparsifier

SPARSITIES = (0.75, 0.8, 0.9, 0.95, 0.98, 0.99)
DENSE = ("multi-tensor Adam", "fused Adam", "compiled, fused Adam")
BFLOAT16 = ("bfloat16 autocast, fused Adam", "compiled bfloat16 autocast, fused Adam")
LAYERS = 3

Step = Callable[[], Any]


def network(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(width, width, bias=False) for _ in range(LAYERS)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class MklLinear(nn.Module):
    """Values mode on torch's CSR products: the rival that needs no kernels of ours."""

    def __init__(self, module: SparseLinear):
        super().__init__()
        self.values = nn.Parameter(module.values.detach().clone())
        self.shape = module.dense_shape
        self.crow, self.col = module.crow, module.col
        rows = torch.arange(len(self.crow) - 1).repeat_interleave(self.crow.diff())
        self.order = (self.col.long() * self.shape[0] + rows).argsort().int()
        self.tcol = rows[self.order].int()
        counts = torch.bincount(self.col, minlength=self.shape[1])
        self.tcrow = F.pad(counts.cumsum(0), (1, 0)).int()

    def forward(self, x: Tensor) -> Tensor:
        return _Mkl.apply(x, self.values, self)


class _Mkl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, layer: MklLinear) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        csr = _csr(layer.crow, layer.col, values, layer.shape)
        return torch.sparse.mm(csr, x.t()).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, values = ctx.saved_tensors
        layer, towards_x = ctx.layer, None
        if ctx.needs_input_grad[0]:
            csr = _csr(layer.tcrow, layer.tcol, values[layer.order], layer.shape[::-1])
            towards_x = torch.sparse.mm(csr, grad.t()).t()
        pattern = _csr(layer.crow, layer.col, torch.zeros_like(values), layer.shape)
        product = torch.sparse.sampled_addmm(pattern, grad.t(), x, beta=0.0)
        return towards_x, product.values(), None


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def step_of(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    fused: bool = True,
    compiled: bool = False,
    bfloat16: bool = False,
    sparsifier: Sparsifier | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Step:
    run = torch.compile(model) if compiled else model
    adam = optimizer or torch.optim.Adam(
        model.parameters(), 1e-4, fused=fused, foreach=None if fused else True
    )

    def step() -> torch.optim.Optimizer:
        adam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = run(x)
        F.mse_loss(y.float(), target).backward()
        if sparsifier:
            sparsifier.before_step()
        adam.step()
        if sparsifier:
            sparsifier.after_step()
        return adam

    return step


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Weights, indices and moments."""
    moments = [
        t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)
    ]
    tensors = [*model.parameters(), *model.buffers(), *moments]
    return sum(t.nbytes for t in tensors if t.dim())


def gradient_error(masked: nn.Module, ours: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of the worst product; each layer of ours gets what the masked one has got."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def remember(layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if y.requires_grad:
            y.register_hook(lambda grad: seen.update({layer: (x.detach(), grad)}))

    hooks = [
        layer.register_forward_hook(lambda layer, args, y: remember(layer, args[0], y))
        for layer in masked
        if isinstance(layer, nn.Linear)
    ]
    masked.zero_grad()
    F.mse_loss(masked(x), y).backward()
    for hook in hooks:
        hook.remove()
    worst = 0.0
    for dense, sparse in zip(masked, ours, strict=True):
        if isinstance(sparse, SparseLinear):
            x, grad = seen[dense]
            x.requires_grad_()
            got = torch.autograd.grad(sparse(x), (x, sparse.values), grad)
            exact = grad @ dense.weight, dense.weight.grad[sparse.mask()]
            for ours_, theirs in zip(got, exact, strict=True):
                worst = max(worst, float((ours_ - theirs).norm() / theirs.norm()))
    return worst


def sparse_arms(
    width: int, sparsity: float, x: Tensor, target: Tensor
) -> tuple[dict[str, Step], nn.Module, float]:
    """Steps of the masked, MKL and own model, the last model, and its error."""
    masked = network(width)
    adam = torch.optim.Adam(masked.parameters(), 1e-4, fused=True)
    sparsifier = Sparsifier(masked, adam, Static(sparsity=sparsity))
    masks = {name: mask.clone() for name, mask in sparsifier.alive.items()}
    ours, mkl = copy.deepcopy(masked), copy.deepcopy(masked)
    for i in range(0, 2 * LAYERS, 2):
        ours[i] = SparseLinear.from_dense(masked[i], masks[f"{i}.weight"])
        mkl[i] = MklLinear(ours[i])
    error = gradient_error(masked, ours, x, target)
    return (
        {
            "masked": step_of(masked, x, target, sparsifier=sparsifier, optimizer=adam),
            "mkl": step_of(mkl, x, target),
            "ours": step_of(ours, x, target),
        },
        ours,
        error,
    )


def measure_width(width: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    x, target = torch.randn(args.batch, width), torch.randn(args.batch, width)
    models = [network(width) for _ in DENSE + BFLOAT16]
    dense = {
        name: step_of(
            model,
            x,
            target,
            fused="fused" in name,
            compiled="compiled" in name,
            bfloat16="bfloat16" in name,
        )
        for name, model in zip(DENSE + BFLOAT16, models, strict=True)
    }
    full = state_bytes(models[0], dense[DENSE[0]]())
    rows = []
    for sparsity in args.sparsities:
        sparse, ours, error = sparse_arms(width, sparsity, x, target)
        arms = dense | sparse
        for step in arms.values():
            step(), step()
        times = [
            {name: milliseconds(step, 1, "cpu") for name, step in arms.items()}
            for _ in range(args.rounds)
        ]
        ms = {name: median(t[name] for t in times) for name in arms}
        fastest, half = (min(arms_, key=ms.__getitem__) for arms_ in (DENSE, BFLOAT16))
        rows.append(
            {
                "width": width,
                "sparsity": sparsity,
                "dense": fastest,
                "bfloat16": half,
                "ms": ms,
                "speedup": {
                    name: median(t[fastest] / t[name] for t in times) for name in sparse
                },
                "speedup_over_bfloat16": median(t[half] / t["ours"] for t in times),
                "state": state_bytes(ours, sparse["ours"]()) / full,
                "state_mb": full / 1e6,
                "error": error,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_products(
    width: int, batch: int, sparsity: float, rounds: int
) -> dict[str, Any]:
    """Forward and weight gradient of one layer, against dense, MKL and scipy."""
    torch.manual_seed(0)
    module = nn.Linear(width, width, bias=False)
    mask = torch.rand(width, width) >= sparsity
    layer = SparseLinear.from_dense(module, mask)
    values, weight = layer.values.detach(), module.weight.detach()
    x, g = (torch.randn(width, batch).t() for _ in range(2))  # feature-major
    x_rows, g_rows = x.contiguous(), g.contiguous()
    csr = _csr(layer.crow, layer.col, values, layer.dense_shape)
    pattern = _csr(layer.crow, layer.col, torch.zeros_like(values), layer.dense_shape)
    index = (
        layer.col, layer.starts, layer.transposed_starts, layer.transposed_col,
        layer.permutation,
    )  # fmt: skip
    forward: dict[str, Step] = {
        "dense": lambda: F.linear(x_rows, weight),
        "mkl": (lambda: torch.sparse.mm(csr, x.t()))
        if batch > 1
        else (lambda: torch.mv(csr, x[0])),
        "ours": lambda: linear(x, values, None, None, *index),
    }
    try:
        from scipy.sparse import csr_array
    except ImportError:
        pass
    else:
        arrays = values.numpy(), layer.col.numpy(), layer.crow.numpy()
        matrix = csr_array(arrays, layer.dense_shape)
        right = x.t().numpy() if batch > 1 else x[0].numpy()
        forward["scipy"] = lambda: matrix @ right
    gradient: dict[str, Step] = {
        "dense": lambda: g_rows.t() @ x_rows,
        "mkl": lambda: torch.sparse.sampled_addmm(pattern, g.t(), x, beta=0.0),
        "ours": lambda: weight_gradient(g, x, layer.col, layer.starts),
    }
    return {
        "width": width,
        "batch": batch,
        "sparsity": sparsity,
        "forward": race(forward, rounds, "cpu"),
        "weight gradient": race(gradient, rounds, "cpu"),
    }


TITLE = "Training step of a sparse MLP"


def markdown(report: dict[str, Any]) -> list[str]:
    origin = report["provenance"]
    return [
        f"{LAYERS} square layers without biases, batch {report['batch']}, Adam, "
        f"{report['threads']} thread(s), {origin['device']}, torch "
        f"{origin['versions']['torch']}, medians of {report['rounds']} rounds. "
        "Speed-ups over the fastest dense arm of the row.",
        "",
        *table(
            "width | sparsity | dense ms | fastest | masked | MKL | ours | "
            "dense bfloat16 ms | ours over it | ours ms | state | error",
            map(step_cells, report["steps"]),
        ),
        "",
        "## One layer: forward, and weight gradient in brackets, over dense",
        "",
        *table(
            "width | batch | sparsity | dense ms | MKL | scipy | ours",
            map(product_cells, report["products"]),
        ),
    ]


def step_cells(row: dict[str, Any]) -> str:
    speedup = row["speedup"]
    return (
        f"{row['width']} | {row['sparsity']:.0%} "
        f"| {row['ms'][row['dense']]:.1f} | {row['dense']} "
        f"| {speedup['masked']:.2f} | {speedup['mkl']:.2f} "
        f"| **{speedup['ours']:.2f}** | {row['ms'][row['bfloat16']]:.1f} "
        f"| **{row['speedup_over_bfloat16']:.2f}** | {row['ms']['ours']:.1f} "
        f"| {row['state']:.3f} | {row['error']:.0e}"
    )


def product_cells(row: dict[str, Any]) -> str:
    forward, gradient = row["forward"], row["weight gradient"]
    scipy = forward.get("scipy", {"speedup": float("nan")})["speedup"]
    return (
        f"{row['width']} | {row['batch']} | {row['sparsity']:.0%} "
        f"| {forward['dense']['ms']:.2f} ({gradient['dense']['ms']:.2f}) "
        f"| {forward['mkl']['speedup']:.2f} ({gradient['mkl']['speedup']:.2f}) "
        f"| {scipy:.2f} "
        f"| {forward['ours']['speedup']:.2f} ({gradient['ours']['speedup']:.2f})"
    )


def main() -> None:
    parser = reports.parser(
        __doc__, out="mlp_training.json", quick="width 256, one round",
        batch=128, rounds=9, threads=1,
    )  # fmt: skip
    parser.add_argument("--width", type=int, nargs="+", default=[4096, 2048, 1024])
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [(n, b) for n in (1024, 4096) for b in (1, 32, 128, 256)]
    grid = SPARSITIES[::2]
    if args.quick:
        args.width, args.rounds, args.sparsities = [256], 1, [0.9]
        cases, grid = [(256, 1), (256, 32)], (0.9,)
    origin = stored_provenance("full")
    report = {
        "batch": args.batch,
        "threads": args.threads,
        "rounds": args.rounds,
        "steps": [row for width in args.width for row in measure_width(width, args)],
        "products": [
            measure_products(n, b, sparsity, args.rounds)
            for n, b in cases
            for sparsity in grid
        ],
        "provenance": origin,
    }
    save(args.out, report, markdown(report), TITLE)


if __name__ == "__main__":
    main()
