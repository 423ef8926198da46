import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.recsys import cli, container
from apps.recsys.budget import budget, history_of
from apps.recsys.budget_cli import load_factors
from apps.recsys.compression import probe
from apps.recsys.compression.packed import PackedFactors, PackedWeights
from apps.recsys.config import Config
from apps.recsys.curve import Curve, Point
from apps.recsys.models.closed_form import EASE
from apps.recsys.models.factors import Factors
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import Sparse, encode
from apps.recsys.topk import top_k_scores
from tests.apps.recsys.artefacts import dataset, vectors


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, list[Path]]:
    """Interactions as a file, and two sets of factors."""
    folder = tmp_path_factory.mktemp("files")
    data = dataset(131, 97)
    rows = ["user,item"]
    for part in (data.train, data.valid, data.test):
        matrix = part.tocoo()
        rows += [f"{u},{i}" for u, i in zip(matrix.row, matrix.col, strict=True)]
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    config = source(folder / "log.csv")
    users, items = vectors(config.load(), 8)
    paths = []
    for seed in range(2):
        noise = np.random.default_rng(seed).standard_normal(users.shape) * 0.01
        paths.append(folder / f"factors{seed}.npz")
        np.savez(paths[-1], users=users + noise, items=items)
    return folder / "log.csv", paths


def source(path: Path) -> Config:
    columns = {"user": "user", "item": "item"}
    return Config(
        dataset=str(path), columns=columns, model="mf", dim=8, epochs=2, every=1
    )


def test_recipes_at_budgets_over_seeds(files):
    path, paths = files
    factors = [load_factors(p) for p in paths]
    names = ("svd int8", "items only", "ease")
    curve = budget(
        source(path),
        [2000, 500, 3],
        (3, 4),
        recipes=names,
        factors=factors,
        measure=False,
    )
    assert curve.bytes_dense == 4 * 8 * sum(source(path).load().shape)
    assert {name for name, _ in curve.points} == set(names)
    assert curve.at(3) == {}
    assert curve.best(3) is None
    for size in (2000, 500):
        found = curve.at(size)
        means = [np.mean(point.valid) for point in found.values()]
        assert means == sorted(means, reverse=True)
        assert curve.best(size) == next(iter(found))
        for point in found.values():
            assert len(point.valid) == len(point.users) == len(point.settings) == 2
            assert max(point.nbytes) <= size
    ease = curve.points["ease", 2000]
    assert ease.tests[0] == ease.tests[1]  # it depends on no seed
    table = curve.table()
    assert "2 seeds, 95 % intervals" in table
    assert "nothing fits" in table
    assert table.count(" * ") >= 2


def test_shares_of_the_dense_model(files, tmp_path):
    """Hand-made values per user, so that every interval can be computed by hand."""
    users = [np.array([0.5, 0.3, np.nan]), np.array([0.4, 0.2, np.nan])]
    half = [value / 2 for value in users]
    dense = Point(users=users, nbytes=[1000])
    point = Point([0.1, 0.2], half, [90, 100], [{"rank": 3}] * 2, [1, 1], True)
    worse = Point([0.1, 0.1], users, [90, 100], [{}] * 2, [1, 1])
    curve = Curve("made up", (0, 1), (100,), dense, {"popularity": dense},
                  {("a", 100): point, ("b", 100): worse}, 77)  # fmt: skip
    assert curve.best(100) == "a"  # on validation, though b is better on test
    interval = curve.of_dense("a", 100)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.5,) * 3)
    over_users = curve._share_over_users(point)
    # Means over seeds .45 and .25 become .225 and .125: differences -.225 and -.125.
    assert over_users.value == pytest.approx(0.5)
    spread = 0.1 / 2**0.5 / 0.35 / 2**0.5
    assert over_users.high - 0.5 == pytest.approx(12.706 * spread, rel=1e-3)
    curve.save(tmp_path)
    content = json.loads((tmp_path / "budget.json").read_text())
    recipes = content["budgets"][0]["recipes"]
    assert content["budgets"][0]["best"] == "a"
    assert recipes["a"]["ndcg@20"] == pytest.approx([0.2, 0.15])
    assert recipes["a"]["of_dense"]["low"] == pytest.approx(0.5)
    assert (tmp_path / "budget.txt").read_text() == curve.table()
    curve.draw(tmp_path / "budget.svg")
    assert (tmp_path / "budget.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        curve.draw(tmp_path / "budget.pdf")


def test_the_probe_recommends_what_the_model_does(tmp_path):
    data = dataset()
    users, items = (encode(x.astype(np.float32), "int8") for x in vectors(data))
    weights = EASE(l2=10).fit(data.train).weights
    kept = np.abs(weights) > np.median(np.abs(weights))
    cases = {
        "vectors": PackedFactors(users, items),
        "histories": PackedFactors(None, items, FoldIn(0.1, 2.0)),
        "weights": PackedWeights(Sparse.of(weights, kept, "int8")),
    }
    known = data.known("test")
    container.write(tmp_path / "history", history_of(data), {})
    for name, packed in cases.items():
        size = probe.write(tmp_path / name, packed)
        assert size == (tmp_path / name).stat().st_size
        assert packed.nbytes < size < packed.nbytes + 3000
        expected = top_k_scores(packed.model(known).scores, 5, known)
        fold = getattr(packed, "fold_in", None)
        for user in range(0, data.shape[0], 7):
            seen = known.indices[known.indptr[user] : known.indptr[user + 1]]
            scores = probe._scores(packed.tables, fold, user, seen)
            scores[seen] = -np.inf
            found = np.sort(scores)[::-1][:5]
            np.testing.assert_allclose(found, expected.scores[user], atol=1e-4)
    cost = probe.measure(tmp_path / "histories", tmp_path / "history")
    assert cost["ms"] > 0
    assert 0 < cost["mb"] < 50
    (tmp_path / "broken").write_bytes(b"no file of ours")
    with pytest.raises(RuntimeError, match="measuring broken failed"):
        probe.measure(tmp_path / "broken", tmp_path / "history")


def test_the_command(files, tmp_path, capsys):
    path, paths = files
    argv = ["budget", "--dataset", str(path), "--columns", "user=user", "item=item"]
    argv += ["--mb", "0.002", "--recipes", "svd int8", "--out", str(tmp_path)]
    given = [*argv, "--factors", *map(str, paths)]
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "budget.txt").read_text()
    content = json.loads((tmp_path / "budget.json").read_text())
    (found,) = content["budgets"][0]["recipes"].values()
    assert found["file"] > found["nbytes"][0]
    assert found["milliseconds"] > 0
    assert content["provenance"]["versions"]["numpy"]
    assert (tmp_path / "budget.png").stat().st_size > 1000
    trained = [*argv, "--model", "mf", "--dim", "8", "--epochs", "2", "--every", "1"]
    trained += ["--seeds", "2", "--no-measure", "--batch", "512"]
    trained[trained.index("svd int8") : trained.index("svd int8") + 1] = [
        "svd",
        "smaller",
    ]
    assert cli.main(trained) == 0
    first = capsys.readouterr().out
    assert "smaller" in first
    assert len(list((tmp_path / "runs").iterdir())) == 4  # 2 seeds, 2 widths
    assert cli.main(trained) == 0  # from the folder
    assert capsys.readouterr().out == first


def test_what_cannot_be_is_refused(files, tmp_path, capsys):
    path, paths = files
    config = source(path)
    factors = [load_factors(paths[0])]
    for call, words in [
        (lambda: budget(config, seeds=()), "0 sets of factors for 0 seeds"),
        (lambda: budget(config, seeds=(0, 1), factors=factors), "1 sets of factors"),
        (lambda: budget(config, [0], factors=factors, seeds=[0]), "positive numbers"),
        (lambda: budget(replace(config, train_on="all")), "train_on must be train"),
        (lambda: budget(config, recipes=["zip"]), "no recipe 'zip'"),
        (lambda: budget(config, seeds=[0], factors=factors, recipes=["dsl"]), "trains"),
        (lambda: budget(config, seeds=[0],
                        factors=[Factors(np.ones((2, 1)), np.ones((3, 1)))]),
         "do not fit"),
        (lambda: budget(replace(config, model="multvae", batch=50), seeds=[0]),
         "no vectors of users"),
        (lambda: load_factors(path), "not an .npz file"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(FileNotFoundError):
        load_factors(tmp_path / "none.npz")
    assert cli.main(["budget", "--recipes", "zip"]) == 2
    assert "choose one of fewer bits" in capsys.readouterr().err
