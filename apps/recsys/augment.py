"""Makes an augmentation: side text, candidates, choices, profiles, features, in a file.

    sparsekit recsys augment --config llmrec-ml100k --out runs/augmented
    sparsekit recsys train --model llmrec \\
        --augmentation runs/augmented/augmentation.safetensors

Everything runs on this machine, unless `endpoint.url` names another. Then see first
what would leave: `--dry-run`. Replies and likelihoods are kept: a run that was killed
goes on where it was, and costs nothing the second time.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apps.common.config import settings
from apps.common.wheels import cache_folder
from apps.recsys.augmentation import Augmentation, Features, fingerprints, save
from apps.recsys.config import Source
from apps.recsys.language import (
    attributes,
    catalogue,
    choosers,
    dry_run,
    edges,
    films,
    profiles,
)
from apps.recsys.language.asking import Budget
from apps.recsys.language.catalogue import Catalogue
from apps.recsys.language.cost import Bill, Prices
from apps.recsys.language.edges import Triplets
from apps.recsys.language.encoder import MiniLM, features
from apps.recsys.language.interface import Prompt
from apps.recsys.language.local import Local
from apps.recsys.language.store import Store
from apps.recsys.models.closed_form import EASE, ItemKNN, Popularity
from apps.recsys.splits import Dataset
from sparsekit import atomic

BASES = {"ease": EASE, "itemknn": ItemKNN, "popularity": Popularity}
FILE = "augmentation.safetensors"


@dataclass(frozen=True)
class EndpointSettings:
    """An OpenAI-compatible server; see `language.endpoint`.

    Args:
        url: up to /v1; "" for the small model on this machine.
        model: the server's name of it.
        key_variable: environment variable with the key.
        local: your word that the model itself runs on this machine.
        allow_remote: data may be sent there.
        concurrency: requests at a time.
        per_minute: requests.
        timeout: seconds for a reply.
        stream: replies in pieces.
        prompt_price: of a million tokens.
        reply_price: of a million tokens.
        most: what each of the steps that ask may cost.
    """

    url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    local: bool = False
    allow_remote: bool = False
    concurrency: int = 4
    per_minute: float | None = None
    timeout: float = 60.0
    stream: bool = False
    prompt_price: float = 0.0
    reply_price: float = 0.0
    most: float | None = None

    @property
    def budget(self) -> Budget:
        return Budget(Prices(self.prompt_price, self.reply_price), self.most)


@dataclass(frozen=True)
class AugmentConfig(Source):
    """Makes what LLMRec adds to interactions, from their training part alone.

    Args:
        base: proposes candidates: ease, itemknn or popularity.
        candidates: a user.
        history: titles of a user that a language model sees, the latest.
        chooser: of a liked and a disliked candidate: none, base (its own order),
            random, popularity, genres, encoder, likelihood (of the small model) or ask.
        cold: users with more training items than this get no triplet and no profile.
        side: known (CC0 text of films), choice (of the small model), ask, or none.
        texts: columns of the catalogue that the encoder reads beside the title, as
            description; they stay on this machine.
        items: item features: text (encoded title, year, genres and side), genres.
        users: their profile, encoded: none, genres (counted), choice or ask.
        noun: what an item is, in prompts.
        endpoint: what `ask` asks.
        dry_run: print what would leave and cost, and stop.
        store: file of replies; default: in the cache folder.
        seed: of the chooser that is random.
        out: folder for the augmentation.
    """

    base: Literal["ease", "itemknn", "popularity"] = "ease"
    candidates: int = 10
    history: int = 10
    chooser: Literal[
        "none", "base", "random", "popularity", "genres", "encoder", "likelihood", "ask"
    ] = "encoder"
    cold: int | None = None
    side: Literal["none", "known", "choice", "ask"] = "known"
    texts: tuple[str, ...] = ()
    items: tuple[Literal["text", "genres"], ...] = ("text",)
    users: Literal["none", "genres", "choice", "ask"] = "none"
    noun: str = "film"
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    dry_run: bool = False
    store: Path | None = None
    seed: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.candidates < 2 or self.history < 1:
            raise ValueError("candidates must be at least 2 and history at least 1")
        asks = "ask" in (self.chooser, self.side, self.users)
        if bool(self.endpoint.url) != asks:
            raise ValueError(
                "endpoint.url is what chooser, side or users = ask asks: give both "
                "or neither"
            )


def augment(config: AugmentConfig) -> tuple[Augmentation, dict[str, Any]]:
    """The augmentation, and a report of how it went; both written to `config.out`.

    Raises ValueError for unusable data or settings; what the endpoint raises.
    """
    with Store(config.store or cache_folder().parent / "replies.db") as store:
        work = Work(config, config.load(), store)
        with work.timed("side text"):
            items = work.items
        with work.timed("triplets"):
            triplets = work.triplets(items)
        with work.timed("features"):
            made = Augmentation(
                work.data.shape, fingerprints(work.data), *asdict(triplets).values(),
                user_features=work.user_features(items),
                item_features=work.item_features(items),
            )  # fmt: skip
    if work.models.tokens or store.found:
        work.report["language model"] = {
            "tokens read": work.models.tokens, "answers kept from before": store.found,
        }  # fmt: skip
    work.report |= {"settings": settings(config), "triplets": len(triplets)}
    if config.out is not None:
        save(config.out / FILE, made)
        report = json.dumps(work.report, indent=1, default=str)
        atomic.write_text(config.out / "report.json", f"{report}\n")
    return made, work.report


class Models:
    """The models on this machine, each loaded when it is first needed."""

    @cached_property
    def encoder(self) -> MiniLM:
        return MiniLM.load()

    @cached_property
    def small(self) -> Local:
        return Local.smollm()

    @property
    def tokens(self) -> int:
        """That the language model has read so far."""
        return self.small.tokens if "small" in vars(self) else 0


class Work:
    """The steps of one run, and what they share."""

    def __init__(
        self, config: AugmentConfig, data: Dataset, store: Store,
        models: Models | None = None,
    ):  # fmt: skip
        self.config, self.data, self.store = config, data, store
        self.models = models or Models()
        self.report: dict[str, Any] = {"seconds": {}}
        self.read = catalogue.histories(data, config.history)
        self.counts = np.bincount(data.train.indices, minlength=data.shape[1])
        sizes = np.diff(data.train.indptr)
        few = sizes <= (sizes.max() if config.cold is None else config.cold)
        self.users = np.flatnonzero(few & (sizes > 0)).tolist()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.report["seconds"][step] = round(time.monotonic() - started, 2)

    @property
    def encoder(self) -> MiniLM:
        return self.models.encoder

    @property
    def small(self) -> Local:
        return self.models.small

    @cached_property
    def remote(self) -> Any:
        from apps.recsys.language.endpoint import Endpoint  # httpx

        chosen = {
            name: value
            for name, value in asdict(self.config.endpoint).items()
            if name not in ("prompt_price", "reply_price", "most")
        }
        return Endpoint(**chosen)

    @cached_property
    def items(self) -> Catalogue:
        """Titles, years, genres, and what `side` says of them."""
        items, how = catalogue.catalogue(self.data), self.config.side
        if self.config.texts:
            items = items.with_side(catalogue.columns(self.data, self.config.texts))
        every = range(len(items))
        if how == "none":
            return items
        known = films.join(items.titles, items.years)
        joined = known.weighted(self.counts)
        self.report["films"] = {"join rate": known.rate, "of interactions": joined}
        if how == "known":
            return items.with_side(known.columns)
        if how == "choice":
            columns = attributes.by_choice(
                self.small, items, every, self.store, noun=self.config.noun,
                progress="attributes",
            )  # fmt: skip
        else:
            found = attributes.by_asking(
                self.remote, items, every, self.store, noun=self.config.noun,
                budget=self.config.endpoint.budget, progress="attributes",
            )  # fmt: skip
            columns = found.columns
            self.note("attributes", found.tally, found.bill)
        self.report["agreement"] = {
            name: _scored(columns[name], known.columns[name]) for name in columns
        }
        return items.with_side(columns)

    def triplets(self, items: Catalogue) -> Triplets:
        """One a user, of those that are `cold` enough."""
        config = self.config
        if config.chooser == "none":
            nobody = np.zeros(0, np.int32)
            return Triplets(nobody, nobody, nobody)
        base = BASES[config.base]().fit(self.data.train)
        offered = edges.candidates(base, self.data, config.candidates)
        offered[np.setdiff1d(np.arange(len(offered)), self.users)] = -1
        if config.chooser == "ask":
            found = edges.by_asking(
                self.remote, items, self.read, offered, self.store, users=self.users,
                noun=config.noun, budget=config.endpoint.budget, progress="choices",
            )  # fmt: skip
            self.note("choices", found.tally, found.bill)
            return found.triplets
        return edges.by_scores(offered, self.scores(items, offered))

    def scores(self, items: Catalogue, offered: np.ndarray) -> np.ndarray:
        """Of candidates, [U, K], by the chooser."""
        chooser = self.config.chooser
        if chooser == "likelihood":
            return edges.likelihood_scores(
                self.small, items, self.read, offered, self.store, users=self.users,
                noun=self.config.noun, progress="likelihoods",
            )  # fmt: skip
        if chooser in ("genres", "encoder"):
            if chooser == "genres":
                vectors = choosers.genre_vectors(items)
            else:
                vectors = self.text_features(items)
            return choosers.similarity(offered, self.read, vectors)
        return {
            "base": lambda: choosers.base_order(offered),
            "random": lambda: choosers.at_random(offered, self.config.seed),
            "popularity": lambda: choosers.popularity(offered, self.counts),
        }[chooser]()

    def text_features(self, items: Catalogue) -> np.ndarray:
        texts = [items.text(i) for i in range(len(items))]
        return self.encoded(texts, "encoding items")

    def encoded(self, texts: list[str], title: str) -> np.ndarray:
        folder = cache_folder().parent / "features"
        return features(self.encoder, texts, folder, progress=title)

    def item_features(self, items: Catalogue) -> Features:
        found = {}
        if "text" in self.config.items:
            found["text"] = self.text_features(items)
        if "genres" in self.config.items:
            found["genres"] = choosers.genre_vectors(items)
        return found

    def user_features(self, items: Catalogue) -> Features:
        """The encoded profile of each user who is `cold` enough, or nothing."""
        config, how = self.config, self.config.users
        if how == "none":
            return {}
        if how == "genres":
            found = profiles.by_counting(items, self.read, users=self.users)
        elif how == "choice":
            found = profiles.by_choice(
                self.small, items, self.read, self.store, users=self.users, prior=True,
                noun=config.noun, progress="profiles",
            )  # fmt: skip
        else:
            asked = profiles.by_asking(
                self.remote, items, self.read, self.store, users=self.users,
                noun=config.noun, budget=config.endpoint.budget, progress="profiles",
            )  # fmt: skip
            found = asked.profiles
            self.note("profiles", asked.tally, asked.bill)
        texts = profiles.as_texts(found, len(self.read))
        return {"profile": self.encoded(texts, "encoding profiles")}

    def note(self, step: str, tally: Any, bill: Bill) -> None:
        """What a step's answers were like, and what they cost."""
        cost = bill.cost(self.config.endpoint.budget.prices)
        self.report[step] = {"answers": asdict(tally), "bill": asdict(bill),
                             "cost": cost}  # fmt: skip


def rehearse(config: AugmentConfig) -> str:
    """What the run would send and cost; nothing is sent, nothing written but a store.

    Counted are first questions: of answers that are not accepted, a second may follow.
    """
    with Store(config.store or cache_folder().parent / "replies.db") as store:
        work = Work(config, config.load(), store)
        items = catalogue.catalogue(work.data)
        asked: list[tuple[list[Prompt], Any]] = []
        if config.side == "ask":
            asked.append(attributes.questions(items, range(len(items)), config.noun))
        if config.chooser == "ask":
            base = BASES[config.base]().fit(work.data.train)
            offered = edges.candidates(base, work.data, config.candidates)
            some, *_ = edges.questions(
                items, work.read, offered, users=work.users, noun=config.noun
            )
            asked.append((list(some.values()), edges.SHORT))
        if config.users == "ask":
            more, _ = profiles.questions(
                items, work.read, users=work.users, noun=config.noun
            )
            asked.append((list(more.values()), profiles.SHORT))
        if not asked:
            return "nothing would leave this machine, and nothing be paid"
        prices = config.endpoint.budget.prices
        return "\n\n".join(
            dry_run.as_text(dry_run.rehearse(work.remote, some, how, store, prices))
            for some, how in asked
        )


def _scored(guesses: tuple[str, ...], truths: tuple[str, ...]) -> dict[str, float]:
    right = attributes.agreement(guesses, truths)
    n = int((~np.isnan(right)).sum())
    return {"right": float(np.nanmean(right)) if n else float("nan"), "of": n}
