"""Choice among given texts by their likelihood, each computed once.

values = likelihoods(model, [Choice("The capital of France is", (" Paris", " Rome"))],
                     store)
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from apps.recsys.language.interface import LikelihoodModel, digest
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
) -> list[np.ndarray]:
    """[n options] float64 for each choice, as `LikelihoodModel.likelihoods`.

    A value is kept as soon as it is computed. progress: title of a bar.
    """
    found = []
    with tqdm(total=len(choices), desc=progress, disable=progress is None) as bar:
        for choice in choices:
            found.append(_kept(model, choice, store))
            bar.update()
    return found


def _kept(model: LikelihoodModel, choice: Choice, store: Store) -> np.ndarray:
    key = digest(["likelihood", model.identity, choice.context, list(choice.options)])
    value = store.get(key)
    if value is None:
        store.put(key, json.dumps(model.likelihoods(*choice).tolist()))
        value = store.get(key)
    values = np.array(json.loads(value or "[]"), np.float64)
    if values.shape != (len(choice.options),):
        raise ValueError("the store holds something else than likelihoods")
    return values


def informed(values: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
    """Likelihoods without what is likely anyway: `l_k - prior_k`; values if None."""
    return values if prior is None else values - prior
