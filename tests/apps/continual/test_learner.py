"""The learner of a device: power cuts, memory, export, predictions."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from apps.continual.config import Config
from apps.continual.journal import Journal
from apps.continual.learner import Learner
from sparsekit.execution import reader

SHAPE = (1, 8, 8)
ROOT = Path(__file__).parents[3]


def settings(**changes) -> Config:
    values = dict(
        model="mlp", width=9, depth=1, strategy="derpp", buffer=20, replay_batch=5,
        method="tdm", sparsity=0.7, options={"every": 7}, optimizer="momentum", lr=0.02,
    )  # fmt: skip
    return Config(**{**values, **changes})  # type: ignore[arg-type]


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the device sees as its i-th batch: noisy copies of a pattern a class."""
    generator = torch.Generator().manual_seed(i)
    patterns = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(99))
    y = torch.randint(0, 4, (6,), generator=generator)
    x = patterns[y] + 0.3 * torch.randn(6, *SHAPE, generator=generator)
    return x.mul(255).clamp(0, 255).byte(), y


def go_on(learner: Learner, end: int) -> Learner:
    """From where it stands; tasks begin at batches 60 and 200."""
    while learner.observed < end:
        if learner.observed in (60, 200) and learner._begin != learner.observed:
            learner.next_task()
        learner.observe(*batch(learner.observed))
    return learner


def tensors(state, prefix: str = "") -> dict[str, object]:
    """Every tensor and number of a nested state, by path."""
    if isinstance(state, dict):
        inner = [tensors(v, f"{prefix}/{k}") for k, v in state.items()]
        return {name: value for part in inner for name, value in part.items()}
    return {prefix: state}


def same(a: Learner, b: Learner) -> bool:
    found, expected = (tensors(x.state.state_dict()) for x in (a, b))
    assert found.keys() == expected.keys()
    return all(
        torch.equal(value, expected[name])
        if isinstance(value, torch.Tensor)
        else repr(value) == repr(expected[name])
        for name, value in found.items()
    )


def cut_power_often(folder: str, kills: int) -> None:
    """Forks a device, kills it at a random time, and again; prints what it was told.

    In a process of its own with one thread, so that it can be forked; it has loaded
    what is loaded late, so that forks are fast.
    """
    torch.set_num_threads(1)
    go_on(Learner(settings(), SHAPE, 4), 10)
    choose, told = random.Random(0), 0
    for _ in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            learner = Learner(settings(), SHAPE, 4, folder=folder, checkpoint_every=20)
            while True:
                go_on(learner, learner.observed + 1)
                os.write(writing, b"%d " % learner.observed)
        os.close(writing)
        first = os.read(reading, 9)  # it has got somewhere
        time.sleep(choose.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as pipe:
            told = max(told, int((first + pipe.read()).split()[-1]))
    print(told)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of two threads have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_fifty_power_cuts_lose_nothing(tmp_path: Path) -> None:
    """Killed at random times, it ends with the bits of a learner that never was."""
    program = (
        "from tests.apps.continual.test_learner import cut_power_often\n"
        f"cut_power_often({str(tmp_path)!r}, 50)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    told = int(done.stdout)
    learner = Learner(settings(), SHAPE, 4, folder=tmp_path, checkpoint_every=20)
    assert learner.observed >= told >= 50  # what was told is not forgotten
    end = learner.observed + 3
    assert same(go_on(learner, end), go_on(Learner(settings(), SHAPE, 4), end))


@pytest.mark.parametrize("cut", [0, 1, 19, 20, 61, 77])
@pytest.mark.parametrize("changes", [{}, {"backend": "values", "strategy": "er"}])
def test_it_goes_on_after_any_batch(tmp_path: Path, cut: int, changes: dict) -> None:
    config = settings(**changes)
    go_on(Learner(config, SHAPE, 4, folder=tmp_path, checkpoint_every=20), cut)
    again = Learner(config, SHAPE, 4, folder=tmp_path, checkpoint_every=20)
    assert again.observed == cut
    assert same(go_on(again, 80), go_on(Learner(config, SHAPE, 4), 80))
    assert len(list(tmp_path.glob("*.journal"))) <= 1


@pytest.mark.parametrize("damage", ["torn", "flipped", "long"])
def test_a_torn_record_was_never_observed(tmp_path: Path, damage: str) -> None:
    go_on(Learner(settings(), SHAPE, 4, folder=tmp_path), 5)
    path = tmp_path / "0.journal"
    content = bytearray(path.read_bytes())
    if damage == "torn":
        content = content[:-7]
    elif damage == "flipped":
        content[-7] ^= 1
    else:
        content += b"\xff" * 11
    path.write_bytes(content)
    learner = Learner(settings(), SHAPE, 4, folder=tmp_path)
    observed = 5 if damage == "long" else 4
    assert learner.observed == observed
    assert same(learner, go_on(Learner(settings(), SHAPE, 4), observed))
    go_on(learner, 7)  # and the journal goes on behind what was whole
    again = Learner(settings(), SHAPE, 4, folder=tmp_path)
    assert again.observed == 7
    assert same(again, learner)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
@pytest.mark.parametrize("room", [0, 5, 400])
def test_a_full_disk_has_changed_nothing(tmp_path: Path, room: int) -> None:
    """Files may not grow: of a journal, then of a checkpoint."""
    learner = Learner(settings(), SHAPE, 4, folder=tmp_path, checkpoint_every=8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for filled, file in ((5, "0.journal"), (8, None)):
        go_on(learner, filled)
        most = room + (tmp_path / file).stat().st_size if file else room
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(OSError, match=r"cannot write .*: the file would"):
                learner.observe(*batch(filled))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert learner.observed == filled
        again = Learner(settings(), SHAPE, 4, folder=tmp_path, checkpoint_every=8)
        assert same(again, learner)
    assert same(go_on(learner, 20), go_on(Learner(settings(), SHAPE, 4), 20))
    again = Learner(settings(), SHAPE, 4, folder=tmp_path, checkpoint_every=8)
    assert same(again, learner)


def test_a_record_that_the_disk_did_not_confirm_is_not_there(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "a")
    journal.append(b"first")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", Mock(side_effect=OSError("no power")))
        patched.setattr(os, "truncate", Mock(side_effect=OSError("no power")))
        with pytest.raises(OSError, match="no power"):
            journal.append(b"second")
    journal.append(b"third")
    assert list(Journal(tmp_path / "a").records()) == [b"first", b"third"]


def test_journal_records_are_read_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a")
    assert list(journal.records()) == []
    written = [os.urandom(n) for n in (0, 1, 5000)]
    for content in written:
        journal.append(content)
    assert list(Journal(tmp_path / "a").records()) == written
    journal.remove()
    journal.remove()
    assert not (tmp_path / "a").exists()


def test_it_learns_and_does_not_forget(tmp_path: Path) -> None:
    learner = Learner(settings(sparsity=0.5), SHAPE, 4)
    for part in ((0, 1), (2, 3)):
        for i in range(120):
            x, y = batch(i)
            own = (y == part[0]) | (y == part[1])
            if own.any():
                learner.observe(x[own], y[own])
        learner.next_task()
    x, y = (
        torch.cat(t) for t in zip(*(batch(1000 + i) for i in range(40)), strict=True)
    )
    assert (learner.predict(x) == y).double().mean() > 0.8
    assert learner.state.sparsifier.density == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("backend", ["masked", "values"])
def test_the_export_computes_the_same_without_torch(tmp_path, backend) -> None:
    config = settings(model="cnn", width=3, depth=2, backend=backend)
    learner = go_on(Learner(config, SHAPE, 4), 12)
    written = learner.export(tmp_path / "model.safetensors")
    assert written.error < 1e-5
    x, _ = batch(500)
    learner.state.model.eval()
    expected = learner.state.model(learner.state.stream.view(x)).detach().numpy()
    standard = ((x.float() - 127.5) / 127.5).numpy()
    found = reader.load(tmp_path / "model.safetensors")(standard)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


LIMITED = """
import sys, torch
from apps.continual.config import Config
from apps.continual import memory
from apps.continual.learner import Learner
torch.set_num_threads(1)
values = dict(model="resnet18", width=16, depth=0, strategy="derpp", buffer=50,
              replay_batch=16, optimizer="momentum")
if sys.argv[1] == "sparse":
    values |= dict(method="tdm", sparsity=0.95, backend="values")
def batch(n, size):
    return torch.randint(0, 256, (n, 3, size, size)).byte(), torch.arange(n) % 10
small = Learner(Config(**values | {"width": 4}), (3, 32, 32), 10)
small.observe(*batch(2, 32))  # loads and compiles what is loaded late
small.observe(*batch(2, 32))
del small
memory.limit(float(sys.argv[2]))
learner = Learner(Config(**values), (3, 32, 32), 10)
for _ in range(4):
    learner.observe(*batch(16, 32))
print("trained", learner.observed)
"""


def limited(kind: str, megabytes: float) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", LIMITED, kind, str(megabytes)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
def test_it_trains_within_a_limit_that_a_dense_one_exceeds() -> None:
    done = limited("sparse", 58)
    assert done.stdout.split() == ["trained", "4"], done.stderr[-2000:]
    done = limited("dense", 58)
    assert done.returncode != 0
    killed = done.returncode < 0  # by a signal: oneDNN does not look whether it got any
    assert killed or "memory" in done.stderr.lower()


@pytest.mark.parametrize(
    ("raw", "y", "message"),
    [
        (torch.zeros(3, 1, 8, 8), torch.zeros(3).long(), "uint8 .* got torch.float32"),
        (torch.zeros(3, 1, 8, 7).byte(), torch.zeros(3).long(), r"\[3, 1, 8, 7\]"),
        (torch.zeros(3, 1, 8, 8).byte(), torch.zeros(2).long(), "each of 3 inputs"),
        (torch.zeros(0, 1, 8, 8).byte(), torch.zeros(0).long(), "each of 0 inputs"),
        (torch.zeros(2, 1, 8, 8).byte(), torch.tensor([0, 4]), "0 ... 3, got 0 ... 4"),
    ],
)
def test_bad_batches_change_nothing(tmp_path, raw, y, message: str) -> None:
    learner = go_on(Learner(settings(), SHAPE, 4, folder=tmp_path), 3)
    with pytest.raises(ValueError, match=message):
        learner.observe(raw, y)
    assert same(learner, go_on(Learner(settings(), SHAPE, 4), 3))
    assert Learner(settings(), SHAPE, 4, folder=tmp_path).observed == 3


def test_another_learner_in_the_folder_is_refused(tmp_path: Path) -> None:
    go_on(Learner(settings(), SHAPE, 4, folder=tmp_path), 3)
    with pytest.raises(ValueError, match=r"trained with lr = 0\.02, not 0\.5"):
        Learner(settings(lr=0.5), SHAPE, 4, folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds a learner of .*'classes': 4"):
        Learner(settings(), SHAPE, 5, folder=tmp_path)
    with pytest.raises(ValueError, match="replays by er or derpp"):
        Learner(settings(strategy="finetune"), SHAPE, 4)
    with pytest.raises(ValueError, match="number of batches, got 0"):
        Learner(settings(), SHAPE, 4, checkpoint_every=0)
