"""Each method against a slow reference, a closed form, or another library."""

import copy
import math
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsekit import Sparsifier
from sparsekit.allocation import uniform
from sparsekit.masks import count_active
from sparsekit.method import Context, Masks, Objective, discover, prune, random_masks
from sparsekit.methods.dsl import DSL
from sparsekit.methods.gradual import Gradual
from sparsekit.methods.grasp import GraSP
from sparsekit.methods.imp import IMP
from sparsekit.methods.mest import MEST
from sparsekit.methods.oneshot import OneShot
from sparsekit.methods.random_search import RandomSearch
from sparsekit.methods.rigl import RigL
from sparsekit.methods.set import SET
from sparsekit.methods.snip import SNIP
from sparsekit.methods.static import Static
from sparsekit.methods.synflow import SynFlow
from sparsekit.methods.tdm import TDM
from sparsekit.patterns import NM, Block, Columns, Rows, Unstructured
from tests.reference import moves
from tests.reference.flow import path_scores
from tests.reference.selection import by_one_threshold, highest

SHAPES = {"a": (7, 5), "b": (3, 2, 3, 3), "c": (2, 11)}
steps = st.integers(1, 40)
seeds = st.integers(0, 2**31)


def tied_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal numbers in steps of a quarter: ties and zeros are common."""
    return torch.randn(shape, generator=generator).mul(4).round().div(4)


def context(seed: int, step: int, sparsity: float = 0.6) -> Context:
    """Random weights, gradients and masks; absent weights are zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tied_noise(shape, generator) for name, shape in SHAPES.items()}
    grads = {name: tied_noise(shape, generator) for name, shape in SHAPES.items()}
    empty = Objective(nn.Linear(1, 1), None)
    made = Context(step, weights, grads, {}, {}, generator, empty, {})
    masks = random_masks(made, uniform(SHAPES, sparsity))
    weights = {name: weight * masks[name] for name, weight in weights.items()}
    generator.manual_seed(seed)
    return Context(step, weights, grads, masks, masks, generator, empty, {})


def flat(tensors: dict) -> dict[str, list]:
    return {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


def noises(seed: int) -> dict[str, list]:
    """What a method draws first, for one tensor after the other."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator).flatten().tolist()
        for name, shape in SHAPES.items()
    }


# ---- moving connections ----------------------------------------------------------


@given(seeds, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_set_equals_lists(seed: int, fraction: float) -> None:
    seen = context(seed, step=10)
    found = flat(SET(0.6, every=10, fraction=fraction).update(seen))
    masks, weights, noise = flat(seen.masks), flat(seen.weights), noises(seed)
    for name in SHAPES:
        assert found[name] == moves.set_move(
            masks[name], weights[name], noise[name], fraction
        )


@given(seeds, st.floats(0.005, 1), steps)
@settings(max_examples=40, deadline=None)
def test_dsl_equals_lists(seed: int, fraction: float, step: int) -> None:
    seen = context(seed, step)
    found = flat(DSL(0.6, every=1, end=41, fraction=fraction).update(seen))
    masks, weights, grads = flat(seen.masks), flat(seen.weights), flat(seen.grads)
    for name in SHAPES:
        assert found[name] == moves.dsl_move(
            masks[name], weights[name], grads[name], fraction, step, 41
        )


@given(seeds, st.floats(0.005, 1), steps)
@settings(max_examples=40, deadline=None)
def test_dsl_by_row_equals_lists_of_each_row(seed, fraction: float, step: int) -> None:
    seen = context(seed, step)
    found = DSL(0.6, every=1, end=41, fraction=fraction, by_row=True).update(seen)
    for name in SHAPES:
        tensors = (seen.masks[name], seen.weights[name], seen.grads[name])
        rows = zip(*(t.flatten(1).tolist() for t in tensors), strict=True)
        expected = [moves.dsl_move(*row, fraction, step, 41) for row in rows]
        assert found[name].flatten(1).tolist() == expected


@given(seeds, st.floats(0.05, 0.9))
@settings(max_examples=20, deadline=None)
def test_dsl_by_row_starts_with_equal_rows(seed: int, sparsity: float) -> None:
    masks = DSL(sparsity, by_row=True).start(context(seed, 0))
    alive = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    assert alive == count_active(total, sparsity)
    for mask in masks.values():
        sizes = mask.flatten(1).sum(1)
        assert int(sizes.max() - sizes.min()) <= 1


def test_dsl_drops_all_weights_that_are_zero() -> None:
    """4 of 8 are alive, 3 of them grown and never touched; 0.5 % would move one."""
    mask = torch.tensor([[True, True, True, True], [False] * 4])
    weight = torch.tensor([[0.0, 0.0, 0.0, 9.0], [0.0] * 4])
    grad = torch.tensor([[5.0, 1.0, 2.0, 0.0], [3.0, 4.0, 0.5, 0.0]])
    seen = replace(
        context(0, step=10),
        masks={"a": mask},
        weights={"a": weight},
        grads={"a": grad},
    )
    moved = DSL(0.5, every=1, end=10).update(seen)["a"]
    assert moved.int().tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]


def test_dsl_grows_by_the_sum_of_gradients() -> None:
    """Two batches cancel in one entry and agree in another."""
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    for n, expected in ((2, 3), (1, 2)):
        method = DSL(0.75, every=3, end=3, fraction=1.0, gradient_steps=n)
        sparsifier = Sparsifier(model, optimizer, method)
        for step in range(4):
            entry = torch.tensor([[0.0, 0.0, 5.0, 4.0]])
            if step == 3:
                entry = torch.tensor([[0.0, 0.0, -4.5, 1.0]])
            model.weight.grad = entry
            sparsifier.before_step()
            optimizer.step()
            sparsifier.after_step()
        assert sparsifier.alive["weight"].flatten().nonzero().item() == expected


@given(seeds, st.floats(0, 1), steps)
@settings(max_examples=40, deadline=None)
def test_rigl_equals_lists(seed: int, fraction: float, step: int) -> None:
    seen = context(seed, step)
    found = flat(RigL(0.6, every=1, end=41, fraction=fraction).update(seen))
    masks, weights, grads = flat(seen.masks), flat(seen.weights), flat(seen.grads)
    for name in SHAPES:
        assert found[name] == moves.rigl_move(
            masks[name], weights[name], grads[name], fraction, step, end=41
        )


@given(seeds, st.booleans(), st.sampled_from([0.0, 0.5, 3.0]), steps)
@settings(max_examples=40, deadline=None)
def test_mest_equals_lists(seed: int, soft: bool, weight: float, step: int) -> None:
    seen = context(seed, step)
    extra = 0.1 if step < 30 else 0.05 if step < 40 else 0.0  # end = 40
    method = MEST(0.6, 1, 40, 0.1, weight_of_gradient=weight, soft=soft,
                  allocation=uniform)  # fmt: skip
    found = flat(method.update(seen))
    kept = uniform(SHAPES, 0.6 if soft else 0.6 + extra)
    final = uniform(SHAPES, 0.6 - extra if soft else 0.6)
    masks, weights, noise = flat(seen.masks), flat(seen.weights), noises(seed)
    grads = flat(seen.grads)
    for name in SHAPES:
        n_kept = min(kept[name], final[name], sum(masks[name]))
        assert found[name] == moves.mest_move(
            masks[name], weights[name], grads[name], noise[name], weight, n_kept,
            final[name],
        )  # fmt: skip


@given(seeds, st.sampled_from([0, 3, 9, 12]), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_tdm_equals_lists(seed: int, step: int, paper: bool, empty: bool) -> None:
    """Step 0 expands to 0.5, 3 and 9 prune to 0.8 and grow to 0.6, 12 prunes to 0.6."""
    after, least, most = (0, 0.6, 0.5), (3, 0.8, 0.6), (12, 0.6, 0.6)
    plan = {t: (low, high) for t, low, high in (after, least, (9, *least[1:]), most)}
    seen = context(seed, step, sparsity=0.5 if step == 3 else 0.6)
    other = context(seed + 1, step).grads
    losses = {"current": seen.grads, "buffer": None if empty else other}
    terms = [(0.25, "current"), (2.0, "buffer")] if paper else [(0.25, "step")]
    seen = replace(seen, loss_grads=losses)
    grads = losses | {"step": seen.grads}
    method = TDM(
        0.6, 0, 3, 12, inter=0.1, intra=0.2, alpha=0.25, beta=2.0,
        variant="paper" if paper else "released",
    )  # fmt: skip
    found = flat(method.update(seen))
    kept, final = (uniform(SHAPES, s) for s in plan[step])
    masks, weights = flat(seen.masks), flat(seen.weights)
    moving = [name for name in SHAPES if kept[name] < final[name]]
    noise = noises(seed) if moving else {name: [] for name in SHAPES}
    assert [method.due(t) for t in (step, step + 1)] == [True, False]
    assert len(moving) == (0 if step == 12 else 3)
    for name in SHAPES:
        assert found[name] == moves.tdm_move(
            masks[name],
            weights[name],
            [(f, grads[loss][name].flatten().tolist()) for f, loss in terms
             if grads[loss] is not None],
            noise[name], min(kept[name], sum(masks[name])), final[name],
        )  # fmt: skip


def test_tdm_moves_after_unequal_times() -> None:
    method = TDM(0.6, 5, (3, 2, 4), 14)
    assert [t for t in range(30) if method.due(t)] == [5, 8, 10, 14]
    method = TDM(0.6, 5, (3, 2, 4), 20, inter=0.0)
    assert [t for t in range(30) if method.due(t)] == [8, 10, 14, 20]


def test_tdm_over_two_tasks() -> None:
    """Expands at the second task's first step, shrinks back, ends at the sparsity."""
    counts, seen = [], []
    first = TDM(0.7, 0, 2, 5, inter=0.0, intra=0.1)
    second = TDM(0.7, 6, 2, 11, inter=0.1, intra=0.1)

    def watch(sparsifier: Sparsifier) -> None:
        counts.append(sum(int(mask.sum()) for mask in sparsifier.alive.values()))
        seen.append(sparsifier.visited["0.weight"].sum())
        if sparsifier.step == 6:
            sparsifier.set_method(second)

    trained(first, 12, watch)
    normal, more = (count_active(13 * 11 + 11 * 3, s) for s in (0.7, 0.6))
    assert counts == [normal] * 6 + [more] * 2 + [normal] * 4
    moved = [t for t in range(1, 12) if seen[t] > seen[t - 1]]
    assert moved == [2, 4, 6, 8, 10]  # 5 and 11 only prune


@pytest.mark.parametrize(("beta", "dropped"), [(0.0, [0, 1]), (1.0, [1, 2])])
def test_tdm_keeps_a_small_weight_that_the_buffer_needs(beta, dropped: list) -> None:
    model = nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    method = TDM(0.2, every=1, end=1, inter=0.2, beta=beta, variant="paper")
    x = torch.eye(10)[0]
    losses = {"current": lambda model: None, "buffer": lambda model: 5 * model(x).sum()}
    sparsifier = Sparsifier(model, optimizer, method, losses=losses)
    for _ in range(2):
        model.weight.grad = torch.zeros_like(model.weight)
        sparsifier.before_step()
        optimizer.step()
        sparsifier.after_step()
        with torch.no_grad():  # all exist after step 0, which expands
            model.weight.fill_(1.0)[0, :3] = torch.tensor([0.1, 0.2, 0.3])
    assert (~sparsifier.alive["weight"]).nonzero()[:, 1].tolist() == dropped


def small() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 11), nn.Tanh(), nn.Linear(11, 3))
    return model, torch.randn(17, 13), torch.randn(17, 3)


def trained(method, n_steps: int, watch=None, corrupt: float = 0.0) -> nn.Module:
    """Trains `small`; `corrupt` is added to the gradient of absent weights."""
    model, x, y = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    sparsifier = Sparsifier(model, optimizer, method)
    for _ in range(n_steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        for name, mask in sparsifier.alive.items():
            model.get_parameter(name).grad[~mask] += corrupt
        sparsifier.before_step()
        optimizer.step()
        sparsifier.after_step()
        if watch is not None:
            watch(sparsifier)
    return model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("method", [SET(0.7, 2, fraction=0.0), RigL(0.7, 2, 9, 0.0)])
def test_a_fraction_of_zero_is_static(method) -> None:
    assert same_weights(trained(method, 10), trained(Static(0.7), 10))
    moving = RigL(0.7, 2, 9) if isinstance(method, RigL) else SET(0.7, 2)
    assert not same_weights(trained(moving, 10), trained(Static(0.7), 10))


@pytest.mark.parametrize("soft", [False, True])
def test_mest_keeps_its_budget_and_needs_no_dense_gradient(soft: bool) -> None:
    method, counts = MEST(0.7, 2, 13, 0.1, soft=soft), []
    total = 13 * 11 + 11 * 3

    def watch(sparsifier: Sparsifier) -> None:
        counts.append(sum(int(mask.sum()) for mask in sparsifier.alive.values()))

    honest = trained(method, 16, watch)
    most = count_active(total, 0.7 - (0.1 if soft else 0.0))
    assert max(counts) == most
    assert counts[-1] == count_active(total, 0.7)
    assert same_weights(honest, trained(method, 16, corrupt=1e9))
    dense = trained(RigL(0.7, 2, 13), 16)
    assert not same_weights(dense, trained(RigL(0.7, 2, 13), 16, corrupt=1e9))


# ---- magnitude -------------------------------------------------------------------


def test_gradual_equals_torch_prune_at_every_step() -> None:
    method = Gradual(0.8, begin=2, end=17, every=3)
    model, x, y = small()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    sparsifier = Sparsifier(model, optimizer, method)
    compared = 0
    for t in range(20):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        reference = copy.deepcopy(model)
        sparsifier.before_step()
        if method.due(t):
            progress = min(1.0, (t - 2) / 15)
            sparsity = 0.8 * (1 - (1 - progress) ** 3)
            counts = uniform({"0": (11, 13), "2": (3, 11)}, sparsity)
            for index, n_active in counts.items():
                layer = reference.get_submodule(index)
                n_pruned = layer.weight.numel() - n_active
                torch_prune.l1_unstructured(layer, "weight", n_pruned)
                expected = layer.weight_mask.bool()
                assert torch.equal(sparsifier.alive[f"{index}.weight"], expected)
                compared += 1
        optimizer.step()
        sparsifier.after_step()
    assert compared == 2 * len([2, 5, 8, 11, 14, 17])


def test_pruning_in_small_steps_never_lacks_weights() -> None:
    """A smaller total can give a tensor one more by its remainder: Alabama paradox."""
    shapes = {"a": (7, 13), "b": (11, 5), "c": (3, 11), "d": (2, 2)}
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(s, generator=generator) for n, s in shapes.items()}
    masks: Masks = {n: torch.ones(s, dtype=torch.bool) for n, s in shapes.items()}
    total, method, rose = 183, Gradual(0.9, 0, 400, 1), 0
    for t in range(401):
        sparsity = method.sparsity_at(t)
        new = prune(scores, sparsity, Unstructured(), False, among=masks)
        assert sum(int(m.sum()) for m in new.values()) == count_active(total, sparsity)
        assert not any((new[n] & ~masks[n]).any() for n in shapes)
        wished = uniform(shapes, sparsity)
        rose += any(wished[n] > int(masks[n].sum()) for n in shapes)
        masks = new
    assert rose > 0  # the paradox occurred


@pytest.mark.parametrize("across", [False, True])
def test_oneshot_equals_a_sorted_list(across: bool) -> None:
    model, _, _ = small()
    dense = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() > 1}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, OneShot(0.6, across_layers=across))
    scores = {name: weight.abs().flatten().tolist() for name, weight in dense.items()}
    counts = uniform({n: tuple(w.shape) for n, w in dense.items()}, 0.6)
    if across:
        counts = by_one_threshold(scores, count_active(176, 0.6), floor=1)
    for name, mask in sparsifier.alive.items():
        assert mask.flatten().tolist() == highest(scores[name], counts[name])
        assert torch.equal(model.get_parameter(name), dense[name] * mask)


@pytest.mark.parametrize("pattern", [NM(1, 2), Block(3, 2), Rows(), Columns()])
def test_oneshot_with_a_pattern(pattern) -> None:
    weight = torch.randn(9, 14, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(14, 9)
    with torch.no_grad():
        model.weight.copy_(weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, OneShot(0.5, pattern=pattern))
    expected = pattern.mask(weight.abs(), pattern.count((9, 14), 0.5))
    assert torch.equal(sparsifier.alive["weight"], expected)


def test_imp_trains_the_ticket_from_the_weights_of_the_early_step() -> None:
    """The last round equals a plain loop that starts from them with a new optimizer."""
    method = IMP(0.8, rounds=2, every=6, rewind_to=2, across_layers=False)
    model, x, y = small()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    sparsifier = Sparsifier(model, optimizer, method)
    for t in range(18):
        if t == 2:
            early = copy.deepcopy(model)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        sparsifier.before_step()
        optimizer.step()
        sparsifier.after_step()
        if t in (6, 12):
            for name, mask in sparsifier.alive.items():
                ticket = early.get_parameter(name) * mask
                assert torch.equal(model.get_parameter(name), ticket)
            assert torch.equal(model[0].bias, early[0].bias)
    ticket = copy.deepcopy(early)
    masks = {name: mask.float() for name, mask in sparsifier.alive.items()}
    optimizer = torch.optim.Adam(ticket.parameters(), 0.05)
    with torch.no_grad():
        for name, mask in masks.items():
            ticket.get_parameter(name).mul_(mask)
    for _ in range(13, 18):
        optimizer.zero_grad()
        (ticket(x) - y).square().mean().backward()
        for name, mask in masks.items():
            ticket.get_parameter(name).grad.mul_(mask)
        optimizer.step()
    assert same_weights(ticket, model)


# ---- before training -------------------------------------------------------------


def test_snip_equals_finite_differences() -> None:
    """|dL/dc| at c = 1, where c scales one weight, in float64; two batches summed."""
    model, x, y = small()
    model, x, y = model.double(), x.double(), y.double()

    def loss(model: nn.Module) -> Tensor:
        parts = [slice(0, 8), slice(8, 17)]
        return sum((model(x[p]) - y[p]).square().sum() for p in parts)

    scores: dict[str, list] = {}
    for name in ("0.weight", "2.weight"):
        scores[name] = []
        for i in range(model.get_parameter(name).numel()):
            values = []
            for scale in (1 + 1e-6, 1 - 1e-6):
                changed = copy.deepcopy(model)
                with torch.no_grad():
                    changed.get_parameter(name).view(-1)[i] *= scale
                    values.append(float(loss(changed)))
            scores[name].append(abs(values[0] - values[1]) / 2e-6)
    counts = by_one_threshold(scores, count_active(176, 0.75), floor=1)

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, SNIP(0.75))
    loss(model).backward()
    sparsifier.before_step()
    for name, mask in sparsifier.alive.items():
        assert mask.flatten().tolist() == highest(scores[name], counts[name])


class Quadratic(nn.Module):
    """L = w'Aw / 2 + b'w of two tensors that together are w: H = A, g = Aw + b."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.v = nn.Parameter(torch.randn(3, 5, generator=generator))
        self.u = nn.Parameter(torch.randn(2, 7, generator=generator))
        a = torch.randn(29, 29, generator=generator)
        self.register_buffer("a", a + a.T)
        self.register_buffer("b", torch.randn(29, generator=generator))

    def forward(self) -> Tensor:
        w = torch.cat([self.v.flatten(), self.u.flatten()])
        return w @ self.a @ w / 2 + self.b @ w


def test_grasp_equals_the_known_hessian() -> None:
    model = Quadratic()
    w = torch.cat([model.v.flatten(), model.u.flatten()]).detach()
    product = model.a @ (model.a @ w + model.b)
    keep = (w * product).tolist()  # the largest w * Hg stay
    counts = by_one_threshold({"v": keep[:15], "u": keep[15:]}, 12, floor=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = GraSP(1 - 12 / 29)
    sparsifier = Sparsifier(model, optimizer, method, objective=lambda m: m())
    alive = {name: mask.flatten().tolist() for name, mask in sparsifier.alive.items()}
    assert alive["v"] == highest(keep[:15], counts["v"])
    assert alive["u"] == highest(keep[15:], counts["u"])


def linear_chain(sizes: list[int], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def flow_of(n_inputs: int):
    def flow(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        return model(torch.ones(1, n_inputs, dtype=dtype)).sum()

    return flow


@pytest.mark.parametrize("seed", range(3))
def test_synflow_equals_path_products(seed: int) -> None:
    model = linear_chain([3, 5, 2], seed).double()
    names = ["0.weight", "2.weight"]
    layers = [model.get_parameter(name).tolist() for name in names]
    shapes = [(5, 3), (2, 5)]
    alive = [[True] * (o * i) for o, i in shapes]
    for i in range(1, 5):
        scores = [list(chain.from_iterable(rows)) for rows in path_scores(layers)]
        # An absent weight is behind every present one, even one without flow.
        scores = [
            [s if here else -1.0 for s, here in zip(*pair, strict=True)]
            for pair in zip(scores, alive, strict=True)
        ]
        named = dict(zip(names, scores, strict=True))
        budget = count_active(25, 1 - 0.3 ** (i / 4))
        counts = by_one_threshold(named, budget, floor=1)
        alive = [highest(named[name], counts[name]) for name in names]
        for layer, mask, (n_out, n_in) in zip(layers, alive, shapes, strict=True):
            for o in range(n_out):
                for k in range(n_in):
                    layer[o][k] *= mask[o * n_in + k]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(
        model, optimizer, SynFlow(0.7, rounds=4), objective=flow_of(3)
    )
    assert [m.flatten().tolist() for m in sparsifier.alive.values()] == alive


def test_many_rounds_of_synflow_keep_every_layer_one_round_does_not() -> None:
    def pruned(rounds: int) -> tuple[float, int]:
        # A wide layer in the middle: its weights have small scores, all go at once.
        model = linear_chain([11, 11, 101, 101, 11, 7], seed=0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        method = SynFlow(0.995, rounds)
        sparsifier = Sparsifier(model, optimizer, method, objective=flow_of(11))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_()
        fewest = min(int(mask.sum()) for mask in sparsifier.alive.values())
        return flow_of(11)(model).item(), fewest

    flow, fewest = pruned(rounds=100)
    assert flow > 0
    assert fewest > 1
    assert pruned(rounds=1) == (0.0, 1)


class Failing(nn.Module):
    """Batch norm in training mode, so that an evaluation would move its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.layer = nn.Linear(5, 7)
        self.register_buffer("window", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


@pytest.mark.parametrize("method", [SynFlow(0.5), GraSP(0.5), RandomSearch(0.5)])
def test_an_objective_that_raises_leaves_the_model_alone(method) -> None:
    torch.manual_seed(0)
    model = Failing().eval()
    model.layer.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    calls = 0

    def objective(model: nn.Module) -> Tensor:
        nonlocal calls
        calls += 1
        dtype = next(model.parameters()).dtype
        result = model(torch.rand(11, 5, dtype=dtype)).square().sum()
        if calls == (1 if isinstance(method, GraSP) else 3):
            raise ArithmeticError("on purpose")
        return result

    with pytest.raises(ArithmeticError, match="on purpose"):
        Sparsifier(model, optimizer, method, objective=objective)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model.norm.training, model.layer.training) == (
        False,
        False,
        True,
    )
    # and without the error it works, buffers unchanged
    Sparsifier(model, optimizer, method, objective=objective)
    for name in ("norm.running_mean", "norm.running_var", "window"):
        assert torch.equal(model.state_dict()[name], before[name]), name


def test_synflow_says_when_the_flow_leaves_the_range() -> None:
    model = linear_chain([3, 3, 3, 3], seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e-20)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"flow is 0\.0.*model\.double\(\)"):
        Sparsifier(model, optimizer, SynFlow(0.5), objective=flow_of(3))
    Sparsifier(model.double(), optimizer, SynFlow(0.5), objective=flow_of(3))


def test_random_search_finds_what_trying_all_finds() -> None:
    model, x, y = small()
    generator = torch.Generator().manual_seed(5)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}

    def loss(model: nn.Module) -> Tensor:
        return (model(x) - y).square().mean()

    def seen() -> Context:
        generator.manual_seed(5)
        objective = Objective(model, loss)
        return Context(0, weights, {}, {}, {}, generator, objective, {})

    found = RandomSearch(0.8, candidates=9, allocation=uniform).start(seen())
    drawing, losses = seen(), []
    counts = uniform(drawing.shapes, 0.8)
    candidates = [random_masks(drawing, counts) for _ in range(9)]
    for masks in candidates:
        tried = copy.deepcopy(model)
        with torch.no_grad():
            for name, mask in masks.items():
                tried.get_parameter(name).mul_(mask)
        losses.append(loss(tried).item())
    best = min(range(9), key=losses.__getitem__)
    assert best != 0
    assert all(torch.equal(found[n], mask) for n, mask in candidates[best].items())


def test_static_draws_uniformly() -> None:
    """Every position is alive in its share of 400 draws, within 5 deviations."""
    model = nn.Linear(5, 7)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hits = torch.zeros(7, 5)
    for seed in range(400):
        hits += Sparsifier(model, optimizer, Static(0.6), seed=seed).alive["weight"]
    share = 14 / 35
    deviation = math.sqrt(400 * share * (1 - share))
    assert float((hits - 400 * share).abs().max()) < 5 * deviation


# ---- settings --------------------------------------------------------------------


@pytest.mark.parametrize("name", discover())
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, "0.5", None])
def test_every_method_refuses_what_is_no_sparsity(name: str, sparsity) -> None:
    with pytest.raises(ValueError, match=r"sparsity is .* in \[0, 1\), got"):
        discover()[name](sparsity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gradual(0.5, begin=5, end=4), "begin=5, end=4"),
        (lambda: Gradual(0.5, every=0), "every .* got 0"),
        (lambda: IMP(0.5, every=3, rewind_to=3), r"\[0, every=3\), got 3"),
        (lambda: IMP(0.5, rounds=0), "rounds .* got 0"),
        (lambda: MEST(0.5, extra=1.5), r"extra .* got 1\.5"),
        (lambda: OneShot(0.5, at=-1), "at .* got -1"),
        (lambda: SNIP(0.5, at=-1), "at .* got -1"),
        (lambda: RigL(0.5, fraction=-0.1), r"fraction .* got -0\.1"),
        (lambda: RigL(0.5, every=2.5), r"every .* got 2\.5"),
        (lambda: DSL(0.5, gradient_steps=0), r"gradient_steps .* got 0"),
        (lambda: SET(0.5, every=0), "every .* got 0"),
        (lambda: SynFlow(0.5, rounds=0), "rounds .* got 0"),
        (lambda: RandomSearch(0.5, candidates=0), "candidates .* got 0"),
        (lambda: TDM(0.5, begin=5, end=5), "which is 5; got end=5"),
        (lambda: TDM(0.5, every=(3, 0)), "every .* got 0"),
        (lambda: TDM(0.5, inter=1.5), r"inter .* got 1\.5"),
        (lambda: TDM(0.5, beta=-1.0), r"beta .* got -1\.0"),
        (lambda: TDM(0.5, variant="other"), "'paper' or 'released', got 'other'"),
    ],
)
def test_settings_out_of_range_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pattern_that_does_not_fit_names_the_parameter() -> None:
    model, _, _ = small()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fix = r"NM\(2, 4\) needs in_features divisible by 4, got 13 in '0\.weight'"
    with pytest.raises(ValueError, match=fix):
        Sparsifier(model, optimizer, OneShot(0.5, pattern=NM(2, 4)))
    assert same_weights(model, before)


def test_a_missing_objective_is_explained() -> None:
    model, _, _ = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for method in (SynFlow(0.5), GraSP(0.5), RandomSearch(0.5)):
        with pytest.raises(ValueError, match="objective=lambda model: loss"):
            Sparsifier(model, optimizer, method)


def test_a_missing_loss_is_explained() -> None:
    model, x, _ = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = TDM(0.5, every=1, inter=0.0, variant="paper")
    sparsifier = Sparsifier(model, optimizer, method)
    model(x).sum().backward()
    sparsifier.before_step()
    sparsifier.after_step()
    with pytest.raises(ValueError, match=r"'current': pass Sparsifier.*losses="):
        sparsifier.before_step()


def test_snip_names_a_parameter_without_gradient() -> None:
    model, x, _ = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, SNIP(0.5))
    model[0](x).sum().backward()
    with pytest.raises(ValueError, match=r"'2\.weight' has none in step 0"):
        sparsifier.before_step()
    assert sparsifier.density == 1.0


class Branches(nn.Module):
    """A layer that takes part, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.idle = nn.Linear(7, 5), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    "method",
    [RigL(0.5, every=2, end=9), DSL(0.5, every=2, end=9), SET(0.5, every=2),
     DSL(0.5, every=2, end=9, by_row=True), MEST(0.5, every=2, end=9),
     TDM(0.5, every=2, end=9, inter=0.1, intra=0.1)],
    ids=lambda method: str(method)[:12],
)  # fmt: skip
def test_a_layer_that_takes_no_part_is_no_error(method) -> None:
    """Who chooses by gradients leaves its connections where they are."""
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = Sparsifier(model, optimizer, method)
    before = {name: mask.clone() for name, mask in sparsifier.alive.items()}
    for step in range(8):
        x = torch.randn(6, 7, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        sparsifier.before_step()
        optimizer.step()
        sparsifier.after_step()
    assert not torch.equal(sparsifier.alive["used.weight"], before["used.weight"])
    if isinstance(method, RigL | DSL):
        assert torch.equal(sparsifier.alive["idle.weight"], before["idle.weight"])
    for name, mask in sparsifier.alive.items():
        if not isinstance(method, TDM):
            assert mask.sum() == before[name].sum()
        assert not model.get_parameter(name)[~mask].any()


def test_grasp_of_a_weight_that_the_gradient_does_not_depend_on() -> None:
    """Of what enters the loss linearly Hg is 0, less than that of a convex part."""
    model = Branches()
    x = torch.ones(1, 7)
    sparsifier = Sparsifier(
        model, torch.optim.SGD(model.parameters(), 0.1), GraSP(0.5),
        objective=lambda m: m.used(x).square().sum() + m.idle(x).sum(),
    )  # fmt: skip
    weight = model.used.weight
    assert int(sum(mask.sum() for mask in sparsifier.alive.values())) == 35
    assert 0 < int(sparsifier.alive["used.weight"].sum()) < weight.numel()


@pytest.mark.parametrize("rounds", [1, 3])
def test_synflow_refuses_an_objective_that_ignores_the_weights(rounds: int) -> None:
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"the synaptic flow is 0\.0: a product"):
        Sparsifier(model, optimizer, SynFlow(0.5, rounds=rounds),
                   objective=lambda m: 0 * m(torch.ones(1, 7)).sum())  # fmt: skip


def test_synflow_reads_batch_norm_as_if_it_did_nothing() -> None:
    """Mean 0 and variance 1, whatever the model has seen."""
    masks = []
    for scale in (1.0, 1000.0):
        model = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for place in (0, 2):
                model[place].weight.normal_(generator=generator)
                model[place].bias.zero_()
            model[1].running_mean.fill_(scale)
            model[1].running_var.copy_(scale * torch.arange(1.0, 7) ** 4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        method = SynFlow(0.7, rounds=5)
        masks.append(
            Sparsifier(
                model, optimizer, method, objective=lambda m: m(torch.ones(1, 7)).sum()
            ).alive
        )
        assert float(model[1].running_mean[0]) == scale
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])


def test_times_at_which_methods_are_due() -> None:
    def times(method) -> list[int]:
        return [step for step in range(14) if method.due(step)]

    assert times(IMP(0.5, rounds=3, every=1)) == [1, 2, 3]
    assert times(IMP(0.5, rounds=2, every=5)) == [5, 10]
    assert times(RigL(0.5, every=3, end=10)) == [3, 6, 9]
    assert times(RigL(0.5, every=3, end=9)) == [3, 6]  # moves nothing any more
    assert times(SET(0.5, every=4)) == [4, 8, 12]
    assert times(DSL(0.5, every=3, end=6)) == [3, 6]
    assert times(MEST(0.5, every=4, end=10)) == [4, 8, 10]
    assert times(Gradual(0.5, begin=2, end=9, every=3)) == [2, 5, 8, 9]
    assert times(OneShot(0.5, at=4)) == [4]
    assert times(Static(0.5)) == []
    assert times(TDM(0.5, begin=2, every=3, end=10)) == [2, 5, 8, 10]
    assert times(TDM(0.5, begin=2, every=3, end=10, inter=0)) == [5, 8, 10]
    assert times(TDM(0.5, begin=2, every=(3, 4), end=12)) == [2, 5, 9, 12]


def test_sparsity_over_time_by_hand() -> None:
    def at(method, *steps: int) -> list[float]:
        return [round(method.sparsity_at(step), 6) for step in steps]

    assert at(IMP(0.75, rounds=2, every=5), 0, 4, 5, 9, 10, 99) == [
        0, 0, 0.5, 0.5, 0.75, 0.75,
    ]  # fmt: skip
    soft = MEST(0.5, every=4, end=20, extra=0.1, soft=True)
    assert at(soft, 0, 3, 4, 15, 16, 19, 20, 30) == [
        0.5, 0.5, 0.4, 0.4, 0.45, 0.45, 0.5, 0.5,
    ]  # fmt: skip
    assert at(MEST(0.5, every=4, end=20, extra=0.1), 4, 16) == [0.5, 0.5]
    assert at(replace(soft, sparsity=0.05), 4) == [0.0]
    task = TDM(0.5, begin=2, every=3, end=10, inter=0.1)
    assert at(task, 1, 2, 4, 5, 10) == [0.5, 0.4, 0.4, 0.5, 0.5]
    assert at(replace(task, every=9), 2, 9, 10) == [0.4, 0.4, 0.5]
    assert at(replace(task, every=(2, 5), sparsity=0.05), 2, 3, 4) == [0, 0, 0.05]


def test_tdm_reads_no_loss_that_weighs_nothing() -> None:
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.ones(2, 7)
    sparsifier = Sparsifier(
        model, optimizer,
        TDM(0.5, every=1, end=3, intra=0.1, beta=0.0, variant="paper"),
        losses={"current": lambda m: m(x).square().mean()},
    )  # fmt: skip
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        sparsifier.before_step()  # no loss "buffer" is asked for
        optimizer.step()
        sparsifier.after_step()
    assert sparsifier.step == 3
