"""Files that a test writes."""

from pathlib import Path


def written(path: Path, text: str | bytes) -> Path:
    """The path, with this text in it, in UTF-8, or with these bytes."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
