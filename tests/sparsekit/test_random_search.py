"""Random search against exhaustive search, and node masks against small networks."""

from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsekit import Sparsifier
from sparsekit.masks import count_active
from sparsekit.methods.random_search import RandomSearch, node_counts
from sparsekit.methods.static import Static

SIZES = (7, 5, 3, 2)


def chain(sizes=SIZES, seed=0):
    torch.manual_seed(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def samples(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(11, SIZES[0], generator=generator),
        torch.randint(0, SIZES[-1], (11,), generator=generator),
    )


def search(method, model=None, seed=0, objective=None):
    model = chain() if model is None else model
    x, y = samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    objective = objective or (lambda m: F.cross_entropy(m(x), y))
    return Sparsifier(model, optimizer, method, seed=seed, objective=objective)


def smaller(model, kept):
    """The dense network of the kept nodes, with their weights."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    inputs, layers = torch.arange(linears[0].in_features), []
    for linear, outputs in zip(linears, kept, strict=True):
        small = nn.Linear(len(inputs), len(outputs))
        small.weight.data = linear.weight.data[outputs][:, inputs].clone()
        small.bias.data = linear.bias.data[outputs].clone()
        layers += [small, nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])


def kept_nodes(masks):
    return [torch.nonzero(mask.any(1)).flatten() for mask in masks.values()]


@pytest.mark.parametrize("nodes", [False, True])
def test_the_candidate_with_the_lowest_objective_is_kept(nodes):
    x, y = samples()
    seen = []

    def objective(model):
        loss = F.cross_entropy(model(x), y)
        masks = [w.ne(0).clone() for w in model.parameters() if w.dim() == 2]
        seen.append((float(loss.detach()), masks))
        return loss

    method = RandomSearch(0.6, candidates=13, nodes=nodes)
    sparsifier = search(method, objective=objective)
    assert len(seen) == 13
    assert len({str(candidate) for _, candidate in seen}) > 6
    counts = {sum(int(m.sum()) for m in candidate) for _, candidate in seen}
    assert len(counts) == 1  # every candidate has the same number of weights
    best = min(seen, key=lambda pair: pair[0])[1]
    for mask, expected in zip(sparsifier.alive.values(), best, strict=True):
        assert torch.equal(mask, expected)


def test_one_candidate_is_static():
    for seed in range(3):
        searched = search(RandomSearch(0.7, candidates=1), seed=seed).alive
        static = search(Static(0.7), seed=seed).alive
        assert all(torch.equal(searched[name], static[name]) for name in static)


def test_node_search_finds_what_exhaustive_search_finds():
    # 30 subsets: 400 draws miss a given one with probability 1e-6; the seed is fixed.
    model = chain()
    x, y = samples()
    counts = node_counts(shapes_of(SIZES), 0.6)
    k1, k2 = list(counts.values())[:2]
    losses = {}
    for a, b in product(combinations_of(5, k1), combinations_of(3, k2)):
        network = smaller(model, [a, b, torch.arange(2)])
        losses[(tuple(a.tolist()), tuple(b.tolist()))] = float(
            F.cross_entropy(network(x), y).detach()
        )
    sparsifier = search(RandomSearch(0.6, candidates=400, nodes=True), model)
    first, second, _ = kept_nodes(sparsifier.alive)
    found = (tuple(first.tolist()), tuple(second.tolist()))
    assert len(losses) == 30
    assert found == min(losses, key=losses.get)


def test_training_a_node_mask_is_training_the_small_network():
    model, (x, y) = chain(), samples()
    reference_model = chain()
    sparsifier = search(RandomSearch(0.6, candidates=3, nodes=True), model)
    small = smaller(reference_model, kept_nodes(sparsifier.alive))
    other = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        sparsifier.optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparsifier.before_step()
        sparsifier.optimizer.step()
        sparsifier.after_step()
        other.zero_grad()
        F.cross_entropy(small(x), y).backward()
        other.step()
    torch.testing.assert_close(model(x), small(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(x), reference_model(x), atol=1e-2)


def test_sparsity_0_keeps_every_node():
    masks = search(RandomSearch(0.0, candidates=2, nodes=True)).alive
    assert all(mask.all() for mask in masks.values())


def shapes_of(sizes):
    return {f"layer {i}": (o, n) for i, (n, o) in enumerate(pairwise(sizes))}


def combinations_of(n, k):
    return torch.combinations(torch.arange(n), k)


def active(sizes):
    return sum(n_in * out for n_in, out in pairwise(sizes))


@given(st.integers(1, 31), st.integers(1, 13), st.integers(1, 7), st.floats(0, 0.99))
def test_one_hidden_layer_has_the_nearest_number_of_nodes(n_in, n, n_out, sparsity):
    shapes = shapes_of((n_in, n, n_out))
    budget = count_active(n * (n_in + n_out), sparsity)
    distance = {k: abs(k * (n_in + n_out) - budget) for k in range(1, n + 1)}
    k = node_counts(shapes, sparsity)["layer 0"]
    assert distance[k] == min(distance.values())


@given(
    st.lists(st.integers(1, 11), min_size=2, max_size=4),
    st.integers(1, 17),
    st.floats(0, 0.99),
)
def test_several_hidden_layers_keep_equal_shares_nearest_to_the_budget(
    widths, n_in, sparsity
):
    sizes = (n_in, *widths, 3)
    budget = count_active(active(sizes), sparsity)
    *kept, last = node_counts(shapes_of(sizes), sparsity).values()
    assert last == 3
    share = sum(kept) / sum(widths)
    below_one = any(width * share < 1 for width in widths)
    for k, width in zip(kept, widths, strict=True):
        assert 1 <= k <= width
        assert below_one or abs(k - width * share) < 1
    # Equal widths: the vectors with equal shares can be listed.
    if len(set(widths)) == 1:
        n, depth = widths[0], len(widths)
        listed = [
            [base + (layer < extra) for layer in range(depth)]
            for base in range(1, n + 1)
            for extra in range(depth if base < n else 1)
        ]
        distances = [abs(active((n_in, *k, 3)) - budget) for k in listed]
        assert abs(active((n_in, *kept, 3)) - budget) == min(distances)


def test_tensors_that_form_no_chain_are_named():
    with pytest.raises(ValueError, match=r"'b' takes 6 inputs and 'a' .* 5 outputs"):
        node_counts({"a": (5, 7), "b": (3, 6)}, 0.5)
    with pytest.raises(ValueError, match=r"'conv' has shape \(4, 3, 3, 3\)"):
        node_counts({"conv": (4, 3, 3, 3), "b": (3, 4)}, 0.5)
    with pytest.raises(ValueError, match=r"two linear layers or more .* \['a'\]"):
        node_counts({"a": (5, 7)}, 0.5)


def test_a_model_without_a_chain_is_refused_before_anything_changes():
    model = nn.LSTM(5, 3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="'weight_hh_l0' takes 3 inputs"):
        search(RandomSearch(0.5, nodes=True), model)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
