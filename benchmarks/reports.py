"""What a benchmark writes: its numbers as JSON, and a page for people beside it."""

import json
from pathlib import Path
from typing import Any

from sparsekit import atomic


def save(path: Path, report: Any, page: str) -> None:
    """Writes PATH, the same with .md, and prints the page."""
    atomic.write_text(path, json.dumps(report, indent=1) + "\n")
    atomic.write_text(path.with_suffix(".md"), page)
    print(page)
