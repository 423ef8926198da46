"""Old models and all that derives from them: listed, then wiped on request.

A file is removed first and struck off the ledger after that: whatever happens between,
it is listed as not yet wiped, and the next call finds it gone and strikes it off.
Removing a file does not erase blocks of a disk, snapshots or backups.
"""

from dataclasses import dataclass
from pathlib import Path

from apps.common import inside
from apps.common.inside import Unsafe
from apps.unlearning.ledger import Ledger
from apps.unlearning.ledger_data import Artefact
from apps.unlearning.service_folder import KEPT


@dataclass(frozen=True)
class Line:
    """One file. state: to wipe, wiped, refused; note: why, or what to know."""

    path: str
    kind: str
    state: str
    note: str = ""


def pending(ledger: Ledger, folder: Path) -> list[Line]:
    """What is retired and still to be wiped: listed files, then unlisted copies."""
    return [_planned(folder, file) for file in ledger.artefacts("retired")] + [
        Line(path, "copy", "to wipe", f"same content as {original}")
        for path, original in copies(ledger, folder).items()
    ]


def wipe(ledger: Ledger, folder: Path, at: str) -> list[Line]:
    """Removes retired files and their copies; what became of each.

    A file is left alone, and said so, if its path leads out of the folder, or if its
    content is not what was listed: it may be a new one that somebody needs.
    """
    lines = []
    # Copies first: they are found by the files that they are copies of.
    for path, original in copies(ledger, folder).items():
        inside.remove(folder, path)
        lines.append(Line(path, "copy", "wiped", f"same content as {original}"))
    for file in ledger.artefacts("retired"):
        line = _planned(folder, file)
        if line.state == "to wipe":
            inside.remove(folder, file.path)
            ledger.mark_wiped(file.id, at)
            line = Line(file.path, file.kind, "wiped", line.note)
        lines.append(line)
    return lines


def copies(ledger: Ledger, folder: Path) -> dict[str, str]:
    """{path: path of the original} of unlisted files of the folder with the content of
    a retired or wiped one. Listed files and the service's own are no copies."""
    listed = {file.path: file for file in ledger.artefacts()}
    gone = {f.sha256: f.path for f in listed.values() if f.state != "live"}
    sizes = {f.bytes for f in listed.values() if f.state != "live"}
    sizes.discard(0)  # one empty file is no copy of another
    live = {f.sha256 for f in listed.values() if f.state == "live"}
    found = {}
    for path in sorted(inside.files(folder)):
        known = path in KEPT or (path in listed and listed[path].state != "wiped")
        size = inside.size_and_links(folder, path)
        if known or size is None or size[0] not in sizes:
            continue
        content = inside.digest(folder, path)
        if content in gone and content not in live:
            found[path] = gone[content]
    return found


def _planned(folder: Path, file: Artefact) -> Line:
    try:
        content = inside.digest(folder, file.path)
        found = inside.size_and_links(folder, file.path)
    except Unsafe as error:
        return Line(file.path, file.kind, "refused", str(error))
    if content is None or found is None:
        return Line(file.path, file.kind, "to wipe", "is gone already")
    if content != file.sha256:
        note = "has another content than was listed: look at it, remove it by hand"
        return Line(file.path, file.kind, "refused", note)
    links = found[1] - 1
    note = f"has {links} more hard links, which stay" if links else ""
    return Line(file.path, file.kind, "to wipe", note)
