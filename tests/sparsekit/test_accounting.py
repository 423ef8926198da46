"""FLOPs against closed forms and torch's own counter; bytes and energy by hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from sparsekit.accounting import (
    energy,
    executed_flops,
    forward_flops,
    layers,
    training_bytes,
    training_flops,
)
from sparsekit.packing import encode, nbytes

B, T, E, H = 3, 5, 6, 2  # batch, time, embedding, heads


def torch_total(model, *inputs):
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def mlp():
    return nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),  # 11 x 7 -> 6 x 4
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, (3, 1), bias=False),  # 6 x 4 -> 4 x 4
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(5, 2),
    )


CNN = 2 * B * (6 * 4 * 6 * (2 * 9) + 4 * 4 * 5 * (6 * 3) + 5 * 2)
ATTENTION = 2 * B * (T * 4 * E * E) + 2 * (2 * B * T * T * E)
ENCODER = ATTENTION + 2 * B * T * 2 * E * 17


def encoder():
    return nn.TransformerEncoderLayer(E, H, 17, batch_first=True)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)


def sequence():
    return torch.randn(B, T, E)


CASES = {
    "mlp": (mlp, lambda: torch.randn(B, 7), 2 * B * (7 * 11 + 11 * 3)),
    "vector": (mlp, lambda: torch.randn(7), 2 * (7 * 11 + 11 * 3)),
    "cnn": (cnn, lambda: torch.randn(B, 4, 11, 7), CNN),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), lambda: torch.randn(B, 4, 11), 3888),
    "transposed": (  # every input pixel meets every entry of the kernel
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
        lambda: torch.randn(B, 4, 5, 7),
        2 * B * 5 * 7 * 4 * 6 * 9,
    ),
    "rnn": (
        lambda: nn.RNN(E, 11, batch_first=True),
        sequence,
        2 * B * T * 11 * (E + 11),
    ),
    "gru": (
        lambda: nn.GRU(E, 11, 2, bidirectional=True, batch_first=True),
        sequence,
        2 * B * T * 3 * 11 * 2 * (E + 11 + 22 + 11),
    ),
    "lstm": (
        lambda: nn.LSTM(E, 11, batch_first=True),
        sequence,
        2 * B * T * 4 * 11 * (E + 11),
    ),
    "lstm proj": (
        lambda: nn.LSTM(E, 11, proj_size=3, batch_first=True),
        sequence,
        2 * B * T * (44 * E + 44 * 3 + 33),
    ),
    "cell": (lambda: nn.LSTMCell(E, 11), lambda: torch.randn(B, E), 6 * 44 * 17),
    "attention": (lambda: SelfAttention(E, H, batch_first=True), sequence, ATTENTION),
    "encoder": (encoder, sequence, ENCODER),
    "encoder stack": (
        lambda: nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False),
        sequence,
        2 * ENCODER,
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(13, 7), nn.LayerNorm(7), nn.Linear(7, 3)),
        lambda: torch.tensor([[1, 2], [3, 4]]),
        2 * 4 * 7 * 3,
    ),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_totals_equal_closed_forms(case, mode, grad):
    build, make_input, expected = CASES[case]
    model = build().train(mode)
    with torch.set_grad_enabled(grad):
        flops = forward_flops(model, make_input())
    assert flops.total == expected
    assert set(flops.parameters) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "case", ["mlp", "cnn", "conv1d", "transposed", "gru", "cell", "attention"]
)
def test_totals_equal_torchs_counter_where_it_sees_everything(case):
    build, make_input, _ = CASES[case]
    # Training mode with gradients: no fused path. Not the LSTM and the encoder, whose
    # CPU kernels torch counts as 0.
    model, x = build(), make_input()
    assert forward_flops(model, x).total == torch_total(model, x)


def test_an_lstm_equals_torchs_counter_without_the_fused_kernel():
    lstm, x = nn.LSTM(E, 11, 2, batch_first=True), sequence()
    enabled = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(False)
        expected = torch_total(lstm, x)
    finally:
        torch._C._set_mkldnn_enabled(enabled)
    assert expected > 0
    assert forward_flops(lstm, x).total == expected
    assert torch._C._get_mkldnn_enabled() == enabled


def test_attention_by_parameter_and_cross_attention():
    model = nn.MultiheadAttention(E, H, batch_first=True)
    query, memory = sequence(), torch.randn(B, 13, E)
    flops = forward_flops(model, query, memory, memory)
    assert flops.parameters["in_proj_weight"] == 2 * B * (T + 2 * 13) * E * E
    assert flops.parameters["out_proj.weight"] == 2 * B * T * E * E
    assert flops.other == 2 * 2 * B * T * 13 * E
    # Only the query's third of in_proj stays: its rows are used T times, not 13.
    mask = torch.zeros(3 * E, E, dtype=torch.bool)
    mask[:E] = True
    sparse = flops.sparse({"in_proj_weight": mask})
    assert sparse.parameters["in_proj_weight"] == 2 * B * T * E * E
    assert sparse.parameters["out_proj.weight"] == flops.parameters["out_proj.weight"]


def test_packed_sequences_count_their_real_lengths():
    lstm = nn.LSTM(3, 7)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 3), [5, 3])
    assert forward_flops(lstm, packed).total == 2 * (5 + 3) * 4 * 7 * (3 + 7)


def test_scaled_dot_product_attention_counts_on_the_cpu():
    class Attend(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    q, k = torch.randn(B, H, T, 4), torch.randn(B, H, 13, 4)
    flops = forward_flops(Attend(), q, k, k)
    assert (flops.parameters, flops.other) == ({}, 2 * 2 * B * H * T * 13 * 4)


def module(forward, **parameters):
    """A module with parameters of the given shapes."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, shape in parameters.items():
                setattr(self, name, nn.Parameter(torch.randn(shape)))

        def forward(self, x):
            return forward(self, x)

    return Model()


ATTRIBUTED = {
    "left of the product": (lambda m, x: m.w @ x.t(), {"w": (3, 5)}, {"w": 2 * 4 * 15}),
    "vector": (lambda m, x: m.w @ x[0], {"w": (3, 5)}, {"w": 30}),
    "einsum": (
        lambda m, x: torch.einsum("bi,hio->bho", x, m.w),
        {"w": (2, 5, 3)},
        {"w": 2 * 4 * 30},
    ),
    "broadcast copy": (
        lambda m, x: x.view(2, 1, 2, 5) @ m.w,
        {"w": (3, 5, 7)},
        {"w": 2 * 2 * 3 * 2 * 5 * 7},
    ),
    "cast": (lambda m, x: x.double() @ m.w.double(), {"w": (5, 3)}, {"w": 120}),
    "used twice": (lambda m, x: x @ m.w @ m.w, {"w": (5, 5)}, {"w": 2 * 2 * 4 * 25}),
    "low rank": (
        lambda m, x: nn.functional.linear(x, m.w + m.b @ m.a),
        {"w": (3, 5), "b": (3, 2), "a": (2, 5)},
        {"w": 120, "a": 60, "b": 0},
    ),
    "concatenated": (
        lambda m, x: nn.functional.linear(x, torch.cat([m.q, m.k])),
        {"q": (2, 5), "k": (3, 5)},
        {"q": 80, "k": 120},
    ),
    "bias of the batch's shape": (
        lambda m, x: (x @ m.w + m.b) @ m.w,
        {"w": (5, 5), "b": (4, 5)},
        {"w": 400, "b": 0},
    ),
}


@pytest.mark.parametrize("case", ATTRIBUTED)
def test_products_belong_to_the_parameter_they_use(case):
    forward, parameters, expected = ATTRIBUTED[case]
    flops = forward_flops(module(forward, **parameters), torch.randn(4, 5))
    assert flops.parameters == expected
    assert flops.other == 0


def test_tied_and_parametrized_weights():
    class Half(nn.Module):
        def forward(self, weight):
            return weight * torch.full_like(weight, 0.5)

    model = mlp()
    parametrize.register_parametrization(model[0], "weight", Half())
    flops = forward_flops(model, torch.randn(B, 7))
    assert flops.parameters["0.parametrizations.weight.original"] == 2 * B * 77

    tied = nn.Sequential(nn.Embedding(13, 7), nn.Linear(7, 13, bias=False))
    tied[1].weight = tied[0].weight
    flops = forward_flops(tied, torch.tensor([1, 2]))
    assert flops.parameters == {"0.weight": 2 * 2 * 7 * 13}


def test_activations_only_go_to_other():
    flops = forward_flops(module(lambda m, x: x @ x.t(), w=(2, 2)), torch.randn(4, 5))
    assert (flops.parameters, flops.other) == ({"w": 0}, 2 * 4 * 4 * 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sparse_flops_equal_removing_the_weights(layout):
    # Whole filters absent: as many FLOPs as the smaller convolution has.
    model = nn.Conv2d(3, 10, 3, padding=1).to(memory_format=layout)
    x = torch.randn(2, 3, 7, 7)
    mask = torch.zeros(10, 3, 3, 3, dtype=torch.bool)
    mask[[1, 4, 8]] = True
    smaller = forward_flops(nn.Conv2d(3, 3, 3, padding=1), x)
    assert forward_flops(model, x).sparse({"weight": mask}).total == smaller.total


def test_sparse_flops_of_a_masked_lstm_by_hand():
    lstm = nn.LSTM(E, 11, batch_first=True)
    mask = torch.zeros(44, 11, dtype=torch.bool)
    mask.view(-1)[::7] = True
    flops = forward_flops(lstm, sequence()).sparse({"weight_hh_l0": mask})
    assert flops.parameters["weight_hh_l0"] == 2 * B * T * int(mask.sum())
    assert flops.parameters["weight_ih_l0"] == 2 * B * T * 44 * E


def test_the_model_is_left_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            self.last = x.detach()  # bound to another tensor
            return x + torch.rand(())

    model = nn.Sequential(cnn(), Counting())
    model[0][1].eval()  # one module differs from the rest
    x = torch.randn(B, 4, 11, 7)
    model(x).sum().backward()
    modes = [m.training for m in model.modules()]
    last = model[1].last
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()

    forward_flops(model, x)
    assert [m.training for m in model.modules()] == modes
    assert model[1].last is last
    assert all(torch.equal(model.state_dict()[n], t) for n, t in state.items())
    assert all(
        torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_the_model_is_left_as_it_was_after_an_error():
    model = cnn()
    with pytest.raises(RuntimeError):
        forward_flops(model, torch.randn(B, 5, 11, 7))
    assert all(m.training for m in model.modules())
    assert torch._C._get_mkldnn_enabled()


def test_an_unknown_heavy_operation_is_never_zero():
    model = nn.Bilinear(4, 6, 3)
    inputs = torch.randn(B, 4), torch.randn(B, 6)
    with pytest.raises(NotImplementedError, match=r"aten\._trilinear.*\(3, 4, 6\)"):
        forward_flops(model, *inputs)

    def bilinear(x, weight, y, *_, out_shape):
        return 2 * out_shape[0] * weight[0] * weight[1] * weight[2] * 2

    formulas = {torch.ops.aten._trilinear: bilinear}
    flops = forward_flops(model, *inputs, formulas=formulas)
    assert flops.parameters["weight"] == 2 * B * 3 * 4 * 6 * 2

    with pytest.raises(NotImplementedError, match="fft"):
        forward_flops(module(lambda m, x: torch.fft.rfft(x)), torch.randn(4, 8))


def test_a_custom_kernel_is_refused_until_its_formula_is_given():
    with torch.library._scoped_library("sparsekit_test", "DEF") as library:
        library.define("product(Tensor x, Tensor w) -> Tensor")
        library.impl("product", lambda x, w: x @ w, "CPU")
        product = torch.ops.sparsekit_test.product
        model = module(lambda m, x: product(x, m.w), w=(5, 3))
        with pytest.raises(NotImplementedError, match="sparsekit_test"):
            forward_flops(model, torch.randn(4, 5))
        formula = {product: lambda x, w, out_shape: 2 * x[0] * x[1] * w[1]}
        flops = forward_flops(model, torch.randn(4, 5), formulas=formula)
        assert flops.parameters == {"w": 120}


def test_training_flops_by_hand():
    # A dense gradient every 100 steps, averaged step by step.
    assert training_flops(1.0, 1.0) == 3
    assert training_flops(0.2, 1.0) == pytest.approx(0.6)
    steps = [3 * 0.2] * 100 + [2 * 0.2 + 1.0]
    average = sum(steps) / len(steps)
    assert training_flops(0.2, 1.0, dense_gradient_every=100) == pytest.approx(average)
    assert training_flops(0.2, 1.0, dense_gradient_every=0) == pytest.approx(1.4)
    assert executed_flops(7) == training_flops(7, 7)
    with pytest.raises(ValueError, match="got 2 and 1"):
        training_flops(2, 1)
    with pytest.raises(ValueError, match="got -1"):
        training_flops(1, 1, dense_gradient_every=-1)


@pytest.mark.parametrize("format", ["csr", "bitmask", "delta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_bytes_count_what_would_be_stored(format, dtype):
    weight = torch.randn(31, 53).to(dtype)
    mask = weight > 1
    parts = encode(weight, mask, format)
    arrays = 2 + 2  # weight, gradient, two moments
    values = parts.pop("values")
    expected = nbytes(parts) + arrays * nbytes({"": values})
    assert training_bytes(mask, 2, format, weight.element_size()) == expected


def test_training_bytes_of_masked_adam_are_17_bytes_a_weight():
    mask = torch.zeros(7, 11, dtype=torch.bool)
    assert training_bytes(mask, 2) == 7 * 11 * (4 + 4 + 8 + 1)
    with pytest.raises(ValueError, match="got -1"):
        training_bytes(mask, -1)


def test_energy_of_one_multiply_accumulate_and_one_word():
    assert energy(2, 0) == pytest.approx(4.6e-12)
    assert energy(0, 4) == pytest.approx(640e-12)


def test_layers_account_for_every_parameter():
    model = mlp()
    masks = {"0.weight": torch.rand(11, 7) < 0.3}
    flops = forward_flops(model, torch.randn(B, 7))
    rows = layers(model, masks, flops)
    assert [row.name for row in rows] == [name for name, _ in model.named_parameters()]
    first, bias = rows[0], rows[1]
    active = int(masks["0.weight"].sum())
    assert (first.active, first.numel) == (active, 77)
    assert first.sparsity == pytest.approx(1 - active / 77)
    assert (first.dense_flops, first.sparse_flops) == (2 * B * 77, 2 * B * active)
    for format, size in first.nbytes.items():
        parts = encode(model[0].weight, masks["0.weight"], format)
        assert size == nbytes(parts)
    assert set(bias.nbytes.values()) == {44}
    assert layers(model, masks)[0].sparse_flops is None


def test_masks_that_do_not_fit_are_named():
    model = mlp()
    flops = forward_flops(model, torch.randn(B, 7))
    with pytest.raises(ValueError, match="'fc' is not a parameter"):
        flops.sparse({"fc": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"'0\.weight' is bool of shape \(11, 7\)"):
        layers(model, {"0.weight": torch.ones(7, 11, dtype=torch.bool)})
