"""Data: splits by independent counts, scikit-learn's scaler, refusals."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from apps.common import datasets
from apps.common import images as data


@pytest.fixture
def npz(tmp_path: Path):
    """Writes an .npz of 3 classes of 7x7 images; arguments replace its arrays."""

    def write(**arrays) -> Path:
        generator = np.random.default_rng(0)
        content = {
            "x": generator.random((90, 7, 7), dtype=np.float32),
            "y": np.repeat([2, 5, 9], 30),
        }
        path = tmp_path / "images.npz"
        np.savez(path, **(content | arrays))
        return path

    return write


def test_mnist5k_is_cut_by_class_without_overlap() -> None:
    splits = data.load("mnist5k", seed=3)
    x, y = datasets.load_mnist5k()
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [3500, 500, 1000]
    for part, share in zip(parts, (350, 50, 100), strict=True):
        assert np.bincount(part.y.numpy()).tolist() == [share] * 10
        assert (part.x.dtype, part.y.dtype) == (torch.float32, torch.int64)
        assert part.x.shape[1:] == (1, 28, 28)

    # Undo the scaling: together the parts are the 5,000 images with their labels.
    images = torch.cat([part.x for part in parts]).numpy().reshape(5000, 784)
    labels = torch.cat([part.y for part in parts]).numpy()
    darkest, brightest = images.min(), images.max()
    pixels = np.rint((images - darkest) / (brightest - darkest) * 255).astype(np.uint8)
    found = {
        (row.tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True)
    }
    expected = {
        (row.tobytes(), int(label))
        for row, label in zip(x.reshape(5000, 784), y, strict=True)
    }
    assert found == expected

    # ids lead back to the data set.
    ids = torch.cat([part.ids for part in parts]).numpy()
    assert sorted(ids) == list(range(5000))
    np.testing.assert_array_equal(pixels, x.reshape(5000, 784)[ids])
    np.testing.assert_array_equal(labels, y[ids])
    assert splits.name == "MNIST-5k"


def test_scaling_uses_the_train_part_alone(npz) -> None:
    generator = np.random.default_rng(0)
    x = generator.random((90, 2, 7, 7)) * [[[[3.0]], [[100.0]]]]
    splits = data.load(str(npz(x=x)), seed=0)
    train = splits.train.x.permute(0, 2, 3, 1).reshape(-1, 2).double().numpy()
    scaled = StandardScaler().fit(train)
    np.testing.assert_allclose(scaled.mean_, 0, atol=1e-5)
    np.testing.assert_allclose(scaled.scale_, 1, atol=1e-5)
    test = splits.test.x.mean((0, 2, 3))
    assert (test.abs() > 1e-4).all()  # not standardised by itself


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_changes_the_layout_alone(channels: int) -> None:
    x = torch.randn(5, channels, 3, 7)
    inner = data.channels_last(x)
    assert torch.equal(inner, x)
    assert inner.stride() == (21 * channels, 1, 7 * channels, channels)
    batch = inner[torch.tensor([4, 0])]  # batches keep it, and so do convolutions
    assert batch.stride() == inner.stride()
    y = torch.nn.Conv2d(channels, 4, 3)(batch)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_parts_are_channels_last(npz) -> None:
    splits = data.load(str(npz(x=np.random.default_rng(1).random((90, 2, 5, 5)))))
    for part in (splits.train, splits.validation, splits.test):
        assert part.x.stride() == (50, 1, 10, 2)


def test_the_seed_decides_the_split() -> None:
    first, again, other = (data.load("mnist5k", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.test.y, again.test.y)
    assert not torch.equal(first.test.x, other.test.x)


def test_labels_of_a_file_are_renumbered(npz) -> None:
    splits = data.load("images.npz", seed=0, data_dir=npz().parent)
    assert splits.classes == 3
    assert splits.size == 7
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [
        63,
        9,
        18,
    ]
    assert sorted(set(splits.train.y.tolist())) == [0, 1, 2]
    names = data.load(str(npz(y=np.repeat(["cat", "dog", "eel"], 30))), seed=0)
    assert torch.equal(names.train.y, splits.train.y)


def test_a_table_is_standardised_by_column(npz) -> None:
    """As scikit-learn does it, on the train part alone."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 5)) * [1, 10, 0.1, 3, 7] + [5, 0, -2, 100, 1]
    splits = data.load(str(npz(x=x)), seed=0)
    scaler = StandardScaler().fit(x[splits.train.ids])
    for part in (splits.train, splits.validation, splits.test):
        assert part.x.shape == (len(part), 5, 1, 1)
        expected = scaler.transform(x[part.ids])
        np.testing.assert_allclose(part.x[:, :, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_changed_file_is_read_again(npz) -> None:
    path = npz()
    first = data.load(str(path), seed=0)
    np.savez(path, x=np.random.default_rng(1).random((90, 5, 5)), y=np.arange(90) % 3)
    os.utime(path, ns=(1, 1))
    assert (first.size, data.load(str(path), seed=0).size) == (7, 5)


NAN = np.random.default_rng(0).random((90, 7, 7))
NAN[4, 3, 2] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": NAN}, "NaN or infinity in 1 examples, first 4"),
        ({"x": np.zeros((90, 7, 5))}, r"square images, .* got \[90, 7, 5\]"),
        ({"x": np.zeros(90)}, r"square images, .* got \[90\]"),
        ({"x": np.eye(90)[:, :3]}, r"column \d of the table, is constant"),
        ({"x": np.zeros((0, 7, 7))}, r"got \[0, 7, 7\]"),
        ({"x": np.zeros((90, 7, 7), complex)}, "real numbers, got complex128"),
        ({"x": np.zeros((90, 7, 7))}, "constant"),
        ({"y": np.zeros(90, int)}, "only one class, 0"),
        ({"y": np.arange(90) < 85}, "class False has 5 examples; 10 are needed"),
        ({"y": np.zeros(89, int)}, r"y must have shape \[90\]"),
        ({"y": np.linspace(0, 2, 90)}, "integers or strings, got float64"),
    ],
)
def test_unusable_arrays_are_named(npz, arrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(str(npz(**arrays)), seed=0)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, x=np.zeros((90, 7, 7)), labels=np.zeros(90))
    with pytest.raises(ValueError, match=r"one\.npz: lacks y; it has"):
        data.load(str(path))


def test_an_empty_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.save(tmp_path / "array.npy", np.zeros(3))
    contents = [b"", b"hello", (tmp_path / "array.npy").read_bytes(), b"PK\x03\x04cut"]
    for content in [*contents, pickle.dumps({"x": 1})]:
        path.write_bytes(content)
        os.utime(path, ns=(len(content), len(content)))
        with pytest.raises(ValueError, match=r"bad\.npz"):
            data.load(str(path))


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{"a": 1}] * 90, object), y=np.zeros(90, int))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        data.load(str(path))


def test_unknown_names_and_paths(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="choose one of mnist5k, mnist, cifar10"):
        data.load("imagenet")
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.load("absent.npz", data_dir=tmp_path)
    monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set SPARSEKIT_DATA"):
        data.load("cifar10")


def test_cifar10_from_the_official_binary_files(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 256, (6, 100, 3073), dtype=np.uint8)
    rows[:, :, 0] = np.arange(100) % 10
    rows[:, 0, 1:] = 255  # the images of one row in every file are white
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, batch in zip(names, rows, strict=True):
        (folder / name).write_bytes(batch.tobytes())
    monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path))
    splits = data.load("cifar10", seed=0)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [
        450,
        50,
        100,
    ]
    assert splits.test.y.tolist() == (np.arange(100) % 10).tolist()
    white = splits.test.x[0]
    assert all(white[c].unique().numel() == 1 for c in range(3))
    red = splits.test.x[1, 0].flatten().double().numpy()
    raw = rows[5, 1, 1:1025].astype(float)  # the first 1024 bytes are the red plane
    assert np.corrcoef(red, raw)[0, 1] == pytest.approx(1, abs=1e-6)
    (folder / "test_batch.bin").write_bytes(b"123")
    data._cifar10.cache_clear()
    with pytest.raises(ValueError, match="incomplete"):
        data.load("cifar10", seed=0)
    data._cifar10.cache_clear()


@pytest.mark.skipif(
    not Path(os.environ.get("SPARSEKIT_DATA", "-"), "cifar10_jpeg.npz").exists(),
    reason="SPARSEKIT_DATA has no cifar10_jpeg.npz",
)
def test_cifar10_from_jpegs() -> None:
    splits = data.load("cifar10", seed=0)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [
        45_000,
        5_000,
        10_000,
    ]
    assert np.bincount(splits.validation.y.numpy()).tolist() == [500] * 10
    assert splits.name == "CIFAR-10 (JPEG)"
    data._cifar10.cache_clear()
