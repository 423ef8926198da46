"""A mapping that makes its values when they are read."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class Lazy(Mapping[str, Value]):
    """Read-only; keeps no value, so that one at a time exists in a loop over it.

    >>> squares = Lazy({"two": lambda: 2**2, "three": lambda: 3**2})
    >>> squares["three"], list(squares)
    (9, ['two', 'three'])
    """

    def __init__(self, makers: Mapping[str, Callable[[], Value]]):
        self._makers = makers

    def __getitem__(self, name: str) -> Value:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"
