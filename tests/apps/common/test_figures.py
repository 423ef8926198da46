"""The house style: what is drawn, and whether it can be seen on both themes."""

import itertools
import re
from pathlib import Path

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


# What a colour looks like to those who lack one of the three kinds of cones: linear
# RGB, Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = [
    [0.4124, 0.3576, 0.1805],
    [0.2126, 0.7152, 0.0722],
    [0.0193, 0.1192, 0.9505],
]
PAGES = [("#ffffff", 1.0), ("#121212", figures.DARK_BRIGHTNESS)]


def shown(colour, brightness):
    return np.minimum(1, brightness * np.array(to_rgb(colour)))


def cielab(colour, vision):
    """CIE L*a*b* of a colour as somebody sees it, white D65."""
    rgb = np.array(colour)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(vision) @ linear, 0, 1)
    x, y, z = np.array(XYZ) @ seen / (0.9505, 1, 1.089)
    fx, fy, fz = (
        np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)
    )
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize(("page", "brightness"), PAGES)
def test_text_and_lines_can_be_seen_on_both_pages(page, brightness):
    assert contrast(shown(figures.INK, brightness), page) >= 4.5
    for colour in figures.CYCLE:
        assert contrast(shown(colour, brightness), page) >= 3


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("brightness", [brightness for _, brightness in PAGES])
def test_colours_are_told_apart_with_any_colour_vision(vision, brightness):
    for a, b in itertools.combinations([*figures.CYCLE, figures.INK], 2):
        one, other = (cielab(shown(c, brightness), VISION[vision]) for c in (a, b))
        assert np.linalg.norm(one - other) > 11, (a, b)  # 2.3: just noticeable


def test_white_and_red_are_where_cielab_has_them():
    assert cielab((1, 1, 1), VISION["all cones"]) == pytest.approx([100, 0, 0], abs=0.1)
    assert cielab((1, 0, 0), VISION["all cones"]) == pytest.approx(
        [53.2, 80.1, 67.2], abs=0.2
    )


def test_the_style_sheet_brightens_figures_by_as_much():
    sheet = (Path(__file__).parents[3] / "book" / "_static" / "book.css").read_text()
    factors = re.findall(r"filter: brightness\(([\d.]+)\)", sheet)
    assert [float(factor) for factor in factors] == [figures.DARK_BRIGHTNESS]


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
