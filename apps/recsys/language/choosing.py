"""Choice among given texts by their likelihood, each computed once.

(found,) = likelihoods(model, [Choice("Is fire hot?", (" Yes", " No"))], store)
found.total.argmax()
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from apps.recsys.language.interface import LikelihoodModel, Likelihoods, digest
from apps.recsys.language.progress import bar
from apps.recsys.language.store import Store


class Choice(NamedTuple):
    """What stands before, and how it may go on; options begin with a blank."""

    context: str
    options: tuple[str, ...]


def likelihoods(
    model: LikelihoodModel,
    choices: Sequence[Choice],
    store: Store,
    *,
    progress: str | None = None,
) -> list[Likelihoods]:
    """Of the options of each choice, as `LikelihoodModel.likelihoods`.

    They are kept as soon as they are computed. progress: title of a bar.
    """
    found = []
    with bar(len(choices), progress) as shown:
        for choice in choices:
            found.append(_kept(model, choice, store))
            shown.update()
    return found


def _kept(model: LikelihoodModel, choice: Choice, store: Store) -> Likelihoods:
    key = digest(["likelihoods", model.identity, choice.context, list(choice.options)])
    value = store.get(key)
    if value is None:
        computed = model.likelihoods(*choice)
        value = json.dumps([column.tolist() for column in computed])
        store.put(key, value)
    total, tokens = np.array(json.loads(value), np.float64).reshape(2, -1)
    if len(total) != len(choice.options) or not (tokens >= 1).all():
        raise ValueError("the store holds something else than likelihoods")
    return Likelihoods(total, tokens.astype(np.int64))


def likeliest(found: Likelihoods, prior: Likelihoods | None) -> int:
    """The option with the largest `total_k - prior_k`.

    prior: of the same options after a context that tells nothing; with it the most
    frequent word does not always win. None for 0.
    """
    before = 0 if prior is None else prior.total
    return int((found.total - before).argmax())
