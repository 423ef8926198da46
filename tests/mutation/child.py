"""One process a fault: forked after the slow imports, ended when a test fails."""

import contextlib
import gc
import importlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import pytest
from hypothesis import Phase, settings

SLOW_TO_IMPORT = (
    "torch", "scipy.sparse", "scipy.stats", "scipy.optimize",
    "sklearn.metrics",
    "sklearn.linear_model", "pandas", "onnx", "onnxruntime", "torch._dynamo",
    "torch.distributed", "torch.multiprocessing", "torch.func",
    "torch.utils.flop_counter",
    "torch.utils.data", "torch.nn.utils.prune", "torch.export", "numba.extending",
    "matplotlib.pyplot", "lightning.pytorch", "transformers.trainer",
)  # fmt: skip
PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")  # others take time to load
OPTIONS = [
    "-q", "-p", "no:cacheprovider", "-o", "addopts=",
    *(word for name in PLUGINS for word in ("-p", name)),
]  # fmt: skip


def preload() -> None:
    for name in SLOW_TO_IMPORT:
        with contextlib.suppress(Exception):  # not installed, or not fit for this torch
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # pytest collects garbage when it ends: not among all of this


class Chosen:
    """Runs the chosen tests only, in their order, and notes how they end.

    With a `part` (i, n) they are every n-th test of their files, from the i-th.
    """

    def __init__(self, tests: Sequence[str], part: tuple[int, int] | None, notes: Any):
        self.order = {test: i for i, test in enumerate(tests)}
        self.part, self.notes = part, notes
        self.failed: list[str] = []
        self.seconds: dict[str, float] = {}

    def pytest_collection(self) -> None:
        settings.register_profile(
            "mutation",
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
        )
        settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = self.order
        if self.part:
            first, step = self.part
            items[:] = items[first::step]
        else:
            items[:] = [item for item in items if item.nodeid in order]
            items.sort(key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.notes:
            self.notes.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.passed:
            took = self.seconds.get(report.nodeid, 0.0) + report.duration
            self.seconds[report.nodeid] = took

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.notes:
            self.notes.begin("")
            if nodeid in self.seconds and nodeid not in self.failed:
                self.notes.passed(nodeid, self.seconds[nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid or "collection")


def run_tests(
    tree: Path,
    environment: dict[str, str],
    groups: Sequence[Sequence[str]],
    part: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """In a forked process: {"failed": tests, "seconds": {test: seconds}}.

    Groups of tests run one after the other, until one fails. With a `part` a group is a
    list of files, of which that part of the tests runs to the end.
    """
    here = os.getcwd()
    given = [
        os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(":") if p
    ]
    path = [str(tree / "tests/mutation/hook"), str(tree), *given]
    sys.path[:] = path + [p for p in sys.path if p not in ("", here, *given)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "apps")]:
        del sys.modules[name]
    private = tempfile.mkdtemp()
    os.environ |= {
        "MUTATION_TREE": str(tree),
        "PYTHONPATH": os.pathsep.join(path),
        "SPARSEKIT_CACHE": private,
        "HYPOTHESIS_STORAGE_DIRECTORY": private,
        "TMPDIR": private,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        **environment,
    }
    tempfile.tempdir = private
    numba.config.CACHE_DIR = environment.get("NUMBA_CACHE_DIR", "")  # read on import
    os.chdir(tree)
    sys.modules.pop("sitecustomize", None)
    start = importlib.import_module("sitecustomize")
    limit = 600 if part is None else 90
    options = [*OPTIONS, "-o", f"timeout={limit}"]
    failed: list[str] = []
    seconds: dict[str, float] = {}
    try:
        for group in groups:
            # Sorted: pytest 9.1 loses the fixtures of a folder that it comes back to.
            files = sorted({test.split("::")[0] for test in group})
            chosen = Chosen(group, part, start.recorder)
            stop = [] if part else ["-x"]
            code = pytest.main([*options, *stop, *files], plugins=[chosen])
            failed += chosen.failed
            seconds |= chosen.seconds
            if code not in (0, 5) and not failed:
                failed.append(f"pytest ended with {code!r}")
            if failed and not part:
                break
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return {"failed": failed, "seconds": seconds}


def fork(work: Callable[[], dict[str, Any]], log: Path) -> int:
    """Runs work() in a process group of its own; its result goes beside the log."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log.with_suffix(".json").write_text(json.dumps(work()), "utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
