"""Dependencies point one way: book -> apps.X -> apps.common -> sparsekit -> torch.

And a test file that asserts nothing is a mistake.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASSERTING = ("assert", "check_", "raises", "warns", "fail")


def imported(source: str) -> set[str]:
    """Every module that a source imports, at any depth in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("." * node.level + (node.module or ""))
            else:
                # `from apps import recsys` imports apps.recsys.
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def layer(parts: tuple[str, ...]) -> str | None:
    """sparsekit, apps.common, apps.X, book; None for third-party modules."""
    if parts[0] in ("sparsekit", "book", "tests", "benchmarks"):
        return parts[0]
    if parts[0] == "apps":
        return ".".join(parts[:2])
    return None


def allowed(source: str, target: str) -> bool:
    """Whether the layer `source` may import from the layer `target`."""
    if target in ("tests", "benchmarks"):
        return False
    if source == "book" or source == target:
        return True
    if source == "sparsekit":
        return False
    if source in ("apps", "apps.common"):
        return target in ("apps", "apps.common", "sparsekit")
    return target in ("apps", "apps.common", "sparsekit")


def violations(path: str, source: str) -> list[str]:
    """Imports of one file that point the wrong way. path: relative, with slashes."""
    parts = tuple(path.removesuffix(".py").split("/"))
    own = "apps" if parts == ("apps", "__init__") else layer(parts)
    found = []
    for name in sorted(imported(source)):
        if name.startswith("."):
            found.append(f"{path}: relative import {name}; write the whole path")
            continue
        target = layer(tuple(name.split(".")))
        if target is not None and own is not None and not allowed(own, target):
            found.append(f"{path}: {own} imports {name}")
    return found


def asserts(source: str) -> bool:
    """Whether a test file checks something."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name.startswith(ASSERTING):
                return True
    return False


def files(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def test_imports_point_one_way():
    found = []
    for path in files("sparsekit", "apps", "book"):
        found += violations(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "n_found"),
    [
        ("sparsekit/masks.py", "import torch\nfrom sparsekit import scores", 0),
        ("sparsekit/masks.py", "def f():\n    from apps.common import runs", 1),
        ("sparsekit/masks.py", "import apps.common.runs", 1),
        ("apps/common/runs.py", "from sparsekit.masks import pack", 0),
        ("apps/common/runs.py", "from apps import classify", 1),
        ("apps/recsys/train.py", "from apps.common.runs import RunFolder", 0),
        ("apps/recsys/train.py", "from apps.classify.models import build", 1),
        ("apps/recsys/train.py", "from . import models", 1),
        ("apps/recsys/train.py", "import book.engine", 1),
        ("book/engine/site.py", "from apps.common.ledger import scoreboard", 0),
        ("book/engine/site.py", "from tests.book import fixtures", 1),
    ],
)
def test_the_rule_on_examples(path, source, n_found):
    assert len(violations(path, source)) == n_found


def test_every_test_file_asserts():
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in files("tests")
        if path.name.startswith("test_") and not asserts(path.read_text("utf-8"))
    ]
    assert not silent, f"test files without an assertion: {silent}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def test_a():\n    f()", False),
        ("def test_a():\n    assert f()", True),
        ("def test_a():\n    with pytest.raises(ValueError):\n        f()", True),
        ("def test_a():\n    torch.testing.assert_close(a, b)", True),
        ("def test_a():\n    check_method(RigL)", True),
    ],
)
def test_what_counts_as_an_assertion(source, expected):
    assert asserts(source) is expected
