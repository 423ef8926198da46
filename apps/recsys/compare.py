"""Models x seeds, tuned alike, beside baselines that nobody has to ask for.

    comparison = compare({"lightgcn": Config(), "mf": Config(model="mf")}, range(5))
    print(comparison.table())

A seed draws initial vectors, the order of the data and the negatives; the split stays.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from apps.common import comparison as common
from apps.common.config import settings
from apps.common.runs import COSTS, RunFolder
from apps.recsys import tuning
from apps.recsys.augmentation import content_hash
from apps.recsys.comparison import Comparison
from apps.recsys.config import Config, Source
from apps.recsys.evaluation import Evaluation, evaluate, new_users, select
from apps.recsys.models.closed_form import EASE, Model
from apps.recsys.result import CHOSEN_BY, Result, measured
from apps.recsys.splits import Dataset
from apps.recsys.train import train
from sparsekit.memory import peak_rss
from sparsekit.spelling import choice

Watch = Callable[[str, Result], None]
BASELINES = ("popularity", "item-knn", "ease")


def compare(
    configs: Mapping[str, Config],
    seeds: Iterable[int] = range(5),
    *,
    trials: int = 5,
    out: Path | None = None,
    baselines: Iterable[str] = (),
    baseline: str = "ease",
    watch: Watch | None = None,
) -> Comparison:
    """Tunes every model in `trials` trials on validation, then tests with every seed.

    Args:
        configs: {label: config} of one data set and split; their seed, out and resume
            are set here. With train_on "all" the trials are trained on the training
            part, and the tested runs on both parts for as many epochs as was best.
        seeds: at least two, for an interval. The first is that of the trials.
        trials: settings that are tried for each label and each baseline that has any,
            the given ones among them; 1 takes all as they are.
        out: folder for the runs, the trials, compare.json and compare.txt. What is
            complete there is not repeated, and an interrupted run goes on.
        baselines: of `tuning.BASELINES`, beside popularity, item-knn and ease, which
            are always included (co-occurrence for ease in a large catalogue).
        baseline: label that differences refer to.
        watch: called as watch(label, result) after each tested run of a config.
    """
    seeds, configs = common.checked(configs, seeds, out)
    first = _first(configs, trials)
    data = first.load()
    asked = set(baselines)
    names, notes = baseline_names(data.shape[1], asked)
    new = new_users(data, "test")
    if new:
        notes += (f"Left out: {new:,} users of the test part, new since training.",)
    if baseline == "ease" and "ease" not in names:
        baseline = "co-occurrence"
    if baseline not in {*configs, *names}:
        raise ValueError(
            choice(f"no baseline {baseline!r}", baseline, [*configs, *names])
        )
    if set(configs) & set(names):
        raise ValueError(f"labels {list(configs)} must differ from {names}")
    found: dict[str, _Measured] = {}
    total = len(names) + len(configs) * len(seeds)
    with tqdm(total=total, unit="run", leave=False, disable=None) as progress:
        for name in names:
            progress.set_description(name)
            found[name] = _baseline(name, data, first.train_on, seeds, trials)
            progress.update()
        for label, config in configs.items():
            progress.set_description(f"{label}, trials")
            tuned, tried = tune(config, trials, seeds[0], out)
            found[label] = _Measured(common.without_seed(tuned), tried)
            for seed in seeds:
                progress.set_description(f"{label}, seed {seed}")
                result = train(_placed(label, replace(tuned, seed=seed), out))
                found[label].add(result.metrics, result.evaluation, result.cost)
                if watch is not None:
                    watch(label, result)
                progress.update()
    comparison = Comparison(
        seeds=seeds,
        values={label: one.values for label, one in found.items()},
        users={label: one.means() for label, one in found.items()},
        configs={label: one.chosen for label, one in found.items()},
        trials={label: one.trials for label, one in found.items()},
        baseline=baseline,
        added=tuple(name for name in names if name not in asked),
        notes=notes,
    )
    if out is not None:
        comparison.save(out)
    return comparison


def _first(configs: dict[str, Config], trials: int) -> Config:
    """The first config, if what is asked for makes sense."""
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    first = next(iter(configs.values()))
    names = [f.name for f in fields(Source) if f.name not in ("seed", "out", "resume")]
    for config in configs.values():
        for name in (*names, "train_on"):
            if getattr(config, name) != getattr(first, name):
                raise ValueError(
                    f"a comparison has one data set and split, but {name} is "
                    f"{getattr(first, name)!r} and {getattr(config, name)!r}"
                )
    return first


def baseline_names(
    n_items: int, more: Iterable[str] = ()
) -> tuple[list[str], tuple[str, ...]]:
    """Baselines for a catalogue, and what is to be said about them."""
    names, notes = list(dict.fromkeys((*BASELINES, *sorted(more)))), ()
    unknown = sorted(set(names) - set(tuning.BASELINES))
    if unknown:
        refused = f"no baseline {unknown[0]!r}"
        raise ValueError(choice(refused, unknown[0], tuning.BASELINES))
    if n_items > EASE().most_items:
        names[names.index("ease")] = "co-occurrence"
        size = 4 * n_items**2 / 1e9
        notes = (f"co-occurrence in place of ease, which would take {size:.1f} GB.",)
    return list(dict.fromkeys(names)), notes


def tune(
    config: Config, trials: int, seed: int, out: Path | None = None
) -> tuple[Config, list[dict[str, Any]]]:
    """The settings with the best NDCG@20 on validation, and all that were tried.

    The test part is not looked at. With one trial nothing is trained, unless the number
    of epochs has to be found.
    """
    if trials == 1 and config.train_on == "train":
        return config, []
    tried = []
    for candidate in tuning.candidates(config, trials, seed):
        trial = replace(candidate, seed=seed, train_on="train", out=None, resume=False)
        value, epoch = _trial(trial, out)
        tried.append((value, epoch, candidate))
    _, epoch, best = max(tried, key=lambda one: one[0])  # max keeps the first
    if config.train_on == "all":
        best = replace(best, epochs=epoch)
    rows = [
        {"value": v, "epoch": e, "settings": common.without_seed(c)}
        for v, e, c in tried
    ]
    return best, rows


def _trial(config: Config, out: Path | None) -> tuple[float, int]:
    """NDCG@20 on validation and its epoch, from the folder if they are there."""
    path = None if out is None else Path(out) / "trials" / f"{_digest(config)}.json"
    if path is not None and path.is_file():
        try:
            row = json.loads(path.read_text("utf-8"))
            return float(row["value"]), int(row["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it") from error
    result = train(config, part="valid")
    value, epoch = result.metrics[CHOSEN_BY].value, result.epoch
    if path is not None:
        row = {"value": value, "epoch": epoch, "settings": settings(config)}
        RunFolder(path.parent).write_text(path.name, json.dumps(row, indent=1) + "\n")
    return value, epoch


class _Measured:
    """What was measured of one label: a value a seed, and one a user."""

    def __init__(self, chosen: dict[str, Any], trials: list[dict[str, Any]]):
        self.chosen, self.trials = chosen, trials
        self.values: dict[str, list[float]] = {}
        self.users: dict[str, list[np.ndarray]] = {}

    def add(self, found: Mapping, tested: Evaluation, cost: Mapping) -> None:
        common.record(self.values, found, {name: cost[name] for name in COSTS})
        for name, value in tested.values.items():
            self.users.setdefault(name, []).append(value)

    def means(self) -> dict[str, np.ndarray]:
        return {name: np.mean(values, axis=0) for name, values in self.users.items()}


def _baseline(
    name: str, data: Dataset, train_on: str, seeds: tuple[int, ...], trials: int
) -> _Measured:
    """Tuned on validation; one fit, or one a seed if the model has any."""
    chosen = select(tuning.baseline_candidates(name, trials, seeds[0]), data)
    rows = [{"value": value, "settings": asdict(c)} for c, value in chosen.table]
    one = _Measured(asdict(chosen.best), rows if len(rows) > 1 else [])
    fit_on = data.final() if train_on == "all" else data
    has_seed = hasattr(chosen.best, "seed")
    for seed in seeds:
        if has_seed or seed == seeds[0]:
            recommender = replace(chosen.best, seed=seed) if has_seed else chosen.best
            started = time.perf_counter()
            model = recommender.fit(fit_on.train)
            seconds = time.perf_counter() - started
            tested = evaluate(model, data, "test")
            found, size = measured(tested, data), model_size(model)
            cost = {
                "train_seconds": seconds, "train_flops": 0, "params_total": size[0],
                "params_active": size[0], "bytes_on_disk": size[1],
                "peak_rss_mb": peak_rss() / 1e6,
            }  # fmt: skip
        one.add(found, tested, cost)
    return one


def model_size(model: Model) -> tuple[int, int]:
    """Numbers and bytes of a fitted baseline's arrays, without the histories."""
    numbers = size = 0
    for name, array in vars(model).items():
        if name != "train":
            parts = [array]
            if sp.issparse(array):
                parts = [array.data, array.indices, array.indptr]
            numbers += parts[0].size
            size += sum(part.nbytes for part in parts)
    return numbers, size


def _placed(label: str, config: Config, out: Path | None) -> Config:
    return common.placed(label, config, out, **_content(config))


def _digest(config: Config) -> str:
    return common.digest(config, **_content(config))


def _content(config: Config) -> dict[str, str | None]:
    """The augmentation's content: its path does not decide the outcome."""
    if config.augmentation is None:
        return {}
    return {"content": content_hash(config.augmentation)}
