"""Steps on a GPU are those of the CPU, recorded or not. Skipped where there is none."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from apps.recsys.gradients import eager, prepared, recorded
from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.models.mf import MF
from apps.recsys.models.network import Network
from apps.recsys.models.neumf import NeuMF

TRAIN = sp.csr_array(np.random.default_rng(0).random((20, 15)) < 0.3, dtype=np.float32)
NETWORKS = {
    "mf": lambda: MF(TRAIN, 4, 0.1, 0),
    "lightgcn": lambda: LightGCN(TRAIN, 4, 2, 0.1, 0),
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def adam(network: Network) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=0.01, fused=True)


def batches(network: Network, device: str) -> list[torch.Tensor]:
    sampler = network.sampler(TRAIN, 10, 1, 0.0, device)
    return list(sampler.epoch(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_one_batch(name):
    """And not a sum over the calls."""
    network = NETWORKS[name]()
    run = prepared(network, adam(network), (3, 10))
    for batch in batches(network, "cpu"):
        (expected,) = torch.autograd.grad(network.loss(batch), network.parameters())
        loss = run(batch)
        assert not loss.requires_grad
        assert torch.equal(loss, network.loss(batch))
        assert torch.equal(network.embedding.weight.grad, expected)


@needs_gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_recorded_steps_are_eager_ones(name):
    trained = []
    for device, make in (("cpu", eager), ("cuda", eager), ("cuda", recorded)):
        network = NETWORKS[name]().to(device)
        optimizer = adam(network)
        steps = batches(network, device)
        if make is recorded:
            run = recorded(network, optimizer, steps[-1])
        else:
            run = make(network, optimizer)
        losses = []
        for batch in steps:
            losses.append(run(batch).item())
            optimizer.step()
        trained.append((losses, network.embedding.weight.detach().cpu()))
    for losses, weight in trained[1:]:
        assert losses == pytest.approx(trained[0][0], rel=1e-4)
        torch.testing.assert_close(weight, trained[0][1], rtol=1e-3, atol=1e-5)


@needs_gpu
def test_random_numbers_are_not_recorded():
    network = NeuMF(TRAIN, 4, 2, 0.5, 0.1, 0).to("cuda")
    run = prepared(network, adam(network), (3, 10))
    (batch, *_) = batches(network, "cuda")
    assert run(batch) != run(batch)  # dropout


@needs_gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_rankings_of_both_devices(name):
    network = NETWORKS[name]()
    users = np.arange(20)
    on_cpu = network.fitted().best(users, 5, TRAIN)
    on_gpu = network.to("cuda").on_device().best(users, 5, TRAIN)
    np.testing.assert_array_equal(on_gpu, on_cpu)
