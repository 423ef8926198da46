"""Trains one model on a stream of tasks, with the loop in full view.

    python -m apps.continual train --strategy derpp --buffer 500 --out runs/derpp
    python -m apps.continual train --out runs/derpp --resume

or, in a notebook (nothing is written):

    result = train(Config(strategy="derpp", buffer=500))
    result.accuracy, result.matrix
"""

import time
from collections.abc import Callable

from torch import Tensor

from apps.common.runs import is_finished
from apps.continual import streams, training
from apps.continual.config import Config
from apps.continual.result import Result, Run, load_result, measure
from apps.continual.strategy import Batch
from apps.continual.training import Training, epoch_batches

Watch = Callable[[int, Training], None]


def step(state: Training, batch: Batch) -> Tensor | None:
    """One step, whoever provides the batch: `train` or a `learner.Learner`.

    Returns the loss before it, None if there was nothing to minimise.
    """
    strategy, sparsifier = state.strategy, state.sparsifier
    state.optimizer.zero_grad()
    loss = state.back_propagate(batch)
    if loss is not None:
        strategy.after_backward(batch)
        if sparsifier is not None:
            sparsifier.before_step()
        state.optimizer.step()
        if sparsifier is not None:
            sparsifier.after_step()
        state.count_step()
    strategy.after_step(batch)
    return loss


def train(config: Config, watch: Watch | None = None) -> Result:
    """Trains as `config` says; tests all tasks after each of them.

    Writes to `config.out` if it is given, else nothing; with `config.resume` goes on
    from the last checkpoint, also in the middle of a task, to the same result bit for
    bit.

    Args:
        config: what to train.
        watch: called as watch(task, training) after each task.

    Raises:
        ValueError: for unusable data or settings, and if the loss is not finite.
    """
    if config.resume and is_finished(config.out):
        return load_result(config.out, config)
    stream = streams.load(config)
    state = training.build(config, stream)
    model, strategy = state.model, state.strategy
    run = Run(config, state)
    run.start()

    for task in range(run.task, len(stream.tasks)):
        n_examples = sum(len(stream.tasks[t].train) for t in strategy.sources(task))
        strategy.task = task
        if run.at_start_of_task:
            if not config.online:
                state.optimizer.state.clear()
            strategy.begin_task(task)
        for epoch in range(run.epoch, config.epochs):
            if run.at_start_of_epoch:
                strategy.begin_epoch(epoch)
            chosen = strategy.chosen(epoch, n_examples)
            batches = epoch_batches(config, chosen, task, epoch)
            model.train()
            for index in batches[run.batch :]:
                started = time.perf_counter()
                batch = state.batch(index, task)
                loss = step(state, batch)
                run.end_step(loss, time.perf_counter() - started)
            started = time.perf_counter()
            strategy.end_epoch(epoch)
            run.end_epoch(time.perf_counter() - started)
        started = time.perf_counter()
        strategy.end_task(task)
        if state.buffer.policy == "herding":
            state.herd(task)
        run.end_task(measure(state), time.perf_counter() - started)
        if watch is not None:
            watch(task, state)

    return run.finish()
