"""Forgets in a finished run: a new run folder, and what the change did.

    outcome = forget("runs/a", Request(users=("42",)), "finetune", out="runs/b")
    outcome.result.metrics["ndcg@20"]             # of those who stay
    outcome.leftovers                             # files that still hold user 42

The new folder is a run like any other: `evaluate`, `export` and `forget` take it. Its
`forgotten.json` comes first and its `result.json` last; without that it is unfinished,
and the same call begins again.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.common import cost
from apps.common.roc import attack
from apps.common.runs import RunFolder, is_finished
from apps.common.statistics import Interval, mean_interval
from apps.recsys import metrics
from apps.recsys.config import Config
from apps.recsys.forgetting import effects, membership, methods
from apps.recsys.forgetting.leftovers import Leftover, leftovers
from apps.recsys.forgetting.methods import Problem
from apps.recsys.forgetting.request import Forgotten, Request
from apps.recsys.result import (
    FORGOTTEN,
    Result,
    evaluate_network,
    load_result,
    measured,
    save,
)
from apps.recsys.splits import Dataset
from apps.recsys.train import train

EXACT = "retrain"
FEWEST = 4  # values for an interval
AUDIT = "forgetting: "  # what names of the audit's metrics begin with


@dataclass(frozen=True)
class Outcome:
    """result: the new run, its metrics with those of the audit. leftovers: files that
    still hold what was forgotten, or learned from it. seconds: of the forgetting."""

    result: Result
    leftovers: list[Leftover]
    seconds: float


def forget(
    run: str | Path,
    request: Request,
    method: str = EXACT,
    *,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    references: int = 0,
    look: Sequence[str | Path] | None = None,
) -> Outcome:
    """Writes a run that has forgotten, into `out`.

    Args:
        run: folder of a finished run.
        request: whom and what to forget.
        method: retrain (exact: a training without them, by the same seed) or one of
            `methods.METHODS`.
        options: of the method.
        references: models to train without them, with other seeds, to compare with. One
            gives differences; from two on there is an attack.
        look: folders searched for leftovers; default the one that holds `run`.

    Raises ValueError that names the fix; FileNotFoundError without a finished run.
    """
    old, out = load_result(Path(run)), Path(out)
    _check(old, request, method, references, out)
    chosen = None if method == EXACT else methods.build(method, options or {})
    if chosen is None and options:
        raise ValueError(f"retrain has no option {sorted(options)[0]!r}")
    earlier = old.config.without and Forgotten.load(old.config.without)
    forgotten = Forgotten.of(request, earlier or None)
    forgotten.remove(old.data)  # whether anything is left, before a file is written
    forgotten.save(out / FORGOTTEN)
    config = replace(old.config, without=out / FORGOTTEN, out=None, resume=False)
    problem = problem_of(old, config, forgotten)

    started = time.perf_counter()
    if chosen is None:
        result = train(config)
    else:
        network, flops = chosen.run(problem)
        seconds = time.perf_counter() - started
        result = _tested(old, config, problem, network, forgotten, flops, seconds)
    seconds = time.perf_counter() - started
    found = dict(result.metrics)
    if references:
        others = [
            train(replace(config, seed=config.seed + 1 + r)) for r in range(references)
        ]
        found |= audit(problem, request, old.data, result, others)
    result = replace(result, metrics=found, config=replace(config, out=out))
    left = leftovers(_places(look, Path(run)), request, old.config.dataset, out)
    folder = RunFolder(out)
    folder.write_config(config)
    save(folder, result, about=_told(run, request, method, options, references, left))
    return Outcome(result, left, seconds)


def problem_of(old: Result, config: Config, forgotten: Forgotten) -> Problem:
    """What a method is given, for a run and what it is to forget."""
    data = old.data
    users, items = forgotten.kept(data)
    learned = data.final() if config.train_on == "all" else data
    stays = forgotten.remove(learned)
    return Problem(
        config, old.network, old.masks, learned.train, stays.train, users, items,
        learned.valid,
    )  # fmt: skip


def audit(
    problem: Problem, request: Request, data: Dataset, result: Result,
    references: Sequence[Result],
) -> dict[str, Interval]:  # fmt: skip
    """Differences to a retrained model, and whether an attack tells the two apart.

    data: the parts before. references: trained without what is forgotten; the first is
    what differences refer to and the attack's null, the others calibrate it.

    "ndcg@20 minus retrained": over users; "same items": of the lists, beside "same
    items, two retrained"; "their items in neighbours' lists"; "auc users",
    "auc items", "auc interactions": 1/2 if nothing tells the model from a retrained
    one; "auc ..., row dropped": of the model as it was, without their rows. All names
    begin with `AUDIT`. Fewer than `FEWEST` users or the like are too few for an attack.
    """
    first, others = references[0], references[1:]
    ours, theirs = result.evaluation, first.evaluation
    found = {
        f"{name} minus retrained": effects.difference(
            ours.values[name], theirs.values[name]
        )
        for name in ("ndcg@20", "recall@20")
    }
    found |= _means("same items", effects.same_items(ours.ranked, theirs.ranked))
    groups = groups_of(problem, request, data)
    if groups.users.shape[0]:
        for label, ranked in (("", ours.ranked), (", retrained", theirs.ranked)):
            shares = effects.in_neighbours_lists(ranked, problem.after, groups.users)
            found |= _means(f"their items in neighbours' lists{label}", shares)
    if not others:
        return _named(found)
    same = effects.same_items(theirs.ranked, others[0].evaluation.ranked)
    found |= _means("same items, two retrained", same)
    before, _ = methods.Drop().run(problem)
    for kind, fit in groups.fits().items():
        null, *calibrating = (fit(reference.model) for reference in references)
        null = membership.calibrated(null, calibrating)
        for label, model in (("", result.model), (", row dropped", before.fitted())):
            own = membership.calibrated(fit(model), calibrating)
            both = np.isfinite(own) & np.isfinite(null)
            if both.sum() >= FEWEST:
                found[f"auc {kind}{label}"] = attack(own[both], null[both]).auc
    return _named(found)


@dataclass(frozen=True)
class Groups:
    """What is forgotten, in the numbers of those who stay: what an attacker knows.

    users: CSR [F, I], items of each forgotten user; items: CSR [G, U], users of each
    forgotten item; pairs: [2, P], users and items of interactions.
    """

    users: sp.csr_array
    items: sp.csr_array
    pairs: np.ndarray

    def fits(self) -> dict[str, Any]:
        """{kind: model -> one number for each} of the attacks that can be made."""
        found: dict[str, Any] = {}
        if self.users.shape[0]:
            found["users"] = lambda model: membership.of_users(model, self.users)
        if self.items.shape[0]:
            found["items"] = lambda model: membership.of_items(model, self.items)
        if self.pairs.shape[1]:
            found["interactions"] = lambda model: membership.of_pairs(
                model, *self.pairs
            )
        return found


def groups_of(problem: Problem, request: Request, data: Dataset) -> Groups:
    """Training interactions of what `request` names, of users and items that stay."""
    before, users, items = problem.before, problem.users, problem.items
    gone_users = np.setdiff1d(np.arange(before.shape[0]), users)
    gone_items = np.setdiff1d(np.arange(before.shape[1]), items)
    user_at = {name: i for i, name in enumerate(data.user_ids[users])}
    item_at = {name: i for i, name in enumerate(data.item_ids[items])}
    trained = set(problem.forgotten.tolist())
    pairs = [
        (user_at[u], item_at[i])
        for u, i in request.pairs
        if u in user_at and i in item_at
        and int(users[user_at[u]]) * before.shape[1] + int(items[item_at[i]]) in trained
    ]  # fmt: skip
    by_item = sp.csr_array(before.T)
    return Groups(
        sp.csr_array(before[gone_users][:, items]),
        sp.csr_array(by_item[gone_items][:, users]),
        np.array(pairs, np.int64).reshape(-1, 2).T,
    )


def _check(
    old: Result, request: Request, method: str, references: int, out: Path
) -> None:
    request.check(old.data)
    if references < 0:
        raise ValueError(f"references must be at least 0, got {references}")
    if is_finished(out):
        raise ValueError(f"{out} holds a finished run: give another --out")
    if old.config.model == "llmrec":
        raise ValueError(
            "llmrec's augmentation was made from what is to be forgotten: make it "
            "anew with `augment --without`, then train"
        )
    if old.config.sharing != "none" and method != EXACT:
        raise ValueError(
            f"rows of this table share numbers ({old.config.sharing}), so that nobody "
            "has rows to drop: use --method retrain"
        )


def _tested(
    old: Result, config: Config, problem: Problem, network: Any, forgotten: Forgotten,
    flops: float, seconds: float,
) -> Result:  # fmt: skip
    """The network as a result, tested once."""
    data, masks = forgotten.remove(old.data), problem.staying_masks
    tested = evaluate_network(network, data, "test", metrics.KS)
    costs = cost.costs(network, masks, seconds=seconds, flops=flops)
    return Result(
        config, data, measured(tested, data), costs, [], tested, network, masks,
        old.epoch,
    )  # fmt: skip


def _named(found: dict[str, Interval]) -> dict[str, Interval]:
    return {f"{AUDIT}{name}": interval for name, interval in found.items()}


def _means(name: str, values: np.ndarray) -> dict[str, Interval]:
    """With an interval from `FEWEST` values on."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return {}
    if len(known) < FEWEST:
        return {name: Interval(float(known.mean()), math.nan, math.nan, len(known))}
    return {name: mean_interval(known)}


def _places(look: Sequence[str | Path] | None, run: Path) -> list[Path]:
    return [run.parent] if look is None else [Path(place) for place in look]


def _told(
    run: str | Path, request: Request, method: str, options: Mapping[str, Any] | None,
    references: int, left: list[Leftover],
) -> dict[str, Any]:  # fmt: skip
    """How the run came about, for its provenance: counts, and no ids."""
    content = (Path(run) / "model.safetensors").read_bytes()
    return {
        "forgetting": {
            "method": method,
            "options": dict(options or {}),
            "exact": method == EXACT,
            "users": len(request.users),
            "items": len(request.items),
            "interactions": len(request.pairs),
            "from": {
                "run": Path(run).name,
                "model_sha256": hashlib.sha256(content).hexdigest(),
            },
            "references": references,
            "leftovers": [f"{one.path}: {one.why}" for one in left],
        }
    }
