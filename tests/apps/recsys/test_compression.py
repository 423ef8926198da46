import doctest
import importlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram

from apps.recsys.compression import pruning
from apps.recsys.compression.candidate import Subject, choose, judged
from apps.recsys.compression.codes import pursue, sparse_codes
from apps.recsys.compression.finished import FINISHED, fitting_rank, row_bytes
from apps.recsys.compression.item_weights import ITEM_WEIGHTS
from apps.recsys.compression.packed import PackedFactors, PackedGraph, PackedWeights
from apps.recsys.compression.principal import principal_axes, random_rotation
from apps.recsys.compression.recipes import RECIPES, chosen
from apps.recsys.compression.trained import packed_table
from apps.recsys.compression.worth import bits_within
from apps.recsys.config import Config
from apps.recsys.fold_in import folded
from apps.recsys.models.closed_form import EASE
from apps.recsys.models.factors import Factors
from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import Sparse, encode
from apps.recsys.train import train
from tests.apps.recsys.artefacts import dataset, vectors

seeds = st.integers(0, 1000)


def factors(n_users=23, n_items=31, d=7, seed=0):
    """Columns of different sizes, correlated, and a mean."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) * 2.0 ** -np.arange(d)
    users, items = (rng.standard_normal((n, d)) @ mix + 0.1 for n in (n_users, n_items))
    return Factors(users, items)


def subject(seed=0, **changes):
    data = dataset(131, 97, seed)
    return Subject(data, Factors(*vectors(data, 16)), **changes)


@given(st.integers(1, 7), seeds)
def test_principal_axes_are_the_svd_of_all_scores(rank, seed):
    given_ = factors(seed=seed)
    scores = given_.users.astype(float) @ given_.items.T.astype(float)
    p, values, q = np.linalg.svd(scores)
    best = (p[:, :rank] * values[:rank]) @ q[:rank]
    turned = principal_axes(given_, rank)
    scale = np.abs(scores).max()
    np.testing.assert_allclose(turned.users @ turned.items.T, best, atol=1e-4 * scale)
    for side in (turned.users, turned.items):
        moments = side.T.astype(float) @ side
        np.testing.assert_allclose(moments, np.diag(values[:rank]), atol=1e-3 * scale)
    with pytest.raises(ValueError, match="rank must be"):
        principal_axes(given_, 8)


def test_a_random_rotation_keeps_scores_and_moves_vectors():
    before = factors()
    after = random_rotation(before, seed=3)
    np.testing.assert_allclose(
        after.users @ after.items.T, before.users @ before.items.T, atol=1e-4
    )
    assert np.abs(after.items - before.items).max() > 0.1


@given(st.integers(60, 400), st.booleans(), seeds)
@settings(max_examples=50)
def test_bits_have_the_least_error_of_all_that_fit(budget, stored_users, seed):
    """All allocations of 0 to 8 bits to two columns on each side, one by one."""
    turned = principal_axes(factors(11, 17, 2, seed))
    users, items = turned.users.astype(float), turned.items.astype(float)
    found = bits_within(turned, budget, stored_users=stored_users)
    worth = np.array(
        [*users.var(0) * (items**2).mean(0), *items.var(0) * (users**2).mean(0)]
    )

    def error(bits):
        lost = worth * 4.0 ** -np.array(bits)
        return lost.sum() if stored_users else lost[2:].sum()

    def size(bits):
        return sum(
            n * -(-(a + b) // 8) for n, a, b in ((11, *bits[:2]), (17, *bits[2:]))
        )

    own = range(9) if stored_users else range(1)
    allowed = [
        bits
        for bits in itertools.product(own, own, range(9), range(9))
        if size(bits) <= budget
        and sum(bits[2:])
        and (sum(bits[:2]) or not stored_users)
    ]
    if found is None:
        assert not allowed
        return
    bits = [*found[0], *found[1]]
    assert size(bits) <= budget
    assert error(bits) <= min(map(error, allowed)) * (1 + 1e-9)


@pytest.mark.parametrize("values", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("by", ["table", "row"])
def test_the_most_numbers_that_fit(values, by):
    n, d = 5, 19
    matrix = np.random.default_rng(0).standard_normal((n, d))
    for budget in range(0, 400, 7):
        n_kept = pruning.fitting(n, d, budget, values, by)
        step = n if by == "row" else 1
        sizes = {}
        for nnz in range(step, n * d + 1, step):
            mask = pruning.largest(matrix, nnz, by)
            assert mask.sum() == nnz
            sizes[nnz] = Sparse.of(matrix, mask, values).nbytes
        assert n_kept == max(
            (k for k, size in sizes.items() if size <= budget), default=0
        )
        if n_kept:
            assert pruning.sparse_bytes(n, d, n_kept, values) == sizes[n_kept]


def test_the_largest_stay():
    matrix = np.array([[1.0, -4.0, 2.0], [0.5, 0.1, -3.0]])
    assert pruning.largest(matrix, 3).tolist() == [
        [False, True, True],
        [False, False, True],
    ]
    kept = pruning.largest(matrix, 2, "row")
    assert kept.tolist() == [[False, True, False], [False, False, True]]
    with pytest.raises(ValueError, match="multiple of 2"):
        pruning.largest(matrix, 3, "row")
    with pytest.raises(ValueError, match="values must be"):
        pruning.sparse_bytes(1, 1, 1, "int3")


@given(st.integers(1, 5), seeds)
@settings(max_examples=25)
def test_pursuit_equals_scikit_learn(active, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((13, 7))
    dictionary = rng.standard_normal((11, 7))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    chosen_, weights = pursue(rows, dictionary, active)
    spread = np.zeros((13, 11))
    np.put_along_axis(spread, chosen_, weights, axis=1)
    gram, products = dictionary @ dictionary.T, dictionary @ rows.T
    expected = orthogonal_mp_gram(gram, products, n_nonzero_coefs=active).T
    np.testing.assert_allclose(spread, expected, atol=1e-5)


def test_codes_find_a_planted_dictionary():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((6, 12))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    weights = np.zeros((300, 6))
    for row in weights:
        row[rng.choice(6, 2, replace=False)] = rng.standard_normal(2) + 3
    rows = weights @ atoms
    table = sparse_codes(rows, 6, 2, weights="float32", kind="float32", seed=1)
    error = ((table.rows(np.arange(300)) - rows) ** 2).sum() / (rows**2).sum()
    assert error < 0.1
    values = np.linalg.svd(rows, compute_uv=False)
    assert (values[2:] ** 2).sum() / (values**2).sum() > 0.3  # what two axes leave
    # What matters is approximated better.
    heavy = np.r_[np.full(3, 100.0), np.ones(9)]
    noise = rng.standard_normal((300, 12))
    plain, weighted = (
        sparse_codes(noise, 8, 2, importance, weights="float32", kind="float32")
        for importance in (None, heavy)
    )
    first = [
        ((t.rows(np.arange(300)) - noise)[:, :3] ** 2).sum() for t in (plain, weighted)
    ]
    assert first[1] < first[0]
    with pytest.raises(ValueError, match="active"):
        sparse_codes(rows, 2, 3)


def test_packed_factors_score_as_their_tables_say():
    data = dataset()
    users, items = (encode(x.astype(np.float32), "int8") for x in vectors(data))
    packed = PackedFactors(users, items)
    assert packed.nbytes == users.nbytes + items.nbytes
    assert not packed.needs_history
    expected = users.rows(slice(None)) @ items.rows(slice(None)).T
    rows = np.arange(data.shape[0])
    np.testing.assert_allclose(
        packed.model(data.train).scores(rows), expected, atol=1e-5
    )
    fold = FoldIn(0.1, 2.0)
    without = PackedFactors(None, items, fold)
    assert (without.nbytes, without.needs_history) == (items.nbytes, True)
    vectors_ = folded(fold, data.train, items.rows(slice(None)))
    np.testing.assert_array_equal(without.model(data.train).users, vectors_)
    for wrong in ((users, fold), (None, None)):
        with pytest.raises(ValueError, match="one of the two"):
            PackedFactors(wrong[0], items, wrong[1])


def test_a_packed_graph_is_the_network():
    data = dataset()
    network = LightGCN(data.train, 5, layers=2, l2=0.0, seed=1)
    weight = network.embedding.weight.detach().numpy()
    cut = data.shape[0]
    tables = [encode(part, "float32") for part in (weight[:cut], weight[cut:])]
    packed = PackedGraph(*tables, layers=2)
    expected = network.fitted()
    found = packed.model(data.train)
    np.testing.assert_allclose(found.users, expected.users, atol=1e-6)
    np.testing.assert_allclose(found.items, expected.items, atol=1e-6)
    assert packed.needs_history


def test_packed_weights_score_histories():
    data = dataset()
    model = EASE(l2=10).fit(data.train)
    every = np.ones(model.weights.shape, bool)
    packed = PackedWeights(Sparse.of(model.weights, every))
    rows = np.arange(data.shape[0])
    found = packed.model(data.train).scores(rows)
    np.testing.assert_allclose(found, model.scores(rows), atol=1e-5)


@pytest.mark.parametrize("recipe", [*FINISHED, *ITEM_WEIGHTS], ids=lambda r: r.name)
def test_candidates_fit_and_more_bytes_are_no_worse_on_validation(recipe):
    given_ = subject()
    n = sum(given_.data.shape)
    found = {}
    for budget in (10 * n, 40 * n, 4 * 16 * n):
        for candidate in recipe.candidates(given_, budget):
            packed = candidate.packed
            assert packed.nbytes <= budget
            arrays = [a for t in packed.tables.values() for a in t.arrays().values()]
            assert packed.nbytes == sum(a.nbytes for a in arrays)
            assert candidate.settings
            model = packed.model(given_.data.train)
            assert model.scores(np.array([0])).shape == (1, given_.data.shape[1])
        found[budget] = choose(recipe, given_, budget)
    assert found[64 * n] is not None
    assert choose(recipe, given_, 1) is None
    assert choose(recipe, given_, 64 * n) is found[64 * n]  # what took long is kept


def test_with_bytes_for_everything_nothing_is_lost():
    given_ = subject()
    size = 4 * 16 * sum(given_.data.shape)
    rows = np.arange(given_.data.shape[0])
    expected = given_.factors.scores(rows)
    for name in ("fewer bits", "svd"):
        best = choose(RECIPES[name], given_, size).best
        np.testing.assert_allclose(
            best.packed.model(given_.data.train).scores(rows), expected, atol=1e-4
        )


def test_nothing_is_taken_from_the_test_part():
    one = subject()
    other = replace(one, data=replace(one.data, test=one.data.train), kept={},
                    kept_of_data={})  # fmt: skip
    budget = 40 * sum(one.data.shape)
    for recipe in (*FINISHED, *ITEM_WEIGHTS):
        a, b = (choose(recipe, s, budget) for s in (one, other))
        assert (a.best.settings, a.valid) == (b.best.settings, b.valid)


def test_without_validation_the_dense_lists_judge():
    given_ = subject()
    final = Subject(given_.data.final(), given_.factors)
    exact, rough = (
        PackedFactors(*(encode(side, kind) for side in (f.users, f.items)))
        for f, kind in ((given_.factors, "float32"), (given_.first(2), "int2"))
    )
    assert judged(exact, final) == pytest.approx(1)
    assert judged(rough, final) < 0.9
    elsewhere = replace(final.data, test=given_.data.train)
    assert judged(rough, Subject(elsewhere, given_.factors)) == judged(rough, final)
    size = 20 * sum(given_.data.shape)
    assert choose(RECIPES["bits by worth"], final, size).valid > 0.5
    for name in ("items only", "ease", "item knn"):  # need it for settings of their own
        assert choose(RECIPES[name], final, size) is None


def test_a_recipe_that_exceeds_its_budget_is_caught():
    given_ = subject()
    (greedy,) = (r for r in FINISHED if r.name == "svd")
    broken = replace(greedy, candidates=lambda s, b: greedy.candidates(s, 2 * b))
    with pytest.raises(ValueError, match="bytes of"):
        choose(broken, given_, 30 * sum(given_.data.shape))


def test_ranks_fit():
    for kind in ("float32", "float16", "int8", "int4", "int3"):
        matrix = np.ones((9, 13), np.float32)
        assert encode(matrix, kind).nbytes == 9 * row_bytes(13, kind)
        rank = fitting_rank(9, 70, 200, kind)
        assert encode(np.ones((9, rank)), kind).nbytes <= 200
        assert encode(np.ones((9, rank + 1)), kind).nbytes > 200


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
def test_a_sparse_training_is_packed_exactly(model):
    config = Config(model=model, dim=4, layers=1, epochs=2, every=1, batch=4096,
                    method="static", sparsity=0.7)  # fmt: skip
    result = train(config)
    packed = packed_table(result, "float32")
    found, expected = packed.model(result.data.train), result.model
    np.testing.assert_allclose(found.users, expected.users, atol=1e-6)
    np.testing.assert_allclose(found.items, expected.items, atol=1e-6)
    alive = int(result.masks["embedding.weight"].sum())
    assert sum(table.nnz for table in packed.tables.values()) == alive
    assert isinstance(packed, PackedGraph) == (model == "lightgcn")
    assert torch.get_num_threads() >= 1


def test_names_of_recipes():
    assert all(not recipe.trains for recipe in chosen([], may_train=False))
    assert [r.name for r in chosen(["dsl", "svd", "dsl"], True)] == ["dsl", "svd"]
    with pytest.raises(ValueError, match="choose one of fewer bits"):
        chosen(["zip"], True)
    with pytest.raises(ValueError, match="leave --factors out"):
        chosen(["dsl"], False)


@pytest.mark.parametrize("name", ["codes", "finished", "principal", "pruning", "worth"])
def test_examples(name):
    module = importlib.import_module(f"apps.recsys.compression.{name}")
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0


def test_item_weights_keep_the_largest():
    given_ = subject()
    recipe = RECIPES["ease"]
    dense = None
    for candidate in recipe.candidates(given_, 2000):
        table = candidate.packed.weights
        kept = sp.csr_array(table.rows(slice(None)))
        dense = given_.kept_of_data["ease"][0].weights
        if candidate.settings["by"] == "table":
            alive = kept.toarray() != 0
            assert np.abs(dense[alive]).min() >= np.abs(dense[~alive]).max() - 1e-6
        else:
            assert np.unique(np.bincount(kept.indices, minlength=len(dense))).size == 1
    assert dense is not None
