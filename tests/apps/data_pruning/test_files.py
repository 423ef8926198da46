"""Files of scores and subsets: ours as pandas reads them, hostile ones refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from apps.data_pruning import files


def frame(**columns) -> pd.DataFrame:
    values = {"id": [7, 3, 5], "score": [0.5, np.inf, -1.0], "label": [0, 1, 1]}
    return pd.DataFrame(values | columns)


def written(folder: Path, suffix: str, table: pd.DataFrame) -> Path:
    path = folder / f"scores{suffix}"
    if suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("runs", [1, 4])
def test_scores_as_pandas_reads_them(tmp_path: Path, runs: int) -> None:
    path = tmp_path / "scores.parquet"
    per_run = torch.rand(runs, 5, generator=torch.Generator().manual_seed(0))
    ids, labels = np.array([9, 2, 4, 6, 0]), np.array([1, 0, 1, 2, 0])
    files.write_scores(path, ids, labels, per_run)
    table = pd.read_parquet(path)
    assert table["id"].tolist() == ids.tolist()
    assert table["label"].tolist() == labels.tolist()
    names = [f"run_{r}" for r in range(runs)]
    assert list(table) == ["id", "label", "score", "spread", *names]
    np.testing.assert_allclose(table["score"], table[names].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(table["spread"], table[names].std(axis=1), rtol=1e-5)
    back = files.read_scores(path)
    np.testing.assert_array_equal(back.ids, ids)
    np.testing.assert_allclose(back.scores, table["score"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_of_others(tmp_path: Path, suffix: str) -> None:
    found = files.read_scores(written(tmp_path, suffix, frame(other=["x", "y", "z"])))
    assert found.ids.tolist() == [7, 3, 5]
    assert found.scores.tolist() == [0.5, np.inf, -1.0]
    assert found.labels.tolist() == [0, 1, 1]
    names = frame(id=["a", "b", "ü"]).drop(columns="label")
    found = files.read_scores(written(tmp_path, suffix, names))
    assert found.ids.tolist() == ["a", "b", "ü"]
    assert found.labels is None


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (frame().drop(columns="score"), "has no column 'score'"),
        (frame().drop(columns="id"), "has no column 'id'"),
        (frame(id=[3, 4, 3]), "id 3 stands in 2 rows"),
        (frame(id=[3.5, 4, 3]), "id must hold integers or text"),
        (frame(id=["a", None, "b"]), "id must hold"),
        (frame(score=["high", "low", "low"]), "not numbers"),
        (
            frame(score=[0.1, np.nan, np.nan]),
            "NaN or missing in 2 rows, first that of id 3",
        ),
        (frame(label=[0.5, 1.0, 2.0]), "label must hold integers or text"),
        (frame().iloc[:0], "has no rows|must hold"),
    ],
)
def test_unusable_tables_are_named(tmp_path, suffix, table, message: str) -> None:
    with pytest.raises(ValueError, match=rf"scores\{suffix}: .*({message})"):
        files.read_scores(written(tmp_path, suffix, table))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PAR1PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1", b"\0" * 9]
)
def test_foreign_files_are_refused(tmp_path: Path, suffix: str, content) -> None:
    path = tmp_path / f"scores{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"scores\{suffix}: "):
        files.read_scores(path)


def test_a_cut_file_a_repeated_column_and_another_ending(tmp_path: Path) -> None:
    path = written(tmp_path, ".parquet", frame())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a Parquet file, or a damaged one"):
        files.read_scores(path)
    twice = pa.Table.from_arrays([[1], [0.5], [0.7]], names=["id", "score", "score"])
    parquet.write_table(twice, path)
    with pytest.raises(ValueError, match=r"two columns 'score'|damaged"):
        files.read_scores(path)
    other = tmp_path / "scores.json"
    other.touch()
    with pytest.raises(ValueError, match=r"must end in \.parquet or \.csv"):
        files.read_scores(other)
    with pytest.raises(FileNotFoundError, match="no such file"):
        files.read_scores(tmp_path / "absent.csv")


def test_a_file_that_claims_too_many_rows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "MOST_ROWS", 2)
    for suffix in (".csv", ".parquet"):
        with pytest.raises(ValueError, match="has 3 rows; 2 are allowed"):
            files.read_scores(written(tmp_path, suffix, frame()))


def test_subsets_lead_to_positions(tmp_path: Path) -> None:
    known = torch.tensor([40, 10, 30, 20])
    path = tmp_path / "subset.csv"
    files.write_subset(path, np.array([20, 40]))
    assert path.read_text() == "id\n20\n40\n"
    assert files.read_subset(path, known).tolist() == [0, 3]
    files.write_subset(path, np.array([20, 99]))
    with pytest.raises(
        ValueError, match="1 of 2 ids are no training examples, first 99"
    ):
        files.read_subset(path, known)
    files.write_subset(path, np.array(["a,b", 'c"d']))
    assert pd.read_csv(path)["id"].tolist() == ["a,b", 'c"d']
    with pytest.raises(ValueError, match="integers that `score` wrote"):
        files.read_subset(path, known)
    path.write_text("id\n20\n20\n")
    with pytest.raises(ValueError, match="id 20 stands in 2 rows"):
        files.read_subset(path, known)
