"""The file: what is written is read, by others too; what was altered is refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors import numpy as safetensors

from apps.recsys import container
from apps.recsys.container import DamagedFile

DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float16,
          np.float32, np.float64]  # fmt: skip


@pytest.fixture
def content(tmp_path):
    arrays = {
        "a": np.arange(3, dtype=np.int64),
        "b.c": np.array([[1.5, 2.5]], np.float32),
        "none": np.empty((0, 4), np.int8),
    }
    path = tmp_path / "fixture"
    container.write(path, arrays, {"version": 1, "é": ["<script>"]})
    return path.read_bytes()


def parts(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=9).filter(
            lambda name: name != "__metadata__"
        ),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: arrays_of.arrays(
                dtype, arrays_of.array_shapes(min_dims=0, min_side=0)
            )
        ),
        max_size=5,
    )
)
def test_what_is_written_is_read_also_by_the_safetensors_library(written):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        name = container.write(path, written, {"x": 1})
        read, about, same_name = container.read(path)
        theirs = safetensors.load_file(path)
        for found in (read, theirs):
            assert set(found) == set(written)
            for key, array in written.items():
                assert found[key].dtype == array.dtype
                np.testing.assert_array_equal(found[key], array)
        assert about == {"x": 1}
        assert name == same_name
        del read  # the file can be removed on any system


def test_arrays_are_views_of_the_file_and_aligned(tmp_path):
    path = tmp_path / "file"
    odd = {"a": np.ones(3, np.int8), "b": np.ones(5, np.float32)}
    container.write(path, odd | {"c": np.ones(2, np.int64)}, {})
    arrays, _, _ = container.read(path)
    for array in arrays.values():
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert array.flags.aligned


def test_a_reader_keeps_what_it_opened(tmp_path):
    path = tmp_path / "file"
    first = container.write(path, {"a": np.zeros(1000)}, {})
    old, _, _ = container.read(path)
    second = container.write(path, {"a": np.ones(1000)}, {})
    assert first != second
    assert old["a"].sum() == 0
    assert container.read(path)[0]["a"].sum() == 1000
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_file_cannot_hold():
    with pytest.raises(ValueError, match="'a' has dtype object"):
        container.write("x", {"a": np.array(["b"], object)}, {})
    with pytest.raises(ValueError, match="JSON compliant"):
        container.write("x", {}, {"a": float("nan")})


def refused(tmp_path, content, match=None):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=match):
        container.read(path)


def test_every_truncation_is_refused(tmp_path, content):
    for length in range(0, len(content), 5):
        refused(tmp_path, content[:length])
    refused(tmp_path, content + b"x", "1 bytes at the end")


def test_every_damaged_byte_is_refused_or_of_no_meaning(tmp_path, content):
    """Spaces after the header may become other white space: the content is the same."""
    path = tmp_path / "flipped"
    path.write_bytes(content)
    original, about, name = container.read(path)
    for place in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place * 5 % 8)
        path.write_bytes(damaged)
        try:
            arrays, same_about, same_name = container.read(path)
        except DamagedFile:
            continue
        assert (about, name) == (same_about, same_name)
        for key in original:
            np.testing.assert_array_equal(arrays[key], original[key], strict=True)


HEADERS = {
    "ten gigabytes": lambda h, b: struct.pack("<Q", 10**10) + b"{}" + b,
    "largest length": lambda h, b: struct.pack("<Q", 2**64 - 1) + b"{}" + b,
    "no JSON": lambda h, b: joined(b"{", b),
    "no UTF-8": lambda h, b: joined(b'{"\xff": 1}', b),
    "a list": lambda h, b: joined(b"[]", b),
    "a name twice": lambda h, b: joined(b'{"a": 1, "a": 1}', b),
    "deep": lambda h, b: joined(b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}", b),
    "endless digits": lambda h, b: joined(b'{"a": ' + b"9" * 10**5 + b"}", b),
    "NaN": lambda h, b: joined(b'{"a": NaN}', b),
    "no metadata": lambda h, b: joined({k: h[k] for k in ("a", "b.c", "none")}, b),
    "metadata no text": lambda h, b: joined(h | {"__metadata__": {"about": 1}}, b),
}  # fmt: skip

ENTRIES = {
    "no object": lambda e: [],
    "no offsets": lambda e: e.pop("data_offsets") and e,
    "offsets no integers": lambda e: e | {"data_offsets": [0.0, 24.0]},
    "offsets true": lambda e: e | {"data_offsets": [False, True]},
    "negative": lambda e: e | {"data_offsets": [-24, 0]},
    "backwards": lambda e: e | {"data_offsets": [24, 0]},
    "beyond the end": lambda e: e | {"data_offsets": [0, 10**12], "shape": [10**12]},
    "gap": lambda e: e | {"data_offsets": [8, 32]},
    "shape no list": lambda e: e | {"shape": 3},
    "shape negative": lambda e: e | {"shape": [-1, -3]},
    "shape fraction": lambda e: e | {"shape": [3.0]},
    "shape too large": lambda e: e | {"shape": [2**62, 2**62, 0]},
    "shape of another size": lambda e: e | {"shape": [4]},
    "many dimensions": lambda e: e | {"shape": [3] + [1] * 70},
    "another dtype": lambda e: e | {"dtype": "F64"},
    "unknown dtype": lambda e: e | {"dtype": "BOOL"},
    "dtype no text": lambda e: e | {"dtype": ["F32"]},
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers(tmp_path, content, case):
    refused(tmp_path, HEADERS[case](*parts(content)))


@pytest.mark.parametrize("case", ENTRIES)
def test_hostile_entries(tmp_path, content, case):
    header, body = parts(content)
    header["a"] = ENTRIES[case](dict(header["a"]))
    refused(tmp_path, joined(header, body))


def test_a_lone_surrogate_is_no_description(tmp_path, content):
    header, body = parts(content)
    header["__metadata__"]["about"] = "\ud800"
    refused(tmp_path, joined(header, body), "no text")


def test_an_array_too_many_is_refused(tmp_path, content):
    header, body = parts(content)
    header["more"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    refused(tmp_path, joined(header, body), "does not list the arrays")


def test_files_of_others_are_named(tmp_path):
    path = tmp_path / "theirs"
    safetensors.save_file({"a": np.ones(2)}, path)
    with pytest.raises(DamagedFile, match="sparsekit recsys export"):
        container.read(path)
    with pytest.raises(FileNotFoundError):
        container.read(tmp_path / "nothing")
