"""CONTRIBUTING's walk-through is walked: a method is added to a copy of the package."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekit.method import discover

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SECTION = PAGE.split("## Add a sparsity method")[1].split("\n## ")[0]
PROGRAM = "import sys; from sparsekit.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the method of the walk-through in it."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("sparsekit", "apps"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.S)
    (folder / "sparsekit/methods/thinning.py").write_text(code, "utf-8")
    return folder


def run(package: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(package)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_find_the_method_and_it_keeps_the_contract(package: Path) -> None:
    (commands,) = re.findall(r"```bash\n(.*?)```", SECTION, re.S)
    shown = [
        run(package, *shlex.split(line, comments=True)[1:])
        for line in commands.strip().splitlines()
    ]
    assert len(shown) == 3
    for text in (shown[0], shown[2]):
        assert "thinning" in text
    assert "thinning" not in discover()  # the copy's, not ours


def test_it_is_styled_and_typed_as_the_rest(package: Path) -> None:
    path = package / "sparsekit/methods/thinning.py"
    config = str(ROOT / "pyproject.toml")
    for command in (
        ["ruff", "check", "--config", config],
        ["ruff", "format", "--check", "--config", config],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command, path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
