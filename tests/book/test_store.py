"""Measurements that a GPU made are not lost to a reader's own run."""

import json

import pytest

from book.engine.store import store


def write(folder, name, device, value):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"provenance": {"device": device}, "metrics": value}
    (folder / name).write_text(json.dumps(content))


def metrics(path):
    return json.loads(path.read_text())["metrics"]


def test_another_devices_result_stays_and_nothing_else_is_copied(tmp_path):
    own, stored = tmp_path / "own" / "full", tmp_path / "stored" / "full"
    write(own, "a.json", "laptop", 1)
    write(own, "b.json", "laptop", 2)
    write(stored, "b.json", "a GPU", 3)
    write(stored, "c.json", "a GPU", 4)
    with pytest.raises(ValueError, match=r"b\.json .*a GPU.*laptop.*REPLACE=1"):
        store(own, stored)
    assert not (stored / "a.json").exists()
    assert metrics(stored / "b.json") == 3
    assert len(store(own, stored, replace=True)) == 2
    found = {p.name: metrics(p) for p in stored.iterdir()}
    assert found == {"a.json": 1, "b.json": 2, "c.json": 4}


def test_the_same_device_replaces_its_own(tmp_path):
    write(tmp_path / "own", "a.json", "laptop", 1)
    assert store(tmp_path / "own", tmp_path / "stored")
    write(tmp_path / "own", "a.json", "laptop", 2)
    (written,) = store(tmp_path / "own", tmp_path / "stored")
    assert metrics(written) == 2


def test_a_result_without_a_device_is_another_devices(tmp_path):
    write(tmp_path / "own", "a.json", "laptop", 1)
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="None"):
        store(tmp_path / "own", tmp_path / "stored")


def test_nothing_measured(tmp_path):
    with pytest.raises(FileNotFoundError, match="PROFILE=full"):
        store(tmp_path / "full", tmp_path / "stored")
