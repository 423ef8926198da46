"""2:4 and BSR layers on NVIDIA GPUs; without one, errors that say what to do."""

import copy

import pytest
import torch
from torch import nn

from sparsekit.execution import semi_structured
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


@pytest.fixture
def anywhere(monkeypatch):
    """What surrounds the GPU's product: torch's CSR computes in its place."""

    def packed(weight):
        assert weight.is_contiguous()
        return weight.to_sparse_csr()

    monkeypatch.setattr(semi_structured, "_require_gpu", lambda *_: None)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", packed)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_what_surrounds_the_product(anywhere, form, pattern, bias):
    module, mask = pruned(pattern, dtype=torch.float32)
    if not bias:
        module.bias = None
    before = module.weight.detach().clone()
    for training in (True, False):
        sparse = form.from_dense(module.train(training), mask=mask)
        assert sparse.training is training
        assert (sparse.out_features, sparse.in_features) == (128, 256)
        back = sparse.to_module()
        assert back.training is training
        assert torch.equal(back.weight, before * mask)
        assert (back.bias is None) is not bias
        assert not any(p.requires_grad for p in sparse.parameters())
        x = torch.randn(5, 256)
        torch.testing.assert_close(sparse(x), back(x))
        assert not sparse(x).requires_grad
    if bias:
        module.bias.data.fill_(9.0)  # its own copy
        assert torch.equal(sparse.bias, back.bias)
    assert torch.equal(module.weight, before)
    module.weight.data.mul_(mask)  # without a mask: the weights that are not 0
    again = form.from_dense(module)
    assert torch.equal(again.to_module().weight, module.weight)
    assert not again(x).requires_grad
    turned = nn.Linear(256, 128)  # its weight does not lie row by row
    turned.weight.data = module.weight.detach().t().contiguous().t()
    assert torch.equal(form.from_dense(turned).to_module().weight, module.weight)


def test_shares_of_blocks_are_told(anywhere):
    weight = torch.zeros(64, 96)
    weight[:32, 32:64] = weight[32:, :32] = 1
    sparse = BSRLinear(weight, 32, None)
    assert repr(sparse) == "BSRLinear(96, 64, block=32, 33.3%)"
    assert sparse.crow.tolist() == [0, 1, 2]
    assert sparse.col.tolist() == [1, 0]
    assert sparse.packed().shape == (64, 96)
    assert BSRLinear.from_dense(nn.Linear(64, 64)).block == 64


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_blocks_that_the_kernel_takes(anywhere, block):
    assert BSRLinear(torch.ones(128, 256), block, None).block == block
    for sizes in ((128 + block // 2, 256), (128, 256 + block // 2)):
        with pytest.raises(ValueError, match=r"block is 16, 32, 64 or 128"):
            BSRLinear(torch.ones(sizes), block, None)


def two_of_four(rows, columns):
    weight = torch.zeros(rows, columns)
    weight.view(rows, -1, 4)[:, :, 1:3] = torch.randn(rows, columns // 4, 2)
    return weight


def test_its_state_is_that_of_a_dense_layer(anywhere):
    weight, bias = two_of_four(8, 16), torch.randn(8)
    sparse = SemiStructuredLinear(weight, bias)
    assert repr(sparse) == "SemiStructuredLinear(16, 8, bias=True)"
    dense = nn.Linear(16, 8)
    dense.load_state_dict(sparse.state_dict())
    assert torch.equal(dense.weight, weight)
    assert torch.equal(dense.bias, bias)
    other = SemiStructuredLinear(two_of_four(8, 16), None)
    with pytest.raises(RuntimeError, match=r'Unexpected.*"bias"'):
        other.load_state_dict(dense.state_dict())
    other = SemiStructuredLinear(two_of_four(8, 16), torch.zeros(8))
    other.load_state_dict(dense.state_dict())
    assert torch.equal(other.to_dense(), weight)
    with pytest.raises(RuntimeError, match=r'Missing.*"weight"'):
        other.load_state_dict({"bias": bias})
    with pytest.raises(ValueError, match=r"weight is \(8, 20\), this layer 8 x 16"):
        other.load_state_dict({"weight": two_of_four(8, 20), "bias": bias})
    with pytest.raises(ValueError, match="is not 2:4: row 0"):
        other.load_state_dict({"weight": torch.ones(8, 16), "bias": bias})
    assert torch.equal(other.to_dense(), weight)
    nested = nn.Sequential(other)
    assert set(nested.state_dict()) == {"0.bias", "0.weight"}
    nested.load_state_dict(nested.state_dict())


def test_copies_and_casts_take_the_packed_weight_along(anywhere):
    weight = two_of_four(8, 16)
    sparse = SemiStructuredLinear(weight, torch.ones(8)).eval()
    copied = copy.deepcopy(nn.Sequential(sparse, sparse))
    assert copied[0] is copied[1]
    assert copied[0] is not sparse
    assert copied[0].training is False
    assert torch.equal(copied[0].to_dense(), weight)
    copied[0].bias.data.zero_()
    assert sparse.bias.sum() == 8
    wide = copy.deepcopy(sparse).double()
    assert wide.to_dense().dtype == wide.bias.dtype == torch.float64
    assert wide(torch.ones(2, 16).double()).dtype == torch.float64
    assert wide.double() is wide


def test_a_weight_that_the_gpu_does_not_pack_is_named(anywhere, monkeypatch):
    def refuse(weight):
        raise RuntimeError("shapes")

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", refuse)
    with pytest.raises(ValueError, match=r"8 x 16 torch.float32: shapes. Sizes .* 64"):
        SemiStructuredLinear(two_of_four(8, 16), None)


def test_where_and_in_what_it_computes():
    require = semi_structured._require_gpu

    class Told:
        device, dtype = torch.device("cuda"), torch.float32

    require(Told, (torch.float16, torch.float32))
    with pytest.raises(
        ValueError, match=r"^float16 or bfloat16 is needed, got torch.f"
    ):
        require(Told, semi_structured.HALF)
    semi_structured._require_two_of_four(two_of_four(3, 8))
    for shape in ((8,), (2, 3, 8), (3, 7)):
        with pytest.raises(ValueError, match="in a multiple of 4, got"):
            semi_structured._require_two_of_four(torch.zeros(shape))
    three = two_of_four(3, 8)
    three[1, 4:7] = 1
    with pytest.raises(ValueError, match="row 1 has 3 non-zeros in inputs 4 to 7"):
        semi_structured._require_two_of_four(three)


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
