"""The service on a table and on a folder of images; other data touch no request."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from apps.common import receipt
from apps.common.folders import listed
from apps.unlearning.service import Service
from apps.unlearning.service_audit import Settings
from apps.unlearning.service_setup import setup
from tests.apps.unlearning import deletion

N, SUBJECTS = 300, 10
TWO = Settings(references=2)


def table(folder: Path) -> tuple[Path, Path]:
    """A table of digits, and a file of it that can be changed."""
    digits = load_digits()
    noise = np.random.default_rng(0).normal(0, 0.1, digits.data[:N].shape)
    rows = pd.DataFrame(digits.data[:N] + noise).add_prefix("pixel ")
    rows["class"] = [f"digit {label}" for label in digits.target[:N]]
    rows.to_csv(folder / "digits.csv", index=False)
    return (folder / "digits.csv",) * 2


def images(folder: Path) -> tuple[Path, Path]:
    digits = load_digits()
    for i, label in enumerate(digits.target[:N]):
        (folder / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((15 * digits.images[i]).astype(np.uint8))
        picture.save(folder / "photos" / str(label) / f"{i:03}.png")
    return folder / "photos", listed(folder / "photos")[0]


@pytest.mark.parametrize("made_by", [table, images])
def test_from_own_data_to_a_receipt(made_by, tmp_path):
    dataset, one_file = made_by(tmp_path)
    with open(tmp_path / "subjects.csv", "w", newline="") as file:
        pairs = [(f"p-{i % SUBJECTS}", i) for i in range(N)]
        csv.writer(file).writerows([("subject", "record"), *pairs])
    folder = tmp_path / "service"
    config = deletion.config(dataset, pruner="dense")
    setup(folder, config, tmp_path / "subjects.csv")
    with Service(folder) as service:
        asked = service.request("p-3")
        whole = one_file.read_bytes()
        _shorten(one_file)
        with pytest.raises(ValueError, match="data are not those that the model was"):
            service.run("retrain")
        one_file.write_bytes(whole)
        assert service.ledger.requests("received") == [asked]
        service.run("retrain")
        assert service.audit(TWO).state == "verified"
        assert service.erased() == list(range(3, N, SUBJECTS))
    path = folder / "receipts" / "0001.json"
    _, checked = receipt.verify(path, folder / "public.pem", folder)
    assert any("exact" in line for line in checked)


def _shorten(path: Path) -> None:
    """A table without its last row, or a folder without that image."""
    rows = path.read_bytes().rstrip().rpartition(b"\n")[0]
    if path.suffix == ".csv":
        path.write_bytes(rows + b"\n")
    else:
        path.unlink()
