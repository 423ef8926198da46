"""Trains one recommender, dense or sparse, with the loop in full view.

    python -m apps.recsys train --config lightgcn-ml100k --out runs/lightgcn
    python -m apps.recsys train --out runs/lightgcn --resume

or, in a notebook (nothing is written):

    result = train(Config(model="mf", method="gradual", sparsity=0.9))
    result.model.scores(np.array([3, 7]))            # [2, I] float32
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from apps.common import options, seeds
from apps.common.device import require_device
from apps.common.runs import is_finished
from apps.common.training import cosine, set_learning_rate
from apps.recsys import networks
from apps.recsys.config import Config
from apps.recsys.gradients import prepared
from apps.recsys.models.network import Network
from apps.recsys.result import Result, Run, load_result
from apps.recsys.sampling import Pairs, Users
from sparsekit import Sparsifier

Watch = Callable[[int, Network, Sparsifier | None], None]


def train(config: Config, watch: Watch | None = None, *, part: str = "test") -> Result:
    """Trains as `config` says and tests once, at the end.

    Every `config.every` epochs the validation part is ranked; the weights of the epoch
    with the best NDCG@20 there are tested, among the epochs that have the final
    sparsity. Writes to `config.out` if it is given, else nothing; with `config.resume`
    goes on from the last validation, to the same result, on a CPU bit for bit.

    Args:
        config: what to train.
        watch: called as watch(epoch, network, sparsifier) before training (epoch 0)
            and after every epoch; the sparsifier is None for "dense".
        part: "valid" to try settings: the result's metrics are those of the validation
            part, and the test part is not looked at.

    Raises:
        ValueError: for unusable data or settings, and if the loss is not finite.
    """
    if part == "valid" and (config.out is not None or config.train_on == "all"):
        raise ValueError("part valid writes no run and needs train_on train")
    if config.resume and is_finished(config.out):
        return load_result(config.out, config)
    require_device(config.device)
    data = config.load()
    fit_on = data.final() if config.train_on == "all" else data
    network = networks.build(config, fit_on.train)
    sampler = network.sampler(
        fit_on.train, config.batch, config.negatives, config.negative_power,
        config.device, config.draw == "users",
    )  # fmt: skip
    total = sampler.steps * config.epochs
    method = options.build(
        config.method, config.sparsity, config.options, sampler.steps, total
    )
    masked = sparse_names(config, network)
    if config.backend == "values":
        network = in_values_mode(network, masked)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    sparsifier = None
    if method is not None:
        sparsifier = Sparsifier(
            network,
            optimizer,
            method,
            params=masked,
            moments=config.moments,
            seed=config.seed if config.mask_seed is None else config.mask_seed,
            objective=objective(sampler),
        )
    # Rewinding starts the training again, and the learning rate with it.
    cycle = total if method is None or method.rewind_to is None else method.every
    run = Run(config, data, network, optimizer, sparsifier, sampler.steps)
    run.start()
    if watch is not None and run.epoch == 0:
        watch(0, network, sparsifier)

    gradients = prepared(network, optimizer, sampler.shape)
    for epoch in range(run.epoch, config.epochs):
        if run.is_over():
            break
        started = time.perf_counter()
        network.train()
        summed = torch.zeros((), device=config.device)
        step = epoch * sampler.steps
        with seeded(config, epoch) as generator:
            for batch in sampler.epoch(generator):
                factor = learning_rate_factor(config.schedule, step % cycle, cycle)
                set_learning_rate(optimizer, config.lr * factor)
                network.progress = step / total
                summed += gradients(batch)
                if sparsifier is not None:
                    sparsifier.before_step()
                optimizer.step()
                if sparsifier is not None:
                    sparsifier.after_step()
                step += 1
        run.end_epoch(float(summed) / sampler.steps, time.perf_counter() - started)
        if watch is not None:
            watch(epoch + 1, network, sparsifier)

    if config.backend == "values":
        return run.finish(part, plain=networks.build(config, fit_on.train))
    return run.finish(part)


@contextmanager
def seeded(config: Config, epoch: int) -> Iterator[torch.Generator]:
    """A CPU generator for the batches of an epoch, decided by (seed, epoch).

    Dropout and the like draw from torch's own generators, which are seeded alike and
    put back afterwards. So there is nothing random to save for a resumed run.
    """
    own, batches = np.random.SeedSequence((config.seed, epoch)).generate_state(2)
    with seeds.seeded(int(own), config.device):
        yield torch.Generator().manual_seed(int(batches))


def learning_rate_factor(schedule: str, step: int, total: int) -> float:
    """Share of the peak learning rate in step 0 ... total - 1; cosine ends at 1 %.

    >>> [round(learning_rate_factor("cosine", t, 101), 3) for t in (0, 50, 100)]
    [1.0, 0.505, 0.01]
    """
    if schedule == "constant":
        return 1.0
    return cosine(step, max(1, total - 1), floor=0.01)


def sparse_names(config: Config, network: Network) -> list[str]:
    """Names of the parameters that are masked."""
    known = [name for name, _ in network.named_parameters()]
    names = list(config.sparse or network.sparse_names)
    for name in names:
        if name not in known:
            raise ValueError(
                f"sparse: {name!r} is no parameter of {config.model}; it has "
                f"{', '.join(known)}"
            )
    return names


def in_values_mode(network: Network, names: list[str]) -> Network:
    """The network with layers that store alive weights only, where `names` says."""
    from sparsekit.execution import convert  # numba, which a GPU box may not have

    layers = [name.removesuffix(".weight") for name in names]
    return convert(network, to="values", where=layers)


def objective(sampler: Pairs | Users) -> Callable[[nn.Module], Tensor]:
    """The loss of one batch, for methods that score weights before training."""
    batch = next(sampler.epoch(torch.Generator().manual_seed(0)))
    return lambda model: model.loss(batch)
