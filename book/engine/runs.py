"""Run chapters: timing chapters alone and first, the others side by side."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apps.common.ledger import results_folder
from book.engine import cache
from book.engine.cache import Run
from book.engine.chapter import Chapter, ChapterError, read_chapter, read_contents
from book.engine.progress import Reporter, reporter

# Time limit of one cell, seconds: against one that hangs, not against a slow or busy
# machine. `full` runs by hand, on other machines.
CELL_SECONDS = {"smoke": 600, "laptop": 3600, "full": None}
GRACE = 5.0  # seconds that an interrupted chapter has to end its kernel
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Book:
    """Where a book's sources are, and where its runs go.

    folder: holds _toc.yml, chapters/ and the other pages.
    build: runs, cache and site; may be deleted at any time.
    root: the code that chapters use (sparsekit/, apps/, constraints.txt).
    results: measurements, `<profile>/<chapter>.json`, where the ledger reads them.
    """

    folder: Path = ROOT / "book"
    build: Path = ROOT / "build"
    root: Path = ROOT
    results: Path = field(default_factory=results_folder)

    @property
    def cache(self) -> Path:
        return self.build / "cache"

    @property
    def claims(self) -> Path:
        return self.folder / "claims.toml"

    def chapters(self) -> list[Chapter]:
        """Every chapter of `_toc.yml`, checked."""
        return [read_chapter(p) for p in read_contents(self.folder / "_toc.yml")]


@dataclass(frozen=True)
class Failure:
    """Why a chapter did not run through; `cell` counts its code cells from 1."""

    chapter: str
    kind: str
    text: str
    cell: int | None = None
    source: str = ""

    def __str__(self) -> str:
        place = f"{self.chapter}, code cell {self.cell}" if self.cell else self.chapter
        lines = [f"{place}: {self.kind}"]
        if self.source:
            lines += ["", *(f"    {line}" for line in self.source.splitlines())]
        return "\n".join([*lines, "", self.text])


class RunError(Exception):
    """Chapters failed; `failures` says which, where and why."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        super().__init__("\n\n".join(map(str, failures)))


class Processes:
    """The processes of the chapters that run now; `stop` ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    @contextmanager
    def started(self, *command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A process, which has ended afterwards."""
        with self._lock:
            if self._stopped:
                raise InterruptedError("no process is started any more")
            process = subprocess.Popen(command, text=True, **options)
            self._running.add(process)
        try:
            yield process
            process.wait()
        except BaseException:
            end(process)
            raise
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Ends a chapter's process, and its kernel with it, whether it listens or not."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def environment(chapter: Chapter, results: Path, claims: Path) -> dict[str, str]:
    """Environment of a chapter's process: its threads, its ledger, no progress bars."""
    env = dict(os.environ)
    env.update(dict.fromkeys(THREADS, str(chapter.options.threads)))
    env["SPARSEKIT_RESULTS"] = str(results)
    env["SPARSEKIT_CLAIMS"] = str(claims) if claims.is_file() else ""
    env["TQDM_DISABLE"] = "1"  # one output on stderr per refresh otherwise
    env["PYTHONHASHSEED"] = "0"
    env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # debugger's warning on stderr
    env.pop("MPLBACKEND", None)  # the kernel chooses the inline one
    path = [str(ROOT), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(p for p in path if p)
    return env


def commit(root: Path) -> str | None:
    """The commit of the code, with `+` when files differ from it; None without git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def execute(
    chapter: Chapter,
    profile: str,
    book: Book,
    show: Reporter,
    key: str,
    processes: Processes,
) -> Run | Failure:
    """Run one chapter in an empty folder, check it and keep it."""
    runs = book.build / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=runs, prefix=f"{chapter.name}-"))
    cwd, results = folder / "cwd", folder / "results"
    cwd.mkdir()
    job = {
        "source": str(chapter.path),
        "folder": str(folder),
        "cwd": str(cwd),
        "output": str(folder / "notebook.ipynb"),
        "parameters": {"profile": profile},
        "cell_seconds": chapter.options.cell_seconds or CELL_SECONDS[profile],
    }
    (folder / "job.json").write_text(json.dumps(job))
    began = time.perf_counter()
    try:
        env = environment(chapter, results, book.claims)
        end = converse(chapter, folder, env, show, processes)
        if isinstance(end, Failure):
            return end
        recorded = sorted(p for p in results.rglob("*.json"))
        own = results / profile / f"{chapter.name}.json"
        for path in recorded:
            if path != own:
                return Failure(
                    chapter.name,
                    "measurements of another chapter",
                    f"it recorded {path.relative_to(results)}; use "
                    f'Ledger(chapter="{chapter.name}", profile=profile)',
                )
        facts = {
            "profile": profile,
            "seconds": round(time.perf_counter() - began, 1),
            "commit": commit(book.root),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
            f"Python {platform.python_version()}",
            "key": key,
        }
        return cache.store(
            book.cache,
            profile,
            chapter.name,
            key,
            notebook=folder / "notebook.ipynb",
            results=own if own in recorded else None,
            facts=facts,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def converse(
    chapter: Chapter,
    folder: Path,
    env: dict[str, str],
    show: Reporter,
    processes: Processes,
) -> dict[str, Any] | Failure:
    """Start the chapter's process and follow its reports until it ends."""
    command = [sys.executable, "-m", "book.engine.execution", str(folder / "job.json")]
    with open(folder / "log.txt", "w+", encoding="utf-8") as log:
        end: dict[str, Any] | Failure | None = None
        with processes.started(
            *command, stdout=subprocess.PIPE, stderr=log, env=env, cwd=folder
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                kind = event.pop("event")
                if kind == "cell":
                    show.cell(chapter.name, event["number"], event["total"])
                elif kind == "done":
                    end = event
                else:
                    end = Failure(chapter.name, **event)
        if end is None or (process.returncode and not isinstance(end, Failure)):
            log.seek(0)
            return Failure(
                chapter.name,
                f"its process ended with status {process.returncode}",
                log.read()[-4000:],
            )
        return end


def fetch_data(chapters: Sequence[Chapter]) -> None:
    """Fetch the data that the chapters declare, once, showing progress."""
    names = sorted({name for chapter in chapters for name in chapter.options.data})
    if names:
        from apps.common import datasets  # imports what the engine does not need

        try:
            datasets.fetch(names)
        except (OSError, ValueError) as error:
            who = ", ".join(c.name for c in chapters if c.options.data)
            raise ChapterError(f"data of {who}: {error}") from error


def run_chapters(
    chapters: Sequence[Chapter],
    profile: str,
    book: Book,
    *,
    jobs: int = 2,
    show: Reporter | None = None,
) -> dict[str, Run]:
    """Run the chapters that are not cached; restore the measurements of all.

    Returns the run of each chapter. Raises RunError after all have been tried; if it is
    interrupted, the chapters that run are ended and the others are not begun.
    """
    keys = run_keys(chapters, profile, book)
    found = cached_runs(chapters, profile, book, keys)
    todo = [chapter for chapter in chapters if chapter.name not in found]
    fetch_data(todo)
    done: dict[str, Run] = {}
    failures: list[Failure] = []
    lock, processes = threading.Lock(), Processes()
    with show or reporter(len(chapters)) as show:

        def finish(chapter: Chapter, run: Run | Failure, how: str) -> None:
            with lock:
                if isinstance(run, Failure):
                    failures.append(run)
                    how = f"FAILED ({run.kind})"
                else:
                    cache.restore_results(run, book.results, profile, chapter.name)
                    done[chapter.name] = run
                show.end(chapter.name, how)

        def work(chapter: Chapter) -> None:
            began = time.perf_counter()
            with lock:
                show.start(chapter.name)
            run = execute(chapter, profile, book, show, keys[chapter.name], processes)
            finish(chapter, run, f"ran in {time.perf_counter() - began:.1f} s")

        for chapter in chapters:
            if chapter.name in found:
                finish(chapter, found[chapter.name], "unchanged, from the cache")
        for chapter in [c for c in todo if c.options.alone]:
            work(chapter)
        beside = [c for c in todo if not c.options.alone]
        with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
            try:
                for future in [pool.submit(work, chapter) for chapter in beside]:
                    future.result()
            except BaseException:
                processes.stop()  # else the pool would wait for all of them
                raise
    if failures:
        raise RunError(failures)
    return {chapter.name: done[chapter.name] for chapter in chapters}


def run_keys(chapters: Sequence[Chapter], profile: str, book: Book) -> dict[str, str]:
    """The cache's key of each chapter, for the sources as they are now."""
    return {
        c.name: cache.run_key(
            c, {"profile": profile}, root=book.root, claims=book.claims
        )
        for c in chapters
    }


def cached_runs(
    chapters: Sequence[Chapter],
    profile: str,
    book: Book,
    keys: Mapping[str, str] | None = None,
) -> dict[str, Run]:
    """The runs that are in the cache for the sources as they are now."""
    keys = keys or run_keys(chapters, profile, book)
    found = {
        name: cache.find(book.cache, profile, name, key) for name, key in keys.items()
    }
    return {name: run for name, run in found.items() if run is not None}
