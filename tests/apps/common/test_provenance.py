"""Commit, command and machine of a result, inside and outside a git checkout."""

import platform
import shlex
import subprocess
import sys
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from apps.common import provenance as origin
from apps.common.provenance import code_version, provenance


@pytest.fixture(autouse=True)
def forget() -> None:
    """The commit is remembered for the life of a process."""
    code_version.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file").write_text("one")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_a_clean_checkout_has_its_commit(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40
    assert code_version(checkout) == (head, False)


@pytest.mark.parametrize("name", ["file", "untracked"])
def test_a_changed_or_new_file_is_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("two")
    assert code_version(checkout) == (git(checkout, "rev-parse", "HEAD"), True)


def test_ignored_files_do_not_matter(checkout: Path) -> None:
    (checkout / ".git" / "info" / "exclude").write_text("build\n")
    (checkout / "build").write_text("x")
    assert code_version(checkout)[1] is False


def test_outside_a_checkout_there_is_no_commit(checkout: Path, tmp_path: Path) -> None:
    assert code_version(tmp_path) == (None, None)
    code_version.cache_clear()
    assert code_version(tmp_path / "absent") == (None, None)
    code_version.cache_clear()
    # An installed copy in the .venv of somebody's own repository.
    inner = checkout / "site-packages"
    inner.mkdir()
    assert code_version(inner) == (None, None)


def test_a_checkout_without_commits_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert code_version(tmp_path) == (None, None)


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert code_version(checkout) == (None, None)


def test_a_hook_of_another_repository_does_not_lend_its_commit(
    checkout: Path, tmp_path: Path, monkeypatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "other")
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert code_version(checkout) == (head, False)


def test_keys_and_values(monkeypatch) -> None:
    arguments = ["/somewhere/bin/sparsekit", "train", "--name", "two words"]
    monkeypatch.setattr(sys, "argv", arguments)
    found = provenance("smoke")
    assert set(found) == {
        "commit", "dirty", "command", "versions", "device", "profile", "date",
    }  # fmt: skip
    assert shlex.split(found["command"]) == ["sparsekit", *arguments[1:]]
    assert found["profile"] == "smoke"
    day = date.fromisoformat(found["date"])
    assert abs(day - date.today()) <= timedelta(days=1)  # UTC and here
    assert found["versions"]["python"] == platform.python_version()
    for package in ("torch", "numpy", "scipy"):
        assert found["versions"][package] == version(package)
    threads = torch.get_num_threads()
    assert f", {threads} thread" in found["device"]
    assert origin.processor() in found["device"]
