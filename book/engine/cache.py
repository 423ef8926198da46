"""Keep the runs of chapters whose inputs did not change.

An entry is a folder `<profile>/<chapter>/<key>/` with the executed notebook, the
measurements it recorded and what the run took. The key is a hash of the contents of
everything that a run depends on; times and dates do not count.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from book.engine.chapter import Chapter

KEPT = 3  # entries per chapter and profile: switching branches stays cheap
ENGINE = ("chapter.py", "execution.py")  # what shapes a run; rendering does not


@dataclass(frozen=True)
class Run:
    """An executed chapter on disk."""

    folder: Path

    @property
    def notebook(self) -> Path:
        return self.folder / "notebook.ipynb"

    @property
    def results(self) -> Path:
        """The recorded measurements; absent if the chapter recorded none."""
        return self.folder / "results.json"

    @property
    def facts(self) -> dict[str, Any]:
        """profile, seconds, commit, date, machine of the run."""
        return json.loads((self.folder / "run.json").read_text("utf-8"))


def code_files(root: Path, text: str) -> list[Path]:
    """The files of code that a chapter with this text can reach.

    The core, `apps.common` (which pins the data) and each app whose name occurs in
    the chapter. No app imports another (tests/test_layering.py), so an edit of one
    app leaves the chapters of the others cached.
    """
    folders = [root / "sparsekit"]
    for app in sorted(p for p in (root / "apps").glob("*") if p.is_dir()):
        if app.name == "common" or re.search(rf"\b{re.escape(app.name)}\b", text):
            folders.append(app)
    files = [p for f in folders for s in ("py", "toml") for p in f.rglob(f"*.{s}")]
    engine = [root / "book" / "engine" / name for name in ENGINE]
    named = [root / "constraints.txt", root / "apps" / "__init__.py"]
    return sorted({p for p in [*files, *engine, *named] if p.is_file()})


def chapter_claims(claims: Path, name: str) -> list[Any]:
    """The claims of one chapter: a page may print their statements and verdicts."""
    if not claims.is_file():
        return []
    table = tomllib.loads(claims.read_text("utf-8"))
    rows = [*table.get("claim", []), *table.get("finding", [])]
    return [row for row in rows if row.get("chapter") == name]


def run_key(
    chapter: Chapter,
    parameters: Mapping[str, Any],
    *,
    root: Path,
    claims: Path,
    packages: Iterable[str] = ("torch", "numpy", "matplotlib"),
) -> str:
    """Hash of what a run depends on: 64 hex digits.

    Chapter, parameters, reachable code and presets, pins, the chapter's claims and
    stored results, Python and the packages really installed (an environment may lack
    the pins).
    """
    digest = hashlib.sha256()

    def add(*parts: str | bytes) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            digest.update(f"{len(data)}:".encode() + data)

    add(chapter.name, chapter.text, json.dumps(dict(parameters), sort_keys=True))
    for path in code_files(root, chapter.text):
        add(path.relative_to(root).as_posix(), path.read_bytes())
    add(json.dumps(chapter_claims(claims, chapter.name), sort_keys=True, default=str))
    # A page may show the stored measurements of a GPU run.
    for path in sorted(claims.parent.glob("results/*/*.json")):
        if path.name.startswith(chapter.name) or path.name in chapter.text:
            add(path.relative_to(claims.parent).as_posix(), path.read_bytes())
    add(sys.version.split()[0], *(f"{p}={version(p)}" for p in packages))
    return digest.hexdigest()


def entry(cache: Path, profile: str, name: str, key: str) -> Path:
    """Folder of one entry."""
    return cache / profile / name / key[:20]


def find(cache: Path, profile: str, name: str, key: str) -> Run | None:
    """The cached run, if there is one; marks it as used."""
    run = Run(entry(cache, profile, name, key))
    if not (run.folder / "run.json").is_file() or not run.notebook.is_file():
        return None
    os.utime(run.folder)
    return run


def store(
    cache: Path,
    profile: str,
    name: str,
    key: str,
    *,
    notebook: Path,
    results: Path | None,
    facts: Mapping[str, Any],
) -> Run:
    """Keep a run, and drop the oldest of this chapter. An entry appears at once."""
    folder = entry(cache, profile, name, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Run(Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-")))
    shutil.copyfile(notebook, fresh.notebook)
    if results is not None:
        shutil.copyfile(results, fresh.results)
    (fresh.folder / "run.json").write_text(json.dumps(dict(facts), indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.folder.rename(folder)
    others = sorted(
        (p for p in folder.parent.iterdir() if not p.name.startswith(".")),
        key=lambda p: p.stat().st_mtime,
    )
    for old in others[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return Run(folder)


def restore_results(run: Run, results: Path, profile: str, name: str) -> None:
    """Put a run's measurements where the ledger reads them; remove older ones."""
    target = results / profile / f"{name}.json"
    if not run.results.is_file():
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    shutil.copyfile(run.results, part)
    part.replace(target)
