"""What a misspelt name was meant to be: one sentence for every command and function.

raise ValueError(choice(f"model {name!r} is unknown", name, MODELS))
"""

import difflib
from collections.abc import Iterable


def meant(word: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest to a word; None if none is near.

    Capitals, underscores and dashes do not count.

    >>> meant("RigL", ["set", "rigl"]), meant("xyz", ["set", "rigl"])
    ('rigl', None)
    """
    plain = {_plain(name): name for name in known}
    close = difflib.get_close_matches(_plain(word), plain, n=1)
    return plain[close[0]] if close else None


def choice(
    refused: str, word: str, known: Iterable[str], then: str = "choose one of"
) -> str:
    """The message of an error: what was refused, what was meant, what there is.

    refused: the message's beginning; then: what stands before the known names.

    >>> choice("model 'mpl' is unknown", "mpl", ["mlp", "cnn"])
    "model 'mpl' is unknown; did you mean 'mlp'? choose one of mlp, cnn"
    >>> choice("'set' has no option 'a'", "a", [], then="it has")
    "'set' has no option 'a'; it has none"
    """
    names = list(known)
    near = meant(word, names)
    hint = f"; did you mean {near!r}?" if near is not None else ";"
    return f"{refused}{hint} {then} {', '.join(names) or 'none'}"


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-")
