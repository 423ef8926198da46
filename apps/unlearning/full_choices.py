"""How settings are tried and chosen in the GPU run; see `full_plan`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from apps.unlearning.full_settings import COMMON, USABLE
from apps.unlearning.unlearner import Problem
from apps.unlearning.unlearners.fisher import Fisher
from apps.unlearning.unlearners.influence import Influence


def methods(pruner: str) -> list[str]:
    """l1-sparse starts from a dense network."""
    return [name for name in COMMON if name != "l1_sparse" or pruner == "dense"]


def distinct(chosen: dict[str, dict]) -> list[tuple[list[str], dict[str, Any]]]:
    """A method's settings, each with the names of the choices that agree on it.

    >>> distinct({"smallest": {"lr": 1}, "usable": {"lr": 2}, "finer": {"lr": 1}})
    [(['smallest', 'finer'], {'lr': 1}), (['usable'], {'lr': 2})]
    """
    found: list[tuple[list[str], dict[str, Any]]] = []
    for choice, options in chosen.items():
        alike = [names for names, others in found if others == options]
        if alike:
            alike[0].append(choice)
        else:
            found.append(([choice], options))
    return found


def prepared(name: str, problem: Problem) -> Callable[[Any, Problem], nn.Module]:
    """How candidates of a method run: what all of them share is computed here, once."""
    if name == "fisher":
        diagonal = Fisher(**COMMON[name]).diagonal(problem)
        return lambda method, asked: method.disturb(asked, diagonal)
    if name == "influence":
        method = Influence(**COMMON[name])
        curvature, g = method.gradient(problem)
        rows = curvature.sample_gradients(method.drawn(problem))
        return lambda method, asked: method.step(
            curvature, method.solve(curvature, g, asked, rows), asked
        )
    return lambda method, asked: method.run(asked)


def choices(rows: list[dict[str, Any]], accuracy: float) -> dict[str, dict[str, Any]]:
    """Options of the smallest gap, and of the smallest that keeps RA usable.

    accuracy: RA of the original. If no candidate is usable, the one of highest RA.
    """
    usable = [row for row in rows if row["RA"] >= accuracy - USABLE]
    usable = usable or [max(rows, key=lambda row: row["RA"])]
    best = {"smallest": rows, "usable": usable}
    return {
        name: min(found, key=lambda row: row["gap"])["options"]
        for name, found in best.items()
    }
