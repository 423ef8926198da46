"""What each part of an augmentation does: LightGCN, and LLMRec with one part at a time.

    mixed = Ingredients.load(folder, split=100)
    trials = [config(plain, mixed, "text", k, work) for k in range(TRIALS)]
    result, values = trained(trials)
    sliced(result.evaluation, result.data, mixed.cold)

Everything else is LightGCN's, settings included. How much a part weighs is one of three
settings, of which the validation part chooses; LightGCN has as many, of its penalty.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from apps.recsys.augmentation import LLMRecSettings, save
from apps.recsys.config import Config
from apps.recsys.evaluation import Evaluation, of_items
from apps.recsys.ingredients import Ingredients
from apps.recsys.metrics import by_popularity
from apps.recsys.result import CHOSEN_BY, Result
from apps.recsys.splits import Dataset
from apps.recsys.train import train
from sparsekit.spelling import choice

TRIALS = 3
WEIGHTS = {
    "items": (0.1, 0.3, 1.0),
    "users": (0.1, 0.3, 1.0),
    "edges": (0.1, 0.3, 1.0),
    "restored": (0.03, 0.1, 0.3),
    "dropped": (0.1, 0.3, 0.7),
}
PENALTIES = (0.001, 0.003, 0.01)  # of LightGCN


@dataclass(frozen=True)
class Variant:
    """Which parts. "" for none; the names are those of `Ingredients`.

    shuffled: every item has another item's features. cold: profiles and edges of cold
    users only. keep: what noise pruning keeps. restored: whether masked features are.
    """

    items: str = ""
    users: str = ""
    edges: str = ""
    shuffled: bool = False
    cold: bool = False
    keep: Literal["", "hard", "easy", "middle", "random"] = ""
    restored: bool = False

    def settings(self, trial: int) -> LLMRecSettings:
        """All weights 0 but those of its parts."""
        weights = {
            name: values[trial] * bool(part)
            for (name, values), part in zip(WEIGHTS.items(), self.parts, strict=True)
        }
        return LLMRecSettings(**weights, keep=self.keep or "easy")

    @property
    def parts(self) -> tuple[str | bool, ...]:
        """In the order of WEIGHTS."""
        return self.items, self.users, self.edges, self.restored, self.keep


PUBLISHED = {"keep": "hard", "restored": True}
LM = Variant("text_lm", "lm", "lm")
NO_LM = Variant("text", "counted", "encoder", cold=True)
VARIANTS: dict[str, Variant] = {  # what is asked for first comes first
    "text": Variant("text"),
    "text shuffled": Variant("text", shuffled=True),
    "text restored": Variant("text", restored=True),
    "llmrec": replace(LM, **PUBLISHED),
    "llmrec, none pruned": replace(LM, restored=True),
    "without lm": replace(NO_LM, **PUBLISHED),
    "cold edges lm": Variant(edges="lm"),
    "cold edges random": Variant(edges="random", cold=True),
    "edges base": Variant(edges="base"),
    "edges random": Variant(edges="random"),
    "noisy, easy kept": Variant(edges="random", keep="easy"),
    "noisy, hard kept": Variant(edges="random", keep="hard"),
    "profiles lm": Variant(users="lm"),
    "text lm": Variant("text_lm"),
    "edges encoder": Variant(edges="encoder"),
    "genres": Variant("genres"),
    "titles": Variant("titles"),
    "profiles": Variant(users="counted"),
    "keep hard": Variant(keep="hard"),
    "keep easy": Variant(keep="easy"),
    "keep random": Variant(keep="random"),
    "edges popularity": Variant(edges="popularity"),
    "cold profiles": Variant(users="counted", cold=True),
    "noisy, random kept": Variant(edges="random", keep="random"),
    "edges genres": Variant(edges="genres"),
    "llmrec, easy kept": replace(LM, keep="easy", restored=True),
    "without lm, none pruned": replace(NO_LM, restored=True),
    "cold edges base": Variant(edges="base", cold=True),
    "cold edges encoder": Variant(edges="encoder", cold=True),
    "keep middle": Variant(keep="middle"),
    "cold edges popularity": Variant(edges="popularity", cold=True),
    "cold edges genres": Variant(edges="genres", cold=True),
    "llmrec, not restored": replace(LM, keep="hard"),
}


def needs_lm(name: str) -> bool:
    """Whether a language model made a part of it."""
    variant = VARIANTS.get(name, Variant())
    return any("lm" in str(part) for part in variant.parts)


def lm_files(name: str, split: int) -> list[str]:
    """Files of ingredients by a language model that a variant is mixed from."""
    variant, found = VARIANTS.get(name, Variant()), []
    if variant.items == "text_lm":
        found.append("items-lm")
    if "lm" in (variant.users, variant.edges):
        found.append(f"split-{split}-lm")
    return found


def config(
    plain: Config, mixed: Ingredients, name: str, trial: int, folder: Path
) -> Config:
    """Trial 0, 1 or 2 of "lightgcn" or a variant; its augmentation goes to `folder`.

    Raises ValueError for an unknown name, or if `plain` is no lightgcn.
    """
    if plain.model != "lightgcn":
        raise ValueError(f"an ablation starts from lightgcn, not from {plain.model}")
    if name == "lightgcn":
        return replace(plain, l2=PENALTIES[trial])
    if name not in VARIANTS:
        known = ("lightgcn", *VARIANTS)
        raise ValueError(choice(f"no variant {name!r}", name, known))
    path = folder / f"{name.replace(' ', '-')}.safetensors"
    variant = VARIANTS[name]
    if not path.is_file():
        save(path, mixed.augmentation(
            items=variant.items, users=variant.users, edges=variant.edges,
            shuffled=variant.shuffled, cold=variant.cold,
        ))  # fmt: skip
    return replace(
        plain, model="llmrec", augmentation=path, llmrec=variant.settings(trial)
    )


def trained(configs: Sequence[Config]) -> tuple[Result, list[float]]:
    """Of these trials the one with the best NDCG@20 on validation; all their values."""
    results = [train(one) for one in configs]
    values = [
        max(row[CHOSEN_BY] for row in result.history if row.get("eligible"))
        for result in results
    ]
    return results[int(np.argmax(values))], values


def sliced(evaluation: Evaluation, data: Dataset, cold: np.ndarray) -> dict[str, float]:
    """NDCG@20 and recall@20 of all, and NDCG@20 of slices.

    cold: [U] bool; the other users are warm. tail, middle, head: of the test part the
    items that few, some, many users have in train; in the same lists.
    """
    found = {name: evaluation.means[name] for name in ("ndcg@20", "recall@20")}
    each = evaluation.values["ndcg@20"]
    found |= {
        "cold": float(np.nanmean(each[cold])), "warm": float(np.nanmean(each[~cold])),
    }  # fmt: skip
    for name, chosen in by_popularity(data.train).items():
        part = of_items(evaluation, data, chosen, [20])["ndcg@20"]
        found[name] = float(np.nanmean(part))
    return found
