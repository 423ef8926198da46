import pytest

from sparsekit.execution.kernels import pixels


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of few channels; every call says how long it takes."""
    monkeypatch.setattr(pixels, "NEAR", 4096)
    monkeypatch.setattr(pixels, "NONZEROS", 2)
    monkeypatch.setattr(pixels, "WORTH", 0)
