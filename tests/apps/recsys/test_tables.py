import importlib
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.tables import (
    KINDS,
    Columns,
    Dense,
    Dictionary,
    Hashed,
    Integers,
    LowRank,
    QuotientRemainder,
    Sparse,
    encode,
    from_arrays,
)
from apps.recsys.tables import bits as packed_bits
from apps.recsys.tables.dense import as_float32
from apps.recsys.tables.sparse import structure_bytes

seeds = st.integers(0, 10_000)
sides = st.sampled_from([1, 2, 3, 7, 13])


def made_up(n, d, seed, zeros=0.0):
    """Rows of different lengths, some of zeros."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n, d)) * np.exp(rng.standard_normal((n, 1)))
    matrix[rng.random((n, d)) < zeros] = 0
    return matrix.astype(np.float32)


@lru_cache(maxsize=1)
def examples(n=7, d=13, seed=0):
    """A table of every kind, and of every kind within another."""
    matrix = made_up(n, d, seed)
    rng = np.random.default_rng(seed)
    mask = rng.random((n, d)) < 0.4
    thin = np.zeros((n, d), bool)
    thin[::2, 1] = True
    few = made_up(3, d, seed + 1)
    tables = [encode(matrix, kind) for kind in KINDS[:10]]
    for values in ("float32", "float16", "int8", "int4"):
        tables += [Sparse.of(matrix, m, values) for m in (mask, thin)]
    for bits in (rng.integers(0, 9, d), np.zeros(d, int), np.full(d, 8)):
        tables.append(Columns.of(matrix, bits))
    left, right = encode(made_up(n, 2, seed), "int4"), encode(few[:2], "float16")
    tables += [LowRank(left, right), Hashed(n, encode(few, "int8"))]
    for how in ("product", "sum"):
        quotient = encode(made_up(-(-n // 3), d, seed), "float16")
        tables.append(QuotientRemainder(n, quotient, encode(few, "float32"), how))
    chosen, weights = rng.integers(0, 3, (n, 2)), encode(made_up(n, 2, 5), "int8")
    tables.append(
        Dictionary.of(chosen, weights, LowRank(encode(few[:, :2], "int2"), right))
    )
    return tables


def slow_rows(table):
    """Every row by the module's formulas, one number at a time."""
    n, d = table.shape
    arrays, result = table.arrays(), np.zeros((n, d))
    if isinstance(table, Dense):
        return arrays["values"].astype(np.float64)
    if isinstance(table, Integers):
        for i in range(n):
            row = int.from_bytes(arrays["codes"][i].tobytes(), "little")
            for j in range(d):
                code = (row >> (j * table.bits)) % 2**table.bits
                result[i, j] = (code - (2**table.bits - 1) / 2) * float(
                    arrays["scales"][i]
                )
        return result
    if isinstance(table, Sparse):
        return slow_sparse(table, result)
    if isinstance(table, Columns):
        return slow_columns(arrays, result)
    parts = {name: slow_rows(part) for name, part in table.parts().items()}
    if isinstance(table, LowRank):
        return parts["left"] @ parts["right"]
    for i in range(n):
        if isinstance(table, Hashed):
            result[i] = parts["shared"][i % len(parts["shared"])]
        elif isinstance(table, QuotientRemainder):
            a, b = divmod(i, len(parts["remainder"]))
            pair = parts["quotient"][a], parts["remainder"][b]
            result[i] = pair[0] * pair[1] if table.how == "product" else sum(pair)
        else:
            for weight, atom in zip(
                parts["weights"][i], arrays["chosen"][i], strict=True
            ):
                result[i] += weight * parts["atoms"][atom]
    return result


def slow_columns(arrays, result):
    for i in range(len(result)):
        row = int.from_bytes(arrays["codes"][i].tobytes(), "little")
        for j, bits in enumerate(arrays["bits"].tolist()):
            code, row = row % 2**bits, row >> bits
            step = float(arrays["steps"][j])
            result[i, j] = arrays["offsets"][j] + step * (code - (2**bits - 1) / 2)
    return result


def slow_sparse(table, result):
    n, d = result.shape
    arrays = table.arrays()
    entry = 0
    for i in range(n):
        if "bits" in arrays:
            row = int.from_bytes(arrays["bits"][i].tobytes(), "little")
            columns = [j for j in range(d) if row >> j & 1]
        else:
            before = int(arrays["counts"][:i].sum())
            columns = arrays["columns"][before : before + int(arrays["counts"][i])]
        for j in columns:
            if table.value_kind.startswith("float"):
                result[i, j] = arrays["values"][entry]
            else:
                width = int(table.value_kind[3:])
                every = int.from_bytes(arrays["values"].tobytes(), "little")
                code = (every >> (entry * width)) % 2**width
                result[i, j] = (code - (2**width - 1) / 2) * float(arrays["scales"][i])
            entry += 1
    assert entry == table.nnz
    return result


@pytest.mark.parametrize("number", range(len(examples())))
def test_rows_equal_the_slow_reference_and_survive_a_file(number, tmp_path):
    table = examples()[number]
    n, d = table.shape
    expected = slow_rows(table)
    index = np.array([3, 0, n - 1, 3])
    got = table.rows(index)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected[index], rtol=1e-5, atol=1e-6)
    assert table.rows(np.array([], np.int32)).shape == (0, d)
    for part in (slice(2, 5), slice(None), slice(3, 3)):
        assert np.array_equal(table.rows(part), table.rows(np.arange(n)[part]))
    vectors = made_up(3, d, 8)
    np.testing.assert_allclose(
        table.scores(vectors), vectors @ expected.T, rtol=1e-4, atol=1e-4
    )

    np.savez(tmp_path / "table.npz", **table.arrays())
    stored = json.loads(json.dumps([table.kind, table.shape, table.settings()]))
    with np.load(tmp_path / "table.npz") as arrays:
        again = from_arrays(stored[0], tuple(stored[1]), dict(arrays), stored[2])
    assert again.shape == (n, d)
    assert again.settings() == table.settings()
    assert (
        again.nbytes == table.nbytes == sum(a.nbytes for a in table.arrays().values())
    )
    assert np.array_equal(again.rows(index), got)


@given(sides, st.integers(1, 70), st.integers(1, 8), seeds)
def test_bits_round_trip(n, d, bits, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (n, d)).astype(np.uint8)
    packed = packed_bits.pack(codes, bits)
    assert packed.shape == (n, packed_bits.width(d, bits))
    assert packed_bits.padding_is_zero(packed, d, bits)
    assert np.array_equal(packed_bits.unpack(packed, d, bits), codes)


@given(
    sides,
    st.integers(1, 40),
    st.integers(1, 8),
    st.sampled_from(["float32", "float16"]),
    st.floats(-6, 3),
    seeds,
)
def test_integers_are_off_by_half_a_step_at_most(n, d, bits, scales, magnitude, seed):
    matrix = made_up(n, d, seed, zeros=0.3) * np.float32(10**magnitude)
    table = Integers.of(matrix, f"int{bits}", scales)
    rows = np.arange(n)
    steps = table.scales.astype(np.float64)[:, None]
    error = np.abs(table.rows(rows).astype(np.float64) - matrix)
    assert (error <= steps / 2 + 1e-6 * np.abs(matrix)).all()
    # The steps are as narrow as that allows, up to the rounding of the scale.
    exact = 2 * np.abs(matrix).max(1) / (2**bits - 1)
    spacing = np.spacing(table.scales).astype(np.float64)
    assert (np.abs(table.scales - exact) <= spacing + 1e-6 * exact).all()
    assert table.nbytes == n * (packed_bits.width(d, bits) + np.dtype(scales).itemsize)
    fitted = Integers.of(matrix, f"int{bits}", scales, fit="squares")
    square = ((fitted.rows(rows).astype(np.float64) - matrix) ** 2).sum(1)
    assert (square <= (error**2).sum(1) * (1 + 1e-5)).all()


@given(
    sides,
    st.sampled_from([1, 8, 13, 64, 255, 256, 257, 300, 2000]),
    st.sampled_from([0, 0.05, 0.2, 1]),
    st.sampled_from(["float32", "float16", "int8", "int4"]),
    seeds,
)
def test_sparse_round_trip(n, d, density, values, seed):
    matrix = made_up(n, d, seed, zeros=0.1)  # kept zeros are entries, too
    mask = np.random.default_rng(seed).random((n, d)) < density
    table = Sparse.of(matrix, mask, values)
    again = from_arrays("sparse", (n, d), table.arrays(), table.settings())
    got = again.rows(np.arange(n))
    assert not got[~mask].any()
    assert again.nnz == mask.sum()
    kept = np.where(mask, matrix, 0)
    if values.startswith("float"):
        assert np.array_equal(got, kept.astype(values).astype(np.float32))
    else:
        steps = table.scales.astype(np.float64)[:, None]
        assert (np.abs(got - kept) <= steps / 2 + 1e-6 * np.abs(kept)).all()
    assert table.nbytes == again.nbytes
    index = np.arange(n)[::2]
    np.testing.assert_allclose(table.total(index), got[index].sum(0), atol=1e-4)
    entries = mask.sum(1), np.nonzero(mask)[1], matrix[mask]
    same = Sparse.of_entries((n, d), *entries, values)
    assert all(np.array_equal(a, b) for a, b in zip(
        table.arrays().values(), same.arrays().values(), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("density", "values", "megabytes"),
    [  # section 6 of the specification: Gowalla, 70,839 rows of 64
        (0.5, "float32", 9.63), (0.3, "float32", 6.01), (0.2, "float16", 2.38),
        (0.1, "float16", 1.36), (0.05, "float16", 0.68), (0.02, "float16", 0.27),
        (0.1, "float32", 2.27), (0.05, "float32", 1.13), (0.02, "int8", 0.46),
        (0.5, "int8", 3.12), (0.3, "int8", 2.21), (0.1, "int8", 1.19),
    ],
)  # fmt: skip
def test_bytes_of_the_specification(density, values, megabytes):
    n, d = 70_839, 64
    nnz = round(density * n * d)
    item = {"float32": 4, "float16": 2, "int8": 1}[values]
    by_columns = nnz * (item + 1)
    by_bits = nnz * item + n * d // 8
    scales = 4 * n if values == "int8" else 0
    # Its table leaves row offsets out; ours are a byte a row, for columns only.
    assert round((min(by_columns, by_bits) + scales) / 1e6, 2) == megabytes
    mask = np.zeros(n * d, bool)
    mask[np.arange(nnz) * n * d // nnz] = True
    table = Sparse.of(
        np.ones((n, d), np.float32), mask.reshape(n, d), values, "float32"
    )
    assert table.nbytes == min(by_columns + n, by_bits) + scales
    assert structure_bytes(n, d, nnz) == table.nbytes - nnz * item - scales


def test_bytes_of_dense_tables():
    n, d = 70_839, 64
    matrix = np.ones((n, d), np.float32)
    assert encode(matrix, "float32").nbytes == 4 * n * d
    assert encode(matrix, "float16").nbytes == 2 * n * d
    assert Integers.of(matrix, "int8", "float32").nbytes == n * d + 4 * n  # 4.82 MB
    assert Integers.of(matrix, "int4", "float16").nbytes == n * d // 2 + 2 * n


def test_every_float16_becomes_the_same_float32():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 2)
    got = as_float32(halves)
    assert np.array_equal(got.view(np.uint32), halves.astype("f4").view(np.uint32))
    assert np.array_equal(as_float32(halves[::3]), got[::3])  # not contiguous


def test_kinds_that_share_numbers():
    few = np.arange(6, dtype=np.float32).reshape(3, 2)
    hashed = Hashed(8, encode(few, "float32"))
    rows = hashed.rows(np.arange(8))
    assert np.array_equal(rows[0], rows[3])  # 3 mod 3 = 0
    assert len(np.unique(rows, axis=0)) == 3
    rng = np.random.default_rng(0)
    parts = [encode(rng.standard_normal((n, 2)), "float32") for n in (3, 3)]
    both = QuotientRemainder(8, *parts).rows(np.arange(8))
    assert len(np.unique(both, axis=0)) == 8


@given(sides, st.integers(1, 20), seeds)
def test_columns_of_more_bits_are_nearer(n, d, seed):
    matrix = made_up(n, d, seed)
    rows = np.arange(n)
    bits = np.random.default_rng(seed).integers(0, 9, d)
    table = Columns.of(matrix, bits)
    assert table.nbytes == n * -(-int(bits.sum()) // 8) + 9 * d
    spread = np.abs(matrix - matrix.mean(0)).max(0)
    error = ((table.rows(rows) - matrix) ** 2).sum(0)
    # The full range is among the tried ones: no column is worse than with it.
    half_step = spread / np.maximum(2.0**bits - 1, 1)
    assert (error <= n * half_step**2 * (1 + 1e-4) + 1e-9).all()
    mean = Columns.of(matrix, np.zeros(d, int)).rows(rows)
    np.testing.assert_allclose(mean, np.tile(matrix.mean(0), (n, 1)), atol=1e-5)


@given(st.integers(1, 8), st.integers(0, 10))
def test_float16_scales_reach_from_the_smallest_to_what_they_cannot_hold(
    bits, exponent
):
    tiny = np.full((1, 3), 1e-12 * 10.0**-exponent, np.float32)
    table = Integers.of(tiny, f"int{bits}")
    assert np.abs(table.rows(np.array([0])) - tiny).max() <= float(table.scales[0]) / 2
    with pytest.raises(ValueError, match="exceeds float16"):
        Integers.of(np.full((1, 3), 1e8), f"int{bits}")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_not_packed(bad):
    matrix = np.ones((3, 2))
    matrix[1, 1] = bad
    for kind in ("float32", "float16", "int8"):
        with pytest.raises(ValueError, match="NaN, infinity"):
            encode(matrix, kind)
    with pytest.raises(ValueError, match="NaN, infinity"):
        Sparse.of(matrix, np.ones((3, 2), bool))


def test_bad_arguments_are_named():
    matrix = np.ones((3, 2))
    two = [encode(matrix, "int8")] * 2
    for call, words in [
        (lambda: encode(matrix, "int9"), "float32, float16, int1"),
        (lambda: encode(np.ones(3), "int8"), "float matrix"),
        (lambda: encode(np.ones((3, 2), int), "int8"), "float matrix"),
        (lambda: encode(np.ones((0, 2)), "int8"), "1 ... "),
        (lambda: Dense.of(np.full((1, 1), 7e4), "float16"), "use float32"),
        (lambda: Integers.of(matrix, "int4", "float64"), "scales are"),
        (lambda: Integers.of(matrix, "int4", fit="median"), "largest or squares"),
        (lambda: Columns.of(matrix, [9, 0]), "bits must be"),
        (lambda: Columns.of(matrix, [1.0, 0.0]), "bits must be"),
        (lambda: Columns.of(matrix, [1]), "bits must be"),
        (lambda: Sparse.of(matrix, np.ones((3, 2))), "mask must be bool"),
        (lambda: Sparse.of(matrix, np.ones((2, 2), bool)), "mask must be bool"),
        (lambda: Sparse.of(matrix, matrix > 0, "int2"), "values must be one of"),
        (lambda: Sparse.of_entries((2, 2), [1, 1], [0], [1.0]), "counts must sum"),
        (lambda: Sparse.of_entries((2, 2), [1, 0], [2], np.ones(1)), "column 2"),
        (lambda: Sparse.of_entries((2, 2), [2, 0], [1, 0], np.ones(2)), "rise"),
        (lambda: LowRank(encode(matrix, "int8"), encode(matrix, "int8")), "multiply"),
        (lambda: QuotientRemainder(9, *two, "max"), "how"),
        (lambda: QuotientRemainder(99, *two), "quotient"),
        (lambda: Dictionary.of(np.ones((3, 2)), *two), "chosen"),
        (lambda: Dictionary.of(np.full((3, 2), 3), *two), "row 3"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("number", range(len(examples())))
def test_rows_out_of_range_are_refused(number):
    table = examples()[number]
    bad = [np.array([-1]), np.array([7]), np.array([0.0]), np.array([[0]]), 3]
    bad += [slice(0, 8), slice(-2, 3), slice(4, 3), slice(0, 6, 2)]
    for index in bad:
        with pytest.raises(ValueError, match="row"):
            table.rows(index)


def damages(table):
    """(what, arrays, settings, shape) that no table of this kind could have made."""
    arrays, options = table.arrays(), table.settings()
    for name, array in arrays.items():
        without = {k: v for k, v in arrays.items() if k != name}
        yield f"{name} missing", without, options, table.shape
        yield f"{name} short", without | {name: array[:-1]}, options, table.shape
        longer = np.concatenate([array, array[:1]])
        yield f"{name} long", without | {name: longer}, options, table.shape
        wide = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        yield f"{name} wide", without | {name: wide}, options, table.shape
        yield f"{name} swapped", without | {name: array[None]}, options, table.shape
        objects = array.astype(object)
        yield f"{name} objects", without | {name: objects}, options, table.shape
        yield f"{name} a list", without | {name: array.tolist()}, options, table.shape
        if array.dtype.kind == "f":
            for bad in (np.nan, np.inf):
                broken = array.copy()
                broken.flat[-1] = bad
                yield f"{name} {bad}", without | {name: broken}, options, table.shape
        if name.endswith("scales"):
            yield "negative scale", without | {name: -array - 1}, options, table.shape
            if array.dtype == np.float32:
                huge = np.full_like(array, 3e38)
                yield "huge scale", without | {name: huge}, options, table.shape
        if name == "bits" and table.kind == "columns":
            yield "9 bits", without | {name: array + 9}, options, table.shape
        if name in ("offsets", "steps"):
            huge = np.full_like(array, 3e38)
            yield f"huge {name}", without | {name: huge}, options, table.shape
        if name.endswith("chosen"):
            yield "no such atom", without | {name: array + 200}, options, table.shape
        if name == "columns":
            yield "columns fall", without | {name: array + 13}, options, table.shape
    for name in options:
        without = {k: v for k, v in options.items() if k != name}
        yield f"{name} missing", arrays, without, table.shape
        for bad in (None, -1, 0, 2.0, True, "x", [1], 10**12):
            yield f"{name} {bad!r}", arrays, without | {name: bad}, table.shape
    yield "more arrays", arrays | {"more": np.zeros(1)}, options, table.shape
    yield "more settings", arrays, options | {"more": 1}, table.shape
    n, d = table.shape
    shapes = [(0, d), (n, 0), (-n, d), (n, 10**9), (n,), None, (n, 300), (float(n), d)]
    shapes += [(True, d), ("7", d)]
    if table.kind != "hashed":  # a hashed table may have any number of rows
        shapes += [(n + 300, d), (10**12, d)]
    for shape in shapes:
        yield f"shape {shape}", arrays, options, shape


@pytest.mark.parametrize("number", range(len(examples())))
def test_hostile_arrays_are_refused(number):
    table = examples()[number]
    cases = list(damages(table))
    assert len(cases) > 15
    for what, arrays, options, shape in cases:
        try:
            from_arrays(table.kind, shape, arrays, options)
        except ValueError:
            continue
        raise AssertionError(f"{table.kind}: {what} was not refused")


@pytest.mark.parametrize("kind", ["nothing", None, 3, ["int8"], "int9", "sparse."])
def test_unknown_kinds_are_refused(kind):
    with pytest.raises(ValueError, match="kinds of tables"):
        from_arrays(kind, (1, 1), {}, {})


def test_bits_after_the_end_of_a_row_are_refused():
    table = encode(made_up(2, 3, 0), "int4")
    arrays = table.arrays()
    arrays["codes"] = arrays["codes"] | np.uint8(0x80)
    with pytest.raises(ValueError, match="codes go on"):
        from_arrays("int4", (2, 3), arrays, {})
    sparse = Sparse.of(np.ones((2, 13)), np.ones((2, 13), bool))
    arrays = sparse.arrays()
    arrays["bits"] = arrays["bits"] | np.uint8(0x80)
    with pytest.raises(ValueError, match="bits go on"):
        from_arrays("sparse", (2, 13), arrays, sparse.settings())


def test_columns_must_rise_within_a_row():
    mask = np.zeros((4, 64), bool)
    mask[0, [1, 5]] = mask[2, 3] = True
    table = Sparse.of(np.ones((4, 64)), mask)
    assert table.columns.tolist() == [1, 5, 3]
    for columns in ([5, 5, 3], [5, 1, 3], [1, 64, 3]):
        arrays = table.arrays() | {"columns": np.array(columns, np.uint8)}
        with pytest.raises(ValueError, match="column"):
            from_arrays("sparse", (4, 64), arrays, table.settings())


def test_tables_within_tables_end():
    options = {"rank": 1, "left.kind": "low_rank", "right.kind": "float32"}
    arrays = {}
    prefix = ""
    for _ in range(20):
        prefix += "left."
        options |= {f"{prefix}rank": 1, f"{prefix}left.kind": "low_rank"}
    with pytest.raises(ValueError, match="deeper"):
        from_arrays("low_rank", (1, 1), arrays, options)


@settings(max_examples=200)
@given(st.sampled_from(range(len(examples()))), seeds)
def test_damaged_bytes_never_read_beyond_a_table(number, seed):
    """Random bytes: refused, or rows of the right shape."""
    table = examples()[number]
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.frombuffer(rng.bytes(array.nbytes), array.dtype).reshape(array.shape)
        for name, array in table.arrays().items()
    }
    try:
        found = from_arrays(table.kind, table.shape, arrays, table.settings())
    except ValueError:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        assert found.rows(np.arange(7)).shape == (7, 13)


def test_no_torch_scipy_or_numba_is_imported():
    code = (
        "import sys, apps.recsys.tables\n"
        "print([m for m in ('torch', 'scipy', 'numba', 'pandas') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


MODULES = ("__init__", "bits", "columns", "dense", "integers", "sparse")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    import doctest

    module = importlib.import_module(
        f"apps.recsys.tables.{name}".removesuffix(".__init__")
    )
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted > 0
