"""Run the chapters, build the site, say where it is and what it found.

python -m book.engine --profile laptop
python -m book.engine --profile smoke --chapter random-pruning
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from book.engine import scoreboard
from book.engine.chapter import PROFILES, ChapterError, read_chapter
from book.engine.runs import Book, RunError, cached_runs, run_chapters
from book.engine.site import SiteError, build_site, read_rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m book.engine", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--chapter", default="", help="run this chapter only")
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="chapters side by side (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="default: build/book")
    parser.add_argument("--no-site", action="store_true", help="run, do not render")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 built, 1 a chapter or the site failed, 2 bad usage."""
    args, book = parse(argv), Book()
    out = (args.out or book.build / "book").resolve()
    try:
        failed = make(args, book, out)
    except (ChapterError, RunError, SiteError) as error:
        print(f"\n{error}\n\nThe book was not built.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what has run is kept", file=sys.stderr)
        return 130
    if failed is None:
        return 0
    names = ", ".join(failure.chapter for failure in failed.failures)
    print(f"\n{failed}\n\nThe book was built without: {names}", file=sys.stderr)
    return 1


def make(args: argparse.Namespace, book: Book, out: Path) -> RunError | None:
    """Run and render; print the times, the scoreboard and where the book is.

    Where some chapters of the whole book fail, the others are rendered and the error
    is returned.
    """
    began = time.perf_counter()
    chapters = book.chapters()
    if args.chapter:
        # A chapter that is being written need not be in the contents yet.
        wanted = [c for c in chapters if c.name == args.chapter]
        if not wanted:
            draft = read_chapter(book.folder / "chapters" / f"{args.chapter}.md")
            wanted, chapters = [draft], [*chapters, draft]
    else:
        wanted = chapters
    names = ", ".join(chapter.name for chapter in wanted) or "no chapters yet"
    print(f"Profile {args.profile}: {names}", flush=True)
    failed = None
    try:
        runs = run_chapters(wanted, args.profile, book, jobs=args.jobs)
    except RunError as error:
        if args.no_site or len(error.failures) == len(wanted):
            raise
        runs, failed = {}, error  # those that ran through are in the cache
    ran = time.perf_counter()
    if args.no_site:
        print(f"Chapters {ran - began:.1f} s")
        return None
    others = [chapter for chapter in chapters if chapter.name not in runs]
    runs |= cached_runs(others, args.profile, book)
    rows = read_rows(book)
    # With chapters left out, references to their results cannot all resolve.
    strict = len(runs) == len(chapters)
    warnings = build_site(book, chapters, runs, rows, out, strict=strict)
    built = time.perf_counter()
    print(f"Chapters {ran - began:.1f} s, site {built - ran:.1f} s\n")
    if not strict:
        left = [chapter.name for chapter in chapters if chapter.name not in runs]
        print(f"A draft without results of: {', '.join(left)}")
        # Of those pages, warnings are no news.
        told = [w for w in warnings if not any(f"/{name}." in w for name in left)]
        print(*sorted(told, key=lambda w: args.chapter not in w), "", sep="\n")
    if rows:
        print(scoreboard.summary(rows) + "\n")
    print(f"Open {out / 'index.html'}")
    print(f"or   python3 -m http.server --directory {out} 8000")
    return failed


if __name__ == "__main__":
    sys.exit(main())
