"""Edges and defaults that mutation testing found unwatched; see tests/mutation."""

import copy
import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn

from sparsekit import Sparsifier
from sparsekit.accounting import training_bytes
from sparsekit.masks import topk_rows
from sparsekit.method import Context, Masks, Method, dense_masks, discover
from sparsekit.methods.dsl import DSL
from sparsekit.methods.imp import IMP
from sparsekit.methods.oneshot import OneShot
from sparsekit.methods.rigl import RigL
from sparsekit.methods.synflow import SynFlow
from sparsekit.packing import break_even, decode, encode, predicted_nbytes
from sparsekit.patterns import NM, Block
from sparsekit.report import (
    History,
    exploration_curve,
    mask_picture,
    sparsity_per_layer,
)
from sparsekit.schedules import exponential
from sparsekit.tensor_file import DamagedFile, read
from sparsekit.testing.subject import SMALL

# ---- methods -------------------------------------------------------------------------

DEFAULTS = {
    "dsl": {"every": 3000, "end": 100_000, "fraction": 0.5, "gradient_steps": 1},
    "synflow": {"rounds": 100},
}
NUMBERS = [
    (name, field.name)
    for name, cls in discover().items()
    for field in dataclasses.fields(cls)
    if field.init and field.name in ("every", "rounds", "gradient_steps")
]


@pytest.mark.parametrize(("name", "field"), NUMBERS)
def test_no_method_takes_zero_steps(name: str, field: str) -> None:
    cls = discover()[name]
    values = {f.name: SMALL[f.name] for f in dataclasses.fields(cls) if f.name in SMALL}
    with pytest.raises(ValueError, match=field):
        cls(0.7, **{**values, field: 0})


def test_what_happens_at_the_start_is_not_due_again() -> None:
    assert not OneShot(0.5, at=0).due(0)
    assert OneShot(0.5, at=1).due(1)
    assert not IMP(0.5, rounds=2, every=4).due(0)
    assert IMP(0.5, rounds=2, every=4).due(8)
    assert not IMP(0.5, rounds=2, every=4).due(12)


class Spare(nn.Module):
    """A layer that the loss does not use, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.spare = nn.Linear(4, 6), nn.Linear(4, 6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.used(x))


def test_synflow_scores_without_dropout_and_drops_what_is_not_used() -> None:
    model = Spare()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks = Sparsifier(
        model,
        optimizer,
        SynFlow(0.5, rounds=2),
        objective=lambda m: m(torch.ones(1, 4)).sum(),
    ).alive
    assert int(masks["used.weight"].sum()) == 23  # of 24: every layer keeps a weight
    assert int(masks["spare.weight"].sum()) == 1


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_part_of_the_interface(name: str) -> None:
    found = {f.name: f.default for f in dataclasses.fields(discover()[name])}
    assert {key: found[key] for key in DEFAULTS[name]} == DEFAULTS[name]


# ---- the sparsifier ------------------------------------------------------------------


@dataclass(frozen=True)
class Thinned(Method):
    """Drops one weight of the first tensor only, in step 2, and goes back to step 1."""

    sparsity: float
    answer: str = "masks"
    rewind_to: int | None = 1
    replaces_step: bool = True

    def start(self, context: Context) -> Masks:
        return dense_masks(context)

    def due(self, step: int) -> bool:
        return step == 2

    def update(self, context: Context) -> Masks:
        masks = {name: mask.clone() for name, mask in context.masks.items()}
        next(iter(masks.values())).view(-1)[0] = False
        return masks if self.answer == "masks" else list(masks)  # type: ignore

    def sparsity_at(self, step: int) -> float:
        return 0.0


def trained(method: Method, steps: int, **options) -> tuple[nn.Module, Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsifier = Sparsifier(model, optimizer, method, **options)
    for step in range(steps):
        walk(model, sparsifier, step)
    return model, sparsifier


def walk(model: nn.Module, sparsifier: Sparsifier, step: int) -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
    sparsifier.optimizer.zero_grad()
    model(x).square().mean().backward()
    sparsifier.before_step()
    sparsifier.optimizer.step()
    sparsifier.after_step()


def test_all_weights_rewind_though_one_tensor_moved() -> None:
    before, _ = trained(Thinned(0.0), 1)  # as it was at step 1
    after, _ = trained(Thinned(0.0), 3)
    assert torch.equal(after[2].weight, before[2].weight)
    assert torch.equal(after[0].bias, before[0].bias)


def test_a_move_takes_the_place_of_a_step() -> None:
    """Or not, if the method does not say so."""
    moved = Thinned(0.0, rewind_to=None)
    before, _ = trained(moved, 2)
    after, _ = trained(moved, 3)
    assert torch.equal(after[2].weight, before[2].weight)
    stepped, _ = trained(dataclasses.replace(moved, replaces_step=False), 3)
    assert not torch.equal(stepped[2].weight, before[2].weight)


def test_an_answer_that_is_no_mapping_is_named() -> None:
    with pytest.raises(TypeError, match=r"Thinned must return \{name: bool mask\}"):
        trained(Thinned(0.0, answer="list"), 3)


def test_a_method_may_rewind_to_the_present_step_and_no_earlier() -> None:
    _, sparsifier = trained(RigL(0.5, every=2, end=4), 3)
    with pytest.raises(ValueError, match="goes back to step 2, which is past"):
        sparsifier.set_method(IMP(0.5, rounds=1, every=5, rewind_to=2))
    sparsifier.set_method(IMP(0.5, rounds=1, every=5, rewind_to=3))


def test_another_method_starts_to_gather_anew() -> None:
    """What it is shown is the sum of steps that came after it was set."""
    shown = []

    @dataclass(frozen=True)
    class Shown(DSL):
        def update(self, context: Context) -> Masks:
            shown.append({n: g.clone() for n, g in context.grads.items()})
            return super().update(context)

    first, second = (Shown(0.5, 4, 20, gradient_steps=3) for _ in range(2))
    model, sparsifier = trained(first, 3)  # two of three gradients are there
    sparsifier.set_method(second)
    sums = torch.zeros_like(model[0].weight)
    for step in (3, 4):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        twin = copy.deepcopy(model)
        twin.zero_grad()
        twin(x).square().mean().backward()
        sums += twin[0].weight.grad
        walk(model, sparsifier, step)
    torch.testing.assert_close(shown[-1]["0.weight"], sums)


def test_loading_clears_moments_of_absent_weights() -> None:
    _, saved = trained(RigL(0.5, every=2, end=4), 3)
    model, sparsifier = trained(Thinned(0.0), 2)  # dense: every moment is there
    sparsifier.set_method(saved.method)
    sparsifier.load_state_dict(saved.state_dict())
    moment = sparsifier.optimizer.state[model[0].weight]["momentum_buffer"]
    alive = sparsifier.alive["0.weight"]
    assert (moment[~alive] == 0).all()
    assert (moment[alive] != 0).all()
    assert (model[0].weight[~alive] == 0).all()


# ---- masks, patterns, files ----------------------------------------------------------


def test_rows_with_one_nan_and_candidates_of_another_shape() -> None:
    scores, counts = torch.ones(2, 3), torch.tensor([1, 1])
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="scores hold NaN"):
        topk_rows(scores, counts)
    with pytest.raises(ValueError, match="among"):
        topk_rows(torch.ones(2, 3), counts, among=torch.ones(3, 2, dtype=torch.bool))


def test_ties_of_wide_groups_go_to_the_first() -> None:
    """Sorting is stable by itself up to 16 entries; a group may be wider."""
    mask = NM(3, 64).mask(torch.ones(2, 64), 6)
    assert mask.nonzero()[:, 1].tolist() == [0, 1, 2] * 2


def test_a_block_names_the_sides_that_it_needs() -> None:
    with pytest.raises(ValueError, match=r"needs in divisible by 4, got 6"):
        Block(2, 4).mask(torch.ones(4, 6), 8)
    with pytest.raises(ValueError, match=r"needs in \* kernel divisible by 4, got 6"):
        Block(2, 4).mask(torch.ones(4, 2, 3), 8)


def test_formats_are_named_everywhere() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    for call in (
        lambda: encode(mask.float(), mask, "zip"),
        lambda: predicted_nbytes(mask, "zip"),
        lambda: break_even("zip"),
        lambda: decode({}, (2, 3), "zip"),
    ):
        with pytest.raises(ValueError, match="format is one of"):
            call()


def test_csr_columns_end_before_the_width() -> None:
    mask = torch.eye(3, dtype=torch.bool)
    parts = encode(mask.float(), mask, "csr")
    parts["columns"] = torch.tensor([0, 1, 3], dtype=parts["columns"].dtype)
    with pytest.raises(ValueError, match=r"outside 0 \.\.\. 2"):
        decode(parts, (3, 3), "csr")


def test_an_optimizer_without_moments() -> None:
    mask = torch.arange(10) < 3
    assert training_bytes(mask, 1) - training_bytes(mask, 0) == 10 * 4
    with pytest.raises(ValueError, match="optimizer_moments is >= 0, got -1"):
        training_bytes(mask, -1)


@pytest.mark.parametrize("ends", [(float("nan"), 1.0), (0.5, -0.5), (0.0, 1.0)])
def test_exponential_needs_finite_ends_of_one_sign(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"finite|one sign"):
        exponential(*ends, begin=0, finish=2)


def test_a_header_that_is_longer_than_the_file() -> None:
    content = save({"a": np.arange(3)})
    header = int.from_bytes(content[:8], "little")
    assert read(content)[0]["a"].tolist() == [0, 1, 2]
    longer = (len(content) - 7).to_bytes(8, "little") + content[8:]
    assert header < len(content) - 7
    for wrong in (longer, content[:9], (2).to_bytes(8, "little") + b"{"):
        with pytest.raises(DamagedFile, match="no safetensors file, or cut off"):
            read(wrong)
    assert read((2).to_bytes(8, "little") + b"{}") == ({}, {})


# ---- pictures ------------------------------------------------------------------------


@pytest.fixture
def axes():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


def test_bars_say_how_sparse_each_layer_is(axes) -> None:
    """10 of 100, 90 of 100 and all alive: narrow bars are labelled outside."""
    masks = {
        name: torch.arange(100).view(10, 10) < n
        for name, n in (("narrow", 90), ("wide", 10), ("dense", 100))
    }
    ax = sparsity_per_layer(masks, axes)
    texts = {t.get_text(): t for t in ax.texts}
    assert set(texts) == {"10.0", "90.0", "0.0"}
    assert texts["90.0"].get_ha() == "right"
    assert texts["90.0"].get_color() == "white"
    assert texts["10.0"].get_ha() == "left"
    assert texts["10.0"].get_color() != "white"
    assert texts["90.0"].xyann == (-4, 0)
    assert texts["10.0"].xyann == (4, 0)
    assert [round(bar.get_width()) for bar in ax.patches] == [10, 90, 0]
    (line,) = ax.lines
    assert line.get_label() == "all: 33.3 %"
    assert line.get_xdata()[0] == pytest.approx(100 / 3)
    assert ax.get_xlim() == (0, 100)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first layer is at the top
    assert not ax.get_legend().get_frame_on()


def test_the_height_follows_the_number_of_layers(axes) -> None:
    masks = {f"layer {i}": torch.ones(2, 2, dtype=torch.bool) for i in range(10)}
    figure = sparsity_per_layer(masks).figure
    assert figure.get_size_inches()[1] == pytest.approx(1.2 + 3.2)


def test_the_curve_of_exploration(axes) -> None:
    history = History(SimpleNamespace(alive={"a": torch.ones(2, 2).bool()}))
    history.step += [0, 10]
    history.exploration += [0.1, 0.3]
    history.density += [0.1, 0.1]
    history.explorations["a"] = [0.1, 0.4]
    ax = exploration_curve(history, axes)
    assert ax.get_ylim() == (0, 1.03)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a", "all", "density, all"]
    assert [line.get_linewidth() for line in ax.lines[:2]] == [0.9, 2]


def test_a_mask_of_one_dimension_is_one_row(axes) -> None:
    picture = mask_picture(torch.tensor([True, False, True]), ax=axes)
    assert picture.images[0].get_array().shape == (1, 3)
    with pytest.raises(ValueError, match="a mask is bool with at least one entry"):
        mask_picture(torch.tensor(True), ax=axes)
