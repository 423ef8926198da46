"""Where an interrupted run goes on: finished stages, and the epoch of the current one.

    stages = Stages(RunFolder("runs/a"), settings)       # or Stages(): nothing is kept
    stage = stages.begin("original")
    for epoch in stage.epochs(20, model=model, optimizer=optimizer):
        ...                                # after every epoch, both are saved
    stage.finish(model=model.state_dict()) # skipped next time: stage.result

A random choice in an epoch is decided by (seed, epoch), so that there is no generator
to save, and a run that goes on ends where an uninterrupted one does, bit for bit.
"""

import copy
import time
from collections.abc import Iterator
from typing import Any

from apps.common.config import RunConfig, settings
from apps.common.runs import RunFolder


class Stages:
    """The stages of one run. folder: where they are kept; None keeps nothing."""

    def __init__(
        self, folder: RunFolder | None = None, config: RunConfig | None = None
    ):
        self.folder = folder
        self.settings = {} if config is None else settings(config)
        self.done: dict[str, Any] = {}
        self.current: dict[str, Any] = {}
        if folder is not None and config is not None:
            state = folder.begin(config)
            if state is not None:
                self.done, self.current = state["done"], state["current"]

    def begin(self, name: str) -> "Stage":
        return Stage(self, name)

    def seconds(self, name: str) -> float:
        """Of the finished stages whose name is `name`, or begins with "name: "."""
        return sum(
            stage["seconds"]
            for key, stage in self.done.items()
            if key == name or key.startswith(f"{name}: ")
        )

    def rows(self) -> list[dict[str, Any]]:
        """The log of all finished stages."""
        return [row for stage in self.done.values() for row in stage["rows"]]

    def save(self) -> None:
        if self.folder is not None:
            self.folder.write_checkpoint(
                {"settings": self.settings, "done": self.done, "current": self.current}
            )


class Stage:
    """A part of a run that is done or not; within it, epochs.

    result: what `finish` was given, if the stage was finished before, else None.
    seconds: its time, in all processes together.
    """

    def __init__(self, stages: Stages, name: str):
        self._stages, self.name = stages, name
        before = stages.done.get(name)
        current = stages.current if stages.current.get("name") == name else {}
        self._saved = current
        self.result = before and before["result"]
        self.rows: list[dict[str, Any]] = list((before or current).get("rows", []))
        self._earlier = float((before or current).get("seconds", 0.0))
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        if self.result is not None:
            return self._earlier
        return self._earlier + time.perf_counter() - self._began

    def epochs(self, n: int, begin: int = 0, **parts: Any) -> Iterator[int]:
        """begin ... n - 1, or what an interruption has left of them.

        parts: what has a state_dict and changes in an epoch; saved after each.
        """
        first = begin
        if "epoch" in self._saved:
            first = self._saved["epoch"]
            for name, part in parts.items():
                part.load_state_dict(self._saved["parts"][name])
        for epoch in range(first, n):
            yield epoch
            if self._stages.folder is None:
                continue
            self._stages.current = {
                "name": self.name,
                "epoch": epoch + 1,
                "seconds": self.seconds,
                "rows": self.rows,
                "parts": {name: part.state_dict() for name, part in parts.items()},
            }
            self._stages.save()

    def finish(self, **result: Any) -> dict[str, Any]:
        """Marks the stage as done; a finished one returns its result unchanged."""
        if self.result is None:
            seconds = self.seconds
            result = copy.deepcopy(result)  # what it holds may be trained on
            self._earlier, self.result = seconds, result
            done = {"result": result, "seconds": seconds, "rows": self.rows}
            self._stages.done[self.name] = done
            self._stages.current = {}
            self._stages.save()
        return self.result
