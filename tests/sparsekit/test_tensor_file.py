"""Files are read as the safetensors library reads them, or refused.

Hostile files of both kinds are in execution/test_reader.py and in the tests of
apps/recsys/container.py.
"""

import json
import mmap
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from sparsekit.tensor_file import BFLOAT16, KINDS, DamagedFile, json_object, read


def bits(array):
    return array.dtype, array.shape, array.tobytes()


@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "__metadata__"),
        st.sampled_from(list(KINDS.values())).flatmap(
            lambda kind: arrays_of.arrays(
                np.dtype(kind), arrays_of.array_shapes(min_dims=0, min_side=0)
            )
        ),
        max_size=4,
    )
)
def test_what_the_library_writes_is_read(written):
    arrays, metadata = read(save(written, {"a": "é"}))
    assert metadata == {"a": "é"}
    assert {n: bits(a) for n, a in arrays.items()} == {
        n: bits(a) for n, a in written.items()
    }


def test_arrays_are_views_of_a_mapped_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(save({"a": np.arange(5.0)}))
    with path.open("rb") as file:
        arrays, _ = read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
    assert not arrays["a"].flags.owndata
    assert not arrays["a"].flags.writeable


def test_bfloat16_is_widened_where_it_is_taken():
    numbers = torch.randn(3, 7).bfloat16()
    content = save_torch({"a": numbers, "none": numbers[:0]})
    arrays, _ = read(content, ["BF16"])
    np.testing.assert_array_equal(arrays["a"], numbers.float().numpy())
    assert arrays["none"].shape == (0, 7)
    with pytest.raises(DamagedFile, match="'a' has dtype 'BF16'"):
        read(content)
    assert BFLOAT16 not in KINDS


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"dtype": "F8_E4M3"}, "has dtype"),
        ({"dtype": {}}, "has dtype"),
        ({"shape": [2**47, 2**47, 0], "data_offsets": [0, 0]}, "no valid shape"),
        ({"shape": [1] * 9}, "no valid shape"),
        ({"shape": [1, -1]}, "no valid shape"),
        ({"shape": [1, 1.0]}, "no valid shape"),
        ({"shape": "1"}, "no valid shape"),
        ({"shape": [2**48, 0], "data_offsets": [0, 0]}, "no valid shape"),
        ({"shape": [2**24, 2**24, 0], "data_offsets": [0, 0]}, "no valid shape"),
        ({"data_offsets": [4, 0]}, "lies at 4"),
        ({"data_offsets": [0, True]}, "no data_offsets"),
        ({"shape": [True]}, "no valid shape"),
        ({"data_offsets": [0, 8, 16]}, "no data_offsets"),
        ({"data_offsets": [1, 5]}, "expected to begin at 0"),
        ({"data_offsets": [0, 2**70]}, "within 4 bytes"),
        ({"shape": [2]}, r"4 bytes are no F32 \[2\]"),
    ],
)
def test_entries_that_are_refused(entry, match):
    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"a": good | entry}).encode()
    with pytest.raises(DamagedFile, match=match):
        read(struct.pack("<Q", len(text)) + text + b"\0" * 4)


@pytest.mark.parametrize(
    "text", ["[]", "3", "{", '{"a": NaN}', '{"a": 1, "a": 1}', "9" * 9999, b"\xff"]
)
def test_what_is_no_object(text):
    with pytest.raises(DamagedFile, match=r"^the thing "):
        json_object(text, "the thing")


def test_sizes_at_the_limits():
    """An empty file is 10 bytes; eight dimensions and sizes below 2^48 are taken."""
    assert read(struct.pack("<Q", 2) + b"{}") == ({}, {})
    with pytest.raises(DamagedFile, match="or cut off: 9 bytes"):
        read(struct.pack("<Q", 1) + b"{")
    with pytest.raises(DamagedFile, match="a header of 3"):
        read(struct.pack("<Q", 3) + b"{}")
    shapes = [1] * 7 + [0], [0, 2**48 - 1]
    entries = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in zip("ab", shapes, strict=True)
    }
    text = json.dumps(entries).encode()
    arrays, _ = read(struct.pack("<Q", len(text)) + text)
    assert [arrays[name].shape for name in "ab"] == [tuple(s) for s in shapes]
