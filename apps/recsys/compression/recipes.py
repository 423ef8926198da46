"""All recipes, by name."""

from collections.abc import Iterable

from apps.recsys.compression.candidate import Recipe
from apps.recsys.compression.finished import FINISHED
from apps.recsys.compression.item_weights import ITEM_WEIGHTS
from apps.recsys.compression.trained import TRAINED
from sparsekit.spelling import choice

RECIPES = {recipe.name: recipe for recipe in (*FINISHED, *ITEM_WEIGHTS, *TRAINED)}


def chosen(names: Iterable[str], may_train: bool) -> list[Recipe]:
    """The recipes of these names; without names all that need no further training.

    Raises ValueError for an unknown name, and for one that trains if it cannot.
    """
    names = list(dict.fromkeys(names))
    if not names:
        return [recipe for recipe in RECIPES.values() if not recipe.trains]
    for name in names:
        if name not in RECIPES:
            raise ValueError(choice(f"no recipe {name!r}", name, RECIPES))
        if RECIPES[name].trains and not may_train:
            raise ValueError(
                f"recipe {name!r} trains networks, which given factors do not allow: "
                "leave it out, or leave --factors out"
            )
    return [RECIPES[name] for name in names]
