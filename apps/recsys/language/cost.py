"""What questions will cost, and what they did cost.

prices = Prices(prompt=0.15, reply=0.60)        # a million tokens, any currency
estimate(prompts, Settings(max_tokens=60), prices).most
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apps.recsys.language.interface import Prompt, Settings

BYTES_PER_TOKEN = 4  # English text under the usual vocabularies
OVERHEAD = 8  # tokens that a chat format adds to a prompt


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, as your provider's page has them today; 0 by default."""

    prompt: float = 0.0
    reply: float = 0.0

    def __post_init__(self) -> None:
        for value in (self.prompt, self.reply):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"a price is a number of at least 0, got {value}")

    def of(self, prompt_tokens: float, reply_tokens: float) -> float:
        return (self.prompt * prompt_tokens + self.reply * reply_tokens) / 1e6


@dataclass(frozen=True)
class Estimate:
    """Before anything is sent. cost: if replies are as long as they may be, each.

    most: a token for every byte, which no usual vocabulary exceeds, and `tries` times.
    """

    prompts: int
    prompt_tokens: int
    reply_tokens: int
    cost: float
    most: float


def estimate(
    prompts: Sequence[Prompt], settings: Settings, prices: Prices, tries: int = 1
) -> Estimate:
    """What prompts would cost that are not in the store yet; tokens are guessed."""
    n_bytes = sum(prompt.size for prompt in prompts)
    overhead = OVERHEAD * len(prompts)
    prompt_tokens = sum(guessed_tokens(prompt.size) for prompt in prompts) + overhead
    reply_tokens = settings.max_tokens * len(prompts)
    return Estimate(
        prompts=len(prompts),
        prompt_tokens=prompt_tokens,
        reply_tokens=reply_tokens,
        cost=prices.of(prompt_tokens, reply_tokens),
        most=tries * prices.of(n_bytes + overhead, reply_tokens),
    )


def guessed_tokens(n_bytes: int) -> int:
    """Tokens of a text of that size, about.

    >>> guessed_tokens(9)
    3
    """
    return -(-n_bytes // BYTES_PER_TOKEN)


@dataclass
class Bill:
    """What was sent in this run, and what it cost.

    prompts: that had to be asked. stored: answers that the store had. requests:
    attempts, failed ones too. prompt_tokens, reply_tokens: as the server counted them,
    else guessed; guessed: replies of which they are. lost: questions of an earlier run
    that was killed before their answer came: asked again, maybe paid twice.
    """

    prompts: int = 0
    stored: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    guessed: int = 0
    lost: int = 0
    seconds: float = 0.0

    def cost(self, prices: Prices) -> float:
        """Of the replies; failed attempts may cost too, which only the server knows."""
        return prices.of(self.prompt_tokens, self.reply_tokens)

    def add(self, other: "Bill") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
