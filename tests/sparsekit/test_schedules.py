import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.schedules import constant, cosine, cubic, exponential, linear

share = st.floats(0, 1)
positive = st.floats(1e-6, 1)
spans = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted)


@given(share, share, spans, positive, positive)
def test_ends_are_exact_and_the_way_is_monotone(start, end, span, low, high):
    begin, finish = span
    schedules = [
        (linear(start, end, begin, finish), start, end, begin),
        (cubic(start, end, begin, finish), start, end, begin),
        (cosine(start, finish, end), start, end, 0),
        (exponential(low, high, begin, finish), low, high, begin),
    ]
    for schedule, first, last, t0 in schedules:
        assert schedule(finish) == schedule(finish + 99) == last
        if t0 < finish:
            assert schedule(t0) == schedule(t0 - 1) == first
        values = [schedule(t) for t in range(t0 - 1, finish + 2, 1 + finish // 50)]
        ordered = sorted(values, reverse=first > last)
        assert values == ordered


def test_a_span_of_no_length_is_a_step():
    for schedule in (
        linear(0.1, 0.9, 10, 10),
        cubic(0.1, 0.9, 10, 10),
        exponential(0.1, 0.9, 10, 10),
    ):
        assert [schedule(t) for t in (9, 10, 11)] == [0.1, 0.9, 0.9]
    assert cosine(0.5, 0, 0.1)(0) == 0.1


def test_values_in_between_by_hand():
    assert cubic(0.2, 0.9, 100, 500)(200) == pytest.approx(0.9 - 0.7 * 27 / 64)
    assert linear(0.2, 0.9, 100, 500)(200) == pytest.approx(0.375)
    assert exponential(1.0, 0.001, 0, 3)(1) == pytest.approx(0.1)
    assert cosine(0.3, 300)(100) == pytest.approx(0.3 * 0.75)
    assert cosine(0.5, 300, 0.1)(100) == pytest.approx(0.1 + 0.4 * 0.75)
    assert constant(0.7)(0) == constant(0.7)(10**9) == 0.7


def test_exponential_multiplies_by_one_factor():
    schedule = exponential(0.8, 0.1, 5, 25)
    ratios = [schedule(t + 1) / schedule(t) for t in range(5, 25)]
    assert ratios == pytest.approx([(0.1 / 0.8) ** (1 / 20)] * 20)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="5 > 4"):
        linear(0, 1, 5, 4)
    with pytest.raises(ValueError, match="end is a finite number, got nan"):
        cubic(0, math.nan, 0, 1)
    with pytest.raises(ValueError, match=r"got 0\.0 and 0\.9"):
        exponential(0.0, 0.9, 0, 1)
    with pytest.raises(ValueError, match="value is a finite"):
        constant(math.inf)


def test_rounding_carries_no_value_past_the_end():
    # 0.001 + (0.009 - 0.001) is 0.009000000000000001, and 1 - 1e-18 is 1.
    assert cubic(0.001, 0.009, 0, 10**6)(10**6 - 1) <= 0.009
    assert cubic(0.009, 0.001, 0, 10**6)(10**6 - 1) >= 0.001


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(value):
    for schedule, names in (
        (linear, ("start", "end", "begin", "finish")),
        (exponential, ("start", "end", "begin", "finish")),
        (cubic, ("start", "end", "begin", "finish")),
    ):
        for name in names:
            given = {"start": 1.0, "end": 2.0, "begin": 0.0, "finish": 5.0, name: value}
            named = {"begin", "finish"} if name in ("begin", "finish") else {name}
            with pytest.raises(
                ValueError, match=f"({'|'.join(named)}) is a finite num"
            ):
                schedule(**given)
    with pytest.raises(ValueError, match="value is a finite number"):
        constant(value)


def test_signs_of_an_exponential():
    assert exponential(-1.0, -4.0, 0, 2)(1) == pytest.approx(-2)
    for start, end in ((1.0, -1.0), (0.0, 1.0), (1.0, 0.0), (-2.0, 0.5)):
        with pytest.raises(ValueError, match="of one sign and not 0"):
            exponential(start, end, 0, 1)
    assert exponential(0.25, 0.5, 0, 1)(0) == 0.25


def test_before_the_first_and_after_the_last_step():
    for schedule in (linear, cubic, exponential):
        made = schedule(1.0, 0.25, 2, 6)
        assert [made(step) for step in (-5, 0, 2)] == [1.0] * 3
        assert [made(step) for step in (6, 7, 100)] == [0.25] * 3
        assert 0.25 < made(2.5) < 1.0
        assert 0.25 < made(5.5) < 1.0
        at_once = schedule(1.0, 0.25, 3, 3)
        assert [at_once(step) for step in (2, 3, 4)] == [1.0, 0.25, 0.25]
        with pytest.raises(ValueError, match="begin <= finish is needed, got 4 > 3"):
            schedule(1.0, 0.25, 4, 3)
