"""Tables on a page, and means with their intervals as text.

table([{"method": "rigl", "accuracy %": points(accuracies, sign=False)}])
"""

import csv
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.common.statistics import Interval, Values, mean_interval
from sparsekit import columns

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

SENTENCE = 40  # characters: what is longer than this needs a column of some width
INTERVAL, PERCENT = re.compile(r"\[[^][]*\]"), re.compile(r"(?<=\d) ?%")


def table(
    rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str] | None = None
) -> "Styler":
    """Rows as a table without row numbers.

    Where a page is narrow, cells wrap, but not within an interval. Text is shown as it
    is: a rule such as `< 0.01` or a title with `<b>` in it is no HTML.

    rows: dicts with the same keys, which become the header. formats: {column: format},
    such as {"seconds": "{:.1f}"}.

    Raises ValueError for no rows, or a format of a column that is not there.
    """
    import pandas as pd

    if not rows:
        raise ValueError("a table needs at least one row")
    unknown = sorted(set(formats or {}) - set(rows[0]))
    if unknown:
        raise ValueError(f"no column {unknown[0]!r}; the table has {list(rows[0])}")
    frame = pd.DataFrame([{k: as_html(v) for k, v in row.items()} for row in rows])
    style = frame.style.format(formats or {})
    style.relabel_index([as_html(column) for column in rows[0]], axis="columns")
    long = [
        column
        for column in rows[0]
        if any(len(str(row.get(column, ""))) > SENTENCE for row in rows)
    ]
    style.set_properties(subset=long, **{"min-width": "13em"})
    cells = "padding: 0.2em 0.6em; text-align: left; font-size: 0.92em"
    return style.hide(axis="index").set_table_styles(
        [{"selector": "th, td", "props": cells}]
    )


def as_html(value: Any) -> Any:
    """A text as HTML that says just this; other values as they are.

    >>> as_html("< 0.01")
    '&lt; 0.01'
    """
    return html.escape(unbroken(value)) if isinstance(value, str) else value


def unbroken(value: Any) -> Any:
    """A text whose intervals and percentages hold together on one line.

    >>> unbroken("9% [8, 10]") == "9~% [8,~10]".replace("~", "\N{NO-BREAK SPACE}")
    True
    """
    if not isinstance(value, str):
        return value
    text = PERCENT.sub("\N{NO-BREAK SPACE}%", value)
    return INTERVAL.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows as lines of plain text: a header, a rule, columns two blanks apart.

    >>> aligned([{"run": "rigl", "s": "1.5"}])
    ['run   s', '----  ---', 'rigl  1.5']
    """
    titles = list(rows[0])
    rule = ["-" * max(len(k), *(len(r[k]) for r in rows)) for k in titles]
    return columns.aligned([titles, rule, *([r[k] for k in titles] for r in rows)])


def plain(rows: Sequence[Mapping[str, str]], *notes: str) -> str:
    """Rows as text that ends in a newline, and below them what is to be said."""
    return "\n".join([*aligned(rows), *notes]) + "\n"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV with a header; None is an empty cell.

    >>> as_csv([{"run": "a, b", "value": 0.5}])
    'run,value\\r\\n"a, b",0.5\\r\\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def percent(interval: Interval, sign: bool = False) -> str:
    """Interval of a fraction in percent; the value alone if it has no interval.

    >>> percent(Interval(0.932, 0.92, 0.944, 5))
    '93.2 [92.0, 94.4]'
    """
    form = "+.1f" if sign else ".1f"
    ends = (interval.value, interval.low, interval.high)
    if any(math.isnan(end) for end in ends):
        return format(100 * interval.value, form)
    value, low, high = (format(100 * v, form) for v in ends)
    return f"{value} [{low}, {high}]"


def shown(interval: Interval, digits: int = 2, sign: bool = False) -> str:
    """An interval as text.

    >>> shown(mean_interval([0.90, 0.92, 0.94]))
    '0.92 [0.87, 0.97]'
    """
    form = f"{'+' if sign else ''}.{digits}f"
    ends = (interval.value, interval.low, interval.high)
    # Adding 0 after rounding leaves no "-0.0".
    value, low, high = (format(round(end, digits) + 0.0, form) for end in ends)
    return f"{value} [{low}, {high}]"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, which 0 and what rounds to it have not.

    >>> signed(-1.26), signed(0.04), signed(-0.04)
    ('-1.3', '0.0', '0.0')
    """
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def points(values: Values, digits: int = 1, sign: bool = True) -> str:
    """Fractions, one a seed: their mean in percent points with its 95 % interval.

    >>> points([0.01, 0.02, 0.03]), points([0.91, 0.92, 0.93], sign=False)
    ('+2.0 [-0.5, +4.5]', '92.0 [89.5, 94.5]')
    """
    return shown(mean_interval(100 * np.asarray(values)), digits, sign)
