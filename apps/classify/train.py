"""Trains one image classifier, dense or sparse, with the loop in full view.

    python -m apps.classify train --method rigl --sparsity 0.9 --out runs/rigl
    python -m apps.classify train --out runs/rigl --resume

or, in a notebook (nothing is written):

    result = train(Config(model="cnn", width=8, method="rigl", sparsity=0.9))
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.classify import cost, data, models
from apps.classify.config import Config
from apps.classify.result import Result, Run, load_result
from apps.common import options, processes
from apps.common.runs import is_finished
from apps.common.seeds import mixed
from apps.common.training import (
    build_optimizer,
    evaluate,
    learning_rate_factor,
    set_learning_rate,
)
from sparsekit import Sparsifier

Watch = Callable[[int, nn.Module, Sparsifier | None], None]


def train(config: Config, watch: Watch | None = None) -> Result:
    """Trains as `config` says and tests once, at the end.

    Validation accuracy is measured after every epoch, test accuracy only here. Writes
    to `config.out` if it is given, else nothing; with `config.resume` goes on from the
    last complete epoch, to the same result bit for bit.

    Args:
        config: what to train.
        watch: called as watch(epoch, model, sparsifier) before training (epoch 0) and
            after every epoch; the sparsifier is None for "dense".

    Raises:
        ValueError: for unusable data or settings, and if the loss is not finite.
    """
    if config.resume and is_finished(config.out):
        return load_result(config.out, config)
    splits = data.load(config.dataset, config.seed, config.data_dir).to(config.device)
    x, y = splits.train.x, splits.train.y
    steps_per_epoch, total = training_steps(config, len(y))
    model = build_model(config, splits)
    flops = cost.TrainingFlops(model, x[:1])
    params = options.maskable(config.keep_dense, model)
    if config.backend == "values":
        model = options.in_values_mode(model, params)
    forward = processes.shared(model)
    optimizer = build_optimizer(config, model)
    method = options.build(
        config.method, config.sparsity, config.options, steps_per_epoch, total
    )
    sparsifier = None
    if method is not None:
        sparsifier = Sparsifier(
            model,
            optimizer,
            method,
            params=params,
            moments=config.moments,
            seed=config.seed if config.mask_seed is None else config.mask_seed,
            objective=objective(config, splits, flops),
        )
    # Rewinding starts the training again, and the learning rate with it.
    cycle = total if method is None or method.rewind_to is None else method.every
    run = Run(config, model, optimizer, sparsifier, flops)
    run.start()
    if watch is not None and run.epoch == 0:
        watch(0, model, sparsifier)

    for epoch in range(run.epoch, config.epochs):
        started = time.perf_counter()
        model.train()
        summed = torch.zeros((), device=x.device)
        step = epoch * steps_per_epoch
        for batch in epoch_batches(config, len(y), epoch):
            factor = learning_rate_factor(config.schedule, step % cycle, cycle)
            set_learning_rate(optimizer, config.lr * factor)
            loss = F.cross_entropy(
                forward(x[batch]), y[batch], label_smoothing=config.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            processes.average(model.parameters())
            flops.add_step(config.batch, cost.needs_dense_gradient(method, step))
            if sparsifier is not None:
                sparsifier.before_step()
            optimizer.step()
            if sparsifier is not None:
                sparsifier.after_step()
                if method.due(step):
                    flops.update(sparsifier.alive)
            summed += loss.detach()
            step += 1
        run.end_epoch(
            float(summed) / steps_per_epoch,
            evaluate(model, splits.validation),
            splits.validation.y,
            time.perf_counter() - started,
        )
        if watch is not None:
            watch(epoch + 1, model, sparsifier)

    if config.backend == "values":
        return run.finish(splits, plain=build_model(config, splits))
    return run.finish(splits)


def training_steps(config: Config, n_train: int) -> tuple[int, int]:
    """Steps of an epoch and of the whole training."""
    if config.batch > n_train:
        raise ValueError(f"batch {config.batch} exceeds the {n_train} train images")
    return n_train // config.batch, n_train // config.batch * config.epochs


def build_model(config: Config, splits: data.Splits) -> nn.Module:
    return models.of_config(config, splits.shape).to(config.device)


def epoch_batches(config: Config, n_train: int, epoch: int) -> tuple[Tensor, ...]:
    """Indices of an epoch's batches, decided by (seed, epoch): nothing to resume."""
    generator = torch.Generator().manual_seed(mixed(config.seed, epoch))
    order = torch.randperm(n_train, generator=generator).to(config.device)
    return order[: n_train - n_train % config.batch].split(config.batch)


def objective(config: Config, splits: data.Splits, flops: cost.TrainingFlops):
    """What a method that scores weights before training may evaluate.

    SynFlow: the summed output for an all-ones image. Others: the loss on the first
    10 train images a class on average; GraSP divides logits by 200, as its paper.
    """
    n_samples = min(10 * splits.classes, len(splits.train))
    x, y = splits.train.x[:n_samples], splits.train.y[:n_samples]

    def loss(model: nn.Module) -> Tensor:
        if config.method == "random_search":
            flops.add_candidate(n_samples)
        else:
            flops.add_objective(n_samples)
        return F.cross_entropy(model(x) / (200 if config.method == "grasp" else 1), y)

    def flow(model: nn.Module) -> Tensor:
        flops.add_objective(1)
        dtype = next(model.parameters()).dtype
        return model(torch.ones_like(x[:1], dtype=dtype)).sum()

    return flow if config.method == "synflow" else loss
