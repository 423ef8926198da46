"""Two processes train as one does: the same masks, and numbers up to rounding."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from apps.classify.cli import main
from apps.classify.config import Config as ClassifyConfig
from apps.classify.train import train as classify
from apps.common import processes
from apps.common.images import channels_last
from apps.continual.config import Config as ContinualConfig
from apps.continual.train import train as learn
from apps.recsys.config import Config as RecsysConfig
from apps.recsys.train import train as recommend
from apps.unlearning.config import Config as UnlearningConfig
from apps.unlearning.train import train as unlearn
from sparsekit.execution import dense_state_dict
from sparsekit.execution.norm import BlockedBatchNorm2d

WORLD = 2


# ---- what every process computes -----------------------------------------------------


def normed() -> nn.Module:
    """Two batch norms, of images and of vectors; 7 examples are 3 and 4."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(27, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4),
    ).double()  # fmt: skip


def gradients() -> dict[str, Tensor]:
    """Of two losses that add up, one step; and what batch norm remembers."""
    model = normed()
    forward = processes.shared(model)
    generator = torch.Generator().manual_seed(1)
    for n in (7, 4):
        x = torch.randn(n, 2, 5, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(4, (n,), generator=generator)
        outputs = forward(x)
        (F.cross_entropy(outputs, y) + outputs[0].sum() ** 2).backward()
    processes.average(model.parameters())
    found = {name: p.grad for name, p in model.named_parameters()}
    found |= dict(model.named_buffers())
    model.eval()
    found["evaluated"] = forward(torch.ones(3, 2, 5, 5).double()).detach()
    whole = processes.gathered(np.arange(10)[processes.rows(5)], 5)
    return found | {"gathered": torch.from_numpy(whole), "inner": inner_channels()}


def inner_channels() -> Tensor:
    """What batch norm makes of float32 images with their channels innermost in memory:
    far from 0, so that another order of summation gives other bits."""
    generator = torch.Generator().manual_seed(2)
    x = channels_last(torch.randn(7, 3, 11, 11, generator=generator) + 100)
    forward = processes.shared(nn.Sequential(nn.BatchNorm2d(3)))
    return forward(x).detach()


def of_result(result: Any) -> dict[str, Tensor]:
    """Weights, masks and metrics of a run."""
    model = getattr(result, "network", None) or result.model
    found = {f"weight {n}": t for n, t in dense_state_dict(model).items()}
    found |= {f"mask {n}": m for n, m in result.masks.items()}
    for name, interval in result.metrics.items():
        if name != "run time":
            found[f"metric {name}"] = torch.tensor(float(interval.value))
    return found


def images(folder: Path) -> str:
    """300 images of four classes, in a file."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 4
    x = rng.integers(0, 160, (300, 1, 8, 8)) + 90 * (y % 2)[:, None, None, None]
    x[:, :, :4] += (5 * (y // 2))[:, None, None, None]
    np.savez(folder / "images.npz", x=np.minimum(x, 255).astype(np.uint8), y=y)
    return str(folder / "images.npz")


def clicks(folder: Path) -> str:
    """Of 40 users and 25 items, in a file."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((40, 25)) < 0.4)
    rows = [f"{u},{i}" for u, i in zip(users, items, strict=True)]
    (folder / "clicks.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    return str(folder / "clicks.csv")


def trainings(folder: Path) -> dict[str, Callable[[], Any]]:
    """One a kind of loop; all that is random is equal on every process."""
    x, c = str(folder / "images.npz"), str(folder / "clicks.csv")
    one = ClassifyConfig(
        dataset=x, model="mlp", width=11, depth=2, epochs=2, batch=30, method="rigl",
        sparsity=0.8, options={"every": 2}, optimizer="sgd",
    )  # fmt: skip
    task = ContinualConfig(
        dataset=x, tasks=2, width=13, depth=1, buffer=30, batch=17, replay_batch=11,
        lr=0.05, sparsity=0.7, optimizer="momentum",
    )  # fmt: skip
    ranked = RecsysConfig(
        dataset=c, dim=6, hidden=8, batch=20, epochs=3, every=1, lr=0.02,
        method="gradual", sparsity=0.5, dropout=0.0,
    )  # fmt: skip
    forgotten = UnlearningConfig(
        dataset=x, model="cnn", epochs=2, batch=30, pruner="omp", sparsity=0.5,
        options={"epochs": 1},
    )  # fmt: skip
    found = {
        "gradients": gradients,
        "classify": lambda: of_result(classify(one)),
        "values mode": lambda: of_result(classify(replace(one, backend="values"))),
        "batch norm": lambda: of_result(classify(replace(one, model="cnn", width=4))),
        "unlearning": lambda: of_result(unlearn(forgotten)),
    }
    for strategy in ("er", "derpp", "agem", "lwf", "gdumb"):
        method = "dense" if strategy == "gdumb" else "set"
        options = {} if strategy == "gdumb" else {"every": 2}
        config = replace(task, strategy=strategy, method=method, options=options)
        found[strategy] = lambda config=config: of_result(learn(config))
    for model in ("mf", "lightgcn", "multvae", "neumf"):
        config = replace(ranked, model=model, batch=10 if model == "multvae" else 20)
        found[model] = lambda config=config: of_result(recommend(config))
    return found


def work(rank: int, folder: str) -> None:
    os.environ |= {"WORLD_SIZE": str(WORLD), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    torch.manual_seed(rank)
    found = {name: train() for name, train in trainings(Path(folder)).items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """Of one process alone, and of each of two."""
    folder = tmp_path_factory.mktemp("processes")
    images(folder)
    clicks(folder)
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    alone = {name: train() for name, train in trainings(folder).items()}
    both = [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]
    return [alone, *both]


NAMES = sorted(trainings(Path()))


@pytest.mark.parametrize("name", NAMES)
def test_both_processes_have_the_same(results, name: str) -> None:
    first, second = results[1][name], results[2][name]
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.parametrize("name", [n for n in NAMES if n != "multvae"])
def test_two_processes_train_as_one(results, name: str) -> None:
    """Not multvae: it draws random numbers of its own in the forward pass."""
    alone, both = results[0][name], results[1][name]
    assert alone.keys() == both.keys()
    for key, tensor in alone.items():
        if tensor.dtype == torch.bool:
            assert torch.equal(tensor, both[key]), key
        else:
            rtol, atol = (1e-12, 1e-14) if name == "gradients" else (1e-3, 1e-4)
            torch.testing.assert_close(
                both[key], tensor, rtol=rtol, atol=atol, msg=lambda m, key=key: key + m
            )


# ---- as it is called -----------------------------------------------------------------


def command(folder: Path, out: str) -> list[str]:
    words = f"--standalone --nproc-per-node {WORLD} -m apps.classify train --batch 30"
    words += " --model mlp --width 12 --method rigl --options every 2 --epochs 60"
    files = ["--dataset", str(folder / "images.npz"), "--out", str(folder / out)]
    return [sys.executable, "-m", "torch.distributed.run", *words.split(), *files]


def workers(launcher: int) -> list[int]:
    """The processes that torchrun has started, by rank."""
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {}
    for pid in found:
        text = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        values = dict(pair.split(b"=", 1) for pair in text if b"=" in pair)
        if b"RANK" in values:
            ranks[int(values[b"RANK"])] = int(pid)
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.timeout(200)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_run_goes_on_after_one_process_is_killed(tmp_path: Path) -> None:
    images(tmp_path)

    def start(out: str, *more: str) -> subprocess.Popen:
        with open(tmp_path / f"{out}.log", "w") as log:
            words = [*command(tmp_path, out), *more]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            return subprocess.Popen(words, env=environment, stdout=log, stderr=log)

    cut = start("cut")
    try:
        while not (tmp_path / "cut/checkpoint.pt").exists():
            assert cut.poll() is None, (tmp_path / "cut.log").read_text()[-2000:]
            time.sleep(0.02)
        os.kill(workers(cut.pid)[1], signal.SIGKILL)
        assert cut.wait() != 0
    finally:
        cut.kill()
    assert not (tmp_path / "cut/result.json").exists()
    for run, out in ((start("cut", "--resume"), "cut"), (start("whole"), "whole")):
        assert run.wait() == 0, (tmp_path / f"{out}.log").read_text()[-2000:]
    for name in ("model.safetensors", "samples.safetensors"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == whole


def test_what_cannot_be_shared_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert processes.rows(7) == slice(3, 7)
    assert processes.equal_part(torch.arange(8)).tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="batch 7 cannot be divided among 2 processes"):
        processes.equal_part(torch.arange(7))
    with pytest.raises(ValueError, match="1 examples cannot be divided"):
        processes.shared(nn.Linear(2, 2))(torch.ones(1, 2))
    with pytest.raises(ValueError, match="0: BlockedBatchNorm2d cannot be shared"):
        processes.shared(nn.Sequential(BlockedBatchNorm2d(3)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", "--epochs", "1"]) == 2
    assert "this runs in one process" in capsys.readouterr().err
