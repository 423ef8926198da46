import math
from math import prod

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsekit.allocation import (
    apportion,
    by_layer,
    er,
    erk,
    global_budget,
    uniform,
)
from sparsekit.masks import count_active, topk_mask
from tests.reference import densities, selection

RESNET = {
    "stem": (64, 3, 7, 7),
    "a": (64, 64, 3, 3),
    "b": (128, 64, 3, 3),
    "c": (512, 512, 3, 3),
    "down": (128, 64, 1, 1),
    "fc": (1000, 512),
}
dims = st.sampled_from([1, 2, 3, 5, 7, 11, 13, 31, 101])
matrices = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(dims, dims) | st.tuples(dims, dims, dims, dims),
    min_size=1,
    max_size=6,
)
sparsities = st.floats(0, 0.999)


def total(shapes):
    return sum(prod(shape) for shape in shapes.values())


@given(matrices, sparsities, st.data())
@settings(max_examples=150, deadline=None)
def test_every_allocation_meets_the_budget_exactly(shapes, sparsity, data):
    dense = data.draw(st.lists(st.sampled_from(sorted(shapes)), unique=True))
    budget = count_active(total(shapes), sparsity)
    rest = budget - sum(prod(shapes[name]) for name in dense)
    assume(rest >= len(shapes) - len(dense) and (rest == 0 or len(dense) < len(shapes)))
    for counts in (
        uniform(shapes, sparsity, dense),
        er(shapes, sparsity, dense),
        erk(shapes, sparsity, dense=dense),
        erk(shapes, sparsity, power=0.5, dense=dense),
    ):
        assert list(counts) == list(shapes)
        assert sum(counts.values()) == budget
        assert all(1 <= n <= prod(shapes[name]) for name, n in counts.items())
        assert all(counts[name] == prod(shapes[name]) for name in dense)


@given(matrices, sparsities, st.sampled_from([1.0, 0.5]))
@settings(max_examples=150, deadline=None)
def test_erk_equals_the_released_code(shapes, sparsity, power):
    assume(count_active(total(shapes), sparsity) >= 4 * len(shapes))
    expected = densities.erk(shapes, sparsity, power)
    counts = erk(shapes, sparsity, power)
    # Integers that sum exactly, and at least one weight each: within one unit, plus
    # what floors of 1 take from the others.
    slack = 1.5 + sum(max(0, 1 - expected[n] * prod(s)) for n, s in shapes.items())
    for name, shape in shapes.items():
        assert abs(counts[name] - expected[name] * prod(shape)) <= slack


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("dense", [(), ("stem",), ("stem", "down")])
def test_erk_of_a_residual_network_equals_the_released_code(sparsity, dense):
    expected = densities.erk(RESNET, sparsity, 1.0, dense)
    counts = erk(RESNET, sparsity, dense=dense)
    for name, shape in RESNET.items():
        assert counts[name] / prod(shape) == pytest.approx(
            expected[name], abs=2 / prod(shape)
        )


def test_er_density_is_proportional_to_neurons_over_connections():
    shapes = {"a": (300, 700), "b": (100, 300, 3, 3), "c": (50, 100)}
    counts = er(shapes, 0.95)
    density = {n: counts[n] / prod(s) for n, s in shapes.items()}
    raw = {n: (s[0] + s[1]) / (s[0] * s[1]) for n, s in shapes.items()}
    ratios = [density[n] / raw[n] for n in shapes]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=2e-3)


def test_power_zero_is_uniform_and_sparsity_zero_is_full():
    assert erk(RESNET, 0.9, power=0.0) == uniform(RESNET, 0.9)
    full = {name: prod(shape) for name, shape in RESNET.items()}
    assert uniform(RESNET, 0) == er(RESNET, 0) == erk(RESNET, 0) == full


def test_uniform_takes_vectors_and_torch_sizes():
    counts = uniform({"v": torch.Size([10]), "m": (3, 5)}, 0.8)
    assert counts == {"v": 2, "m": 3}


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), min_size=1, max_size=6),
    st.data(),
)
def test_apportion_is_the_integer_point_nearest_to_the_wish(pairs, data):
    real = {str(i): min(value, cap) for i, (value, cap) in enumerate(pairs)}
    caps = {str(i): cap for i, (_, cap) in enumerate(pairs)}
    total = data.draw(st.integers(len(pairs), sum(caps.values())))
    counts = apportion(real, total, caps)
    assert sum(counts.values()) == total
    assert all(1 <= counts[n] <= caps[n] for n in real)
    if abs(sum(real.values()) - total) < 1e-9:
        # No exchange of one unit between two names comes closer to the wish.
        error = lambda n, c: (c - real[n]) ** 2  # noqa: E731
        for a in real:
            for b in real:
                if a != b and counts[a] > 1 and counts[b] < caps[b]:
                    now = error(a, counts[a]) + error(b, counts[b])
                    then = error(a, counts[a] - 1) + error(b, counts[b] + 1)
                    assert then >= now - 1e-6


def test_apportion_by_hand():
    real = {"a": 1.5, "b": 1.5, "c": 0.2, "d": 6.8}
    caps = dict.fromkeys(real, 6)
    # Equal remainders: the earlier name first. c gets its minimum, d its cap.
    assert apportion(real, 10, caps) == {"a": 2, "b": 1, "c": 1, "d": 6}
    # The minimum of a and b costs one unit. Taking it from c (4 of 4.2) leaves a
    # smaller error than taking it from d (4 of 4.6).
    real = {"a": 0.1, "b": 0.1, "d": 4.6, "c": 4.2}
    assert apportion(real, 9, caps) == {"a": 1, "b": 1, "d": 4, "c": 3}
    with pytest.raises(ValueError, match="25 active weights among 4"):
        apportion(real, 25, caps)
    with pytest.raises(ValueError, match="3 active weights"):
        apportion(real, 3, caps)
    with pytest.raises(ValueError, match="'a'"):
        apportion({"a": math.nan}, 3, {"a": 6})


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=2),
        st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 1.0, 2.5]), min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 0.95),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_global_budget_equals_pruning_one_entry_at_a_time(values, sparsity, floor):
    budget = count_active(sum(map(len, values.values())), sparsity)
    assume(sum(min(floor, len(v)) for v in values.values()) <= budget)
    scores = {name: torch.tensor(v) for name, v in values.items()}
    counts = global_budget(scores, sparsity, floor)
    assert counts == selection.by_one_threshold(values, budget, floor)


def test_global_budget_counts_the_mask_of_one_threshold():
    generator = torch.Generator().manual_seed(2)
    scores = {
        "a": torch.rand(7, 11, generator=generator),
        "b": torch.rand(13, generator=generator).double() * 2,
    }
    counts = global_budget(scores, 0.7)
    threshold = torch.cat([s.double().flatten() for s in scores.values()])
    threshold = threshold.sort(descending=True).values[count_active(90, 0.7) - 1]
    for name, score in scores.items():
        mask = topk_mask(score, counts[name])
        assert torch.equal(mask, score.double() >= threshold)


def test_errors_give_numbers_and_a_fix():
    shapes = {"first": (10, 10), "second": (10, 10)}
    with pytest.raises(ValueError, match=r"leaves 20 of 200.*\['first'\] take 100"):
        erk(shapes, 0.9, dense=["first"])
    with pytest.raises(ValueError, match=r"\['frist'\] are not among \['first'"):
        uniform(shapes, 0.5, dense=["frist"])
    with pytest.raises(TypeError, match="'first'"):
        uniform(shapes, 0.4, dense="first")
    everything = ["first", "second"]
    assert uniform(shapes, 0.0, dense=everything) == {"first": 100, "second": 100}
    with pytest.raises(ValueError, match="the 0 others"):
        uniform(shapes, 0.1, dense=everything)
    with pytest.raises(ValueError, match=r"'v' of shape \(5,\)"):
        erk({"v": (5,)}, 0.5)
    with pytest.raises(ValueError, match="'v'"):
        er({"v": (5,)}, 0.5)
    with pytest.raises(ValueError, match="others need at least 1 each"):
        uniform({str(i): (2, 2) for i in range(9)}, 0.9)
    with pytest.raises(ValueError, match=r"got 1\.0"):
        erk(shapes, 1.0)
    with pytest.raises(ValueError, match=r"no tensors"):
        erk({}, 0.5)
    with pytest.raises(ValueError, match="no entries"):
        uniform({"e": (0, 3)}, 0.5)
    with pytest.raises(ValueError, match="power"):
        erk(shapes, 0.5, power=-1)
    with pytest.raises(ValueError, match="'x': scores hold 1 NaN"):
        global_budget({"x": torch.tensor([math.nan, 1.0])}, 0.5)
    with pytest.raises(ValueError, match="a floor of 3 in 1 tensors needs 3"):
        global_budget({"x": torch.ones(4)}, 0.5, floor=3)


SHAPES = {"a": (7, 11), "b": (5, 3), "c": (13, 2), "d": (3, 3)}


@given(
    chosen=st.dictionaries(st.sampled_from(list(SHAPES)), st.floats(0, 0.99)),
    sparsity=st.floats(0.3, 0.95),
)
def test_by_layer_gives_each_its_own_and_the_rest_to_the_others(chosen, sparsity):
    """Independent: the others' counts are `rest` on a network of the others alone."""
    budget = count_active(sum(map(prod, SHAPES.values())), sparsity)
    own = {n: count_active(prod(SHAPES[n]), s) for n, s in chosen.items()}
    others = {n: s for n, s in SHAPES.items() if n not in chosen}
    left, most = budget - sum(own.values()), sum(map(prod, others.values()))
    for rest in (uniform, erk):
        allocate = by_layer(chosen, rest)
        if not len(others) <= left <= most:
            with pytest.raises(ValueError, match=r"a sparsity of .* fits"):
                allocate(SHAPES, sparsity)
            continue
        counts = allocate(SHAPES, sparsity)
        assert list(counts) == list(SHAPES)
        assert sum(counts.values()) == budget
        assert {n: counts[n] for n in chosen} == own
        if others:
            assert {n: counts[n] for n in others} == rest(others, 1 - left / most)


def test_by_layer_says_which_sparsity_fits():
    """All tensors named: the sparsity that the message gives is then taken."""
    allocate = by_layer({"a": 0.5, "b": 0.0})
    with pytest.raises(ValueError, match=r"keep 75 of 125 .* sparsity of 0\.4 fits"):
        allocate({"a": (10, 10), "b": (5, 5)}, 0.9)
    assert allocate({"a": (10, 10), "b": (5, 5)}, 0.4) == {"a": 50, "b": 25}
    with pytest.raises(ValueError, match=r"a sparsity of 0\.2 \.\.\. 0\.795 fits"):
        by_layer({"a": 0.5})({"a": (10, 8), "b": (10, 12)}, 0.99)
    with pytest.raises(ValueError, match=r"no tensor 'fc' .* did you mean 'fc1'"):
        by_layer({"fc": 0.5})({"fc1": (10, 8)}, 0.5)


@pytest.mark.parametrize("value", [math.inf, math.nan, -0.5])
def test_a_share_is_a_finite_count(value):
    with pytest.raises(ValueError, match="share of 'b' is a finite count, got"):
        apportion({"a": 1.0, "b": value}, 2, {"a": 3, "b": 3})
    assert apportion({"a": 0.0, "b": 2.0}, 2, {"a": 3, "b": 3}) == {"a": 1, "b": 1}
