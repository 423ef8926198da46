"""What the variants of an ablation are mixed from, for several splits, in a folder.

    mixed = Ingredients.load(folder, 100)
    mixed.augmentation(items="text", edges="random", cold=True)

`preparation.make` writes them: a file for the items, a small one for each split.
Whoever trains needs these files, and neither a language model nor an encoder.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.common.arrays import open_arrays
from apps.recsys.augmentation import Augmentation, Features

NOBODY = -1


@dataclass(frozen=True)
class Ingredients:
    """What is known for one split.

    items: {"genres", "titles", "text", "text_lm"}, [I, d]: genres as numbers, and
    encoded texts: title, year and genres; with film facts; with what a language model
    says instead. users: {"counted", "lm"}, [U, d]: encoded profiles, of the most
    frequent genres, and of those that the model chose, for cold users. edges: {name of
    a chooser, or "lm" for cold users: [2, U] int32}, liked and disliked, -1 for none.
    cold: [U] bool.
    """

    shape: tuple[int, int]
    made_from: tuple[str, ...]
    cold: np.ndarray
    items: Features
    users: Features
    edges: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: Path, split: int) -> "Ingredients":
        """Raises FileNotFoundError that names the missing file."""
        items = _read(folder, "items") | _read(folder, "items-lm", optional=True)
        one = _read(folder, f"split-{split}")
        one |= _read(folder, f"split-{split}-lm", optional=True)
        edges = {n[6:]: array for n, array in one.items() if n.startswith("edges.")}
        users = {
            name: one[f"{name}.rows"][one[f"{name}.of"]]
            for name in ("counted", "lm")
            if f"{name}.of" in one
        }
        n_users, n_items = one["shape"].tolist()
        made_from = tuple(one["made_from"].tolist())
        return cls((n_users, n_items), made_from, one["cold"], items, users, edges)

    def augmentation(
        self,
        *,
        items: str = "",
        users: str = "",
        edges: str = "",
        shuffled: bool = False,
        cold: bool = False,
    ) -> Augmentation:
        """A mixture; "" for none.

        shuffled: items have each other's features. cold: profiles and edges of cold
        users only. Raises ValueError for an ingredient that was not made.
        """
        for name, known in (
            (items, self.items), (users, self.users), (edges, self.edges),
        ):  # fmt: skip
            if name and name not in known:
                raise ValueError(f"no ingredient {name!r}; made: {', '.join(known)}")
        n_users, n_items = self.shape
        who = self.cold if cold else np.ones(n_users, bool)
        nothing = np.full((2, n_users), NOBODY, np.int32)
        liked, disliked = self.edges.get(edges, nothing)
        chosen = np.flatnonzero(who & (liked != NOBODY)).astype(np.int32)
        order = np.arange(n_items)
        if shuffled:
            order = np.random.default_rng(0).permutation(n_items)
        return Augmentation(
            self.shape, self.made_from, chosen, liked[chosen], disliked[chosen],
            user_features={users: self.users[users] * who[:, None]} if users else {},
            item_features={items: self.items[items][order]} if items else {},
        )  # fmt: skip


def by_user(
    n_users: int, users: np.ndarray, liked: np.ndarray, disliked: np.ndarray
) -> np.ndarray:
    """[2, U] int32: triplets of [n] as `Ingredients.edges` has them."""
    found = np.full((2, n_users), NOBODY, np.int32)
    found[:, users] = liked, disliked
    return found


def path_of(folder: Path, name: str) -> Path:
    return Path(folder) / f"{name}.npz"


def _read(folder: Path, name: str, optional: bool = False) -> dict[str, np.ndarray]:
    path = path_of(folder, name)
    if not path.is_file():
        if optional:
            return {}
        raise FileNotFoundError(f"{path} is missing: make the ingredients first")
    try:
        with open_arrays(path) as arrays:
            return dict(arrays)
    except ValueError as error:  # a file of our own
        raise ValueError(f"{error}; delete it") from error
