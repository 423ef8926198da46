"""Which steps of a network run as one, and when a result is no longer needed."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        expands: the 1x1 convolution that a depthwise one takes the result of, if
            nobody else does.
    """

    step: Step
    name: str
    residual: str | None = None
    clip: tuple[float, float] = (-math.inf, math.inf)
    expands: "Fused | None" = None

    @property
    def inputs(self) -> tuple[str, ...]:
        first = self.expands or self.step
        return first.inputs + ((self.residual,) if self.residual else ())


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
            done[step.name] = Fused(
                step, step.name, expands=_expansion(step, done, uses)
            )
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
            done[step.name] = replace(layer, name=step.name, residual=other)
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
        done[step.name] = replace(layer, name=step.name, clip=(low, high))
    else:
        done[step.name] = Fused(step, step.name, clip=(low, high))


def _expansion(step: Step, done: dict[str, Fused], uses: Counter[str]) -> Fused | None:
    """Takes the 1x1 convolution before a depthwise one out of what is done."""
    before = done.get(step.inputs[0])
    if (
        step.op == "conv"
        and step.options["groups"] > 1
        and before is not None
        and is_pointwise(before.step)
        and before.residual is None
        and uses[before.name] == 1
    ):
        return done.pop(before.name)
    return None


def is_pointwise(step: Step) -> bool:
    """Whether it is a 1x1 convolution of all pixels and channels."""
    options = step.options
    return (
        step.op == "conv"
        and options["kernel"] == (1, 1)
        and options["stride"] == [1, 1]
        and options["padding"] == [0, 0, 0, 0]
        and options["groups"] == 1
    )


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
