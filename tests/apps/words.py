"""Commands as a test calls them."""

from collections.abc import Callable
from types import ModuleType


def runner(cli: ModuleType) -> Callable[..., int]:
    """A function that calls a command with its arguments as words; the exit status."""
    return lambda *arguments: cli.main([str(argument) for argument in arguments])
