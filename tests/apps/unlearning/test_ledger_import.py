"""Whose the records are: good files, and rows that are wrong."""

import hashlib
import hmac

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from apps.unlearning.ledger_import import hashed, read_mapping


def test_csv_and_parquet_say_the_same(tmp_path):
    rows = [("c-1", 3), ("c-1", 0), ("ü, x", 9)]
    text = '\ufeffname,record,subject\nJo,3,c-1\n\nJo,0,c-1\nSam,9,"ü, x"\n'
    (tmp_path / "m.csv").write_text(text, "utf-8")
    columns = {"record": [r for _, r in rows], "subject": [s for s, _ in rows]}
    parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert read_mapping(tmp_path / "m.csv", 10) == rows
    assert read_mapping(tmp_path / "m.parquet", 10) == rows
    numbers = {"record": [1], "subject": [1041]}
    parquet.write_table(pa.table(numbers), tmp_path / "n.parquet")
    assert read_mapping(tmp_path / "n.parquet", 10) == [("1041", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,record\na,1\na,x\n", "line 3: record 'x' is no index"),
        ("subject,record\na,-1\n", "line 2: record '-1' is no index"),
        ("subject,record\na,1.0\n", "line 2: record '1.0' is no index"),
        ("subject,record\na,\n", "line 2: record '' is no index"),
        ("subject,record\na,²\n", "line 2: record '²' is no index"),
        ("subject,record\na,10\n", "line 2: record 10 is not among the 10"),
        ("subject,record\na," + "9" * 5000, "line 2: record '999"),
        ("subject,record\n,1\n", "line 2: subject is empty"),
        ("subject,record\n  ,1\n", "line 2: subject is empty"),
        ("subject,record\n" + "a" * 201 + ",1\n", "line 2: subject has 201"),
        ('subject,record\n"a\x07",1\n', "line 2: subject holds control"),
        ("subject,record\na,1\nb,1\na,1\n", "line 4 repeats line 2"),
        ("subject,record\na,1\nb\n", "line 3 has 1 fields"),
        ("subject,record\n", "has no rows"),
        ("subject;record\na;1\n", "needs one column 'subject', has 0"),
        ("subject,record,record\na,1,1\n", "needs one column 'record', has 2"),
        ("", "needs one column 'subject', has 0"),
        ('subject,record\n"a,1\n', "line 2: unexpected end"),
    ],
)
def test_wrong_rows_are_named(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"m\.csv") as error:
        read_mapping(tmp_path / "m.csv", 10)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_mapping(tmp_path / "m.csv", 10)
    (tmp_path / "m.txt").write_text("subject,record\na,1\n")
    with pytest.raises(ValueError, match="must end in"):
        read_mapping(tmp_path / "m.txt", 10)
    (tmp_path / "m.csv").write_bytes(b"subject,record\n\xff,1\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_mapping(tmp_path / "m.csv", 10)
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_mapping(tmp_path / "m.parquet", 10)
    for subject, record, message in (
        ([None], [1], "row 1: subject is empty"),
        (["a", "b"], [1, None], "row 2: record None"),
        (["a"], [1.0], "row 1: record 1.0"),
        (["a"], [True], "row 1: record True"),
    ):
        table = pa.table({"subject": subject, "record": record})
        parquet.write_table(table, tmp_path / "m.parquet")
        with pytest.raises(ValueError, match=message):
            read_mapping(tmp_path / "m.parquet", 10)


def test_the_opaque_id():
    """HMAC by its definition (RFC 2104), with a key shorter than a block."""
    salt = bytes(range(32))
    key = salt.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + b"c-1")
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner.digest())
    assert hashed("c-1", salt) == outer.hexdigest()
    assert hashed("c-1", None) == "c-1"
    assert hmac.compare_digest(hashed("c-1", salt), outer.hexdigest())


@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("m") / "m.csv"
    for content in (noise, b"subject,record\n" + noise):
        path.write_bytes(content)
        try:
            found = read_mapping(path, 10)
        except ValueError:
            continue
        assert all(0 <= record < 10 and subject for subject, record in found)
