"""Dots with intervals, as SVG that takes its colours from the page around it."""

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT = 360, 84, 14  # units; a phone shows about one pixel a unit
ROW = 22
MODELS = (
    ("original", "--vermilion", "s"),
    ("unlearned", "--blue", "o"),
    ("retrained", "--green", "d"),
)


class Axis:
    """A horizontal scale from `low` to `high`."""

    def __init__(self, low: float, high: float) -> None:
        room = 0.05 * ((high - low) or 1.0)
        self.low, self.high = low - room, high + room

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT), 1)


def attack_figure(attacks: Sequence[dict[str, Any]]) -> str:
    """AUC of each attack for the three models."""
    values = [0.5]
    for row in attacks:
        for model, _, _ in MODELS:
            values += _numbers(row[model])
    axis = Axis(min(values), max(values))
    parts, y = [], 16
    for row in attacks:
        parts.append(_text(4, y + 4, row["name"], weight="bold"))
        y += ROW
        for model, colour, shape in MODELS:
            parts.append(_text(12, y + 4, model))
            parts.append(_dot(axis, y, row[model], colour, shape))
            y += ROW
    return _drawn(parts, axis, y, 0.5, "AUC", "AUC of each attack on the three models")


def gap_figure(rows: Sequence[dict[str, Any]], margin: str) -> str:
    """The gap of each number, and the margin of the attacks as a band."""
    band = float(margin)
    values = [0.0, -band, band]
    for row in rows:
        values += _numbers(row["gap"])
    axis = Axis(min(values), max(values))
    parts, y = [], 16
    width = round(axis.x(band) - axis.x(-band), 1)
    height = ROW * len(rows)
    parts.append(
        f'<rect x="{axis.x(-band)}" y="5" width="{width}" height="{height}" '
        'fill="var(--line)" opacity="0.4"/>'
    )
    for row in rows:
        parts.append(_text(4, y + 4, row["name"]))
        parts.append(_dot(axis, y, row["gap"], "--blue", "o"))
        y += ROW
    return _drawn(parts, axis, y, 0.0, "gap", "Gap of each number to retraining")


def _numbers(estimate: dict[str, Any]) -> list[float]:
    return [float(v) for v in (estimate[k] for k in ("value", "low", "high")) if v]


def _dot(
    axis: Axis, y: float, estimate: dict[str, Any], colour: str, shape: str
) -> str:
    parts = []
    x = axis.x(float(estimate["value"]))
    if estimate["low"] is not None and estimate["high"] is not None:
        low, high = axis.x(float(estimate["low"])), axis.x(float(estimate["high"]))
        parts.append(
            f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="var({colour})" '
            'stroke-width="2"/>'
        )
    forms = {
        "o": f'<circle cx="{x}" cy="{y}" r="4.5" fill="var({colour})"/>',
        "s": f'<rect x="{x - 4:.1f}" y="{y - 4}" width="8" height="8" '
        f'fill="var({colour})"/>',
        "d": f'<path d="M{x} {y - 6}l6 6l-6 6l-6 -6z" fill="var({colour})"/>',
    }
    return "".join([*parts, forms[shape]])


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = ""
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}"{bold} '
        f'fill="var(--ink)">{escape(text[:20])}</text>'
    )


def _drawn(
    parts: Sequence[str], axis: Axis, y: float, null: float, label: str, title: str
) -> str:
    """The whole drawing, with a line at `null` and three numbers below."""
    bottom = y - 6
    x = axis.x(null)
    lines = [
        f'<line x1="{x}" x2="{x}" y1="4" y2="{bottom}" stroke="var(--soft)" '
        'stroke-dasharray="3 3"/>',
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" '
        'stroke="var(--line)"/>',
    ]
    left, right = axis.x(axis.low), axis.x(axis.high)
    ticks = [_text(left, bottom + 15, f"{axis.low:.2f}")]
    ticks.append(_text(right, bottom + 15, f"{axis.high:.2f}", "end"))
    if left + 40 < x < right - 40:
        ticks.append(_text(x, bottom + 15, f"{null:g}", "middle"))
    ticks.append(_text(4, bottom + 15, label))
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 22}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        + "".join([*lines, *parts, *ticks])
        + "</svg>"
    )
