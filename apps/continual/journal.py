"""A journal: what was observed since the last checkpoint, safe against power cuts.

Each record is on the disk before `append` returns. A record that a power cut or a full
disk tore is recognised by its checksum and is as if it had never been begun.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path

from sparsekit import atomic

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
        self._file: FileIO | None = None
        self._end: int | None = None  # bytes of what is whole, once that is known

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
        """Writes a record, and waits until the disk has it.

        After an OSError, say of a full disk, the record is not there.
        """
        if self._end is None:
            self._end = sum(HEADER.size + len(found) for found in self.records())
        if self._file is None:
            self._cut(self._end)
            self._file = FileIO(self.path, "ab")
        record = HEADER.pack(len(content), zlib.crc32(content)) + content
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self.close()
            with suppress(OSError):  # else the next `append` does it
                self._cut(self._end)
            raise atomic.explained(error, self.path) from error
        self._end += len(record)

    def _cut(self, end: int) -> None:
        """Removes what is torn, or was refused: nothing behind it would be read."""
        if self.path.exists() and self.path.stat().st_size > end:
            os.truncate(self.path, end)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
