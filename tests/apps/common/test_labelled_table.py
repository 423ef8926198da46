"""Tables with a class for each row: what numpy and pandas made comes back."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apps.common import images
from apps.common.labelled_table import read


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(20, 80, 60),
            "Label": np.repeat(["yes", "no", "perhaps"], 20),
            "height": rng.normal(1.7, 0.1, 60),
            "smokes": rng.random(60) < 0.3,
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back(table, suffix, tmp_path):
    path = tmp_path / f"people{suffix}"
    save = table.to_csv if suffix == ".csv" else table.to_parquet
    save(path, index=False)
    x, y = read(path)
    np.testing.assert_array_equal(x, table[["age", "height", "smokes"]].astype(float))
    assert y.tolist() == table["Label"].tolist()
    splits = images.load(str(path), seed=0)
    assert (splits.shape, len(splits.train)) == ((3, 3, 1), 42)
    ids = splits.train.ids.numpy()
    expected = (x[ids] - x[ids].mean(0)) / x[ids].std(0)
    found = splits.train.x[:, :, 0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    names = np.array(["no", "perhaps", "yes"])  # in their order
    assert names[splits.train.y].tolist() == table["Label"][ids].tolist()


def test_whole_numbers_are_classes_as_they_are(table, tmp_path):
    path = tmp_path / "t.csv"
    table["Label"] = np.repeat([7, 3, 10], 20)
    table.to_csv(path, index=False)
    assert read(path)[1].tolist() == table["Label"].tolist()
    assert images.load(str(path)).classes == 3


WRONG = {
    "needs one column of classes, called y, label, class or target; it has age": (
        lambda t: t.rename(columns={"Label": "kind"})
    ),
    "needs one column of classes, .* it has age, Label, height, smokes, y": (
        lambda t: t.assign(y=1)
    ),
    "column 'city' holds 'Rome', which is no number": lambda t: t.assign(city="Rome"),
    "column 'height' is empty in row 3": (
        lambda t: t.assign(height=t["height"].where(t.index != 3))
    ),
    "column 'Label' is empty in row 0": (
        lambda t: t.assign(Label=t["Label"].where(t.index > 0))
    ),
    "has no column of inputs": lambda t: t[["Label"]],
    "x has NaN or infinity in 1 examples, first 5": (
        lambda t: t.assign(height=t["height"].where(t.index != 5, np.inf))
    ),
    "y has only one class, 'yes'": lambda t: t.head(3),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_refused(table, message, tmp_path):
    path = tmp_path / "t.csv"
    WRONG[message](table).to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        images.load(str(path))


def test_row_numbers_are_no_input(table, tmp_path):
    """As pandas writes them unless told otherwise: they would give the class away."""
    path = tmp_path / "t.csv"
    table.to_csv(path)
    with pytest.raises(ValueError, match=r"t\.csv: column 1 has no name.*index=False"):
        images.load(str(path))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        images.load(str(tmp_path / "absent.csv"))
    broken = {"a.parquet": b"no", "b.csv": b"\xff\xfe\x00", "c.csv": b""}
    for name, content in broken.items():
        Path(tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            images.load(str(tmp_path / name))
