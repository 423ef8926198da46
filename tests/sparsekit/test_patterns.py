import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.masks import topk_mask
from sparsekit.patterns import NM, Block, Columns, Rows, Unstructured
from tests.reference import selection


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 7), st.data())
@settings(max_examples=80, deadline=None)
def test_nm_keeps_the_n_best_of_every_m_inputs(rows, groups, m, data):
    n = data.draw(st.integers(1, m))
    kernel = data.draw(st.sampled_from([(), (3,), (2, 3)]))
    ties = data.draw(st.booleans())
    scores = noise(rows, groups * m, *kernel)
    scores = scores.round() if ties else scores
    pattern = NM(n, m)
    count = pattern.count(scores.shape, 0.5)
    mask = pattern.mask(scores, count)
    assert mask.shape == scores.shape
    assert mask.sum() == count
    last, scored = mask.movedim(1, -1), scores.movedim(1, -1)
    for at in torch.cartesian_prod(*[torch.arange(d) for d in last.shape[:-1]]):
        at = tuple(at.reshape(-1).tolist())
        for g in range(groups):
            part = slice(g * m, (g + 1) * m)
            expected = selection.highest(scored[at][part].tolist(), n)
            assert last[at][part].tolist() == expected


def test_nm_groups_input_channels_of_a_convolution_at_one_kernel_position():
    scores = torch.zeros(1, 4, 1, 2)
    scores[0, :, 0, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    scores[0, :, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mask = NM(1, 4).mask(scores, 2)
    assert mask.nonzero().tolist() == [[0, 0, 0, 0], [0, 3, 0, 1]]


def blocks_of(matrix, height, width):
    """Every block of a 2-D tensor, in row-major order of the blocks."""
    return [
        matrix[i : i + height, j : j + width]
        for i in range(0, matrix.shape[0], height)
        for j in range(0, matrix.shape[1], width)
    ]


UNITS = [
    (Block(2, 3), lambda t: blocks_of(t.reshape(t.shape[0], -1), 2, 3)),
    (Block(1, 6), lambda t: blocks_of(t.reshape(t.shape[0], -1), 1, 6)),
    (Rows(), lambda t: list(t)),
    (Columns(), lambda t: [t[:, j] for j in range(t.shape[1])]),
]


@pytest.mark.parametrize(
    ("pattern", "units"), UNITS, ids=["2x3", "1x6", "rows", "columns"]
)
@pytest.mark.parametrize("shape", [(14, 18), (10, 6, 3, 3)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.77, 0.999])
@pytest.mark.parametrize("ties", [False, True])
def test_units_live_or_die_whole_by_their_mean(pattern, units, shape, sparsity, ties):
    scores = noise(*shape)
    scores = scores.sign() if ties else scores
    count = pattern.count(shape, sparsity)
    mask = pattern.mask(scores, count)
    assert mask.sum() == count
    size = units(scores)[0].numel()
    means = [sum(u.flatten().tolist()) / size for u in units(scores)]
    if not ties:  # a tie of means is exact only in exact arithmetic
        alive = selection.highest(means, count // size)
        assert [bool(u.all()) for u in units(mask)] == alive
    assert all(u.all() or not u.any() for u in units(mask))


@pytest.mark.parametrize(
    ("pattern", "units"), UNITS, ids=["2x3", "1x6", "rows", "columns"]
)
@given(st.floats(0, 0.9999))
def test_count_is_the_nearest_reachable(pattern, units, sparsity):
    shape = (10, 6, 3, 3)
    blocks = units(torch.empty(shape))
    reachable = [k * blocks[0].numel() for k in range(1, len(blocks) + 1)]
    wish = Unstructured().count(shape, sparsity)
    count = pattern.count(shape, sparsity)
    nearest = min(abs(r - wish) for r in reachable)
    assert count == max(r for r in reachable if abs(r - wish) == nearest)


def test_equal_units_go_by_order():
    assert Rows().mask(torch.ones(3, 2), 2).tolist() == [[True] * 2] + [[False] * 2] * 2
    assert Columns().mask(torch.ones(2, 3), 2)[0].tolist() == [True, False, False]
    assert Block(1, 2).mask(torch.ones(1, 6), 2)[0].tolist() == [True] * 2 + [False] * 4


def test_means_of_half_precision_scores_are_taken_in_float32():
    scores = torch.ones(2, 512, dtype=torch.bfloat16)
    scores[1, 0] = 1.5  # a bfloat16 mean would tie
    assert Rows().mask(scores, 512)[1].all()
    assert Rows().mask(torch.tensor([[1, 2], [2, 2]]), 2)[1].all()


def test_unstructured_is_topk():
    scores = noise(7, 11)
    count = Unstructured().count(scores.shape, 0.8)
    assert torch.equal(Unstructured().mask(scores, count), topk_mask(scores, count))


def test_masks_of_views_that_are_not_contiguous():
    scores = noise(6, 4).t()
    for pattern in (NM(2, 3), Block(2, 3), Rows(), Columns()):
        count = pattern.count(scores.shape, 0.5)
        expected = pattern.mask(scores.contiguous(), count)
        assert torch.equal(pattern.mask(scores, count), expected)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: NM(2, 4).count((3, 10), 0.5, name="fc1"),
            r"NM\(2, 4\) needs in_features divisible by 4, got 10 in 'fc1'",
        ),
        (
            lambda: NM(2, 4).mask(noise(3, 6, 3, 3), 81),
            r"needs in_channels divisible by 4, got 6$",
        ),
        (lambda: NM(2, 4).mask(noise(3, 8), 11), "keeps 12 of 24 entries, not 11"),
        (lambda: NM(5, 4), "n <= m"),
        (lambda: NM(0, 4), "n is an integer >= 1, got 0"),
        (lambda: NM(1, 2).count((4,), 0.5), r"\(4,\)"),
        (lambda: Block(2, 3).count((5, 6), 0.5), "needs out divisible by 2, got 5"),
        (
            lambda: Block(2, 4).count((4, 3, 3, 3), 0.5, name="c"),
            r"in \* kernel divisible by 4, got 27 in 'c'",
        ),
        (lambda: Rows().mask(noise(3, 5), 7), "whole units of 5 entries.* 7 active"),
        (lambda: Rows().count((5,), 0.5), r"Rows\(\) needs a weight"),
        (lambda: Columns().count((3, 5), 1.0), r"\[0, 1\), got 1\.0"),
        (lambda: NM(1, 2).count((3, 4), math.nan), "got nan"),
        (lambda: NM(1, 2).mask(torch.full((1, 2), math.nan), 1), "NaN"),
        (lambda: Rows().mask(torch.full((1, 2), math.nan), 2), "NaN"),
    ],
)
def test_errors_name_the_pattern_and_the_number(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.parametrize(
    "pattern", [NM(1, 2), Block(2, 2), Rows(), Columns(), Unstructured()]
)
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3, 2)])
def test_masks_are_contiguous_and_know_no_graph(pattern, shape):
    scores = torch.rand(shape, requires_grad=True) * 1
    mask = pattern.mask(scores, pattern.count(shape, 0.5))
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    assert mask.is_contiguous()
    assert torch.equal(mask, pattern.mask(scores.detach(), int(mask.sum())))


def test_a_count_between_two_units_goes_to_the_larger():
    """Of 24 entries in rows of 6: 15 is between 12 and 18, 14 nearer to 12."""
    for wish, reached in ((15, 18), (14, 12), (9, 12), (8, 6), (1, 6), (24, 24)):
        assert Rows().count((4, 6), 1 - wish / 24) == reached
    for wish, reached in ((2, 4), (6, 8), (5, 4)):  # blocks of 4
        assert Block(2, 2).count((4, 6), 1 - wish / 24) == reached


def test_sizes_are_integers_of_at_least_one():
    assert NM(4, 4).count((2, 8), 0.5) == 16
    for wrong in (0, -1, 1.0, "2"):
        with pytest.raises(ValueError, match="an integer >= 1, got"):
            Block(wrong, 2)
        with pytest.raises(ValueError, match="an integer >= 1, got"):
            NM(1, wrong)
    with pytest.raises(ValueError, match="keeps more than it has"):
        NM(3, 2)
    for shape in ((6,), (0, 6), ()):
        with pytest.raises(ValueError, match=r"a weight \(out, in, \.\.\.\), got"):
            Rows().count(shape, 0.5)
    for sparsity in (1.0, -0.1):
        with pytest.raises(ValueError, match="share of zeros"):
            NM(1, 2).count((2, 4), sparsity)


def test_the_smallest_weight_has_one_entry():
    for pattern in (Rows(), Columns(), Block(1, 1), NM(1, 1)):
        assert pattern.count((1, 1), 0.0) == 1
        assert pattern.mask(torch.ones(1, 1), 1).tolist() == [[True]]


@pytest.mark.parametrize("pattern", [Rows(), Columns(), Block(2, 2), NM(1, 2)])
def test_vectors_are_refused_by_every_pattern_of_matrices(pattern):
    with pytest.raises(ValueError, match=r"needs a weight .*, got shape \(6,\) in 'b'"):
        pattern.count((6,), 0.5, "b")
    with pytest.raises(ValueError, match=r"needs a weight .*, got shape \(6,\)$"):
        pattern.mask(torch.ones(6), 2)
