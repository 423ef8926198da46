"""Which steps of a network run as one, and when a result is no longer needed."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sparsekit.execution.model_file import Network, Step

LAYERS = ("conv", "linear")


@dataclass(frozen=True)
class Fused:
    """A step, with the addition and the clipping that follow it.

    Attributes:
        step: what is computed.
        name: of the result: that of the last step that was drawn in.
        residual: name of a result that is added, or None.
        clip: bounds of the result.
    """

    step: Step
    name: str
    residual: str | None = None
    clip: tuple[float, float] = (-math.inf, math.inf)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.step.inputs + ((self.residual,) if self.residual else ())


def fuse(network: Network) -> list[Fused]:
    """The steps, with additions and clipping drawn into the layer before them.

    A layer whose result only an addition uses runs where the addition stood, so that
    what is added is there.
    """
    uses = Counter(name for step in network.steps for name in step.inputs)
    uses[network.output] += 1
    done: dict[str, Fused] = {}  # by the name of the result, in running order
    for step in network.steps:
        if step.op == "add":
            _take_add(step, done, uses)
        elif step.op == "clip":
            _take_clip(step, done, uses)
        else:
            done[step.name] = Fused(step, step.name)
    return list(done.values())


def _take_add(step: Step, done: dict[str, Fused], uses: Counter[str]) -> None:
    for name, other in (step.inputs, step.inputs[::-1]):
        layer = done.get(name)
        if (
            layer is not None
            and name != other
            and uses[name] == 1
            and layer.step.op in LAYERS
            and layer.residual is None
            and layer.clip == (-math.inf, math.inf)
        ):
            del done[name]
            done[step.name] = Fused(layer.step, step.name, other)
            return
    done[step.name] = Fused(step, step.name)


def _take_clip(step: Step, done: dict[str, Fused], uses: Counter[str]) -> None:
    low = -math.inf if step.options["low"] is None else float(step.options["low"])
    high = math.inf if step.options["high"] is None else float(step.options["high"])
    (name,) = step.inputs
    layer = done.get(name)
    if (
        layer is not None
        and uses[name] == 1
        and layer.step.op in LAYERS
        and layer.clip == (-math.inf, math.inf)
    ):
        del done[name]
        done[step.name] = Fused(layer.step, step.name, layer.residual, (low, high))
    else:
        done[step.name] = Fused(step, step.name, clip=(low, high))


def last_uses(steps: Sequence[Fused]) -> list[list[str]]:
    """For every step, the results that nobody reads after it."""
    last: dict[str, int] = {}
    for number, step in enumerate(steps):
        for name in step.inputs:
            last[name] = number
    return [
        [name for name, at in last.items() if at == number]
        for number in range(len(steps))
    ]
