"""Augmented edges: of some candidates, one that a user would like and one not.

    offered = candidates(model, data, k=10)                  # [U, K], best first
    triplets = by_scores(offered, similarity(offered, read, vectors))
    found = by_asking(endpoint, items, read, offered, store)
    found.triplets, found.tally, found.bill

Whoever chooses, the result is the same: a triplet (user, liked, disliked) for each user
who had a choice. `choosers` holds the controls that need no language model.

Wei et al.: LLMRec: Large language models with graph augmentation for recommendation,
2024, section 3.1. Differs from the paper: candidates are shuffled and named by keys,
what a user knows already is no candidate, and answers are judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.recsys.language import prompts
from apps.recsys.language.answers import Tally, Verdict, judge_choice
from apps.recsys.language.asking import Budget, ask_until_accepted
from apps.recsys.language.catalogue import Catalogue
from apps.recsys.language.choosing import Choice, likelihoods
from apps.recsys.language.cost import Bill
from apps.recsys.language.interface import (
    LanguageModel,
    LikelihoodModel,
    Prompt,
    Settings,
)
from apps.recsys.language.store import Store
from apps.recsys.language.titles import shown
from apps.recsys.models.closed_form import Model
from apps.recsys.splits import Dataset
from apps.recsys.topk import top_k_scores

Histories = Sequence[np.ndarray]
SHORT = Settings(max_tokens=40)


@dataclass(frozen=True)
class Triplets:
    """users, liked, disliked: [n] int32, indices; at most one a user, in order."""

    users: np.ndarray
    liked: np.ndarray
    disliked: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Edges:
    """What asking gave: triplets, how answers fared, and what they cost."""

    triplets: Triplets
    tally: Tally
    bill: Bill


def candidates(model: Model, data: Dataset, k: int = 10) -> np.ndarray:
    """[U, k] int32: a base recommender's best items that are not in train; -1 pads."""
    users = np.arange(data.shape[0])
    return top_k_scores(model.scores, k, data.train, users=users).items


def by_scores(offered: np.ndarray, scores: np.ndarray) -> Triplets:
    """The candidates with the highest and the lowest score of each user.

    offered: [U, K] integers, -1 pads; scores: [U, K], NaN counts as not offered. Of
    equal scores the first is liked, the last disliked. Users with fewer than two
    candidates have no triplet.

    >>> by_scores(np.array([[4, 7, 9]]), np.array([[0.1, 0.5, 0.2]])).liked
    array([7], dtype=int32)
    """
    if offered.shape != scores.shape:
        raise ValueError(f"{offered.shape} candidates, {scores.shape} scores")
    there = (offered >= 0) & ~np.isnan(scores)
    users = np.flatnonzero(there.sum(1) >= 2)
    best = np.where(there, scores, -np.inf).argmax(1)
    # From the end, so that of equal ones another is found than the best.
    worst = np.where(there, scores, np.inf)[:, ::-1].argmin(1)
    worst = offered.shape[1] - 1 - worst
    return Triplets(
        users.astype(np.int32),
        offered[users, best[users]].astype(np.int32),
        offered[users, worst[users]].astype(np.int32),
    )


def by_asking(
    model: LanguageModel,
    items: Catalogue,
    read: Histories,
    offered: np.ndarray,
    store: Store,
    *,
    users: Sequence[int] | None = None,
    settings: Settings = SHORT,
    tries: int = 2,
    noun: str = "film",
    seed: int = 0,
    budget: Budget | None = None,
    progress: str | None = None,
) -> Edges:
    """A language model names the candidate that a user would like most, and least.

    read: items of each user, the latest at the end. users: whom to ask about, default
    all. seed: of the order of candidates, since models prefer the first ones.
    """
    asked, orders, withheld = questions(
        items, read, offered, users=users, noun=noun, seed=seed
    )

    def judge(user: int, text: str) -> Verdict:
        order = orders[user]
        titles = [items.titles[i] for i in order]
        return judge_choice(
            text, len(order), titles, [items.titles[i] for i in read[user]]
        )

    chosen, tally, bill = ask_until_accepted(
        model, asked, judge, settings, store, tries=tries, budget=budget,
        progress=progress,
    )  # fmt: skip
    tally.withheld = withheld
    rows = [(u, orders[u][a], orders[u][b]) for u, (a, b) in sorted(chosen.items())]
    columns = np.array(rows, np.int32).reshape(-1, 3).T
    return Edges(Triplets(*columns), tally, bill)


def questions(
    items: Catalogue,
    read: Histories,
    offered: np.ndarray,
    *,
    users: Sequence[int] | None = None,
    noun: str = "film",
    seed: int = 0,
) -> tuple[dict[int, Prompt], dict[int, list[int]], int]:
    """{user: prompt}, {user: candidates in the order shown}, titles withheld.

    Users without a history or with fewer than two candidates to show are left out.
    """
    showable = items.showable()
    asked: dict[int, Prompt] = {}
    orders: dict[int, list[int]] = {}
    hidden: set[int] = set()
    for user in range(len(offered)) if users is None else users:
        some = [int(i) for i in offered[user] if i >= 0]
        hidden.update(i for i in (*some, *read[user].tolist()) if not showable[i])
        order = [i for i in some if showable[i]]
        history = [int(i) for i in read[user] if showable[i]]
        if len(order) < 2 or not history:
            continue
        np.random.default_rng([seed, user]).shuffle(order)
        asked[user] = prompts.edges(items, history, order, noun)
        orders[user] = order
    return asked, orders, len(hidden)


def likelihood_scores(
    model: LikelihoodModel,
    items: Catalogue,
    read: Histories,
    offered: np.ndarray,
    store: Store,
    *,
    users: Sequence[int] | None = None,
    noun: str = "film",
    progress: str | None = None,
) -> np.ndarray:
    """[U, K] float64: mean log-likelihood of a title's tokens after a user's titles.

    NaN for padding, for users who are not asked about or have no history, and for
    titles that no model may see.
    """
    showable = items.showable()
    scores = np.full(offered.shape, np.nan)
    places, choices = [], []
    for user in range(len(offered)) if users is None else users:
        history = [int(i) for i in read[user] if showable[i]]
        columns = [k for k, i in enumerate(offered[user]) if i >= 0 and showable[i]]
        if history and columns:
            places.append((user, columns))
            options = tuple(f" {_name(items, offered[user, k])}" for k in columns)
            choices.append(Choice(liked_context(items, history, noun), options))
    each = likelihoods(model, choices, store, progress=progress)
    for (user, columns), found in zip(places, each, strict=True):
        scores[user, columns] = found.mean
    return scores


def liked_context(items: Catalogue, history: Sequence[int], noun: str) -> str:
    """A history as the beginning of a sentence that goes on with a title."""
    names = "; ".join(_name(items, i) for i in history)
    return f"Some {noun}s that I like very much: {names}. I also like:"


def _name(items: Catalogue, item: int) -> str:
    year = items.years[int(item)]
    title = shown(items.titles[int(item)]).text
    return f"{title} ({year})" if year else title
