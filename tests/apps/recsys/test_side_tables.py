"""Titles and categories of items from a file of one's own."""

import csv
import gzip

import numpy as np
import pandas as pd
import pytest

from apps.recsys.data import load
from apps.recsys.export import columns_of
from apps.recsys.side_tables import catalogue

IDS = np.array(["7", "07", "x,y", "new"], object)
ROWS = [
    ("title", "price", "cat", "sku"),
    ('Mug "XL", <b>red</b>', "9.50", "1", "07"),
    ("日本のお茶", "", "12", "7"),
    ("second row of it", "1.25", "3", "7"),
    ("", "2", "1", "x,y"),
    ("not sold yet", "2", "9", "later"),
]


def put(folder, form):
    path = folder / f"items.{form}"
    opened = gzip.open if form.endswith("gz") else open
    if form == "parquet":
        frame = pd.DataFrame(ROWS[1:], columns=ROWS[0])
        frame["price"] = pd.to_numeric(frame["price"])
        frame.to_parquet(path)
        return path
    mark = "\ufeff" if form == "csv" else ""
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        file.write(mark)
        csv.writer(file, delimiter="\t" if form == "tsv" else ",").writerows(ROWS)
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "csv.gz", "parquet"])
def test_a_row_for_each_item_in_their_order(tmp_path, form):
    table = catalogue(put(tmp_path, form), IDS, key="sku")
    assert list(table.columns) == ["sku", "title", "price", "cat"]
    assert table["sku"].tolist() == IDS.tolist()
    titles = table["title"].fillna("-").tolist()
    assert titles == ["日本のお茶", 'Mug "XL", <b>red</b>', "", "-"]
    np.testing.assert_array_equal(table["price"], [np.nan, 9.5, 2, np.nan])
    assert table["cat"].fillna("-").tolist() == ["12", "1", "1", "-"]  # to filter by
    texts, tags = columns_of(table)
    assert list(texts) == ["title"]
    assert {name: list(tags[name].values) for name in tags} == {"cat": ["1", "12"]}


def test_numbers_as_ids(tmp_path):
    """Whole numbers, also where a missing one made them floats."""
    frame = pd.DataFrame({"item_id": [3.0, None, 11.0], "title": ["c", "lost", "k"]})
    frame.to_parquet(tmp_path / "items.parquet")
    found = catalogue(tmp_path / "items.parquet", np.array(["3", "11"], object))
    assert found["title"].tolist() == ["c", "k"]


def test_refusals(tmp_path):
    path = put(tmp_path, "csv")
    with pytest.raises(ValueError, match="no column 'item_id' for the item"):
        catalogue(path, IDS)
    with pytest.raises(ValueError, match=r"none of the items.*second row.* there, 7"):
        catalogue(path, IDS, key="title")
    with pytest.raises(FileNotFoundError):
        catalogue(tmp_path / "none.csv", IDS)
    other = tmp_path / "items.xlsx"
    other.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"catalogue is \.csv, \.tsv or \.parquet"):
        catalogue(other, IDS)
    torn = tmp_path / "torn.csv"
    torn.write_text('sku,title\n7,"a\n')
    with pytest.raises(ValueError, match=r"torn\.csv: "):
        catalogue(torn, IDS, key="sku")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("sku,title\n7,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv: .*utf-8"):
        catalogue(latin, IDS, key="sku")
    assert catalogue(latin, IDS, key="sku", encoding="latin-1")["title"][0] == "café"
    with pytest.raises(ValueError, match="files of your own, not ml100k"):
        load("ml100k", catalogue=path)


def test_titles_follow_the_items_through_core_and_split(tmp_path):
    """Every item of the data set has the title that its own row of the file has."""
    rng = np.random.default_rng(0)
    pairs = {(int(u), int(i)) for u, i in rng.integers(0, (13, 31), (211, 2))}
    log = tmp_path / "log.csv"
    lines = [f"u{u},{i},{(u * i) % 7}" for u, i in sorted(pairs)]
    log.write_text("\n".join(["user_id,item_id,rating", *lines]))
    items = tmp_path / "items.csv"
    named = [f"{i},film {i * i}" for i in reversed(range(40))]
    items.write_text("\n".join(["item_id,Film_Title", *named]))
    data = load(log, catalogue=items)
    assert data.titles.tolist() == [f"film {int(i) ** 2}" for i in data.item_ids]
    data = load(log, test=log, catalogue=items)
    assert data.titles.tolist() == [f"film {int(i) ** 2}" for i in data.item_ids]
