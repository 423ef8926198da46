"""What the augmentations ask of a language model, and of a text encoder.

    for i, reply in model.complete(prompts, Settings(max_tokens=60)): ...
    found = model.likelihoods("Films I like: Alien. I also like:", [" Aliens", " M"])
    found.mean                                               # [2] a token, in nats
    features = encoder.encode(["Alien (1979). Horror."])        # [1, 384] float32

Any endpoint completes; only a model whose weights are here gives the likelihood of a
text that it did not write. Replies are whatever the model says: `answers` judges them.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

Finish = Literal["stop", "length", "too long"]


@dataclass(frozen=True)
class Prompt:
    """system: the task. user: the data. fields: what the data are, in words.

    fields is for the list of what leaves the machine: ("liked titles", "genres").
    """

    system: str
    user: str
    fields: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of text."""
        return len(self.system.encode()) + len(self.user.encode())


@dataclass(frozen=True)
class Settings:
    """How a reply is drawn.

    temperature: 0 takes the likeliest token each time. top_p: in (0, 1], share of
    probability that is drawn from. max_tokens: of the reply. seed: a number for the
    draw; another seed is another reply in the cache.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 2):
            raise ValueError(f"temperature is in [0, 2], got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is in (0, 1], got {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is at least 1, got {self.max_tokens}")


@dataclass(frozen=True)
class Reply:
    """What came back. tokens: of prompt and reply, None where nobody counted.

    finish: "stop"; "length" if max_tokens cut it; "too long" if more came than is
    read, and text is then empty. requests: attempts that it took, each of which may
    cost.
    """

    text: str
    finish: Finish = "stop"
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    requests: int = 1


@dataclass(frozen=True)
class Failure:
    """No reply: nothing is kept, and it may be asked again.

    reason: of a small set, to be counted. detail: what the server said.
    """

    reason: str
    requests: int = 1
    detail: str = ""


class EndpointError(RuntimeError):
    """Nothing more can be asked of an endpoint; the message names the fix."""


class LanguageModel(Protocol):
    """identity: what must be equal for replies to be interchangeable."""

    @property
    def identity(self) -> str: ...

    def complete(
        self, prompts: Iterable[Prompt], settings: Settings
    ) -> Iterator[tuple[int, Reply | Failure]]:
        """(position of the prompt, what came back), each once, in any order.

        A prompt is taken from the iterable when it is about to be sent, not before.
        """


class Likelihoods(NamedTuple):
    """total: [n] float64, log-probability of each text. tokens: [n] int64, of each."""

    total: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """A token: by the total alone the shortest text would win."""
        return self.total / self.tokens


class LikelihoodModel(LanguageModel, Protocol):
    """A language model whose weights are here."""

    def likelihoods(self, context: str, options: Sequence[str]) -> Likelihoods:
        """Of each option as what comes after the context."""


class Encoder(Protocol):
    """identity: as above; dimensions: of a text's vector."""

    @property
    def identity(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[n, dimensions] float32, each row of length 1."""


def key(identity: str, prompt: Prompt, settings: Settings) -> str:
    """SHA-256 of model, prompt and settings: one name for one question."""
    return digest(["reply", identity, prompt.system, prompt.user, asdict(settings)])


def digest(parts: object) -> str:
    """SHA-256, in hex, of what JSON can hold.

    >>> digest(["a", "b"]) == digest(["ab"])
    False
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
