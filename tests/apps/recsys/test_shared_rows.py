import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.recsys.artefact import save
from apps.recsys.compression.trained import packed_rows
from apps.recsys.config import Config
from apps.recsys.export import factors_of
from apps.recsys.models import shared_rows
from apps.recsys.models.shared_rows import SHARING, SharedRows, fewest, sizes, split
from apps.recsys.reader import Recommender
from apps.recsys.result import load_result
from apps.recsys.scoring import FoldIn
from apps.recsys.splits import known_items
from apps.recsys.tables import from_arrays
from apps.recsys.train import train

SHAPE, DIM, STORED = (53, 97), 5, 47  # so that no mix-up of sizes can hide
SHORT = {"dim": 4, "layers": 1, "epochs": 2, "every": 1, "batch": 4096}


def by_hand(module: SharedRows, row: int) -> np.ndarray:
    """One row, by the definition, from the tables as they are given out."""
    side = int(row >= SHAPE[0])
    x = row - side * SHAPE[0]
    q, r = module.tables()[side]
    m = len(r)
    if module.sharing == "hashed":
        return r[x % m]
    if module.sharing == "sum":
        return q[x // m] + r[x % m]
    return q[x // m] * r[x % m]


@pytest.mark.parametrize("sharing", SHARING)
def test_rows_are_those_of_the_definition(sharing):
    module = SharedRows(SHAPE, DIM, sharing, STORED, seed=3)
    assert module.dense_shape == (sum(SHAPE), DIM)
    assert len(module.weight) <= STORED
    rows = torch.from_numpy(np.random.default_rng(0).permutation(sum(SHAPE)))
    found = module(rows).detach().numpy()
    expected = np.stack([by_hand(module, int(row)) for row in rows])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sharing", SHARING)
def test_gradients_of_all_who_share_are_added(sharing):
    module = SharedRows(SHAPE, DIM, sharing, STORED, seed=3).double()
    n = sum(SHAPE)
    outer = torch.randn(n, DIM, generator=torch.Generator().manual_seed(1)).double()
    (module(torch.arange(n)) * outer).sum().backward()
    weight = module.weight.detach().numpy()
    expected, step = np.zeros_like(weight), 1e-6
    for place in np.ndindex(*weight.shape):  # by finite differences: it is a polynomial
        change = np.zeros_like(weight)
        change[place] = step
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                module.weight += torch.from_numpy(sign * change)
                values.append(float((module(torch.arange(n)) * outer).sum()))
                module.weight -= torch.from_numpy(sign * change)
        expected[place] = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(module.weight.grad.numpy(), expected, atol=1e-6)
    assert (module.weight.grad != 0).all()  # no row is left out


@given(st.integers(1, 300), st.integers(0, 320))
def test_the_largest_remainder_table_that_fits(n, stored):
    fits = [m for m in range(1, n + 1) if math.ceil(n / m) + m <= stored]
    if not fits:
        assert stored < fewest(n, "product")
        with pytest.raises(ValueError, match=f"at least {fewest(n, 'product')} rows"):
            sizes(n, stored, "product")
    else:
        quotient, m = sizes(n, stored, "product")
        assert (quotient, m) == (math.ceil(n / max(fits)), max(fits))
        parts = {(x // m, x % m) for x in range(n)}
        assert len(parts) == n  # no two rows share both
        assert max(q for q, _ in parts) == quotient - 1
    if stored:
        assert sizes(n, stored, "hashed") == (0, min(n, stored))


def test_users_share_with_no_item_and_those_who_must_collide_do():
    places = SharedRows(SHAPE, DIM, "hashed", STORED, seed=0).places[0].numpy()
    users, items = places[: SHAPE[0]], places[SHAPE[0] :]
    assert not set(users) & set(items)
    own, _ = split(SHAPE, STORED)
    assert users[0] == users[own]
    assert users[0] != users[own - 1]


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
def test_with_a_row_for_each_it_is_the_table_that_shares_nothing(model):
    plain = Config(model=model, **SHORT)
    n = sum(plain.load().shape)
    one = train(plain, part="valid")
    other = train(
        Config(model=model, sharing="hashed", stored_rows=n, **SHORT), part="valid"
    )
    weights = [r.network.state_dict()["embedding.weight"] for r in (one, other)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert one.metrics["ndcg@20"] == other.metrics["ndcg@20"]


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("model", ["mf", "lightgcn"])
def test_packed_and_read_back_it_scores_alike(model, sharing, tmp_path):
    config = Config(model=model, sharing=sharing, stored_rows=300, out=tmp_path / "run",
                    **SHORT)  # fmt: skip
    result = train(config)
    packed = packed_rows(result, "float32")
    assert packed.nbytes == 4 * config.dim * len(result.network.embedding.weight)
    assert packed.nbytes <= 4 * config.dim * 300
    for table in packed.tables.values():
        again = from_arrays(table.kind, table.shape, table.arrays(), table.settings())
        np.testing.assert_array_equal(again.rows(slice(None)), table.rows(slice(None)))
    users = np.arange(result.data.shape[0])
    expected = result.model.scores(users)
    found = packed.model(result.data.train).scores(users)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    loaded = load_result(tmp_path / "run")
    np.testing.assert_array_equal(loaded.model.scores(users), expected)
    assert result.cost["params_total"] == result.network.embedding.weight.numel()


@pytest.mark.parametrize("sharing", ["hashed", "product"])
def test_the_numpy_reader_serves_it(sharing, tmp_path):
    result = train(Config(model="mf", sharing=sharing, stored_rows=300, **SHORT))
    packed, data = packed_rows(result, "int8"), result.data
    fold = FoldIn(0.1, 1.0)
    save(tmp_path / "f", factors_of(packed.users, packed.items, data, fold_in=fold))
    recommender = Recommender.open(tmp_path / "f")
    known = known_items(data.train, data.valid, data.test).toarray() != 0
    users = [0, 400, 941]
    scores = packed.model(data.train).scores(np.array(users))
    scores[known[users]] = -np.inf
    for user, row in zip(users, scores, strict=True):
        found = recommender.recommend(str(data.user_ids[user]), k=5)
        assert found.source == "trained"
        expected = np.sort(row)[::-1][:5]
        np.testing.assert_allclose([i.score for i in found.items], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sharing": "folded"}, "sharing must be none, hashed, product, sum"),
        ({"sharing": "hashed"}, "stored_rows must be at least 1"),
        ({"stored_rows": 5}, "stored_rows needs sharing"),
        ({"stored_rows": 5, "sharing": "sum", "model": "neumf"}, "lightgcn or mf"),
        (
            {"stored_rows": 5, "sharing": "sum", "backend": "values",
             "method": "static"},
            "leave sharing none",
        ),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        Config(**changes)


def test_too_few_rows_are_no_table():
    with pytest.raises(ValueError, match="stores at least 62 rows for 942, got 19"):
        train(Config(sharing="product", stored_rows=50, **SHORT))


def test_examples():
    failed, attempted = doctest.testmod(shared_rows)
    assert (failed, attempted) == (0, 4)
