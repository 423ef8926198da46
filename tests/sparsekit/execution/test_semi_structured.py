"""2:4 and BSR layers on NVIDIA GPUs; without one, errors that say what to do."""

import copy

import pytest
import torch
from torch import nn

from sparsekit.execution.semi_structured import (
    BSRLinear,
    SemiStructuredLinear,
    cuda_graph,
)
from sparsekit.patterns import NM, Block

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def pruned(pattern, device="cpu", dtype=torch.float16):
    torch.manual_seed(0)
    module = nn.Linear(256, 128).to(device, dtype)
    scores = module.weight.detach().abs()
    mask = pattern.mask(scores, pattern.count(scores.shape, 0.5))
    return module, mask


FORMS = [(SemiStructuredLinear, NM(2, 4)), (BSRLinear, Block(64, 64))]


@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_on_a_cpu_the_error_says_what_to_do(form, pattern):
    module, mask = pruned(pattern)
    with pytest.raises(
        ValueError, match=r"cpu: move it with .to\('cuda'\), or on a CPU"
    ):
        form.from_dense(module, mask=mask)
    with pytest.raises(ValueError, match="NVIDIA GPUs only"):
        cuda_graph(module, torch.ones(1, 256))


def test_a_weight_that_is_not_two_of_four_names_the_place():
    module, mask = pruned(NM(2, 4))
    mask[5, 8:12] = True
    with pytest.raises(ValueError, match="row 5 has 4 non-zeros in inputs 8 to 11"):
        SemiStructuredLinear.from_dense(module, mask=mask)
    with pytest.raises(ValueError, match="multiple of 4"):
        SemiStructuredLinear.from_dense(nn.Linear(10, 3))


@pytest.mark.parametrize("block", [7, 256, 96])
def test_blocks_that_the_kernel_does_not_take(block):
    with pytest.raises(ValueError, match=f"divides 128 and 256, got {block}"):
        BSRLinear.from_dense(nn.Linear(256, 128), block)


@gpu
@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_equals_dense_on_a_gpu(form, pattern):
    module, mask = pruned(pattern, "cuda")
    sparse = form.from_dense(module, mask=mask)
    assert torch.equal(sparse.to_module().weight, module.weight * mask)
    x = torch.randn(192, 256, device="cuda", dtype=torch.float16)
    weight = (module.weight * mask).double()
    exact = x.double() @ weight.t() + module.bias.double()
    with torch.no_grad():
        for made in (sparse, copy.deepcopy(sparse)):
            torch.testing.assert_close(made(x).double(), exact, rtol=0, atol=1e-2)
        replay = cuda_graph(sparse, x)
        torch.testing.assert_close(replay(x).double(), exact, rtol=0, atol=1e-2)
        again = replay(-x).clone()
        torch.testing.assert_close(
            again.double(), 2 * module.bias.double() - exact, rtol=0, atol=1e-2
        )
    with pytest.raises(ValueError, match="recorded for"):
        replay(x[:1])


@gpu
def test_saves_the_dense_weight_on_a_gpu():
    module, mask = pruned(NM(2, 4), "cuda")
    sparse = SemiStructuredLinear.from_dense(module, mask=mask)
    state = sparse.state_dict()
    assert torch.equal(state["weight"], module.weight * mask)
    other = SemiStructuredLinear.from_dense(nn.Linear(256, 128).half().cuda(), mask)
    other.load_state_dict(state)
    assert torch.equal(other.to_dense(), sparse.to_dense())
    with pytest.raises(ValueError, match="NVIDIA GPUs only"):
        sparse.cpu()
