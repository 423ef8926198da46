"""Strict reading: the type that is asked for, or an error in words."""

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from apps.common.toml import convert, deep_merge, read_toml, scalar, spelled

texts = st.text(st.characters(codec="utf-8"), max_size=7)
keys = st.sampled_from("abc") | texts  # often the same
leaves = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
    | texts
)
tables = st.recursive(
    st.dictionaries(keys, leaves, max_size=3),
    lambda inner: st.dictionaries(keys, leaves | inner, max_size=3),
    max_leaves=7,
)


@given(tables)
def test_a_file_reads_as_it_was_written(tmp_path_factory, table) -> None:
    path = tmp_path_factory.getbasetemp() / "table.toml"
    path.write_text(tomli_w.dumps(table), "utf-8", newline="\n")
    assert read_toml(path) == table


def test_a_byte_order_mark_and_windows_line_ends_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbflr = 0.5\r\n[model]\r\ndim = 3\r\n")
    assert read_toml(path) == {"lr": 0.5, "model": {"dim": 3}}


@pytest.mark.parametrize(
    "content",
    [b"lr =", b"\xff\xfe", b"a = " + b"[" * 10**5, b"a = 1" + b"0" * 5000, b"a=1\na=2",
     b"a." * 10**5 + b"b = 1", b'"a" . ' * 10**5 + b"b = 1", b"a = 1\n" * 200_000],
    ids=["syntax", "not UTF-8", "deep nesting", "5,000 digits", "key twice",
         "long name", "long quoted name", "too large"],
)  # fmt: skip
def test_a_hostile_file_is_a_named_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"hostile\.toml is not valid TOML: ."):
        read_toml(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.toml"):
        read_toml(tmp_path / "absent.toml")


def leaves_of(table, prefix=()) -> dict:
    """Values by their path; tables themselves are none."""
    found = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= leaves_of(value, (*prefix, key))
        else:
            found[*prefix, key] = value
    return found


@given(tables, tables)
def test_merging_keeps_what_the_upper_table_does_not_say(below, above) -> None:
    upper, merged = leaves_of(above), leaves_of(deep_merge(below, above))
    for path, value in merged.items():
        assert value == upper.get(path, leaves_of(below).get(path))
    assert set(upper) <= set(merged)
    apart = {f"other-{key}": value for key, value in above.items()}
    assert deep_merge({"t": below}, {"t": apart}) == {"t": {**below, **apart}}
    assert deep_merge(below, {}) == below
    assert deep_merge({}, above) == above


def test_a_table_replaces_a_value_and_a_value_a_table() -> None:
    assert deep_merge({"a": 5, "b": 1}, {"a": {"x": 2}}) == {"a": {"x": 2}, "b": 1}
    assert deep_merge({"a": {"x": 2}}, {"a": 5}) == {"a": 5}
    assert deep_merge({"a": None}, {"a": {"x": 2}}) == {"a": {"x": 2}}


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        (True, bool, True),
        ("x", str, "x"),
        ("a/b", Path, Path("a/b")),
        ("a", Literal["a", "b"], "a"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "x"], tuple[int, str], (1, "x")),
        ([1, 2], list[float], [1.0, 2.0]),
        ([[1], []], tuple[tuple[int, ...], ...], ((1,), ())),
        ({"k": 1}, dict[str, float], {"k": 1.0}),
        ("x", str | None, "x"),
        (1, float | int, 1),
        (1, int | float, 1),
        (1, float | str, 1.0),
        (True, int | bool, True),
        ([{}], Any, [{}]),
    ],
)
def test_values_in_the_fields_type(value, hint, result) -> None:
    found = convert(value, hint)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("3", int, "an integer"),
        (True, int, "an integer"),
        (True, float, "a number"),
        (3.0, int, "an integer"),
        (10**400, float, "a number"),
        (1, bool, "true or false"),
        (1, str, "text"),
        ("", Path, r"a path \(text\)"),
        ("c", Literal["a", "b"], "one of 'a', 'b'"),
        (True, Literal[1, 2], "one of 1, 2"),
        (3, tuple[int, ...], "a list of integers"),
        ("ab", tuple[str, ...], "a list of texts"),
        ([1, "x"], tuple[int, ...], "a list of integers"),
        ([1], tuple[int, str], "a list of 2: an integer, text"),
        ({"k": "x"}, dict[str, int], "a table whose k is an integer"),
        ([], dict[str, int], "a table of values, each an integer"),
        ([], int | str | None, "an integer or text"),
        ([[1], 2], list[list[int]], "a list of values, each a list of integers"),
    ],
)
def test_another_type_is_an_error_in_words(value, hint, words) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        convert(value, hint)


@given(leaves)
def test_a_word_of_the_command_line_is_read_as_toml_reads_it(value) -> None:
    text = tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
    if isinstance(value, str):
        assert isinstance(scalar(value), str | int | float | bool)
    else:
        found = scalar(text)
        assert type(found) is type(value)
        assert found == value


@pytest.mark.parametrize(
    "word",
    ["75%", "2 epochs", "erk", "", "[1]", "{a=1}", "1\nb = 2", "'x'", "2020-01-01",
     "9" * 5000, "[" * 9999],
)  # fmt: skip
def test_any_other_word_stays_text(word: str) -> None:
    assert scalar(word) == word


def test_special_floats_are_numbers() -> None:
    assert scalar("-inf") == -math.inf
    assert math.isnan(scalar("nan"))
    assert scalar("1e-3") == tomllib.loads("x = 1e-3")["x"]


def test_types_in_words() -> None:
    assert spelled(dict[str, int | str]) == "a table of values, each an integer or text"
    assert spelled(tuple[int, ...]) == "a list of integers"
    assert spelled(bytes) == "bytes"
