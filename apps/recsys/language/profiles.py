"""User profiles: what a language model thinks of somebody with this history.

    found = by_asking(endpoint, items, read, store)
    found.profiles[7]                        # {"liked genre": ["Drama"], ...}
    texts = as_texts(found.profiles, n_users)        # for the encoder
    by_choice(smollm, items, read, store, users=cold)

These are guesses about people, age and gender among them: keep them where you would
keep the facts. MovieLens-100k has the facts, so guesses can be scored with `agreement`.

Wei et al.: LLMRec, 2024, section 3.2.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apps.recsys.language import prompts
from apps.recsys.language.answers import Tally, Verdict, judge_profile
from apps.recsys.language.asking import Budget, ask_until_accepted
from apps.recsys.language.catalogue import Catalogue
from apps.recsys.language.choosing import Choice, likeliest, likelihoods
from apps.recsys.language.cost import Bill
from apps.recsys.language.edges import Histories, liked_context
from apps.recsys.language.interface import (
    LanguageModel,
    LikelihoodModel,
    Prompt,
    Settings,
)
from apps.recsys.language.store import Store

Profile = dict[str, list[str]]
AGES = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 and older")
GENDERS = ("female", "male")
FIELDS = {
    "age": 1, "gender": 1, "liked genres": 3, "disliked genres": 3,
    "liked directors": 3, "country": 1, "language": 1,
}  # fmt: skip
STATEMENTS = {
    "liked genres": "My favourite genre is",
    "disliked genres": "The genre that I like least is",
    "age": "My age is",
    "gender": "My gender is",
}


SHORT = Settings(max_tokens=200)


@dataclass(frozen=True)
class Profiles:
    """profiles: {user: {field: texts}} of those that were accepted."""

    profiles: dict[int, Profile]
    tally: Tally
    bill: Bill


def vocabulary(items: Catalogue) -> dict[str, tuple[str, ...]]:
    """The only values that some fields may have; genres are the catalogue's."""
    genres = items.all_genres
    found = {"age": AGES, "gender": GENDERS}
    if genres:
        found |= {"liked genres": genres, "disliked genres": genres}
    return found


def by_asking(
    model: LanguageModel,
    items: Catalogue,
    read: Histories,
    store: Store,
    fields: Mapping[str, int] = FIELDS,
    *,
    users: Sequence[int] | None = None,
    settings: Settings = SHORT,
    tries: int = 2,
    noun: str = "film",
    budget: Budget | None = None,
    progress: str | None = None,
) -> Profiles:
    """Profiles of users from the titles they liked.

    fields: {name: most values}; leave out what you need not guess. users: default all
    with a history.
    """
    allowed = {k: v for k, v in vocabulary(items).items() if k in fields}
    asked, withheld = questions(items, read, fields, users=users, noun=noun)

    def judge(_user: int, text: str) -> Verdict:
        return judge_profile(text, fields, allowed)

    found, tally, bill = ask_until_accepted(
        model, asked, judge, settings, store, tries=tries, budget=budget,
        progress=progress,
    )  # fmt: skip
    tally.withheld = withheld
    return Profiles(found, tally, bill)


def questions(
    items: Catalogue,
    read: Histories,
    fields: Mapping[str, int] = FIELDS,
    *,
    users: Sequence[int] | None = None,
    noun: str = "film",
) -> tuple[dict[int, Prompt], int]:
    """{user: prompt}, and the number of titles withheld."""
    allowed = {k: v for k, v in vocabulary(items).items() if k in fields}
    showable = items.showable()
    asked: dict[int, Prompt] = {}
    hidden: set[int] = set()
    for user in range(len(read)) if users is None else users:
        hidden.update(int(i) for i in read[user] if not showable[i])
        history = [int(i) for i in read[user] if showable[i]]
        if history:
            asked[user] = prompts.profile(items, history, fields, allowed, noun)
    return asked, len(hidden)


def by_choice(
    model: LikelihoodModel,
    items: Catalogue,
    read: Histories,
    store: Store,
    fields: Sequence[str] = ("liked genres", "disliked genres"),
    *,
    users: Sequence[int] | None = None,
    prior: bool = False,
    noun: str = "film",
    progress: str | None = None,
) -> dict[int, Profile]:
    """{user: {field: [the likeliest value]}}, from the values of `vocabulary`.

    prior: as in `attributes.by_choice`, from a history of no titles.
    """
    values = vocabulary(items)
    for name in fields:
        if name not in values or name not in STATEMENTS:
            raise ValueError(f"no choice for {name!r}; fields: {', '.join(values)}")
    showable = items.showable()
    chosen = {
        user: [int(i) for i in read[user] if showable[i]]
        for user in (range(len(read)) if users is None else users)
    }
    chosen = {user: history for user, history in chosen.items() if history}
    found: dict[int, Profile] = {user: {} for user in chosen}
    for name in fields:
        options = tuple(f" {value}" for value in values[name])
        asked = [
            Choice(_told(liked_context(items, h, noun), name), options)
            for h in chosen.values()
        ]
        unknown = Choice(_told(f"I like {noun}s.", name), options)
        before = likelihoods(model, [unknown], store)[0] if prior else None
        title = progress and f"{progress}: {name}"
        each = likelihoods(model, asked, store, progress=title)
        for user, likely in zip(chosen, each, strict=True):
            found[user][name] = [values[name][likeliest(likely, before)]]
    return found


def by_counting(
    items: Catalogue,
    read: Histories,
    most: int = 3,
    *,
    users: Sequence[int] | None = None,
) -> dict[int, Profile]:
    """{user: {"liked genres": the most frequent ones}}: the control without a model.

    Of equally frequent genres the rarer in the catalogue counts first.
    """
    rarity = {genre: -k for k, genre in enumerate(items.all_genres)}
    found = {}
    for user in range(len(read)) if users is None else users:
        counts = Counter(genre for i in read[user] for genre in items.genres[i])
        ranked = sorted(counts, key=lambda g: (-counts[g], rarity[g]))
        if ranked:
            found[user] = {"liked genres": ranked[:most]}
    return found


def as_texts(profiles: Mapping[int, Profile], n_users: int) -> list[str]:
    """A line for each user, "" for those without a profile.

    >>> as_texts({1: {"liked genres": ["Drama", "War"], "age": ["25-34"]}}, 2)
    ['', 'Liked genres: Drama, War. Age: 25-34.']
    """
    texts = [""] * n_users
    for user, profile in profiles.items():
        parts = [f"{n.capitalize()}: {', '.join(v)}." for n, v in profile.items()]
        texts[user] = " ".join(parts)
    return texts


def _told(context: str, field: str) -> str:
    """A history, and the beginning of a sentence about a field."""
    told = context.removesuffix(" I also like:")
    return f"{told} {STATEMENTS[field]}"
