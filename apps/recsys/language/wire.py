"""The protocol of OpenAI-compatible chat endpoints, as far as it is needed here.

A request is one POST to BASE/chat/completions. The reply is one JSON object, or with
streaming a line `data: {...}` for each piece and `data: [DONE]` at the end. Nothing in
it is trusted: sizes, types and the total time are limited.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from apps.recsys.language.answers import LONGEST
from apps.recsys.language.interface import Prompt, Reply, Settings

LIMIT = 1_000_000  # bytes of a reply, beside those that its tokens may take
BYTES_PER_TOKEN = 1_000  # in a stream each token comes in an object of its own


class Garbled(Exception):
    """The server answered, but not in this protocol, or not to the end."""


class TooLong(Exception):
    """More bytes came than any reply of the allowed length has."""


class TooSlow(Exception):
    """The reply was not complete in time."""


def body(
    model: str,
    prompt: Prompt,
    settings: Settings,
    *,
    stream: bool,
    length_field: str = "max_tokens",
) -> bytes:
    """The request as JSON; what has no effect is left out, as servers differ in it."""
    content: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ],
        "temperature": settings.temperature,
        length_field: settings.max_tokens,
        "stream": stream,
    }
    if settings.temperature > 0:
        content |= {"top_p": settings.top_p, "seed": settings.seed}
    if stream:
        content["stream_options"] = {"include_usage": True}
    return json.dumps(content).encode()


def read(
    response: httpx.Response, settings: Settings, *, stream: bool, until: float
) -> Reply:
    """The reply in a response whose body is not read yet.

    until: time.monotonic() at which it must be complete. A server may answer in one
    piece though it was asked to stream.
    """
    limit = LIMIT + BYTES_PER_TOKEN * settings.max_tokens
    chunks = limited(response, limit, until)
    kind = response.headers.get("content-type", "")
    if stream and kind.partition(";")[0].strip() == "text/event-stream":
        return _streamed(chunks)
    return _whole(b"".join(chunks))


def limited(response: httpx.Response, limit: int, until: float) -> Iterator[bytes]:
    """The body in pieces; raises TooLong and TooSlow."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Garbled("a compressed reply, which was not asked for")
    n_bytes = 0
    for chunk in response.iter_raw():
        n_bytes += len(chunk)
        if n_bytes > limit:
            raise TooLong(f"more than {limit:,} bytes")
        if time.monotonic() > until:
            raise TooSlow("incomplete when the time was up")
        yield chunk


def _whole(content: bytes) -> Reply:
    answer = _object(content)
    choice = _first_choice(answer)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if text is None and isinstance(message, dict) and message.get("refusal"):
        text = ""  # it will not answer: as good as an empty answer
    if not isinstance(text, str):
        raise Garbled("no text in choices[0].message.content")
    return _reply(text, choice.get("finish_reason"), answer.get("usage"))


def _streamed(chunks: Iterator[bytes]) -> Reply:
    pieces: list[str] = []
    finish, usage, done = None, None, False
    for line in _lines(chunks):
        if not line.startswith(b"data:"):
            continue  # comments and other fields of server-sent events
        content = line[5:].strip()
        if content == b"[DONE]":
            done = True
            break
        event = _object(content)
        if "error" in event:
            raise Garbled("an error in the middle of the stream")
        usage = event.get("usage") or usage
        if not event.get("choices"):
            continue  # the last event has the usage and no choice
        choice = _first_choice(event)
        delta = choice.get("delta")
        piece = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(piece, str):
            pieces.append(piece)
        finish = choice.get("finish_reason") or finish
    if finish is None and not done:
        raise Garbled("the stream ended before its end")
    return _reply("".join(pieces), finish, usage)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        *complete, last = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*rest, line]).rstrip(b"\r")
            rest = []
        rest.append(last)
    yield b"".join(rest).rstrip(b"\r")


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Garbled("no JSON") from None
    if not isinstance(value, dict):
        raise Garbled("no JSON object")
    return value


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Garbled("no choices[0]")
    return choices[0]


def _reply(text: str, finish: Any, usage: Any) -> Reply:
    usage = usage if isinstance(usage, dict) else {}
    long = len(text) > LONGEST
    return Reply(
        # A lone surrogate is legal JSON, but no text that can be kept.
        text="" if long else text.encode("utf-8", "replace").decode(),
        finish="too long" if long else "length" if finish == "length" else "stop",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        reply_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    """A number of tokens, if it can be one."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 10**9 else None
