"""Commands after training: export, recommend, update, backtest, serve.

sparsekit recsys export --run runs/lightgcn --kind int8 --out model.safetensors
sparsekit recsys export --model ease --options l2=250 --keep 100 --out e.safetensors
sparsekit recsys recommend --file model.safetensors --liked "Toy Story" --because 2
sparsekit recsys recommend --file model.safetensors --k 20 --out lists.parquet
sparsekit recsys backtest --file model.safetensors --dataset today.csv
sparsekit recsys update --file model.safetensors --dataset today.csv
sparsekit recsys serve --file model.safetensors --port 8000
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from apps.common.config import VerbConfig, parse, settings
from apps.common.options import field_values
from apps.common.output import JSON, tell
from apps.common.verbs import Verbs, required
from apps.recsys import interactions, plain_vectors
from apps.recsys.artefact import Artefact, load, save
from apps.recsys.config import Config, LogFile, Source, Value
from apps.recsys.export import Users, artefact_of
from apps.recsys.fold_in import mean_square
from apps.recsys.forgetting.request import Forgotten, id_list
from apps.recsys.models.als import ALS
from apps.recsys.models.closed_form import EASE, ItemKNN
from apps.recsys.models.closed_form import Recommender as Settings
from apps.recsys.models.factors import Factors
from apps.recsys.questions import filters_of, titled
from apps.recsys.reader import table
from apps.recsys.reading import read
from apps.recsys.recommender import Recommender, Unknown
from apps.recsys.scoring import FoldIn
from apps.recsys.splits import known_items
from sparsekit import atomic

FILES = (".safetensors", ".npz")
FITTED = {"ease": EASE, "itemknn": ItemKNN, "als": ALS}


@dataclass(frozen=True)
class ExportConfig(Source):
    """Writes a model into one file, to recommend from and to serve.

    Args:
        run: folder of a finished run of mf or lightgcn; its data set is loaded again.
        model: without a run: ease, itemknn or als, fitted on all of `dataset`.
        options: of that model, as l2=250.
        kind: of the packed tables of factors: float32, float16, int8, int4, ...
        users: what the file holds of them: vectors (and histories), histories (every
            user is folded in: half the bytes), or nothing (nobody's data).
        keep: weights of each item that stay, of ease and itemknn; default: all.
        fold_in: unseen and l2 of new users' vectors, l2 in units of the items' mean
            squared length; default: chosen on the validation part. A run that was
            trained on that part needs them: take those of one that was not.
        out: the file: .safetensors, or .npz for plain arrays of vectors and ids.
    """

    run: Path | None = None
    model: Literal["ease", "itemknn", "als"] | None = None
    options: dict[str, Value] = field(default_factory=dict)
    kind: str = "float32"
    users: Users = "vectors"
    keep: int | None = None
    fold_in: tuple[float, ...] = ()
    out: Path | None = None


@dataclass(frozen=True)
class RecommendConfig(VerbConfig):
    """Prints items for one user, or writes those of many.

    Args:
        file: from `export`.
        user: an id of the file.
        history: ids of items that somebody liked.
        liked: titles of items that somebody liked, in place of ids.
        like: an item's id; prints those that are like it.
        k: items a list.
        because: items of the history that are named for each item.
        where: column=value, what items must have, as class=Comedy or class=Comedy,War;
            of numbers also a range with its ends: price=5..20, price=5.., price=..20.
        only: ids of items to choose from, or one .txt file with an id a line.
        without: ids of items that are left out, likewise.
        seen: recommend what is in the history, too.
        unknown: raise, or skip ids of items that the file does not have.
        users: with `out`: whose lists; default: everybody's. Ids, or one .txt file.
        out: without a user or a history: a .parquet or .csv file for lists of users.
    """

    file: Path | None = None
    user: str | None = None
    history: tuple[str, ...] = ()
    liked: tuple[str, ...] = ()
    like: str | None = None
    k: int = 10
    because: int = 0
    where: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    seen: bool = False
    unknown: Unknown = "raise"
    users: tuple[str, ...] = ()
    out: Path | None = None


@dataclass(frozen=True)
class LaterLog(LogFile):
    """Interactions that came after a file was made.

    Args:
        file: from `export`.
        dataset: the later interactions: .csv, .tsv, .inter (also .gz), .parquet.
        without: a forgotten.json that `forget` wrote: whom and what to leave out.
    """

    dataset: str = ""
    file: Path | None = None

    def read(self) -> interactions.Interactions:
        """The rows that count."""
        log = read(required(self.dataset or None, "dataset"), **self.reading)
        if self.rating is not None:
            log = interactions.at_least(log, self.rating)
        if self.without is not None:
            log = Forgotten.load(self.without).passed(log)
        return log


@dataclass(frozen=True)
class UpdateConfig(LaterLog):
    """Takes new interactions, users and items into a file, without training.

    Args:
        out: the new file; default: it takes the place of the old one.
    """

    out: Path | None = None


@dataclass(frozen=True)
class BacktestConfig(LaterLog):
    """Tests an exported file on interactions that came after it was made.

    Args:
        out: a .json file for the metrics, too.
    """

    out: Path | None = None


@dataclass(frozen=True)
class ServeConfig(VerbConfig):
    """Answers over HTTP until it is stopped; kill -HUP makes it read the file again.

    Args:
        file: from `export`.
        host: to listen on. There is no authentication: think before you change it.
        port: likewise.
        body: most bytes of a request.
        connections: most at once.
    """

    file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    body: int = 500_000
    connections: int = 500


def export_command(argv: list[str]) -> None:
    """Write a model into one file, to recommend from and to serve.

    sparsekit recsys export --run runs/lightgcn --kind int8 --out model.safetensors
    sparsekit recsys export --model ease --options l2=250 --keep 100 --out e.safetensors
    sparsekit recsys export --run runs/lightgcn --out vectors.npz
    """
    config = parse(ExportConfig, argv, beside=Config)
    out = required(config.out, "out")
    if out.suffix not in FILES:
        raise ValueError(
            f"{out}: an exported file is {' or '.join(FILES)}; an index or an ONNX "
            "graph is made from the arrays of the .npz"
        )
    if (config.run is None) == (config.model is None):
        raise ValueError("give --run, a finished training, or --model to fit one here")
    artefact = _fitted(config) if config.run is None else _trained(config, config.run)
    if out.suffix == ".npz":
        name = None
        plain_vectors.write(out, artefact)
    else:
        name = save(out, artefact)
    users, items = len(artefact.user_ids), len(artefact.item_ids)
    size = out.stat().st_size
    lines = [f"{out}: {users:,} users, {items:,} items, {size:,} bytes"]
    if name is not None:
        lines.append(f"content {name}")
    told = artefact.about.get("fold_in")
    if told is not None:
        lines.append(
            f"new users: NDCG@20 {told['valid ndcg@20']:.4f} on validation, folded in "
            f"({told['users']:,} users); --fold-in {told['unseen']:g} {told['l2']:g}"
        )
    content = {"file": out, "users": users, "items": items, "bytes": size}
    tell(content | {"content": name, "fold_in": told}, *lines)


def recommend_command(argv: list[str]) -> None:
    """Print recommendations for a user or a history, or write those of all users.

    sparsekit recsys recommend --file model.safetensors --liked "Toy Story" --because 2
    sparsekit recsys recommend --file model.safetensors --k 20 --out lists.parquet
    """
    config = parse(RecommendConfig, argv)
    artefact = load(required(config.file, "file"))
    recommender = Recommender(artefact)
    filters = filters_of(config.where, config.only, config.without, artefact)
    history = (*config.history, *(titled(artefact, title) for title in config.liked))
    if config.like is not None:
        similar = recommender.similar(config.like, config.k, filters)
        tell({"items": list(map(asdict, similar))}, table(similar))
    elif config.user is not None or history:
        found = recommender.recommend(
            config.user, history=history or None, k=config.k, filters=filters,
            reasons=config.because, exclude_seen=not config.seen,
            unknown=config.unknown,
        )  # fmt: skip
        tell(asdict(found), f"source: {found.source}", table(found.items))
    else:
        from apps.recsys import batch

        if config.because:
            raise ValueError("lists of users name no reasons: leave because out")
        out = required(config.out, "out, or --user, --history, --liked or --like")
        chosen = id_list(config.users) or None
        rows = batch.write(
            out, artefact, config.k, chosen, exclude_seen=not config.seen,
            filters=filters, unknown=config.unknown,
        )  # fmt: skip
        users = len(artefact.user_ids if chosen is None else chosen)
        told = {"file": out, "rows": rows, "users": users}
        tell(told, f"{out}: {rows:,} rows for {users:,} users")


def update_command(argv: list[str]) -> None:
    """Take new interactions, users and items into a file, without training.

    sparsekit recsys update --file model.safetensors --dataset today.csv
    """
    from apps.recsys.updates import updated

    config = parse(UpdateConfig, argv, beside=Config)
    path = required(config.file, "file")
    log = config.read()
    newer = updated(load(path), log)
    save(config.out or path, newer)
    news = newer.about["updates"][-1]
    tell(
        {"file": config.out or path} | news,
        f"{config.out or path}: {news['interactions']:,} new interactions, "
        f"{news['users']:,} new users, {news['items']:,} new items",
    )


def backtest_command(argv: list[str]) -> None:
    """Test an exported file on later interactions, beside popularity.

    sparsekit recsys backtest --file model.safetensors --dataset today.csv
    """
    from apps.recsys.backtest import backtest

    config = parse(BacktestConfig, argv, beside=Config)
    artefact = load(required(config.file, "file"))
    found = backtest(artefact, config.read())
    if config.out is not None:
        content = json.dumps(found.content(), indent=1) + "\n"
        atomic.write_text(config.out, content)
    tell(found.content(), found.table())


def serve_command(argv: list[str]) -> None:
    """Answer over HTTP until stopped.

    sparsekit recsys serve --file model.safetensors --port 8000
    """
    config = parse(ServeConfig, argv)
    if JSON.get():
        raise ValueError("serve answers over HTTP and prints no result: no --json")
    path = required(config.file, "file")
    load(path)  # what is wrong with it is said here
    if find_spec("fastapi") is None:
        raise ValueError("serve needs more: pip install 'sparsekit[serve]'")
    command = [sys.executable, "-m", "apps.recsys.service", str(path)]
    for name in ("host", "port", "body", "connections"):
        command += [f"--{name}", str(getattr(config, name))]
    # In place of this program, which has loaded torch: 50 MB and not 350.
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _fitted(config: ExportConfig) -> Artefact:
    """A model of few settings, fitted on all interactions."""
    assert config.model is not None
    model = FITTED[config.model]
    options = field_values(model, f"model {config.model!r}", config.options)
    chosen: Settings = model(**options)
    data = config.load_whole()
    everything = known_items(data.train, data.valid, data.test)
    fold_in = None
    if isinstance(chosen, ALS) and chosen.alpha > 0:  # how it finds a user's vector
        fold_in = FoldIn(1 / chosen.alpha, max(chosen.l2, 1e-6) / chosen.alpha)
    try:
        fitted = chosen.fit(everything)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    return artefact_of(
        fitted, data, kind=config.kind, users=config.users, keep=config.keep,
        history=everything,
        fold_in=fold_in, settings=chosen, about={"config": _shown(config)},
    )  # fmt: skip


def _trained(config: ExportConfig, folder: Path) -> Artefact:
    """The model of a run, with its metrics."""
    from apps.recsys.result import load_result  # torch

    result = load_result(folder)
    model = result.model
    if result.config.train_on == "all" and not config.fold_in:
        raise ValueError(
            f"{folder} was trained on the validation part, so new users' settings "
            "cannot be chosen there: give --fold-in UNSEEN L2, as export prints them "
            "for a run with train_on = train"
        )
    fold_in = None
    if config.fold_in:
        if len(config.fold_in) != 2 or not isinstance(model, Factors):
            raise ValueError("fold_in takes two numbers, and a model of vectors")
        unseen, l2 = config.fold_in
        fold_in = FoldIn(unseen, l2 * mean_square(model.items))
    measured = {name: asdict(value) for name, value in result.metrics.items()}
    about = {
        "model": {"name": result.config.model, "method": result.config.method},
        "config": _shown(result.config),
        "metrics": {name: _plain(value) for name, value in measured.items()},
    }
    whole = result.config.train_on == "all"
    learned = (result.data.final() if whole else result.data).train
    return artefact_of(
        model, result.data, fold_in=fold_in, kind=config.kind, users=config.users,
        keep=config.keep, about=about, trained_on=learned,
    )  # fmt: skip


def _shown(config: Source) -> dict[str, Any]:
    """Settings without the folders of this machine."""
    shown = {k: v for k, v in settings(config).items() if k not in ("run", "test")}
    for name in ("without", "catalogue", "dataset"):
        path = getattr(config, name)
        shown[name] = None if path is None else Path(path).name
    return shown


def _plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {k: None if math.isnan(v) else v for k, v in numbers.items()}


SERVING_VERBS: Verbs = {
    "export": export_command,
    "recommend": recommend_command,
    "update": update_command,
    "backtest": backtest_command,
    "serve": serve_command,
}
