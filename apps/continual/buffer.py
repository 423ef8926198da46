"""The memory of a replay strategy: which past examples it keeps, and in how many bytes.

    buffer = Buffer(size=200, policy="reservoir", seed=0)
    buffer.add(raw, y)                    # after every step
    raw, y = buffer.draw(10).raw, ...     # for the next one

Examples are stored as they come, images as uint8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekit.spelling import choice

POLICIES = ("reservoir", "balanced", "herding")
LABEL_BYTES = 8


@dataclass(frozen=True)
class Draw:
    """Examples of the buffer: raw [n, ...], y [n] int64, logits [n, K] or None."""

    raw: Tensor
    y: Tensor
    logits: Tensor | None

    def __len__(self) -> int:
        return len(self.y)


class Buffer:
    """At most `size` examples of all that were offered.

    policy:
        reservoir: Vitter's algorithm R. The n-th example offered, n = 0, 1, ..., takes
            slot n while n < size, then a slot j drawn from 0 ... n if j < size. So each
            example offered so far is held with probability size / n. What is offered
            twice counts twice: over E epochs, E times.
        balanced: of each class as many. A full buffer takes a new example of a class
            that has not the most examples in place of a random one of a class that has;
            an example of the largest class enters as in a reservoir of that class.
        herding: `add` does nothing; `herd` chooses at the end of a task.

    Everything is on the device of what is first added. Random choices are made on the
    CPU, equal on every device.

    >>> buffer = Buffer(size=3)
    >>> buffer.add(torch.arange(10), torch.arange(10))
    >>> len(buffer), buffer.seen
    (3, 10)

    Vitter: Random sampling with a reservoir, 1985. Chrysakis, Moens: Online continual
    learning from imbalanced data, 2020 (balanced; from memory).
    """

    def __init__(self, size: int, policy: str = "reservoir", seed: int = 0):
        if policy not in POLICIES:
            raise ValueError(choice(f"policy {policy!r} is unknown", policy, POLICIES))
        if size < 0:
            raise ValueError(f"a buffer holds 0 examples or more, got {size}")
        self.size, self.policy, self.seen = size, policy, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.n = 0
        self.raw: Tensor | None = None  # [size, ...]
        self.y: Tensor | None = None  # [size] int64
        self.logits: Tensor | None = None  # [size, K] float32
        self.offered: dict[int, int] = {}  # of each class, for "balanced"

    def __len__(self) -> int:
        return self.n

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored for `size` examples; 0 before the first one."""
        held = (self.raw, self.y, self.logits)
        return sum(t.nbytes for t in held if t is not None)

    # ---- what goes in ------------------------------------------------------------

    @torch.no_grad()
    def add(self, raw: Tensor, y: Tensor, logits: Tensor | None = None) -> None:
        """Offers a batch: raw [B, ...], y [B], logits [B, K] if they are replayed."""
        if self.size == 0 or self.policy == "herding":
            return
        self._allocate(raw, y, logits)
        slots = self._balanced(y) if self.policy == "balanced" else self._reservoir(y)
        taken = {slot: i for i, slot in enumerate(slots) if slot is not None}
        self._put(list(taken), list(taken.values()), raw, y, logits)

    @torch.no_grad()
    def replace(self, raw: Tensor, y: Tensor, logits: Tensor | None = None) -> None:
        """Holds these examples and no others, at most `size`."""
        if len(y) > self.size:
            raise ValueError(f"the buffer holds {self.size} examples, got {len(y)}")
        self.n = 0
        if self.size == 0:
            return
        self._allocate(raw, y, logits)
        self.n = len(y)
        self._put(list(range(self.n)), list(range(self.n)), raw, y, logits)

    def _reservoir(self, y: Tensor) -> list[int | None]:
        """A slot for each example, None for those that are not kept."""
        uniform = torch.rand(len(y), dtype=torch.float64, generator=self.generator)
        slots: list[int | None] = []
        for u in uniform.tolist():
            slot = self.n if self.n < self.size else int(u * (self.seen + 1))
            slots.append(slot if slot < self.size else None)
            self.n = min(self.n + 1, self.size)
            self.seen += 1
        return slots

    def _balanced(self, y: Tensor) -> list[int | None]:
        assert self.y is not None
        held = self.y[: self.n].tolist()  # the class in each slot
        uniform = torch.rand(len(y), 2, dtype=torch.float64, generator=self.generator)
        slots: list[int | None] = []
        for label, (u, v) in zip(y.tolist(), uniform.tolist(), strict=True):
            self.seen += 1
            self.offered[label] = self.offered.get(label, 0) + 1
            if len(held) < self.size:
                slots.append(len(held))
                held.append(label)
                continue
            counts = {c: held.count(c) for c in set(held)}
            most = max(counts.values())
            if counts.get(label, 0) < most:
                largest = sorted(c for c in counts if counts[c] == most)
                left = largest[int(u * len(largest))]
            else:  # a reservoir of its own class
                left = label
                if int(u * self.offered[label]) >= most:
                    slots.append(None)
                    continue
            where = [slot for slot, c in enumerate(held) if c == left]
            slot = where[int(v * len(where))]
            held[slot] = label
            slots.append(slot)
        self.n = len(held)
        return slots

    def _allocate(self, raw: Tensor, y: Tensor, logits: Tensor | None) -> None:
        if self.raw is None:
            self.raw = raw.new_zeros((self.size, *raw.shape[1:]))
            self.y = y.new_zeros(self.size)
            if logits is not None:
                self.logits = logits.new_zeros((self.size, *logits.shape[1:]))
        if (logits is None) != (self.logits is None):
            raise ValueError("logits are given for all examples, or for none")

    def _put(
        self, slots: list[int], rows: list[int],
        raw: Tensor, y: Tensor, logits: Tensor | None,
    ) -> None:  # fmt: skip
        assert self.raw is not None
        assert self.y is not None
        if not slots:
            return
        to = torch.tensor(slots, device=raw.device)
        of = torch.tensor(rows, device=raw.device)
        self.raw[to], self.y[to] = raw[of], y[of]
        if logits is not None:
            assert self.logits is not None
            self.logits[to] = logits[of].detach()

    # ---- what comes out ----------------------------------------------------------

    def draw(self, n: int) -> Draw:
        """`n` different examples at random; all, in random order, if it holds fewer."""
        order = torch.randperm(self.n, generator=self.generator)[:n]
        return self._at(order)

    def everything(self) -> Draw:
        """All that is held, in the order of the slots."""
        return self._at(torch.arange(self.n))

    def _at(self, slots: Tensor) -> Draw:
        if self.raw is None or self.y is None:
            raise ValueError("the buffer is empty: nothing can be drawn")
        at = slots.to(self.raw.device)
        logits = None if self.logits is None else self.logits[at]
        return Draw(self.raw[at], self.y[at], logits)

    # ---- saving ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Loads with `weights_only=True`; resumes bit for bit."""
        return {
            "size": self.size,
            "policy": self.policy,
            "seen": self.seen,
            "n": self.n,
            "offered": dict(self.offered),
            "raw": self.raw,
            "y": self.y,
            "logits": self.logits,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: str = "cpu") -> None:
        """Takes over a state. Raises ValueError for a buffer of another form."""
        if (state["size"], state["policy"]) != (self.size, self.policy):
            raise ValueError(
                f"the state is of a {state['policy']} buffer of {state['size']}, not "
                f"of a {self.policy} buffer of {self.size}"
            )
        self.seen, self.n = state["seen"], state["n"]
        self.offered = dict(state["offered"])
        for name in ("raw", "y", "logits"):
            held = state[name]
            setattr(self, name, None if held is None else held.to(device).clone())
        self.generator.set_state(state["generator"])


def bytes_of_example(shape: tuple[int, ...], itemsize: int, logits: int = 0) -> int:
    """Bytes that a buffer needs for one example.

    shape: of the raw example; itemsize: of its values, 1 for uint8; logits: how many
    are stored with it, float32.

    >>> bytes_of_example((1, 28, 28), 1, logits=10)
    832
    """
    n_values = 1
    for side in shape:
        n_values *= side
    return n_values * itemsize + LABEL_BYTES + 4 * logits


def size_within(
    budget: int, shape: tuple[int, ...], itemsize: int, logits: int = 0
) -> int:
    """Examples that fit into `budget` bytes.

    Raises ValueError if not one does.

    >>> size_within(100_000, (1, 28, 28), 1)
    126
    """
    one = bytes_of_example(shape, itemsize, logits)
    if budget < one:
        raise ValueError(f"buffer_bytes {budget} is too small: one example needs {one}")
    return budget // one


def herd(features: Tensor, n: int) -> Tensor:
    """Positions of `n` rows whose mean is near the mean of all, greedily.

    The k-th is the row, not yet taken, that brings the mean of the k taken rows nearest
    to the mean of all rows. features: [N, d], rows scaled to length 1 by the caller if
    wanted. A tie goes to the first.

    >>> herd(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 2)
    tensor([2, 1])

    Rebuffi et al.: iCaRL, 2017, algorithm 4 (Welling's herding; from memory).
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    order = []
    for k in range(min(n, len(features))):
        distance = ((total + features) / (k + 1) - mean).square().sum(1)
        distance[taken] = torch.inf
        i = int(distance.argmin())
        taken[i] = True
        total = total + features[i]
        order.append(i)
    return torch.tensor(order, dtype=torch.int64)
