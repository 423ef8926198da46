"""What every app's figure of a comparison is held to."""

from collections.abc import Callable
from pathlib import Path

import pytest


def check_drawing(draw: Callable[[Path], None], folder: Path) -> None:
    """An SVG with one picture, a PNG, and nothing else."""
    draw(folder / "compare.svg")
    draw(folder / "compare.png")
    assert (folder / "compare.svg").read_text().count("<svg") == 1
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"ends in \.png or \.svg"):
        draw(folder / "compare.pdf")
