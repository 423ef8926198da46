"""What leaves this machine, for where, and whether it may.

A server on the loopback address counts as remote too: the port may belong to a tunnel
or to a program that passes everything on. `local=True` is the user's word that the
model runs here; it is believed for a numeric loopback address only, since a name may
resolve to anything. Anything else needs `allow_remote=True`.
"""

import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from apps.recsys.language.interface import Prompt


def check_url(url: str) -> SplitResult:
    """The parts of an endpoint's address.

    Raises ValueError for what is no http(s) address, and for one with a user, password
    or query: these end up in logs.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"no address of an endpoint: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(
            "an endpoint's address looks like https://HOST/v1 or http://127.0.0.1:8000"
            f"/v1, not like {parts.scheme}://{parts.hostname or ''}"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"the address of {parts.hostname} holds a user, password, query or "
            "fragment: keys belong in an environment variable"
        )
    return parts


def is_loopback(url: str) -> bool:
    """Whether the host is a numeric loopback address, as 127.0.0.1 or ::1."""
    try:
        return ipaddress.ip_address(check_url(url).hostname or "").is_loopback
    except ValueError:
        return False


def permit(url: str, *, local: bool, allow_remote: bool, has_key: bool) -> None:
    """Raises ValueError unless data may be sent there; see the module."""
    parts = check_url(url)
    if local and not is_loopback(url):
        raise ValueError(
            f"{parts.hostname} is not this machine's numeric loopback address: name "
            "127.0.0.1 or ::1, or say allow_remote=True instead of local=True"
        )
    if not local and not allow_remote:
        raise ValueError(
            f"this would send data to {parts.hostname}: look at what leaves in a dry "
            "run, then say allow_remote=True (--allow-remote); for a model that runs "
            "on this machine, local=True"
        )
    if has_key and parts.scheme == "http" and not is_loopback(url):
        raise ValueError(
            f"the key would travel unencrypted to {parts.hostname}: use https"
        )


def disclosure(
    url: str, prompts: Sequence[Prompt], examples: int = 1
) -> dict[str, Any]:
    """What these prompts would send: for a person to read before they are sent.

    Keys: host, prompts, bytes, fields {what: number of prompts with it}, examples (the
    longest prompts in full), never sent.
    """
    fields = Counter(field for prompt in prompts for field in prompt.fields)
    longest = sorted(prompts, key=lambda prompt: -prompt.size)[:examples]
    return {
        "host": check_url(url).hostname,
        "prompts": len(prompts),
        "bytes": sum(prompt.size for prompt in prompts),
        "fields": dict(sorted(fields.items())),
        "examples": [f"{prompt.system}\n\n{prompt.user}" for prompt in longest],
        "never sent": "ids of users and items, ratings, times, ages, genders, "
        "occupations, zip codes",
        "beware": "a list of rare titles may still tell who somebody is",
    }


def as_text(facts: dict[str, Any]) -> str:
    """A disclosure as a person reads it."""
    fields = ", ".join(f"{name} ({n:,})" for name, n in facts["fields"].items())
    lines = [
        f"to {facts['host']}: {facts['prompts']:,} prompts, {facts['bytes']:,} bytes",
        f"sent (in how many prompts): {fields or 'no data'}",
        f"never sent: {facts['never sent']}",
        f"beware: {facts['beware']}",
    ]
    for example in facts["examples"]:
        lines += [
            "the longest prompt in full:",
            *(f"  {t}" for t in example.split("\n")),
        ]
    return "\n".join(lines)
