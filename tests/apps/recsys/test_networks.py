"""Trained models against independent implementations of their equations."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from apps.recsys.config import Config
from apps.recsys.models.factors import Factors
from apps.recsys.models.lightgcn import LightGCN, normalised_adjacency, propagate
from apps.recsys.models.mf import MF
from apps.recsys.models.multvae import MultVAE
from apps.recsys.models.network import lookup, table
from apps.recsys.models.neumf import NeuMF
from apps.recsys.networks import build
from apps.recsys.sampling import Pairs
from sparsekit.execution import convert

N_USERS, N_ITEMS = 11, 7


@pytest.fixture(scope="module")
def train() -> sp.csr_array:
    """One user and one item have nothing."""
    known = np.random.default_rng(0).random((N_USERS, N_ITEMS)) < 0.4
    known[3], known[:, 5] = False, False
    return sp.csr_array(known, dtype=np.float32)


@pytest.fixture(scope="module")
def batch(train) -> torch.Tensor:
    sampler = Pairs(train, 13, negatives=2)
    return next(sampler.epoch(torch.Generator().manual_seed(0)))


def dense_adjacency(train: sp.csr_array) -> np.ndarray:
    """By the paper's words: 1 / sqrt(degree of both ends)."""
    r = train.toarray().astype(np.float64)
    a = np.zeros((N_USERS + N_ITEMS,) * 2)
    a[:N_USERS, N_USERS:], a[N_USERS:, :N_USERS] = r, r.T
    degree = a.sum(1)
    for i, j in np.argwhere(a):
        a[i, j] /= math.sqrt(degree[i] * degree[j])
    return a


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_lightgcn_is_its_paper_in_dense_matrices(train, layers):
    network = LightGCN(train, dim=5, layers=layers, l2=0.0, seed=1)
    a = dense_adjacency(train)
    np.testing.assert_allclose(network.adjacency.to_dense(), a, atol=1e-6)
    e = network.embedding.weight.detach().double().numpy()
    layer, total = e, e.copy()
    for _ in range(layers):
        layer = a @ layer
        total += layer
    final = total / (layers + 1)
    np.testing.assert_allclose(network.vectors().detach(), final, atol=1e-6)
    scores = final[:N_USERS] @ final[N_USERS:].T
    chosen = np.array([4, 0, 3])
    for model in (network.fitted(), network.on_device()):
        np.testing.assert_allclose(model.scores(chosen), scores[chosen], atol=1e-6)
        assert model.scores(chosen).dtype == np.float32


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_loss_and_gradient_of_pairs(train, batch, kind):
    """Plain Python sums over the batch in float64, differentiated by autograd."""
    l2 = 0.3
    network = MF(train, 5, l2, 1) if kind == "mf" else LightGCN(train, 5, 2, l2, 1)
    e = network.embedding.weight.detach().double().requires_grad_()
    a = torch.from_numpy(dense_adjacency(train))
    final = e if kind == "mf" else (e + a @ e + a @ (a @ e)) / 3
    terms, penalty = [], 0.0
    for user, positive, *negatives in batch.T.tolist():
        rows = [user, N_USERS + positive, *(N_USERS + j for j in negatives)]
        u, i, *js = (final[row] for row in rows)
        terms += [torch.log1p(torch.exp(u @ j - u @ i)) for j in js]
        penalty = penalty + sum((e[row] ** 2).sum() for row in rows)
    expected = torch.stack(terms).mean() + l2 / 2 * penalty / batch.shape[1]
    loss = network.loss(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(
        network.embedding.weight.grad.double(), e.grad, rtol=1e-4, atol=1e-7
    )


def test_propagation_is_differentiable_twice(train):
    graph = normalised_adjacency(train)
    adjacency = torch.from_numpy(graph.toarray()).double().to_sparse_csr()
    x = torch.randn(N_USERS + N_ITEMS, 3, dtype=torch.float64, requires_grad=True)

    def call(x):
        return propagate(x, adjacency, 3)

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


def test_no_layers_is_mf(train, batch):
    pair = MF(train, 5, 0.1, 2), LightGCN(train, 5, 0, 0.1, 2)
    losses = [network.loss(batch) for network in pair]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    torch.testing.assert_close(*(network.embedding.weight.grad for network in pair))


def test_lightgcn_is_that_of_torch_geometric(train):
    geometric = pytest.importorskip("torch_geometric.nn", reason="the peer is optional")
    network = LightGCN(train, dim=5, layers=3, l2=0.0, seed=1)
    n = N_USERS + N_ITEMS
    peer = geometric.LightGCN(n, 5, num_layers=3)
    with torch.no_grad():
        peer.embedding.weight.copy_(network.embedding.weight)
    users, items = (torch.from_numpy(axis).long() for axis in train.nonzero())
    edges = torch.stack([users, items + N_USERS])
    vectors = peer.get_embedding(torch.cat([edges, edges.flip(0)], 1))
    torch.testing.assert_close(network.vectors(), vectors)


def test_multvae_by_hand(train):
    network = MultVAE(train, 3, 4, 0.0, kl=0.5, anneal=0.5, seed=1).eval()
    users = torch.tensor([0, 6])
    x = torch.from_numpy(train[[0, 6]].toarray())
    state = {
        name: p.detach().double().numpy() for name, p in network.named_parameters()
    }

    def linear(name, value):
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    rows = x.double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    code = linear("code", np.tanh(linear("encoder", unit)))
    mean, log_variance = code[:, :3], code[:, 3:]
    logits = linear("output", np.tanh(linear("decoder", mean)))
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    fit = -(rows * np.log(share)).sum(1).mean()
    variance = np.exp(log_variance)
    kl = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum(1).mean()
    for progress, weight in ((0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.9, 0.5)):
        network.progress = progress
        loss = network.loss(users).item()
        assert loss == pytest.approx(fit + weight * kl, rel=1e-5)
    model = network.fitted()
    np.testing.assert_allclose(model.scores(users.numpy()), logits, atol=1e-5)
    np.testing.assert_array_equal(
        model.fold_in(train[[0, 6]] * 2), model.scores(users.numpy())
    )


def test_multvae_draws_noise_while_it_trains(train):
    network = MultVAE(train, 3, 4, 0.0, kl=0.0, anneal=0.0, seed=1)
    users = torch.arange(N_USERS)
    assert network.loss(users) != network.loss(users)
    network.eval()
    assert network.loss(users) == network.loss(users)


def test_neumf_by_hand(train, batch):
    network = NeuMF(train, 4, layers=2, dropout=0.0, l2=0.3, seed=1)
    with torch.no_grad():  # initial vectors are too small to show a mistake
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    g, t = network.product_vectors.weight, network.tower_vectors.weight
    assert [tuple(layer.weight.shape) for layer in network.layers] == [(8, 8), (4, 8)]

    def score(user, item):
        hidden = torch.cat([t[user], t[N_USERS + item]])
        for layer in network.layers:
            hidden = torch.relu(layer.weight @ hidden + layer.bias)
        both = torch.cat([g[user] * g[N_USERS + item], hidden])
        return (network.output.weight[0] @ both + network.output.bias[0]).item()

    terms, penalty = [], 0.0
    for user, positive, *negatives in batch.T.tolist():
        terms.append(math.log1p(math.exp(-score(user, positive))))
        terms += [math.log1p(math.exp(score(user, j))) for j in negatives]
        for row in (user, N_USERS + positive, *(N_USERS + j for j in negatives)):
            penalty += (g[row] ** 2).sum().item() + (t[row] ** 2).sum().item()
    expected = np.mean(terms) + 0.3 / 2 * penalty / batch.shape[1]
    assert network.loss(batch).item() == pytest.approx(expected, rel=1e-4)
    users = np.array([9, 2])
    scores = [[score(user, item) for item in range(N_ITEMS)] for user in users]
    np.testing.assert_allclose(network.fitted().scores(users), scores, atol=1e-4)


MODELS = ("lightgcn", "mf", "multvae", "neumf")


@pytest.mark.parametrize("model", MODELS)
def test_common(train, model):
    """Names exist, seeds decide, torch's state stays, every parameter learns."""
    config = Config(model=model, dim=4, layers=2, hidden=6, batch=5)
    state = torch.get_rng_state()
    network, same = build(config, train), build(config, train)
    other = build(Config(model=model, dim=4, layers=2, hidden=6, seed=1), train)
    assert torch.equal(torch.get_rng_state(), state)
    parameters = dict(network.named_parameters())
    assert set(network.sparse_names) <= set(parameters)
    for name, p in parameters.items():
        assert torch.equal(p, same.get_parameter(name))
    name = network.sparse_names[0]
    assert not torch.equal(parameters[name], other.get_parameter(name))
    sampler = network.sampler(train, 5, 1, 0.0, "cpu")
    batch = next(sampler.epoch(torch.Generator().manual_seed(0)))
    assert batch.shape == sampler.shape
    network.loss(batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters.values())
    assert network.step_flops(5, 1, 1.0) > 0
    scores = network.fitted().scores(np.arange(N_USERS))
    assert scores.shape == (N_USERS, N_ITEMS)
    assert np.isfinite(scores).all()


def test_tables_in_values_mode_look_up_the_same():
    embedding = nn.Embedding(6, 3)
    with torch.no_grad():
        embedding.weight[torch.rand(6, 3) < 0.5] = 0
    sparse = convert(embedding, to="values")
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(lookup(embedding, rows), embedding.weight[rows])
    assert torch.equal(lookup(sparse, rows), lookup(embedding, rows))
    assert torch.equal(table(sparse), table(embedding))


def test_flops_of_a_sparse_table(train):
    """MF: all products shrink. LightGCN: those at the ends of the chain alone."""
    mf, gcn = MF(train, 5, 0.0, 0), LightGCN(train, 5, 3, 0.0, 0)
    pairs = 3 * 2 * 10 * 2 * 5  # passes, multiply-add, batch, items, dim
    assert mf.step_flops(10, 1, 0.5) == 0.5 * mf.step_flops(10, 1, 1.0) == 0.5 * pairs
    product = 2 * (2 * train.nnz) * 5
    assert gcn.step_flops(10, 1, 1.0) == pairs + 6 * product
    assert gcn.step_flops(10, 1, 0.1) == pytest.approx(pairs + 2 * 2.1 * product)


def test_factors():
    rng = np.random.default_rng(0)
    model = Factors(rng.integers(-2, 3, (9, 4)), rng.integers(-2, 3, (13, 4)))
    assert model.users.dtype == np.float32
    known = sp.csr_array(rng.random((9, 13)) < 0.3, dtype=np.float32)
    users = np.array([8, 1])
    scores = model.scores(users)
    scores[known[users].toarray() > 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(model.best(users, 5, known), order)
    with pytest.raises(ValueError, match="4 dimensions, items have 3"):
        Factors(np.ones((2, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="finite"):
        Factors(np.full((2, 2), np.nan), np.ones((2, 2)))
