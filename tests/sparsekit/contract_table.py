"""The table of methods in the book: what of the contract each of them keeps.

python -m tests.sparsekit.contract_table    # a minute or two; writes the file
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsekit import atomic
from sparsekit.method import Method, discover
from sparsekit.testing import repetition, steps
from sparsekit.testing.backends import check_backends
from sparsekit.testing.compilation import check_compile
from sparsekit.testing.processes import check_processes
from sparsekit.testing.subject import Subject, factory
from sparsekit.testing.training import FAMILIES, one_thread

FILE = Path(__file__).parents[2] / "book/results/contracts/methods.json"
SPARSITY, STEPS = 0.7, 13
ALL = "with SGD, momentum, AdamW and fused AdamW"
WHAT = (
    "What every sparsity method keeps, found out by training a small network with "
    f"convolution, batch norm and linear layers for {STEPS} steps at sparsity "
    f"{SPARSITY}. yes: held, to the last bit where nothing else is said."
)
COLUMNS = {
    "masked": f"Exact counts, zeros in weights and moments, {ALL}, plain, foreach and "
    "fused; resumed after any step as without a break; at sparsity 0 as dense.",
    "values": f"Layers that store the alive weights only train as masked ones, {ALL} "
    "(fused: each step within a relative 1e-4); resumed after any step.",
    "masked, 2 processes": f"Two processes give what one gives, {ALL}.",
    "values, 2 processes": f"The same in layers that store the alive weights, {ALL}.",
    "masked, killed": "One of two processes is killed after 5 steps; two new ones go "
    "on to what one gives, with momentum and fused AdamW.",
    "values, killed": "The same in layers that store the alive weights.",
    "compiled": "The compiled model trains as the plain one; moves compile nothing.",
}


def cells() -> dict[str, dict[str, str]]:
    """{method: {column: "yes", or what it breaks}}."""
    makers = {name: factory(cls) for name, cls in discover().items()}
    rows: dict[str, dict[str, str]] = {name: {} for name in makers}
    with one_thread():
        for name, make in makers.items():
            subject, method = Subject(make, SPARSITY, STEPS), make(SPARSITY)
            rows[name] |= {
                "masked": _verdict(_check_masked, subject),
                "values": _verdict(check_backends, subject),
                "compiled": _verdict(check_compile, method),
            }
    methods = {name: make(SPARSITY) for name, make in makers.items()}
    for mode, values in (("masked", False), ("values", True)):
        for what, optimizers, killed_after in (
            ("2 processes", FAMILIES, None),
            ("killed", ("momentum", "AdamW, fused"), 5),
        ):

            def check(some: Sequence[Method]) -> None:
                check_processes(
                    some,
                    values=[values],  # noqa: B023
                    optimizers=optimizers,  # noqa: B023
                    killed_after=killed_after,  # noqa: B023
                )

            together = _verdict(check, list(methods.values()))
            for name, method in methods.items():
                one = together if together == "yes" else _verdict(check, [method])
                rows[name][f"{mode}, {what}"] = one
    return {name: {c: row[c] for c in COLUMNS} for name, row in rows.items()}


def _check_masked(subject: Subject) -> None:
    steps.check_form(subject)
    steps.check_optimizers(subject)
    repetition.check_seed(subject)
    repetition.check_resume(subject)
    repetition.check_dense(subject)


def _verdict(check: Callable, argument: object) -> str:
    try:
        check(argument)
    except AssertionError as error:
        return f"– {error}"
    return "yes"


def main() -> None:
    table = {"what": WHAT, "columns": COLUMNS, "rows": cells()}
    atomic.write_text(FILE, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    print(FILE)


if __name__ == "__main__":
    main()
