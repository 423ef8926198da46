import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.masks import (
    count_active,
    density,
    drop_and_grow,
    pack,
    topk_mask,
    topk_rows,
    unpack,
)
from tests.reference import selection

INF = math.inf
# Few different values, so that ties are the rule; infinities are legal scores.
tied = st.sampled_from([-INF, -1.5, -0.0, 0.0, 1.0, 1.0, 2.0, INF])


@pytest.mark.parametrize(
    ("numel", "sparsity", "expected"),
    [
        (10, 0.9, 1),
        (100, 0.29, 71),
        (1, 0.999, 1),
        (7, 0.0, 7),
        (1000, 0.9999, 1),
        (2, 0.5, 1),
        (10**10, 0.5, 5 * 10**9),
    ],
)
def test_count_active_by_hand(numel, sparsity, expected):
    assert count_active(numel, sparsity) == expected


@given(st.integers(1, 10**7), st.floats(0, 1, exclude_max=True))
def test_count_active_is_the_nearest_count(numel, sparsity):
    count = count_active(numel, sparsity)
    assert 1 <= count <= numel
    assert count == 1 or abs(count - numel * (1 - sparsity)) <= 0.5 + 1e-6


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, INF])
def test_count_active_refuses_what_is_no_sparsity(sparsity):
    with pytest.raises(ValueError, match=f"got {sparsity}"):
        count_active(10, sparsity)


def test_count_active_refuses_other_types_and_empty_tensors():
    with pytest.raises(TypeError, match=r"'0\.5'"):
        count_active(10, "0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"2\.5"):
        count_active(2.5, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0"):
        count_active(0, 0.5)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_topk_equals_a_stable_sort(data):
    scores = data.draw(st.lists(tied, min_size=1, max_size=23))
    among = data.draw(
        st.none() | st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))
    )
    n = data.draw(st.integers(0, len(scores) if among is None else sum(among)))
    got = topk_mask(
        torch.tensor(scores), n, None if among is None else torch.tensor(among)
    )
    assert got.tolist() == selection.highest(scores, n, among)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int8,
        torch.bool,
        torch.int64,
        torch.uint8,
    ],
)
@pytest.mark.parametrize("n_active", [0, 1, 500, 1000, 1001])
def test_topk_of_every_dtype_equals_torch_stable_sort(dtype, n_active):
    generator = torch.Generator().manual_seed(3)
    scores = (torch.randn(7, 11, 13, generator=generator) * 2).to(dtype)
    mask = topk_mask(scores, n_active)
    key = scores.reshape(-1).double()
    order = key.sort(descending=True, stable=True).indices[:n_active]
    expected = torch.zeros(1001, dtype=torch.bool).index_fill_(0, order, True)
    assert mask.shape == scores.shape
    assert torch.equal(mask.reshape(-1), expected)


def test_topk_of_a_view_a_scalar_and_a_leaf():
    scores = torch.arange(6.0).view(2, 3)
    assert torch.equal(topk_mask(scores.t(), 2), topk_mask(scores, 2).t())
    assert topk_mask(torch.tensor(1.0), 1).item() is True
    assert not topk_mask(scores.requires_grad_(), 2).requires_grad


@pytest.mark.parametrize("n_active", [-1, 5])
def test_topk_names_the_count(n_active):
    with pytest.raises(ValueError, match=rf"0 \.\.\. 4.*got {n_active}"):
        topk_mask(torch.zeros(2, 2), n_active)


def test_topk_refuses_nan_wrong_masks_and_complex():
    with pytest.raises(ValueError, match="1 NaN in 3"):
        topk_mask(torch.tensor([1.0, math.nan, 2.0]), 1)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        topk_mask(torch.zeros(2), 1, among=torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="bool"):
        topk_mask(torch.zeros(2), 1, among=torch.ones(2))
    with pytest.raises(TypeError, match="complex"):
        topk_mask(torch.zeros(2, dtype=torch.complex64), 1)
    with pytest.raises(TypeError, match=r"1\.5"):
        topk_mask(torch.zeros(2), 1.5)  # type: ignore[arg-type]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_drop_and_grow_equals_the_obvious_and_conserves(data):
    size = data.draw(st.integers(1, 17))
    vector = st.lists(tied, min_size=size, max_size=size)
    mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    drop, grow = data.draw(vector), data.draw(vector)
    exclude = data.draw(st.booleans())
    room = sum(mask) if not exclude else min(sum(mask), size - sum(mask))
    n = data.draw(st.integers(0, room))
    before = torch.tensor(mask)
    new = drop_and_grow(
        before, torch.tensor(drop), torch.tensor(grow), n, exclude_dropped=exclude
    )
    assert new.tolist() == selection.moved(mask, drop, grow, n, exclude)
    assert new.sum() == sum(mask)
    assert before.tolist() == mask  # a new tensor


def test_counts_are_exact_with_constant_weights_over_many_updates():
    # A threshold compare drops every tied weight here (ITOP's reference code).
    mask = topk_mask(torch.rand(13, 17, generator=torch.Generator().manual_seed(0)), 31)
    for step in range(100):
        noise = torch.rand(13, 17, generator=torch.Generator().manual_seed(step))
        mask = drop_and_grow(mask, torch.ones(13, 17), noise, 11)
        assert mask.sum() == 31


def test_drop_works_for_scores_that_are_negative_everywhere():
    # Zeros of absent entries would win against any negative score.
    mask = torch.tensor([True, True, True, False])
    drop = torch.tensor([-3.0, -1.0, -2.0, 0.0])
    new = drop_and_grow(mask, drop, torch.tensor([0.0, 0.0, 0.0, 1.0]), 1)
    assert new.tolist() == [False, True, True, True]


def test_a_dropped_connection_may_return_unless_excluded():
    mask = torch.tensor([True, True, False])
    drop, grow = torch.tensor([1.0, 0.0, 9.0]), torch.tensor([0.0, 5.0, 1.0])
    assert drop_and_grow(mask, drop, grow, 1).tolist() == [True, True, False]
    excluded = drop_and_grow(mask, drop, grow, 1, exclude_dropped=True)
    assert excluded.tolist() == [True, False, True]


def test_drop_and_grow_names_the_numbers():
    mask, score = torch.tensor([True, True, False]), torch.zeros(3)
    with pytest.raises(ValueError, match=r"0 \.\.\. 2 .*got 3"):
        drop_and_grow(mask, score, score, 3)
    with pytest.raises(ValueError, match=r"n_moved=2 .* in 1 absent entries of 3"):
        drop_and_grow(mask, score, score, 2, exclude_dropped=True)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        drop_and_grow(mask, torch.zeros(4), score, 1)


@given(st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**32))
@settings(deadline=None)
def test_packing_roundtrip_is_an_eighth(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(tuple(shape), generator=generator) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack(packed, mask.shape), mask)


def test_packed_bits_are_numpys():
    import numpy as np

    mask = torch.rand(11, 13, generator=torch.Generator().manual_seed(1)) < 0.3
    expected = np.packbits(mask.numpy(), axis=None, bitorder="little")
    assert pack(mask).tolist() == expected.tolist()


def test_unpack_refuses_another_shape():
    packed = pack(torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="length 3"):
        unpack(packed, (3, 7))
    with pytest.raises(ValueError, match="after entry 13"):
        unpack(packed, (13,))
    with pytest.raises(ValueError, match="int64"):
        unpack(packed.long(), (3, 5))


# ---- by row ------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_topk_rows_is_topk_mask_of_each_row(data):
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    n = rows * columns
    scores = torch.tensor(data.draw(st.lists(tied, min_size=n, max_size=n)))
    among = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    scores, among = scores.view(rows, columns), among.view(rows, columns)
    most = among.sum(1).tolist()
    counts = [data.draw(st.integers(0, limit)) for limit in most]
    found = topk_rows(scores, torch.tensor(counts), among)
    for row, count in enumerate(counts):
        assert found[row].equal(topk_mask(scores[row], count, among[row]))


def test_topk_rows_refuses_what_has_no_answer():
    scores, three = torch.zeros(2, 3), torch.tensor([3, 3])
    with pytest.raises(ValueError, match="number of candidates of its row"):
        topk_rows(scores, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="number of candidates of its row"):
        topk_rows(scores, three, scores == 1)
    with pytest.raises(ValueError, match=r"counts has shape \(1,\), there are 2 rows"):
        topk_rows(scores, torch.tensor([1]))
    with pytest.raises(ValueError, match="NaN"):
        topk_rows(scores / 0, three)


def test_what_is_no_mask_is_named():
    mask, scores = torch.tensor([True, False]), torch.ones(2)
    with pytest.raises(TypeError, match=r"mask is a bool tensor, got torch\.float32"):
        drop_and_grow(scores, scores, scores, 1)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\), the scores have"):
        drop_and_grow(mask, torch.ones(3), torch.ones(3), 1)
    for moved in (0.5, 1.0, "1", None):
        with pytest.raises(TypeError, match="n_moved is an integer, got"):
            drop_and_grow(mask, scores, scores, moved)
    for other in (torch.ones(9), torch.ones(9, dtype=torch.uint8)):
        with pytest.raises(TypeError, match="mask is a bool tensor"):
            pack(other)
    rows = torch.ones(2, 3)
    with pytest.raises(TypeError, match="among is a bool tensor"):
        topk_rows(rows, torch.tensor([1, 1]), among=rows)
    with pytest.raises(ValueError, match="among has shape"):
        topk_rows(rows, torch.tensor([1, 1]), among=torch.ones(3, 2) > 0)
    rows[1, 2] = torch.nan
    with pytest.raises(ValueError, match="scores hold NaN"):
        topk_rows(rows, torch.tensor([1, 1]))
    for counts in ([-1, 1], [1, 4], [4, 0]):
        with pytest.raises(ValueError, match="a count is in 0"):
            topk_rows(torch.ones(2, 3), torch.tensor(counts))


@pytest.mark.parametrize("shape", [(), (1,), (8,), (9,), (0,), (3, 5)])
def test_packed_shapes_come_back(shape):
    mask = torch.rand(shape) > 0.5
    packed = pack(mask)
    assert packed.shape == ((mask.numel() + 7) // 8,)
    found = unpack(packed, shape)
    assert found.shape == shape
    assert torch.equal(found, mask)
    found.logical_not_()
    assert torch.equal(unpack(packed, list(shape)), mask)  # not a view of the bits


def test_selections_know_no_graph_and_change_nothing():
    scores = torch.rand(4, 6, requires_grad=True) * 1
    before = scores.detach().clone()
    among = torch.rand(4, 6) > 0.3
    kept = among.clone()
    counts = torch.tensor([0, 1, 2, 1])
    for mask in (
        topk_mask(scores, 5),
        topk_mask(scores, 5, among=among),
        topk_rows(scores, counts, among=torch.ones_like(among)),
        drop_and_grow(among, scores, scores, 2),
    ):
        assert not mask.requires_grad
        mask.fill_(True)
    assert torch.equal(scores, before)
    assert torch.equal(among, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64])
def test_candidates_of_every_dtype(dtype):
    scores = (torch.arange(12) % 3).to(dtype)
    among = torch.arange(12) % 2 == 0
    found = topk_mask(scores, 3, among=among)
    order = sorted(range(0, 12, 2), key=lambda i: (-float(scores[i]), i))
    assert found.nonzero().flatten().tolist() == sorted(order[:3])


def test_density_is_of_all_masks_together():
    masks = {"a": torch.arange(8) < 2, "b": torch.ones(2, 1, dtype=torch.bool)}
    assert density(masks) == 0.4
    assert density({}) == 1.0


def test_counts_may_be_numpys_and_are_whole():
    import numpy as np

    scores = torch.arange(6.0)
    assert int(topk_mask(scores, np.int64(2)).sum()) == 2
    assert count_active(np.int32(10), np.float32(0.5)) == 5
    for wrong in (2.0, "2", None):
        with pytest.raises(TypeError, match="n_active is an integer"):
            topk_mask(scores, wrong)
        with pytest.raises(TypeError, match="n_moved is an integer"):
            drop_and_grow(scores > 2, scores, scores, wrong)
