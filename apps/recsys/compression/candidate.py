"""What a recipe makes, and what it is given."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.recsys.compression.packed import Packed
from apps.recsys.compression.principal import principal_axes
from apps.recsys.evaluation import evaluate
from apps.recsys.models.factors import Factors
from apps.recsys.splits import Dataset

METRIC = "ndcg@20"
USERS = 3000
Train = Callable[..., Any]  # (**changes of the settings) -> train.Result


@dataclass(frozen=True)
class Subject:
    """A data set, a dense model trained on it, and how to train it otherwise.

    data: nothing is taken from its test part. factors: of the dense model. train:
    trains the same model with some settings changed; None where only factors are given.
    kept: what `once` made. Subjects of several seeds may share `kept_of_data`.
    """

    data: Dataset
    factors: Factors
    train: Train | None = None
    seed: int = 0
    kept: dict[str, Any] = field(default_factory=dict)  # what takes long, by name

    kept_of_data: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def turned(self) -> Factors:
        """The factors turned to their principal axes."""
        return principal_axes(self.factors)

    def first(self, rank: int) -> Factors:
        """The best factors of that rank."""
        turned = self.turned
        return Factors(turned.users[:, :rank], turned.items[:, :rank])

    def once(
        self, name: str, make: Callable[[], Any], *, any_seed: bool = False
    ) -> Any:
        """make(), or what it made the first time. any_seed: it depends on no seed."""
        kept = self.kept_of_data if any_seed else self.kept
        if name not in kept:
            kept[name] = make()
        return kept[name]


@dataclass(frozen=True)
class Candidate:
    """settings: what was chosen, for the table."""

    settings: dict[str, int | float | str]
    packed: Packed


@dataclass(frozen=True)
class Recipe:
    """How to make a recommender smaller.

    candidates: (subject, budget) -> those that take at most `budget` bytes, few, each
    the largest of its kind. about: one line. trains: whether it trains networks, which
    takes longer than packing finished vectors. any_seed: whether neither the vectors
    nor the seed matter to it.
    """

    name: str
    about: str
    candidates: Callable[[Subject, int], Iterator[Candidate]]
    trains: bool = False
    any_seed: bool = False


@dataclass(frozen=True)
class Choice:
    """The candidate that was judged best, by `valid`, and how many there were."""

    best: Candidate
    valid: float
    tried: int


def choose(recipe: Recipe, subject: Subject, budget: int) -> Choice | None:
    """The best of a recipe's candidates, as `judged`; None if nothing fits.

    The test part is not looked at. Equal ones: the first.

    Raises ValueError if a recipe breaks its promise and exceeds the budget.
    """
    name = f"choice of {recipe.name}, {budget}"
    make = partial(_choose, recipe, subject, budget)
    return subject.once(name, make, any_seed=recipe.any_seed)


def _choose(recipe: Recipe, subject: Subject, budget: int) -> Choice | None:
    best, valid, tried = None, -np.inf, 0
    for candidate in recipe.candidates(subject, budget):
        if candidate.packed.nbytes > budget:
            raise ValueError(
                f"{recipe.name} {candidate.settings} takes {candidate.packed.nbytes:,} "
                f"bytes of {budget:,}"
            )
        tried += 1
        value = judged(candidate.packed, subject)
        if value > valid:
            best, valid = candidate, value
    return None if best is None else Choice(best, valid, tried)


def judged(packed: Packed, subject: Subject) -> float:
    """NDCG@20 of validation; without a validation part, of the dense model's lists.

    The latter is agreement with the dense model: its own 20 best items are what counts
    as relevant, for at most USERS users. It says nothing about what is better.
    """
    data = subject.data
    model = packed.model(data.train)
    if data.valid.nnz:
        return evaluate(model, data, "valid", [20]).means[METRIC]
    wanted = subject.once("lists of the dense model", partial(_lists, subject))
    as_test = replace(data, test=wanted)
    return evaluate(model, as_test, "test", [20]).means[METRIC]


def _lists(subject: Subject) -> sp.csr_array:
    """CSR [U, I]: the dense model's 20 best items of some users."""
    data = subject.data
    n_users = data.shape[0]
    rng = np.random.default_rng(subject.seed)
    users = np.sort(rng.choice(n_users, min(USERS, n_users), replace=False))
    items = subject.factors.best(users, 20, data.known("test"))
    rows = np.repeat(users, items.shape[1])[items.ravel() >= 0]
    columns = items.ravel()[items.ravel() >= 0]
    ones = np.ones(len(rows), np.float32)
    return sp.csr_array((ones, (rows, columns)), shape=data.shape)
