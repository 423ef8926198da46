"""Joint training: each task again on everything seen so far. The upper bound."""

from dataclasses import dataclass

from apps.continual.strategy import Strategy


@dataclass
class Joint(Strategy):
    """Starts anew at every task and trains on all examples of tasks up to it.

    The last row of the accuracy matrix is that of plain training on all data, in the
    order of chance, with as many steps as fine-tuning has in all tasks together. It
    keeps all data, and its time grows with the square of the number of tasks.
    """

    needs_tasks = True

    def sources(self, task: int) -> range:
        return range(task + 1)

    def begin_task(self, task: int) -> None:
        if task:
            self.training.restart()
