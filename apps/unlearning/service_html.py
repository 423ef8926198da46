"""The report for an auditor: one HTML file that loads nothing and runs nothing.

What was asked, what was done, how far the model is from retrained ones, what attacks
see, what became of old files, what is out of scope. All text is escaped; the figures
are drawn in the page.
"""

from html import escape
from pathlib import Path
from typing import Any

from apps.unlearning.ledger import Batch, Ledger
from apps.unlearning.service_figure import attack_figure, gap_figure
from apps.unlearning.service_receipt import OUT_OF_SCOPE
from sparsekit import atomic

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --page: #ffffff; --soft: #6b6b6b;
  --line: #d0d0d0; --blue: #1f6fb0; --vermilion: #b84a00; --green: #00704f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --page: #161616;
  --soft: #a5a5a5; --line: #444444; --blue: #6db6ee; --vermilion: #ff9450;
  --green: #4cc9a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td.n { text-align: right; white-space: nowrap; } th.n { text-align: right; }
@media (max-width: 30rem) {
  table { font-size: .8rem; } th, td { padding-right: .4rem; } }
.wide { overflow-x: auto; } code { overflow-wrap: anywhere; font-size: .85rem; }
.soft { color: var(--soft); } .verified { color: var(--green); }
.failed { color: var(--vermilion); } figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .9rem; }
svg { width: 100%; max-width: 34rem; height: auto; display: block; }
"""
SECURITY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(ledger: Ledger, path: Path) -> None:
    """Writes the page about all requests, batches and files of a ledger."""
    atomic.write_text(path, page(ledger))


def page(ledger: Ledger) -> str:
    """The whole page."""
    counts = ledger.counts()
    states = [ledger.state(request) for request in ledger.requests()]
    summary = ", ".join(
        f"{states.count(s)} {s}"
        for s in ("verified", "failed", "done", "running", "received")
        if s in states
    )
    parts = [
        "<h1>Deletion requests and what was done about them</h1>",
        f"<p>{counts['requests']} requests: {escape(summary) or 'none yet'}. Data set "
        f"<b>{escape(ledger.fact('data'))}</b>, {counts['subjects']} subjects with "
        f"{counts['records']} records listed.</p>",
        "<h2>What was asked</h2>",
        _requests(ledger),
        "<h2>What was done</h2>",
        *[_batch(ledger, batch) for batch in ledger.batches()],
        "" if ledger.batches() else "<p>Nothing yet.</p>",
        "<h2>Models and files</h2>",
        _files(ledger),
        "<h2>What this does not show</h2>",
        _list(OUT_OF_SCOPE),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">'
        f"<title>Deletion report</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _requests(ledger: Ledger) -> str:
    rows = []
    for request in ledger.requests():
        log = ledger.log(request)
        state = escape(log[-1].state)
        rows.append(
            (
                f"<code>{escape(request)}</code>",
                str(len(ledger.records_asked(request))),
                _time(log[0].at),
                f'<span class="{state}">{state}</span>',
                _time(log[-1].at),
            )
        )
    heads = ("request", "records", "received", "state", "since")
    return _table(heads, rows, numbers=(1,)) if rows else "<p>No requests.</p>"


def _batch(ledger: Ledger, batch: Batch) -> str:
    requests = ledger.requests_of(batch.id)
    settings = batch.settings
    options = ", ".join(f"{k} = {v}" for k, v in settings["options"].items())
    learned = len(ledger.trained_on(batch.base))
    facts = [
        f"<h3>Batch {batch.id}: <span class='{escape(batch.state)}'>"
        f"{escape(batch.state)}</span></h3>",
    ]
    done = f"{len(requests)} requests, method <b>{escape(settings['method'])}</b>"
    done += f" ({escape(options)})" if options else ""
    if batch.result is not None:
        kept = len(ledger.trained_on(batch.result))
        seconds = f"{batch.facts['seconds']:.3g} s"
        done += f": {learned - kept} of {learned} records left out, {seconds}"
    facts.append(f"<p>{done}. Started {_time(batch.started)}.</p>")
    if batch.state == "failed":
        facts.append(f'<p class="failed">{escape(batch.audit["why"])}</p>')
    for number, of, text in ledger.receipts():
        if of == batch.id:
            facts.append(_receipt(number, text))
    if batch.audit:
        facts.append(_audit(batch.audit))
    return "\n".join(facts)


def _receipt(number: int, text: str) -> str:
    from apps.common.receipt import parse

    receipt, _ = parse(text.encode("utf-8"))
    lines = [
        f"<p>Receipt <code>receipts/{number:04}.json</code>, level "
        f'<b class="verified">{escape(receipt.level)}</b>. {escape(receipt.verdict)} '
        f"Mask: {escape(receipt.mask.note)}.</p>",
        "<p class='soft'>Check it: <code>sparsekit unlearning verify "
        f"receipts/{number:04}.json --files .</code></p>",
    ]
    files = (("model before", receipt.before), ("model after", receipt.after))
    rows = [(name, f"<code>{escape(f.sha256)}</code>") for name, f in files]
    rows.append(
        ("key", f"<code>{escape(receipt.signature.key_sha256)}</code>"),
    )
    return "\n".join([*lines, _table(("SHA-256 of", ""), rows)])


def _audit(audit: dict[str, Any]) -> str:
    """Two figures and the table of all their numbers."""
    if not audit.get("attacks"):
        return ""
    heads = ("", "gap, 95 % interval", "unlearned", "retrained", "original")
    everything = [*audit["metrics"], *audit["attacks"]]
    rows = []
    for row in everything:
        cells = [_short(row[k]) for k in ("unlearned", "retrained", "original")]
        gap = f"{_signed(row['gap']['value'])} {_ends(row['gap'])}"
        rows.append((f"<b>{escape(row['name'])}</b>", gap, *cells))
    said = tuple(f"{row['name']}: {row['about']}" for row in everything)
    return "\n".join(
        [
            "<h3>What attacks see</h3>",
            _figure(
                attack_figure(audit["attacks"]),
                "AUC of telling erased records from fresh ones, with 95 % intervals; "
                "0.5 is guessing. The unlearned model should lie with the retrained "
                "ones, not with the original, on neither side.",
            ),
            "<h3>The gap to retraining</h3>",
            _figure(
                gap_figure(everything, audit["margin"]),
                "Unlearned minus retrained, with 95 % intervals over records and over "
                f"{audit['references']} retrained models. The shaded band is the "
                "margin for attacks.",
            ),
            f"<p>{escape(audit['smallest_detectable'])}</p>",
            _table(heads, rows, numbers=(1, 2, 3, 4)),
            _list(said),
        ]
    )


def _files(ledger: Ledger) -> str:
    current = int(ledger.fact("current"))
    rows = [
        (
            f"<code>{escape(file.path)}</code>",
            escape(file.kind),
            f"{file.bytes:,}",
            "<b>current</b>" if file.id == current else escape(file.state),
        )
        for file in ledger.artefacts()
    ]
    return _table(("file", "kind", "bytes", "state"), rows, numbers=(2,))


def _table(
    heads: tuple[str, ...], rows: list[tuple[str, ...]], numbers: tuple[int, ...] = ()
) -> str:
    """heads are escaped here; rows are HTML."""

    def cell(tag: str, i: int, text: str) -> str:
        kind = ' class="n"' if i in numbers else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    head = "".join(cell("th", i, escape(text)) for i, text in enumerate(heads))
    body = "\n".join(
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _list(texts: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _time(at: str) -> str:
    """To the minute, which cannot be broken over two lines."""
    return escape(at[:16].replace("T", " ")).replace("-", "&#8209;")


def _short(estimate: dict[str, Any]) -> str:
    return f"{float(estimate['value']):.3f}"


def _signed(text: str) -> str:
    return f"{float(text):+.3f}"


def _ends(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return "(no interval)"
    return f"[{_signed(estimate['low'])}, {_signed(estimate['high'])}]"
