"""Item attributes: what a language model says of films, for those who lack it.

    found = by_asking(endpoint, items, range(len(items)), store, ("country",))
    found.columns["country"]                 # text of each item, "" where nothing came
    columns = by_choice(smollm, items, range(60), store)      # from VOCABULARY

A model may be wrong: `agreement` scores guesses where the truth is known.

Wei et al.: LLMRec, 2024, section 3.2. Differs from the paper: answers carry a key an
item, so that a skipped item cannot shift the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from apps.recsys.language import prompts
from apps.recsys.language.answers import Tally, Verdict, judge_items
from apps.recsys.language.asking import Budget, ask, judged
from apps.recsys.language.catalogue import Catalogue
from apps.recsys.language.choosing import Choice, likeliest, likelihoods
from apps.recsys.language.cost import Bill
from apps.recsys.language.interface import (
    Failure,
    LanguageModel,
    LikelihoodModel,
    Prompt,
    Reply,
    Settings,
)
from apps.recsys.language.store import Store
from apps.recsys.language.titles import shown

BATCH = 10  # items a prompt
FIELDS = ("director", "country", "language")
VOCABULARY = {
    "country": (
        "United States", "United Kingdom", "France", "Italy", "Germany", "Spain",
        "Canada", "Australia", "Japan", "Hong Kong", "China", "India", "Russia",
        "Sweden", "Denmark", "Ireland", "Mexico", "New Zealand",
    ),
    "language": (
        "English", "French", "Italian", "German", "Spanish", "Japanese", "Cantonese",
        "Mandarin", "Hindi", "Russian", "Swedish", "Danish", "Portuguese", "Polish",
    ),
}  # fmt: skip
STATEMENTS = {
    "country": "{what} was made in the country:",
    "language": "The language spoken in {what} is:",
}


@dataclass(frozen=True)
class Attributes:
    """columns: {field: text of every item, "" if none came}. tally: of items."""

    columns: dict[str, tuple[str, ...]]
    tally: Tally
    bill: Bill


def by_asking(
    model: LanguageModel,
    items: Catalogue,
    which: Sequence[int],
    store: Store,
    fields: Sequence[str] = FIELDS,
    *,
    allowed: Mapping[str, Sequence[str]] | None = None,
    batch: int = BATCH,
    settings: Settings | None = None,
    tries: int = 2,
    noun: str = "film",
    budget: Budget | None = None,
    progress: str | None = None,
) -> Attributes:
    """Attributes of some items, `batch` of them a prompt.

    allowed: {field: the only values}. settings: default 40 tokens an item and field.
    What was not answered is asked for again, in smaller batches, `tries` times in all.
    """
    settings = settings or _settings(batch, fields)
    showable = items.showable()
    waiting = [int(i) for i in which if showable[i]]
    tally, bill = Tally(withheld=len(which) - len(waiting)), Bill()
    found: dict[int, dict[str, str]] = {}
    for attempt in range(tries):
        batches = _batches(waiting, max(1, batch >> 2 * attempt))
        asked = [prompts.attributes(items, some, fields, noun) for some in batches]
        if attempt:
            asked = [prompts.again(prompt, "items were missing") for prompt in asked]
        replies, cost = ask(
            model, asked, settings, store, budget=budget,
            progress=progress if waiting else None,
        )  # fmt: skip
        bill.add(cost)
        waiting = []
        for some, reply in zip(batches, replies, strict=True):
            for item, verdict in zip(
                some, _verdicts(reply, len(some), fields, allowed, tally), strict=True
            ):
                if verdict.value is not None:
                    found[item] = verdict.value
                elif isinstance(reply, Reply):
                    waiting.append(item)
    tally.accepted, tally.dropped = len(found), len(which) - len(found)
    columns = {
        name: tuple(found.get(i, {}).get(name, "") for i in range(len(items)))
        for name in fields
    }
    return Attributes(columns, tally, bill)


def questions(
    items: Catalogue, which: Sequence[int], noun: str = "film"
) -> tuple[list[Prompt], Settings]:
    """The first prompts of `by_asking` with its defaults, and their settings."""
    showable = items.showable()
    batches = _batches([int(i) for i in which if showable[i]], BATCH)
    asked = [prompts.attributes(items, some, FIELDS, noun) for some in batches]
    return asked, _settings(BATCH, FIELDS)


def by_choice(
    model: LikelihoodModel,
    items: Catalogue,
    which: Sequence[int],
    store: Store,
    vocabulary: Mapping[str, Sequence[str]] = VOCABULARY,
    *,
    prior: bool = False,
    noun: str = "film",
    progress: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """{field: text of every item}: the value that is likeliest after the title.

    prior: take away the log-probability that a value has without a title, so that the
    most frequent word does not always win. "" for items that are not in `which`.
    """
    showable = items.showable()
    chosen = [int(i) for i in which if showable[i]]
    columns = {}
    for name, values in vocabulary.items():
        options = tuple(f" {value}" for value in values)
        contexts = [_statement(name, _about(items, i, noun)) for i in chosen]
        before = None
        if prior:
            unknown = Choice(_statement(name, f"the {noun}"), options)
            before = likelihoods(model, [unknown], store)[0]
        found = likelihoods(
            model, [Choice(context, options) for context in contexts], store,
            progress=progress and f"{progress}: {name}",
        )  # fmt: skip
        texts = dict.fromkeys(range(len(items)), "")
        for item, likely in zip(chosen, found, strict=True):
            texts[item] = values[likeliest(likely, before)]
        columns[name] = tuple(texts.values())
    return columns


def agreement(guesses: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """[n] float64: 1 where a guess is the truth or one of several, separated by commas.

    NaN where nothing was guessed or nothing is known.

    >>> agreement(["Peru", "Italy", ""], ["peru, Chile", "Peru", "Italy"]).tolist()
    [1.0, 0.0, nan]
    """
    right = np.full(len(guesses), np.nan)
    for i, (guess, truth) in enumerate(zip(guesses, truths, strict=True)):
        if guess and truth:
            known = {name.strip().casefold() for name in truth.split(",")}
            right[i] = guess.strip().casefold() in known
    return right


def _settings(batch: int, fields: Sequence[str]) -> Settings:
    return Settings(max_tokens=40 * batch * len(fields))


def _batches(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _verdicts(
    reply: Reply | Failure,
    n_items: int,
    fields: Sequence[str],
    allowed: Mapping[str, Sequence[str]] | None,
    tally: Tally,
) -> list[Verdict]:
    """One an item; what went wrong with the whole answer counts for each of them."""
    verdicts: list[Verdict] = []

    def judge(text: str) -> Verdict:
        each, repairs = judge_items(text, n_items, fields, allowed)
        verdicts.extend(each)
        return Verdict(value=True, repairs=repairs)

    whole = judged(reply, judge)
    tally.repaired.update(whole.repairs)
    verdicts = verdicts or [whole] * n_items
    for verdict in verdicts:
        tally.note(verdict)
    return verdicts


def _about(items: Catalogue, item: int, noun: str) -> str:
    year = f" ({items.years[item]})" if items.years[item] else ""
    return f"the {noun} '{shown(items.titles[item]).text}'{year}"


def _statement(field: str, what: str) -> str:
    """The beginning of a sentence that goes on with the field's value."""
    text = STATEMENTS.get(field, f"The {field} of {{what}} is:").format(what=what)
    return text[0].upper() + text[1:]
