"""A way to prune: a score, a policy, and the policy's options, written in one word.

el2n                           the hardest, as SCORE:top
el2n@5:window:drop_hardest=0.1
aum:strata:n_strata=25
random, stratified, ccs        short for random:random, ... (see `SHORT`)
"""

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from apps.common.seeds import mixed
from apps.common.toml import scalar
from apps.data_pruning import scoring
from apps.data_pruning.config import Config
from apps.data_pruning.data import Data
from sparsekit.data_pruning.selection import POLICIES, select
from sparsekit.spelling import choice

SHORT = {
    "random": "random:random",
    "stratified": "random:random:per_class=true",
    "ccs": "aum:strata:drop_hardest=auto",
}
SHARED = ("per_class",)  # options that `select` itself has
GIVEN = ("scores", "n", "generator", *scoring.EXTRAS)


@dataclass(frozen=True)
class Strategy:
    """label: the word it was written as."""

    label: str
    score: str
    policy: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """The score, and what the policy asks for beside it."""
        asked = inspect.signature(POLICIES[self.policy]).parameters
        return (self.score, *(name for name in scoring.EXTRAS if name in asked))


def parse(config: Config, word: str) -> Strategy:
    """ValueError for an unknown score, policy or option, naming the known ones.

    >>> parse(Config(), "el2n:window:drop_hardest=0.1").options
    {'drop_hardest': 0.1}
    >>> parse(Config(), "stratified").policy
    'random'
    """
    score, *rest = SHORT.get(word, word).split(":")
    policy = rest[0] if rest else "top"
    if score != "random":
        scoring.parse(config, score)
    if policy not in POLICIES:
        raise ValueError(choice(f"{word!r}: no policy {policy!r}", policy, POLICIES))
    known = [
        n for n in inspect.signature(POLICIES[policy]).parameters if n not in GIVEN
    ]
    options: dict[str, Any] = {}
    for pair in ",".join(rest[1:]).split(",") if rest[1:] else ():
        name, equals, value = pair.partition("=")
        if not equals or name not in (*known, *SHARED):
            raise ValueError(
                f"{word!r}: write options as NAME=VALUE after the policy; {policy} "
                f"has {', '.join((*known, *SHARED))}"
            )
        options[name] = scalar(value)
        if isinstance(options[name], str) and (name, value) != ("drop_hardest", "auto"):
            raise ValueError(f"{word!r}: {name} must be a number, got {value!r}")
    return Strategy(word, score, policy, options)


def drop_hardest(keep: float) -> float:
    """CCS leaves out the more of the hardest, the more is pruned; here without search.

    0 down to half of the data, then linearly to 0.3 where a tenth is kept.

    >>> [round(drop_hardest(keep), 2) for keep in (0.7, 0.5, 0.3, 0.1)]
    [0.0, 0.0, 0.15, 0.3]
    """
    return 0.75 * max(0.0, 0.5 - keep)


def choose(
    strategy: Strategy,
    measured: scoring.Measured,
    data: Data,
    keep: float,
    seed: int,
) -> Tensor:
    """Positions of the examples that are kept, sorted."""
    options = dict(strategy.options)
    if options.get("drop_hardest") == "auto":
        options["drop_hardest"] = drop_hardest(keep)
    for name in strategy.needs[1:]:
        options[name] = measured.extras[name]
    with warnings.catch_warnings():
        # "top" below a half is worse than random: every comparison shows that.
        warnings.filterwarnings("ignore", "'top' keeps", UserWarning)
        return select(
            measured.values(strategy.score),
            keep,
            strategy.policy,
            labels=data.splits.train.y.cpu(),
            seed=mixed(seed, 0, 4),
            **options,
        )
