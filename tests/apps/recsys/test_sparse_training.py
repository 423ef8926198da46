"""Tables in values mode train as masked dense ones do, over hundreds of steps."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.models.mf import MF
from apps.recsys.models.neumf import NeuMF
from apps.recsys.sampling import Pairs
from apps.recsys.train import in_values_mode
from sparsekit import Sparsifier
from sparsekit.execution import dense_state_dict
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.methods.dsl import DSL
from sparsekit.methods.gradual import Gradual

STEPS = 210
NETWORKS = {
    "mf": lambda train: MF(train, 16, l2=0.01, seed=0),
    "lightgcn": lambda train: LightGCN(train, 16, 2, l2=0.01, seed=0),
    "neumf": lambda train: NeuMF(train, 8, 2, dropout=0.0, l2=0.01, seed=0),
}
METHODS = {
    "dsl": DSL(0.8, every=7, end=180, gradient_steps=4),
    "dsl by row": DSL(0.8, every=7, end=180, gradient_steps=7, by_row=True),
    "gradual": Gradual(0.8, begin=10, end=180, every=5),
}


@pytest.fixture(scope="module")
def train() -> sp.csr_array:
    """41 users x 97 items, popular and rare."""
    rng = np.random.default_rng(0)
    taste = rng.random((41, 1)) ** 2 * np.linspace(0.6, 0.02, 97)
    dense = rng.random((41, 97)) < taste
    dense[np.arange(41), np.arange(41)] = True
    return sp.csr_array(dense, dtype=np.float32)


def steps(network, sparsifier, optimizer, sampler) -> list[Tensor]:
    """Trains; the masks after each step, packed side by side."""
    seen, generator = [], torch.Generator().manual_seed(0)
    while len(seen) < STEPS:
        for batch in sampler.epoch(generator):
            optimizer.zero_grad()
            network.loss(batch).backward()
            sparsifier.before_step()
            optimizer.step()
            sparsifier.after_step()
            seen.append(torch.cat([m.flatten() for m in sparsifier.alive.values()]))
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_masks_in_every_step(train, name, method):
    sampler = Pairs(train, batch=50)
    results = []
    for values in (False, True):
        network = NETWORKS[name](train)
        names = list(network.sparse_names)
        if values:
            network = in_values_mode(network, names)
            layer = network.get_submodule(names[0].removesuffix(".weight"))
            assert isinstance(layer, SparseEmbedding)
        optimizer = torch.optim.Adam(network.parameters(), 0.01, fused=True)
        sparsifier = Sparsifier(network, optimizer, METHODS[method], params=names)
        masks = steps(network, sparsifier, optimizer, sampler)
        state = dense_state_dict(network) if values else network.state_dict()
        results.append((masks, {n: state[n] for n in names}))
    (masked, dense), (stored, sparse) = results
    moves = sum(not torch.equal(a, b) for a, b in pairwise(masked))
    assert moves >= 20
    for step, (one, other) in enumerate(zip(masked, stored, strict=True)):
        assert torch.equal(one, other), f"other masks after step {step}"
    for key, weight in dense.items():
        torch.testing.assert_close(sparse[key], weight, atol=1e-5, rtol=1e-4)
    # What is trained is as long as what is alive: parameter, gradient and moments.
    alive = int(masked[-1].sum())
    assert layer.values.shape == layer.values.grad.shape == (alive,)
    moments = [s for s in optimizer.state[layer.values].values() if s.dim()]
    assert len(moments) == 2
    assert all(m.shape == (alive,) for m in moments)
