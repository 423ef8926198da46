"""Numpy is enough: read, recommend and explain in a process that has nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.recsys.artefact import save
from apps.recsys.export import artefact_of
from apps.recsys.models.closed_form import ItemKNN
from apps.recsys.models.factors import Factors
from apps.recsys.reader import Recommender, main, table
from apps.recsys.recommender import Recommendation
from apps.recsys.scoring import FoldIn
from tests.apps.recsys.artefacts import dataset, vectors

ROOT = Path(__file__).parents[3]
BLOCKED = ("torch", "scipy", "numba", "pandas", "pyarrow", "sklearn", "safetensors")
SCRIPT = """
import sys
from apps.recsys.reader import Filters, Recommender
for path in sys.argv[1:]:
    r = Recommender.open(path)
    a = r.recommend("u/3", k=3, reasons=2)
    b = r.recommend(history=["i1"], k=3, filters=Filters(where={"genre": "War"}))
    print([x.item for x in (*a.items, *b.items, *r.similar("i2", 3))])
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    data, folder = dataset(), tmp_path_factory.mktemp("files")
    model = Factors(*vectors(data))
    for kind in ("float32", "int8"):
        artefact = artefact_of(model, data, kind=kind, fold_in=FoldIn(0.1, 0.5))
        save(folder / kind, artefact)
    save(folder / "linear", artefact_of(ItemKNN(5).fit(data.train), data))
    return sorted(folder.iterdir())


def test_numpy_is_all_it_needs(paths, tmp_path):
    """Every other package is blocked in a fresh process; the answers are ours."""
    for name in BLOCKED:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError({name!r})\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, *map(str, paths)]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for path, line in zip(paths, lines, strict=True):
        r = Recommender.open(path)
        expected = [x.item for x in r.recommend("u/3", k=3).items]
        assert line.startswith(str(expected)[:-1])
        assert line.count("'i") == 9


@pytest.mark.parametrize(
    "arguments",
    [
        ["--user", "u/3", "--because", "1"],
        ["--history", "i1", "i4"],
        ["--history"],
        ["--like", "i7"],
    ],
)
def test_the_command(paths, capsys, arguments):
    assert main([str(paths[0]), *arguments, "--k", "4"]) == 0
    out = capsys.readouterr().out
    assert out.count("Film") >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--user", "1"], "No such file"),
        (["{file}", "--user", "nobody"], "no user 'nobody'"),
        (["{file}", "--history", "x"], "no item 'x'"),
        (["{file}", "--like", "i1", "--k", "0"], "k must be"),
    ],
)
def test_what_the_command_refuses(paths, capsys, arguments, message):
    arguments = [a.replace("{file}", str(paths[0])) for a in arguments]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_terminal_gets_no_control_codes():
    line = table([Recommendation("a\x1b[2J", 1.0, "b\nc‮")])
    assert line == "  1     1.0000  a?[2J  b?c?"
