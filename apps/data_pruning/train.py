"""Trains one classifier on a subset of the examples, with the loop in full view.

    data = load(config)
    trained = train(config, data, indices=kept)
    logits = predict(config, trained.model, data.splits.test.x)

A subset gets the steps of all data (`equal steps`: no time is saved) or its share of
them (`equal epochs`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.common import classifiers
from apps.common.seeds import mixed
from apps.common.training import (
    build_optimizer,
    learning_rate_factor,
    require_finite,
    set_learning_rate,
)
from apps.data_pruning.config import Config
from apps.data_pruning.data import Data
from sparsekit.accounting import forward_flops

BUDGETS = ("steps", "epochs")
PADDING = 4  # pixels reflected at the edges, for crops

Watch = Callable[[nn.Module, int, float], None]


@dataclass(frozen=True)
class Trained:
    """losses: mean of each epoch; seconds and flops: of the steps, without `watch`."""

    model: nn.Module
    losses: list[float]
    steps: int
    seconds: float
    flops: float


def train(
    config: Config,
    data: Data,
    indices: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    budget: str = "steps",
    until: int | None = None,
    run: int = 0,
    watch: Watch | None = None,
) -> Trained:
    """Trains on the examples `indices` of the train part; the last weights count.

    Args:
        indices: [n] positions, unique; None for all.
        weights: [N] factors of the losses, one for each training example.
        budget: "steps", as many as for all data, or "epochs", as many passes.
        until: stop after so many epochs of the schedule.
        run: 0, 1, ... differ in initial weights and order, for the same seed.
        watch: called as watch(model, epoch, seconds) before the training (epoch 0) and
            after every epoch, with the seconds of training so far. An epoch is its
            share of the steps.

    Raises:
        ValueError: for indices out of range or repeated, and if the loss is not finite.
    """
    x, y = data.splits.train.x, data.splits.train.y
    index = kept_positions(indices, len(y)).to(x.device)
    total = n_steps(config, len(y), len(index), budget)
    ends = [round(e * total / config.epochs) for e in range(config.epochs + 1)]
    epochs = config.epochs if until is None else until
    model, forward = build(config, data, run)
    optimizer = build_optimizer(config, model)
    draws = torch.Generator(x.device).manual_seed(mixed(config.seed, run, 1))
    batches = epoch_batches(index, config.batch, mixed(config.seed, run, 0))
    if weights is not None:
        weights = weights.to(x.device)
    losses, seconds = [], 0.0
    if watch is not None:
        watch(model, 0, seconds)

    for epoch in range(epochs):
        started = now(x.device)
        model.train()
        summed = torch.zeros((), device=x.device)
        for step in range(ends[epoch], ends[epoch + 1]):
            batch = next(batches)
            inputs = augmented(x[batch], draws) if config.augment else x[batch]
            factor = learning_rate_factor("one-cycle", step, total)
            set_learning_rate(optimizer, config.lr * factor)
            with autocast(config):
                logits = forward(inputs)
            each = F.cross_entropy(
                logits.float(),
                y[batch],
                reduction="none",
                label_smoothing=config.label_smoothing,
            )
            loss = (each if weights is None else weights[batch] * each).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            summed += loss.detach()
        done = max(1, ends[epoch + 1] - ends[epoch])
        losses.append(float(summed) / done)
        seconds += now(x.device) - started
        require_finite(losses[-1], f"epoch {epoch + 1}", config.lr)
        if watch is not None:
            watch(model, epoch + 1, seconds)

    flops = step_flops(config, data) * ends[epochs]
    if forward is not model:  # the compiled model serves the next training too
        model = fresh(config, data, run, model.state_dict())
    return Trained(model, losses, ends[epochs], seconds, flops)


def n_steps(config: Config, n_all: int, n_kept: int, budget: str = "steps") -> int:
    """Steps of a training on `n_kept` of `n_all` examples, at least one.

    >>> config = Config(epochs=10, batch=100)
    >>> n_steps(config, 3500, 350), n_steps(config, 3500, 350, "epochs")
    (350, 35)
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget is one of {', '.join(BUDGETS)}, got {budget!r}")
    n = n_all if budget == "steps" else n_kept
    return max(1, round(config.epochs * n / config.batch))


def kept_positions(indices: Tensor | None, n_examples: int) -> Tensor:
    """The subset as sorted positions; ValueError for what is no subset."""
    if indices is None:
        return torch.arange(n_examples)
    index = torch.as_tensor(indices).cpu()
    if index.dim() != 1 or index.dtype != torch.int64 or len(index) == 0:
        raise ValueError(
            "indices are positions [n], int64, n >= 1, got "
            f"{index.dtype} {list(index.shape)}"
        )
    index = index.sort().values
    if int(index[0]) < 0 or int(index[-1]) >= n_examples:
        raise ValueError(
            f"indices are in 0 ... {n_examples - 1}, got {int(index[0])} ... "
            f"{int(index[-1])}"
        )
    if bool((index[1:] == index[:-1]).any()):
        raise ValueError("indices repeat an example: use weights for that")
    return index


def epoch_batches(index: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of exactly `batch` positions: one permutation after the other.

    A batch may hold the end of one pass and the beginning of the next, so every
    example is seen equally often, up to one time, also if there are fewer than a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    queue = index[:0]
    while True:
        while len(queue) < batch:
            order = torch.randperm(len(index), generator=generator).to(index.device)
            queue = torch.cat([queue, index[order]])
        yield queue[:batch]
        queue = queue[batch:]


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [B, C, S, S] moved by up to 4 pixels, and flipped every other time."""
    n, size = len(x), x.shape[2]
    draw = {"generator": generator, "device": x.device}
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n), **draw)
    flipped = torch.randint(0, 2, (n, 1, 1, 1), **draw).bool()
    padded = F.pad(x, (PADDING,) * 4, mode="reflect")
    crops = padded.unfold(2, size, 1).unfold(3, size, 1)  # [B, C, 9, 9, S, S]
    x = crops[torch.arange(n, device=x.device), :, top, left]
    return torch.where(flipped, x.flip(3), x)


def build(config: Config, data: Data, run: int = 0) -> tuple[nn.Module, Callable]:
    """A model to train, and what its steps call: itself, or its compiled form.

    There is one compiled model, filled anew for each training, since compiling takes
    as long as a training.
    """
    model = fresh(config, data, run)
    if not config.compile:
        return model, model
    shape = data.splits.shape
    body, forward = _compiled(replace(config, seed=0, score_epoch=0), shape)
    body.load_state_dict(model.state_dict())
    return body, forward


@lru_cache(maxsize=1)
def _compiled(
    config: Config, shape: tuple[int, int, int]
) -> tuple[nn.Module, Callable]:
    """Compiles by a step on an empty batch, so that no training's clock sees it."""
    body = classifiers.build(config.model, config.width, config.depth, *shape)
    body = body.to(config.device, memory_format=torch.channels_last)
    forward = torch.compile(body, dynamic=False)
    _, channels, size = shape
    x = torch.zeros(config.batch, channels, size, size, device=config.device)
    if config.augment:
        x = augmented(x, torch.Generator(x.device))
    with autocast(config):
        logits = forward(x)
    logits.float().sum().backward()
    body.zero_grad(set_to_none=True)
    return body, forward


def fresh(
    config: Config, data: Data, run: int = 0, state: dict | None = None
) -> nn.Module:
    """An untrained model, or one with the weights `state`."""
    shape, seed = data.splits.shape, mixed(config.seed, run, 2)
    model = classifiers.build(config.model, config.width, config.depth, *shape, seed)
    if state is not None:
        model.load_state_dict(state)
    return model.to(config.device, memory_format=torch.channels_last)


def step_flops(config: Config, data: Data) -> float:
    """FLOPs of a training step: backward is twice forward."""
    return 3 * config.batch * example_flops(config, data)


def example_flops(config: Config, data: Data) -> float:
    """FLOPs of one example's forward pass."""
    splits = data.splits
    shape = splits.classes, splits.channels, splits.size
    return _forward_flops(config.model, config.width, config.depth, *shape)


@lru_cache(maxsize=8)
def _forward_flops(
    name: str, width: int, depth: int, classes: int, channels: int, size: int
) -> float:
    model = classifiers.build(name, width, depth, classes, channels, size)
    return forward_flops(model, torch.zeros(1, channels, size, size)).total


@torch.no_grad()
def predict(config: Config, model: nn.Module, x: Tensor, batch: int = 1000) -> Tensor:
    """Logits [N, K] float32 in evaluation mode, in the order of x, not augmented."""
    model.eval()
    with autocast(config):
        return torch.cat([model(part).float() for part in x.split(batch)])


def autocast(config: Config) -> AbstractContextManager:
    device = torch.device(config.device).type
    on = config.precision == "bf16"
    return torch.autocast(device, torch.bfloat16, enabled=on)


def now(device: torch.device) -> float:
    """The clock, when the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
