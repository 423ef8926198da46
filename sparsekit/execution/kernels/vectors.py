"""Vector instructions for numba's intrinsics, and how many vectors registers hold.

Addresses, and distances between vectors, are in bytes, as int64. `b` is the builder of
the function that code goes into.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config

I32 = ir.IntType(32)
I64 = ir.IntType(64)
FLOAT = ir.FloatType()
LANES = 16  # floats a vector; narrower machines take several registers for it
INTEGER = types.int64
SINGLE = types.float32


def vectors_in_registers() -> int:
    """How many vectors of 16 floats a block may have on the CPU numba compiles for.

    AVX-512 has 32 registers of 16 floats, NEON 32 of 4 and AVX2 16 of 8; a few are
    left to the weight and the loads.
    """
    if config.CPU_NAME not in (None, "host") or config.CPU_FEATURES is not None:
        features = set((config.CPU_FEATURES or "").split(","))
        wide = "+avx512f" in features
    else:
        wide = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
    return 16 if wide else 4


VECTORS = vectors_in_registers()


def typed(
    emit: Callable[..., None], constants: int, block: Any, integers: int, floats: int
) -> Any:
    """Signature and code generator of an intrinsic; None if a constant is not one."""
    if not all(isinstance(size, types.IntegerLiteral) for size in block):
        return None
    sizes = [size.literal_value for size in block]
    signature = types.void(*block, *[INTEGER] * integers, *[SINGLE] * floats)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit(builder, *sizes, *args[constants:])
        return context.get_dummy_value()

    return signature, codegen


def loop(
    b: Any,
    begin: Any,
    end: Any,
    step: int,
    carried: list[Any],
    body: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """for t in range(begin, end, step): carried = body(t, carried)."""
    before = b.block
    inner = b.append_basic_block("nonzeros")
    after = b.append_basic_block("done")
    b.cbranch(b.icmp_signed("<", begin, end), inner, after)
    b.position_at_end(inner)
    t = b.phi(I64)
    inside = [b.phi(value.type) for value in carried]
    results = body(t, inside)
    following = b.add(t, I64(step))
    t.add_incoming(begin, before)
    t.add_incoming(following, inner)
    for entry, first, later in zip(inside, carried, results, strict=True):
        entry.add_incoming(first, before)
        entry.add_incoming(later, inner)
    b.cbranch(b.icmp_signed("<", following, end), inner, after)
    b.position_at_end(after)
    return [
        phi(b, first.type, (first, before), (later, inner))
        for first, later in zip(carried, results, strict=True)
    ]


def grid(b: Any, rows: int, columns: int, first: Any, row: Any, step: int) -> list[Any]:
    """Addresses of the vectors of a block, row by row."""
    places = []
    for r in range(rows):
        if r:
            first = b.add(first, row)
        places += [b.add(first, I64(c * step)) for c in range(columns)]
    return places


def at(b: Any, x: Any, index: Any, scale: Any, t: Any) -> Any:
    """Address x + index[t] * scale."""
    offset = b.sext(load(b, element(b, index, t), I32), I64)
    return b.add(x, b.mul(offset, scale))


def element(b: Any, array: Any, t: Any) -> Any:
    """Address of element t of an array of 4 bytes an element."""
    return b.add(array, b.shl(t, I64(2)))


def pointer(b: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to `kind`."""
    return b.inttoptr(address, kind.as_pointer())


def load(b: Any, address: Any, kind: Any) -> Any:
    """What lies at an address, of type `kind`."""
    return b.load(pointer(b, address, kind), align=4)


def shuffle(b: Any, u: Any, v: Any, lanes: list[int]) -> Any:
    """The vector of these lanes of u and v, one behind the other."""
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return b.shuffle_vector(u, v, mask)


def splat(b: Any, scalar: Any, vector: Any) -> Any:
    """The scalar in every lane."""
    empty = ir.Constant(vector, ir.Undefined)
    return shuffle(
        b, b.insert_element(empty, scalar, I32(0)), empty, [0] * vector.count
    )


def phi(b: Any, kind: Any, *incoming: tuple[Any, Any]) -> Any:
    """The value of the block that control came from: (value, block) pairs."""
    entry = b.phi(kind)
    for value, block in incoming:
        entry.add_incoming(value, block)
    return entry


def fused_multiply_add(b: Any, vector: Any) -> Any:
    """LLVM's x * y + z of such vectors, to be called."""
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fma.v{vector.count}f32"
    return cgutils.get_or_insert_function(b.module, kind, name)


def binary(b: Any, name: str, vector: Any) -> Any:
    """LLVM's function `name` of two such vectors, to be called."""
    kind = ir.FunctionType(vector, [vector] * 2)
    return cgutils.get_or_insert_function(b.module, kind, f"{name}.v{vector.count}f32")
