"""A file is the old or the new one, whatever happens while it is written."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparsekit import atomic

OLD, NEW = b"old" * 1000, b"new!" * 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


def assert_unharmed(file: Path) -> None:
    assert file.read_bytes() == OLD
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_writes_new_files_in_new_folders_and_replaces_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    for content in (OLD, NEW, b""):
        atomic.write_bytes(path, content)
        assert path.read_bytes() == content
    atomic.write_text(path, "é\r\n\n–")
    assert path.read_bytes() == b"\xc3\xa9\r\n\n\xe2\x80\x93"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt()])
def test_a_crash_while_filling_keeps_the_old_file(file: Path, error) -> None:
    def fill(stream) -> None:
        stream.write(NEW[:777])
        stream.flush()
        raise error

    with pytest.raises(type(error)):
        atomic.write(file, fill)
    assert_unharmed(file)


def test_a_killed_process_keeps_the_old_file(file: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from sparsekit import atomic\n"
        "def fill(stream):\n"
        "    stream.write(b'new'); stream.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.write(sys.argv[1], fill)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)])
    assert done.returncode == -9
    assert file.read_bytes() == OLD


def test_a_full_disk_is_named_and_keeps_the_old_file(file: Path) -> None:
    def fill(stream) -> None:
        stream.write(NEW)
        with open("/dev/full", "wb", buffering=0) as full:  # ENOSPC, from the system
            full.write(NEW)

    with pytest.raises(OSError, match=r"file: the disk is full: free") as caught:
        atomic.write(file, fill)
    assert caught.value.errno == errno.ENOSPC
    assert_unharmed(file)


def test_a_size_limit_is_named_and_keeps_the_old_file(file: Path) -> None:
    script = (
        "import resource, sys\n"
        "from sparsekit import atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    atomic.write_bytes(sys.argv[1], b'n' * 50_000)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"cannot write {file}: the file would exceed the size limit" in done.stdout
    assert_unharmed(file)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file/below", "a part of the path is a file"),
        ("file/far/below", "a part of the path is a file"),
        ("folder", "it is a folder"),
        ("n" * 300, "the name is too long"),
    ],
)
def test_impossible_places_are_named_with_a_fix(file: Path, name, words) -> None:
    (file.parent / "folder" / "content").mkdir(parents=True)
    with pytest.raises(OSError, match=words) as caught:
        atomic.write_bytes(file.parent / name, NEW)
    assert str(file.parent / name) in str(caught.value)
    assert file.read_bytes() == OLD
    assert {path.name for path in file.parent.iterdir()} == {"file", "folder"}


def test_an_error_without_number_keeps_its_text(file: Path) -> None:
    def fill(stream) -> None:
        raise OSError("the tape is torn")

    with pytest.raises(OSError, match="file: the tape is torn"):
        atomic.write(file, fill)
    assert_unharmed(file)


def test_writers_and_readers_at_once_never_meet_half_a_file(file: Path) -> None:
    def write(content: bytes) -> None:
        def fill(stream) -> None:
            for start in range(0, len(content), 500):
                stream.write(content[start : start + 500])
                stream.flush()

        for _ in range(40):
            atomic.write(file, fill)

    writers = [threading.Thread(target=write, args=(c,)) for c in (OLD, NEW)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(file.read_bytes())
    for writer in writers:
        writer.join()
    assert seen <= {OLD, NEW}
    assert seen
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_content_and_name_reach_the_disk_in_this_order(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced, takes its name, the folder is synced; nothing stays open."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def rename(old: Path, new: Path) -> None:
        done.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    before = open_files()
    atomic.write_bytes(file, NEW)
    atomic.require_writable(file)
    assert done == ["file", "name", "folder"]
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc").is_dir() else 0


def test_a_folder_that_cannot_be_synced_is_no_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no sync here")

    monkeypatch.setattr(os, "fsync", refuse)
    atomic.write_bytes(file, NEW)
    assert file.read_bytes() == NEW


def test_a_place_is_tried_without_a_trace(file: Path) -> None:
    """A folder, a file that is there, a path of which only a part is there."""
    folder = file.parent
    for place in (folder, file, folder / "a", folder / "a/b/c"):
        atomic.require_writable(place)
        assert_unharmed(file)
    with pytest.raises(OSError, match="a part of the path is a file, not a folder"):
        atomic.require_writable(file / "below")
    assert_unharmed(file)
