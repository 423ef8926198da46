"""Times are the fast ones, remembered; a clock by hand says what is measured."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from sparsekit.execution import calibration


class Clock:
    """Stands still but while `work` is called, which takes the next of `durations`."""

    def __init__(self, durations):
        self.now, self.durations, self.calls = 0.0, list(durations), 0

    def __call__(self):
        return self.now

    def work(self):
        self.now += self.durations[self.calls]
        self.calls += 1


@pytest.fixture
def clock(monkeypatch):
    def make(durations):
        made = Clock(durations)
        monkeypatch.setattr(calibration.time, "perf_counter", made)
        return made

    return make


def test_the_fifth_part_of_twenty_calls_after_two(clock):
    durations = np.random.default_rng(0).permutation(22) / 1000 + 0.001
    given = clock(durations)
    found = calibration.measure(given.work)
    assert given.calls == 22
    assert found == pytest.approx(sorted(durations[2:])[4])  # of 20 the fifth


def test_slow_calls_are_made_five_times(clock):
    given = clock([9.0, 9.0, 0.4, 0.3, 0.7, 0.6, 0.5, 0.1])
    assert calibration.measure(given.work) == pytest.approx(0.4)  # the second of five
    assert given.calls == 7


def test_calls_end_when_half_a_second_is_over(clock):
    given = clock([0.0625] * 30)  # eight of them are half a second
    assert calibration.measure(given.work) == pytest.approx(0.0625)
    assert given.calls == 10


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path))
    return tmp_path / "calibration.json"


def test_where_times_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path / "own"))
    assert calibration.cache_path() == tmp_path / "own/calibration.json"
    monkeypatch.setenv("SPARSEKIT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert calibration.cache_path() == tmp_path / "xdg/sparsekit/calibration.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache/sparsekit/calibration.json"
    assert calibration.cache_path() == expected


@pytest.mark.parametrize(
    "damaged",
    ["0", "-1.0", "1e6", "1e300", '"0.1"', "[0.1]", "null", "NaN", "Infinity"],
)
def test_what_is_no_time_is_measured_again(cache, damaged):
    known = {"sound": 0.25, "half a million": 5e5}
    text = json.dumps(known)[:-1] + f', "damaged": {damaged}}}'
    cache.write_text(text)
    assert calibration._Cache().times == known


@pytest.mark.parametrize("text", ["[1, 2]", "7", '"a"', "", "{", "\udcff"])
def test_a_file_that_is_no_table_is_as_if_it_were_not_there(cache, text):
    cache.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert calibration._Cache().times == {}
    calibration._Cache().add("a", 0.5)
    assert json.loads(cache.read_text()) == {"a": 0.5}


def test_times_of_another_machine_are_kept_and_not_used(cache):
    cache.write_text(json.dumps({"another machine | a": 0.125}))
    found = calibration.seconds("a", lambda: lambda: None)
    assert 0 < found < 0.1
    kept = json.loads(cache.read_text())
    assert kept == {"another machine | a": 0.125, f"{calibration.machine()} | a": found}
    assert calibration.seconds("a", lambda: pytest.fail("it is known")) == found


def test_a_machine_is_told_by_its_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 123)
    assert " | 123 threads | torch 2" in calibration.machine()


def test_a_use_of_a_layer_for_inference():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    seen = []
    layer.register_forward_hook(lambda _, args, y: seen.append(y.requires_grad))
    calibration.layer_call(layer.train(), x, training=False)()
    assert seen == [False]  # nothing is kept for a backward pass
    assert not layer.training


def test_a_use_of_a_layer_in_training():
    """Forward, and backward to input and weights; nothing is left of it."""
    layer, x = nn.Linear(3, 2).eval(), torch.randn(4, 3)
    call = calibration.layer_call(layer, x, training=True)
    backward = []
    layer.weight.register_hook(lambda g: backward.append(("weight", g.shape)))
    layer.register_full_backward_hook(
        lambda _, into, out: backward.append(("input", into[0].shape))
    )
    for _ in range(2):
        call()
    assert layer.training
    assert backward.count(("weight", (2, 3))) == 2
    assert backward.count(("input", (4, 3))) == 2
    assert all(p.grad is None for p in layer.parameters())
    assert x.grad is None
    assert not x.requires_grad
    assert math.isfinite(float(x.sum()))


def test_the_processor_is_read_or_asked_for(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(calibration, "Path", lambda path: told)
    processor = calibration._processor.__wrapped__
    monkeypatch.setattr(calibration.platform, "processor", lambda: "asked")
    monkeypatch.setattr(calibration.platform, "machine", lambda: "x86")
    assert processor() == "asked"  # there is no such file
    told.write_text("processor : 0\nmodel name\t:  EPYC: 7 \nmodel name\t: other\n")
    assert processor() == "EPYC: 7"
    told.write_text("Hardware : 1\nModel : A board\n")
    assert processor() == "A board"
    told.write_text("processor : 0\n")
    assert processor() == "asked"
    monkeypatch.setattr(calibration.platform, "processor", lambda: "")
    assert processor() == "x86"


def test_the_file_of_times_is_made_to_be_read(cache):
    table = calibration._Cache()
    table.add("b", 0.5)
    table.add("a", 0.25)
    expected = json.dumps({"a": 0.25, "b": 0.5}, indent=1) + "\n"
    assert cache.read_text() == expected
    assert calibration._Cache().times == {"a": 0.25, "b": 0.5}


def test_a_folder_that_was_not_installed_has_no_version(monkeypatch):
    def version(name):
        if name == "sparsekit":
            raise calibration.PackageNotFoundError
        return "1.2"

    monkeypatch.setattr(calibration, "version", version)
    assert calibration.machine().endswith("| torch 1.2 numba 1.2 sparsekit source")
