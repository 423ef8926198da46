"""Files read as they should be, and refused in words that help."""

import csv
import gzip
import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.recsys.interactions import id_order
from apps.recsys.reading import Columns, read

GOOD = "user_id,item_id,rating,timestamp\nb,x,4,30\na,y,2.5,10\na,x,5,20\n"


def put(folder, text, name="log.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(log):
    """The table as text, in its order."""
    return [
        (str(log.user_ids[u]), str(log.item_ids[i]))
        for u, i in zip(log.users, log.items, strict=True)
    ]


def test_csv(tmp_path):
    log = read(put(tmp_path, GOOD))
    assert rows(log) == [("b", "x"), ("a", "y"), ("a", "x")]
    assert log.user_ids.tolist() == ["a", "b"]
    assert log.ratings.tolist() == [4, 2.5, 5]
    assert log.timestamps.tolist() == [30, 10, 20]
    assert log.dropped == {}


ids = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029"),
    min_size=1, max_size=7,
)  # fmt: skip


@given(pairs=st.lists(st.tuples(ids, ids), min_size=2, max_size=20))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_an_id(tmp_path, pairs):
    """Commas, quotes, blanks, other scripts: what csv.writer wrote comes back."""
    users, items = {u for u, _ in pairs}, {i for _, i in pairs}
    pairs += [("u1" + min(users), "i1" + min(items))]
    pairs += [("u2" + min(users), "i2" + min(items))]
    path = tmp_path / "log.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user_id", "item_id"), *pairs])
    assert rows(read(path)) == pairs
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    frame.to_parquet(tmp_path / "log.parquet")
    assert rows(read(tmp_path / "log.parquet")) == pairs


def test_forms_agree(tmp_path):
    """CSV, Parquet with numbers and atomic files hold the same interactions."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, 13, 101),
            "item_id": rng.integers(0, 31, 101),
            "rating": rng.integers(1, 6, 101),
            "timestamp": rng.integers(0, 10**9, 101),
        }
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    types = ("token", "token", "float", "float")
    atomic = frame.set_axis(
        [f"{c}:{t}" for c, t in zip(frame, types, strict=True)], axis=1
    )
    atomic.to_csv(tmp_path / "a.inter", index=False, sep="\t")
    first, *others = (read(tmp_path / f"a.{s}") for s in ("csv", "parquet", "inter"))
    assert first.user_ids.tolist() == [str(i) for i in range(13)]  # 9 before 10
    for other in others:
        for field in (
            "users",
            "items",
            "user_ids",
            "item_ids",
            "ratings",
            "timestamps",
        ):
            np.testing.assert_array_equal(getattr(first, field), getattr(other, field))


def test_the_order_of_rows_does_not_matter(tmp_path):
    header, *lines = GOOD.splitlines()
    turned = read(put(tmp_path, "\n".join([header, *lines[::-1]])))
    assert sorted(rows(turned)) == sorted(rows(read(put(tmp_path, GOOD, "b.csv"))))
    assert turned.user_ids.tolist() == ["a", "b"]


def test_atomic_files_have_side_tables_and_no_quotes(tmp_path):
    text = 'user_id:token\titem_id:token\nu1\t"A\nu2\tb\nu1\tb\n'
    put(tmp_path, text, "x.inter")
    put(
        tmp_path,
        'item_id:token\ttitle:token_seq\tyear:float\nb\tThe "B"\t\n"A\tA, a\t1999\n',
        "x.item",
    )
    put(tmp_path, "user_id:token\tzip:token\nu2\t07001\n", "x.user")
    log = read(tmp_path / "x.inter")
    assert log.item_ids.tolist() == ['"A', "b"]
    assert log.titles.tolist() == ["A, a", 'The "B"']
    assert log.item_table["year"][0] == 1999
    assert math.isnan(log.item_table["year"][1])
    assert log.user_table["zip"].isna().tolist() == [True, False]
    assert log.user_table["zip"][1] == "07001"


def test_times(tmp_path):
    text = "user_id,item_id,at\na,x,2001-09-09T01:46:40\nb,y,2001-09-09 01:46:41\n"
    log = read(put(tmp_path, text), Columns(timestamp="at"))
    assert log.timestamps.tolist() == [1e9, 1e9 + 1]
    text = "user_id,item_id,at\na,x,1000000000500\nb,y,1000000001000\n"
    log = read(put(tmp_path, text), Columns(timestamp="at", unit="ms"))
    assert log.timestamps.tolist() == [1e9 + 0.5, 1e9 + 1]
    with pytest.raises(ValueError, match="say unit='ms'"):
        read(put(tmp_path, text), Columns(timestamp="at"))
    moments = pd.to_datetime([1e9, 1e9 + 0.25], unit="s")
    frame = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "at": moments})
    frame.to_parquet(tmp_path / "log.parquet")
    log = read(tmp_path / "log.parquet", Columns(timestamp="at"))
    assert log.timestamps.tolist() == [1e9, 1e9 + 0.25]


@given(
    moments=st.lists(st.integers(0, 4 * 10**9), min_size=2, max_size=8),
    hours=st.lists(st.integers(-12, 14), min_size=8, max_size=8),
    forms=st.lists(st.integers(0, 5), min_size=8, max_size=8),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_spelling_of_a_time_is_the_same_second(tmp_path, moments, hours, forms):
    """As exported: Z, an offset, none (UTC), a blank for T, a number; also mixed."""
    lines = ["user_id,item_id,timestamp"]
    for row, (second, hour, form) in enumerate(zip(moments, hours, forms)):  # noqa: B905
        zone = timezone(timedelta(hours=hour))
        local = datetime.fromtimestamp(second, zone)
        utc = datetime.fromtimestamp(second, UTC)
        text = [
            local.isoformat(), utc.strftime("%Y-%m-%dT%H:%M:%SZ"), str(second),
            utc.strftime("%Y-%m-%d %H:%M:%S"), utc.strftime("%Y%m%dT%H%M%SZ"),
            local.strftime("%Y-%m-%dT%H:%M:%S.000000%z"),
        ][form]  # fmt: skip
        lines.append(f"u{row},i{row},{text}")
    log = read(put(tmp_path, "\n".join(lines) + "\n"))
    assert log.timestamps[np.argsort(log.users)].tolist() == moments


@pytest.mark.parametrize("word", ["now", "today", "yesterday", "NaT", "", "12 May"])
def test_words_are_no_times(tmp_path, word):
    text = f"user_id,item_id,timestamp\na,x,2026-01-01T00:00:00Z\nb,y,{word}\n"
    with pytest.raises(ValueError, match="no ISO 8601 time in row 2"):
        read(put(tmp_path, text))


def test_packed_files(tmp_path):
    """The same as unpacked: rows, name, side tables, complaints."""
    path = put(tmp_path, gzip.compress(GOOD.encode()), "shop.csv.gz")
    log, plain = read(path), read(put(tmp_path, GOOD, "shop.csv"))
    assert rows(log) == rows(plain)
    assert log.name == plain.name == "shop"
    put(tmp_path, "item_id:token\ttitle:token\nx\tAn x\n", "a.item")
    atomic = "user_id:token\titem_id:token\nu\tx\nv\ty\n"
    log = read(put(tmp_path, gzip.compress(atomic.encode()), "a.inter.gz"))
    assert log.titles[0] == "An x"
    torn = GOOD + "b,x\n"
    with pytest.raises(ValueError, match="line 5: 2 field"):
        read(put(tmp_path, gzip.compress(torn.encode()), "torn.csv.gz"))
    latin = GOOD.encode() + b"b,caf\xe9,1,1\n"
    with pytest.raises(ValueError, match="line 5: byte 0xe9"):
        read(put(tmp_path, gzip.compress(latin), "latin.csv.gz"))
    with pytest.raises(ValueError, match=r"false.csv.gz: Not a gzip"):
        read(put(tmp_path, GOOD, "false.csv.gz"))
    with pytest.raises(ValueError, match=r"cut.csv.gz: "):
        read(put(tmp_path, gzip.compress(GOOD.encode())[:-12], "cut.csv.gz"))


def test_a_quoted_header_and_columns_for_two_things(tmp_path):
    text = '"the ""user"", here",sku\na,x\nb,y\n'
    log = read(put(tmp_path, text), Columns(user='the "user", here', item="sku"))
    assert rows(log) == [("a", "x"), ("b", "y")]
    assert rows(read(put(tmp_path, text), Columns(user="sku", item="sku"))) == [
        ("x", "x"), ("y", "y"),
    ]  # fmt: skip


EVENTS = """user_id,item_id,event,timestamp
a,x,buy,1
a,y,view,soon
,z,view,2
b,y,cart,3
b,x,buy,4
b,x,"view",5
"""


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_that_count(tmp_path, form):
    path = put(tmp_path, EVENTS)
    if form == "parquet":
        pd.read_csv(path).to_parquet(tmp_path / "log.parquet")
        path = tmp_path / "log.parquet"
    log = read(path, where={"event": "buy, cart"})  # bad rows of others do not matter
    assert rows(log) == [("a", "x"), ("b", "y"), ("b", "x")]
    assert log.timestamps.tolist() == [1, 3, 4]
    assert log.dropped == {"event is not buy or cart": 3}
    with pytest.raises(ValueError, match=r"did you mean 'buy'.* buy, view, cart"):
        read(path, where={"event": "buys"})
    with pytest.raises(ValueError, match="no column 'evnt'; did you mean 'event'"):
        read(path, where={"evnt": "buy"})
    with pytest.raises(ValueError, match="user id is missing in row 3"):
        read(path, where={"event": "view"})
    log = read(path, where={"event": "buy", "user_id": "a,b"}, bad_rows="drop")
    assert rows(log) == [("a", "x"), ("b", "x")]


BAD = """user_id,item_id,rating,timestamp
a,x,4,1
,x,4,1
b,"",4,1
b,y,nan,1
b,y,4,-3
b,y,four,1
c,z,inf,1
c,z,4,soon
b,y,4,1
"""


def test_bad_rows_are_named(tmp_path):
    with pytest.raises(ValueError, match="missing in row 2") as caught:
        read(put(tmp_path, BAD))
    message = str(caught.value)
    for part in (
        "user id is missing in row 2", "item id is missing in row 3",
        "rating is missing or no finite number in rows 4, 6, 7",
        "no ISO 8601 time in row 8", "timestamp is negative in row 5",
        "bad_rows='drop'",
    ):  # fmt: skip
        assert part in message


def test_bad_rows_are_dropped_and_counted(tmp_path):
    log = read(put(tmp_path, BAD + "a,b,c,d,e\n"), bad_rows="drop")
    assert rows(log) == [("a", "x"), ("b", "y")]
    assert sum(log.dropped.values()) == 8
    assert log.dropped["wrong number of fields"] == 1


def test_parquet_with_missing_values(tmp_path):
    frame = pd.DataFrame({"user_id": [1.0, None, 3.0], "item_id": ["x", "y", None]})
    frame.to_parquet(tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"user id is missing in row 2; item .* row 3"):
        read(tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("user_id,item_id\n", "no rows"),
        ("user_id;item_id\na;x\nb;y\n", "separator seems to be ';'"),
        ("user_id\titem_id\na\tx\nb\ty\n", r"separator seems to be '\\t'"),
        ("user,item_id\na,x\nb,y\n", r"no column 'user_id'.*Columns\(user="),
        ("user_id,item_id\na,x\n\nb,y,z\nb,y\n", r"line 4: 3 field\(s\).* has 2"),
        ("user_id,item_id\na,x\nb\n", r"line 3: 1 field"),
        (b"user_id,item_id\na,x\nb,caf\xe9\n", "line 3: byte 0xe9 is not utf-8"),
        (b"us\xe9r_id,item_id\na,x\n", "line 1: byte 0xe9"),
    ],
)
def test_refusals(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(put(tmp_path, content))


def test_other_refusals(tmp_path):
    path = put(tmp_path, GOOD)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="has no column 'stars' for the rating"):
        read(path, Columns(rating="stars"))
    with pytest.raises(ValueError, match="give its separator"):
        read(put(tmp_path, GOOD, "log.txt"))
    with pytest.raises(ValueError, match="no Parquet file"):
        read(put(tmp_path, GOOD, "log.parquet"))
    with pytest.raises(ValueError, match="unit must be"):
        Columns(unit="min")
    with pytest.raises(ValueError, match="raise or drop"):
        read(path, bad_rows="skip")
    with pytest.raises(ValueError, match="no encoding 'klingon'"):
        read(path, encoding="klingon")


def test_other_encodings_and_separators(tmp_path):
    latin = b"user_id|item_id\na|caf\xe9\nb|y\n"
    log = read(put(tmp_path, latin, "l.txt"), separator="|", encoding="latin-1")
    assert log.item_ids.tolist() == ["café", "y"]
    marked = b"\xef\xbb\xbfuser_id,item_id\r\na,x\r\nb,y\r\n"
    assert rows(read(put(tmp_path, marked))) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    ("given", "sorted_ids"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "07"], ["07", "10", "9"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["99999999999999999999", "9"], ["9", "99999999999999999999"]),
    ],
)
def test_order_of_ids(given, sorted_ids):
    array = np.array(given, object)
    assert array[id_order(array)].tolist() == sorted_ids
