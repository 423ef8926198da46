"""Every method that is found keeps the contract, in all its forms."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from sparsekit.allocation import er, uniform
from sparsekit.method import Method, discover
from sparsekit.methods.dsl import DSL
from sparsekit.methods.gradual import Gradual
from sparsekit.methods.imp import IMP
from sparsekit.methods.mest import MEST
from sparsekit.methods.oneshot import OneShot
from sparsekit.methods.rigl import RigL
from sparsekit.methods.set import SET
from sparsekit.methods.snip import SNIP
from sparsekit.methods.tdm import TDM
from sparsekit.testing import check_method
from sparsekit.testing.compilation import check_compile
from sparsekit.testing.processes import check_processes
from sparsekit.testing.subject import factory
from sparsekit.testing.training import FAMILIES
from tests.sparsekit import contract_table

SMALL = {name: factory(cls)(0.7) for name, cls in discover().items()}

VARIANTS: dict[str, Callable[[float], Method]] = {
    "dsl as released": lambda s: DSL(s, 2, 12, gradient_steps=1),
    "dsl by row": lambda s: DSL(s, 3, 9, gradient_steps=2, by_row=True),
    "dsl that sums without a pause": lambda s: DSL(s, 3, 12, gradient_steps=20),
    "gradual across layers": lambda s: Gradual(s, 0, 8, 1, across_layers=True),
    "gradual in one shot": lambda s: Gradual(s, 4, 4),
    "imp from the start": lambda s: IMP(s, 4, 2, across_layers=False),
    "mest soft": lambda s: MEST(s, 2, 9, extra=0.1, soft=True),
    "mest of all": lambda s: MEST(s, 2, 9, extra=1.0, allocation=uniform),
    "oneshot before training": lambda s: OneShot(s, across_layers=True),
    "rigl that moves all": lambda s: RigL(s, 1, 12, fraction=1.0),
    "rigl by er": lambda s: RigL(s, 2, 9, allocation=er),
    "set that moves nothing": lambda s: SET(s, 2, fraction=0.0),
    "tdm as in the paper": lambda s: TDM(s, 4, 2, 10, 0.1, 0.2, variant="paper"),
    "tdm of the first task": lambda s: TDM(s, 0, 3, 11, inter=0.0),
    "tdm in unequal steps": lambda s: TDM(s, 1, (2, 3, 1), 10, variant="paper"),
    "tdm of all": lambda s: TDM(s, 0, 2, 8, inter=1.0, intra=1.0),
    "snip at once": lambda s: SNIP(s, at=0),
}


@pytest.mark.parametrize("name", discover())
def test_every_method_keeps_the_contract(name: str) -> None:
    check_method(discover()[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_with_other_settings(name: str) -> None:
    check_method(VARIANTS[name])


@pytest.mark.parametrize("sparsity", [0.03, 0.98])
@pytest.mark.parametrize("name", ["rigl", "gradual", "mest", "synflow"])
def test_at_extreme_sparsity(name: str, sparsity: float) -> None:
    check_method(discover()[name], sparsity=sparsity)


@pytest.mark.parametrize(
    ("optimizers", "killed_after"),
    [(FAMILIES, None), (("momentum", "AdamW, fused"), 5)],
    ids=["whole", "killed"],
)
def test_two_processes_equal_one(
    optimizers: Sequence[str], killed_after: int | None
) -> None:
    """Also if one of them is killed, and two others go on from a checkpoint."""
    paper = TDM(0.7, 1, 3, 9, variant="paper")
    check_processes(
        [*SMALL.values(), paper],
        values=(False, True),
        optimizers=optimizers,
        killed_after=killed_after,
    )


@pytest.mark.parametrize("name", SMALL)
def test_compiled_models_train_the_same(name: str) -> None:
    check_compile(SMALL[name])


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile's inductor needs a C++ compiler",
)
def test_code_that_inductor_generates() -> None:
    # In a process of its own: its builder imports setuptools, which fails if anything
    # in this one has imported distutils.
    program = (
        "from sparsekit.methods.rigl import RigL\n"
        "from sparsekit.testing.compilation import check_compile\n"
        "check_compile(RigL(0.7, every=3, end=9), backend='inductor')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_book_lists_every_method_and_its_checks() -> None:
    """The tests above are the proof; `contract_table` writes what they say."""
    table = json.loads(contract_table.FILE.read_text("utf-8"))
    assert table["columns"] == contract_table.COLUMNS
    assert list(table["rows"]) == list(discover())
    for name, row in table["rows"].items():
        assert row == dict.fromkeys(contract_table.COLUMNS, "yes"), name
