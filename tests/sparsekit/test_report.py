import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sparsekit.accounting import forward_flops
from sparsekit.masks import drop_and_grow, topk_mask
from sparsekit.report import (
    History,
    binomial,
    degree_histogram,
    exploration_curve,
    mask_picture,
    sparsity_per_layer,
    table,
)


@pytest.fixture
def sparsified():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(31, 17), nn.ReLU(), nn.Linear(17, 5))
    alive = {
        "0.weight": torch.rand(17, 31, generator=generator) < 0.1,
        "2.weight": torch.rand(5, 17, generator=generator) < 0.5,
    }
    return SimpleNamespace(model=model, alive=alive, step=0)


@pytest.fixture(autouse=True)
def _close_figures():
    import matplotlib

    matplotlib.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_table_of_a_sparsifier_equals_that_of_its_model_and_masks(sparsified):
    x = torch.zeros(1, 31)
    ours = table(sparsified, x)
    assert ours == table(sparsified.model, x, masks=sparsified.alive)
    active = [int(m.sum()) for m in sparsified.alive.values()]
    assert [row.active for row in ours.rows] == [active[0], 17, active[1], 5]
    flops = [row.sparse_flops for row in ours.rows]
    assert flops == [2 * active[0], 0, 2 * active[1], 0]


def test_table_text_ends_in_totals(sparsified):
    lines = str(table(sparsified, torch.zeros(1, 31))).splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    active = sum(int(m.sum()) for m in sparsified.alive.values()) + 22
    numel = 17 * 31 + 5 * 17 + 22
    dense = forward_flops(sparsified.model, torch.zeros(1, 31)).total
    total = lines[-1].split()
    assert total[:4] == ["total", f"{active}", f"{numel}", f"{1 - active / numel:.4f}"]
    assert total[4:6] == [f"{2 * (active - 22)}", f"{dense:,}"]
    assert total[6] == f"{4 * numel:,}"
    assert "FLOPs" not in str(table(sparsified))


def test_table_total_includes_products_between_activations():
    model = nn.TransformerEncoderLayer(6, 2, 17, batch_first=True)
    x = torch.zeros(3, 5, 6)
    text = str(table(model, x, masks={}))
    flops = forward_flops(model, x)
    assert text.splitlines()[-2].split()[:4] == [
        *["between", "activations"],
        *[f"{flops.other:,}"] * 2,
    ]
    assert text.splitlines()[-1].split()[4] == f"{flops.total:,}"


def test_history_by_hand():
    mask = lambda *on: torch.tensor([i in on for i in range(4)])  # noqa: E731
    thing = SimpleNamespace(alive={"a": mask(0, 1), "b": mask(0)}, step=0)
    history = History(thing)
    history.record()
    for step, a in ((10, mask(0, 2)), (20, mask(1, 3))):
        thing.step = step
        thing.alive["a"].copy_(a)  # masks change in place
        history.record()
    assert history.to_dict() == {
        "step": [0, 10, 20],
        "density": [3 / 8] * 3,
        "exploration": [3 / 8, 4 / 8, 5 / 8],
        "moved": [0, 1, 2],
        "survived": [0, 0, 0],
        "exploration/a": [0.5, 0.75, 1.0],
        "exploration/b": [0.25] * 3,
    }


def test_history_uses_what_the_sparsifier_has_seen():
    thing = SimpleNamespace(
        alive={"a": torch.tensor([True, False, False])},
        visited={"a": torch.tensor([False, True, False])},
    )
    history = History(thing)
    history.record()
    assert history.exploration == [2 / 3]
    assert history.step == [0]


def test_history_equals_a_set_union_over_random_moves(sparsified):
    history, seen = History(sparsified), set()
    before, grown = None, set()
    for step in range(20):
        sparsified.step = step
        history.record()
        now = {
            (n, *at) for n, m in sparsified.alive.items() for at in m.nonzero().tolist()
        }
        seen |= now
        assert history.survived[-1] == len(grown & now)
        before, grown = now, now - (now if before is None else before)
        for name, mask in sparsified.alive.items():
            noise = torch.rand(
                mask.shape, generator=torch.Generator().manual_seed(step)
            )
            sparsified.alive[name] = drop_and_grow(
                mask, noise, 1 - noise, 3, exclude_dropped=True
            )
        assert history.exploration[-1] == len(seen) / (17 * 31 + 5 * 17)
    assert history.moved[1:] == [6] * 19
    assert 0 < sum(history.survived) < sum(history.moved)


def test_binomial_is_scipys():
    for trials, probability in ((1, 0.5), (13, 0.1), (211, 0.93), (5, 0.0), (5, 1.0)):
        expected = stats.binom.pmf(np.arange(trials + 1), trials, probability)
        np.testing.assert_allclose(binomial(trials, probability), expected, atol=1e-12)


def labelled(ax):
    return all((ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))


def test_bars_have_the_sparsity_of_each_layer(sparsified):
    ax = sparsity_per_layer(sparsified)
    widths = [bar.get_width() for bar in ax.patches]
    expected = [100 * (1 - m.float().mean().item()) for m in sparsified.alive.values()]
    assert widths == pytest.approx(expected)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(sparsified.alive)
    assert ax.get_title()
    assert "%" in ax.get_xlabel()
    again = sparsity_per_layer(sparsified.alive, ax=ax)  # masks instead
    assert again is ax


def test_mask_picture_is_white_where_absent():
    mask = topk_mask(
        torch.rand(7, 3, 2, 2, generator=torch.Generator().manual_seed(0)), 9
    )
    ax = mask_picture(mask, "conv")
    (image,) = ax.get_images()
    colors = image.to_rgba(image.get_array(), bytes=True)[..., :3]
    assert colors.shape == (7, 12, 3)
    white = (colors == 255).all(-1)
    assert np.array_equal(white, ~mask.reshape(7, 12).numpy())
    assert labelled(ax)


def test_degrees_are_counted_on_both_sides():
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0] = True  # in-degrees 5, 0, 0; out-degrees all 1
    ax = degree_histogram(mask, "fc")
    bars = {
        (round(bar.get_x() + bar.get_width() / 2), round(bar.get_height(), 4))
        for bar in ax.patches
    }
    assert bars == {(0, 66.6667), (5, 33.3333), (1, 100.0)}
    in_line, out_line = ax.get_lines()
    law = 100 * stats.binom.pmf(in_line.get_xdata(), 5, 1 / 3)
    np.testing.assert_allclose(in_line.get_ydata(), law, atol=1e-4)
    law = 100 * stats.binom.pmf(out_line.get_xdata(), 3, 1 / 3)
    np.testing.assert_allclose(out_line.get_ydata(), law, atol=1e-4)
    assert labelled(ax)


def test_exploration_curve_draws_the_history(sparsified):
    history = History(sparsified)
    history.record()
    history.record()
    ax = exploration_curve(history)
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert list(lines) == ["0.weight", "2.weight", "all", "density, all"]
    assert list(lines["all"]) == history.exploration
    assert labelled(ax)


def test_importing_reports_does_not_import_matplotlib():
    code = "import sys, sparsekit.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_model_without_masks_is_refused():
    with pytest.raises(ValueError, match="Linear has no masks"):
        table(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        mask_picture(torch.ones(2, 2))


def test_bars_say_their_numbers_and_the_line_that_of_all():
    """Inside of a bar that has room for it, in white; else beside it."""
    masks = {
        "nearly dense": torch.arange(8).view(2, 4) >= 1,  # 12.5 %
        "sparse": torch.arange(56).view(8, 7) >= 49,  # 87.5 %
    }
    ax = sparsity_per_layer(masks)
    beside, inside = ax.texts
    assert [t.get_text() for t in ax.texts] == ["12.5", "87.5"]
    assert [t.xy for t in ax.texts] == [(12.5, 0), (87.5, 1)]
    assert (beside.get_ha(), inside.get_ha()) == ("left", "right")
    assert beside.xyann[0] > 0 > inside.xyann[0]
    assert inside.get_color() == "white" != beside.get_color()
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [78.125, 78.125]  # 50 of 64
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == "all: 78.1 %"
    assert ax.get_xlim() == (0, 100)
    top, bottom = (ax.transData.transform((0, i))[1] for i in range(2))
    assert top > bottom  # the first layer is on top
    assert ax.get_legend().get_frame_on() is False


def test_a_picture_grows_with_its_layers():
    masks = {f"{i}": torch.ones(2, 2, dtype=torch.bool) for i in range(20)}
    small = sparsity_per_layer({"0": masks["0"]}).figure.get_figheight()
    large = sparsity_per_layer(masks).figure.get_figheight()
    assert 1 < small < 2
    assert (large - small) / 19 > 0.2  # inches a layer: the names stay apart


@pytest.mark.parametrize(
    ("shape", "inputs", "rows", "columns"),
    [((6,), "input x kernel", 1, 6), ((2, 3), "input", 2, 3),
     ((2, 3, 4), "input x kernel", 2, 12)],
)  # fmt: skip
def test_titles_and_axes_of_mask_pictures(shape, inputs, rows, columns):
    mask = (torch.arange(torch.Size(shape).numel()) % 3 == 0).view(shape)
    ax = mask_picture(mask)
    assert ax.get_images()[0].get_array().shape == (rows, columns)
    assert ax.get_title() == "Mask: 33.3 % alive"
    assert ax.get_xlabel() == f"{inputs} (index)"
    assert mask_picture(mask, "fc", ax=ax) is ax
    assert ax.get_title() == "fc: 33.3 % alive"


@pytest.mark.parametrize(
    "mask", [torch.tensor(True), torch.zeros(0, 3, dtype=torch.bool), torch.ones(3)]
)
def test_what_is_no_mask_has_no_picture(mask):
    with pytest.raises(ValueError, match="a mask is bool with at least one entry"):
        degree_histogram(mask)


def test_histogram_and_curve_say_what_they_show():
    ax = degree_histogram(torch.eye(4, dtype=torch.bool))
    assert ax.get_title() == "Degrees"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "in-degree of outputs, random mask", "out-degree of inputs, random mask",
        "in-degree of outputs", "out-degree of inputs",
    ]  # fmt: skip
    thing = SimpleNamespace(alive={"a": torch.tensor([True, False])})
    history = History(thing)
    history.record()
    history.record()
    ax = exploration_curve(history)
    low, high = ax.get_ylim()
    assert low == 0
    assert 1 < high < 1.1  # a share
    for line in ax.get_lines():
        assert list(line.get_xdata()) == [0, 1]
    thin, *_, density = ax.get_lines()
    assert thin.get_linewidth() < ax.get_lines()[1].get_linewidth()
    assert density.get_linestyle() == ":"
    assert list(density.get_ydata()) == history.density


def test_no_masks_are_refused_by_name():
    for source in ({}, SimpleNamespace(alive={}), SimpleNamespace(alive=[1])):
        with pytest.raises(ValueError, match="has no masks: give a sparsifier"):
            sparsity_per_layer(source)


def test_a_label_at_the_edge_and_its_size(sparsified):
    """Above 15 % is room enough; the text is small, and apart from its bar's end."""
    masks = {
        "less": torch.arange(200).view(10, 20) >= 29,  # 14.5 %
        "more": torch.arange(200).view(10, 20) >= 31,  # 15.5 %
    }
    ax = sparsity_per_layer(masks)
    assert [t.get_ha() for t in ax.texts] == ["left", "right"]
    assert [t.get_va() for t in ax.texts] == ["center", "center"]
    assert [t.xyann for t in ax.texts] == [(4, 0), (-4, 0)]
    small = ax.texts[0].get_fontsize()
    assert small < ax.xaxis.label.get_fontsize()
    assert [bar.get_y() + bar.get_height() / 2 for bar in ax.patches] == [0, 1]
    (line,) = ax.get_lines()
    assert line.get_linestyle() == "--"


def test_the_legend_stands_beside_the_bars_and_hides_nothing(sparsified):
    ax = sparsity_per_layer(sparsified)
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    legend = ax.get_legend().get_window_extent(renderer)
    inside = ax.get_window_extent(renderer)
    assert 0 <= legend.x0 - inside.x1 < 20  # pixels
    assert 0 <= inside.y1 - legend.y1 < 20
    assert legend.x1 <= ax.figure.get_window_extent(renderer).x1


def test_expectations_of_a_histogram_are_drawn_where_they_can_be_seen():
    """Where the law is above a hundredth of a percent."""
    mask = topk_mask(
        torch.rand(40, 60, generator=torch.Generator().manual_seed(0)), 240
    )
    ax = degree_histogram(mask, "fc")
    assert ax.get_title() == "Degrees of fc"
    for line, trials in zip(ax.get_lines(), (60, 40), strict=True):
        law = 100 * stats.binom.pmf(np.arange(trials + 1), trials, 0.1)
        assert line.get_xdata().tolist() == np.flatnonzero(law > 0.01).tolist()
        np.testing.assert_allclose(line.get_ydata(), law[line.get_xdata()], rtol=1e-9)
    heights = [bar.get_height() for bar in ax.patches]
    assert sum(heights) == pytest.approx(200)  # two sides of 100 %
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([0.9] * len(widths))
    assert {bar.get_alpha() for bar in ax.patches} == {0.5}  # both can be seen
    colors = {bar.get_facecolor()[:3] for bar in ax.patches}
    lines = {matplotlib_rgb(line.get_color()) for line in ax.get_lines()}
    assert colors == lines
    assert len(colors) == 2


def matplotlib_rgb(color):
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def test_a_history_keeps_what_was_though_masks_change_in_place():
    alive = {"w": torch.tensor([True, True, False, False])}
    thing = SimpleNamespace(alive=alive)
    history = History(thing)
    history.record()
    alive["w"].copy_(torch.tensor([False, True, True, False]))
    history.record()
    alive["w"].copy_(torch.tensor([True, False, True, False]))
    history.record()
    assert history.density == [0.5] * 3
    assert history.exploration == [0.5, 0.75, 0.75]
    assert history.moved == [0, 1, 1]
    assert history.survived == [0, 0, 1]
    assert history.step == [0, 1, 2]
    lists = history.to_dict()
    assert lists["exploration/w"] == history.exploration
    for values in lists.values():
        assert len(values) == 3
        values.append(9)
    assert history.to_dict()["moved"] == [0, 1, 1]  # copies
    assert history.to_dict()["exploration/w"] == [0.5, 0.75, 0.75]


def test_a_table_of_a_model_without_products_between_activations(sparsified):
    text = str(table(sparsified, torch.zeros(1, 31)))
    assert "between" not in text
    header, *rows = text.splitlines()
    assert header.split("  ")[0] == "parameter"
    assert rows[0].split()[:2] == ["0.weight", "17x31"]
    assert table(sparsified).other_flops is None
    assert table(sparsified, torch.zeros(1, 31)).other_flops == 0
