"""Which tests run which lines of the package, and how long each takes."""

import ast
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

KERNELS = "sparsekit/execution/kernels/"


@dataclass
class Lines:
    """tests: {test: seconds}; runs: {file: {line: tests}}.

    sources: {file: digest} of what was run; of a file that has changed since, all tests
    that use it are taken.
    """

    tree: Path
    tests: dict[str, float]
    runs: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    partial: bool = False  # only some of the tests

    @classmethod
    def read(cls, path: Path, tree: Path) -> "Lines":
        saved = json.loads(path.read_text("utf-8"))
        names = list(saved["tests"])
        runs = {
            file: {int(n): {names[i] for i in tests} for n, tests in lines.items()}
            for file, lines in saved["runs"].items()
        }
        return cls(tree, saved["tests"], runs, saved["sources"])

    def write(self, path: Path) -> None:
        number = {test: i for i, test in enumerate(self.tests)}
        runs = {
            file: {
                n: sorted(number[test] for test in tests if test in number)
                for n, tests in sorted(lines.items())
            }
            for file, lines in sorted(self.runs.items())
        }
        sources = {f: self.sources.get(f, digest(self.tree / f)) for f in runs}
        saved = {"tests": self.tests, "runs": runs, "sources": sources}
        path.write_text(json.dumps(saved), "utf-8")

    def of_files(self, files: Sequence[str]) -> "Lines":
        """What tests of some files ran; of all files if none is named."""
        if not files:
            return self
        some = {t: s for t, s in self.tests.items() if t.split("::")[0] in files}
        return replace(self, tests=some, partial=True)

    def without(self, files: Sequence[str]) -> "Lines":
        """What tests of other files ran."""
        others = {t: s for t, s in self.tests.items() if t.split("::")[0] not in files}
        return replace(self, tests=others) if others else Lines(self.tree, {})

    def add(self, recorded: Iterable[str]) -> None:
        """Lines of text as the recorder writes them: test, file, line or seconds."""
        for text in recorded:
            test, file, line = text.rstrip("\n").split("\t")
            if not file:
                self.tests[test] = float(line)
                continue
            lines = self.runs.setdefault(file, defaultdict(set))
            lines.setdefault(int(line), set()).add(test)

    def tests_of(self, file: str, first: int, last: int) -> set[str]:
        """Tests that run one of the lines; for line 0, on import, all of the file's."""
        if not first or self.sources.get(file) != digest(self.tree / file):
            return self.users(file) or self.indirect(file)
        lines = self.runs.get(file, {})
        found = set().union(*(lines.get(n, set()) for n in range(first, last + 1)))
        return found & self.tests.keys()

    def indirect(self, file: str) -> set[str]:
        """Tests that run a module which imports the file, and those named after it.

        Of compiled code they are all that is known.
        """
        name = f"test_{Path(file).name}"
        named = {t for t in self.tests if Path(t.split("::")[0]).name == name}
        return named.union(*map(self.users, importers(self.tree, file)))

    def users(self, file: str) -> set[str]:
        """Tests that run any line of a file."""
        return set().union(*self.runs.get(file, {}).values()) & self.tests.keys()


@cache
def digest(path: Path) -> str:
    """Of a file's content; "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else ""


def digests(tree: Path, folders: Iterable[str]) -> str:
    """Of all Python files in some folders."""
    files = sorted(path for folder in folders for path in (tree / folder).rglob("*.py"))
    text = "".join(f"{path.relative_to(tree)} {digest(path)}\n" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def importers(tree: Path, file: str) -> set[str]:
    """Files of the package that import one, themselves or through a kernel."""
    names = {file.removesuffix(".py").replace("/", ".")}
    files = {
        str(path.relative_to(tree)): _imported(path)
        for path in sorted((tree / "sparsekit").rglob("*.py"))
    }
    found: set[str] = set()
    while True:
        new = {f for f, uses in files.items() if uses & names} - found
        if not new:
            return found
        found |= new
        names |= {f.removesuffix(".py").replace("/", ".") for f in new if KERNELS in f}


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
