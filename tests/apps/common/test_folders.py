"""Images in folders of classes, for every app: order, parts, what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.common import folders, images


def write(root: Path, classes=("b", "a-2", "a"), n=12, size=5) -> dict[str, int]:
    """{path below the root: the red of its pixels}."""
    reds = {}
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
            pixels[:, :, 0] = 20 * k + i
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            reds[f"{name}/{i}.png"] = 20 * k + i
    return reds


def test_listed_tells_which_file_stands_where(tmp_path):
    """By class, then by file, whatever the order in which they were written."""
    reds = write(tmp_path)
    found = folders.read(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in folders.listed(tmp_path)]
    assert [reds[name] for name in names] == found.x[:, 0, 0, 0].tolist()
    assert names[:4] == ["a/0.png", "a/1.png", "a/10.png", "a/11.png"]
    assert found.names == ("a", "a-2", "b")
    assert found.y.tolist() == [0] * 12 + [1] * 12 + [2] * 12


def test_every_app_reads_them(tmp_path):
    """Cut by class; the official test part is kept, apart from the rest."""
    write(tmp_path / "drawn", n=20)
    splits = images.load(str(tmp_path / "drawn"))
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [42, 6, 12]
    assert splits.shape == (3, 3, 5)
    reds = write(tmp_path / "kept" / "train", n=20)
    write(tmp_path / "kept" / "test", n=3)
    kept = images.load("kept", seed=1, data_dir=tmp_path)
    parts = (kept.train, kept.validation, kept.test)
    assert [len(part) for part in parts] == [54, 6, 9]
    root = tmp_path / "kept"
    names = [str(p.relative_to(root / "train")) for p in folders.listed(root)[:60]]
    scaled = kept.train.x[:, 0, 0, 0].numpy()
    true = np.array([reds[names[i]] for i in kept.train.ids], float)
    np.testing.assert_allclose(scaled, (true - true.mean()) / true.std(), atol=1e-5)


def test_a_changed_folder_is_read_again(tmp_path):
    write(tmp_path, n=20)
    before = images.load(str(tmp_path))
    (tmp_path / "a" / "0.png").unlink()
    after = images.load(str(tmp_path))
    assert sum(map(len, (before.train, before.validation, before.test))) == 60
    assert sum(map(len, (after.train, after.validation, after.test))) == 59


def test_what_is_hidden_or_of_another_kind(tmp_path):
    write(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert len(folders.listed(tmp_path)) == 36
    (tmp_path / "a" / "x.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.webp is neither PNG nor JPEG"):
        folders.listed(tmp_path)


def test_no_pipe_and_no_dead_link_is_waited_for(tmp_path):
    write(tmp_path)
    odd = tmp_path / "a" / "z.png"
    odd.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"z\.png is no file"):
        folders.read(tmp_path)
    odd.unlink()
    os.mkfifo(odd)
    with pytest.raises(ValueError, match=r"z\.png is no file"):
        folders.read(tmp_path)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    """400 million pixels in 50 kB: nothing is unpacked."""
    write(tmp_path)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a" / "00.png")
    with pytest.raises(ValueError, match=r"00\.png"):
        folders.read(tmp_path)
