"""Selections: properties of all policies, budgets by a slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.data_pruning.selection import (
    POLICIES,
    bottom,
    random,
    select,
    strata,
    top,
    window,
)
from tests.reference.data_selection import strata_budgets, stratum

values = st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=40)
BY_SCORES = ["top", "bottom", "window", "random", "strata"]


def options(policy, n_examples):
    """What a policy needs besides the scores."""
    generator = torch.Generator().manual_seed(n_examples)
    if policy == "beta":
        return {"mean_p": torch.rand(n_examples, generator=generator)}
    if policy in ("herding", "k_center"):
        return {"features": torch.randn(n_examples, 3, generator=generator)}
    if policy == "d2":
        features = torch.randn(n_examples, 3, generator=generator)
        return {"features": features, "k": min(2, n_examples - 1)}
    return {"drop_hardest": 0.0} if policy == "window" else {}


@pytest.mark.filterwarnings("ignore:'top' keeps")
@pytest.mark.parametrize("policy", POLICIES)
@given(scores=values, share=st.floats(0, 1), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_exactly_n_sorted_distinct_and_repeatable(policy, scores, share, seed):
    scores = torch.tensor(scores).abs()
    if policy == "d2" and len(scores) < 2:
        return
    n = max(1, round(share * len(scores)))
    kept = select(scores, n, policy, seed=seed, **options(policy, len(scores)))
    assert len(kept) == n
    assert kept.dtype == torch.int64
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert 0 <= int(kept[0]) <= int(kept[-1]) < len(scores)
    again = select(scores, n, policy, seed=seed, **options(policy, len(scores)))
    assert torch.equal(kept, again)
    everything = select(scores, 1.0, policy, seed=seed, **options(policy, len(scores)))
    assert torch.equal(everything, torch.arange(len(scores)))


@pytest.mark.filterwarnings("ignore:'top' keeps")
@pytest.mark.parametrize(
    "policy", ["top", "bottom", "window", "d2", "herding", "k_center"]
)
@given(order=st.permutations(range(11)), n=st.integers(1, 11))
@settings(max_examples=30, deadline=None)
def test_a_permuted_input_permutes_the_output(policy, order, n):
    scores = torch.randperm(11, generator=torch.Generator().manual_seed(1)).float()
    given = options(policy, 11)
    order = torch.tensor(order)
    kept = select(scores, n, policy, **given)
    moved = {k: v[order] if torch.is_tensor(v) else v for k, v in given.items()}
    found = select(scores[order], n, policy, **moved)
    assert torch.equal(order[found].sort().values, kept)


@given(scores=values, data=st.data())
def test_top_bottom_and_window_against_a_sort(scores, data):
    n = data.draw(st.integers(0, len(scores)))
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    tensor = torch.tensor(scores)
    assert top(tensor, n).tolist() == sorted(order[:n])
    both = torch.cat([top(tensor, n), bottom(tensor, len(scores) - n)])
    assert both.sort().values.tolist() == list(range(len(scores)))
    n_dropped = data.draw(st.integers(0, min(len(scores) - n, len(scores) - 1)))
    share = n_dropped / len(scores)
    expected = sorted(order[n_dropped : n_dropped + n])
    assert window(tensor, n, drop_hardest=share).tolist() == expected
    rest = len(scores) - n
    if rest < len(scores):  # leaving out all others = the easiest
        low = window(tensor, n, drop_hardest=rest / len(scores))
        assert torch.equal(low, bottom(tensor, n))


@given(scores=values, data=st.data())
@settings(deadline=None)
def test_strata_by_the_reference(scores, data):
    n = data.draw(st.integers(0, len(scores)))
    n_strata = data.draw(st.integers(1, 7))
    kept = strata(
        torch.tensor(scores),
        n,
        n_strata=n_strata,
        generator=torch.Generator().manual_seed(0),
    )
    low, high = min(scores), max(scores)
    level = [0 if low == high else stratum(v, low, high, n_strata) for v in scores]
    sizes = [level.count(i) for i in range(n_strata)]
    taken = [[level[i] for i in kept.tolist()].count(i) for i in range(n_strata)]
    assert taken == strata_budgets(sizes, n)
    assert sum(taken) == n


def test_strata_by_hand_with_an_empty_and_a_small_stratum():
    scores = torch.tensor([0.0, 1, 2] + [10.0] + [39.0] * 7 + [40.0])
    # 4 strata of width 10: 3, 1, 0 and 8 examples; 7 to keep: 1, then 3, then 3
    kept = strata(scores, 7, n_strata=4, generator=torch.Generator())
    assert (kept < 3).sum() == 3
    assert 3 in kept
    assert (kept > 3).sum() == 3


def test_strata_leaves_the_hardest_out_and_takes_infinity_last():
    scores = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, torch.inf, torch.inf])
    g = torch.Generator()
    assert strata(scores, 8, drop_hardest=0.2, generator=g).tolist() == list(range(8))
    with pytest.raises(ValueError, match=r"leaves 8 of 10 examples, 9 are to be kept"):
        strata(scores, 9, drop_hardest=0.2, generator=g)
    one_each = strata(scores, 4, n_strata=2, generator=g)
    assert (one_each >= 4).sum() == 2  # 4 ... 7 and the infinite ones are one stratum
    flat = strata(torch.full((5,), torch.inf), 3, generator=g)
    assert len(flat) == 3


def test_random_is_uniform():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(2000):
        counts[random(torch.zeros(5), 2, generator=generator)] += 1
    assert (counts / 2000 - 0.4).abs().max() < 0.04  # 3.6 standard errors


@pytest.mark.parametrize("policy", BY_SCORES)
@pytest.mark.filterwarnings("ignore:'top' keeps")
def test_per_class_keeps_shares_and_is_the_policy_within_a_class(policy):
    labels = np.array(["cat"] * 7 + ["dog"] * 3 + ["eel"] * 13)
    scores = torch.randperm(23, generator=torch.Generator().manual_seed(2)).float()
    extra = options(policy, 23)
    kept = select(scores, 11, policy, labels=labels, per_class=True, **extra)
    # 11 * 7 / 23 = 3.35, 11 * 3 / 23 = 1.43, 11 * 13 / 23 = 6.22: the rest to the dogs
    names, counts = np.unique(labels[kept.numpy()], return_counts=True)
    assert dict(zip(names, counts.tolist(), strict=True)) == {
        "cat": 3,
        "dog": 2,
        "eel": 6,
    }
    if policy == "top":
        for name, count in (("cat", 3), ("dog", 2), ("eel", 6)):
            own = np.flatnonzero(labels == name)
            best = own[np.argsort(-scores.numpy()[own])][:count]
            assert set(best) <= set(kept.tolist())


def test_per_class_cuts_options_with_a_row_an_example():
    labels = torch.tensor([0, 1] * 6)
    x = torch.arange(12.0).unsqueeze(1)
    kept = select(
        torch.zeros(12), 2, "herding", labels=labels, per_class=True, features=x
    )
    assert kept.tolist() == [4, 5]  # 0, 2, ..., 10 has mean 5: 4 is the first nearest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0}, "keep is 1 ... 5 examples, got 0"),
        ({"keep": 6}, "keep is 1 ... 5 examples, got 6"),
        ({"keep": 0.0}, "keep is a share"),
        ({"keep": 1.5}, "keep is a share"),
        ({"keep": True}, "keep is a share"),
        ({"keep": "all"}, "keep is a share"),
        ({"scores": torch.zeros(0)}, "scores are"),
        ({"scores": torch.zeros(2, 2)}, "scores are"),
        (
            {"scores": torch.tensor([1, torch.nan])},
            "1 of 2 scores are NaN, .* example 1",
        ),
        ({"policy": "best"}, "no policy 'best'; .*choose one of top, bottom"),
        ({"per_class": True}, "per_class needs labels"),
        ({"per_class": True, "labels": torch.zeros(4)}, "per_class needs labels"),
        ({"per_class": True, "labels": torch.arange(5)}, "5 classes, but 3 examples"),
        (
            {"policy": lambda s, n: torch.tensor([0, 0, 1])},
            "returned 2 examples, not 3",
        ),
        ({"policy": lambda s, n: torch.tensor([0, 1, 5])}, "outside 0 ... 4"),
        ({"policy": "window", "drop_hardest": 1.0}, "a share in"),
        ({"policy": "strata", "n_strata": 0}, "n_strata is at least 1"),
    ],
)
def test_refused(change, message):
    arguments = {"scores": torch.arange(5.0), "keep": 3, **change}
    with pytest.raises(ValueError, match=message):
        select(**arguments)


def test_a_class_that_fails_is_named():
    labels = np.array(["a"] * 9 + ["b"])
    with pytest.raises(ValueError, match="in class 'b': drop_hardest"):
        select(torch.arange(10.0), 3, "window", labels=labels, per_class=True,
               drop_hardest=0.6)  # fmt: skip


def test_top_warns_below_a_half_and_unknown_options_are_errors():
    with pytest.warns(UserWarning, match="'top' keeps 4 of 10"):
        select(torch.arange(10.0), 0.4, "top")
    with pytest.raises(TypeError, match="n_strata"):
        select(torch.arange(10.0), 0.4, "random", n_strata=3)


def test_own_policies_get_a_generator_if_they_ask():
    def own(scores, n, *, generator, shift=0):
        order = torch.randperm(len(scores), generator=generator)
        return (order[:n] + shift) % len(scores)

    def kept(seed, shift=0):
        return select(torch.zeros(50), 7, own, seed=seed, shift=shift).tolist()

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)
    assert kept(1, shift=1) != kept(1)


def test_keep_smallest_is_another_selection():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert select(scores, 2, "top").tolist() == [1, 3]
    assert select(-scores, 2, "top").tolist() == [0, 2]  # the mutant


def test_scores_without_a_finite_one_are_one_stratum():
    """Then the draw is uniform: nobody is preferred."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(6)
    for _ in range(600):
        counts[strata(torch.full((6,), torch.inf), 3, generator=generator)] += 1
    assert (counts - 300).abs().max() < 60  # 5 standard deviations
    same = torch.full((40,), 2.5)
    assert len(strata(same, 13, n_strata=4, generator=generator)) == 13


def test_infinite_scores_are_a_stratum_beside_equal_finite_ones():
    """Just beyond the finite ones: of two strata, two from each."""
    scores = torch.cat([torch.full((30,), 2.0), torch.full((4,), torch.inf)])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        kept = strata(scores, 4, n_strata=2, generator=generator)
        assert int((kept >= 30).sum()) == 2


@pytest.mark.parametrize(("n", "warns"), [(4, True), (5, False)])
def test_top_warns_below_a_half_only_and_others_never(n, warns, recwarn):
    select(torch.arange(10.0), n, "top")
    assert bool(len(recwarn)) is warns
    recwarn.clear()
    for policy in ("bottom", "random", "strata", "window"):
        select(torch.arange(10.0), n, policy)
    assert not len(recwarn)


def test_numbers_and_shares_to_keep():
    scores = torch.arange(10.0)
    for keep, n in ((1, 1), (10, 10), (np.int64(3), 3), (1.0, 10), (np.float32(0.5), 5),
                    (0.05, 1), (1e-9, 1)):  # fmt: skip
        assert len(select(scores, keep)) == n
    for keep in (np.bool_(True), None, [3], 1 + 1e-9, -0.1):
        with pytest.raises(ValueError, match="keep is a share"):
            select(scores, keep)
    assert len(select(scores.bool(), 3, "random")) == 3  # nothing to be NaN
    assert select([0.0, 3.0, 1.0], 1, "bottom").tolist() == [0]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_window_and_strata_leave_the_hardest_out(share):
    scores = torch.arange(10.0)
    left = 10 - round(share * 10)
    for policy in ("window", "strata"):
        kept = select(scores, left, policy, drop_hardest=share)
        assert kept.tolist() == list(range(left))
        if left < 10:
            with pytest.raises(ValueError, match=f"leaves {left} of 10 .* {left + 1} "):
                select(scores, left + 1, policy, drop_hardest=share)
    for wrong in (-0.1, 1.0, torch.nan):
        with pytest.raises(ValueError, match=r"a share in \[0, 1\)"):
            select(scores, 1, "window", drop_hardest=wrong)


def test_only_options_with_a_row_an_example_are_cut_to_a_class():
    seen = []

    def own(scores, n, *, rows, table, other, number, text):
        seen.append((rows, table, other, number, text))
        return torch.arange(n)

    labels = np.array(["a", "b"] * 3)
    rows, table = torch.arange(6), np.arange(12).reshape(6, 2)
    other, number = torch.arange(5), torch.tensor(7)
    select(torch.zeros(6), 4, own, labels=labels, per_class=True, rows=rows,
           table=table, other=other, number=number, text="abcdef")  # fmt: skip
    assert [call[0].tolist() for call in seen] == [[0, 2, 4], [1, 3, 5]]
    assert [call[1][:, 0].tolist() for call in seen] == [[0, 4, 8], [2, 6, 10]]
    assert all(call[2] is other and call[3] is number for call in seen)
    assert {call[4] for call in seen} == {"abcdef"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [([0, 1], "returned 2 examples, not 3"), ([0, 1, 2, 3], "returned 4"),
     ([0, 1, 1], "returned 2"), ([0, 1, 2, 2], "returned 3 examples, not 3"),
     ([-1, 0, 1], "outside 0 ... 4"), ([0, 1, 5], "outside 0 ... 4")],
)  # fmt: skip
def test_answers_of_own_policies_are_checked(answer, message):
    with pytest.raises(ValueError, match=message):
        select(torch.zeros(5), 3, lambda s, n: torch.tensor(answer))
    assert select(torch.zeros(5), 3, lambda s, n: torch.tensor([4, 0, 2])).tolist() == [
        0, 2, 4,
    ]  # fmt: skip


def test_scores_of_a_graph_are_read_and_left_alone():
    scores = torch.arange(6.0, requires_grad=True)
    kept = select(scores * 2, 3, "top")
    assert kept.tolist() == [3, 4, 5]
    assert scores.grad is None


def test_the_warning_points_to_the_call():
    with pytest.warns(UserWarning, match="'top' keeps") as found:
        select(torch.arange(10.0), 2, "top")
    assert found[0].filename == __file__
