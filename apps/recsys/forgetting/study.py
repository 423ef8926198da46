"""How well methods forget users: over seeds, each with its own users and references.

    rows = trial(config, seed=0, ways={"drop": Drop(), "1 epoch": FineTune(1)})
    rows["drop"]["auc"]                  # 1/2: not told from a retrained model

Beside the users to be forgotten, as many strangers are drawn, whom no model ever sees:
from these the attack has to tell them apart.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from apps.common.roc import auc
from apps.recsys import metrics
from apps.recsys.config import Config
from apps.recsys.evaluation import Evaluation
from apps.recsys.forgetting import effects, membership
from apps.recsys.forgetting.forget import problem_of
from apps.recsys.forgetting.methods import Method
from apps.recsys.forgetting.request import Forgotten, Request
from apps.recsys.models.closed_form import Model
from apps.recsys.result import Result, evaluate_network
from apps.recsys.splits import Dataset
from apps.recsys.train import train

Row = dict[str, float]
LEAST = 10  # training items of a user who is drawn


def trial(
    config: Config,
    seed: int,
    ways: Mapping[str, Method],
    *,
    share: float = 0.05,
    references: int = 2,
    retrain: bool = True,
) -> dict[str, Row]:
    """{label: {quantity: value}} of one seed.

    config: of the training; nothing is written. seed: of the users who are drawn and of
    the original model; the null and the references are retrained with others. share: of
    the users who are forgotten, and again of strangers.

    auc: of the attack on users who were forgotten, against strangers in the same model;
    auc_null: against themselves in a retrained model, the null. ndcg@20,
    minus_retrained (the null's), same_items: of those who stay. seconds. Beside `ways`
    there are rows "original", the vectors as they were served, the forgotten users'
    rows gone, and "retrain", another training without them, if that is wanted.
    """
    data = config.load()
    drawn = draw(data, 2 * round(share * data.shape[0]), seed)
    leaving, strangers = (
        Request(users=tuple(data.user_ids[np.sort(part)])) for part in drawn
    )
    with tempfile.TemporaryDirectory() as folder:
        unseen = Forgotten.of(strangers)
        both = Forgotten.of(leaving, unseen)
        lists = {"unseen": unseen, "both": both}
        for name, one in lists.items():
            one.save(Path(folder) / name)
        seen = replace(config, without=Path(folder) / "unseen", seed=seed)
        staying = replace(config, without=Path(folder) / "both")
        original = train(seen)
        seeds = [1000 * (r + 1) + seed for r in range(references + 1)]
        null, *others = (train(replace(staying, seed=s)) for s in seeds)
        again = train(replace(staying, seed=seed)) if retrain else None
        problem = problem_of(original, replace(staying, seed=seed), both)
    groups = [histories(data, group, null.data) for group in (leaving, strangers)]
    judge = _Judge(groups, null, others)
    rows = {"original": judge.row(original.model, None, 0.0)}
    if again is not None:
        rows["retrain"] = judge.row(
            again.model, again.evaluation, again.cost["train_seconds"]
        )
    for label, way in ways.items():
        started = time.perf_counter()
        network, _ = way.run(problem)
        seconds = time.perf_counter() - started
        tested = evaluate_network(network, null.data, "test", metrics.KS)
        rows[label] = judge.row(network.fitted(), tested, seconds)
    return rows


def draw(data: Dataset, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two groups of n / 2 users with `LEAST` or more training items, at random."""
    able = np.flatnonzero(np.diff(data.train.indptr) >= LEAST)
    if n < 2 or n >= len(able):
        raise ValueError(f"{n} users cannot be drawn from {len(able)}: change share")
    drawn = np.random.default_rng((seed, 8)).choice(able, n, replace=False)
    return drawn[: n // 2], drawn[n // 2 :]


def histories(data: Dataset, request: Request, after: Dataset) -> sp.csr_array:
    """Training items of the users of a request, CSR [F, I], numbered as in `after`.

    The items of `data` and `after` must be the same.
    """
    assert np.array_equal(data.item_ids, after.item_ids)
    place = {name: i for i, name in enumerate(data.user_ids)}
    return sp.csr_array(data.train[[place[user] for user in request.users]])


class _Judge:
    """Compares models with a null and references. groups: who leaves, and strangers."""

    def __init__(self, groups: list[sp.csr_array], null: Result, others: list[Result]):
        self.groups, self.tested = groups, null.evaluation
        self.fits = [
            [membership.of_users(other.model, group) for other in others]
            for group in groups
        ]
        self.null, _ = self._calibrated(null.model)

    def row(self, model: Model, tested: Evaluation | None, seconds: float) -> Row:
        """tested: None for a model that still ranks for those who leave."""
        leaving, strangers = self._calibrated(model)
        row = {
            "auc": auc(leaving, strangers),
            "auc_null": auc(leaving, self.null),
            "seconds": seconds,
        }
        if tested is not None:
            ours, theirs = tested.values["ndcg@20"], self.tested.values["ndcg@20"]
            row["ndcg@20"] = float(np.nanmean(ours))
            row["minus_retrained"] = effects.difference(ours, theirs).value
            same = effects.same_items(tested.ranked, self.tested.ranked)
            row["same_items"] = float(np.nanmean(same))
        return row

    def _calibrated(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        leaving, strangers = (
            membership.calibrated(membership.of_users(model, group), fits)
            for group, fits in zip(self.groups, self.fits, strict=True)
        )
        return leaving, strangers
