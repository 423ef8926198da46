"""See `python -m tests.mutation --help`; what it does is told in `tests/mutation`."""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutation import child, pool, scores
from tests.mutation.lines import KERNELS, Lines, digest
from tests.mutation.operators import mutants

BOOK = Path("book/results/contracts/mutation.json")
SUITE = ("tests/sparsekit", "tests/mutants")
COPIED = ("sparsekit", "apps", "tests", "benchmarks", "pyproject.toml")
LEFT_OUT = (
    # The tester's own faults are those of tests/mutants, planted by hand.
    "sparsekit/testing/",
)
BUDGET = 40.0  # seconds of tests a fault; the fastest come first


def main() -> None:
    options = _arguments()
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    if options.report:
        print(scores.text(scores.read(results, Path.cwd())))
        if options.keep:
            from sparsekit import atomic  # here: a child must import the package itself

            table = scores.table(results, Path.cwd())
            atomic.write_text(BOOK, json.dumps(table, indent=1) + "\n")
        return
    deadline = time.monotonic() + options.seconds
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        tree = copy_tree(Path.cwd(), Path(scratch) / "tree")
        compiled = folder / "compiled"  # kernels, for the faults outside them
        child.preload()
        runner = Runner(tree, Path(scratch), compiled, options.workers, deadline)
        recorded = folder / "lines.json"
        if options.lines or not recorded.exists():
            runner.record(recorded)
        lines = Lines.read(recorded, tree)
        if options.check:
            runner.check(lines)
        chosen = runner.choose(options.files, options.kernels)
        chosen = scores.unfinished(chosen, results, options.again)
        runner.judge(chosen, lines, results)
    print(scores.text(scores.read(results, Path.cwd())))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description="Plants small faults in sparsekit/ and counts those tests notice.",
    )
    add = parser.add_argument
    add("--seconds", type=float, default=600, help="stop after so long (600)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    add("--files", nargs="+", default=[], help="only these files; the default is all")
    add("--kernels", type=int, default=200, help="faults of compiled kernels (200)")
    add("--folder", default="build/mutation", help="results and what is kept for them")
    add("--lines", action="store_true", help="record again which tests run which lines")
    add("--check", action="store_true", help="leave out tests that fail here anyway")
    add("--again", action="store_true", help="also try again the faults that survived")
    add("--report", action="store_true", help="print scores and survivors, run nothing")
    add("--keep", action="store_true", help="with --report: put it into the book")
    return parser.parse_args()


def copy_tree(source: Path, tree: Path) -> Path:
    """Faults are planted in a copy, so that the sources may change meanwhile."""
    tree.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, tree / name, ignore=ignored)
        else:
            shutil.copy2(source / name, tree / name)
    return tree


class Runner:
    def __init__(
        self, tree: Path, scratch: Path, compiled: Path, workers: int, deadline: float
    ):
        self.tree, self.scratch, self.compiled = tree, scratch, compiled
        self.workers, self.deadline = workers, deadline

    def _run(self, jobs: Sequence[pool.Job] | Iterator[pool.Job]):
        return pool.run(jobs, self.workers, self.scratch, self.deadline)

    def _job(self, what: Any, groups: Any, limit: float, **more: Any) -> pool.Job:
        whole = more.pop("whole_files", False)
        environment = {"NUMBA_CACHE_DIR": str(self.compiled), **more}
        return pool.Job(
            what,
            lambda: child.run_tests(self.tree, environment, groups, whole),
            limit,
        )

    def record(self, path: Path) -> None:
        """Runs every test file once, and writes down lines and seconds."""
        files = sorted(
            str(file.relative_to(self.tree))
            for part in SUITE
            for file in (self.tree / part).rglob("test_*.py")
        )
        log = self.scratch / "lines"
        jobs = [
            self._job(f, [[f]], 3600, whole_files=True, MUTATION_LINES=f"{log}-{i}")
            for i, f in enumerate(files)
        ]
        lines = Lines(self.tree, {})
        for job, result, seconds in self._run(jobs):
            failed = result["failed"] if result else ["too slow"]
            print(f"{seconds:6.1f} s  {job.what}", *failed[:3], flush=True)
            if result:
                passed = result["seconds"].items()
                lines.tests |= {t: s for t, s in passed if t not in failed}
        for file in sorted(self.scratch.glob("lines-*")):
            with open(file, encoding="utf-8") as recorded:
                lines.add(recorded)
        lines.write(path)

    def check(self, lines: Lines) -> None:
        """Runs all tests on the sound code, in parts; those that fail are left out."""
        files: dict[str, list[str]] = {}
        for test in lines.tests:
            files.setdefault(test.split("::")[0], []).append(test)
        jobs = [
            self._job(part, [part], 600, whole_files=False)
            for tests in files.values()
            for part in (tests[i::4] for i in range(4))
            if part
        ]
        jobs.sort(key=lambda job: -sum(lines.tests[t] for t in job.what))
        passed: dict[str, float] = {}
        for _, result, _ in self._run(jobs):
            passed |= result["seconds"] if result else {}
        left_out = sorted(lines.tests.keys() - passed.keys())
        print(f"{len(passed)} tests pass here; left out: {left_out[:20]}", flush=True)
        lines.tests = {test: passed[test] for test in lines.tests if test in passed}

    def choose(self, files: Sequence[str], n_kernels: int) -> list[dict[str, Any]]:
        """Faults in an order of which every beginning is a fair sample of all."""
        found = []
        for path in sorted((self.tree / "sparsekit").rglob("*.py")):
            file = str(path.relative_to(self.tree))
            if (files and file not in files) or file.startswith(LEFT_OUT):
                continue
            source = path.read_text("utf-8")
            known = {"file": file, "source": digest(path)}
            found += [{**known, **asdict(mutant)} for mutant in mutants(source)]
        found.sort(key=lambda m: _drawn(f"{m['file']}:{m['number']}"))
        kernels = [m for m in found if m["file"].startswith(KERNELS)][:n_kernels]
        others = [m for m in found if not m["file"].startswith(KERNELS)]
        share = len(kernels) / max(1, len(found))
        mixed, taken = [], 0
        for i, mutant in enumerate(others):
            while taken < share * (i + 1) and taken < len(kernels):
                mixed.append(kernels[taken])
                taken += 1
            mixed.append(mutant)
        return mixed + kernels[taken:]

    def judge(
        self, chosen: Sequence[dict[str, Any]], lines: Lines, results: Path
    ) -> None:
        """Appends to the results, fault by fault."""
        done = 0
        with open(results, "a", encoding="utf-8") as file:
            for job, result, seconds in self._run(self._jobs(chosen, lines)):
                verdict = "timeout" if result is None else "survived"
                by = (result or {}).get("failed", [])[:1]
                if by:
                    verdict = "killed"
                line = {**job.what, "result": verdict, "by": by}
                file.write(json.dumps(line | {"seconds": round(seconds, 2)}) + "\n")
                file.flush()
                done += 1
                if done % 100 == 0:
                    left = self.deadline - time.monotonic()
                    print(f"{done} of {len(chosen)}, {left:.0f} s left", flush=True)

    def _jobs(
        self, chosen: Sequence[dict[str, Any]], lines: Lines
    ) -> Iterator[pool.Job]:
        for mutant in chosen:
            file = mutant["file"]
            groups = _groups(file, mutant, lines)
            seconds = sum(lines.tests[test] for group in groups for test in group)
            fault = {"MUTANT": f"{file}:{mutant['number']}"}
            limit = 20 + 4 * seconds
            if file.startswith(KERNELS):
                fresh = tempfile.mkdtemp(dir=self.scratch)
                fault["NUMBA_CACHE_DIR"], limit = fresh, limit + 100
            what = {**mutant, "tests": sum(map(len, groups))}
            yield self._job(what, groups, limit, **fault)


def _groups(file: str, mutant: dict[str, Any], lines: Lines) -> list[list[str]]:
    """The tests of the file itself, then others; the fastest first, up to BUDGET."""
    tests = lines.tests_of(file, mutant["first"], mutant["last"])
    stem = Path(file).stem
    own = {t for t in tests if t.split("::")[0].endswith(f"test_{stem}.py")}
    groups, spent = [], 0.0
    for part in (own, tests - own):
        group = []
        for test in sorted(part, key=lambda t: (lines.tests[t], t)):
            spent += lines.tests[test]
            if spent > BUDGET and (group or groups):
                break
            group.append(test)
        if group:
            groups.append(group)
    return groups


def _drawn(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
