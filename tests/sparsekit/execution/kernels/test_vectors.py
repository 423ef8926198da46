"""How many vectors registers hold, and what an intrinsic demands of its constants."""

import llvmlite.binding
import pytest
from numba import njit, types
from numba.core import config
from numba.core.errors import TypingError

from sparsekit.execution.kernels import vectors
from sparsekit.execution.kernels.micro import prefetch

WIDE, NARROW = "+avx2,+avx512f", "+avx2,-avx512f"


@pytest.mark.parametrize(("name", "features", "host", "expected"), [
    (None, None, {"avx512f": True}, 16), (None, None, {"avx512f": False}, 4),
    ("host", None, {"avx512f": True}, 16), ("host", None, {}, 4),
    ("skylake", WIDE, {}, 16), ("haswell", NARROW, {"avx512f": True}, 4),
    ("haswell", None, {"avx512f": True}, 4), (None, WIDE, {}, 16),
    (None, NARROW, {"avx512f": True}, 4), ("generic", "", {"avx512f": True}, 4),
])  # fmt: skip
def test_vectors_in_registers(monkeypatch, name, features, host, expected) -> None:
    """Of the processor that numba compiles for, not of the one it runs on."""
    monkeypatch.setattr(config, "CPU_NAME", name)
    monkeypatch.setattr(config, "CPU_FEATURES", features)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: host)
    assert vectors.vectors_in_registers() == expected


def test_sizes_of_a_block_are_constants() -> None:
    literal = types.IntegerLiteral(3)

    def emit(b, three, four, x, low) -> None: ...

    given = (literal, types.IntegerLiteral(4))
    signature, codegen = vectors.typed(emit, 2, given, 1, 1)
    assert signature == types.void(*given, types.int64, types.float32)
    assert vectors.typed(emit, 2, (literal, types.int64), 1, 1) is None

    class Context:
        def get_dummy_value(self) -> str:
            return "nothing"

    seen = []

    def noted(*arguments) -> None:
        seen.append(arguments)

    _, codegen = vectors.typed(noted, 2, given, 1, 1)
    made = codegen(Context(), "builder", signature, ["3", "4", "x", "low"])
    assert (made, seen) == ("nothing", [("builder", 3, 4, "x", "low")])

    @njit
    def varies(rows, address):
        prefetch(rows, 1, 64, 0, address, 0)

    with pytest.raises(TypingError):
        varies(2, 0)


def test_a_tile_fits_the_registers() -> None:
    assert vectors.vectors_in_registers() == vectors.VECTORS
    assert vectors.LANES == 16
