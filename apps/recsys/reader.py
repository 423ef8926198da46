"""Recommends where there is no torch, scipy or numba: numpy is enough.

python -m apps.recsys.reader model.safetensors --user 42 --k 5
python -m apps.recsys.reader model.safetensors --history 50 181 --because 2
python -m apps.recsys.reader model.safetensors --like 50

recommender = Recommender.open("model.safetensors")
"""

import argparse
import sys
from collections.abc import Sequence

from apps.recsys.artefact import Artefact, load
from apps.recsys.container import DamagedFile
from apps.recsys.recommender import Filters, Recommendation, Recommender, UnknownId

__all__ = [
    "Artefact",
    "DamagedFile",
    "Filters",
    "Recommender",
    "UnknownId",
    "load",
    "main",
    "table",
]


def table(items: Sequence[Recommendation]) -> str:
    """A line for each item: rank, score, id, title, reasons."""
    lines = []
    for rank, item in enumerate(items, 1):
        line = f"{rank:3}  {item.score:9.4f}  {item.item}"
        if item.title is not None:
            line += f"  {item.title}"
        if item.reasons:
            because = "; ".join(r.title or r.item for r in item.reasons)
            line += f"  (because of {because})"
        # A file may come from anywhere: no control codes to the terminal.
        lines.append("".join(c if c.isprintable() else "?" for c in line))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints recommendations; 0 if that went well, 1 with a message if not."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.recsys.reader", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="an id of the file")
    who.add_argument("--history", nargs="*", metavar="ITEM", help="ids of items")
    who.add_argument("--like", metavar="ITEM", help="items that are like this one")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--because", type=int, default=0, help="reasons for each item")
    args = parser.parse_args(argv)
    try:
        recommender = Recommender.open(args.file)
        if args.like is not None:
            items = recommender.similar(args.like, args.k)
        else:
            found = recommender.recommend(
                args.user, history=args.history, k=args.k, reasons=args.because
            )
            items = found.items
            print(f"source: {found.source}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(items))
    return 0


if __name__ == "__main__":
    sys.exit(main())
