"""What a command prints: lines for people, or with `--json` one value for programs."""

import json
from contextvars import ContextVar
from typing import Any

JSON: ContextVar[bool] = ContextVar("JSON", default=False)


def tell(content: Any, *lines: str) -> None:
    """Prints the lines, or the content if the command was given `--json`.

    content: what JSON has, and paths, numbers of numpy, tensors of one element.

    Raises ValueError for NaN and infinity, which JSON has not.
    """
    if JSON.get():
        print(json.dumps(content, indent=1, allow_nan=False, default=_plain))
    else:
        print("\n".join(line.rstrip("\n") for line in lines))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
