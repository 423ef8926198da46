"""One process a fault: forked after the slow imports, ended when a test fails."""

import contextlib
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

import pytest
from hypothesis import Phase, settings

SLOW_TO_IMPORT = (
    "torch", "numba", "scipy.sparse", "scipy.stats", "scipy.optimize",
    "sklearn.metrics",
    "sklearn.linear_model", "pandas", "onnx", "onnxruntime", "torch._dynamo",
    "torch.distributed", "torch.multiprocessing", "torch.func",
    "torch.utils.flop_counter",
    "torch.utils.data", "torch.nn.utils.prune", "torch.export", "numba.extending",
)  # fmt: skip


def preload() -> None:
    for name in SLOW_TO_IMPORT:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Chosen:
    """Runs the chosen tests only, in their order, and notes how they end."""

    def __init__(self, tests: Sequence[str] | None, begin: Callable[[str], None]):
        self.order = None if tests is None else {t: i for i, t in enumerate(tests)}
        self.begin = begin
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
        if order is not None:
            items[:] = [item for item in items if item.nodeid in order]
            items.sort(key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.passed:
            took = self.seconds.get(report.nodeid, 0.0) + report.duration
            self.seconds[report.nodeid] = took

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.begin("")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid or "collection")


def run_tests(
    tree: Path,
    environment: dict[str, str],
    groups: Sequence[Sequence[str]],
    whole_files: bool = False,
) -> dict[str, Any]:
    """In a forked process: {"failed": tests, "seconds": {test: seconds}}.

    Groups of tests run one after the other, until one fails. With `whole_files` a group
    is a list of files, and all their tests run to the end.
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
        **environment,
    }
    tempfile.tempdir = private
    os.chdir(tree)
    sys.modules.pop("sitecustomize", None)
    start = importlib.import_module("sitecustomize")
    begin = start.recorder.begin if start.recorder else lambda test: None
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "timeout=600"]
    failed: list[str] = []
    seconds: dict[str, float] = {}
    try:
        for group in groups:
            files = list(dict.fromkeys(test.split("::")[0] for test in group))
            chosen = Chosen(None if whole_files else group, begin)
            stop = [] if whole_files else ["-x"]
            code = pytest.main([*options, *stop, *files], plugins=[chosen])
            failed += chosen.failed
            seconds |= chosen.seconds
            if code not in (0, 5) and not failed:
                failed.append(f"pytest ended with {code!r}")
            if failed and not whole_files:
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
