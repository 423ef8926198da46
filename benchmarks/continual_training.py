"""A training step of SparCL-DER++ in values mode, against dense DER++.

    python -m benchmarks.continual_training             # widths 64 and 16, batch 32
    python -m benchmarks.continual_training --widths 16 --rounds 5
    python -m benchmarks.continual_training --quick     # width 4, batch 8, one round

The network is SparCL's ResNet-18 on 3x32x32; inputs are noise. A step is that of a
second task: cross-entropy of a batch, two draws of the buffer, masks, plain SGD, the
batch offered to the buffer. Three forward passes, each with its backward pass before
the next, in both. Sparse: the 16 convolutions of the stages are masked by TDM and train
by DGM, and all convolutions are in values mode. Rivals are torch eager in both memory
formats and torch.compile of both, without a sparsifier, and eager with one backward
pass over the sum of the loss, as DER's code does it; ratios to the fastest are taken
within rounds, in which every engine takes two steps, and the median counts.

A task is `--steps` steps of which the first grows connections and the middle one moves
some, by the release's rule; its time is compared with that of as many dense steps.
Memory is the peak of a fresh process above what it had before the model was built, over
building it and three steps: weights, gradients, activations, masks, buffer; and over
the last two of them, when the dense start is gone. glibc is told to return freed memory
at once (MALLOC_MMAP_THRESHOLD_), so that the peak is what was alive and not what malloc
kept.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from apps.continual import training
from apps.continual.config import Config
from apps.continual.strategy import Batch
from apps.continual.streams import Part, Stream, Task
from apps.continual.training import Training
from benchmarks import reports
from benchmarks.reports import save, table
from sparsekit.execution.blocked import release
from sparsekit.memory import peak_rss, restart_peak

ONE = "one backward"  # over the sum: the activations of three passes are alive
DENSE = ("nchw", "channels last", "compiled nchw", "compiled channels last")
DENSE = (*DENSE, f"nchw, {ONE}", f"channels last, {ONE}")
SPARSITIES = (0.75, 0.9, 0.95)
KEPT_DENSE = ("stem.weight", "*.shortcut.0.weight", "classifier.weight")
PARTS = ("buffer", "forward", "backward", "masks", "optimizer")


class Formatted(nn.Module):
    """A model whose inputs come in one memory format."""

    def __init__(self, model: nn.Module, channels_last: bool, compiled: bool):
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        model = model.to(memory_format=self.format)
        self.called = torch.compile(model) if compiled else model

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x.contiguous(memory_format=self.format))


def noise(n: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 3, side, side), generator=generator).byte()
    return x, torch.arange(n) % 10


def stream_of(n: int, side: int) -> Stream:
    """Two tasks of n images of noise."""
    x, y = noise(2 * n, side, 0)
    tasks = []
    for task in range(2):
        ids = torch.arange(task * n, (task + 1) * n)
        part = Part(x, ids, y[ids])
        tasks.append(Task(tuple(range(5 * task, 5 * task + 5)), part, part, part))
    names, moment = tuple(map(str, range(10))), torch.full((3, 1, 1), 127.5)
    return Stream(tuple(tasks), 10, names, "noise", moment, moment)


def build(engine: str, width: int, args: argparse.Namespace) -> Training:
    """A training in its second task, its buffer full. engine: a DENSE, or sparsity."""
    steps = 2 * args.steps
    common = {
        "model": "resnet18", "width": width, "depth": 0, "tasks": 2, "epochs": 2,
        "batch": args.batch, "replay_batch": args.batch, "buffer": 4 * args.batch,
        "replay_from": "second", "lr": 1e-3,
    }  # fmt: skip
    replay = {"alpha": 0.1, "beta": 0.5}
    if engine in DENSE:
        config = Config(**common, strategy="derpp", strategy_options=replay)
    else:
        ours = {"variant": "released", "stage": 1, "ddr": "off"}
        config = Config(
            **common, strategy="sparcl", strategy_options={**replay, **ours},
            method="tdm", sparsity=float(engine), backend="values",
            keep_dense=KEPT_DENSE,
        )  # fmt: skip
    state = training.build(config, stream_of(steps // 4 * args.batch, args.side))
    if engine in DENSE:
        state.model = Formatted(
            state.model, "channels last" in engine, "compiled" in engine
        )
    state.strategy.task = 1
    x, y = noise(config.buffer, args.side, 2)
    state.buffer.add(x, y, torch.zeros(len(y), 10))
    if state.sparsifier is not None:
        state.sparsifier.step = sum(state.plan.steps[0])  # where the task begins
        state.strategy.begin_task(1)
        state.strategy.begin_epoch(0)
    state.model.train()
    return state


def stepper(
    state: Training, size: int, side: int, summed: bool = False
) -> Callable[[], dict[str, float]]:
    """A call that takes one step, as `apps.continual.train` does; seconds of its parts.

    Drawing from the buffer is part of the loss: it is timed by itself, and taken off.
    summed: one backward pass over the sum of the loss's terms.
    """
    raw, y = noise(size, side, 3)
    strategy, sparsifier = state.strategy, state.sparsifier
    replaying = getattr(strategy, "inner", strategy)
    draw, drawing = replaying.draw, [0.0]

    def timed_draw() -> Any:
        began = time.perf_counter()
        drawn = draw()
        drawing[0] += time.perf_counter() - began
        return drawn

    replaying.draw = timed_draw

    def step() -> dict[str, float]:
        drawing[0] = backward = 0.0
        began = time.perf_counter()
        batch = Batch(state.seen(raw), y, raw, torch.arange(size))
        state.optimizer.zero_grad()
        terms: Any = strategy.loss_terms(batch)
        for term in [sum(terms)] if summed else terms:
            ready = time.perf_counter()
            term.backward()
            backward += time.perf_counter() - ready
        times = [time.perf_counter()]
        forward = times[0] - began - backward - drawing[0]
        del term
        strategy.after_backward(batch)
        if sparsifier is not None:
            sparsifier.before_step()
        times.append(time.perf_counter())
        state.optimizer.step()
        times.append(time.perf_counter())
        if sparsifier is not None:
            sparsifier.after_step()
        times.append(time.perf_counter())
        strategy.after_step(batch)
        times.append(time.perf_counter())
        before, optimizer, after, add = (b - a for a, b in pairwise(times))
        return {
            "buffer": drawing[0] + add,
            "forward": forward,
            "backward": backward,
            "masks": before + after,
            "optimizer": optimizer,
        }

    return step


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def peak_bytes(engine: str, width: int, args: argparse.Namespace) -> tuple[int, int]:
    """Of all, and of the steps after the first; in this process, a fresh one."""
    small = argparse.Namespace(**{**vars(args), "batch": 2})
    kind = engine if engine not in DENSE else "nchw"
    stepper(build(kind, 4, small), 2, args.side)()  # loads what is loaded late
    release()
    restart_peak()
    before = peak_rss()
    state = build(engine, width, args)
    step = stepper(state, args.batch, args.side, ONE in engine)
    step()
    first = peak_rss() - before
    restart_peak()
    step()
    step()
    later = peak_rss() - before
    return max(first, later), later


def peak_in_fresh_process(
    engine: str, width: int, args: argparse.Namespace
) -> list[int]:
    return reports.fresh(
        "continual_training", "--peak", engine, "--widths", width,
        "--batch", args.batch, "--side", args.side, "--steps", args.steps,
        MALLOC_MMAP_THRESHOLD_="262144",
    )  # fmt: skip


def measure(width: int, args: argparse.Namespace) -> dict[str, Any]:
    states = {name: build(name, width, args) for name in args.dense}
    states |= {str(s): build(str(s), width, args) for s in args.sparsities}
    steps = {n: stepper(s, args.batch, args.side, ONE in n) for n, s in states.items()}
    for step in steps.values():  # grows, compiles, and fills the memory
        step()
        step()
    rounds, parts = [], []
    for _ in range(args.rounds):
        times, spent = {}, {}
        for name, step in steps.items():
            taken: list[dict[str, float]] = []
            times[name] = seconds(lambda s=step, t=taken: t.append(s()), 2)
            spent[name] = taken[-1]
        rounds.append(times)
        parts.append(spent)
    medians = {name: median(r[name] for r in rounds) for name in steps}
    fastest = min(args.dense, key=lambda name: medians[name])
    peaks = {
        how: peak_in_fresh_process(name, width, args)
        for how, name in (("a term at a time", "nchw"), (ONE, f"nchw, {ONE}"))
    }
    rows = {}
    for s in map(str, args.sparsities):
        ratios = sorted(r[fastest] / r[s] for r in rounds)
        state = build(s, width, args)
        task = seconds(stepper(state, args.batch, args.side), args.steps)
        rows[s] = {
            "seconds": medians[s],
            "speedup": median(ratios),
            "speedup_low": ratios[0],
            "speedup_high": ratios[-1],
            "task_speedup": medians[fastest] / task,
            "parts": {p: median(r[s][p] for r in parts) for p in PARTS},
            "peak_bytes": peak_in_fresh_process(s, width, args),
        }
    return {
        "dense_seconds": {name: medians[name] for name in args.dense},
        "fastest": fastest,
        "dense_parts": {p: median(r[fastest][p] for r in parts) for p in PARTS},
        "dense_peak_bytes": peaks,
        "sparse": rows,
    }


def both(whole: float, later: float, digits: str) -> str:
    """`digits`: as a format.

    >>> both(0.8, 0.7, ".2f")
    '0.80 (0.70)'
    """
    return f"{whole:{digits}} ({later:{digits}})"


TITLE = "Training step of SparCL-DER++ on ResNet-18"


def markdown(report: dict[str, Any]) -> list[str]:
    lines = [
        f"Three batches of {report['batch']} a step, images of {report['side']} "
        f"pixels, {report['machine']}, {report['threads']} thread(s), torch "
        f"{report['torch']}; medians of {report['rounds']} rounds, in brackets the "
        "least and the largest.",
    ]
    for width, result in report["widths"].items():
        shown = reports.milliseconds(result["dense_seconds"], 0)
        lines += [
            "",
            f"## Width {width}",
            "",
            f"Dense: {shown}.",
            "",
            *table(
                "sparsity | ms | over the fastest dense | a task | buffer | forward | "
                "backward | masks | optimizer | peak MB (after the first step) | "
                f"of dense | of dense, {ONE}",
                (cells(name, result) for name in ("dense", *result["sparse"])),
            ),
        ]
    return lines


def cells(name: str, result: dict[str, Any]) -> str:
    """The row of a sparsity, or of the fastest dense engine."""
    row = (
        {"parts": result["dense_parts"]} if name == "dense" else result["sparse"][name]
    )
    ms = " | ".join(f"{row['parts'][p] * 1e3:.1f}" for p in PARTS)
    if name == "dense":
        peak = result["dense_peak_bytes"]["a term at a time"]
        fastest = result["dense_seconds"][result["fastest"]] * 1e3
        start = f"dense | {fastest:.0f} | 1 | 1 | {ms}"
    else:
        peak = row["peak_bytes"]
        start = (
            f"{name} | {row['seconds'] * 1e3:.0f} | {row['speedup']:.2f}x "
            f"({row['speedup_low']:.2f}–{row['speedup_high']:.2f}) | "
            f"{row['task_speedup']:.2f}x | {ms}"
        )
    shares = " | ".join(
        both(*(a / b for a, b in zip(peak, dense, strict=True)), ".2f")
        for dense in result["dense_peak_bytes"].values()
    )
    return f"{start} | {both(*(p / 1e6 for p in peak), '.0f')} | {shares}"


def main() -> None:
    parser = reports.parser(
        __doc__, quick="width 4, one round", batch=32, side=32, rounds=5, threads=1
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--dense", nargs="+", choices=DENSE, default=DENSE)
    parser.add_argument("--steps", type=int, default=24, help="of a task; even")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak_bytes(args.peak, args.widths[0], args)))
        return
    if args.quick:
        args.widths, args.sparsities, args.dense = [4], [0.9], DENSE[:2]
        args.batch, args.side, args.rounds, args.steps = 8, 16, 1, 4
    widths = {str(width): measure(width, args) for width in args.widths}
    report = {**reports.setting(args), "widths": widths}
    save(args.out / "continual_training.json", report, markdown(report), TITLE)


if __name__ == "__main__":
    main()
