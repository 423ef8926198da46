"""Scores of the training examples from trainings of their own, and what they cost.

    measured = measure(config, data, ["el2n", "el2n@1", "aum"])
    measured.values("el2n")                  # [N], mean over score_runs trainings
    measured.cost(config, data, ["el2n"])    # seconds and FLOPs, trainings included

A name may end in @EPOCH; without it `score_epoch` counts. Scores are taken in
evaluation mode, without augmentation, in the order of the examples.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from apps.common import classifiers
from apps.data_pruning.config import Config
from apps.data_pruning.data import Data
from apps.data_pruning.train import autocast, example_flops, now, predict, train
from sparsekit.data_pruning import dynamics, scores
from sparsekit.data_pruning.dynamics import TrainingTrace
from sparsekit.spelling import choice

BATCH = 500  # examples a pass; scores do not depend on it

# Of one model, averaged over trainings.
MODEL_SCORES = {
    "el2n": scores.el2n,
    "grand": scores.grand,
    "grand_last": partial(scores.grand, params="last"),
    "margin": scores.margin,
    "loss": scores.loss,
    "least_confidence": scores.least_confidence,
    "entropy": scores.entropy,
    "input_norm": scores.input_norm,
}
# Of a whole training, or of its epochs up to @EPOCH.
TRACE_SCORES = {
    "forgetting": dynamics.forgetting,
    "aum": dynamics.aum,
    "dynamic_uncertainty": dynamics.dynamic_uncertainty,
    "dual": dynamics.dual,
}
# What policies may ask for beside scores: of the first training.
EXTRAS = ("features", "mean_p")
FREE = ("random", "input_norm")  # need no training
NAMES = ("random", *MODEL_SCORES, *TRACE_SCORES)


@dataclass(frozen=True)
class Request:
    """A score's name taken apart. epoch: after which; the trace's last one."""

    name: str
    kind: str
    epoch: int


@dataclass(frozen=True)
class Measured:
    """per_run: {name: [R, N]}; extras: {name: [N, ...]}.

    clock: [R, E + 1], seconds of training of each run up to each epoch, NaN where it
    did not go. passes: {name: seconds of scoring, over all runs}.
    """

    per_run: dict[str, Tensor]
    extras: dict[str, Tensor]
    clock: Tensor
    passes: dict[str, float]

    def values(self, name: str) -> Tensor:
        """Mean over the runs, [N]; zeros for "random"."""
        if name == "random":
            return torch.zeros(next(iter(self.per_run.values())).shape[1])
        return self.per_run[name].double().mean(0).float()

    def cost(
        self, config: Config, data: Data, names: Iterable[str]
    ) -> tuple[float, float]:
        """Seconds and FLOPs of scores and extras, as if nothing else were computed."""
        requests = [parse(config, name) for name in names if name != "random"]
        lengths = [0] * config.score_runs
        for request in requests:
            runs = config.score_runs if request.kind == "model" else 1
            for run in range(runs):
                lengths[run] = max(lengths[run], request.epoch)
        forward = example_flops(config, data)
        per_epoch = 3 * round(config.epochs * len(data) / config.batch) * config.batch
        per_epoch = per_epoch / config.epochs * forward
        seconds = sum(float(self.clock[r, e]) for r, e in enumerate(lengths) if e)
        flops = sum(lengths) * per_epoch
        traced = max([r.epoch for r in requests if r.kind == "trace"], default=0)
        if traced:  # all scores of a trace share its passes
            seconds += self.passes["trace"] * traced / config.epochs
            flops += traced * len(data) * forward
        for request in requests:
            if request.kind != "trace":
                runs = config.score_runs if request.kind == "model" else 1
                seconds += self.passes[request.name]
                flops += runs * len(data) * _pass_flops(request, forward)
        return seconds, flops


def parse(config: Config, text: str) -> Request:
    """A name with its epoch; ValueError that lists the names.

    >>> parse(Config(epochs=10, score_epoch=2), "el2n").epoch
    2
    >>> parse(Config(epochs=10), "aum@5")
    Request(name='aum@5', kind='trace', epoch=5)
    """
    name, at, number = text.partition("@")
    if name in MODEL_SCORES:
        kind, epoch = "model", 0 if name in FREE else config.score_epoch
    elif name in TRACE_SCORES or name == "mean_p":
        kind, epoch = "trace", config.epochs
    elif name == "features":
        kind, epoch = "extra", config.score_epoch
    else:
        raise ValueError(choice(f"no score {name!r}", name, NAMES))
    if at:
        if not number.isdecimal() or not int(number) <= config.epochs:
            raise ValueError(
                f"{text!r}: the epoch after @ is 0 ... {config.epochs}, got {number!r}"
            )
        epoch = int(number)
    if kind == "trace" and epoch == 0:
        raise ValueError(f"{text!r}: a trace needs an epoch at least")
    return Request(text, kind, epoch)


def measure(config: Config, data: Data, names: Iterable[str]) -> Measured:
    """Scores and extras by `names`, from as many trainings as they need.

    Run r of a seed is the same training whatever is asked of it, and differs from the
    trainings on subsets, which are run 0 of `train`.
    """
    requests = [parse(config, n) for n in dict.fromkeys(names) if n != "random"]
    n_runs = config.score_runs if any(r.kind == "model" for r in requests) else 1
    found = _Collector(config, data, requests)
    for run in range(n_runs if requests else 0):
        wanted = [r for r in requests if r.kind == "model" or run == 0]
        until = max(r.epoch for r in wanted)
        watch = partial(found.watch, wanted, run)
        train(config, data, until=until, run=1 + run, watch=watch)
    return found.finish()


class _Collector:
    """What the trainings leave behind."""

    def __init__(self, config: Config, data: Data, requests: list[Request]):
        self.config, self.data, self.requests = config, data, requests
        self.rows: dict[str, list[Tensor]] = {r.name: [] for r in requests}
        self.passes = dict.fromkeys((r.name for r in requests), 0.0) | {"trace": 0.0}
        self.clock = torch.full(
            (config.score_runs, config.epochs + 1), torch.nan, dtype=torch.float64
        )
        self.trace = TrainingTrace(len(data))

    def watch(
        self,
        wanted: list[Request],
        run: int,
        model: nn.Module,
        epoch: int,
        seconds: float,
    ) -> None:
        self.clock[run, epoch] = seconds
        train_part, device = self.data.splits.train, self.data.splits.train.x.device
        if epoch > 0 and any(r.kind == "trace" for r in wanted):
            began = now(device)
            logits = predict(self.config, model, train_part.x)
            everything = torch.arange(len(train_part))
            self.trace.record(epoch - 1, everything, logits, train_part.y)
            self.passes["trace"] += now(device) - began
        for request in wanted:
            if request.kind != "trace" and request.epoch == epoch:
                began = now(device)
                self.rows[request.name].append(
                    _of_model(self.config, self.data, model, request)
                )
                self.passes[request.name] += now(device) - began

    def finish(self) -> Measured:
        for request in self.requests:
            if request.kind == "trace":
                self.rows[request.name] = [self._of_trace(request)]
        extras = {n: rows[0] for n, rows in self.rows.items() if n in EXTRAS}
        per_run = {n: torch.stack(r) for n, r in self.rows.items() if n not in EXTRAS}
        if not per_run:
            per_run = {"random": torch.zeros(1, len(self.data))}
        return Measured(per_run, extras, self.clock, self.passes)

    def _of_trace(self, request: Request) -> Tensor:
        part = TrainingTrace(len(self.data))
        part.own = self.trace.own[: request.epoch]
        part.other = self.trace.other[: request.epoch]
        if request.name == "mean_p":
            return torch.from_numpy(part.own.mean(0))
        return TRACE_SCORES[request.name.partition("@")[0]](part)


def _of_model(config: Config, data: Data, model: nn.Module, request: Request) -> Tensor:
    """[N] on the CPU, or [N, d] for features."""
    name = request.name.partition("@")[0]
    x, y = data.splits.train.x, data.splits.train.y
    pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
    model.eval()
    with autocast(config):
        if name == "features":
            with torch.no_grad():
                parts = [classifiers.features(model, a)[0] for a, _ in pairs]
        else:
            parts = [MODEL_SCORES[name](model, a, b) for a, b in pairs]
    return torch.cat([part.detach().float().cpu() for part in parts])


def _pass_flops(request: Request, forward: float) -> float:
    """FLOPs an example: gradients of all weights need a backward pass, too."""
    name = request.name.partition("@")[0]
    if name in FREE:
        return 0.0
    return 3 * forward if name == "grand" else forward
