"""The exported file computes what torch computes, and is small."""

import json
import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from benchmarks.networks import resnet18
from sparsekit.execution import convert, export, reader
from sparsekit.execution.conv import SparseConv2d


class Depthwise(nn.Module):
    """What MobileNets have: padding of its own, strides, ReLU6, a residual."""

    def __init__(self, n=12):
        super().__init__()
        self.stem = nn.Conv2d(3, n, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(n)
        self.expand = nn.Conv2d(n, 3 * n, 1)
        self.deep5 = nn.Conv2d(3 * n, 3 * n, 5, padding=2, groups=3 * n, bias=False)
        self.norm5 = nn.BatchNorm2d(3 * n)
        self.project = nn.Conv2d(3 * n, n, 1)
        self.deep3 = nn.Conv2d(n, n, 3, 2, groups=n)
        self.wide = nn.Conv2d(n, 7, (1, 3), stride=(1, 2), padding=(0, 1))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.mean = nn.AvgPool2d(2, 1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(F.pad(x, (0, 1, 1, 1)))))
        y = F.relu6(self.expand(x))
        y = self.project(F.relu6(self.norm5(self.deep5(y))))
        x = y + x
        x = F.relu(self.deep3(F.pad(x, (1, 1, 0, 1))))
        x = self.mean(self.pool(self.wide(x)))
        return self.head(x.mean((2, 3)))


class Pooled(nn.Module):
    """Odd sizes, pooling between convolutions, flattening of images, shared results."""

    def __init__(self):
        super().__init__()
        self.before = nn.BatchNorm2d(2)
        self.first = nn.Conv2d(2, 19, 3, padding=1)
        self.norm = nn.BatchNorm2d(19)
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(19, 19, 3, 2, 1, bias=False)
        self.other = nn.Conv2d(19, 19, 1, 2)
        self.hidden, self.head = nn.Linear(19 * 9, 23), nn.Linear(23, 3)
        self.after = nn.BatchNorm1d(23)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.first(self.before(x)))))
        y = self.second(x).add(self.other(x))
        y = F.relu(y) + y
        return self.head(F.relu(self.after(self.hidden(torch.flatten(y, 1)))))


def mlp():
    return nn.Sequential(
        nn.Linear(13, 31), nn.ReLU(), nn.Linear(31, 17), nn.BatchNorm1d(17),
        nn.ReLU(), nn.Dropout(), nn.Linear(17, 5),
    )  # fmt: skip


NETWORKS = {
    "mlp": (mlp, (13,)),
    "resnet": (lambda: resnet18(8), (3, 11, 13)),
    "depthwise": (Depthwise, (3, 37, 41)),
    "pooled": (Pooled, (2, 11, 13)),
}


def network(name, density=0.3):
    """Pruned at random, with batch norms that have seen data; its input's shape."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    model(torch.randn(16, *shape))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= torch.rand_like(module.weight) < density
    return model.eval(), shape


def exact(model, x):
    with torch.no_grad():
        result = model.double()(x.double()).float().numpy()
    model.float()
    return result


@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_file_computes_what_torch_computes(tmp_path, name, density, batch):
    model, shape = network(name, density)
    path = tmp_path / "model.safetensors"
    export.save(model, torch.randn(2, *shape), path)
    x = torch.randn(batch, *shape)
    loaded = reader.load(path)
    for _ in range(2):  # buffers are used again
        found = loaded(x.numpy())
    expected = exact(model, x)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_masks_and_sparse_layers_give_the_same_file(tmp_path):
    model, shape = network("resnet", 1.0)
    masks = {
        name: torch.rand_like(p) < 0.2
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    x = torch.randn(2, *shape)
    export.save(model, x, tmp_path / "masks", masks)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    export.save(model, x, tmp_path / "zeros")
    first = model.get_submodule("3.conv1")
    model[3].conv1 = SparseConv2d.from_dense(first, masks["3.conv1.weight"])
    export.save(model, x, tmp_path / "layer")
    contents = {p.read_bytes() for p in tmp_path.iterdir()}
    assert len(contents) == 1


@pytest.mark.parametrize("density", [0.02, 0.1, 0.49])
def test_smaller_than_dense_half_precision(tmp_path, density):
    torch.manual_seed(0)
    model = nn.Linear(257, 263, bias=False)
    model.weight.data *= torch.rand_like(model.weight) < density
    x = torch.randn(5, 257)
    limits = {"float32": 4, "float16": 2, "bfloat16": 2}
    sizes = {
        values: export.save(model, x, tmp_path / values, values=values).bytes_on_disk
        for values in limits
    }
    n = model.weight.numel()
    assert sizes["float16"] == sizes["bfloat16"] < 2 * n
    for values, size in sizes.items():
        alive = int((model.weight != 0).sum())
        smallest = min(limits[values] * alive + n / 8, (limits[values] + 1.1) * alive)
        assert size < smallest + 700  # of the header


def test_half_precision_is_that_of_rounded_weights(tmp_path):
    model, _ = network("pooled")
    for values, kind in (("float16", torch.half), ("bfloat16", torch.bfloat16)):
        path = tmp_path / values
        done = export.save(nn.Sequential(model.hidden), torch.randn(3, 171), path,
                           values=values)  # fmt: skip
        z = torch.randn(7, 171)
        rounded = model.hidden.weight.to(kind).double()
        expected = F.linear(z.double(), rounded, model.hidden.bias.double())
        found = reader.load(path)(z.numpy())
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
        assert 0 < done.error < 1e-2


@pytest.mark.parametrize(
    ("model", "shape", "named"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.GELU()), (3,), "'1'.*GELU"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), (4, 5, 5), "'0'.*groups"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)), (4, 5, 5), "'0'.*dilation"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), (4, 5, 5), "'0'.*ceil_mode"),
        (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU()), (4, 5, 5), "'1'.*padding"),
    ],
)
def test_what_has_no_step_is_named(tmp_path, model, shape, named):
    with pytest.raises(ValueError, match=named):
        export.save(model, torch.randn(2, *shape), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_wrong_output_is_not_written(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].weight.data[:] = 1e6  # infinite in float16
    path = tmp_path / "model"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="differs from the model's"):
        export.save(model, torch.randn(2, 3), path, values="float16")
    assert path.read_bytes() == b"old"


def test_training_mode_and_weights_stay(tmp_path):
    model, shape = network("pooled")
    model.train()
    model.pool.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    export.save(model, torch.randn(2, *shape), tmp_path / "model")
    assert model.training
    assert model.first.training
    assert not model.pool.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_graph_is_json_that_names_everything(tmp_path):
    model, shape = network("mlp")
    export.save(model, torch.randn(2, *shape), tmp_path / "model")
    with safe_open(tmp_path / "model", "np") as file:
        graph = json.loads(file.metadata()["sparsekit"])
        assert graph["version"] == 1
        assert graph["input"] == [13]
        ops = [step["op"] for step in graph["steps"]]
        assert ops == ["linear", "clip", "linear", "clip", "linear"]
        names = {key.rpartition(".")[0] for key in sorted(file.keys())}
    assert names == {s["name"] for s in graph["steps"] if s["op"] == "linear"}


def test_runs_without_torch(tmp_path):
    """In a process where torch cannot be imported, through the command line."""
    model, shape = network("pooled")
    x = torch.randn(17, *shape)
    export.save(model, x, tmp_path / "model.safetensors")
    np.save(tmp_path / "x.npy", x.numpy())
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    names = ("model.safetensors", "x.npy", "y.npy")
    files = [str(tmp_path / name) for name in names]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "sparsekit.execution.reader", *files]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path})
    expected = exact(model, x)
    np.testing.assert_allclose(np.load(files[2]), expected, atol=1e-5)


def test_onnx(tmp_path):
    model, shape = network("resnet")
    path = export.save_onnx(model, torch.randn(2, *shape), tmp_path / "model.onnx")
    x = torch.randn(5, *shape)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, exact(model, x), atol=1e-4)


def test_onnx_of_what_it_cannot_be(tmp_path):
    model, shape = network("mlp")
    model.train()
    x = torch.randn(2, *shape)
    with pytest.raises(ValueError, match=r"in values mode.*dense_state_dict"):
        export.save_onnx(convert(model, "values"), x, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    export.save_onnx(model, x, tmp_path / "model.onnx")
    assert all(module.training for module in model.modules())


def test_what_was_written_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    model[0].weight.data *= torch.rand(30, 40) < 0.05
    path = tmp_path / "model"
    done = export.save(model, torch.randn(1, 40), str(path))
    assert done.path == path
    assert done.bytes_on_disk == path.stat().st_size
    assert done.dense_bytes == 4 * (40 * 30 + 30 * 5)
    assert done.error < 1e-6
    assert set(done.encodings.values()) == {"delta", "dense"}
    layer = export.save(nn.Linear(3, 4, bias=False), torch.randn(1, 3), path)
    assert layer.dense_bytes == 48


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16"])
def test_a_file_may_be_off_by_what_its_numbers_are(tmp_path, monkeypatch, values):
    """The limits are a promise of the documentation."""
    limit = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}[values]
    model, x, path = nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "model"
    for error in (1.1 * limit, float("nan"), float("inf")):
        monkeypatch.setattr(export, "_error", lambda *_, error=error: error)
        with pytest.raises(ValueError, match=r"differs .* was not written") as refused:
            export.save(model, x, path, values=values)
        assert not path.exists()
        hint = "take values='float32'" in str(refused.value)
        assert hint == (values != "float32")
    for error in (0.9 * limit, limit):
        monkeypatch.setattr(export, "_error", lambda *_, error=error: error)
        assert export.save(model, x, path, values=values).error == error


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -3.0], [1.0, -4.0], 0.25),
        ([2.0, 4.0], [1.0, 4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1e-9], [0.0, 0.0], 1.0),
        ([0.0], [0.0, 0.0], float("inf")),
    ],
)
def test_the_error_is_that_of_the_largest_number(found, expected, error):
    arrays = (np.array(x, np.float32) for x in (found, expected))
    assert export._relative(*arrays) == error
    assert np.isnan(export._relative(np.array([np.nan]), np.array([1.0])))


@pytest.mark.parametrize(
    ("example", "values", "message"),
    [
        (torch.randn(2, 3), "float64", "values is one of .*'bfloat16'.*'float64'"),
        (torch.randn(2, 3).double(), "float32", "got torch.float64 of shape .2, 3."),
        (torch.randn(0, 3), "float32", r"at least one sample.*\(0, 3\)"),
    ],
)
def test_bad_arguments_are_named(tmp_path, example, values, message):
    with pytest.raises(ValueError, match=message):
        export.save(nn.Linear(3, 4), example, tmp_path / "model", values=values)
    assert not list(tmp_path.iterdir())


def test_a_network_of_zeros_is_written_too(tmp_path):
    model = nn.Linear(3, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert export.save(model, torch.randn(2, 3), tmp_path / "model").error == 0


def test_masks_may_have_other_names_and_change_nothing(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    before = model[0].weight.detach().clone()
    masks = {"0.weight": torch.rand(4, 3) < 0.5}
    x = torch.randn(2, 3)
    export.save(model, x, tmp_path / "model", masks)
    assert torch.equal(model[0].weight, before)
    expected = F.linear(x, before * masks["0.weight"], model[0].bias).relu()
    found = reader.load(tmp_path / "model")(x.numpy())
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match=r"masks of no weight in the model: \['2.we"):
        export.save(model, x, tmp_path / "new", {"2.weight": masks["0.weight"]})


def test_onnx_for_one_sample_and_any_number(tmp_path, capfd):
    """From an example of one, torch cannot tell the batch from a constant."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    shapes = {}
    for n in (1, 2):
        path = export.save_onnx(model, torch.randn(n, 3), tmp_path / f"{n}.onnx")
        (given,) = onnxruntime.InferenceSession(path).get_inputs()
        shapes[n] = given.shape
    assert shapes[1] == [1, 3]
    assert isinstance(shapes[2][0], str)
    assert capfd.readouterr().out == ""  # the exporter keeps quiet
    assert len(list(tmp_path.iterdir())) == 2


def test_onnx_that_differs_is_not_written(tmp_path, monkeypatch):
    model, x, path = nn.Linear(3, 4), torch.randn(2, 3), tmp_path / "model.onnx"
    for error in (1.1e-4, float("nan")):
        monkeypatch.setattr(export, "_relative", lambda *_, error=error: error)
        with pytest.raises(ValueError, match=r"onnxruntime differs .* not written"):
            export.save_onnx(model, x, path)
        assert not path.exists()
    for error in (0.9e-4, 1e-4):
        monkeypatch.setattr(export, "_relative", lambda *_, error=error: error)
        assert export.save_onnx(model, x, path) == path
