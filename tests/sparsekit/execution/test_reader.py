"""Files are not believed: what is damaged or made up is refused with the reason."""

import json
import random
import re
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparsekit.execution import export, reader
from sparsekit.execution.reader import DamagedFile


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.deep = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.head = nn.Linear(5 * 7 * 7, 11)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head((self.deep(x) + x).flatten(1))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    torch.manual_seed(0)
    model = Residual()
    model.stem.weight.data *= torch.rand_like(model.stem.weight) < 0.5
    model.head.weight.data *= torch.rand_like(model.head.weight) < 0.02
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    done = export.save(model, torch.randn(2, 3, 7, 7), path)
    assert set(done.encodings.values()) == {"dense", "bitmask", "delta"}
    return path.read_bytes()


def parts(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def edited(content, change):
    """The file after `change(graph, header)`."""
    header, body = parts(content)
    graph = json.loads(header["__metadata__"]["sparsekit"])
    change(graph, header)
    header["__metadata__"]["sparsekit"] = json.dumps(graph)
    return joined(header, body)


def test_the_fixture_is_readable(content):
    x = np.ones((2, 3, 7, 7), np.float32)
    same = reader.loads(edited(content, lambda graph, header: None))
    np.testing.assert_array_equal(reader.loads(content)(x), same(x))


def step(graph, op):
    return next(s for s in graph["steps"] if s["op"] == op)


CHANGES = {
    "another version": lambda g, h: g.update(version=2),
    "another format": lambda g, h: g.update(format="x"),
    "unknown key": lambda g, h: g.update(more=1),
    "no steps": lambda g, h: g.update(steps=[]),
    "steps no list": lambda g, h: g.update(steps={"a": 1}),
    "step no object": lambda g, h: g["steps"].insert(0, "conv"),
    "loop": lambda g, h: g["steps"][0].update(inputs=[g["output"]]),
    "takes itself": lambda g, h: step(g, "clip").update(inputs=["relu"]),
    "unknown input": lambda g, h: step(g, "conv").update(inputs=["nobody"]),
    "input no text": lambda g, h: step(g, "conv").update(inputs=[["input"]]),
    "two inputs": lambda g, h: step(g, "conv").update(inputs=["input", "input"]),
    "name twice": lambda g, h: g["steps"][1].update(name=g["steps"][0]["name"]),
    "called input": lambda g, h: g["steps"][0].update(name="input"),
    "unknown op": lambda g, h: g["steps"][0].update(op="__import__"),
    "op no text": lambda g, h: g["steps"][0].update(op=["conv"]),
    "other output": lambda g, h: g.update(output="stem"),
    "input too large": lambda g, h: g.update(input=[3, 2**20, 2**20]),
    "input negative": lambda g, h: g.update(input=[3, -7, 7]),
    "input of floats": lambda g, h: g.update(input=[3, 7.0, 7]),
    "input of bools": lambda g, h: g.update(input=[True, 7, 7]),
    "other input": lambda g, h: g.update(input=[4, 7, 7]),
    "wrong features": lambda g, h: g.update(input=[3, 8, 7]),
    "stride 0": lambda g, h: step(g, "conv").update(stride=[0, 1]),
    "stride huge": lambda g, h: step(g, "conv").update(stride=[2**40, 1]),
    "stride large": lambda g, h: step(g, "conv").update(stride=[65, 1]),
    "kernel large": lambda g, h: step(g, "conv").update(weight=[5, 3, 65, 3]),
    "padding huge": lambda g, h: step(g, "conv").update(padding=[2**30] * 4),
    "padding negative": lambda g, h: step(g, "conv").update(padding=[-1, 1, 1, 1]),
    "groups 0": lambda g, h: step(g, "conv").update(groups=0),
    "groups 3": lambda g, h: step(g, "conv").update(groups=3),
    "weight larger": lambda g, h: step(g, "conv").update(weight=[6, 3, 3, 3]),
    "weight huge": lambda g, h: step(g, "conv").update(weight=[2**31, 2**31, 3, 3]),
    "weight of 3": lambda g, h: step(g, "conv").update(weight=[5, 3, 9]),
    "other encoding": lambda g, h: step(g, "linear").update(encoding="dense"),
    "unknown encoding": lambda g, h: step(g, "linear").update(encoding="csr"),
    "encoding no text": lambda g, h: step(g, "linear").update(encoding=[]),
    "bound no number": lambda g, h: step(g, "clip").update(low="0"),
    "tensor missing": lambda g, h: h.pop("stem.bits"),
    "offsets overlap": lambda g, h: h["stem.bits"].update(data_offsets=[0, 17]),
    "offsets negative": lambda g, h: h["stem.bits"].update(data_offsets=[-17, 0]),
    "offsets far": lambda g, h: h["stem.bits"].update(data_offsets=[0, 2**62]),
    "offsets no list": lambda g, h: h["stem.bits"].update(data_offsets="0:17"),
    "shape huge": lambda g, h: h["stem.values"].update(shape=[2**33, 2**33]),
    "shape negative": lambda g, h: h["stem.values"].update(shape=[-1]),
    "other type": lambda g, h: h["stem.values"].update(dtype="F64"),
    "type no text": lambda g, h: h["stem.values"].update(dtype=["F32"]),
    "entry no object": lambda g, h: h.update({"stem.bits": 3}),
    "metadata no text": lambda g, h: h["__metadata__"].update(other=3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_made_up_header_is_refused(content, name):
    with pytest.raises(DamagedFile):
        reader.loads(edited(content, CHANGES[name]))


def test_damaged_weights_are_refused(content):
    header, body = parts(content)
    for name, byte in (("stem.bits", 0xFF), ("head.gaps", 0xFF), ("head.gaps", 0xFE)):
        begin, end = header[name]["data_offsets"]
        damaged = body[:begin] + bytes([byte]) * (end - begin) + body[end:]
        with pytest.raises(DamagedFile, match=name.split(".")[1]):
            reader.loads(joined(header, damaged))


def test_a_file_that_is_cut_off_is_refused(content):
    for length in (0, 7, 8, 9, 20, len(content) // 2, len(content) - 1):
        with pytest.raises(DamagedFile):
            reader.loads(content[:length])
    with pytest.raises(DamagedFile, match="belong to no tensor"):
        reader.loads(content + b"\0")
    with pytest.raises(DamagedFile):
        reader.loads(struct.pack("<Q", 2**63) + content[8:])
    for text, match in ((b'{"a": 1, "a": 2}', "twice"), (b'{"a":' * 99_999, "no JSON")):
        with pytest.raises(DamagedFile, match=match):
            reader.loads(struct.pack("<Q", len(text)) + text)


def test_flipped_bits_never_do_more_than_change_numbers(content):
    """Any file is refused, or computes something of the right shape."""
    draw = random.Random(0)
    x = np.ones((1, 3, 7, 7), np.float32)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 1, 5])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        try:
            model = reader.loads(bytes(damaged))
        except DamagedFile:
            continue
        if model.input_shape == x.shape[1:]:
            assert model(x).shape == (1, *model.output_shape)


def test_a_tiny_file_cannot_take_all_memory(content):
    """A million channels cost a file nothing while all weights are absent."""
    entry = {
        "name": "a", "op": "conv", "inputs": ["input"], "weight": [2**20, 1, 1, 1],
        "encoding": "delta", "stride": [1, 1], "padding": [0] * 4, "groups": 1,
    }  # fmt: skip
    graph = {"format": "sparsekit.execution", "version": 1, "input": [1, 32, 32],
             "output": "a", "steps": [entry]}  # fmt: skip
    header = {
        "__metadata__": {"sparsekit": json.dumps(graph)},
        "a.values": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "a.gaps": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
    }
    model = reader.loads(joined(header, b""), memory=100_000_000)
    with pytest.raises(MemoryError, match="100,000,000"):
        model(np.zeros((1, 1, 32, 32), np.float32))


def test_inputs_are_checked(content):
    model = reader.loads(content)
    for x in (
        np.zeros((2, 3, 7, 8), np.float32),
        np.zeros((3, 7, 7), np.float32),
        np.zeros((2, 3, 7, 7)),
    ):
        with pytest.raises(ValueError, match="expected float32 of shape"):
            model(x)
    assert model(np.zeros((0, 3, 7, 7), np.float32)).shape == (0, 11)


def test_results_are_the_callers_own_and_layout_does_not_matter(content):
    model = reader.loads(content)
    x = np.random.default_rng(0).normal(size=(3, 3, 7, 7)).astype(np.float32)
    first = model(x)
    kept = first.copy()
    model(np.zeros_like(x))
    np.testing.assert_array_equal(first, kept)
    strided = np.asfortranarray(x)
    np.testing.assert_array_equal(model(strided), kept)


def test_memory_of_the_last_batch_sizes_is_kept(content):
    model = reader.loads(content)
    assert model.memory == 4 * 1024**3
    call = lambda n: model(np.ones((n, 3, 7, 7), np.float32))  # noqa: E731
    for n in (1, 2, 3, 4):
        call(n)
    assert list(model._plans) == [1, 2, 3, 4]
    plans = dict(model._plans)
    call(1)  # the oldest is used again
    call(5)
    assert list(model._plans) == [3, 4, 1, 5]
    assert all(model._plans[n] is plans[n] for n in (1, 3, 4))
    assert reader.loads(content, 12345).memory == 12345


def test_threads_take_turns(content):
    model = reader.loads(content)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(2, 3, 7, 7)).astype(np.float32) for _ in range(4)]
    expected = [model(x) for x in inputs]
    wrong = []

    def work(x, y):
        wrong.extend(i for i in range(200) if not np.array_equal(model(x), y))

    pairs = zip(inputs, expected, strict=True)
    callers = [threading.Thread(target=work, args=pair) for pair in pairs]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_file_that_is_not_there_or_damaged_is_named(tmp_path, content):
    with pytest.raises(FileNotFoundError):
        reader.load(tmp_path / "nothing")
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:100])
    with pytest.raises(DamagedFile, match=re.escape(f"{path}: ")) as error:
        reader.load(path)
    assert error.value.__suppress_context__
    path.write_bytes(content)
    assert reader.load(path).memory == reader.MEMORY
    assert reader.load(str(path), 77).memory == 77


def test_errors_of_the_command_line(tmp_path, capsys, content):
    for arguments in ([], ["model", "x"], ["model", "x", "y", "z"]):
        assert reader.main(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("python -m sparsekit.execution.reader model.safetensors")
        assert told.count("\n") == 1
    path = tmp_path / "model"
    path.write_bytes(content[:100])
    assert reader.main([str(path), "x", "y"]) == 1
    assert str(path) in capsys.readouterr().err


def test_the_command_line_takes_numbers_of_any_type_but_no_pickles(
    tmp_path, capsys, content
):
    paths = [str(tmp_path / name) for name in ("model", "x.npy", "y.npy")]
    Path(paths[0]).write_bytes(content)
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 7))
    np.save(paths[1], x)
    assert reader.main(paths) == 0
    expected = reader.loads(content)(x.astype(np.float32))
    np.testing.assert_array_equal(np.load(paths[2]), expected)
    np.save(paths[1], np.array([{"a": 1}]), allow_pickle=True)
    assert reader.main(paths) == 1
    assert "pickle" in capsys.readouterr().err
