"""Register-blocked loops over the non-zeros of one row, in explicit vectors.

Two loops carry every kernel of this package. A block of `rows` x `columns` vectors of
`lanes` floats stays in registers while the loop runs over non-zeros t = begin .. end-1;
with X_t the block that starts index[t] * scale bytes after `x`,

    multiply_add:   Y     += values[t] * X_t          one weight times a whole block
    dot_products:   out[t] += sum of G * X_t          the gradient of that weight

Both are numba intrinsics that emit LLVM vector code, because numba's vectoriser keeps
accumulators in memory. All addresses, and all distances between vectors, are in bytes,
as int64. Nothing is checked here: who calls a kernel has checked the indices. Vectors
that do not begin at a multiple of 64 bytes cross cache lines and halve the speed (214
against 125 GFLOP/s from the first-level cache, one core of an EPYC with AVX-512).

The first five arguments are compile-time constants: write literals, module constants or
variables of an enclosing function. A kernel is a plain `njit(nogil=True, cache=True)`
function of (begin, end, ...) that does the tasks begin .. end-1 of its range, and
`sparsekit.execution.threads.run` spreads it over threads. An enclosing function may
hold integers, never another kernel or an intrinsic: numba's cache on disk recognises
the first in another process, not the second.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from sparsekit.execution.kernels.vectors import (
    FLOAT,
    I32,
    I64,
    at,
    element,
    fused_multiply_add,
    grid,
    load,
    loop,
    phi,
    pointer,
    shuffle,
    splat,
    typed,
)


@intrinsic(prefer_literal=True)
def multiply_add(  # type: ignore[no-untyped-def]
    context,
    lanes,
    rows,
    columns,
    x_step,
    y_step,
    x,
    x_row,
    index,
    scale,
    values,
    begin,
    end,
    y,
    y_row,
    resume,
    start,
):
    """Y = (Y if resume else start) + sum over t of values[t] * X_t.

    Args:
        lanes, rows, columns: the block, constants; see `VECTORS` for its size.
        x_step, y_step: from a vector to the next in its row, constants.
        x: where the block of index 0 starts.
        x_row, y_row: from a row of the block to the next.
        index: of int32; `scale` turns one into bytes. Byte offsets: scale 1. Columns of
            a matrix: scale is the distance of its rows.
        values: of float32, beside `index`.
        y: where the block is stored.
        resume: 0 overwrites Y, anything else adds to it.
        start: float32 that the sum begins with if it does not resume: 0, or a bias.
    """
    return typed(_multiply_add, 5, (lanes, rows, columns, x_step, y_step), 10, 1)


@intrinsic(prefer_literal=True)
def multiply_add_finish(  # type: ignore[no-untyped-def]
    context,
    lanes,
    rows,
    columns,
    x_step,
    y_step,
    x,
    x_row,
    index,
    scale,
    values,
    begin,
    end,
    y,
    y_row,
    resume,
    last,
    residual,
    start,
    low,
    high,
):
    """`multiply_add`, and if `last`: + residual, then clipped to [low, high].

    Args:
        last: 0 if further calls resume this sum; then nothing else happens.
        residual: block like Y that is added, or 0 for none.
        low, high: float32; 0 and inf are ReLU, 0 and 6 ReLU6, -inf and inf nothing.
    """
    return typed(_multiply_add, 5, (lanes, rows, columns, x_step, y_step), 12, 3)


@intrinsic(prefer_literal=True)
def dot_products(  # type: ignore[no-untyped-def]
    context,
    lanes,
    rows,
    columns,
    x_step,
    g_step,
    x,
    x_row,
    index,
    scale,
    out,
    begin,
    end,
    g,
    g_row,
):
    """out[t] += sum over the block of G * X_t, for t = begin .. end-1.

    Arguments as in `multiply_add`; `out` is of float32, beside `index`. Four sums are
    reduced together, which takes 13 instructions instead of 32.
    """
    return typed(_dot_products, 5, (lanes, rows, columns, x_step, g_step), 9, 0)


@intrinsic(prefer_literal=True)
def prefetch(context, rows, columns, step, write, first, row):  # type: ignore[no-untyped-def]
    """Asks for the cache lines of a block, whose use is some hundred cycles away.

    Args:
        rows, columns, step: the block and the bytes between lines, constants.
        write: 1 if the block will be written, else 0; a constant.
        first, row: address, and bytes from a row of the block to the next. It may lie
            anywhere, memory that is not ours included.
    """

    def emit(
        b: Any, rows: int, columns: int, step: int, write: int, first: Any, row: Any
    ) -> None:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        ask = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        for place in grid(b, rows, columns, first, row, step):
            b.call(ask, [b.inttoptr(place, byte), I32(write), I32(3), I32(1)])

    return typed(emit, 4, (rows, columns, step, write), 2, 0)


# ---- what is emitted -----------------------------------------------------------------


def _multiply_add(
    b: Any,
    lanes: int,
    rows: int,
    columns: int,
    x_step: int,
    y_step: int,
    x: Any,
    x_row: Any,
    index: Any,
    scale: Any,
    values: Any,
    begin: Any,
    end: Any,
    y: Any,
    y_row: Any,
    resume: Any,
    *finish: Any,
) -> None:
    vector = ir.VectorType(FLOAT, lanes)
    fma = fused_multiply_add(b, vector)
    places = grid(b, rows, columns, y, y_row, y_step)
    last, residual, start, low, high = (
        finish if len(finish) > 1 else (None, None, finish[0], None, None)
    )
    fresh = splat(b, start, vector)
    entry = b.block
    with b.if_then(b.icmp_signed("!=", resume, I64(0))):
        before = [load(b, place, vector) for place in places]
        loaded = b.block
    sums = [phi(b, vector, (fresh, entry), (old, loaded)) for old in before]

    def body(t: Any, sums: list[Any]) -> list[Any]:
        weight = splat(b, load(b, element(b, values, t), FLOAT), vector)
        blocks = grid(b, rows, columns, at(b, x, index, scale, t), x_row, x_step)
        return [
            b.call(fma, [weight, load(b, block, vector), total])
            for block, total in zip(blocks, sums, strict=True)
        ]

    # A sum has to wait for its last product: with few vectors, several sums take turns.
    chains = min(4, max(1, 8 // (rows * columns)))
    if chains > 1:

        def several(t: Any, sums: list[Any]) -> list[Any]:
            count = len(sums) // chains
            return [
                total
                for k in range(chains)
                for total in body(b.add(t, I64(k)), sums[k * count : (k + 1) * count])
            ]

        zero = ir.Constant(vector, [0.0] * lanes)
        full = b.sub(end, b.srem(b.sub(end, begin), I64(chains)))
        full = b.select(b.icmp_signed("<", begin, end), full, begin)
        spread = sums + [zero] * (len(sums) * (chains - 1))
        spread = loop(b, begin, full, chains, spread, several)
        while len(spread) > len(places):
            half = len(spread) // 2
            spread = [
                b.fadd(u, v) for u, v in zip(spread[:half], spread[half:], strict=True)
            ]
        sums, begin = spread, full
    sums = loop(b, begin, end, 1, sums, body)
    if last is not None:
        sums = _finish(
            b, vector, sums, last, residual, low, high, (rows, columns, y_row, y_step)
        )
    for total, place in zip(sums, places, strict=True):
        b.store(total, pointer(b, place, vector), align=4)


def _finish(
    b: Any,
    vector: Any,
    sums: list[Any],
    last: Any,
    residual: Any,
    low: Any,
    high: Any,
    block: tuple[int, int, Any, int],
) -> list[Any]:
    """Adds the residual and clips, if this is the last part of the sum."""
    rows, columns, row, step = block
    unfinished, before = sums, b.block
    with b.if_then(b.icmp_signed("!=", last, I64(0))):
        plain = b.block
        with b.if_then(b.icmp_signed("!=", residual, I64(0))):
            places = grid(b, rows, columns, residual, row, step)
            added = [
                b.fadd(total, load(b, place, vector))
                for total, place in zip(sums, places, strict=True)
            ]
            branch = b.block
        sums = [
            phi(b, vector, (total, plain), (with_residual, branch))
            for total, with_residual in zip(sums, added, strict=True)
        ]
        for sign, bound in (("<", low), (">", high)):  # which lets NaN pass
            limit = splat(b, bound, vector)
            beyond = [b.fcmp_ordered(sign, total, limit) for total in sums]
            sums = [
                b.select(beyond, limit, total)
                for beyond, total in zip(beyond, sums, strict=True)
            ]
        after = b.block
    return [
        phi(b, vector, (total, before), (clipped, after))
        for total, clipped in zip(unfinished, sums, strict=True)
    ]


def _dot_products(
    b: Any,
    lanes: int,
    rows: int,
    columns: int,
    x_step: int,
    g_step: int,
    x: Any,
    x_row: Any,
    index: Any,
    scale: Any,
    out: Any,
    begin: Any,
    end: Any,
    g: Any,
    g_row: Any,
) -> None:
    vector = ir.VectorType(FLOAT, lanes)
    fma = fused_multiply_add(b, vector)
    grads = [load(b, p, vector) for p in grid(b, rows, columns, g, g_row, g_step)]
    together = 4 if lanes >= 4 else 1

    def products(t: Any) -> Any:
        """The products of one non-zero, summed over the block but not over lanes."""
        blocks = grid(b, rows, columns, at(b, x, index, scale, t), x_row, x_step)
        chains: list[Any] = []  # two, so that one need not wait for the other
        for k, (grad, block) in enumerate(zip(grads, blocks, strict=True)):
            if k < 2:
                chains.append(b.fmul(grad, load(b, block, vector)))
            else:
                args = [grad, load(b, block, vector), chains[k % 2]]
                chains[k % 2] = b.call(fma, args)
        return b.fadd(*chains) if len(chains) == 2 else chains[0]

    def several(t: Any, none: list[Any]) -> list[Any]:
        four = [products(b.add(t, I64(k))) for k in range(4)]
        place = pointer(b, element(b, out, t), ir.VectorType(FLOAT, 4))
        total = b.fadd(b.load(place, align=4), _sums_of_four(b, four, lanes))
        b.store(total, place, align=4)
        return none

    def single(t: Any, none: list[Any]) -> list[Any]:
        place = pointer(b, element(b, out, t), FLOAT)
        kind = ir.FunctionType(FLOAT, [FLOAT, vector])
        name = f"llvm.vector.reduce.fadd.v{lanes}f32"
        add = cgutils.get_or_insert_function(b.module, kind, name)
        args = [b.load(place, align=4), products(t)]
        b.store(b.call(add, args, fastmath=("reassoc",)), place, align=4)
        return none

    if together == 4:
        full = b.sub(end, b.and_(b.sub(end, begin), I64(3)))
        full = b.select(b.icmp_signed("<", begin, end), full, begin)
        loop(b, begin, full, 4, [], several)
        begin = full
    loop(b, begin, end, 1, [], single)


def _sums_of_four(b: Any, four: list[Any], lanes: int) -> Any:
    """Four vectors -> one of 4 floats, the sum of each; any association."""

    def pairs(u: Any, v: Any) -> Any:
        """In every run of four lanes: u01, u23, v01, v23."""
        even = [k + j for k in range(0, lanes, 4) for j in (0, 2, lanes, lanes + 2)]
        odd = [lane + 1 for lane in even]
        return b.fadd(shuffle(b, u, v, even), shuffle(b, u, v, odd))

    total = pairs(pairs(four[0], four[1]), pairs(four[2], four[3]))
    while lanes > 4:  # every run of four lanes now has the four sums of its lanes
        lanes //= 2
        low = shuffle(b, total, total, list(range(lanes)))
        high = shuffle(b, total, total, list(range(lanes, 2 * lanes)))
        total = b.fadd(low, high)
    return total
