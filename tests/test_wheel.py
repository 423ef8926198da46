"""The package as others install it: a wheel, read from outside the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGED = ("sparsekit", "apps")
APPS = ("classify", "data-pruning", "continual", "recsys", "unlearning")
PROGRAM = """
import sys
from sparsekit.cli import main
assert main(["methods"]) == 0
for app in sys.argv[1:]:
    assert main([app, "--help"]) == 0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build in the tree keeps modules that were deleted since."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    run(
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        out,
        source,
    )
    return next(out.glob("sparsekit-*.whl"))


def run(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_every_module_and_preset_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if ".dist-info/" not in n}
    kinds = (".py", ".toml", ".schema.json")
    expected = {
        str(path.relative_to(ROOT))
        for name in PACKAGED
        for path in (ROOT / name).rglob("*")
        if path.name.endswith(kinds)
    }
    assert packed == expected


def test_it_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    run("-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path, wheel)
    path = str(tmp_path)
    found = run("-c", "import sparsekit; print(sparsekit.__file__)", PYTHONPATH=path)
    assert found.startswith(path)
    shown = run("-c", PROGRAM, *APPS, PYTHONPATH=path)
    assert "rigl" in shown
    for app in APPS:
        assert f"sparsekit {app}" in shown
