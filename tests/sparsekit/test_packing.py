import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.packing import (
    FORMATS,
    _index_dtype,
    break_even,
    decode,
    decode_mask,
    encode,
    nbytes,
    predicted_nbytes,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8]
shapes = st.lists(st.sampled_from([1, 2, 3, 7, 31]), min_size=1, max_size=4)


def random_mask(shape, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tuple(shape), generator=generator) < density


def random_weight(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    weight = (torch.randn(tuple(shape), generator=generator) * 3).round()
    return weight.to(dtype)  # rounded: about one in seven is an alive zero


@given(
    shapes,
    st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    st.sampled_from(DTYPES),
    st.sampled_from(FORMATS),
    st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_roundtrip_is_exact_and_sizes_are_as_predicted(
    shape, density, dtype, format, seed
):
    mask = random_mask(shape, density, seed)
    weight = random_weight(shape, dtype, seed)
    parts = encode(weight, mask, format)
    expected = torch.where(mask, weight, torch.zeros_like(weight))
    got = decode(parts, shape, format)
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    assert nbytes(parts) == sum(p.numpy(force=True).nbytes for p in as_numpy(parts))
    assert predicted_nbytes(mask, format, weight.element_size()) == nbytes(parts)
    if format != "dense":
        assert torch.equal(decode_mask(parts, shape, format), mask)


def as_numpy(parts):
    return [
        p.view(torch.int16) if p.dtype == torch.bfloat16 else p for p in parts.values()
    ]


@pytest.mark.parametrize("format", FORMATS[1:])
def test_alive_zeros_and_special_values_survive(format):
    weight = torch.tensor([[0.0, math.nan, -0.0], [math.inf, 5.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    parts = encode(weight, mask, format)
    assert torch.equal(decode_mask(parts, (2, 3), format), mask)
    got = decode(parts, (2, 3), format)
    expected = weight.masked_fill(~mask, 0)
    assert got.numpy().tobytes() == expected.numpy().tobytes()  # the sign of -0.0 too


def test_an_absent_nan_is_gone():
    weight = torch.tensor([math.nan, 1.0])
    mask = torch.tensor([False, True])
    for format in FORMATS:
        assert decode(encode(weight, mask, format), (2,), format).tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(13, 101), (7, 3, 5, 5)])
def test_csr_is_scipys(shape):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = random_mask(shape, 0.1, 3)
    parts = encode(weight, mask, "csr")
    matrix = scipy_sparse.csr_matrix((weight * mask).reshape(shape[0], -1).numpy())
    assert np.array_equal(parts["values"], matrix.data)
    assert np.array_equal(parts["columns"], matrix.indices)
    assert np.array_equal(parts["rows"], matrix.indptr)
    assert parts["rows"].dtype == parts["columns"].dtype == torch.int32


def test_indices_grow_to_int64_when_they_must():
    most = 2**31 - 1
    assert _index_dtype(most, most + 1) == torch.int32
    assert _index_dtype(most + 1, 10) == torch.int64
    assert _index_dtype(10, most + 2) == torch.int64


@pytest.mark.parametrize(
    ("positions", "codes"),
    [
        ([0], [0]),
        ([254], [254]),
        ([255], [255, 0]),
        ([256], [255, 1]),
        ([509, 510, 1021], [255, 254, 0, 255, 255, 0]),
        ([], []),
    ],
)
def test_delta_codes_by_hand(positions, codes):
    mask = torch.zeros(1100, dtype=torch.bool)
    mask[positions] = True
    parts = encode(torch.arange(1100.0), mask, "delta")
    assert parts["gaps"].tolist() == codes
    assert decode(parts, (1100,), "delta").nonzero().flatten().tolist() == [
        p for p in positions if p
    ]


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("format", ["csr", "bitmask", "delta"])
def test_break_even_is_where_the_measured_size_crosses_dense(format, itemsize):
    dtype = {2: torch.float16, 4: torch.float32, 8: torch.float64}[itemsize]
    weight = torch.ones(1009, 1013, dtype=dtype)
    dense = nbytes({"values": weight})
    at = break_even(format, itemsize)
    for density, smaller in ((at - 0.005, True), (at + 0.005, False)):
        order = torch.randperm(
            weight.numel(), generator=torch.Generator().manual_seed(0)
        )
        mask = (order < density * weight.numel()).view(weight.shape)
        assert (nbytes(encode(weight, mask, format)) < dense) == smaller


def parts_of(format):
    mask = random_mask((5, 7), 0.4, 0)
    return encode(torch.ones(5, 7), mask, format)


HOSTILE = [
    ("csr", "columns", lambda p: p + 7, "outside 0 ... 6"),
    ("csr", "columns", lambda p: p - 7, "outside 0 ... 6"),
    ("csr", "columns", lambda p: torch.zeros_like(p), "'columns' must rise"),
    ("csr", "columns", lambda p: p.flip(0), "'columns' must rise"),
    ("csr", "columns", lambda p: p[:-1], "'columns' is int32 or int64 of length"),
    ("csr", "columns", lambda p: p.float(), "got torch.float32"),
    ("csr", "rows", lambda p: p + 1, "'rows' must rise from 0"),
    ("csr", "rows", lambda p: p.flip(0), "'rows' must rise from 0"),
    ("csr", "rows", lambda p: p[:-1], "'rows' is int32 or int64 of length 6"),
    ("csr", "rows", lambda p: p * 1000, "'rows' must rise from 0"),
    ("csr", "values", lambda p: p[:-1], "'columns' is int32 or int64 of length"),
    ("bitmask", "bits", lambda p: p[:-1], "'bits'.*length 5"),
    ("bitmask", "bits", lambda p: p.int(), "'bits'.*int32"),
    ("bitmask", "bits", lambda p: p | 128, "'bits'.*after entry 35"),
    ("bitmask", "bits", lambda p: torch.zeros_like(p), "structure says 0"),
    ("bitmask", "values", lambda p: p[:-1], "'values' holds"),
    ("bitmask", "values", lambda p: p.view(-1, 1), "'values' is a vector"),
    ("delta", "gaps", lambda p: p + 20, "'gaps' leads to entry"),
    ("delta", "gaps", lambda p: p.long(), "'gaps' is a uint8 vector"),
    ("delta", "gaps", lambda p: p.fill_(255), "ends in an escape"),
    ("delta", "gaps", lambda p: p[:-1], "'values' holds"),
    ("delta", "values", lambda p: torch.cat([p, p]), "'values' holds"),
    ("dense", "values", lambda p: p[:-1], r"\(4, 7\), expected \(5, 7\)"),
]


@pytest.mark.parametrize(("format", "part", "damage", "message"), HOSTILE)
def test_damaged_parts_are_refused_by_name(format, part, damage, message):
    parts = parts_of(format)
    parts[part] = damage(parts[part])
    with pytest.raises(ValueError, match=message):
        decode(parts, (5, 7), format)


@given(
    st.lists(st.integers(0, 255), max_size=9), st.integers(0, 9), st.integers(0, 700)
)
def test_any_gaps_decode_or_raise(codes, n_values, numel):
    parts = {
        "gaps": torch.tensor(codes, dtype=torch.uint8),
        "values": torch.ones(n_values),
    }
    try:
        weight = decode(parts, (numel,), "delta")
    except ValueError:
        return
    again = encode(weight, decode_mask(parts, (numel,), "delta"), "delta")
    assert again["gaps"].tolist() == codes


@given(
    st.lists(st.integers(-1, 4), min_size=4, max_size=4),
    st.lists(st.integers(-1, 5), max_size=5),
)
def test_any_indices_decode_or_raise(rows, columns):
    parts = {
        "rows": torch.tensor(rows, dtype=torch.int32),
        "columns": torch.tensor(columns, dtype=torch.int32),
        "values": torch.ones(len(columns)),
    }
    try:
        weight = decode(parts, (3, 5), "csr")
    except ValueError:
        return
    again = encode(weight, weight != 0, "csr")
    assert again["rows"].tolist() == rows
    assert again["columns"].tolist() == columns


def test_wrong_calls_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="'coo'"):
        encode(torch.ones(2, 3), mask, "coo")
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(2, 3\)"):
        encode(torch.ones(3, 2), mask, "csr")
    with pytest.raises(TypeError, match="float32"):
        encode(torch.ones(2, 3), mask.float(), "csr")
    with pytest.raises(ValueError, match=r"\['bits', 'values'\], got \['values'\]"):
        decode({"values": torch.ones(6)}, (2, 3), "bitmask")
    with pytest.raises(ValueError, match="stores no mask"):
        decode_mask({"values": torch.ones(2, 3)}, (2, 3), "dense")
    with pytest.raises(ValueError, match="'zip'"):
        break_even("zip")


@pytest.mark.parametrize("format", FORMATS)
def test_shapes_of_no_and_of_one_dimension(format):
    for shape in ((), (1,), (5,), (0,), (3, 0), (2, 3, 4)):
        weight = torch.arange(1.0, 1 + math.prod(shape)).view(shape)
        mask = weight % 2 == 1
        parts = encode(weight, mask, format)
        found = decode(parts, shape, format)
        assert torch.equal(found, weight * mask)
        assert nbytes(parts) == predicted_nbytes(mask, format)
        if format != "dense":
            assert torch.equal(decode_mask(parts, shape, format), mask)


@pytest.mark.parametrize("format", FORMATS)
def test_parts_that_are_missing_or_too_many_are_named(format):
    parts = encode(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), format)
    for wrong in ({**parts, "more": torch.ones(1)}, {}, {"values": parts["values"]}):
        if wrong.keys() == parts.keys():
            continue
        with pytest.raises(ValueError, match=f"^{format} has the parts .*, got"):
            decode(wrong, (2, 3), format)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_stored_is_a_copy_without_a_graph(format):
    weight = torch.ones(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True]] * 2)
    parts = encode(weight, mask, format)
    assert not any(part.requires_grad for part in parts.values())
    values = parts["values"].clone()
    weight.data.fill_(7)
    mask.fill_(False)
    assert torch.equal(parts["values"], values)
    found = decode(parts, (2, 3), format)
    found.fill_(9)
    assert torch.equal(parts["values"], values)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 1000])
def test_gaps_around_the_escape(gap):
    """An escape, 255, for every 255 absent entries; the rest is the code."""
    mask = torch.zeros(2 * gap + 3, dtype=torch.bool)
    mask[gap] = mask[2 * gap + 1] = True
    parts = encode(torch.ones(len(mask)), mask, "delta")
    codes = [255] * (gap // 255) + [gap % 255]
    assert parts["gaps"].tolist() == codes * 2
    assert predicted_nbytes(mask, "delta") == 2 * 4 + 2 * len(codes)
    assert torch.equal(decode_mask(parts, mask.shape, "delta"), mask)
    for short, fits in ((2 * gap + 2, True), (2 * gap + 1, False)):
        if fits:
            assert int(decode(parts, (short,), "delta").sum()) == 2
        else:
            with pytest.raises(ValueError, match=f"leads to entry {2 * gap + 1} of"):
                decode(parts, (short,), "delta")
