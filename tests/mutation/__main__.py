"""See `python -m tests.mutation --help`; what it does is told in `tests/mutation`."""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutation import child, pool, scores
from tests.mutation.lines import KERNELS, Lines, digest, digests, importers
from tests.mutation.operators import mutants

BOOK = Path("book/results/contracts/mutation.json")
SUITE = ("tests/sparsekit", "tests/mutants")
COPIED = ("sparsekit", "apps", "tests", "benchmarks", "pyproject.toml")
INSTALLED = "sparsekit.egg-info"  # if it is there: names of commands and extras
BUDGET = 40.0  # seconds of tests a fault; the fastest come first
PART = 15.0  # seconds of tests that one process runs when lines are recorded
DEFAULTS = "tests/sparsekit/test_defaults.py"
FEW = 5  # tests that run a line: others of the module's test file are tried too


def main() -> None:
    options = _arguments()
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    results.touch()
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
        tree = copy_tree(Path.cwd(), folder / "tree")  # whose path numba remembers
        child.preload()
        runner = Runner(tree, Path(scratch), folder, options.workers, deadline)
        recorded = folder / "lines.json"
        if options.lines or not recorded.exists():
            runner.record(recorded, options.tests, options.seconds * 0.4)
        lines = Lines.read(recorded, tree)
        if options.check:
            runner.check(lines)
        chosen = runner.choose(options.files)
        survived, new = scores.unfinished(chosen, tree, results, options.known)
        if options.again:
            files = [] if options.tests is SUITE else _files(tree, options.tests)
            runner.judge(survived, lines.of_files(files), results)
        runner.judge(new, lines, results)
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
    add("--tests", nargs="+", default=SUITE, help="of --lines and --again")
    add("--folder", default="build/mutation", help="results and what is kept for them")
    add("--known", type=Path, help="results of another folder: leave out their faults")
    add("--lines", action="store_true", help="record again which tests run which lines")
    add("--check", action="store_true", help="leave out tests that fail here anyway")
    add("--again", action="store_true", help="also try again the faults that survived")
    add("--report", action="store_true", help="print scores and survivors, run nothing")
    add("--keep", action="store_true", help="with --report: put it into the book")
    return parser.parse_args()


def copy_tree(source: Path, tree: Path) -> Path:
    """Faults are planted in a copy, so that the sources may change meanwhile."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*COPIED, *([INSTALLED] if (source / INSTALLED).exists() else [])):
        if (source / name).is_dir():
            shutil.copytree(source / name, tree / name, ignore=ignored)
        else:
            shutil.copy2(source / name, tree / name)
    return tree


class Runner:
    def __init__(
        self, tree: Path, scratch: Path, folder: Path, workers: int, deadline: float
    ):
        self.tree, self.scratch = tree, scratch
        self.compiled = folder / "compiled"  # sound kernels
        self.compiled.mkdir(exist_ok=True)
        self.workers, self.deadline = workers, deadline

    def _run(
        self, jobs: Sequence[pool.Job] | Iterator[pool.Job], deadline: float = math.inf
    ):
        end = min(deadline, self.deadline)
        return pool.run(jobs, self.workers, self.scratch, end)

    def _job(
        self, what: Any, groups: Any, limit: float, part: Any = None, **more: Any
    ) -> pool.Job:
        environment = {"NUMBA_CACHE_DIR": str(self.compiled), **more}
        return pool.Job(
            what,
            lambda: child.run_tests(self.tree, environment, groups, part),
            limit,
        )

    def record(self, path: Path, suite: Sequence[str], limit: float) -> None:
        """Runs every test once, and writes down lines and seconds.

        A file is run in parts, more if it took long last time; what the limit cuts off
        is left out. What was recorded of other files of tests is kept.
        """
        old = Lines.read(path, self.tree) if path.exists() else Lines(self.tree, {})
        took = Counter[str]()
        for test, seconds in old.tests.items():
            took[test.split("::")[0]] += seconds
        jobs = []
        for file in _files(self.tree, suite):
            n = 1 + int(took.get(file, 2 * PART) / PART)
            for i in range(n):
                what = f"{file}, part {i + 1} of {n}"
                log = {"MUTATION_LINES": f"{self.scratch}/lines-{len(jobs)}"}
                jobs.append(self._job(what, [[file]], limit, (i, n), **log))
        jobs.sort(key=lambda job: -took.get(job.what.split(",")[0], math.inf))
        begun = time.monotonic()
        for job, result, seconds in self._run(jobs, begun + limit):
            failed = result["failed"] if result else ["too slow"]
            if failed or seconds > 2 * PART:
                print(f"{seconds:6.1f} s  {job.what}", *failed[:3], flush=True)
        lines = old.without(_files(self.tree, suite))
        for file in sorted(self.scratch.glob("lines-*")):
            with open(file, encoding="utf-8") as recorded:
                lines.add(recorded)
        lines.write(path)
        spent = time.monotonic() - begun
        print(f"{len(lines.tests)} tests recorded in {spent:.0f} s", flush=True)

    def check(self, lines: Lines) -> None:
        """Runs all tests on the sound code, in parts; those that fail are left out."""
        files: dict[str, list[str]] = {}
        for test in lines.tests:
            files.setdefault(test.split("::")[0], []).append(test)
        jobs = [
            self._job(part, [part], 600)
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

    def choose(self, files: Sequence[str]) -> list[dict[str, Any]]:
        """Faults in an order of which every beginning is a fair sample of each part."""
        parts: dict[str, list[dict[str, Any]]] = {}
        for path in sorted((self.tree / "sparsekit").rglob("*.py")):
            file = str(path.relative_to(self.tree))
            if (files and file not in files) or file.startswith(scores.LEFT_OUT):
                continue
            source = path.read_text("utf-8")
            known = {"file": file, "source": digest(path)}
            faults = [{**known, **asdict(mutant)} for mutant in mutants(source)]
            parts.setdefault(scores.part(file), []).extend(faults)
        order = []
        for part, found in parts.items():
            found.sort(key=lambda m: _drawn(f"{m['file']}:{m['number']}"))
            often = len(found) * scores.OFTEN.get(part, 1)
            order += [((i + 0.5) / often, part, m) for i, m in enumerate(found)]
        return [mutant for *_, mutant in sorted(order, key=lambda o: o[:2])]

    def judge(
        self, chosen: Sequence[dict[str, Any]], lines: Lines, results: Path
    ) -> None:
        """Appends to the results, fault by fault.

        Raises RuntimeError if a kernel is found beside its source, perhaps a faulty one
        that later tests would load.
        """
        done, suite = 0, digests(self.tree, SUITE)
        with open(results, "a", encoding="utf-8") as file:
            for job, result, seconds in self._run(self._jobs(chosen, lines)):
                verdict = "timeout" if result is None else "survived"
                by = (result or {}).get("failed", [])[:1]
                if by:
                    verdict = "killed"
                line = {**job.what, "result": verdict, "by": by, "suite": suite}
                file.write(json.dumps(line | {"seconds": round(seconds, 2)}) + "\n")
                file.flush()
                done += 1
                if any(self.tree.rglob("*.nbi")):
                    raise RuntimeError(f"compiled into the sources: {job.what}")
                if done % 100 == 0:
                    left = self.deadline - time.monotonic()
                    print(f"{done} of {len(chosen)}, {left:.0f} s left", flush=True)

    def _jobs(
        self, chosen: Sequence[dict[str, Any]], lines: Lines
    ) -> Iterator[pool.Job]:
        for mutant in chosen:
            file = mutant["file"]
            groups = _groups(file, mutant, lines)
            if lines.partial and not groups:
                continue  # the other tests let it pass before
            seconds = sum(lines.tests[test] for group in groups for test in group)
            fault = {"MUTANT": f"{file}:{mutant['number']}"}
            limit = 20 + 4 * seconds
            if file.startswith(KERNELS):
                fault["NUMBA_CACHE_DIR"], limit = self._cache(file), limit + 100
            what = {**mutant, "tests": sum(map(len, groups))}
            yield self._job(what, groups, limit, **fault)

    def _cache(self, file: str) -> str:
        """A copy of the compiled kernels, but for those that one file goes into."""
        fresh = Path(tempfile.mkdtemp(dir=self.scratch))
        stale = {Path(f).stem for f in (file, *importers(self.tree, file))}
        for path in self.compiled.glob("kernels_*/*"):
            if path.name.split(".")[0] not in stale:
                (fresh / path.parent.name).mkdir(exist_ok=True)
                os.link(path, fresh / path.parent.name / path.name)
        return str(fresh)


def _files(tree: Path, suite: Sequence[str]) -> list[str]:
    found = [p for name in suite for p in [tree / name, *(tree / name).rglob("*.py")]]
    return sorted(str(p.relative_to(tree)) for p in found if p.match("test_*.py"))


def _groups(file: str, mutant: dict[str, Any], lines: Lines) -> list[list[str]]:
    """The tests of the file itself, then others; the fastest first, up to BUDGET.

    Of compiled code, and of what was computed once and kept, the lines are not seen.
    """
    tests = lines.tests_of(file, mutant["first"], mutant["last"])
    users = lines.users(file)
    if file.startswith(KERNELS):
        users |= lines.indirect(file)
    own = {t for t in users if t.split("::")[0].endswith(f"test_{Path(file).stem}.py")}
    more = own if len(tests) < FEW else set()
    if file.startswith(KERNELS):
        tests, more = tests | own, users
    if mutant["operator"] == "constant":  # perhaps a default, which no line shows
        more = more | {t for t in users if t.startswith(DEFAULTS)}
    groups, spent = [], 0.0
    for part in (tests & own, tests - own, (more - tests) & own, more - tests - own):
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
