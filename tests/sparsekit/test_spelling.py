"""What a misspelt name was meant to be."""

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.method import discover
from sparsekit.spelling import choice, meant

NAMES = st.text(alphabet="abcdefgh", min_size=4, max_size=12)


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("rigle", discover(), "rigl"),
        ("RigL", discover(), "rigl"),
        ("SYN_FLOW", discover(), "synflow"),
        ("data-dir", ["data_dir", "date_dir"], "data_dir"),
        ("--jsn", ["--json", "--seed"], "--json"),
        ("", discover(), None),
        ("qqq", discover(), None),
        ("rigl", [], None),
    ],
)
def test_the_nearest_name(word, known, near) -> None:
    assert meant(word, known) == near


@given(known=st.lists(NAMES, min_size=1, unique=True), data=st.data())
def test_a_name_with_two_letters_exchanged_is_found(known, data) -> None:
    name = data.draw(st.sampled_from(known))
    i = data.draw(st.integers(0, len(name) - 2))
    typed = name[:i] + name[i + 1] + name[i] + name[i + 2 :]
    found = meant(typed, known)
    # At least as near as what was meant: two names may be nearer to one another.
    ratios = [difflib.SequenceMatcher(None, n, typed).ratio() for n in (found, name)]
    assert found in known
    assert ratios[0] >= ratios[1] - 1e-12


def test_the_message_says_what_was_refused_what_was_meant_and_what_there_is() -> None:
    assert choice("model 'mpl' is unknown", "mpl", iter(["mlp", "cnn"])) == (
        "model 'mpl' is unknown; did you mean 'mlp'? choose one of mlp, cnn"
    )
    assert choice("no baseline 'x'", "x", ("a", "b"), "there are") == (
        "no baseline 'x'; there are a, b"
    )
    assert choice("'set' has no option 'a'", "a", {}, "it has") == (
        "'set' has no option 'a'; it has none"
    )
