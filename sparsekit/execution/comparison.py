"""One table for one model: dense, masked, sparse, and the engines people use."""

import copy
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from operator import attrgetter, truediv
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekit.columns import aligned
from sparsekit.execution.calibration import machine
from sparsekit.execution.export import onnx_content
from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.reasons import first_line
from sparsekit.fixed import Fixed
from sparsekit.memory import peak_rss, restart_peak, rss
from sparsekit.sparsifier import Sparsifier

DENSE = ("dense", "dense, channels last", "torch.compile", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """One engine. Times are medians; ratios are medians of ratios within a round."""

    engine: str
    milliseconds: float | None  # None: it did not run here, see `note`
    speedup: float | None  # time of the fastest dense engine / time of this one
    error: float | None  # largest difference from dense, over its largest output
    peak_mb: float | None  # of one call, above what the process had; None: unknown
    disk_bytes: int | None
    note: str = ""


@dataclass(frozen=True)
class Benchmark:
    """The table; `print` shows it, `to_json` keeps it."""

    rows: list[Row]
    what: str  # "inference" or "training step"
    batch: tuple[int, ...]
    machine: str

    def __getitem__(self, engine: str) -> Row:
        for row in self.rows:
            if row.engine == engine:
                return row
        raise KeyError(f"{engine!r}; measured: {[row.engine for row in self.rows]}")

    @property
    def fastest_dense(self) -> Row:
        times = [r for r in self.rows if r.engine in DENSE and r.milliseconds]
        return min(times, key=attrgetter("milliseconds"))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def __str__(self) -> str:
        header = ["engine", "ms", "speed-up", "error", "peak MB", "disk bytes", ""]
        lines = [header]
        for row in self.rows:
            lines.append(
                [
                    row.engine,
                    _shown(row.milliseconds, "{:.2f}"),
                    _shown(row.speedup, "{:.2f}x"),
                    _shown(row.error, "{:.0e}"),
                    _shown(row.peak_mb, "{:.1f}"),
                    _shown(row.disk_bytes, "{:,}"),
                    row.note,
                ]
            )
        shape = " x ".join(map(str, self.batch))
        title = f"{self.what}, batch {shape}, {self.machine}"
        numbers = range(1, len(header) - 1)
        base = f"speed-up: over {self.fastest_dense.engine}, the fastest dense engine"
        return "\n".join([title, *aligned(lines, numbers), base])


def benchmark(
    dense: nn.Module,
    sparse: nn.Module,
    batch: Tensor,
    *,
    training: bool = False,
    loss: Callable[[Tensor], Tensor] | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
    rounds: int = 9,
    engines: Iterable[str] = DENSE,
) -> Benchmark:
    """Times one call, or one training step, of a model in every form, interleaved.

    Nothing is changed: both models are copied.

    Args:
        dense: the model with its absent weights at zero, so that both compute the same.
        sparse: what `convert` made of it.
        batch: one input.
        training: a step (forward, loss, backward, optimizer) instead of inference.
        loss: output -> scalar; default: mean square.
        optimizer: parameters -> optimizer.
        rounds: every engine runs once a round; ratios are taken within rounds.
        engines: which dense rivals; "dense" always runs.

    Raises:
        ValueError: if the outputs differ by more than 1e-2 of the largest one: a speed
            of something else is no speed.
    """
    loss = loss or (lambda y: y.square().mean())
    runs, notes = {}, {}
    for engine in ("dense", *(e for e in engines if e != "dense"), "masked", "sparse"):
        if engine == "onnxruntime" and training:
            continue
        if engine == "masked" and not training:
            continue  # zeros are multiplied like any number: it is `dense`
        try:
            runs[engine] = _run(engine, dense, sparse, batch, training, loss, optimizer)
        except Exception as error:
            if engine in ("dense", "masked", "sparse"):
                raise
            notes[engine] = f"not available: {first_line(error)}"
    errors = _errors(dense, sparse, batch)
    if not errors["sparse"] < 1e-2:
        raise ValueError(
            f"dense and sparse differ by {errors['sparse']:.1e} of the largest output: "
            "pass the dense model with its absent weights at zero, in eval mode if it "
            "has dropout"
        )
    times = _interleaved(runs, rounds)
    fastest = min((e for e in runs if e in DENSE), key=lambda e: median(times[e]))
    rows = [
        Row(
            engine=engine,
            milliseconds=median(times[engine]) * 1e3,
            speedup=median(map(truediv, times[fastest], times[engine])),
            error=errors.get(engine),
            peak_mb=_peak_mb(run),
            disk_bytes=_disk_bytes(sparse if engine == "sparse" else dense),
        )
        for engine, run in runs.items()
    ]
    rows += [Row(e, None, None, None, None, None, note) for e, note in notes.items()]
    what = "training step" if training else "inference"
    return Benchmark(rows, what, tuple(batch.shape), machine())


# ---- the engines ---------------------------------------------------------------------


def _run(
    engine: str,
    dense: nn.Module,
    sparse: nn.Module,
    batch: Tensor,
    training: bool,
    loss: Callable[[Tensor], Tensor],
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> Callable[[], Any]:
    """A call without arguments that does one step or one inference."""
    model = copy.deepcopy(sparse if engine == "sparse" else dense).train(training)
    if engine == "dense, channels last":
        if batch.dim() != 4:
            raise ValueError("for images only")
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = batch.contiguous(memory_format=torch.channels_last)
    if engine == "onnxruntime":
        return _onnxruntime(model, batch)
    called = torch.compile(model) if engine == "torch.compile" else model
    if not training:

        def inference() -> None:
            with torch.inference_mode():
                called(batch)

        inference()
        return inference
    made = optimizer(p for p in model.parameters() if p.requires_grad)
    sparsifier = _masked(model, made, sparse) if engine == "masked" else None

    def step() -> None:
        made.zero_grad()
        loss(called(batch)).backward()
        if sparsifier:
            sparsifier.before_step()
        made.step()
        if sparsifier:
            sparsifier.after_step()

    step()
    return step


def _masked(model: nn.Module, optimizer: Optimizer, sparse: nn.Module) -> Sparsifier:
    masks = {
        f"{name}.weight" if name else "weight": layer.mask()
        for name, layer in sparse.named_modules()
        if isinstance(layer, SparseLayer)
    }
    return Sparsifier(model, optimizer, Fixed.of(masks), params=list(masks))


def _onnxruntime(model: nn.Module, batch: Tensor) -> Callable[[], Any]:
    missing = [n for n in ("onnx", "onnxruntime", "onnxscript") if not find_spec(n)]
    if missing:
        raise ValueError(f"pip install {' '.join(missing)}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        onnx_content(model, batch), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: batch.numpy()}
    return lambda: session.run(None, feed)


# ---- what is measured ----------------------------------------------------------------


def _interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {engine: [] for engine in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for engine, run in runs.items():
            start = time.perf_counter()
            run()
            times[engine].append(time.perf_counter() - start)
    return times


@torch.no_grad()
def _errors(dense: nn.Module, sparse: nn.Module, batch: Tensor) -> dict[str, float]:
    expected = copy.deepcopy(dense).eval()(batch)
    found = copy.deepcopy(sparse).eval()(batch)
    scale = float(expected.abs().max()) or 1.0
    return {"sparse": float((found - expected).abs().max()) / scale}


def _peak_mb(run: Callable[[], Any]) -> float | None:
    """Memory that one call takes above what the process has; None: unknown."""
    if not restart_peak():
        return None
    before = rss()
    run()
    return max(0, peak_rss() - before) / 1e6


def _disk_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
