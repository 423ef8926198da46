"""What a training consists of: model, optimizer, masks, buffer, random draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apps.common import classifiers, processes
from apps.common.options import in_values_mode
from apps.common.seeds import mixed
from apps.continual import buffer as memory
from apps.continual import models
from apps.continual.augment import crops_and_flips
from apps.continual.buffer import Buffer
from apps.continual.config import Config
from apps.continual.cost import TrainingFlops
from apps.continual.strategy import Batch, Plan, Strategy, evaluating
from apps.continual.strategy import build as build_strategy
from apps.continual.streams import Part, Stream
from sparsekit import Sparsifier, fixed


@dataclass
class Training:
    """What strategies work with; all of it is saved in a checkpoint.

    draws: of augmentation and of whatever a strategy chooses at random, on the CPU.
    """

    config: Config
    stream: Stream
    strategy: Strategy
    model: nn.Module
    optimizer: torch.optim.Optimizer
    sparsifier: Sparsifier | None
    buffer: Buffer
    plan: Plan
    flops: TrainingFlops
    draws: torch.Generator

    def __post_init__(self) -> None:
        self.shared = processes.shared(self.model)
        if self.config.compile:
            if processes.count() > 1:
                raise ValueError("compile is for one process: leave it out")
            self.shared = torch.compile(self.model, dynamic=False)

    @property
    def device(self) -> str:
        return self.config.device

    @property
    def masks(self) -> dict[str, Tensor]:
        return {} if self.sparsifier is None else dict(self.sparsifier.alive)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] in training mode, counted in the FLOPs."""
        self.flops.add_forward(len(x), torch.is_grad_enabled())
        half = self.config.precision == "bf16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, half):
            return self.shared(x).float()

    def back_propagate(self, batch: Batch) -> Tensor | None:
        """Adds the gradients of the strategy's loss; returns it, None if there is none.

        Term by term: the activations of one forward pass are alive at a time. The sum
        is that of one backward pass over all terms, up to rounding.
        """
        loss = None
        for term in self.strategy.loss_terms(batch):
            term.backward()
            loss = term.detach() if loss is None else loss + term.detach()
        processes.average(self.model.parameters())
        return loss

    def seen(self, raw: Tensor) -> Tensor:
        """Stored inputs as the model sees them in training."""
        if self.config.augment:
            raw = crops_and_flips(raw, self.draws)
        return self.stream.view(raw)

    def count_step(self) -> None:
        """Counts an optimizer step's FLOPs, at the masks it had."""
        if self.sparsifier is None:
            self.flops.end_step(dense_gradient=False)
            return
        method = self.sparsifier.method
        moved = method.due(self.sparsifier.step - 1)
        self.flops.end_step(moved and method.needs_dense_gradient)
        if moved:
            self.flops.update(self.masks)

    def fresh_model(self) -> nn.Module:
        """The model as it was before the first step, dense."""
        return build_model(self.config, self.stream)

    @torch.no_grad()
    def herd(self, task: int) -> None:
        """Chooses what the buffer holds of the classes so far, each as much.

        Of a new class the examples whose features have nearly the mean of all (iCaRL);
        of an old one the first of those it held.
        """
        stream, size = self.stream, self.buffer.size
        labels = sorted({c for t in stream.tasks[: task + 1] for c in t.classes})
        if not size:
            return
        share, part = size // len(labels), stream.tasks[task].train
        held = self.buffer.everything() if len(self.buffer) else None
        raws, ys = [], []
        for label in labels:
            if held is not None and bool((held.y == label).any()):
                raw = held.raw[held.y == label][:share]
            else:
                raw = part.raw(torch.nonzero(part.y == label)[:, 0]).to(self.device)
                with evaluating(self.model):
                    features, _ = classifiers.features(self.model, stream.view(raw))
                self.flops.add_forward(len(raw), back_propagated=False)
                features = nn.functional.normalize(features.flatten(1), dim=1)
                raw = raw[memory.herd(features, share).to(raw.device)]
            raws.append(raw)
            ys.append(torch.full((len(raw),), label, device=self.device))
        raw, logits = torch.cat(raws), None
        if self.strategy.stores_logits:
            with evaluating(self.model):
                logits = self.model(stream.view(raw))
        self.buffer.replace(raw, torch.cat(ys), logits)

    @torch.no_grad()
    def restart(self) -> None:
        """Weights as they were before the first step, masks as they are now."""
        if self.config.backend == "values":
            raise ValueError("this strategy trains anew: use backend masked")
        fresh = self.fresh_model().state_dict()
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(fresh[name])
        fixed.apply(self.model, self.masks)
        self.optimizer.state.clear()

    def batch(self, index: Tensor, task: int) -> Batch:
        """Examples at positions of what the strategy trains on in `task`."""
        parts = [self.stream.tasks[t].train for t in self.strategy.sources(task)]
        raw, y = gathered(parts, index)
        raw, y = raw.to(self.device), y.to(self.device)
        return Batch(self.seen(raw), y, raw, index)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier and self.sparsifier.state_dict(),
            "strategy": self.strategy.state_dict(),
            "buffer": self.buffer.state_dict(),
            "draws": self.draws.get_state(),
            "flops": self.flops.total,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.sparsifier is not None:
            self.sparsifier.load_state_dict(state["sparsifier"])
        self.strategy.load_state_dict(state["strategy"])
        self.buffer.load_state_dict(state["buffer"], self.device)
        self.draws.set_state(state["draws"])
        self.flops.update(self.masks)
        self.flops.total = state["flops"]


def build(config: Config, stream: Stream) -> Training:
    """Everything before the first step; equal for equal config and stream.

    Raises ValueError for a model that does not fit the inputs, or a buffer that does
    not fit the classes.
    """
    stream = stream.to(config.device)
    strategy = build_strategy(config)
    plan = plan_of(config, stream, strategy)
    model = build_model(config, stream)
    part = stream.tasks[0].train
    sample = stream.view(part.raw(slice(0, 1)).to(config.device))
    flops = TrainingFlops(model, sample)
    params = strategy.masked(config, model)
    if config.backend == "values":
        model = in_values_mode(model, params)
    optimizer = build_optimizer(config, model)
    method = strategy.method(config, plan)
    sparsifier = None
    if method is not None:
        sparsifier = Sparsifier(
            model,
            optimizer,
            method,
            params=params,
            seed=config.seed,
            objective=_objective(stream, config),
            losses=strategy.losses(),
        )
    training = Training(
        config, stream, strategy, model, optimizer, sparsifier,
        build_buffer(config, stream, strategy), plan, flops,
        torch.Generator().manual_seed(mixed(config.seed, 3)),
    )  # fmt: skip
    flops.update(training.masks)
    strategy.prepare(training)
    return training


def build_model(config: Config, stream: Stream) -> nn.Module:
    model = models.build(
        config.model, config.width, config.depth, stream.n_classes, stream.shape,
        config.seed,
    )  # fmt: skip
    if torch.device(config.device).type == "cuda":
        return model.to(config.device, memory_format=torch.channels_last)
    return model.to(config.device)


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **common)
    momentum = 0.9 if config.optimizer == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), momentum=momentum, **common)


def build_buffer(config: Config, stream: Stream, strategy: Strategy) -> Buffer:
    """The buffer, as large as `buffer` or `buffer_bytes` says; 0 if it is not used."""
    if not strategy.uses_buffer:
        return Buffer(0)
    size = config.buffer
    logits = stream.n_classes if strategy.stores_logits else 0
    if config.buffer_bytes is not None:
        size = memory.size_within(
            config.buffer_bytes, stream.shape, stream.itemsize, logits
        )
    policy = strategy.policy or config.policy
    if policy != "reservoir" and 0 < size < stream.n_classes:
        raise ValueError(
            f"a {policy} buffer of {size} examples cannot hold one of each of "
            f"{stream.n_classes} classes: make it larger, or take policy reservoir"
        )
    if policy == "herding" and config.online:
        raise ValueError(
            "herding chooses at the end of a task, which online is not told"
        )
    return Buffer(size, policy, mixed(config.seed, 4))


def plan_of(config: Config, stream: Stream, strategy: Strategy) -> Plan:
    """How many steps each epoch of each task will have."""
    return Plan(
        tuple(
            tuple(
                n_batches(strategy.n_chosen(task, epoch, n), config.batch)
                for epoch in range(config.epochs)
            )
            for task in range(len(stream.tasks))
            for n in [sum(len(stream.tasks[t].train) for t in strategy.sources(task))]
        )
    )


def n_batches(n: int, batch: int) -> int:
    """Steps of an epoch over n examples: whole batches, or one that is smaller.

    >>> n_batches(105, 10), n_batches(7, 10)
    (10, 1)
    """
    return max(1, n // batch)


def epoch_batches(
    config: Config, chosen: Tensor, task: int, epoch: int
) -> list[Tensor]:
    """An epoch's batches, decided by (seed, task, epoch): nothing to resume."""
    generator = torch.Generator().manual_seed(mixed(config.seed, 5, task, epoch))
    order = chosen[torch.randperm(len(chosen), generator=generator)]
    n = n_batches(len(chosen), config.batch)
    return [order[i * config.batch : (i + 1) * config.batch] for i in range(n)]


def gathered(parts: list[Part], index: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and labels at positions of several parts, one after the other."""
    if len(parts) == 1:
        return parts[0].raw(index), parts[0].y[index]
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    which = torch.bucketize(index, ends, right=True)
    raw = y = None
    for i, part in enumerate(parts):
        here = which == i
        if not here.any():
            continue
        local = index[here] - (int(ends[i - 1]) if i else 0)
        some, labels = part.raw(local), part.y[local]
        if raw is None or y is None:
            raw = some.new_empty((len(index), *some.shape[1:]))
            y = labels.new_empty(len(index))
        raw[here], y[here] = some, labels
    assert raw is not None
    assert y is not None
    return raw, y


def _objective(stream: Stream, config: Config) -> Callable[[nn.Module], Tensor]:
    """For methods that score weights before training: the first task's loss.

    Of its first 100 training examples; later tasks are not known yet.
    """
    part = stream.tasks[0].train
    x = stream.view(part.raw(slice(0, 100)).to(config.device))
    y = part.y[:100].to(config.device)
    return lambda model: nn.functional.cross_entropy(model(x), y)
