import copy
import json

import pytest
import torch
from torch import nn

from benchmarks.networks import resnet18
from sparsekit.execution import calibration, convert, dense_state_dict
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.execution.linear import SparseLinear
from sparsekit.methods.rigl import RigL
from sparsekit.methods.static import Static
from sparsekit.sparsifier import Sparsifier


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "BUDGET", 0.0)


@pytest.fixture
def times(monkeypatch):
    """Decides what is faster: {part of a key: seconds}; the rest takes 1."""
    told: dict[str, float] = {}

    def seconds(key, make):
        make()()  # what would be timed runs
        return next((t for part, t in told.items() if part in key), 1.0)

    monkeypatch.setattr(calibration, "seconds", seconds)
    return told


def mlp(density: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(23, 31), nn.ReLU(), nn.Linear(31, 7))
    for p in model.parameters():
        if p.dim() > 1:
            p.data.mul_(torch.rand_like(p) < density)
    return model


def thin_resnet(density: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    model = resnet18(5).eval()
    for p in model.parameters():
        if p.dim() == 4:
            p.data.mul_(torch.rand_like(p) < density)
    return model


def test_values_compute_the_same_and_leave_the_model_alone():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    converted = convert(model, "values")
    assert isinstance(converted[0], SparseLinear)
    x = torch.randn(11, 23)
    torch.testing.assert_close(converted(x), model(x))
    converted[0].values.data.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(isinstance(m, SparseLinear) for m in model.modules())


def test_a_network_of_convolutions_stays_blocked():
    model = thin_resnet()
    converted = convert(model, "values")
    assert sum(isinstance(m, SparseConv2d) for m in converted.modules()) == 20
    x = torch.randn(3, 3, 13, 17)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-5)
    assert not converted.conversion.notes  # traced


def test_structure_comes_from_the_masks():
    model = mlp(density=1.0)
    masks = {"0.weight": torch.rand(31, 23) < 0.3}
    model[0].weight.data[:, :5] = 0  # alive where the mask says so
    converted = convert(model, "values", masks=masks)
    assert torch.equal(converted[0].mask(), masks["0.weight"])
    assert converted[2].density == 1
    model[0].weight.data.mul_(masks["0.weight"])
    x = torch.randn(4, 23)
    torch.testing.assert_close(converted(x), model(x))


def test_dense_state_returns():
    model = thin_resnet()
    again = resnet18(5)
    again.load_state_dict(dense_state_dict(convert(model, "values")))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_auto_takes_what_is_faster_and_says_why(times):
    times["(31, 23)"] = 1.0
    times["Linear (7, 31) stride  input (11, 31) inference values"] = 0.5
    converted = convert(mlp(0.6).eval(), "auto", example=torch.randn(11, 23))
    forms = {c.name: c.form for c in converted.conversion.choices}
    assert forms == {"0": "dense", "2": "values"}
    table = str(converted.conversion)
    assert "2.00x" in table
    assert "compacted" in table


def test_auto_never_ends_slower(times, monkeypatch):
    times["values"] = 0.1
    monkeypatch.setattr("sparsekit.execution.conversion._slower", lambda *a: 1.5)
    model = mlp().eval()
    converted = convert(model, "auto", example=torch.randn(11, 23))
    assert not any(isinstance(m, SparseLinear) for m in converted.modules())
    assert "1.50x the dense time: kept dense" in str(converted.conversion)
    x = torch.randn(5, 23)
    torch.testing.assert_close(converted(x), model(x))


def test_where_chooses():
    by_name = convert(mlp(), "values", where="2")
    by_function = convert(mlp(), "values", where=lambda name, module: name == "2")
    for converted in (by_name, by_function):
        assert isinstance(converted[0], nn.Linear)
        assert isinstance(converted[2], SparseLinear)


class Recurrent(nn.Module):
    """Weights of layers that no form fits, beside some that one does."""

    def __init__(self):
        super().__init__()
        self.before = nn.Linear(7, 8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        x = self.lstm(self.before(x) + self.positions)[0]
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("to", ["values", "auto", "compact"])
def test_masks_of_weights_without_a_form_hold_too(to, times):
    """What a Sparsifier masks by default is what convert takes, whatever the model."""
    times["values"] = 0.1
    torch.manual_seed(0)
    model = Recurrent().eval()
    untouched = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks = Sparsifier(model, optimizer, Static(0.7)).finalize()
    assert len(masks) == 6
    x = torch.randn(3, 5, 7)
    # The masks make the dense model the masked one; without them it is not.
    converted = convert(untouched, to, masks=masks, example=x)
    torch.testing.assert_close(converted(x), model(x))
    assert not torch.allclose(untouched(x), model(x))
    choices = {c.name: c for c in converted.conversion.choices}
    assert choices["lstm.weight_hh_l0"].reason == "LSTM has no sparse form"
    assert choices["positions"].reason == "Recurrent has no sparse form"
    share = masks["positions"].float().mean().item()
    assert choices["positions"].density == pytest.approx(share)
    assert to == "compact" or choices["before"].form == "values"


def test_a_wrapped_model_is_converted_by_the_names_inside():
    model = nn.DataParallel(mlp())
    masks = {"0.weight": torch.rand(31, 23) < 0.3}
    converted = convert(model, "values", masks=masks)
    assert converted[0].mask().equal(masks["0.weight"])


def test_shared_weights_and_embeddings():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(13, 5)
            self.sparse_table = nn.Embedding(13, 5)
            self.sparse_table.weight.data[2:] = 0
            self.out = nn.Linear(5, 13, bias=False)
            self.out.weight = self.table.weight

        def forward(self, i):
            return self.out(self.table(i) + self.sparse_table(i))

    model = Tied()
    converted = convert(model, "values")
    assert isinstance(converted.sparse_table, SparseEmbedding)
    assert converted.out.weight is converted.table.weight
    reasons = {c.name: c.reason for c in converted.conversion.choices}
    assert reasons["out"] == "other modules hold the same weight"
    i = torch.arange(13)
    torch.testing.assert_close(converted(i), model(i))


def test_compact_and_blocks():
    model = mlp().eval()
    model[0].weight.data[3:9] = 0
    x = torch.randn(6, 23)
    smaller = convert(model, "compact")
    assert smaller[0].out_features <= 25
    torch.testing.assert_close(smaller(x), model(x))
    square = nn.Sequential(nn.Linear(64, 64))
    square[0].weight.data[:, 32:] = 0
    blocks = convert(square, "blocks", block=16)
    x = torch.randn(6, 64)
    torch.testing.assert_close(blocks(x), square(x))


def test_a_sparsifier_drives_the_converted_model():
    """Converted dense, then pruned: as the masked model with the same seed."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(23, 31), nn.ReLU(), nn.Linear(31, 7)).double()
    models = [plain, convert(plain, "values")]
    method = RigL(0.8, every=3, end=30)
    trained = []
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        sparsifier = Sparsifier(model, optimizer, method)
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            x = torch.randn(16, 23, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            sparsifier.before_step()
            optimizer.step()
            sparsifier.after_step()
        trained.append(sparsifier.finalize())
    for name, mask in trained[0].items():
        assert torch.equal(mask, trained[1][name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "csr"}, "no form 'csr'; choose one of auto, values"),
        ({"to": "Value"}, r"did you mean 'values'\?"),
        ({"to": "auto"}, "pass example="),
        (
            {"to": "values", "masks": {"9.weight": torch.ones(1)}},
            "no parameter of the model",
        ),
        ({"to": "values", "masks": {"0.weight": torch.ones(2) > 0}}, "shape .31, 23."),
        ({"to": "values", "where": ["5"]}, "where names '5'.*those are 0, 2"),
        ({"to": "values", "where": ["1"]}, "where names '1'.*no layer that a form"),
        ({"to": "values", "density": 0.0}, "density is in"),
        ({"to": "2:4"}, "dense"),
    ],
)
def test_bad_input_is_named(arguments, message):
    if arguments == {"to": "2:4"} and not torch.cuda.is_available():
        kept = convert(mlp(), "2:4")  # every layer says why it stays
        assert all(c.form == "dense" for c in kept.conversion.choices)
        return
    with pytest.raises(ValueError, match=message):
        convert(mlp(), **arguments)


def test_what_is_no_mapping_and_no_tensor_is_named():
    model = mlp()
    sparsifier = Sparsifier(
        model, torch.optim.SGD(model.parameters(), 0.1), Static(0.5)
    )
    with pytest.raises(TypeError, match=r"such as sparsifier\.alive, got a Sparsifier"):
        convert(model, "values", masks=sparsifier)
    with pytest.raises(TypeError, match=r"example is one tensor.* got a tuple"):
        convert(model, example=(torch.randn(3, 23),))


def test_a_time_is_measured_once(tmp_path):
    calls = []

    def make():
        return lambda: calls.append(1)

    first = calibration.seconds("a", make)
    n = len(calls)
    assert n >= 5
    assert calibration.seconds("a", make) == first
    assert len(calls) == n
    path = tmp_path / "calibration.json"
    assert list(json.loads(path.read_text())) == [f"{calibration.machine()} | a"]
    path.write_text("{damaged")
    calibration.seconds("a", make)
    assert len(calls) > n


def test_an_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert calibration.seconds("a", lambda: lambda: None) > 0
