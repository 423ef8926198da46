"""Makes the ingredients of an ablation, with a language model for some of the splits.

    make(folder, Source(), splits=range(100, 110), lm=range(100, 106))

What the models say is kept as soon as it is computed, and a file that is there is not
made again: an interrupted run goes on.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from apps.common.wheels import cache_folder
from apps.recsys.augment import AugmentConfig, Models, Work
from apps.recsys.augmentation import fingerprints
from apps.recsys.config import Source
from apps.recsys.ingredients import by_user, path_of
from apps.recsys.language import attributes, choosers, profiles
from apps.recsys.language.catalogue import Catalogue, catalogue
from apps.recsys.language.store import Store
from sparsekit import atomic

COLD = 12  # training items that a cold user has at most
CHOOSERS = ("base", "random", "popularity", "genres", "encoder")


def make(
    folder: Path,
    source: Source,
    splits: Sequence[int],
    *,
    lm: Sequence[int] = (),
    texts: bool = True,
    cold: int = COLD,
    store: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Writes what `Ingredients` reads.

    splits: split seeds. lm: those for which the language model works too; it is asked
    about users with at most `cold` training items. texts: False for nothing that is
    encoded. say: is told what each file cost, in seconds and in tokens.
    """
    with Store(store or cache_folder().parent / "replies.db") as kept:
        maker = _Maker(Path(folder), source, kept, texts, cold, say)
        for split in splits:
            maker.once(f"split-{split}", lambda split=split: maker.counted(split))
        if splits:
            maker.once("items", lambda: maker.items(splits[0]))
        if lm:
            maker.once("items-lm", lambda: maker.items_lm(lm[0]))
        for split in lm:
            maker.once(f"split-{split}-lm", lambda split=split: maker.chosen(split))


@dataclass
class _Maker:
    folder: Path
    source: Source
    store: Store
    texts: bool
    cold: int
    say: Callable[[str], None]
    models: Models = field(default_factory=Models)

    def once(self, name: str, arrays: Callable[[], dict[str, np.ndarray]]) -> None:
        path = path_of(self.folder, name)
        if path.is_file():
            return
        started, tokens = time.monotonic(), self.models.tokens
        made = arrays()
        atomic.write(path, lambda file: np.savez_compressed(file, **made))
        seconds = round(time.monotonic() - started, 1)
        row = {"file": name, "seconds": seconds, "tokens": self.models.tokens - tokens}
        self.say(json.dumps(row))

    def work(self, split: int, **changes: object) -> Work:
        config = AugmentConfig(
            dataset=self.source.dataset, core=self.source.core, split_seed=split,
            seed=split, **changes,
        )  # fmt: skip
        return Work(config, config.load(), self.store, self.models)

    @cached_property
    def known(self) -> Catalogue:
        """With film facts. Items are the same in all splits."""
        work = self.work(self.source.split_seed)
        return work.items if self.texts else catalogue(work.data)

    def items(self, split: int) -> dict[str, np.ndarray]:
        work = self.work(split)
        bare = catalogue(work.data)
        found = {"genres": choosers.genre_vectors(bare)}
        if self.texts:
            found["titles"] = work.text_features(bare)
            found["text"] = work.text_features(self.known)
        return found

    def items_lm(self, split: int) -> dict[str, np.ndarray]:
        """The country alone: the small model says English of nearly every film."""
        work = self.work(split)
        bare = catalogue(work.data)
        columns = attributes.by_choice(
            work.small, bare, range(len(bare)), self.store,
            {"country": attributes.VOCABULARY["country"]}, progress="attributes",
        )  # fmt: skip
        return {"text_lm": work.text_features(bare.with_side(columns))}

    def counted(self, split: int) -> dict[str, np.ndarray]:
        """Profiles and edges that need no language model, of all users."""
        everybody = self.work(split, chooser="random")
        n_users = everybody.data.shape[0]
        cold = np.zeros(n_users, bool)
        cold[self.work(split, cold=self.cold).users] = True
        found = {
            "shape": np.array(everybody.data.shape),
            "made_from": np.array(fingerprints(everybody.data)),
            "cold": cold,
        }
        for chooser in CHOOSERS if self.texts else CHOOSERS[:-1]:
            triplets = self.work(split, chooser=chooser).triplets(self.known)
            found[f"edges.{chooser}"] = by_user(n_users, *vars(triplets).values())
        if self.texts:
            guessed = profiles.by_counting(self.known, everybody.read)
            found |= _profile("counted", profiles.as_texts(guessed, n_users), everybody)
        return found

    def chosen(self, split: int) -> dict[str, np.ndarray]:
        """Profiles and edges by the language model, of cold users."""
        work = self.work(split, cold=self.cold, chooser="likelihood")
        items, n_users = catalogue(work.data), work.data.shape[0]
        triplets = work.triplets(items)
        guessed = profiles.by_choice(
            work.small, items, work.read, self.store, ("liked genres",),
            users=work.users, prior=True, progress="profiles",
        )  # fmt: skip
        edges = by_user(n_users, *vars(triplets).values())
        texts = profiles.as_texts(guessed, n_users)
        return {"edges.lm": edges, **_profile("lm", texts, work)}


def _profile(name: str, texts: list[str], work: Work) -> dict[str, np.ndarray]:
    """Rows of the different texts, and whose they are."""
    unique = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(unique)}
    return {
        f"{name}.rows": work.encoded(unique, "encoding profiles"),
        f"{name}.of": np.array([place[text] for text in texts], np.int32),
    }
