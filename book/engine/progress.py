"""What the terminal shows while chapters run: bars on a terminal, else plain lines."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Reporter(Protocol):
    """Hears of every chapter that starts, moves on by a cell, and ends."""

    def start(self, chapter: str) -> None: ...
    def cell(self, chapter: str, number: int, total: int) -> None: ...
    def end(self, chapter: str, how: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Lines:
    """One line as a chapter starts and ends, and one every `every` seconds."""

    def __init__(self, n_chapters: int, stream: TextIO, every: float = 20.0) -> None:
        self.n_chapters, self.stream, self.every = n_chapters, stream, every
        self.n_done = 0
        self.last: dict[str, float] = {}

    def write(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    def start(self, chapter: str) -> None:
        self.last[chapter] = time.monotonic()
        self.write(f"  {chapter}: running")

    def cell(self, chapter: str, number: int, total: int) -> None:
        if time.monotonic() - self.last[chapter] >= self.every:
            self.last[chapter] = time.monotonic()
            self.write(f"  {chapter}: cell {number} of {total}")

    def end(self, chapter: str, how: str) -> None:
        self.n_done += 1
        self.write(f"  {chapter}: {how} ({self.n_done} of {self.n_chapters} chapters)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Bars:
    """A bar over the chapters, and one over the cells of each running chapter."""

    def __init__(self, n_chapters: int, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.all = self.progress.add_task(
            "[bold]book", total=n_chapters, unit="chapters"
        )
        self.tasks: dict[str, TaskID] = {}

    def start(self, chapter: str) -> None:
        self.tasks[chapter] = self.progress.add_task(
            f"  {chapter}", total=None, unit="cells"
        )

    def cell(self, chapter: str, number: int, total: int) -> None:
        # `number` has just started, so one fewer is done.
        self.progress.update(self.tasks[chapter], completed=number - 1, total=total)

    def end(self, chapter: str, how: str) -> None:
        if chapter in self.tasks:
            self.progress.remove_task(self.tasks.pop(chapter))
        self.progress.console.print(f"  {chapter}: {how}", highlight=False)
        self.progress.advance(self.all)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def reporter(n_chapters: int, stream: TextIO | None = None) -> Reporter:
    """Bars if the stream (stdout) is a terminal, plain lines if not."""
    stream = stream or sys.stdout
    if stream.isatty():
        return Bars(n_chapters, Console(file=stream))
    return Lines(n_chapters, stream)
