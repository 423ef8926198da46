"""The best recommender for a number of bytes: recipes at budgets, side by side.

    curve = budget(Config(), budgets=[500_000, 250_000], seeds=range(5))
    print(curve.table())

A dense model is trained for each seed. Every recipe makes, for every budget, a few
candidates that fit; the one with the best NDCG@20 on validation is tested, once. The
winner at a budget is the recipe with the best mean on validation. A budget is bytes of
the packed tables; the file, which adds a header, is written and measured.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from apps.common.comparison import placed
from apps.common.runs import provenance
from apps.recsys import container
from apps.recsys.compression import item_weights, probe
from apps.recsys.compression.candidate import Choice, Subject, choose
from apps.recsys.compression.packed import PackedGraph
from apps.recsys.compression.recipes import chosen
from apps.recsys.config import Config
from apps.recsys.curve import Curve, Point
from apps.recsys.evaluation import evaluate
from apps.recsys.export import lists_of
from apps.recsys.models.closed_form import Model, Popularity
from apps.recsys.models.factors import Factors
from apps.recsys.result import CHOSEN_BY, Result
from apps.recsys.splits import Dataset
from apps.recsys.train import train

SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)  # of the dense tables


def budget(
    config: Config,
    budgets: Sequence[int] = (),
    seeds: Iterable[int] = range(5),
    *,
    recipes: Iterable[str] = (),
    factors: Sequence[Factors] = (),
    measure: bool = True,
    out: Path | None = None,
) -> Curve:
    """NDCG@20 of every recipe at every budget, for every seed.

    Args:
        config: of the dense model; its seed, out, resume and method are set here.
        budgets: bytes; default: SHARES of the dense model's.
        seeds: of the trainings. With `factors`: one a set of factors.
        recipes: names; default: all that pack finished vectors.
        factors: dense vectors trained elsewhere, one for each seed; then nothing is
            trained. With train_on "all" they have seen the validation part: what agrees
            best with the dense model's lists is chosen instead.
        measure: whether memory and time of a query are measured, in new processes, for
            what the first seed chose.
        out: folder for the trainings; what is complete there is not repeated.

    Raises ValueError for unknown recipes, factors of other sizes, no seeds.
    """
    seeds, found = tuple(seeds), chosen(recipes, may_train=not factors)
    if not seeds or (factors and len(factors) != len(seeds)):
        raise ValueError(f"{len(factors)} sets of factors for {len(seeds)} seeds")
    if any(size < 1 for size in budgets):
        raise ValueError(f"budgets must be positive numbers of bytes, got {budgets}")
    if config.train_on != "train" and not factors:
        raise ValueError("train_on must be train: validation chooses the settings")
    data, shared = config.load(), {}
    if config.train_on == "all":
        data = data.final()
    curve = None
    for number, seed in enumerate(seeds):
        given = factors[number] if factors else None
        subject = subject_of(config, data, seed, given, out)
        subject = replace(subject, kept_of_data=shared)
        if curve is None:
            curve = empty(subject, seeds, tuple(budgets), config)
        record(curve.dense, subject.factors, data)
        for recipe in tqdm(
            found, desc=f"seed {seed}", unit="recipe", leave=False, disable=None
        ):
            for size in curve.budgets:
                choice = choose(recipe, subject, size)
                if choice is not None:
                    point = curve.points.setdefault((recipe.name, size), Point())
                    add(point, choice, data, measure and number == 0)
    complete = {k: p for k, p in curve.points.items() if len(p.valid) == len(seeds)}
    return replace(curve, points=complete)


def subject_of(
    config: Config, data: Dataset, seed: int, factors: Factors | None, out: Path | None
) -> Subject:
    """The dense model of a seed, trained now unless its factors are given."""
    if factors is not None:
        sizes = len(factors.users), len(factors.items)
        if sizes != data.shape:
            raise ValueError(
                f"factors of {sizes[0]} users and {sizes[1]} items do not fit "
                f"{data.name}, which has {data.shape[0]} and {data.shape[1]}"
            )
        return Subject(data, factors, seed=seed)
    plain = replace(
        config, seed=seed, method="dense", options={}, sparse=(), sharing="none",
        stored_rows=0,
    )  # fmt: skip
    trained = partial(_train, plain, out)
    model = trained().model
    if not isinstance(model, Factors):
        raise ValueError(
            f"{config.model} has no vectors of users and items to pack: take mf or "
            "lightgcn"
        )
    return Subject(data, model, trained, seed)


def _train(config: Config, out: Path | None, **changes: Any) -> Result:
    """Trains with changed settings; in a folder of that name, if `out` is given."""
    config = replace(config, **changes)
    return train(placed(config.method, config, out))


def empty(
    subject: Subject, seeds: tuple[int, ...], budgets: tuple[int, ...], config: Config
) -> Curve:
    """A curve without points, with the references in it."""
    data = subject.data
    users, items = subject.factors.users, subject.factors.items
    size = users.nbytes + items.nbytes
    dense = Point(settings=[{"dim": items.shape[1]}])
    models: dict[str, tuple[Model, int]] = {
        "popularity": (Popularity().fit(data.train), 4 * data.shape[1])
    }
    if data.shape[1] <= item_weights.MOST_ITEMS and data.valid.nnz:
        ease, _ = item_weights.fitted_ease(subject)
        models["ease"] = ease, 4 * data.shape[1] ** 2
    references = {}
    for name, (model, nbytes) in models.items():
        references[name] = Point(nbytes=[nbytes], needs_history=name == "ease")
        record(references[name], model, data)
    dense.nbytes.append(size)
    return Curve(
        dataset=data.name,
        seeds=seeds,
        budgets=budgets or tuple(round(share * size) for share in SHARES),
        dense=dense,
        references=references,
        points={},
        bytes_history=sum(a.nbytes for a in history_of(data).values()),
        provenance=provenance(config),
    )


def record(point: Point, model: Model, data: Dataset) -> None:
    """Tests a model, once."""
    values = evaluate(model, data, "test", [20]).values[CHOSEN_BY]
    point.users.append(values.astype(np.float32))


def add(point: Point, choice: Choice, data: Dataset, measure: bool) -> None:
    """Tests what was chosen, and measures its file."""
    packed = choice.best.packed
    point.valid.append(choice.valid)
    point.nbytes.append(packed.nbytes)
    point.settings.append(choice.best.settings)
    point.tried.append(choice.tried)
    point.needs_history = packed.needs_history
    record(point, packed.model(data.train), data)
    if not measure:
        return
    with tempfile.TemporaryDirectory() as folder:
        path, history = Path(folder) / "packed", Path(folder) / "history"
        point.file = probe.write(path, packed)
        # A graph's vectors are dense in memory: what serves is then no packed table.
        if not isinstance(packed, PackedGraph):
            container.write(history, history_of(data), {})
            found = probe.measure(path, history)
            point.memory, point.milliseconds = found["mb"], found["ms"]


def history_of(data: Dataset) -> dict[str, np.ndarray]:
    """The known items of each user, as the file of a recommender stores them."""
    lists = lists_of(data.known("test"))
    return {"offsets": lists.offsets, "items": lists.values}
