"""Lines of text whose cells stand in columns."""

from collections.abc import Collection, Sequence


def aligned(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Each line as text, two blanks between columns, nothing behind the last word.

    Args:
        lines: of equally many cells.
        right: numbers of the columns that end where their widest cell ends.

    >>> print("\\n".join(aligned([["a", "1", "x"], ["bb", "10", ""]], right=[1])))
    a    1  x
    bb  10
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def padded(i: int, cell: str) -> str:
        return cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])

    return [
        "  ".join(padded(i, cell) for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]
