"""Inference of sparse networks: the exported file against the fastest dense engine.

    python -m benchmarks.inference            # all networks, one and two threads
    python -m benchmarks.inference --quick    # the small one, one round

The dense rivals are torch (batch norm folded, both memory formats, torch.compile with
frozen weights, and that in bfloat16, at 8 bits of precision) and onnxruntime. Weights
in int8, another way to be smaller and faster, are no rival here: they are not the same
network. They and ours run in one process in turns, each warmed
up and after a pause, in which the threads of the one before go to sleep; a speed-up is
the median over rounds of (fastest dense engine / ours) within a round. ResNet-18 has
random weights; EfficientNet-lite0 is a trained one, pruned without training it again,
so its accuracy is that of its speed only at 0 %. All layers but the first convolution
and the classifier are sparse; of EfficientNet-lite0, the 1x1 convolutions.

The error is the largest difference from the masked dense network in torch, over its
largest output. Memory is the peak of a fresh process that loads the file and runs once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from apps.classify import efficientnet
from apps.common.provenance import stored_provenance
from benchmarks import reports
from benchmarks.networks import resnet18
from benchmarks.reports import ROOT, save, table
from sparsekit.execution import export, reader
from sparsekit.masks import count_active, topk_mask

PAUSE = 0.05  # seconds
ROUND = 0.1  # seconds that a method runs in a round
Call = Callable[[], Any]


def random_resnet(width: int) -> nn.Module:
    """A ResNet-18 whose batch norms have seen noise."""
    torch.manual_seed(0)
    model = resnet18(width)
    with torch.no_grad():
        model(torch.randn(32, 3, 32, 32))
    return model.eval()


@torch.no_grad()
def prune_convolutions(model: nn.Module, sparsity: float) -> None:
    """Zeroes the smallest weights of every convolution but the first."""
    for module in list(model.modules())[2:]:
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            n_active = count_active(weight.numel(), sparsity)
            weight[~topk_mask(weight.abs(), n_active)] = 0


# name: network, how it is pruned, input, sparsities
SUBJECTS: dict[str, tuple[Call, Callable[..., Any], tuple[int, ...], list[float]]] = {
    "resnet18-w64": (
        lambda: random_resnet(64), prune_convolutions, (32, 3, 32, 32),
        [0.75, 0.9, 0.95, 0.98],
    ),
    "resnet18-w16": (
        lambda: random_resnet(16), prune_convolutions, (32, 3, 32, 32),
        [0.75, 0.9, 0.95, 0.98],
    ),
    "efficientnet-lite0": (
        efficientnet.pretrained, efficientnet.prune, (1, 3, 224, 224),
        [0.7, 0.75, 0.8, 0.9, 0.95],
    ),
}  # fmt: skip


def example(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ---- engines -------------------------------------------------------------------------


def dense_engines(
    model: nn.Module, x: Tensor, threads: int, folder: Path
) -> tuple[dict[str, Call], dict[str, str]]:
    """{engine: call}, and {engine: why it does not run}."""
    from torch.fx.experimental.optimization import fuse

    fused = fuse(model).eval()
    last = x.to(memory_format=torch.channels_last)
    fused_last = fuse(model).eval().to(memory_format=torch.channels_last)
    makers = {
        "torch": lambda: lambda: fused(x),
        "torch channels_last": lambda: lambda: fused_last(last),
        "torch.compile": lambda: compiled(fuse(model).eval(), x),
        "torch.compile bfloat16": lambda: compiled(
            fuse(model).eval().bfloat16(), x.bfloat16()
        ),
        "onnxruntime": lambda: onnx_call(folder / "dense.onnx", x, threads),
    }
    export.save_onnx(model, x, folder / "dense.onnx")
    engines, missing = {}, {}
    for name, make in makers.items():
        try:
            engines[name] = make()
            engines[name]()
        except Exception as error:  # compilers fail in their own ways
            engines.pop(name, None)
            missing[name] = type(error).__name__  # messages name paths
    return engines, missing


def compiled(model: nn.Module, x: Tensor) -> Call:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._inductor.config.cpp_wrapper = False
    optimized = torch.compile(model)
    optimized(x)
    return lambda: optimized(x)


def onnx_call(path: Path, x: Tensor, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options)
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


# ---- measuring -----------------------------------------------------------------------


def seconds(call: Call, least: float) -> float:
    """Of one call, warmed up, after a pause."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    call()
    once = time.perf_counter() - began
    count = max(1, round(least / once))
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def measure(name: str, threads: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Times of all engines on one network, and what the files are like."""
    torch.set_num_threads(threads)
    make, prune, shape, sparsities = SUBJECTS[name]
    x = example(shape)
    with torch.inference_mode():
        engines, missing = dense_engines(make(), x, threads, folder)
    sparse: dict[float, Call] = {}
    rows = {}
    for sparsity in sparsities:
        model = make()
        prune(model, sparsity)
        done = export.save(model, x, folder / f"{sparsity}.safetensors")
        loaded, pixels = reader.load(done.path), x.numpy()
        sparse[sparsity] = lambda loaded=loaded, pixels=pixels: loaded(pixels)
        rows[sparsity] = {
            "error": done.error,
            "megabytes": done.bytes_on_disk / 1e6,
            "dense_megabytes": done.dense_bytes / 1e6,
        }
    calls: Mapping[Any, Call] = engines | sparse
    with torch.inference_mode():
        times = [
            {key: seconds(call, ROUND) for key, call in calls.items()}
            for _ in range(rounds)
        ]
    dense = {key: median(t[key] for t in times) for key in engines}
    best = min(dense, key=lambda key: dense[key])
    for sparsity, row in rows.items():
        row["ms"] = 1e3 * median(t[sparsity] for t in times)
        row["speedup"] = median(t[best] / t[sparsity] for t in times)
    return {
        "dense_ms": {key: 1e3 * value for key, value in dense.items()},
        "not_available": missing,
        "fastest": best,
        "sparse": {str(sparsity): row for sparsity, row in rows.items()},
        "peak_megabytes": {
            engine: peak_in_fresh_process(engine, path, x, folder)
            for engine, path in (
                ("onnxruntime", folder / "dense.onnx"),
                ("reader", folder / f"{sparsities[-2]}.safetensors"),
            )
        },
    }


def peak_in_fresh_process(engine: str, path: Path, x: Tensor, folder: Path) -> float:
    """MB that a process takes at most which loads a file and runs it, twice."""
    import numpy as np

    np.save(folder / "x.npy", x.numpy())
    run = {
        "onnxruntime": "import onnxruntime; s = onnxruntime.InferenceSession(path); "
        "f = lambda: s.run(None, {s.get_inputs()[0].name: x})",
        "reader": "from sparsekit.execution import reader; m = reader.load(path); "
        "f = lambda: m(x)",
    }[engine]
    code = (
        "import sys, numpy; from sparsekit.memory import peak_rss; "
        "path = sys.argv[1]; x = numpy.load(sys.argv[2]); "
        f"{run}; f(); f(); print(peak_rss())"
    )
    command = [sys.executable, "-c", code, str(path), str(folder / "x.npy")]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return int(done.stdout.split()[-1]) / 1e6


def in_fresh_process(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """Threads of BLAS and OpenMP are counted when they are loaded."""
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return reports.fresh(
        "inference", "--measure", name, "--rounds", rounds, "--threads", threads,
        **dict.fromkeys(pools, str(threads)),
    )  # fmt: skip


def recognised() -> dict[str, dict[str, int]]:
    """How many of foolbox's 20 images EfficientNet-lite0 puts first and in five."""
    x, labels = efficientnet.images()
    found = {}
    for sparsity in (0.0, 0.5, 0.7):
        model = efficientnet.pretrained()
        efficientnet.prune(model, sparsity)
        with torch.inference_mode():
            best = model(x).topk(5).indices
        right = best == labels[:, None]
        found[str(sparsity)] = {
            "first": int(right[:, 0].sum()),
            "in_five": int(right.any(1).sum()),
        }
    return found


# ---- the report ----------------------------------------------------------------------


TITLE = "Inference of sparse networks"


def markdown(report: dict[str, Any]) -> list[str]:
    origin = report["provenance"]
    lines = [
        f"{origin['device']}, torch {origin['versions']['torch']}, float32 unless it "
        f"says otherwise, {report['rounds']} interleaved rounds.",
    ]
    for title, result in report["networks"].items():
        dense = ", ".join(f"{k} {v:.2f} ms" for k, v in result["dense_ms"].items())
        missing = "; ".join(f"{k}: {v}" for k, v in result["not_available"].items())
        peak = ", ".join(f"{k} {v:.0f}" for k, v in result["peak_megabytes"].items())
        lines += [
            "",
            f"## {title}",
            "",
            f"Dense: {dense}. Peak MB of a process: {peak}."
            + (f" Not available: {missing}." if missing else ""),
            "",
        ]
        rows = (
            f"{float(sparsity):.0%} | {row['ms']:.2f} | {row['speedup']:.2f} | "
            f"{row['megabytes']:.2f} | {row['dense_megabytes']:.2f} | "
            f"{row['error']:.0e}"
            for sparsity, row in result["sparse"].items()
        )
        faster = f"times faster than {result['fastest']}"
        lines += table(f"sparsity | ms | {faster} | file MB | dense MB | error", rows)
    return lines


def main() -> None:
    parser = reports.parser(
        __doc__, out="inference.json", quick="the small one, one round", rounds=9
    )
    parser.add_argument("--network", choices=SUBJECTS, help="default: all")
    parser.add_argument("--threads", type=int, help="default: 1 and 2")
    parser.add_argument("--measure", choices=SUBJECTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(args.measure, args.threads, args.rounds, Path(folder))
        print(json.dumps(found))
        return
    networks = [args.network] if args.network else list(SUBJECTS)
    threads = [args.threads] if args.threads else [1, 2]
    if args.quick:
        networks, threads, args.rounds = ["resnet18-w16"], [1], 1
    origin = stored_provenance("full")
    report: dict[str, Any] = {
        "rounds": args.rounds,
        "networks": {
            f"{name}, threads: {count}": in_fresh_process(name, count, args.rounds)
            for name in networks
            for count in threads
        },
        "provenance": origin,
    }
    if "efficientnet-lite0" in networks:
        report["recognised_of_20"] = recognised()
    save(args.out, report, markdown(report), TITLE)


if __name__ == "__main__":
    main()
