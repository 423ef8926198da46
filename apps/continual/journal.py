"""A journal: what was observed since the last checkpoint, safe against power cuts.

Each record is on the disk before `append` returns. A record that a power cut tore is
recognised by its checksum and is as if it had never been begun.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

HEADER = struct.Struct("<II")  # length and CRC-32 of the content that follows
LARGEST = 1 << 30  # bytes of a record; a longer one cannot be true


class Journal:
    """Records of bytes in one file, in the order in which they were appended.

    >>> import tempfile
    >>> journal = Journal(Path(tempfile.mkdtemp()) / "a.journal")
    >>> journal.append(b"first"), journal.append(b"second")
    (None, None)
    >>> list(Journal(journal.path).records())
    [b'first', b'second']
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None

    def records(self) -> Iterator[bytes]:
        """All that are whole; what follows the first damaged one is not read."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            while len(header := file.read(HEADER.size)) == HEADER.size:
                length, checksum = HEADER.unpack(header)
                if length > LARGEST:
                    return
                content = file.read(length)
                if len(content) < length or zlib.crc32(content) != checksum:
                    return
                yield content

    def append(self, content: bytes) -> None:
        """Writes a record, and waits until the disk has it."""
        if self._file is None:
            self._cut()
            self._file = open(self.path, "ab")  # noqa: SIM115
        self._file.write(HEADER.pack(len(content), zlib.crc32(content)) + content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _cut(self) -> None:
        """Removes a torn record at the end: nothing behind it would be read."""
        whole = sum(HEADER.size + len(content) for content in self.records())
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
