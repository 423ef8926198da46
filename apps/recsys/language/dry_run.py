"""What a run would send and cost, without sending anything.

print(as_text(rehearse(endpoint, prompts, settings, store, Prices(0.15, 0.6))))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.language import destination
from apps.recsys.language.asking import unanswered
from apps.recsys.language.cost import Estimate, Prices, estimate
from apps.recsys.language.interface import Prompt, Settings
from apps.recsys.language.store import Store

if TYPE_CHECKING:
    from apps.recsys.language.endpoint import Endpoint  # imports httpx


@dataclass(frozen=True)
class Rehearsal:
    """disclosure: what would leave. expected: what it may cost. stored: prompts whose
    answers are kept, so that they would not be sent."""

    disclosure: dict[str, Any]
    expected: Estimate
    stored: int


def rehearse(
    model: "Endpoint",
    prompts: Sequence[Prompt],
    settings: Settings,
    store: Store,
    prices: Prices | None = None,
) -> Rehearsal:
    """Of the prompts whose answers are not kept yet; needs no permission."""
    missing = unanswered(model, prompts, settings, store)
    return Rehearsal(
        destination.disclosure(model.url, missing),
        estimate(missing, settings, prices or Prices(), model.tries),
        len(set(prompts)) - len(missing),
    )


def as_text(rehearsal: Rehearsal) -> str:
    """What a person should read before anything is sent."""
    expected = rehearsal.expected
    return "\n".join(
        [
            destination.as_text(rehearsal.disclosure),
            f"about {expected.prompt_tokens:,} tokens of prompts and at most "
            f"{expected.reply_tokens:,} of replies; {rehearsal.stored:,} prompts are "
            "answered already",
            f"cost: about {expected.cost:.4g}, at most {expected.most:.4g}; prices as "
            "you gave them",
        ]
    )
