"""The house style: what is drawn, and whether it can be seen on both themes."""

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy import stats

from apps.common import figures


@pytest.fixture
def axes():
    with matplotlib.rc_context(figures.rc()):
        fig, axes = plt.subplots()
        yield axes
        plt.close(fig)


def luminance(colour):
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in to_rgb(colour)
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(a, b):
    """WCAG 2.1 contrast ratio."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("black", "white") == pytest.approx(21)


@pytest.mark.parametrize("background", ["#ffffff", "#121212"])
def test_text_and_lines_can_be_seen_on_both_themes(background):
    assert contrast(figures.INK, background) > 4
    for colour in figures.CYCLE:
        assert contrast(colour, background) > 2


def test_no_two_methods_look_alike():
    looks = [
        tuple(figures.line(name)[key] for key in ("color", "linestyle", "marker"))
        for name in figures.LINES
    ]
    assert len(set(looks)) == len(looks)
    assert all(a != b for a, b in itertools.combinations(figures.CYCLE, 2))


def test_look_of_an_unknown_method_depends_on_its_name_alone():
    first = figures.line("a_method_of_a_reader")
    figures.line("another")
    assert figures.line("a_method_of_a_reader") == first
    assert first["color"] in figures.CYCLE
    assert first["label"] == "a_method_of_a_reader"


def test_band_is_the_t_interval(axes):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 7))
    figures.interval_band(axes, [0.5, 0.9, 0.95], values, **figures.line("rigl"))
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=1))
    assert line.get_label() == "rigl"
    (band,) = axes.collections
    low, high = stats.t.interval(
        0.95, 6, loc=values.mean(axis=1), scale=stats.sem(values, axis=1)
    )
    y = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(sorted({*y.round(9)}), sorted([*low, *high]), atol=1e-8)
    assert to_rgb(band.get_facecolor()[0][:3]) == to_rgb(line.get_color())


def test_one_seed_is_a_line_without_a_band(axes):
    figures.interval_band(axes, [1, 2], [[0.5], [0.7]], label="once")
    assert list(axes.lines[0].get_ydata()) == [0.5, 0.7]
    assert axes.collections[0].get_paths() == []


@pytest.mark.parametrize(
    ("x", "values", "words"),
    [([1, 2], [[0.1]], "one row of seeds"), ([1], [[]], "no values at x = 1")],
)
def test_bad_input_is_named(axes, x, values, words):
    with pytest.raises(ValueError, match=words):
        figures.interval_band(axes, x, values)


def test_figures_have_no_background_and_are_reproducible(tmp_path):
    pictures = []
    for name in ("a.svg", "b.svg"):
        with matplotlib.rc_context(figures.rc()):
            fig, axes = plt.subplots()
            axes.plot([1, 2], [1, 3])
            fig.savefig(tmp_path / name, metadata={"Date": None})
            assert fig.get_facecolor()[3] == 0
            plt.close(fig)
        pictures.append((tmp_path / name).read_text())
    assert pictures[0] == pictures[1]


def test_house_style_outside_a_notebook():
    with matplotlib.rc_context():
        figures.use_house_style()
        assert matplotlib.rcParams["axes.edgecolor"] == figures.INK
