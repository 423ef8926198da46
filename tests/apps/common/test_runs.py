"""Run folders: what is written reads back; what is damaged is named, and not run."""

import io
import json
import math
import os
import random
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.common import runs
from apps.common.config import RunConfig, parse
from apps.common.runs import COSTS, Result, RunFolder
from apps.common.statistics import Interval, mean_interval

COST = dict.fromkeys(COSTS, 1.5) | {"params_total": 7, "params_active": 3}


@dataclass(frozen=True)
class Config(RunConfig):
    """A training."""

    lr: float = 0.1
    options: dict[str, int | str] = field(default_factory=dict)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "a")


@pytest.fixture
def result() -> Result:
    return Result(
        app="demo",
        method="rigl",
        dataset="mnist5k",
        seed=3,
        config={"lr": 0.1},
        metrics={
            "accuracy": mean_interval([0.9, 0.95, 0.91]),
            "loss": mean_interval([0.25]),
        },
        cost=dict(COST),
        provenance=runs.provenance(Config(profile="smoke")),
    )


def names(folder: RunFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_the_folder_is_made_by_the_first_write(folder: RunFolder) -> None:
    assert folder.read_checkpoint() is None
    assert not folder.path.exists()
    folder.write_text("note.txt", "é")
    assert (folder.path / "note.txt").read_bytes() == b"\xc3\xa9"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="a is a file: give a folder"):
        RunFolder(tmp_path / "a")


def test_settings_read_back(folder: RunFolder) -> None:
    config = Config(seed=7, lr=1e-3, options={"every": 5}, out=folder.path)
    folder.write_config(config)
    found = parse(Config, ["--config", str(folder.path / "config.toml")])
    assert found == replace(config, out=None)


def test_the_log_reads_back_and_is_json_everywhere(folder: RunFolder) -> None:
    rows = [
        {"epoch": 1, "loss": math.nan, "text": "a\u2028b\nc"},
        {"epoch": 2, "loss": -math.inf, "x": np.float32(0.5), "n": torch.tensor(3)},
    ]
    folder.write_log(rows[:1])
    folder.write_log(rows)
    assert folder.read_log() == [
        {"epoch": 1, "loss": None, "text": "a\u2028b\nc"},
        {"epoch": 2, "loss": None, "x": 0.5, "n": 3},
    ]
    text = (folder.path / "log.jsonl").read_text("utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text


def assert_equal(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b


def state() -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "model": {"w": torch.randn(7, 5, generator=generator)},
        "nan": torch.tensor(math.nan),
        "masks": {"w": torch.rand(7, 5, generator=generator) > 0.5},
        "generator": generator.get_state(),
        "step": 11,
        "history": [{"loss": 0.25}],
        "best": None,
    }  # fmt: skip


def test_a_checkpoint_reads_back_bit_for_bit(folder: RunFolder) -> None:
    folder.write_checkpoint({"step": 1})
    folder.write_checkpoint(state())
    assert_equal(folder.read_checkpoint(), state())
    assert names(folder) == {"checkpoint.pt"}


def test_tensors_and_metadata_read_back(folder: RunFolder) -> None:
    tensors = {
        "half": torch.arange(7).to(torch.bfloat16),
        "mask": torch.tensor([[True], [False]]),
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(-0.0, dtype=torch.float64),
    }
    folder.write_tensors("model.safetensors", tensors, {"form": "csr"})
    found, metadata = folder.read_tensors("model.safetensors")
    assert_equal(found, {key: tensors[key] for key in found})
    assert set(found) == set(tensors)
    assert metadata == {"form": "csr"}
    folder.write_tensors("model.safetensors", {})
    assert folder.read_tensors("model.safetensors") == ({}, {})


def test_the_result_has_the_designs_schema(folder: RunFolder, result: Result) -> None:
    folder.write_result(result)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder.path / "result.json").read_text("utf-8")
    found = json.loads(text, parse_constant=refuse)
    assert list(found) == [
        "app", "method", "dataset", "seed", "config", "metrics", "cost", "provenance",
    ]  # fmt: skip
    assert set(found["cost"]) == {
        "train_seconds", "train_flops", "peak_rss_mb",
        "params_total", "params_active", "bytes_on_disk",
    }  # fmt: skip
    assert set(found["provenance"]) >= {
        "commit", "command", "versions", "device", "profile",
    }  # fmt: skip
    assert found["provenance"]["profile"] == "smoke"
    for row in found["metrics"].values():
        assert set(row) == {"value", "low", "high", "n"}
    assert found["metrics"]["loss"] == {
        "value": 0.25,
        "low": None,
        "high": None,
        "n": 1,
    }
    assert (found["app"], found["seed"]) == ("demo", 3)
    assert found["cost"]["params_active"] == 3
    assert isinstance(found["cost"]["params_active"], int)


def test_the_result_reads_back(folder: RunFolder, result: Result) -> None:
    folder.write_result(result)
    found = folder.read_result()
    assert repr(found) == repr(result)  # nan is not equal to itself


def test_numbers_of_numpy_and_torch_are_numbers(folder, result) -> None:
    metrics = {"a": Interval(np.float32(0.5), np.float32("nan"), torch.tensor(1.0), 2)}
    cost = COST | {"train_flops": np.int64(10**12), "params_total": torch.tensor(7)}
    folder.write_result(replace(result, seed=np.int64(4), metrics=metrics, cost=cost))
    found = folder.read_result()
    assert repr(found.metrics) == repr({"a": Interval(0.5, math.nan, 1.0, 2)})
    assert found.cost == COST | {"train_flops": 10**12, "params_total": 7}
    assert found.seed == 4


def test_the_result_ends_the_run(folder: RunFolder, result: Result) -> None:
    folder.write_checkpoint(state())
    with pytest.raises(FileNotFoundError, match=r"result\.json is missing"):
        folder.read_result()
    bad = replace(result, cost=COST | {"train_flops": math.nan})
    with pytest.raises(ValueError, match="cost 'train_flops' is nan, not a finite"):
        folder.write_result(bad)
    assert_equal(folder.read_checkpoint(), state())  # still to be resumed
    assert names(folder) == {"checkpoint.pt"}
    folder.write_result(result)
    assert folder.read_checkpoint() is None
    assert names(folder) == {"result.json"}
    folder.write_result(replace(result, seed=4))
    assert folder.read_result().seed == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cost": {"train_seconds": 1}}, "cost lacks train_flops, peak_rss_mb"),
        ({"cost": COST | {"bytes_on_disk": math.inf}}, "cost 'bytes_on_disk' is inf"),
        ({"cost": COST | {"extra": "big"}}, "cost 'extra' is 'big'"),
        ({"cost": COST | {"extra": 10**400}}, "cost 'extra' is 1000"),
        ({"cost": COST | {"extra": True}}, "cost 'extra' is True"),
        ({"metrics": {"m": Interval(math.nan, 0, 1, 5)}}, "metric 'm' is nan"),
        ({"metrics": {"m": Interval(0, -math.inf, 1, 5)}}, "low end of metric 'm'"),
        ({"metrics": {"m": Interval(0, 0, 1, 2.5)}}, "n of metric 'm' is 2.5"),
        ({"seed": 1.5}, "seed is 1.5, not an integer"),
        ({"method": None}, "method must be text, got None"),
        ({"provenance": {"device": torch.device("cpu")}}, "provenance must be"),
        ({"provenance": {"x": math.nan}}, "provenance must be finite"),
    ],
)
def test_a_result_that_is_none_is_refused(folder, result, change, words) -> None:
    with pytest.raises(ValueError, match=words):
        folder.write_result(replace(result, **change))
    assert not (folder.path / "result.json").exists()


def test_missing_files_are_named(folder: RunFolder) -> None:
    readers = {
        "log.jsonl": folder.read_log,
        "result.json": folder.read_result,
        "m.safetensors": lambda: folder.read_tensors("m.safetensors"),
    }
    for name, read in readers.items():
        with pytest.raises(
            FileNotFoundError, match=f"{name} is missing: the run is not"
        ):
            read()


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cannot_run_code(folder, tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "trap"
    folder.write_checkpoint(state())
    content = io.BytesIO()
    torch.save({"w": RunsCode(trap)}, content, _use_new_zipfile_serialization=zipped)
    (folder.path / "checkpoint.pt").write_bytes(content.getvalue())
    with pytest.raises(
        ValueError, match="more than tensors and plain values"
    ) as caught:
        folder.read_checkpoint()
    assert "weights_only" not in str(caught.value)  # torch's text tells how to run it
    assert not trap.exists()
    torch.load(io.BytesIO(content.getvalue()), weights_only=False)
    assert trap.is_dir()  # it would have


def test_a_checkpoint_must_be_a_table(folder: RunFolder) -> None:
    folder.write_checkpoint({})
    torch.save([1, 2], folder.path / "checkpoint.pt")
    with pytest.raises(ValueError, match="it holds a list, not a table"):
        folder.read_checkpoint()


def damaged(content: bytes, n: int, rng: random.Random):
    """Every kind of prefix, then bytes changed at random places."""
    for _ in range(n):
        yield content[: rng.randrange(len(content))]
        changed = bytearray(content)
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        yield bytes(changed)
    yield b""


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about odd pickles
@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "legacy.pt", "m.safetensors", "result.json", "log.jsonl"]
)
def test_damage_is_named_or_harmless(folder, result, name: str) -> None:
    folder.write_log([{"epoch": 1, "loss": 0.5}] * 3)
    folder.write_tensors("m.safetensors", {"w": torch.ones(3, 5)}, {"a": "b"})
    folder.write_result(result)
    folder.write_checkpoint(state())
    torch.save(state(), folder.path / "legacy.pt", _use_new_zipfile_serialization=False)
    content = (folder.path / name).read_bytes()
    name = "checkpoint.pt" if name == "legacy.pt" else name
    read = {
        "checkpoint.pt": folder.read_checkpoint,
        "m.safetensors": lambda: folder.read_tensors(name),
        "result.json": folder.read_result,
        "log.jsonl": folder.read_log,
    }[name]
    outcomes = []
    for bad in damaged(content, 150, random.Random(0)):
        (folder.path / name).write_bytes(bad)
        try:
            read()
            outcomes.append("read")  # it still has the right form
        except ValueError as error:
            outcomes.append(str(error))
    named = [text for text in outcomes if text != "read"]
    assert len(named) > 60
    for text in named:
        assert f"{name} is damaged (" in text
        assert "delete the folder and run again" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("result.json", "[]"),
        ("result.json", "[" * 100_000),
        ("result.json", '{"metrics": [], "cost": {}, "seed": 1}'),
        ("result.json", "\ud800"),
        ("log.jsonl", "3\n"),
        ("log.jsonl", "{}\n\n"),
        ("log.jsonl", "[" * 100_000),
    ],
)
def test_json_of_another_form_is_named(folder: RunFolder, name, text) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        folder.read_result() if name == "result.json" else folder.read_log()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), 1.5), (("seed",), True), (("app",), 3), (("cost",), []),
        (("provenance",), None), (("cost", "train_flops"), "many"),
        (("cost", "train_flops"), 10**400), (("metrics",), []),
        (("metrics", "accuracy"), 0.9), (("metrics", "accuracy", "value"), None),
        (("metrics", "accuracy", "value"), "0.9"), (("metrics", "accuracy", "n"), 2.5),
        (("metrics", "accuracy", "low"), []),
        (("metrics", "accuracy", "value"), math.nan),
    ],
)  # fmt: skip
def test_a_result_with_a_wrong_value_is_named(folder, result, path, value) -> None:
    folder.write_result(result)
    file = folder.path / "result.json"
    content = json.loads(file.read_text())
    *outer, last = path
    table = content
    for key in outer:
        table = table[key]
    table[last] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        folder.read_result()
    del table[last]
    file.write_text(json.dumps(content))
    if path[:2] != ("cost", "train_flops") and path != ("metrics", "accuracy"):
        with pytest.raises(ValueError, match=f"no '{last}'"):
            folder.read_result()


def test_a_full_disk_keeps_the_last_checkpoint(folder: RunFolder) -> None:
    folder.write_checkpoint(state())
    script = (
        "import resource, sys, torch\n"
        "from apps.common.runs import RunFolder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "big = {'w': torch.ones(300_000)}\n"
        "folder = RunFolder(sys.argv[1])\n"
        "for write in (lambda: folder.write_checkpoint(big),\n"
        "              lambda: folder.write_tensors('m.safetensors', big)):\n"
        "    try:\n"
        "        write()\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", script, str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line, name in zip(
        done.stdout.splitlines(), ("checkpoint.pt", "m.safetensors"), strict=True
    ):
        assert f"cannot write {folder.path / name}: the file would exceed" in line
    assert_equal(folder.read_checkpoint(), state())
    assert names(folder) == {"checkpoint.pt"}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Config(), "Config"), (Path("a"), "PosixPath"), (np.float64(1), "float64"),
        (np.ones(3), "ndarray"), (len, "builtin_function_or_method"),
    ],
)  # fmt: skip
def test_what_would_not_read_back_is_refused_when_it_is_written(
    folder: RunFolder, value, name: str
) -> None:
    folder.write_checkpoint(state())
    with pytest.raises(ValueError, match=rf"state\['a'\]\[1\]\['b'\] is a {name}:"):
        folder.write_checkpoint({"a": [0, {"b": value}]})
    with pytest.raises(ValueError, match=r"state\[key .*1\.0.*\]\[1\] is a float64"):
        folder.write_checkpoint({("a", np.float64(1)): 1})
    assert_equal(folder.read_checkpoint(), state())


def test_every_plain_value_reads_back(folder: RunFolder) -> None:
    values = (
        None, True, 3, 10**40, 0.5, math.inf, 1j, "é", b"\0", torch.Size([2, 3]),
        torch.float16, torch.device("cpu"), {1, 2}, [(), []],
        random.Random(3).getstate(),
    )  # fmt: skip
    plain = {i: value for i, value in enumerate(values)} | {(1, "a"): OrderedDict(x=1)}
    folder.write_checkpoint(plain)
    found = folder.read_checkpoint()
    assert found == plain
    assert {type(v) for v in plain.values()} == {
        *runs.PLAIN,
        set,
        list,
        tuple,
        OrderedDict,
    }
