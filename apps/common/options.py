"""A sparsity method from its name and a table of options.

Options are the fields of the method's dataclass. Fields that hold a time (`begin`,
`end`, `every`, `at`, `rewind_to`) are an integer of optimizer steps, or text with a
unit: "2 epochs", "75%" of the training. So a run keeps its meaning when the batch, the
data or the number of epochs change.

    build("rigl", 0.9, {"every": "1 epoch", "end": "75%", "allocation": "er"}, 35, 350)
    build("oneshot", 0.5, {"pattern": "2:4", "at": 100}, 35, 350)
    build("my_method.py", 0.9, {}, 35, 350)
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import nn

from apps.common.toml import convert as from_toml
from sparsekit import allocation
from sparsekit.discovery import class_in
from sparsekit.execution import convert
from sparsekit.method import Method, discover
from sparsekit.patterns import NM, Block, Columns, Pattern, Rows, Unstructured
from sparsekit.spelling import choice

TIMES = ("begin", "end", "every", "at", "rewind_to", "gradient_steps")
COUNTS = ("every", "gradient_steps")  # at least 1
ALLOCATIONS = {name: getattr(allocation, name) for name in ("uniform", "er", "erk")}

# The fields' own defaults are for trainings of 30,000 steps and more. Every method
# that has the field gets the same time here.
TIME_DEFAULTS = {"every": "1 epoch", "end": "75%"}


def names() -> list[str]:
    """Names that `--method` takes: no sparsity at all, then every discovered method."""
    return ["dense", *discover()]


def method_class(name: str) -> type[Method] | None:
    """The class behind a name, or in a file `PATH.py` or `PATH.py:Class`.

    None for "dense". Raises ValueError for an unknown name, listing the known ones.
    """
    if name == "dense":
        return None
    path, _, attribute = name.partition(":")
    if not path.endswith(".py"):
        known = discover()
        if name not in known:
            refused = choice(f"method {name!r} is unknown", name, names())
            raise ValueError(
                f"{refused}, or give a file: my_method.py or my_method.py:Class"
            )
        return known[name]
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such method file: {path}")
    unique = f"sparsekit_method_file_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(unique, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not attribute:
        return class_in(module, Method)
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"{path} has no subclass of Method named {attribute!r}")
    return found


def fields_of(name: str) -> set[str]:
    """The fields of a method's dataclass; none for "dense"."""
    cls = method_class(name)
    return set() if cls is None else {field.name for field in fields(cls)}


def build(
    name: str,
    sparsity: float,
    options: Mapping[str, Any],
    steps_per_epoch: int,
    total_steps: int,
) -> Method | None:
    """The method with its times in steps; None for "dense".

    Times not given are "1 epoch" for `every` and "75%" for `end`. Two methods differ:
    one-shot pruning happens at "33%" (before training there is nothing to choose from,
    and late there is no learning rate left to recover), and the rounds of iterative
    pruning share the training equally.

    Raises ValueError for an unknown name or option, a wrong type, a sparsity outside
    [0, 1).

    >>> build("rigl", 0.9, {"every": "2 epochs"}, 35, 350).end  # 75 %
    262
    """
    cls = method_class(name)
    if cls is None:
        if options:
            raise ValueError(f"method 'dense' takes no options, got {sorted(options)}")
        return None
    known = {field.name: field for field in fields(cls) if field.name != "sparsity"}
    unknown = sorted(set(options) - set(known))
    if unknown:
        refused = f"method {name!r} has no option {unknown[0]!r}"
        raise ValueError(choice(refused, unknown[0], known, "it has"))
    given = _time_defaults(name, known, options, total_steps) | dict(options)
    hints = get_type_hints(cls)
    values = {}
    for key, value in given.items():
        if key in TIMES:
            values[key] = in_steps(key, value, steps_per_epoch, total_steps)
        else:
            values[key] = _converted(key, value, hints[key])
    return cls(sparsity=sparsity, **values)


def field_values(cls: type, what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A table of options in the types of a dataclass's fields.

    what: has the options, as in "strategy 'er'". Raises ValueError for an unknown
    option, listing the known ones, or a wrong type.
    """
    known = [field.name for field in fields(cls) if field.init]
    hints = get_type_hints(cls)
    values = {}
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                choice(f"{what} has no option {name!r}", name, known, "it has")
            )
        try:
            values[name] = from_toml(value, hints[name])
        except ValueError as error:
            raise ValueError(
                f"option {name} of {what} must be {error}, got {value!r}"
            ) from None
    return values


def require_backend(backend: str, method: str) -> None:
    """ValueError for backend values without a sparse method."""
    if backend == "values" and method == "dense":
        raise ValueError(
            "backend values stores what a sparse method keeps: method dense needs "
            "backend masked"
        )


def in_steps(
    key: str, value: Any, steps_per_epoch: int, total_steps: int
) -> int | None:
    """A time as optimizer steps; at least 1 for what is a number of steps.

    >>> in_steps("end", "75%", 35, 350), in_steps("every", "2 epochs", 35, 350)
    (262, 70)
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*(%|epochs?|steps?|)\s*", str(value))
    if match is None or isinstance(value, (float, bool)):
        raise ValueError(
            f"{key} is a time: an integer of steps, '2 epochs' or '75%', got {value!r}"
        )
    number, unit = float(match[1]), match[2].rstrip("s")
    scale = {"%": total_steps / 100, "epoch": steps_per_epoch}.get(unit, 1)
    return max(round(number * scale), 1 if key in COUNTS else 0)


def _time_defaults(
    name: str, known: Mapping[str, Any], options: Mapping[str, Any], total: int
) -> dict[str, Any]:
    defaults = {key: time for key, time in TIME_DEFAULTS.items() if key in known}
    if name == "oneshot":
        defaults["at"] = "33%"
    if name == "imp":
        rounds = int(options.get("rounds", known["rounds"].default))
        defaults["every"] = max(1, total // (rounds + 1))
    return defaults


def _converted(key: str, value: Any, hint: Any) -> Any:
    """An option's value, from text where needed, in the type of its field."""
    if isinstance(value, str) and key == "allocation":
        if value not in ALLOCATIONS:
            raise ValueError(choice(f"{key} {value!r} is unknown", value, ALLOCATIONS))
        return ALLOCATIONS[value]
    if isinstance(value, str) and hint is Pattern:
        return pattern(value)
    allowed = get_args(hint) or (hint,)
    try:
        if isinstance(value, str):
            value = _from_text(value, allowed)
        if float in allowed and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wrong_bool = isinstance(value, bool) and bool not in allowed
        plain = all(kind in (bool, int, float, str, type(None)) for kind in allowed)
        if plain and (wrong_bool or not isinstance(value, allowed)):
            raise ValueError
    except ValueError:
        kinds = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
        raise ValueError(f"option {key} must be {kinds}, got {value!r}") from None
    return value


def _from_text(text: str, allowed: tuple[type, ...]) -> Any:
    if str in allowed:
        return text
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if int in allowed:
        return int(text)
    if float in allowed and isfinite(float(text)):
        return float(text)
    raise ValueError


def pattern(text: str) -> Pattern:
    """A pattern from text: unstructured, rows, columns, 2:4, 4x4 (a block).

    >>> pattern("2:4")
    NM(n=2, m=4)
    """
    simple: dict[str, Callable[[], Pattern]] = {
        "unstructured": Unstructured, "rows": Rows, "columns": Columns,
    }  # fmt: skip
    if text in simple:
        return simple[text]()
    match = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    if match is None:
        known = [*simple, "2:4", "4x4"]
        raise ValueError(choice(f"pattern {text!r} is unknown", text, known))
    return (NM if match[2] == ":" else Block)(int(match[1]), int(match[3]))


def maskable(
    keep_dense: Sequence[str], model: nn.Module
) -> Callable[[str, nn.Parameter], bool] | None:
    """The parameters that are masked, as Sparsifier's `params` takes it.

    keep_dense: patterns of names that are left out, as "classifier.*". Without any,
    None, the Sparsifier's own choice.

    Raises ValueError for a pattern that matches no parameter.
    """
    if not keep_dense:
        return None
    names = [name for name, _ in model.named_parameters()]
    for pattern in keep_dense:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"keep_dense: {pattern!r} matches no parameter; the model has "
                f"{', '.join(names)}"
            )

    def choose(name: str, parameter: nn.Parameter) -> bool:
        kept = any(fnmatchcase(name, pattern) for pattern in keep_dense)
        return parameter.dim() >= 2 and not kept

    return choose


def in_values_mode(
    model: nn.Module, params: Callable[[str, nn.Parameter], bool] | None
) -> nn.Module:
    """The model with layers that store alive weights only, where they are masked.

    Convolutions that are not masked get such a layer too, with all of their weights:
    between two of them, a dense one would convert its activations in and out.

    params: what `maskable` returned.
    """
    if params is None:
        return convert(model, to="values", where="all")

    def where(name: str, module: nn.Module) -> bool:
        masked = params(f"{name}.weight", module.weight)
        return masked or isinstance(module, nn.Conv2d)

    return convert(model, to="values", where=where)
