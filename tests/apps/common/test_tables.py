"""Tables and intervals as text."""

import io
import math
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from apps.common.comparison import Comparison
from apps.common.statistics import Interval, mean_interval
from apps.common.tables import as_csv, points, shown, table


def test_table_shows_every_cell_once_and_no_row_numbers():
    rows = [{"method": "set", "s": 1.26}, {"method": "rigl", "s": 20.0}]
    html = table(rows, {"s": "{:.1f} s"}).to_html()
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", html)
    assert cells == ["method", "s", "set", "1.3 s", "rigl", "20.0 s"]


class Cells(HTMLParser):
    """The tags within a table's cells, and the text of each cell."""

    def __init__(self, html):
        super().__init__()
        self.inside, self.tags, self.texts = False, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag in ("td", "th"):
            self.inside = True
            self.texts.append("")
        elif self.inside:
            self.tags.append(tag)

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


def test_a_text_is_no_html():
    """A parser of HTML reads each text back as it was, and no tag among them."""
    texts = ["< 0.01", "<b>bold</b>", 'R&D "&lt;"', "<script>alert(1)</script>"]
    cells = Cells(table([{"x < y": text} for text in texts]).to_html())
    assert cells.tags == []
    assert cells.texts == ["x < y", *texts]


def test_a_comparison_as_csv_gives_its_intervals_again():
    """pandas reads it; a label with a comma, a value without its last digit lost."""
    values = {
        "rigl, 90 %": {"ndcg": [1 / 3, 0.5, 0.1], "seconds": [1.0, 2.0, 4.0]},
        "dense": {"ndcg": [0.25, 2 / 7, 0.2]},
    }
    comparison = Comparison((3, 4, 9), values, {}, "dense")
    table = pd.read_csv(io.StringIO(as_csv(comparison.measurements())))
    assert len(table) == 9
    for label, measured in values.items():
        for metric, numbers in measured.items():
            rows = table[(table["run"] == label) & (table["metric"] == metric)]
            assert rows["value"].tolist() == numbers
            assert rows["seed"].tolist() == [3, 4, 9]


def test_cells_wrap_outside_intervals_and_sentences_have_room():
    statement = "Large sparse models beat small dense ones of equal memory."
    rows = [
        {"claim": statement, "measured": "+0.3 [-0.1, +0.7], 5 % less"},
        {"claim": "short", "measured": "+1.3 [+0.9, +1.7]"},
    ]
    html = table(rows).to_html()
    assert "+0.3 [-0.1,\N{NO-BREAK SPACE}+0.7], 5\N{NO-BREAK SPACE}% less<" in html
    assert "nowrap" not in html
    roomy = re.search(r"([^}]*)\{\s*min-width", html)[1]
    assert re.findall(r"row(\d)_col(\d)", roomy) == [("0", "0"), ("1", "0")]
    assert "min-width" not in table([{"n": 1, "measured": "0.5"}]).to_html()


@pytest.mark.parametrize(
    ("rows", "formats", "message"),
    [
        ([], None, "at least one row"),
        ([{"a": 1}], {"b": "{}"}, r"no column 'b'; the table has \['a'\]"),
    ],
)
def test_bad_tables_are_refused(rows, formats, message):
    with pytest.raises(ValueError, match=message):
        table(rows, formats)


def test_intervals_as_text():
    assert shown(Interval(-0.04, -1.26, 1.24, 5), 1) == "0.0 [-1.3, 1.2]"
    assert shown(Interval(0.5, math.nan, math.nan, 1), 1, sign=True) == (
        "+0.5 [+nan, +nan]"
    )
    values = [0.1, 0.15, 0.11]
    interval = mean_interval([100 * v for v in values])
    assert points(values) == (
        f"{interval.value:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
    )
