"""Sparse forms that run on plain dense kernels, on a CPU, against dense layers.

    python -m benchmarks.structured            # writes build/benchmarks/structured.*
    python -m benchmarks.structured --quick    # one small size, two rounds

Balanced blocks, column-shared N:M and compaction; and N:M with a pattern of its own in
every row, as CSR, which is what a CPU can do with it. Forward: one layer in evaluation.
Training: forward and backward to the input and the weights, without an optimizer. What
a form rearranges is timed too. Times are medians over rounds, ratios medians of paired
rounds; the error is the largest difference from the dense layer with the same weights,
over the largest output; density is the share of the weights that is stored. Weights
and inputs are random.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from apps.common.provenance import provenance
from benchmarks import reports
from benchmarks.reports import save, table
from benchmarks.rounds import race
from sparsekit.execution.blocks import BlockLinear
from sparsekit.execution.compact import compact
from sparsekit.execution.shared_columns import SharedColumnsLinear
from sparsekit.patterns import NM

DENSITIES = (0.5, 0.2, 0.1)
RATIOS = ((2, 4), (1, 4), (1, 8))


class CSRLinear(nn.Module):
    """torch's own sparse matrix: no gradient, no bias."""

    def __init__(self, dense: nn.Linear):
        super().__init__()
        self.weight = dense.weight.detach().to_sparse_csr()

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.t()).t()  # F.linear takes up to five times as long


def pruned(module: nn.Linear, mask: Tensor) -> nn.Linear:
    other = nn.Linear(module.in_features, module.out_features, bias=False)
    other.weight.data.copy_(module.weight * mask)
    return other


def layer_forms(n: int, training: bool) -> dict[str, tuple[nn.Module, nn.Module]]:
    """{form: (the layer, the dense one that computes the same)}."""
    torch.manual_seed(0)
    dense = nn.Linear(n, n, bias=False)
    forms: dict[str, tuple[nn.Module, nn.Module]] = {"dense": (dense, dense)}
    for density in DENSITIES:
        for block in (64, 128):
            layer = BlockLinear.from_dense(dense, block, density)
            forms[f"blocks {block}, {density:.0%}"] = layer, layer.to_module()
    for k, m in RATIOS:
        shared = SharedColumnsLinear.from_dense(dense, k, m)
        forms[f"{k}:{m} shared"] = shared, shared.to_module()
        tiled = SharedColumnsLinear.from_dense(dense, k, m, tile=128)
        forms[f"{k}:{m} shared by 128"] = tiled, tiled.to_module()
    if not training:
        for k, m in RATIOS:
            scores = dense.weight.detach().abs()
            same = pruned(dense, NM(k, m).mask(scores, n * n * k // m))
            forms[f"{k}:{m} in each row, CSR"] = CSRLinear(same), same
    return forms


def compacted_forms(n: int) -> dict[str, tuple[nn.Module, nn.Module]]:
    """A network with one hidden layer, and with a share of its units only."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n))
    forms: dict[str, tuple[nn.Module, nn.Module]] = {"dense": (dense, dense)}
    for keep in (0.5, 0.25, 0.1):
        torch.manual_seed(0)
        same = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n))
        dead = torch.randperm(n)[round(keep * n) :]
        with torch.no_grad():
            same[0].weight[dead] = 0
        forms[f"{keep:.0%} of the units"] = compact(same), same
    return forms


def step(module: nn.Module, x: Tensor, training: bool) -> Callable[[], Any]:
    if not training:

        @torch.no_grad()
        def forward() -> None:
            module(x)

        return forward
    x = x.clone().requires_grad_()
    gradient = torch.randn(len(x), x.shape[1])

    def both() -> None:
        module(x).backward(gradient)
        x.grad = None
        module.zero_grad(set_to_none=True)

    return both


def stored(module: nn.Module) -> int:
    """Weights, without biases and indices."""
    if isinstance(module, CSRLinear):
        return len(module.weight.values())
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def measure(
    what: str, n: int, batch: int, training: bool, rounds: int
) -> dict[str, Any]:
    forms = compacted_forms(n) if what == "network" else layer_forms(n, training)
    x = torch.randn(batch, n)
    calls = {name: step(form, x, training) for name, (form, _) in forms.items()}
    rows = race(calls, rounds, "cpu")
    for name, (form, same) in forms.items():
        with torch.no_grad():
            expected, got = same(x), form(x)
        rows[name]["density"] = stored(form) / stored(forms["dense"][0])
        rows[name]["error"] = float((got - expected).abs().max() / expected.abs().max())
    mode = "training" if training else "forward"
    return {"case": f"{what} {n} x {n}, batch {batch}, {mode}", "forms": rows}


TITLE = "Structured sparsity on a CPU"


def markdown(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['provenance']['device']}, {report['threads']} thread(s), float32, "
        f"torch {torch.__version__}, medians of {report['rounds']} rounds.",
    ]
    for case in report["cases"]:
        lines += ["", f"## {case['case'].capitalize()}", ""]
        rows = (
            f"{name} | {row['density']:.1%} | {row['ms']:.3f} | {row['speedup']:.2f} | "
            + ("–" if name == "dense" else f"{row['error']:.0e}")
            for name, row in case["forms"].items()
        )
        lines += table("form | density | ms | speed-up | error", rows)
    return lines


def main() -> None:
    parser = reports.parser(__doc__, quick="256 wide, two rounds", rounds=9, threads=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256])
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.batches, args.rounds = [256], [16], 2
    torch.set_num_threads(args.threads)
    report = {
        "provenance": provenance("smoke" if args.quick else "full"),
        "threads": args.threads,
        "rounds": args.rounds,
        "cases": [
            measure(what, n, batch, training, args.rounds)
            for what in ("layer", "network")
            for n in args.sizes
            for batch in args.batches
            for training in (False, True)
        ],
    }
    save(args.out / "structured.json", report, markdown(report), TITLE)


if __name__ == "__main__":
    main()
