"""A setting that makes no sense is refused by its name, in every method."""

import math
from dataclasses import fields, replace

import pytest

from sparsekit.answer import checked, require_method
from sparsekit.method import discover
from sparsekit.methods.mest import MEST
from sparsekit.methods.rigl import RigL
from sparsekit.testing.subject import factory

BAD = [-1, math.nan, math.inf, "x"]


def settings() -> list[tuple[str, str, object]]:
    found = []
    for name, cls in discover().items():
        method = factory(cls)(0.7)
        for field in fields(method):
            value = getattr(method, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found += [(name, field.name, bad) for bad in BAD]
    return found


@pytest.mark.parametrize(("name", "field", "bad"), settings())
def test_refused_by_name(name: str, field: str, bad: object) -> None:
    method = factory(discover()[name])(0.7)
    with pytest.raises((ValueError, TypeError)) as error:
        replace(method, **{field: bad})
    if not isinstance(bad, str):
        assert field in str(error.value)


@pytest.mark.parametrize(("name", "field"), sorted({s[:2] for s in settings()}))
def test_what_it_has_is_not_refused(name: str, field: str) -> None:
    method = factory(discover()[name])(0.7)
    assert replace(method, **{field: getattr(method, field)}) == method


def test_settings_at_their_limits() -> None:
    for extra in (0, 1):
        assert MEST(0.7, 2, 9, extra=extra).extra == extra
    with pytest.raises(ValueError, match="extra"):
        MEST(0.7, 2, 9, extra=1.001)
    for sparsity in (1, 1.0):
        with pytest.raises(ValueError, match="sparsity"):
            RigL(sparsity, 2, 9)
    assert RigL(0, 2, 9).sparsity == 0
    for fraction in (0, 1):
        assert RigL(0.5, 2, 9, fraction=fraction).fraction == fraction
    with pytest.raises(ValueError, match="every"):
        RigL(0.5, 0, 9)


def test_what_is_no_method_is_said() -> None:
    with pytest.raises(TypeError, match="a class needs its arguments"):
        require_method(RigL)
    with pytest.raises(TypeError, match=r"allocation must be a function.* got 'erk'"):
        require_method(RigL(0.5, 2, 9, allocation="erk"))
    require_method(RigL(0.5, 2, 9))


def test_answers_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"who must return \{name: bool mask\}, got 3"):
        checked("who", 3, {})
    with pytest.raises(ValueError, match=r"one mask a weight; differs in \['w'\]"):
        checked("who", {"w": 1}, {})
