"""The page of evidence: each claim with its rule, its values and their file."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.common.ledger import OWN
from apps.common.provenance import ROOT
from book.engine.scoreboard import (
    Row,
    badge,
    cell,
    evidence_label,
    measured,
    number,
)

MARK = "<!-- evidence -->"
DATA = "data"  # folder of the site


def page(template: str, rows: Sequence[Row], pages: set[str]) -> str:
    """The page: the template with a section a claim in place of its mark."""
    if template.count(MARK) != 1:
        raise ValueError(f"evidence.md needs one line {MARK!r} for the claims")
    tested = [row for row in rows if row["verdict"] != "planned"]
    sections = [section(row, pages) for row in tested]
    return template.replace(MARK, "\n".join(sections) or "No claim yet.\n")


def section(row: Row, pages: set[str]) -> str:
    """One claim: a heading with the label that the scoreboard links to, and a list."""
    facts = {
        "Verdict": badge(row),
        "Rule": f"`{row['metric']}` {cell(row['rule'])}, in profile "
        f"{row['min_profile']} or above, with {row['min_seeds']} seeds or more",
        "In the paper": cell(row["paper_value"]) if row.get("paper_value") else "",
        "Mean, 95 % interval": measured(row) if row["value"] is not None else "",
        "Values, one a seed": ", ".join(map(number, row["values"] or ())),
        "Made": made(row),
        "File": data_link(row),
        "Would change it": cell(row["would_change"]),
        "Chapter": chapter_link(row, pages),
    }
    who = cell(row.get("reference") or "A question of this book")
    if row["paper"]:
        who = f"Paper {row['paper']}, {cell(row['title'])}"
    items = "\n\n".join(f"{key}\n: {text}" for key, text in facts.items() if text)
    return (
        f"({evidence_label(row)})=\n## Claim {cell(row['id'])}\n\n"
        f"{cell(row['statement'])} (*{who}.*)\n\n{items}\n"
    )


def made(row: Row) -> str:
    """Profile, source, device, date and commit of the values."""
    facts = [f"profile {row['profile']}" if row["profile"] else "", row["source"]]
    facts += [row["device"], row["date"]]
    if row["commit"]:  # `+`: files differed from it
        changed = "+" if row["commit"].endswith("+") else ""
        facts.append(f"commit {row['commit'][:12]}{changed}")
    return ", ".join(cell(fact) for fact in facts if fact)


def chapter_link(row: Row, pages: set[str]) -> str:
    name = row["chapter"]
    return f"[{cell(name)}](chapters/{name}.ipynb)" if name in pages else ""


def data_link(row: Row) -> str:
    """The file of the values, as it lies in the site."""
    address = address_of(row)
    return f'<a href="{address}">{address}</a>, `{row["metric"]}`' if address else ""


def address_of(row: Row) -> str | None:
    """Where the site has a claim's file of values; None without measurements."""
    if not row["data"]:
        return None
    kind = "this-machine" if row["source"] == OWN else "stored"
    return f"{DATA}/{kind}/{row['profile']}/{Path(row['data']).name}"


def copy_data(rows: Sequence[Row], claims: Path, folder: Path) -> Mapping[str, Path]:
    """Put the files of values and claims.toml into `folder`; {address: source}."""
    sources = {f"{DATA}/claims.toml": claims}
    for row in rows:
        address = address_of(row)
        if address:
            sources[address] = ROOT / row["data"]  # an absolute path stays as it is
    for address, source in sources.items():
        (folder / address).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / address)
    return sources


__all__ = ["address_of", "copy_data", "page", "section"]
