import copy
import json

import pytest
import torch
from torch import nn

from benchmarks.networks import resnet18
from sparsekit.execution import (
    calibration,
    conversion,
    convert,
    dense_state_dict,
    forms,
)
from sparsekit.execution.conv import SparseConv2d
from sparsekit.execution.conversion import Conversion
from sparsekit.execution.embedding import SparseEmbedding
from sparsekit.execution.forms import Choice
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


# ---- what each part decides ----------------------------------------------------------


def test_a_table_of_choices():
    choices = [
        Choice("0", (31, 23), 0.25, "values", 1.5, 0.5, "3.00x"),
        Choice("long.name", (5,), 1.0, "dense", None, None, "not timed"),
    ]
    assert str(Conversion(choices, ["a note"])).splitlines() == [
        "layer      shape  density  form    dense ms  sparse ms  why",
        "0          31x23  0.2500   values  1.500     0.500      3.00x",
        "long.name  5      1.0000   dense   –         –          not timed",
        "a note",
    ]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_is_one_layer(training):
    model = nn.Linear(23, 31).train(training)
    model.weight.data.mul_(torch.rand(31, 23) < 0.2)
    converted = convert(model, "values")
    assert isinstance(converted, SparseLinear)
    assert converted.training is training
    assert [c.name for c in converted.conversion.choices] == [""]
    x = torch.randn(3, 23)
    torch.testing.assert_close(converted(x), model(x))
    masks = {"weight": torch.rand(31, 23) < 0.5}
    assert torch.equal(convert(model, "values", masks=masks).mask(), masks["weight"])
    assert list(dense_state_dict(converted)) == ["bias", "weight"]


def test_modes_of_layers_stay():
    model = mlp().train()
    model[2].eval()
    converted = convert(model, "values")
    assert [m.training for m in converted] == [True, True, False]


def test_a_layer_in_two_places_is_one_layer():
    model = mlp()
    shared = nn.Linear(31, 31)
    model = nn.Sequential(model[0], shared, nn.ReLU(), shared)
    converted = convert(model, "values")
    assert converted[1] is converted[3]
    assert isinstance(converted[1], SparseLinear)


def test_masks_go_by_either_name_of_a_tied_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied()
    mask = torch.rand(5, 5) < 0.5
    for name in ("a.weight", "b.weight"):
        converted = convert(model, "values", masks={name: mask})
        assert torch.equal(converted.b.weight, model.a.weight * mask)
        assert {c.form for c in converted.conversion.choices} == {"dense"}


@pytest.mark.parametrize("to", ["values", "blocks"])
def test_a_layer_that_fits_no_form_is_an_error_only_if_it_is_named(to):
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(7, 3))
    for where in ("all", "auto", lambda name, module: True):
        converted = convert(model, to, where=where)
        kept = {c.name: c for c in converted.conversion.choices}
        assert kept["0"].form == "dense"
        assert "has no" in kept["0"].reason
        assert type(converted[0]) is nn.Conv2d
    for where in ("0", ["0"]):
        with pytest.raises(ValueError, match="has no"):
            convert(model, to, where=where)


def test_where_names_are_looked_up_and_explained():
    for where in ("2", ["2"], {"2"}, iter(["2"])):
        converted = convert(mlp(), "values", where=where)
        assert [type(m) for m in converted] == [nn.Linear, nn.ReLU, SparseLinear]
        (choice,) = converted.conversion.choices
        assert (choice.name, choice.reason) == ("2", "not timed")
        assert (choice.dense_ms, choice.sparse_ms) == (None, None)


def test_embeddings_are_converted_to_save_memory(times):
    model = nn.Sequential(nn.Embedding(13, 5), nn.Linear(5, 3))
    times["values"] = 0.1
    x = torch.randint(0, 13, (4,))
    full = convert(model, "values", example=x)
    assert [c.form for c in full.conversion.choices] == ["dense", "values"]
    assert full.conversion.choices[0].reason == "saves memory, not time"
    everywhere = convert(model, "values", where="all", example=x)
    assert [c.form for c in everywhere.conversion.choices] == ["values", "values"]
    assert {c.reason for c in everywhere.conversion.choices} == {"not timed"}
    model[0].weight.data[0, 0] = 0
    fewer = convert(model, "values", example=x)
    assert fewer.conversion.choices[0].form == "values"


def test_layers_that_the_example_does_not_reach_are_not_timed(times):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x)

    converted = convert(Partly(), "values", example=torch.randn(2, 5))
    forms = {c.name: (c.form, c.reason) for c in converted.conversion.choices}
    assert forms == {"used": ("dense", "1.00x"), "unused": ("values", "not timed")}


def test_a_layer_is_timed_at_the_density_that_it_will_have(monkeypatch):
    """0.25 of the weights of a dense model, if that is what a Sparsifier leaves."""
    timed = []

    def layer_call(module, x, training):
        if isinstance(module, SparseLinear):
            timed.append(module.density)
        return lambda: None

    monkeypatch.setattr(calibration, "layer_call", layer_call)
    convert(mlp(1.0), "values", example=torch.randn(4, 23), density=0.25)
    assert timed == pytest.approx([0.25, 0.25], abs=0.07)
    assert len(set(timed)) == 2
    timed.clear()
    model = mlp(0.5)
    convert(model, "values", example=torch.randn(5, 23))
    shares = [float((m.weight != 0).float().mean()) for m in (model[0], model[2])]
    assert timed == pytest.approx(shares)


@pytest.mark.parametrize("density", [1.0, 1e-6])
def test_densities_that_a_sparsifier_may_want(density):
    made = convert(mlp(1.0), "values", density=density)
    assert {c.density for c in made.conversion.choices} == {density}


@pytest.mark.parametrize(
    ("to", "density"), [("values", 0), ("values", 1.001), ("blocks", 0.5)]
)
def test_densities_that_are_refused(to, density):
    with pytest.raises(ValueError, match=rf"density is in \(0, 1\].*got {density}, "):
        convert(mlp(), to, density=density)


@pytest.mark.parametrize("training", [True, False])
def test_layers_are_timed_in_the_mode_of_the_model(monkeypatch, training):
    keys = []
    monkeypatch.setattr(calibration, "seconds", lambda key, make: keys.append(key) or 1)
    convert(mlp(0.5).train(training), "values", example=torch.randn(4, 23))
    mode = "training" if training else "inference"
    assert len(keys) == 4  # two layers, dense and sparse
    inputs = (23, 23, 31, 31)
    told = zip(inputs, keys, strict=True)
    assert all(f"input (4, {n}) {mode}" in key for n, key in told)
    assert sum(" values density 0." in key for key in keys) == 2


def test_a_convolution_is_timed_in_both_layouts_and_with_its_stride(times):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
    times["torch.channels_last"] = 0.4
    times["values"] = 0.3
    (choice,) = convert(
        model, "values", example=torch.randn(2, 3, 8, 8)
    ).conversion.choices
    assert choice.dense_ms == 400  # the faster of both
    assert choice.sparse_ms == 300
    assert (choice.form, choice.reason) == ("values", "1.33x")
    del times["torch.channels_last"]
    times["stride (2, 2)"] = 0.35
    (choice,) = convert(
        model, "values", example=torch.randn(2, 3, 8, 8)
    ).conversion.choices
    assert choice.dense_ms == 350


@pytest.mark.parametrize(
    ("sparse", "form"), [(1 / 1.06, "values"), (1 / 1.04, "dense"), (1.0, "dense")]
)
def test_a_twentieth_faster_is_the_least(times, sparse, form):
    times["values"] = sparse
    converted = convert(mlp(), "values", example=torch.randn(4, 23))
    assert {c.form for c in converted.conversion.choices} == {form}


class Clock(nn.Module):
    """Takes the next of its durations at each call."""

    now = 0.0

    def __init__(self, durations):
        super().__init__()
        self.durations, self.calls = durations, 0

    def forward(self, x):
        Clock.now += self.durations[self.calls % len(self.durations)]
        self.calls += 1
        return x


@pytest.mark.parametrize(
    ("converted", "dense", "ratio"),
    [
        ([2.0], [1.0], 2.0),
        ([1.0], [1.0], None),
        ([1.0], [2.0], None),
        # The median of nine ratios: 1 to 9 of them.
        ([3.0, 9.0, 1.0, 7.0, 5.0, 8.0, 2.0, 6.0, 4.0, 100.0], [1.0], 5.0),
    ],
)
def test_the_whole_model_is_compared_nine_times(monkeypatch, converted, dense, ratio):
    monkeypatch.setattr(conversion.time, "perf_counter", lambda: Clock.now)
    models = Clock(converted).eval(), Clock(dense).eval()
    assert conversion._slower(*models, torch.zeros(1)) == ratio
    assert [m.calls for m in models] == [9, 9]


def test_the_whole_is_compared_only_if_something_became_sparse(times, monkeypatch):
    asked = []
    monkeypatch.setattr(conversion, "_slower", lambda *a: asked.append(a))
    convert(mlp(), "auto", example=torch.randn(4, 23))
    assert not asked
    times["(31, 23) stride  input (4, 23) training values"] = 0.5
    converted = convert(mlp(0.9), "auto", example=torch.randn(4, 23))
    assert len(asked) == 1
    assert [c.form for c in converted.conversion.choices] == ["values", "dense"]
    convert(mlp(), "values", example=torch.randn(4, 23))
    assert len(asked) == 1


def test_masks_are_not_changed_and_the_example_neither(times):
    model, x = mlp(1.0), torch.randn(4, 23)
    masks = {"0.weight": torch.rand(31, 23) < 0.5}
    kept = masks["0.weight"].clone(), x.clone(), copy.deepcopy(model.state_dict())
    convert(model, "auto", masks=masks, example=x)
    assert torch.equal(masks["0.weight"], kept[0])
    assert torch.equal(x, kept[1])
    assert all(torch.equal(v, kept[2][k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_compaction_is_told_in_numbers():
    model = mlp(1.0)
    model[0].weight.data[3:9] = 0
    model[0].bias.data[3:9] = 0
    converted = convert(model, "compact")
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, converted))
    assert converted.conversion.notes == [
        f"compacted: {before:,} -> {after:,} parameters"
    ]
    assert after < before
    assert converted.conversion.choices == []


def test_networks_that_cannot_be_traced_say_so():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else self.conv(-x)

    model = Loop()
    converted = convert(model, "values")
    (note,) = converted.conversion.notes
    assert note.startswith("layer by layer, each converting its activations: ")
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(converted(x), model(x))


# ---- forms ---------------------------------------------------------------------------


def test_a_form_is_made_of_what_it_fits():
    linear, conv = nn.Linear(64, 64), nn.Conv2d(3, 4, 3, padding=1)
    full = torch.ones(64, 64) > 0
    assert type(forms.maker("blocks", 16)(linear, full)).__name__ == "BlockLinear"
    assert forms.maker("blocks", 16)(linear, full).block == 16
    assert type(forms.maker("values", 16)(linear, full)) is SparseLinear
    for to, module in (("blocks", conv), ("2:4", conv), ("other", linear)):
        with pytest.raises(ValueError, match=f"has no form '{to}'"):
            forms.maker(to, 16)(module, full)
    with pytest.raises(ValueError, match="Linear has no form 'compact'"):
        forms.maker("compact", 16)(linear, full)


def test_a_mask_with_holes_keeps_the_whole_block():
    linear = nn.Linear(4, 4)
    kept = linear.weight.detach().clone()
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 0] = mask[2, 3] = True
    made = forms.maker("blocks", 2)(linear, mask)
    assert made.columns.tolist() == [[0], [1]]
    assert torch.equal(made.to_dense(), kept * mask)
    assert torch.equal(linear.weight, kept)


def test_a_layer_that_is_called_by_name_is_not_timed(times):
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return self.layer(input=x)

    (choice,) = convert(
        ByName(), "values", example=torch.randn(2, 5)
    ).conversion.choices
    assert (choice.form, choice.reason) == ("values", "not timed")
