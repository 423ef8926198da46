"""The two lines around an optimizer's step, run by its hooks."""

from collections.abc import Callable

from torch.optim import Optimizer


class StepHooks:
    """Calls `before` and `after` around every step of an optimizer, until `remove`.

    Neither is called for a step that a GradScaler skips.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[], None],
        after: Callable[[], None],
    ):
        self.optimizer, self.before, self.after = optimizer, before, after
        self._skipped = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, _: Optimizer, args: tuple, kwargs: dict) -> None:
        if any(callable(value) for value in (*args, *kwargs.values())):
            raise ValueError(
                "optimizer.step(closure) makes its gradient inside the step, too late "
                "to mask: call loss.backward() first, then optimizer.step()"
            )
        # Fused optimizers get GradScaler's verdict and skip inside their kernel.
        found_inf = getattr(self.optimizer, "found_inf", None)
        self._skipped = found_inf is not None and bool(found_inf > 0)
        if not self._skipped:
            self.before()

    def _after(self, _: Optimizer, args: tuple, kwargs: dict) -> None:
        if not self._skipped:
            self.after()
