"""A small deletion service on real digits, for tests: half a second to set up."""

import csv
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from apps.unlearning.config import Config
from apps.unlearning.ledger_data import DataMap
from apps.unlearning.service import Service
from apps.unlearning.service_audit import Settings
from apps.unlearning.service_setup import setup

SUBJECTS = 12  # s-0 ... s-11, each with every twelfth record


def write_digits(folder: Path, n: int = 600, wrong: tuple[int, ...] = ()) -> Path:
    """n real 8x8 digits as a user's .npz; those of subjects `wrong` are mislabelled."""
    digits = load_digits()
    path = folder / "digits.npz"
    y = digits.target[:n]
    y = np.where(np.isin(np.arange(n) % SUBJECTS, wrong), (y + 1) % 10, y)
    np.savez(path, x=digits.images[:n].astype(np.float32), y=y)
    return path


def write_subjects(folder: Path, n: int = 600) -> Path:
    path = folder / "subjects.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "subject", "record"])  # the name is nobody's business
        writer.writerows((f"Jo {i}", f"s-{i % SUBJECTS}", i) for i in range(n))
    return path


def config(data: Path, **changes) -> Config:
    settings = {
        "dataset": str(data), "model": "mlp", "width": 16, "depth": 1, "epochs": 4,
        "batch": 50, "pruner": "random", "sparsity": 0.5, "method": "retrain",
    } | changes  # fmt: skip
    return Config(**settings)


def make(folder: Path, **changes) -> Path:
    """A service that is set up in folder/service, with other settings if given."""
    write_digits(folder), write_subjects(folder)
    set_up(folder / "service", **changes)
    return folder / "service"


def set_up(folder: Path, **changes) -> None:
    settings = config(folder.parent / "digits.npz", **changes)
    setup(folder, settings, folder.parent / "subjects.csv")


def work(folder: str, kills: int, log: str, new: bool = False) -> None:
    """Handles two requests to their end in this process, and dies after some steps.

    new: sets the service up instead, from the data beside the folder.

    A step is a file opened, renamed or removed in the folder, or a transaction of the
    ledger begun, about to be committed, or committed. kills: at which; 0: at none.
    log: a file that gets the number of steps.
    """
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kills:
            os.kill(os.getpid(), signal.SIGKILL)

    names = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")

    def seen(event: str, arguments: tuple) -> None:
        if event in names and str(arguments[0]).startswith(folder):
            step()

    sys.addaudithook(seen)
    plain = DataMap.transaction

    @contextmanager
    def watched(self):
        step()
        with plain(self):
            yield
            step()
        step()

    DataMap.transaction = watched
    try:
        set_up(Path(folder)) if new else finish(Path(folder))
    finally:
        DataMap.transaction = plain
    Path(log).write_text(str(steps))


def finish(folder: Path) -> None:
    """Everything that s-1 and s-2 asked for."""
    with Service(folder) as service:
        service.request("s-1")
        service.request("s-2")
        batch = service.ledger.open_batch()
        if batch is None or batch.state == "running":
            service.run()
        service.audit(Settings(references=2))
        service.wipe()


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))
