"""What each part of an augmentation does: LightGCN, and LLMRec with one part at a time.

    configs = variants(preset("lightgcn-ml100k"), folder, ["text", "edges base"])
    comparison = compare(configs, range(5), trials=1, baseline="lightgcn")

Everything else is LightGCN's, settings included. What a part's weight is was chosen on
the validation part of one split, like LightGCN's own settings; see WEIGHTS.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from apps.recsys.augment import FILE, AugmentConfig, augment
from apps.recsys.augmentation import LLMRecSettings
from apps.recsys.config import Config, Source

NONE = {"chooser": "none", "items": (), "side": "none", "users": "none"}
WEIGHTS = {"items": 0.3, "users": 0.3, "edges": 0.1, "restored": 0.1, "dropped": 0.3}


@dataclass(frozen=True)
class Variant:
    """made: what `augment` makes, beyond nothing at all. used: what training does."""

    made: dict[str, Any] = field(default_factory=dict)
    used: tuple[str, ...] = ()
    keep: str = "easy"

    def settings(self) -> LLMRecSettings:
        """All weights 0 but those that are used."""
        weights = {name: WEIGHTS[name] * (name in self.used) for name in WEIGHTS}
        return LLMRecSettings(**weights, keep=self.keep)


TEXT = {"items": ("text",), "side": "known"}
VARIANTS = {
    "genres": Variant({"items": ("genres",)}, ("items",)),
    "titles": Variant({"items": ("text",)}, ("items",)),
    "text": Variant(TEXT, ("items",)),
    "text restored": Variant(TEXT, ("items", "restored")),
    "profiles": Variant({"users": "genres"}, ("users",)),
    **{
        f"edges {chooser}": Variant({"chooser": chooser, "side": "known"}, ("edges",))
        for chooser in ("base", "random", "popularity", "genres", "encoder",
                        "likelihood")
    },
    **{
        f"keep {which}": Variant({}, ("dropped",), which)
        for which in ("hard", "easy", "middle")
    },
    "all": Variant(
        {**TEXT, "users": "genres", "chooser": "encoder"},
        ("items", "users", "edges", "restored", "dropped"), "hard",
    ),
}  # fmt: skip


def variants(
    plain: Config, folder: Path, names: Iterable[str] = VARIANTS, **changes: Any
) -> dict[str, Config]:
    """{"lightgcn": plain, name: LLMRec with that part, ...}, for `compare`.

    Makes each augmentation in a folder of its own unless it is there. plain: a config
    of lightgcn. changes: of AugmentConfig, for all, as cold=10.

    Raises ValueError for an unknown name.
    """
    names = list(names)
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; known: {', '.join(VARIANTS)}")
    if plain.model != "lightgcn":
        raise ValueError(f"an ablation starts from lightgcn, not from {plain.model}")
    shared = {f.name: getattr(plain, f.name) for f in fields(Source)}
    found = {"lightgcn": plain}
    for name in names:
        out = folder / name.replace(" ", "-")
        made = NONE | VARIANTS[name].made | changes
        if not (out / FILE).is_file():
            augment(AugmentConfig(**(shared | made | {"out": out, "resume": False})))
        found[name] = replace(
            plain, model="llmrec", augmentation=out / FILE,
            llmrec=VARIANTS[name].settings(),
        )  # fmt: skip
    return found
