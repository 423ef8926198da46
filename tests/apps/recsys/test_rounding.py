import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.compression.candidate import Subject, choose
from apps.recsys.compression.finished import BY_SIDE, BY_WORTH, LIST, _best_items
from apps.recsys.compression.recipes import RECIPES
from apps.recsys.compression.rounding import Grid, descend, fit_rows, fitted
from apps.recsys.models.factors import Factors
from apps.recsys.tables import Columns, encode
from tests.apps.recsys.artefacts import dataset, vectors

seeds = st.integers(0, 1000)
kinds = st.sampled_from(["int2", "int3", "int5", "columns"])
N_USERS, N_ITEMS, D = 13, 19, 5


def problem(seed):
    """Dense vectors and lists of three items a user."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((D, D))
    sides = (rng.standard_normal((n, D)) @ mix + 0.2 for n in (N_USERS, N_ITEMS))
    dense = Factors(*sides)
    lists = np.zeros((N_USERS, N_ITEMS), np.float32)
    order = np.argsort(-dense.scores(np.arange(N_USERS)), axis=1)
    np.put_along_axis(lists, order[:, :3], 1, axis=1)
    return dense, sp.csr_array(lists)


def packed(matrix, kind):
    return Columns.of(matrix, [3, 2, 2, 0, 1]) if kind == "columns" else encode(
        matrix, kind
    )  # fmt: skip


def error(dense, users, items, lists, everywhere):
    """What is minimised, from all scores."""
    wrong = users.astype(float) @ items.T - dense.users.astype(float) @ dense.items.T
    return ((lists.toarray() + everywhere) * wrong**2).sum()


@given(kinds, seeds)
def test_a_grid_is_its_table(kind, seed):
    table = packed(problem(seed)[0].items, kind)
    grid = Grid.of(table)
    np.testing.assert_allclose(grid.decoded(), table.rows(slice(None)), atol=1e-6)
    again = grid.table()
    assert again.kind == table.kind
    for name, array in table.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)


@given(kinds, kinds, st.sampled_from([0.01, 0.3]), seeds)
@settings(max_examples=60)
def test_scores_of_lists_come_nearer_and_bytes_stay(kind, other, everywhere, seed):
    dense, lists = problem(seed)
    before = packed(dense.users, kind), packed(dense.items, other)
    after = fitted(dense, *before, lists, everywhere)
    values = [
        error(dense, *(t.rows(slice(None)) for t in pair), lists, everywhere)
        for pair in (before, after)
    ]
    assert values[1] <= values[0] * (1 + 1e-3)  # scales are rounded to float16
    assert [t.nbytes for t in after] == [t.nbytes for t in before]
    assert [t.kind for t in after] == [t.kind for t in before]


@given(seeds)
@settings(max_examples=30)
def test_no_other_code_of_one_number_is_better(seed):
    """Every single change is tried, after enough rounds for nothing to move."""
    dense, lists = problem(seed)
    items = packed(dense.items, "int4").rows(slice(None))
    grid = Grid.of(packed(dense.users, "columns"))
    for _ in range(10):
        grid = fit_rows(grid, dense.users, items, dense.items, lists, 0.05)
    least = error(dense, grid.decoded(), items, lists, 0.05)
    for row, column in itertools.product(range(N_USERS), range(D)):
        for code in range(2 ** int(grid.bits[column])):
            codes = grid.codes.copy()
            codes[row, column] = code
            changed = replace(grid, codes=codes).decoded()
            assert error(dense, changed, items, lists, 0.05) >= least * (1 - 1e-5)


def test_one_number_a_row_gets_the_best_code_and_the_best_scale():
    rng = np.random.default_rng(0)
    dense = Factors(rng.standard_normal((7, 1)), rng.standard_normal((11, 1)))
    lists = sp.csr_array((rng.random((7, 11)) < 0.4).astype(np.float32))
    grid = Grid.of(Columns.of(dense.users, [3]))
    found = fit_rows(grid, dense.users, dense.items, dense.items, lists, 0.1)
    for row in range(7):
        tried = []
        for code in range(8):
            one = replace(grid, codes=np.full((7, 1), code, np.float32)).decoded()
            wrong = (one[row] - dense.users[row]) * dense.items[:, 0]
            tried.append(((lists.toarray()[row] + 0.1) * wrong**2).sum())
        assert found.codes[row, 0] == np.argmin(tried)
    # With a scale of its own a row of one number is exact, up to float16.
    scaled = Grid.of(encode(dense.users, "int2"))
    exact = fit_rows(scaled, dense.users, dense.items, dense.items, lists, 0.1)
    np.testing.assert_allclose(exact.decoded(), dense.users, rtol=1e-3)


def test_scales_are_those_of_least_squares():
    rng = np.random.default_rng(1)
    root = rng.standard_normal((4, 9, D)).astype(np.float32)
    grams = np.einsum("nki,nkj->nij", root, root)
    target = rng.standard_normal((4, 9)).astype(np.float32)
    wanted = np.einsum("nki,nk->ni", root, target)
    grid = Grid.of(encode(rng.standard_normal((4, D)), "int3"))
    settled = grid
    for _ in range(20):
        settled = replace(settled, **dict(zip(("codes", "steps"),
                          descend(settled, grams, wanted), strict=True)))  # fmt: skip
    for row in range(4):
        column = root[row] @ (settled.codes[row] - grid.middle)
        best = np.linalg.lstsq(column[:, None], target[row], rcond=None)[0][0]
        assert settled.steps[row, 0] == pytest.approx(best, rel=1e-3)


def test_independent_numbers_without_lists_are_rounded_to_the_nearest():
    rng = np.random.default_rng(2)
    axes = np.linalg.qr(rng.standard_normal((N_ITEMS, D)))[0]
    dense = Factors(rng.standard_normal((N_USERS, D)), axes)
    table = Columns.of(dense.users, [3, 3, 2, 2, 1])
    none = sp.csr_array((N_USERS, N_ITEMS), dtype=np.float32)
    args = dense.users, dense.items, dense.items, none, 1.0
    found = fit_rows(Grid.of(table), *args).table()
    np.testing.assert_array_equal(found.codes, table.codes)


def test_rows_of_zeros_stay():
    dense, lists = problem(0)
    users = dense.users.copy()
    users[3] = 0
    dense = Factors(users, dense.items)
    tables = fitted(
        dense, *(encode(s, "int3") for s in (users, dense.items)), lists, 0.1
    )
    assert not tables[0].rows(np.array([3])).any()
    assert np.isfinite(tables[1].rows(slice(None))).all()


def test_the_recipe_starts_from_the_best_of_either_kind():
    data = dataset(131, 97)
    given_ = Subject(data, Factors(*vectors(data, 16)))
    budget = 9 * sum(data.shape)
    lists = _best_items(given_)
    assert (np.diff(lists.indptr) == min(LIST, data.shape[1])).sum() > 0
    known = data.train.toarray() != 0
    scores = np.where(known, -np.inf, given_.factors.scores(np.arange(131)))
    for user in (0, 50, 130):
        kept = lists.indices[lists.indptr[user] : lists.indptr[user + 1]]
        best = np.sort(scores[user])[::-1][: len(kept)]
        np.testing.assert_allclose(np.sort(scores[user][kept])[::-1], best, rtol=1e-5)
    found = list(RECIPES["fitted bits"].candidates(given_, budget))
    starts = [choose(plain, given_, budget) for plain in (BY_WORTH, BY_SIDE)]
    assert len(found) == 4
    for start, pair in zip(starts, (found[:2], found[2:]), strict=True):
        for candidate in pair:
            assert candidate.packed.nbytes == start.best.packed.nbytes
            assert start.best.settings.items() <= candidate.settings.items()


def test_items_too_are_rounded_for_the_lists():
    """Better than items that are rounded for all scores alike, with the same users."""
    none = sp.csr_array((N_ITEMS, N_USERS), dtype=np.float32)
    for seed in range(10):
        dense, lists = problem(seed)
        start = packed(dense.users, "int3"), packed(dense.items, "columns")
        users, items = (t.rows(slice(None)) for t in fitted(dense, *start, lists, 0.01))
        others = dense.items, users, dense.users
        blind = fit_rows(Grid.of(start[1]), *others, none, 1.0).decoded()
        assert error(dense, users, items, lists, 0.01) < error(
            dense, users, blind, lists, 0.01
        )
