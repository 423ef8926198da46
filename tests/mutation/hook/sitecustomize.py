"""Python imports this by itself at the start, in the processes that tests start too.

MUTANT=sparsekit/masks.py:17 plants a fault in the file when it is imported;
MUTATION_LINES=FILE appends "test, file, line" to FILE when a line first runs, and
"test, , seconds" when a test has passed.
"""

import os
import sys
import threading
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FrameType, ModuleType
from typing import Any

TREE = os.environ.get("MUTATION_TREE", "")
PACKAGE = os.path.join(TREE, "sparsekit") + os.sep
# Of Python 3.12; MUTATION_TRACE is for where it does not work.
monitoring: Any = getattr(sys, "monitoring", None)
if os.environ.get("MUTATION_TRACE"):
    monitoring = None
TOOL = 3  # a number that no debugger, profiler or coverage tool takes


class Planter(MetaPathFinder):
    """Finds one module as usual, and has a fault put into its source."""

    def __init__(self, module: str, number: int):
        self.module, self.number = module, number

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            loader: Loader = Faulty(name, spec.origin)
            spec.loader = loader
            Faulty.number = self.number
        return spec


class Faulty(SourceFileLoader):
    number = -1

    def get_code(self, fullname: str) -> CodeType:
        from tests.mutation.operators import mutated

        with open(self.path, encoding="utf-8") as file:
            tree = mutated(file.read(), self.number)
        return compile(tree, self.path, "exec", dont_inherit=True)


class Recorder:
    """Writes down each line of the package that runs in a test, once."""

    def __init__(self, path: str):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.begin(os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0])

    def begin(self, test: str) -> None:
        self.test = test
        self.seen: set[tuple[str, int]] = set()
        if monitoring:
            monitoring.restart_events()

    def passed(self, test: str, seconds: float) -> None:
        os.write(self.file, f"{test}\t\t{seconds:.3f}\n".encode())

    def start(self) -> None:
        """Only the package's code is slowed down, from Python 3.12 on."""
        if not monitoring:
            threading.settrace(self.call)
            sys.settrace(self.call)
            return
        events = monitoring.events
        monitoring.use_tool_id(TOOL, "tests.mutation")
        monitoring.register_callback(TOOL, events.PY_START, self.function)
        monitoring.register_callback(TOOL, events.LINE, self.place)
        monitoring.set_events(TOOL, events.PY_START)

    def function(self, code: CodeType, offset: int) -> Any:
        if code.co_filename.startswith(PACKAGE):
            monitoring.set_local_events(TOOL, code, monitoring.events.LINE)
        return monitoring.DISABLE

    def place(self, code: CodeType, line: int) -> Any:
        self.write(code.co_filename, line)
        return monitoring.DISABLE

    def call(self, frame: FrameType, event: str, value: Any) -> Any:
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame: FrameType, event: str, value: Any) -> Any:
        if event == "line":
            self.write(frame.f_code.co_filename, frame.f_lineno)
        return self.line

    def write(self, path: str, line: int) -> None:
        if (path, line) not in self.seen:
            self.seen.add((path, line))
            text = f"{self.test}\t{path[len(TREE) + 1 :]}\t{line}\n"
            os.write(self.file, text.encode())


recorder: Recorder | None = None


def install() -> None:
    global recorder
    if mutant := os.environ.get("MUTANT"):
        path, _, number = mutant.rpartition(":")
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        sys.meta_path.insert(0, Planter(module, int(number)))
    if path := os.environ.get("MUTATION_LINES"):
        recorder = Recorder(path)
        recorder.start()


install()
