"""A language model behind any OpenAI-compatible endpoint.

    model = Endpoint("https://api.example.com/v1", "some-model", allow_remote=True)
    for i, reply in model.complete(prompts, Settings()): ...

Requests run in a few threads, at a limited rate. What may pass (a busy or broken
server, a cut connection, a reply that is no JSON) is tried again after a random,
growing pause, or after the pause that the server asks for. What will not pass (no such
model, no permission) stops the run with an error.
"""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import httpx

from apps.recsys.language import wire
from apps.recsys.language.deadline import Deadline
from apps.recsys.language.destination import check_url, is_loopback, permit
from apps.recsys.language.interface import (
    EndpointError,
    Failure,
    Prompt,
    Reply,
    Settings,
)
from apps.recsys.language.pace import Pace, backoff, retry_after

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # may pass
HOPELESS = frozenset({401, 402, 403, 404, 405})  # whatever is asked
EXCERPT = 500  # bytes of an error page that are read


@dataclass(frozen=True)
class Endpoint:
    """Where a model is, and how much is asked of it at a time.

    url: up to /v1. model: the server's name of it. key_variable: environment variable
    with the key; no key is sent if it is not set. local, allow_remote: see
    `destination`. concurrency: requests at a time. per_minute: requests; None for no
    limit. timeout: seconds for a reply in all. retries:
    further attempts. longest_wait: seconds before a retry; a server that asks for more
    is given up. give_up: failed prompts in a row that end the run. stream: in pieces,
    which keeps slow connections alive. length_field: some servers want
    "max_completion_tokens".

    Raises ValueError if data may not be sent there, before any is.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    local: bool = False
    allow_remote: bool = False
    concurrency: int = 4
    per_minute: float | None = None
    timeout: float = 60.0
    retries: int = 4
    longest_wait: float = 60.0
    give_up: int = 10
    stream: bool = False
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def __post_init__(self) -> None:
        check_url(self.url)
        for name in ("concurrency", "give_up"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.retries < 0 or not self.timeout > 0 or not self.longest_wait > 0:
            raise ValueError("retries are at least 0, timeout and longest_wait above 0")
        if not self.model:
            raise ValueError("name the model, as the server calls it")

    @property
    def identity(self) -> str:
        return f"endpoint {self.url.rstrip('/')} {self.model}"

    @property
    def tries(self) -> int:
        """The most requests that one prompt may take."""
        return self.retries + 1

    def complete(
        self, prompts: Iterable[Prompt], settings: Settings
    ) -> Iterator[tuple[int, Reply | Failure]]:
        """As `LanguageModel`. A prompt is taken just before it is sent.

        Raises ValueError if it may not be sent; EndpointError.
        """
        key = os.environ.get(self.key_variable, "")
        permit(
            self.url, local=self.local, allow_remote=self.allow_remote,
            has_key=bool(key),
        )  # fmt: skip
        with self._client(key) as client:
            pace = Pace(self.per_minute)

            def ask(prompt: Prompt) -> Reply | Failure:
                return _Attempts(self, client, pace, key).ask(prompt, settings)

            yield from self._in_threads(ask, prompts, pace)

    def _client(self, key: str) -> httpx.Client:
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {_checked(key, self.key_variable)}"
        return httpx.Client(
            headers=headers,
            timeout=self.timeout,
            # Each request opens its own connection, which its deadline can cut.
            limits=httpx.Limits(
                max_connections=self.concurrency, max_keepalive_connections=0
            ),
            follow_redirects=False,  # it would take the data to another host
            # A proxy of the environment would take data for loopback off the machine.
            trust_env=not is_loopback(self.url),
        )

    def _in_threads(
        self,
        ask: Callable[[Prompt], Reply | Failure],
        prompts: Iterable[Prompt],
        pace: Pace,
    ) -> Iterator[tuple[int, Reply | Failure]]:
        """Results as they come; at most `concurrency` prompts are under way.

        After an error no further prompt is taken, and what is under way is awaited.
        """
        queue = enumerate(prompts)
        running: dict[Future[Reply | Failure], int] = {}
        failed, error = 0, None
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    free = self.concurrency - len(running)
                    for i, prompt in islice(queue, 0 if error else free):
                        running[pool.submit(ask, prompt)] = i
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        i = running.pop(future)
                        try:
                            result = future.result()
                        except EndpointError as raised:
                            error = error or raised
                            pace.stop()
                            continue
                        yield i, result
                        if isinstance(result, Reply):
                            failed = 0
                            continue
                        failed += 1
                        if failed >= self.give_up and error is None:
                            error = _given_up(failed, result)
                            pace.stop()
            finally:
                pace.stop()
        if error:
            raise error


@dataclass
class _Attempts:
    """One prompt, tried until it is answered or given up."""

    endpoint: Endpoint
    client: httpx.Client
    pace: Pace
    key: str
    pause: float | None = None  # seconds that the server asked for
    passing: bool = True  # whether the last failure may pass

    def ask(self, prompt: Prompt, settings: Settings) -> Reply | Failure:
        draw = random.Random()  # no result depends on when a retry comes
        result: Reply | Failure = Failure("stopped", 0)
        for attempt in range(self.endpoint.tries):
            if not self.pace.turn():
                break
            result = replace(self._once(prompt, settings), requests=attempt + 1)
            if isinstance(result, Reply) or not self.passing:
                break
            if attempt + 1 == self.endpoint.tries:
                break
            if self.pause is None:
                self.pace.rest(backoff(attempt, self.endpoint.longest_wait, draw))
            elif self.pause <= self.endpoint.longest_wait:
                self.pace.pause(self.pause)
            else:
                detail = f"to be tried after {self.pause:.0f} s"
                return replace(result, detail=detail)
        return result

    def _once(self, prompt: Prompt, settings: Settings) -> Reply | Failure:
        endpoint = self.endpoint
        content = wire.body(
            endpoint.model, prompt, settings, stream=endpoint.stream,
            length_field=endpoint.length_field,
        )  # fmt: skip
        self.pause, self.passing = None, True
        until = time.monotonic() + endpoint.timeout
        with Deadline(endpoint.timeout) as deadline:
            try:
                return self._read(content, settings, until, deadline)
            except wire.TooLong:
                return Reply("", "too long")
            except (wire.TooSlow, httpx.TimeoutException):
                return Failure("too slow")
            except (wire.Garbled, httpx.HTTPError) as error:
                if deadline.passed:
                    return Failure("too slow")
                if isinstance(error, wire.Garbled):
                    return Failure(f"garbled: {error}")
                return Failure(f"connection: {type(error).__name__}")

    def _read(
        self, content: bytes, settings: Settings, until: float, deadline: Deadline
    ) -> Reply | Failure:
        endpoint = self.endpoint
        with self.client.stream(
            "POST", f"{endpoint.url.rstrip('/')}/chat/completions", content=content,
            extensions={"trace": deadline.trace},
        ) as response:  # fmt: skip
            if response.status_code != 200:
                return self._refused(response, until)
            reply = wire.read(response, settings, stream=endpoint.stream, until=until)
            return replace(reply, text=self._without_key(reply.text))

    def _refused(self, response: httpx.Response, until: float) -> Failure:
        """A status other than 200: a failure that may pass or not, or the end."""
        status = response.status_code
        if status in PASSING:
            self.pause = retry_after(response.headers.get("retry-after"))
            return Failure(f"status {status}")
        said = self._without_key(_excerpt(response, until))
        if status in HOPELESS or 300 <= status < 400:
            host = check_url(self.endpoint.url).hostname
            raise EndpointError(
                f"{host} answered {status} for model {self.endpoint.model!r}: look at "
                f"the address, the model's name and ${self.endpoint.key_variable}; it "
                f"said: {said or 'nothing'}"
            )
        self.passing = False
        return Failure(f"status {status}", detail=said)

    def _without_key(self, text: str) -> str:
        """What a server says goes into files and messages: the key must not."""
        return text.replace(self.key, "[key]") if self.key else text


def _given_up(failed: int, last: Failure) -> EndpointError:
    detail = f" ({last.detail})" if last.detail else ""
    return EndpointError(
        f"{failed} prompts in a row failed, the last by: {last.reason}{detail}; what "
        "was answered is kept"
    )


def _excerpt(response: httpx.Response, until: float) -> str:
    """The beginning of an error page, in printable characters on one line."""
    content = b""
    try:
        for chunk in wire.limited(response, wire.LIMIT, until):
            content += chunk
            if len(content) >= EXCERPT:
                break
    except (wire.TooLong, wire.TooSlow, wire.Garbled, httpx.HTTPError):
        pass  # what has come is enough
    text = content[:EXCERPT].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _checked(key: str, variable: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"${variable} holds no key: it has blanks or odd characters")
    return key
