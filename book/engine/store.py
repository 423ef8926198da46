"""Keep measurements with the book: what a reader's machine takes too long for.

python -m book.engine.store --profile full
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.common.ledger import results_folder
from book.engine.chapter import PROFILES
from book.engine.runs import ROOT


def store(own: Path, stored: Path, replace: bool = False) -> list[Path]:
    """Copies every measurement of the folder `own` to `stored`; the paths written.

    Nothing is copied if one of them would take the place of one that was measured on
    another device, unless `replace`.

    Raises:
        FileNotFoundError: if there are no measurements.
        ValueError: naming the file and both devices.
    """
    files = sorted(own.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"no measurements in {own}; run make book PROFILE={own.name} first"
        )
    for path in files:
        kept = stored / path.name
        here, there = device(path), device(kept) if kept.is_file() else None
        if kept.is_file() and here != there and not replace:
            raise ValueError(
                f"{kept} was measured on another device ({there}) than {path} "
                f"({here}): make results PROFILE={own.name} REPLACE=1 to replace it"
            )
    stored.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, stored / path.name)) for path in files]


def device(path: Path) -> str | None:
    """What a result was measured on; None if it does not say."""
    content: Any = json.loads(path.read_text("utf-8"))
    origin = content.get("provenance") if isinstance(content, dict) else None
    return origin.get("device") if isinstance(origin, dict) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stored, 1 refused."""
    parser = argparse.ArgumentParser(prog="python -m book.engine.store")
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--replace", action="store_true", help="another device's too")
    args = parser.parse_args(argv)
    stored = ROOT / "book" / "results" / args.profile
    try:
        paths = store(results_folder() / args.profile, stored, args.replace)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(*(p.relative_to(ROOT) for p in paths), "Stored; commit them.", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
