"""A run's model without torch and as ONNX computes what the run's model does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.common.runs import RunFolder
from apps.continual import streams
from apps.continual.cli import main
from apps.continual.export import export
from apps.continual.train import train
from sparsekit.execution import reader


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    config = replace(
        small, strategy="sparcl", model="cnn", width=4, depth=2, method="tdm",
        sparsity=0.9, epochs=1, strategy_options={"stage": 1},
        out=tmp_path_factory.mktemp("run") / "a",
    )  # fmt: skip
    return config, train(config)


@pytest.mark.parametrize("values", ["float32", "bfloat16"])
def test_both_files_compute_what_the_model_does(done, tmp_path, values) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config, result = done
    written = export(config.out, tmp_path, values, onnx=True)
    stream = streams.load(config)
    x = stream.view(stream.tasks[1].test.raw(slice(0, 7)))
    with torch.no_grad():
        expected = result.model(x).numpy()
    inputs = np.ascontiguousarray(x.numpy())
    found = reader.load(tmp_path / "device.safetensors")(inputs)
    exact = values == "float32"
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if exact else {"rtol": 0.1, "atol": 0.1}
    np.testing.assert_allclose(found, expected, **tolerance)
    session = onnxruntime.InferenceSession(written.onnx.read_bytes())
    (name,) = (given.name for given in session.get_inputs())
    (found,) = session.run(None, {name: inputs})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert written.device.bytes_on_disk < written.onnx.stat().st_size


def test_a_device_needs_no_more_than_the_files(done, tmp_path) -> None:
    """From raw bytes to the name of a class, with numpy, as the model answers."""
    config, result = done
    written = export(config.out, tmp_path)
    about = json.loads(written.about.read_text())
    stream = streams.load(config)
    test = stream.tasks[1].test
    raw = test.raw(slice(0, 9))
    assert about["input"] == list(raw.shape[1:])
    mean, std = (
        np.array(about["standardise"][name], np.float32)[:, None, None]
        for name in ("mean", "std")
    )
    logits = reader.load(tmp_path / "device.safetensors")((raw.numpy() - mean) / std)
    with torch.no_grad():
        expected = result.model(stream.view(raw)).argmax(1)
    found = [about["classes"][i] for i in logits.argmax(1)]
    assert found == [stream.names[i] for i in expected]


def test_counts_of_words_are_not_standardised(done, tmp_path, monkeypatch) -> None:
    config, _ = done
    plain = RunFolder.read_tensors

    def of_words(self, name):
        tensors, metadata = plain(self, name)
        facts = json.loads(metadata.get("run", "{}")) | {"counts": True}
        return tensors, metadata | {"run": json.dumps(facts)}

    monkeypatch.setattr(RunFolder, "read_tensors", of_words)
    written = export(config.out, tmp_path)
    assert json.loads(written.about.read_text())["standardise"] is None


def test_an_older_run_is_refused(done, tmp_path, monkeypatch) -> None:
    config, _ = done
    plain = RunFolder.read_tensors

    def older(self, name):
        tensors, metadata = plain(self, name)
        return tensors, {k: v.replace('"mean"', '"m"') for k, v in metadata.items()}

    monkeypatch.setattr(RunFolder, "read_tensors", older)
    with pytest.raises(ValueError, match="train it again"):
        export(config.out, tmp_path)


def test_the_command_writes_beside_the_run(done, capsys) -> None:
    config, _ = done
    assert main(["export", "--run", str(config.out)]) == 0
    assert "bytes, of" in capsys.readouterr().out
    assert (config.out / "device.safetensors").is_file()
    assert not (config.out / "device.onnx").exists()


def test_bad_input_is_named(done, tmp_path, capsys) -> None:
    config, _ = done
    for line, words in (
        (["export"], "--run is required"),
        (["export", "--run", str(tmp_path)], "no finished run in"),
        (["export", "--run", str(config.out), "--values", "int8"], "values is one of"),
    ):
        assert main(line) == 2
        assert words in capsys.readouterr().err
