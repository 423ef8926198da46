"""Lists in a Parquet file: those of the recommender, block by block."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from apps.recsys import batch
from apps.recsys.export import artefact_of, factors_of
from apps.recsys.models.closed_form import ItemKNN
from apps.recsys.models.factors import Factors
from apps.recsys.ragged import ragged
from apps.recsys.recommender import Filters, Recommender, UnknownId
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import encode
from tests.apps.recsys.artefacts import dataset, vectors

FOLD = FoldIn(0.1, 0.5)


@pytest.fixture(params=["trained", "folded", "linear"])
def artefact(request):
    """One user without a history, one whose item the model knows nothing of."""
    data = dataset()
    users, items = vectors(data)
    items = items.copy()
    items[46] = 0
    if request.param == "trained":
        found = artefact_of(Factors(users, items), data, kind="int8", fold_in=FOLD)
    elif request.param == "folded":
        found = factors_of(None, encode(items, "float32"), data, fold_in=FOLD)
    else:
        model = ItemKNN(3).fit(data.train)
        weights = model.weights.toarray()
        weights[46] = 0
        found = artefact_of(replace(model, weights=weights), data)
    lists = [part.tolist() for part in found.history]
    lists[5], lists[6] = [], [46]
    return replace(found, history=ragged(lists))


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("k", [3, 60])
def test_the_lists_are_the_recommenders(artefact, exclude_seen, k, tmp_path):
    path = tmp_path / "lists.parquet"
    n = batch.write(path, artefact, k, exclude_seen=exclude_seen, block=7)
    table = pq.read_table(path).to_pylist()
    assert len(table) == n
    assert pq.ParquetFile(path).num_row_groups == 5  # 31 users, 7 a block
    recommender = Recommender(artefact)
    sources = set()
    for user in artefact.user_ids:
        rows = [row for row in table if row["user"] == user]
        found = recommender.recommend(user, k=k, exclude_seen=exclude_seen)
        assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
        assert [r["item"] for r in rows] == [r.item for r in found.items]
        np.testing.assert_allclose(
            [r["score"] for r in rows], [r.score for r in found.items],
            rtol=1e-4, atol=1e-6,
        )  # fmt: skip
        assert {r["source"] for r in rows} == {found.source}
        sources.add(found.source)
    assert "popularity" in sources
    assert len(sources) == 2


@pytest.mark.parametrize(
    "filters",
    [
        Filters(where={"genre": "War"}, without=("i3", "i7")),
        Filters(only=("i46", "i2", "i12")),
    ],
)
def test_filtered_lists_are_the_recommenders(artefact, filters, tmp_path):
    path = tmp_path / "lists.csv"
    batch.write(path, artefact, 9, filters=filters, block=7)
    table = pd.read_csv(path, dtype=str)
    assert list(table) == ["user", "rank", "item", "score", "source"]
    recommender = Recommender(artefact)
    for user in artefact.user_ids:
        rows = table[table["user"] == user]
        found = recommender.recommend(user, k=9, filters=filters)
        assert rows["item"].tolist() == [r.item for r in found.items]
        assert set(rows["source"]) <= {found.source}


def test_chosen_users(artefact, tmp_path):
    path = tmp_path / "lists.parquet"
    assert batch.write(path, artefact, 2, ["u/9", "u/3"]) == 4
    assert pq.read_table(path)["user"].to_pylist() == ["u/9", "u/9", "u/3", "u/3"]
    with pytest.raises(UnknownId, match="no user 'x'"):
        batch.write(path, artefact, 2, ["x"])
    with pytest.raises(ValueError, match="at least 1"):
        batch.write(path, artefact, 0)
    assert batch.write(path, artefact, 2, []) == 0
    assert pq.read_table(path).num_rows == 0
    with pytest.raises(ValueError, match=r"lists are \.parquet or \.csv"):
        batch.write(tmp_path / "lists.xlsx", artefact)
    with pytest.raises(ValueError, match="no item passes"):
        batch.write(path, artefact, filters=Filters(only=()))
    with pytest.raises(UnknownId, match="without: no item 'x'"):
        batch.write(path, artefact, filters=Filters(without=("x",)))
