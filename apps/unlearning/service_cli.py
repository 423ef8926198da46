"""Commands of the deletion service.

sparsekit unlearning setup --config mnist-random --subjects subjects.csv
sparsekit unlearning request --subjects c-1041 c-2203
sparsekit unlearning run --method retrain
sparsekit unlearning audit
sparsekit unlearning report --out report.html
sparsekit unlearning verify service/receipts/0001.json --files service
sparsekit unlearning retire --wipe
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from apps.common.config import VerbConfig, parse
from apps.common.receipt import printable
from apps.common.verbs import narrowed, required, tell
from apps.unlearning import service_audit
from apps.unlearning.config import PRESETS, Config, Value
from apps.unlearning.ledger import Batch
from apps.unlearning.receipt import verify_command
from apps.unlearning.service import Service
from apps.unlearning.service_html import write_report
from apps.unlearning.service_setup import setup
from sparsekit import atomic


@dataclass(frozen=True)
class SetupConfig(Config):
    """Makes a service: trains the model and lists whose records it was trained on.

    Args:
        folder: of the service; an interrupted setup goes on.
        subjects: .csv or .parquet with the columns subject and record.
        hash_subjects: the ledger keeps keyed hashes in place of the subjects' ids.
        weights: .safetensors of your own model of this architecture, trained on the
            training part that `seed` draws; then nothing is trained here.
    """

    unused: ClassVar[Mapping[str, str]] = {
        "out": "a service is made in --folder",
        "resume": "called again, an interrupted setup goes on",
    }

    folder: Path = Path("service")
    subjects: Path | None = None
    hash_subjects: bool = True
    weights: Path | None = None


@dataclass(frozen=True)
class FolderConfig(VerbConfig):
    """What every verb of a service takes.

    Args:
        folder: of the service.
    """

    folder: Path = Path("service")


@dataclass(frozen=True)
class ReportConfig(FolderConfig):
    """Writes a report that an auditor can read: one HTML file.

    Args:
        out: the file; default: report.html in the folder.
    """

    out: Path | None = None


@dataclass(frozen=True)
class StatusConfig(FolderConfig):
    """Prints where every request, model and file stands.

    Args:
        erased: a .txt file for the records of all verified requests, one a line: what a
            later training must leave out.
    """

    erased: Path | None = None


@dataclass(frozen=True)
class ImportConfig(FolderConfig):
    """Adds to the list of whose the records are.

    Args:
        subjects: .csv or .parquet with the columns subject and record.
    """

    subjects: Path | None = None


@dataclass(frozen=True)
class RequestConfig(FolderConfig):
    """Receives requests to erase subjects. The same request twice is one.

    Args:
        subjects: their ids, as in the file that was imported; all or none is received.
    """

    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegisterConfig(FolderConfig):
    """Lists a file that was made from a model: an export, a copy, optimizer state.

    Args:
        path: of the file, relative to the folder, and in it.
        kind: pruned, export, checkpoint, optimizer, scores, copy, other.
        parents: listed files that it was made from.
    """

    path: str = ""
    kind: str = "export"
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnlearnConfig(FolderConfig):
    """Unlearns all received requests at once; goes on with an interrupted run.

    Args:
        method: a name that `sparsekit unlearning methods` lists; default: that of the
            setup.
        options: the method's fields, such as epochs=3.
        abandon: give the open batch up instead; its requests can be asked again.
    """

    abandon: bool = False
    method: str | None = None
    options: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditConfig(FolderConfig):
    """Compares with retraining; signs a receipt, or says what is not shown.

    Args:
        references: models that are retrained without the erased records.
        margin: gap in AUC that the whole interval of every attack must lie within.
    """

    references: int = 3
    margin: float = 0.1


@dataclass(frozen=True)
class RetireConfig(FolderConfig):
    """Lists files that hold erased records, or removes them for good.

    Args:
        wipe: remove them. Without it nothing is touched.
    """

    wipe: bool = False


def setup_command(argv: list[str]) -> None:
    """Make a deletion service: train, list whose the records are, make keys.

    sparsekit unlearning setup --config mnist-random --subjects subjects.csv
    """
    config = parse(SetupConfig, argv, presets=PRESETS)
    mapping = required(config.subjects, "subjects")  # before keys are made
    setup(
        config.folder,
        narrowed(config, Config),
        mapping,
        config.hash_subjects,
        config.weights,
    )
    with Service(config.folder) as service:
        counts = service.ledger.counts()
    tell(
        {"folder": config.folder, "counts": counts},
        f"{config.folder}: {counts['subjects']} subjects, {counts['records']} records",
        "Publish public.pem; keep key.pem and salt secret, and in your backup.",
    )


def import_command(argv: list[str]) -> None:
    """Add to the list of whose the records are.

    sparsekit unlearning import --folder service --subjects more.csv
    """
    config = parse(ImportConfig, argv)
    with Service(config.folder) as service:
        added = service.import_mapping(required(config.subjects, "subjects"))
    tell({"added": added}, f"{added} new pairs of subject and record")


def request_command(argv: list[str]) -> None:
    """Receive requests to erase subjects.

    sparsekit unlearning request --folder service --subjects c-1041 c-2203
    """
    config = parse(RequestConfig, argv)
    if not config.subjects:
        raise ValueError("--subjects is required: the ids of those to be erased")
    with Service(config.folder) as service:
        requests = service.request_all(config.subjects)
        states = {request: service.ledger.state(request) for request in requests}
    rows = [{"request": request, "state": state} for request, state in states.items()]
    tell(rows, *(f"{request}  {state}" for request, state in states.items()))


def run_command(argv: list[str]) -> int:
    """Unlearn all received requests in one run; go on if it was interrupted.

    sparsekit unlearning run --folder service --method retrain
    """
    config = parse(UnlearnConfig, argv)
    with Service(config.folder) as service:
        if config.abandon:
            batch = service.abandon()
            number = None if batch is None else batch.id
            said = "no batch is open" if batch is None else f"batch {number}: failed"
            tell({"batch": number, "state": batch and batch.state}, said)
            return 0
        batch = service.run(config.method, config.options or None)
        if batch is None:
            failed = len(service.ledger.requests("failed"))
            said = f"; {failed} failed: `request` asks again" * (failed > 0)
            tell({"batch": None}, f"nothing to do: no request is waiting{said}")
            return 0
        requests = service.ledger.requests_of(batch.id)
    method, seconds = batch.settings["method"], batch.facts["seconds"]
    about = {"requests": requests, "method": method, "seconds": seconds}
    tell(
        {"batch": batch.id, "state": batch.state} | about,
        f"batch {batch.id}: {len(requests)} requests, {method}, {seconds:.2f} s; "
        "now `audit`",
    )
    return 0


def audit_command(argv: list[str]) -> int:
    """Compare with retraining; sign a receipt, or say what is not shown (status 1).

    sparsekit unlearning audit --folder service
    """
    config = parse(AuditConfig, argv)
    wanted = service_audit.Settings(config.references, config.margin)
    with Service(config.folder) as service:
        batch = service.audit(wanted)
        if batch is None:
            tell({"batch": None}, "nothing to do: no batch awaits its audit")
            return 0
        content = {"batch": batch.id, "state": batch.state, "audit": batch.audit}
        if batch.state == "verified":
            number = service.ledger.receipts()[-1][0]
            receipt = config.folder / "receipts" / f"{number:04}.json"
            tell(
                content | {"receipt": receipt, "retired": len(service.pending())},
                *audit_lines(batch),
                f"verified: {receipt}",
                f"{len(service.pending())} files are retired: `retire --wipe`",
            )
            return 0
        request = service.ledger.requests_of(batch.id)[0]
        why = service.ledger.log(request)[-1].note
        tell(content | {"why": why}, *audit_lines(batch), f"failed: {why}")
        return 1


def status_command(argv: list[str]) -> None:
    """Print where every request, batch and file stands.

    sparsekit unlearning status --folder service
    """
    config = parse(StatusConfig, argv)
    with Service(config.folder) as service:
        ledger = service.ledger
        if config.erased is not None:
            lines = "".join(f"{record}\n" for record in service.erased())
            atomic.write_text(config.erased, lines)
        current = int(ledger.fact("current"))
        logs = {request: ledger.log(request)[-1] for request in ledger.requests()}
        states = [
            (file, "current" if file.id == current else file.state)
            for file in ledger.artefacts()
        ]
        counts = ledger.counts()
    requests = [
        {"request": name, "state": last.state, "at": last.at, "note": last.note}
        for name, last in logs.items()
    ]
    files = [
        {"path": file.path, "kind": file.kind, "state": state} for file, state in states
    ]
    tell(
        {"counts": counts, "requests": requests, "files": files},
        *(f"{name:10}{count:8}" for name, count in counts.items()),
        *(
            f"{request}  {last.state:9} {last.at}  {printable(last.note)}"
            for request, last in logs.items()
        ),
        *(f"{file.path:32} {file.kind:10} {state}" for file, state in states),
    )


def register_command(argv: list[str]) -> None:
    """List a file that was made from a model: an export, a copy, optimizer state.

    sparsekit unlearning register --path edge.onnx --parents models/0000.safetensors
    """
    config = parse(RegisterConfig, argv)
    if not config.path:
        raise ValueError("--path is required: the file, relative to the folder")
    with Service(config.folder) as service:
        service.register(config.path, config.kind, list(config.parents))
    tell(
        {"path": config.path, "kind": config.kind, "parents": list(config.parents)},
        f"{config.path} is listed: it will be retired with what it was made from",
    )


def retire_command(argv: list[str]) -> int:
    """List retired files, and with --wipe remove them for good.

    sparsekit unlearning retire --folder service --wipe
    """
    config = parse(RetireConfig, argv)
    with Service(config.folder) as service:
        lines = service.wipe() if config.wipe else service.pending()
    text = [
        f"{line.state:8} {line.kind:10} {printable(line.path)}  {line.note}"
        for line in lines
    ]
    tell(list(map(asdict, lines)), *(text or ["nothing is retired"]))
    return 1 if any(line.state == "refused" for line in lines) else 0


def report_command(argv: list[str]) -> None:
    """Write a report that an auditor can read: one HTML file.

    sparsekit unlearning report --folder service --out report.html
    """
    config = parse(ReportConfig, argv)
    out = config.out or config.folder / "report.html"
    with Service(config.folder) as service:
        write_report(service.ledger, out)
    tell({"file": out}, str(out))


def audit_lines(batch: Batch) -> list[str]:
    """The three models side by side, and the gap with its interval."""
    lines = [f"{'':12}{'original':>10}{'unlearned':>11}{'retrained':>11}   gap"]
    for row in [*batch.audit["metrics"], *batch.audit["attacks"]]:
        cells = (float(row[k]["value"]) for k in ("original", "unlearned", "retrained"))
        gap = row["gap"]
        ends = "no interval"
        if gap["low"] is not None:
            ends = f"[{float(gap['low']):+.3f}, {float(gap['high']):+.3f}]"
        shown = "".join(f"{cell:11.3f}" for cell in cells)
        lines.append(f"{row['name']:11}{shown}   {float(gap['value']):+.3f} {ends}")
    return [*lines, batch.audit["smallest_detectable"]]


VERBS = {
    "setup": setup_command,
    "import": import_command,
    "request": request_command,
    "register": register_command,
    "run": run_command,
    "audit": audit_command,
    "status": status_command,
    "retire": retire_command,
    "report": report_command,
    "verify": verify_command,
}
