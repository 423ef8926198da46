"""What a language model said, judged: accepted, repaired or dropped, and counted why.

    verdict = judge_choice('Sure: {"liked": "c2", "disliked": 7}', offered=10)
    verdict.value, verdict.repairs       # (1, 6), ("text around", "bare number")
    judge_choice('{"liked": "c2", "disliked": "c2"}', offered=10).reason

An answer refers to what it was shown by keys, `c1` ... `cn` for candidates, `m1` ...
for items, so that no line can stand for its neighbour. Nothing that it says gets
further than this: not a number beyond the list, not a title, not a text with line
ends. Which films a model names is therefore limited to those it was offered, whatever a
title told it to do.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apps.recsys.language.titles import comparable

LONGEST = 100_000  # characters of an answer that are looked at
DEEPEST = 20  # levels of nesting; ours have 3
LONGEST_VALUE = 80  # characters of a text that is kept
OBJECTS = 20  # places where an object may begin that are tried
NOTHING = frozenset(
    ("", "unknown", "n/a", "na", "none", "null", "not available", "not specified",
     "unspecified", "various", "?", "-")
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """value: None if the answer is dropped. reason: why. repairs: what was mended."""

    value: Any = None
    reason: str | None = None
    repairs: tuple[str, ...] = ()


@dataclass
class Tally:
    """How it went, to be shown. accepted, dropped: users or items with and without.

    reasons: {why: answers that were not accepted}, also those that a further question
    made good. repaired: {what: answers}. withheld: titles that no model was shown.
    """

    accepted: int = 0
    dropped: int = 0
    withheld: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, verdict: Verdict) -> None:
        if verdict.value is None:
            self.reasons[verdict.reason or "no reason"] += 1
        self.repaired.update(verdict.repairs)


class Unusable(Exception):
    """Why an answer is dropped."""


def json_object(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The first JSON object in a text, and the repairs that this took.

    Raises Unusable: "empty", "too long", "no JSON object", "repeated key", "too deep".
    """
    if len(text) > LONGEST:
        raise Unusable("too long")
    stripped = text.strip()
    if not stripped:
        raise Unusable("empty")
    decoder = json.JSONDecoder(
        object_pairs_hook=_unrepeated, parse_constant=_no_constant
    )
    if _depth(stripped) > DEEPEST:
        raise Unusable("too deep")
    starts = [match.start() for match in re.finditer(r"\{", stripped)][:OBJECTS]
    for start in starts:
        try:
            value, end = decoder.raw_decode(stripped, start)
        except ValueError:
            continue
        around = start > 0 or end < len(stripped)
        return value, ("text around",) if around else ()
    raise Unusable("no JSON object")


def judge_choice(
    text: str, offered: int, titles: Sequence[str] = (), history: Sequence[str] = ()
) -> Verdict:
    """(liked, disliked) as positions among the candidates, from 0.

    Expected is {"liked": "c3", "disliked": "c7"}. Mended: text around it, "C3", 3, "3",
    and the exact title of one candidate. Dropped, with the reason: what is missing or
    no candidate ("out of range", "from the history" by its title or as "h4", "title not
    offered"), and "liked is disliked".

    >>> judge_choice('{"liked": "c3", "disliked": "c1"}', offered=3).value
    (2, 0)
    """
    try:
        answer, repairs = json_object(text)
        picked = []
        for name in ("liked", "disliked"):
            if name not in answer:
                raise Unusable("missing key")
            place, repair = _place(answer[name], offered, titles, history)
            picked.append(place)
            repairs += repair
        if picked[0] == picked[1]:
            raise Unusable("liked is disliked")
    except Unusable as error:
        return Verdict(reason=str(error))
    return Verdict(tuple(picked), repairs=repairs)


def judge_items(
    text: str,
    n_items: int,
    fields: Sequence[str],
    allowed: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Verdict], tuple[str, ...]]:
    """One verdict an item, and the repairs of the whole answer.

    Expected is {"m1": {"country": "..."}, ...}; the value of a verdict is {field: text}
    of the fields that hold something. allowed: {field: the only values}, compared
    without case. Keys that were not asked for are ignored; a list without keys is
    dropped, as nobody can tell whose line is missing.

    >>> verdicts, _ = judge_items('{"m2": {"country": "Italy"}}', 2, ["country"])
    >>> [verdict.value or verdict.reason for verdict in verdicts]
    ['missing item', {'country': 'Italy'}]
    """
    try:
        answer, repairs = json_object(text)
    except Unusable as error:
        return [Verdict(reason=str(error))] * n_items, ()
    keyed = {str(k).strip().casefold(): value for k, value in answer.items()}
    if n_items == 1 and "m1" not in keyed and any(name in answer for name in fields):
        keyed, repairs = {"m1": answer}, (*repairs, "missing level")
    verdicts = []
    for i in range(n_items):
        if f"m{i + 1}" not in keyed:
            verdicts.append(Verdict(reason="missing item"))
        else:
            verdicts.append(_fields(keyed[f"m{i + 1}"], fields, allowed or {}))
    return verdicts, repairs


def judge_profile(
    text: str,
    fields: Mapping[str, int],
    allowed: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """{field: [texts]} of a user, from one JSON object.

    fields: {name: most values}; a longer list is cut, which counts as a repair. allowed
    as in `judge_items`. Dropped if no field holds anything.

    >>> judge_profile('{"liked genres": ["Drama", "War"]}', {"liked genres": 1}).value
    {'liked genres': ['Drama']}
    """
    try:
        answer, repairs = json_object(text)
    except Unusable as error:
        return Verdict(reason=str(error))
    profile: dict[str, list[str]] = {}
    for name, most in fields.items():
        value = answer.get(name)
        values = value if isinstance(value, list) else [value]
        kept = [_text(v, (allowed or {}).get(name)) for v in values[: 10 * most]]
        unique = list(dict.fromkeys(v for v in kept if v is not None))
        if len(unique) < len(values) and value is not None:
            repairs = (*repairs, "values left out")
        if unique[:most]:
            profile[name] = unique[:most]
    if not profile:
        return Verdict(reason="no usable field", repairs=repairs)
    return Verdict(profile, repairs=repairs)


def _place(
    value: Any, offered: int, titles: Sequence[str], history: Sequence[str]
) -> tuple[int, tuple[str, ...]]:
    """Position of a candidate, and how it had to be read."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable("no key")
    text = str(value)[: LONGEST_VALUE * 2].strip()
    if match := re.fullmatch(r"\[?\s*[cC]?(\d{1,9})\s*\]?", text, re.ASCII):
        place = int(match[1]) - 1
        if not 0 <= place < offered:
            raise Unusable("out of range")
        return place, () if text == f"c{place + 1}" else ("bare number",)
    if re.fullmatch(r"[hH]\d+", text, re.ASCII):
        raise Unusable("from the history")
    plain = comparable(text)
    places = [i for i, title in enumerate(titles) if comparable(title) == plain]
    if plain and len(places) == 1:
        return places[0], ("title for a key",)
    if plain and any(comparable(title) == plain for title in history):
        raise Unusable("from the history")
    raise Unusable("title not offered")


def _fields(
    value: Any, fields: Sequence[str], allowed: Mapping[str, Sequence[str]]
) -> Verdict:
    if not isinstance(value, dict):
        return Verdict(reason="item is no object")
    found = {name: _text(value.get(name), allowed.get(name)) for name in fields}
    kept = {name: text for name, text in found.items() if text is not None}
    if not kept:
        return Verdict(reason="no usable field")
    return Verdict(
        kept, repairs=("fields left out",) if len(kept) < len(fields) else ()
    )


def _text(value: Any, allowed: Sequence[str] | None) -> str | None:
    """One line of printable text, as `allowed` spells it; None if it is nothing."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**6:
        value = str(value)
    if not isinstance(value, str) or len(value) > 10 * LONGEST_VALUE:
        return None
    text = unicodedata.normalize("NFC", " ".join(value.split()))
    if text.casefold().rstrip(".") in NOTHING or len(text) > LONGEST_VALUE:
        return None
    if not text.isprintable() or "<|" in text:
        return None
    if allowed is None:
        return text
    spelled = {name.casefold(): name for name in allowed}
    return spelled.get(text.casefold())


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise Unusable("repeated key")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _depth(text: str) -> int:
    """The deepest nesting of brackets; those in strings count too."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if bracket in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest
