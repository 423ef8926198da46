"""A stream of tasks: what comes when, with a train, validation and test part each.

    stream = load(Config(dataset="mnist5k", tasks=5))
    stream.tasks[0].train.raw(torch.arange(10))     [10, 1, 28, 28] uint8, as stored
    stream.view(raw)                                [10, 1, 28, 28] float32, for a model

The seed draws the parts, the order of classes if asked for, permutations and blurs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.common.device import require_device
from apps.common.images import PARTS, channels_last
from apps.continual import sources
from apps.continual.config import Config
from apps.continual.sources import Source

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Examples of one task, held by reference: `raw` reads them.

    x: all inputs of the data set; ids: [N] positions of this part's; y: [N] int64;
    change: what the task does to raw inputs.
    """

    x: Tensor
    ids: Tensor
    y: Tensor
    change: Change | None = None

    def __len__(self) -> int:
        return len(self.y)

    def raw(self, index: Tensor | slice) -> Tensor:
        """Inputs at positions of this part, as a buffer stores them."""
        raw = self.x[self.ids[index]]
        return raw if self.change is None else self.change(raw)


@dataclass(frozen=True)
class Task:
    """classes: those that a test of this task is about, ascending."""

    classes: tuple[int, ...]
    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they come.

    n_classes: over all tasks; labels are 0 ... n_classes - 1; names: what they are.
    name: as results call the data set. mean, std: of each channel, over the
    training inputs of the first task: later ones are not known. counts: inputs are
    counts of words (see `view`).
    """

    tasks: tuple[Task, ...]
    n_classes: int
    names: tuple[str, ...]
    name: str
    mean: Tensor
    std: Tensor
    counts: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.tasks[0].train.x.shape[1:])

    @property
    def itemsize(self) -> int:
        """Bytes of a stored value."""
        return self.tasks[0].train.x.element_size()

    def to(self, device: str) -> "Stream":
        """Inputs on `device`, once for all parts; labels and positions stay."""
        held: dict[int, Tensor] = {}
        require_device(device)

        def moved(part: Part) -> Part:
            x = held.setdefault(id(part.x), part.x.to(device))
            return replace(part, x=x)

        tasks = tuple(
            replace(task, **{name: moved(getattr(task, name)) for name in PARTS})
            for task in self.tasks
        )
        mean, std = self.mean.to(device), self.std.to(device)
        return replace(self, tasks=tasks, mean=mean, std=std)

    def view(self, raw: Tensor) -> Tensor:
        """Stored inputs as a model sees them, float32.

        Images: standardised by the first task's mean and deviation, channels innermost
        in memory. Counts of words c: log(1 + c), scaled to length sqrt(D).
        """
        x = raw.float()
        if self.counts:
            x = x.log1p()
            return F.normalize(x, dim=1) * math.sqrt(x.shape[1])
        x = (x - self.mean.to(x.device)) / self.std.to(x.device)
        return channels_last(x) if x.dim() == 4 else x


def load(config: Config) -> Stream:
    """The stream that `config` describes.

    Raises ValueError for unusable data or settings, naming the fix; FileNotFoundError.
    """
    source = sources.load(config)
    if config.scenario == "domain":
        tasks = _domains(config, source)
    else:
        tasks = _classes(config, source)
    if config.blurry:
        tasks = blurred(tasks, config.blurry, _generator(config, 2))
    if config.train_size is not None:
        tasks = [_shortened(task, config.train_size) for task in tasks]
    _require_examples(tasks)
    first = tasks[0].train
    mean, std = (torch.zeros(1), torch.ones(1)) if source.counts else _moments(first)
    return Stream(
        tuple(tasks), len(source.names), source.names, source.name, mean, std,
        source.counts,
    )  # fmt: skip


def _classes(config: Config, source: Source) -> list[Task]:
    """Each class in one task: in order, in groups as equal as can be."""
    n_classes = len(source.names)
    if source.task is not None:
        if config.order or config.shuffle_classes:
            raise ValueError(
                "your array 'task' says which class comes when: leave order and "
                "shuffle_classes out"
            )
        groups = _given_groups(source)
    else:
        groups = split_classes(class_order(config, n_classes), config.tasks)
    if config.scenario == "task":
        alone = next((i for i, group in enumerate(groups) if len(group) < 2), None)
        if alone is not None:
            raise ValueError(
                f"task {alone} has one class: with the task known nothing is left to "
                "tell apart; take fewer tasks, or scenario class"
            )
    return [
        Task(tuple(sorted(group)), *(_of_classes(source, p, group) for p in PARTS))
        for group in groups
    ]


def class_order(config: Config, n_classes: int) -> list[int]:
    """Classes in the order in which they come."""
    if config.shuffle_classes:
        return _generator(config, 0).permutation(n_classes).tolist()
    if not config.order:
        return list(range(n_classes))
    if sorted(config.order) != list(range(n_classes)):
        wrong = sorted(set(config.order) ^ set(range(n_classes)))
        raise ValueError(
            f"order must name each class 0 ... {n_classes - 1} once; differs in {wrong}"
        )
    return list(config.order)


def split_classes(order: Sequence[int], n_tasks: int) -> list[list[int]]:
    """Classes in groups of equal size, or one more in the first groups.

    >>> split_classes(range(10), 4)
    [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    """
    if n_tasks > len(order):
        raise ValueError(
            f"{n_tasks} tasks of {len(order)} classes would leave a task empty: take "
            f"at most {len(order)}"
        )
    return [group.tolist() for group in np.array_split(np.asarray(order), n_tasks)]


def _given_groups(source: Source) -> list[list[int]]:
    """The classes of each task of the user's column; each class in one task."""
    assert source.task is not None
    groups: list[list[int]] = []
    first: dict[int, int] = {}
    for task in range(int(source.task.max()) + 1):
        group = np.unique(source.y[source.task == task]).tolist()
        for label in group:
            if label in first:
                raise ValueError(
                    f"class {source.names[label]!r} is in tasks {first[label]} and "
                    f"{task}: a class belongs to one task; if the inputs differ and "
                    "not the classes, use scenario domain with drift tasks"
                )
            first[label] = task
        groups.append(group)
    return groups


def _of_classes(source: Source, part: str, group: Sequence[int]) -> Part:
    ids = source.parts[part]
    ids = ids[np.isin(source.y[ids], group)]
    return _part(source, ids)


def _part(source: Source, ids: np.ndarray, change: Change | None = None) -> Part:
    y = torch.from_numpy(source.y[ids].astype(np.int64))
    return Part(source.x, torch.from_numpy(ids), y, change)


def _domains(config: Config, source: Source) -> list[Task]:
    """Tasks of the same classes: permuted pixels, rotated images, or given ones."""
    classes = tuple(range(len(source.names)))
    if config.drift == "tasks":
        return _given_domains(source, classes)
    if config.drift == "rotated" and source.x.dim() != 4:
        raise ValueError("drift rotated needs images; use permuted or tasks")
    generator = _generator(config, 1)
    tasks = []
    for task in range(config.tasks):
        change: Change
        if config.drift == "rotated":
            change = Rotation(float(generator.uniform(0, 180)))
        else:
            n_pixels = source.x[0].numel()
            change = Permutation(torch.from_numpy(generator.permutation(n_pixels)))
        if task == 0 and config.drift == "permuted":
            change = None  # type: ignore[assignment]  # the first task is as it is
        parts = (_part(source, source.parts[p], change) for p in PARTS)
        tasks.append(Task(classes, *parts))
    return tasks


def _given_domains(source: Source, classes: tuple[int, ...]) -> list[Task]:
    if source.task is None:
        raise ValueError("drift tasks needs a data set with an array 'task'")
    tasks = []
    for task in range(int(source.task.max()) + 1):
        ids = (source.parts[p][source.task[source.parts[p]] == task] for p in PARTS)
        tasks.append(Task(classes, *(_part(source, i) for i in ids)))
    return tasks


@dataclass(frozen=True)
class Permutation:
    """The same shuffle of the pixels of every input."""

    order: Tensor

    def __call__(self, raw: Tensor) -> Tensor:
        order = self.order.to(raw.device)
        return raw.flatten(1)[:, order].view_as(raw)


@dataclass(frozen=True)
class Rotation:
    """Images [B, C, S, S] turned by `degrees` about their centre, bilinearly."""

    degrees: float

    def __call__(self, raw: Tensor) -> Tensor:
        a = math.radians(self.degrees)
        cos, sin = math.cos(a), math.sin(a)
        turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], device=raw.device)
        size = list(raw.shape)
        grid = F.affine_grid(turn.expand(len(raw), 2, 3), size, align_corners=False)
        turned = F.grid_sample(raw.float(), grid, align_corners=False)
        if raw.dtype == torch.uint8:
            turned = turned.round().clamp(0, 255)
        return turned.to(raw.dtype)


def blurred(
    tasks: Sequence[Task], share: float, generator: np.random.Generator
) -> list[Task]:
    """Tasks whose training parts exchanged `share` of their examples at random.

    Each task gives round(share * n) of its n examples; what all have given is shuffled,
    and each gets back as many as it gave. So sizes stay, and some examples come home.
    """
    kept, given = [], []
    for task in tasks:
        order = generator.permutation(len(task.train))
        n_given = round(share * len(task.train))
        given.append(order[:n_given])
        kept.append(np.sort(order[n_given:]))
    pool_ids = torch.cat([t.train.ids[g] for t, g in zip(tasks, given, strict=True)])
    pool_y = torch.cat([t.train.y[g] for t, g in zip(tasks, given, strict=True)])
    shuffle = torch.from_numpy(generator.permutation(len(pool_y)))
    shares = shuffle.split([len(g) for g in given])
    return [
        replace(
            task,
            train=replace(
                task.train,
                ids=torch.cat([task.train.ids[keep], pool_ids[more]]),
                y=torch.cat([task.train.y[keep], pool_y[more]]),
            ),
        )
        for task, keep, more in zip(tasks, kept, shares, strict=True)
    ]


def _shortened(task: Task, size: int) -> Task:
    """The first examples of the training part, which is in random order."""
    train = task.train
    return replace(task, train=replace(train, ids=train.ids[:size], y=train.y[:size]))


def _require_examples(tasks: Sequence[Task]) -> None:
    for i, task in enumerate(tasks):
        for name in PARTS:
            if not len(getattr(task, name)):
                raise ValueError(
                    f"task {i} has no {name} examples: a task needs a few of each part"
                )


def _moments(part: Part) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel (of all features of a vector)."""
    x = part.raw(slice(0, 10_000)).double()
    dims = (0, 2, 3) if x.dim() == 4 else (0, 1)
    mean, std = x.mean(dims, keepdim=True), x.std(dims, keepdim=True)
    if not (std > 0).all():
        raise ValueError("a channel of the first task's inputs is constant")
    return mean[0].float(), std[0].float()


def _generator(config: Config, purpose: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, 7, purpose))
