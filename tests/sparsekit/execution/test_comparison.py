import copy
import json
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sparsekit.execution import benchmark, comparison, convert
from sparsekit.execution.comparison import Benchmark, Row
from sparsekit.sparsifier import Sparsifier


@pytest.fixture
def pair():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(19, 13), nn.ReLU(), nn.Linear(13, 3)).eval()
    dense[0].weight.data.mul_(torch.rand(13, 19) < 0.2)
    return dense, convert(dense, "values", where="0")


def test_engines_side_by_side(pair):
    table = benchmark(*pair, torch.randn(5, 19), rounds=2, engines=["onnxruntime"])
    assert [row.engine for row in table.rows] == ["dense", "onnxruntime", "sparse"]
    assert table["sparse"].error < 1e-5
    assert table.fastest_dense.speedup == pytest.approx(1)
    assert table["sparse"].disk_bytes > 0
    assert json.loads(table.to_json())["what"] == "inference"
    assert "speed-up: over" in str(table)
    with pytest.raises(KeyError, match="measured"):
        table["tvm"]


def test_a_training_step_has_a_masked_rival_and_changes_nothing(pair):
    dense, sparse = pair
    before = [p.clone() for m in pair for p in m.parameters()]
    table = benchmark(
        dense, sparse, torch.randn(5, 19), training=True, rounds=2, engines=[]
    )
    assert [row.engine for row in table.rows] == ["dense", "masked", "sparse"]
    after = [p for m in pair for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert table["sparse"].milliseconds > 0


def test_what_cannot_run_is_named(pair):
    table = benchmark(
        *pair, torch.randn(5, 19), rounds=2, engines=["dense, channels last"]
    )
    assert table["dense, channels last"].milliseconds is None
    assert "not available: for images only" in str(table)


def test_another_function_is_no_rival(pair):
    dense, sparse = pair
    dense[0].weight.data.add_(1.0)
    with pytest.raises(ValueError, match="differ by"):
        benchmark(dense, sparse, torch.randn(5, 19), rounds=2, engines=[])


ROWS = [
    Row("dense", 8.0, 0.5, None, 1.5, 4000),
    Row("torch.compile", 4.0, 1.0, None, None, 4000),
    Row("onnxruntime", None, None, None, None, None, "not available: no onnx"),
    Row("masked", 10.0, 0.4, None, 2.25, 4000),
    Row("sparse", 1.0, 4.0, 2e-7, 0.0, 1234567),
]


def test_the_table_as_text_and_json():
    table = Benchmark(ROWS, "inference", (3, 5), "a machine")
    assert table.fastest_dense is ROWS[1]  # sparse is faster, but not dense
    title, header, *lines, base = str(table).splitlines()
    assert title == "inference, batch 3 x 5, a machine"
    assert header.split("  ")[0] == "engine"
    assert header.split()[-2:] == ["disk", "bytes"]
    assert [line.split("  ")[0] for line in lines] == [row.engine for row in ROWS]
    cells = [line.split() for line in lines]
    assert cells[0] == ["dense", "8.00", "0.50x", "–", "1.5", "4,000"]
    assert cells[1][-3:] == ["–", "–", "4,000"]
    assert cells[2][:6] == ["onnxruntime", "–", "–", "–", "–", "–"]
    assert lines[2].endswith("–  not available: no onnx")
    assert cells[4] == ["sparse", "1.00", "4.00x", "2e-07", "0.0", "1,234,567"]
    pairs = zip(lines, cells, strict=True)
    places = [line.index(cell[1]) + len(cell[1]) for line, cell in pairs]
    assert len(set(places)) == 1  # aligned on the right
    assert base == "speed-up: over torch.compile, the fastest dense engine"
    read = json.loads(table.to_json())
    assert [Row(**row) for row in read["rows"]] == ROWS
    assert (read["batch"], read["machine"]) == ([3, 5], "a machine")


def test_engines_take_turns_after_a_call_that_warms_up():
    calls = []
    runs = {name: partial(calls.append, name) for name in "abc"}
    times = comparison._interleaved(runs, 4)
    assert "".join(calls) == "abc" * 5
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys(
        "abc", 4
    )
    slow = {"fast": lambda: None, "slow": lambda: time.sleep(0.02)}
    times = comparison._interleaved(slow, 2)
    assert min(times["slow"]) >= 0.02 > max(times["fast"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_one_call():
    taken = comparison._peak_mb(lambda: np.ones(40_000_000 // 8).sum())
    assert taken == pytest.approx(40, abs=8)
    assert comparison._peak_mb(lambda: None) < 4


def test_bytes_on_disk_are_those_of_a_file(tmp_path, pair):
    for model in pair:
        torch.save(model.state_dict(), tmp_path / "model.pt")
        size = (tmp_path / "model.pt").stat().st_size
        assert comparison._disk_bytes(model) == pytest.approx(size, abs=200)


def test_the_error_is_that_of_the_largest_output():
    dense, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -8.0]]))
        other.weight.copy_(torch.tensor([[1.5, 0.0], [0.0, -8.0]]))
    x = torch.eye(2)
    assert comparison._errors(dense, other, x) == {"sparse": 0.5 / 8}
    dense.weight.data.zero_()
    assert comparison._errors(dense, dense, x) == {"sparse": 0.0}


def test_the_masked_rival_keeps_exactly_the_weights_of_the_sparse_one(pair):
    dense, sparse = pair
    optimizer = torch.optim.SGD(dense.parameters(), 0.1)
    sparsifier = comparison._masked(dense, optimizer, sparse)
    assert list(sparsifier.alive) == ["0.weight"]
    assert torch.equal(sparsifier.alive["0.weight"], dense[0].weight != 0)
    mask = sparsifier.alive["0.weight"].clone()
    for _ in range(2):
        dense(torch.randn(5, 19)).square().mean().backward()
        sparsifier.before_step()
        optimizer.step()
        sparsifier.after_step()
    assert torch.equal(dense[0].weight != 0, mask)


def test_images_in_another_order_in_memory_give_the_same():
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3, 1, 1)
    ).eval()
    dense[2].weight.data.mul_(torch.rand(4, 16, 3, 3) < 0.2)
    sparse = convert(dense, "values", where="2")
    x = torch.randn(2, 3, 8, 8)
    table = benchmark(dense, sparse, x, rounds=1, engines=["dense, channels last"])
    assert [row.engine for row in table.rows] == [
        "dense", "dense, channels last", "sparse"
    ]  # fmt: skip
    assert all(row.milliseconds > 0 for row in table.rows)
    assert table.batch == (2, 3, 8, 8)
    assert table.fastest_dense.engine in ("dense", "dense, channels last")


def test_a_step_of_training_takes_the_loss_and_the_optimizer_that_are_given(pair):
    seen = []

    def loss(y):
        seen.append(y.shape)
        return y.sum()

    def optimizer(parameters):
        made = torch.optim.SGD(list(parameters), 0.5)
        seen.append(made)
        return made

    table = benchmark(
        *pair, torch.randn(5, 19), training=True, loss=loss, optimizer=optimizer,
        rounds=1, engines=["onnxruntime"],
    )  # fmt: skip
    assert table.what == "training step"
    assert [row.engine for row in table.rows] == ["dense", "masked", "sparse"]
    assert sum(isinstance(s, torch.optim.SGD) for s in seen) == 3
    assert (5, 3) in seen


class Slow(nn.Module):
    """A layer that takes its time, and notes in which mode it is called."""

    def __init__(self, seconds):
        super().__init__()
        self.linear, self.seconds, self.seen = nn.Linear(3, 2), seconds, []
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def __deepcopy__(self, memo):
        copied = Slow(self.seconds)
        copied.seen = self.seen  # of all copies
        return copied

    clock = 0.0

    def forward(self, x):
        Slow.clock += self.seconds
        modes = (
            self.training,
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
        )
        self.seen.append(modes)
        return self.linear(x)


def test_times_are_milliseconds_of_calls_without_gradients(monkeypatch):
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: Slow.clock)
    dense, sparse = Slow(0.0625), Slow(0.015625)
    table = benchmark(dense, sparse, torch.randn(2, 3), rounds=3, engines=[])
    assert table["dense"].milliseconds == 62.5
    assert table["sparse"].milliseconds == 15.625
    assert table["dense"].speedup == 1
    assert table["sparse"].speedup == 4
    # one call to see whether it runs, one to warm up, three rounds, one for its memory
    assert dense.seen.count((False, True, False)) == 1 + 1 + 3 + 1
    assert set(dense.seen) == {(False, True, False), (False, False, False)}
    assert table["sparse"].error == 0


def test_a_training_step_is_whole():
    """In training mode, with gradients of this step alone."""
    norms = []

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            (group,) = self.param_groups
            norms.append([p.grad.norm().item() for p in group["params"]])
            return super().step(closure)

    dense = Slow(0)
    run = comparison._run(
        "dense", dense, dense, torch.ones(2, 3), True, lambda y: y.sum(),
        lambda p: Noted(p, 0.0),
    )  # fmt: skip
    run()
    assert len(norms) == 2
    assert norms[0] == norms[1]
    assert set(dense.seen) == {(True, False, True)}


def test_frozen_weights_are_not_given_to_the_optimizer(pair):
    dense, _ = pair
    dense[0].requires_grad_(False)
    given = []

    def optimizer(parameters):
        given.extend(parameters)
        return torch.optim.SGD(given, 0.1)

    comparison._run(
        "dense", dense, dense, torch.randn(5, 19), True, lambda y: y.sum(), optimizer
    )
    assert [p.shape for p in given] == [(3, 13), (3,)]


def test_the_masked_rival_is_stepped_before_and_after_its_optimizer(pair, monkeypatch):
    calls = []
    for name in ("before_step", "after_step"):
        whole = getattr(Sparsifier, name)

        def noted(self, name=name, whole=whole):
            calls.append(name)
            return whole(self)

        monkeypatch.setattr(Sparsifier, name, noted)
    benchmark(*pair, torch.randn(5, 19), training=True, rounds=1, engines=[])
    assert calls == ["before_step", "after_step"] * (len(calls) // 2)
    assert calls


@pytest.mark.parametrize("training", [True, False])
def test_a_compiler_that_fails_when_it_is_called_is_noted(pair, monkeypatch, training):
    def compiled(model):
        def call(*args):
            raise RuntimeError("no compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    table = benchmark(
        *pair, torch.randn(5, 19), training=training, rounds=1,
        engines=["torch.compile", "dense"],
    )  # fmt: skip
    assert table["torch.compile"].note == "not available: no compiler"
    assert table["torch.compile"].milliseconds is None
    assert [r.engine for r in table.rows].count("dense") == 1
    assert table.rows[-1].engine == "torch.compile"


@pytest.mark.parametrize("engine", ["masked", "sparse"])
def test_our_own_engines_may_not_fail(pair, monkeypatch, engine):
    run = comparison._run

    def broken(name, *args):
        if name == engine:
            raise RuntimeError("broken")
        return run(name, *args)

    monkeypatch.setattr(comparison, "_run", broken)
    with pytest.raises(RuntimeError, match="broken"):
        benchmark(*pair, torch.randn(5, 19), training=True, rounds=1, engines=[])


def test_what_has_to_be_installed_is_named(pair, monkeypatch):
    known = comparison.find_spec
    monkeypatch.setattr(
        comparison, "find_spec", lambda name: "script" not in name and known(name)
    )
    table = benchmark(*pair, torch.randn(5, 19), rounds=1, engines=["onnxruntime"])
    assert table["onnxruntime"].note == "not available: pip install onnxscript"


@pytest.mark.parametrize(("off", "refused"), [(0.015, True), (0.008, False)])
def test_a_hundredth_of_the_largest_output_is_the_limit(pair, off, refused):
    dense, _ = pair
    other = copy.deepcopy(dense)
    x = torch.randn(5, 19)
    with torch.no_grad():
        other[2].bias.add_(off * dense(x).abs().max())
    if refused:
        with pytest.raises(ValueError, match=r"differ by 1.5e-02 of the largest"):
            benchmark(dense, other, x, rounds=1, engines=[])
    else:
        table = benchmark(dense, other, x, rounds=1, engines=[])
        assert table["sparse"].error == pytest.approx(off, rel=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(comparison, "restart_peak", lambda: False)
    assert comparison._peak_mb(lambda: None) is None
    monkeypatch.setattr(comparison, "restart_peak", lambda: True)
    told = iter([5_000_000])
    monkeypatch.setattr(comparison, "rss", lambda: next(told))
    monkeypatch.setattr(comparison, "peak_rss", lambda: 7_500_000)
    calls = []
    assert comparison._peak_mb(lambda: calls.append(1)) == 2.5
    assert calls == [1]
    monkeypatch.setattr(comparison, "rss", lambda: 8_000_000)
    assert comparison._peak_mb(lambda: None) == 0


def test_nine_rounds_unless_told_otherwise():
    dense = Slow(0)
    benchmark(dense, Slow(0), torch.randn(2, 3), engines=[])
    assert dense.seen.count((False, True, False)) == 1 + 1 + 9 + 1


def test_notes_begin_in_one_column():
    notes = [replace(ROWS[2], engine=f"e{n}", note="x" * n) for n in (1, 9)]
    table = Benchmark([*ROWS, *notes], "inference", (3,), "m")
    lines = str(table).splitlines()[-3:-1]
    assert lines[0].index("x") == lines[1].index("x")


def test_a_session_of_onnxruntime_computes_with_as_many_threads_as_torch(monkeypatch):
    import onnxruntime

    given = []
    session = onnxruntime.InferenceSession

    def noted(content, options, providers):
        given.append((options.intra_op_num_threads, providers))
        return session(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    model, x = nn.Linear(3, 2).eval(), torch.randn(4, 3)
    (found,) = comparison._run("onnxruntime", model, model, x, False, None, None)()
    torch.testing.assert_close(torch.from_numpy(found), model(x))
    assert given == [(torch.get_num_threads(), ["CPUExecutionProvider"])]
