"""Retired files are wiped, copies too; nothing outside of the folder is touched."""

import os
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.common import inside
from apps.unlearning.ledger import Ledger
from apps.unlearning.service_retire import copies, pending, wipe

AT = "2026-11-28T10:00:00Z"
CONTENT = b"weights" * 100


class Folder:
    """A ledger and files in a folder, beside a file that is none of its business."""

    def __init__(self, path: Path) -> None:
        self.path = path / "service"
        self.outside = path / "outside.txt"
        self.outside.write_bytes(CONTENT)
        self.ledger = Ledger(self.path / "ledger.sqlite", create=True)

    def add(self, path: str, content: bytes | None = CONTENT, state="retired") -> int:
        """Lists a path, whatever it is, and writes the file if there is content."""
        if content is not None:
            (self.path / path).parent.mkdir(parents=True, exist_ok=True)
            (self.path / path).write_bytes(content)
        content = CONTENT if content is None else content
        number = self.ledger.add_artefact(
            path, sha256(content).hexdigest(), len(content), "export", AT
        )
        with self.ledger.transaction():
            self.ledger._db.execute(
                "UPDATE artefacts SET state = ? WHERE id = ?", (state, number)
            )
        return number

    def wipe(self) -> dict[str, str]:
        return {line.path: line.state for line in wipe(self.ledger, self.path, AT)}

    def state(self, path: str) -> str:
        return self.ledger.artefact(path).state


@pytest.fixture
def folder(tmp_path):
    found = Folder(tmp_path)
    yield found
    assert found.outside.read_bytes() == CONTENT
    found.ledger.close()


def test_listed_then_wiped(folder):
    folder.add("models/0.st")
    folder.add("models/1.st", b"new", "live")
    folder.add("gone.st", None)
    before = sorted(inside.files(folder.path))
    listed = {line.path: line.note for line in pending(folder.ledger, folder.path)}
    assert listed == {"models/0.st": "", "gone.st": "is gone already"}
    assert sorted(inside.files(folder.path)) == before  # a look changes nothing
    assert folder.wipe() == {"models/0.st": "wiped", "gone.st": "wiped"}
    assert not (folder.path / "models/0.st").exists()
    assert (folder.path / "models/1.st").read_bytes() == b"new"
    assert folder.state("models/0.st") == folder.state("gone.st") == "wiped"
    assert folder.wipe() == {}


def test_copies_are_found_by_content(folder):
    folder.add("models/0.st")
    folder.add("listed-copy.st", CONTENT, "live")  # of a model that is in use
    (folder.path / "deep/er").mkdir(parents=True)
    (folder.path / "deep/er/copy.bin").write_bytes(CONTENT)
    (folder.path / "other.bin").write_bytes(CONTENT[:-1] + b"!")
    assert copies(folder.ledger, folder.path) == {}  # that content is in use
    with folder.ledger.transaction():
        folder.ledger._db.execute("UPDATE artefacts SET state = 'retired'")
    assert set(copies(folder.ledger, folder.path)) == {"deep/er/copy.bin"}
    assert folder.wipe()["deep/er/copy.bin"] == "wiped"
    left = [p for p in inside.files(folder.path) if not p.startswith("ledger")]
    assert left == ["other.bin"]
    # Somebody restores a backup: it is seen again.
    (folder.path / "models/0.st").write_bytes(CONTENT)
    assert folder.wipe() == {"models/0.st": "wiped"}


def test_a_crash_between_file_and_ledger_leaves_it_listed(folder, monkeypatch):
    folder.add("models/0.st")

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "mark_wiped", dies)
        with pytest.raises(KeyboardInterrupt):
            folder.wipe()
    assert not (folder.path / "models/0.st").exists()
    assert folder.state("models/0.st") == "retired"
    assert [line.path for line in pending(folder.ledger, folder.path)] == [
        "models/0.st"
    ]
    assert folder.wipe() == {"models/0.st": "wiped"}
    assert folder.state("models/0.st") == "wiped"


def test_another_content_is_left_alone(folder):
    folder.add("models/0.st")
    (folder.path / "models/0.st").write_bytes(b"somebody's new file")
    assert folder.wipe() == {"models/0.st": "refused"}
    assert (folder.path / "models/0.st").exists()
    assert folder.state("models/0.st") == "retired"


def test_a_hard_link_is_named(folder):
    folder.add("models/0.st")
    os.link(folder.path / "models/0.st", folder.outside.parent / "second")
    (line,) = pending(folder.ledger, folder.path)
    assert "1 more hard links" in line.note
    folder.wipe()
    assert (folder.outside.parent / "second").read_bytes() == CONTENT


CLIMBING = (
    "../outside.txt", "models/../../outside.txt", "/etc/passwd", "a//b", "./a", "a/.",
    "", "..", "models\\..\\x", "C:/x", "a/../b", "x\0y",
)  # fmt: skip


@pytest.mark.parametrize("path", CLIMBING)
def test_a_forged_path_is_refused(folder, path):
    """Even if it got into the ledger with SQL."""
    folder.add("models/0.st", None)
    folder.ledger._db.execute("UPDATE artefacts SET path = ?", (path,))
    assert set(folder.wipe().values()) == {"refused"}
    assert [file.state for file in folder.ledger.artefacts()] == ["retired"]
    for function in (inside.digest, inside.size_and_links, inside.remove):
        with pytest.raises(inside.Unsafe):
            function(folder.path, path)


def test_an_absolute_path_of_the_folder_itself_is_refused(folder):
    number = folder.add("models/0.st")
    (folder.path / "models/0.st").write_bytes(b"since changed, so no copy either")
    absolute = str(folder.path / "models/0.st")
    folder.ledger._db.execute(
        "UPDATE artefacts SET path = ? WHERE id = ?", (absolute, number)
    )
    assert folder.wipe()[absolute] == "refused"


def test_links_are_not_followed(folder):
    """As the file, as a folder on the way, as a link to a link; and other kinds."""
    outside = folder.outside.parent
    (folder.path / "models").mkdir()
    (folder.path / "models/link").symlink_to(folder.outside)
    (folder.path / "way").symlink_to(outside)
    (folder.path / "twice").symlink_to("way")
    os.mkfifo(folder.path / "pipe")
    (folder.path / "folder").mkdir()
    names = ("models/link", "way/outside.txt", "twice/outside.txt", "pipe", "folder")
    for name in names:
        folder.add(name, None)
    assert folder.wipe() == dict.fromkeys(names, "refused")
    assert not [p for p in inside.files(folder.path) if not p.startswith("ledger")]
    assert (folder.path / "models/link").is_symlink()


@given(st.text(max_size=30))
def test_any_path_that_is_admitted_stays_inside(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp()
    try:
        parts = inside.require_inside(text)
    except inside.Unsafe:
        return
    assert Path(os.path.normpath(root.joinpath(*parts))).is_relative_to(root)
    assert "/".join(parts) == text


def test_a_ledger_of_another_hand_is_not_trusted(folder):
    """A state that does not exist is refused by the tables themselves."""
    folder.add("models/0.st")
    with pytest.raises(sqlite3.IntegrityError):
        folder.ledger._db.execute("UPDATE artefacts SET state = 'burned'")
