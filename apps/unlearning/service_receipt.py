"""From an audit to a signed receipt, or to a refusal.

A receipt is issued only if the deletion is shown: by a method that is exact by
construction, or by attacks that do not tell the model from retrained ones, within a
margin and with the whole interval. Otherwise the batch fails, and says why.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.common import receipt
from apps.common.receipt import decimal
from apps.common.receipt_fields import SCHEMA, Audit
from apps.common.statistics import Interval
from apps.unlearning import service_work as work
from apps.unlearning.ledger import Batch
from apps.unlearning.ledger_data import Artefact
from apps.unlearning.pruning import Original
from apps.unlearning.service_audit import Settings, compare, values_of

if TYPE_CHECKING:
    from apps.unlearning.service import Service

OUT_OF_SCOPE = (
    "The records themselves: the service takes their influence out of models, it does "
    "not delete them from a data store.",
    "Files outside of the service's folder: backups, downloads, exports and models of "
    "others that were never registered.",
    "What a disk, a snapshot or a backup still holds of files that were removed.",
    "Copies and near copies of the records that stand under another index or subject.",
    "The split of the data, the mean and standard deviation of its inputs, and "
    "settings that were chosen with the records.",
    "Predictions that the model made before, and what was done with them.",
    "The ledger keeps the subject's opaque id, the record indices and this request.",
    "That what is stated is true: a signature shows who states it, and that nothing "
    "was changed since.",
)
APPROXIMATE = (
    "Attacks other than those listed, with more reference models or with knowledge of "
    "the method: not told apart by these attacks is all that is claimed."
)
MASKED = (
    "The mask: it was chosen with the erased records and is kept, in the references "
    "too."
)
PROVENANCE = {
    "dense": "no mask: every weight exists",
    "data-free": "chosen without any record",
    "retain-only": "chosen without the erased records",
    "with-forget-data": "chosen with the erased records, and kept",
}


def audit_batch(
    service: "Service",
    batch: Batch,
    data: work.Material,
    before: Original,
    after: Original,
    key: Any,
    wanted: Settings | None,
    path: Path,
    clock: Callable[[], str],
) -> None:
    """Retrains, compares, and settles the batch in the ledger, one way or the other."""
    wanted = wanted or Settings()
    ledger = service.ledger
    learned, kept = ledger.trained_on(batch.base), ledger.trained_on(batch.result or 0)
    receipt.require_chain(
        [text for *_, text in ledger.receipts()],
        learned,
        _listed(ledger.artefact(batch.base)).sha256,
        key,
    )
    erased = sorted(set(learned) - set(kept))
    parts = {
        "erased": work.chosen(data.train, erased),
        "kept": work.chosen(data.train, kept),
        "fresh": data.fresh,
    }
    models = work.references(
        service.config, data, before, kept, wanted.references, path
    )
    found = compare(
        values_of(before.model, parts),
        values_of(after.model, parts),
        [values_of(model, parts) for model in models],
    )
    audit = as_text(found, wanted)
    stated = Audit.model_validate(audit)
    provenance = ledger.fact("provenance")
    method = batch.settings["method"] if batch.facts["exact"] else "approximate"
    level = receipt.supported_level(method, provenance, stated)
    at = clock()
    if level is None:
        ledger.fail(batch, f"not shown: {_why(found, wanted, provenance)}", at, audit)
        return
    held = {file.id for file in ledger.artefacts_with(erased)} - {batch.result}
    retired = [
        file
        for file in ledger.artefacts()
        if file.state == "retired" or (file.state == "live" and file.id in held)
    ]
    content = _content(service, batch, before, after, audit, level, retired, at)
    content["data"] |= {
        "index_sha256_before": receipt.index_sha256(learned),
        "index_sha256_after": receipt.index_sha256(kept),
        "index_sha256_erased": receipt.index_sha256(erased),
        "records_before": len(learned),
        "records_after": len(kept),
        "records_erased": len(erased),
    }
    text = receipt.write(content, key)
    ledger.settle(batch, audit, text, [f.id for f in retired], level, at)


def _content(
    service: "Service",
    batch: Batch,
    before: Original,
    after: Original,
    audit: dict[str, Any],
    level: str,
    retired: list[Artefact],
    at: str,
) -> dict[str, Any]:
    """A receipt without its counts of records and its signature."""
    ledger = service.ledger
    earlier = ledger.receipts()
    provenance = ledger.fact("provenance")
    scope = list(OUT_OF_SCOPE)
    if level != "exact":
        scope.append(APPROXIMATE)
    if provenance == "with-forget-data":
        scope.append(MASKED)
    return {
        "schema": SCHEMA,
        "number": len(earlier) + 1,
        "previous_sha256": receipt.text_sha256(earlier[-1][2]) if earlier else None,
        "requests": [
            {
                "request": request,
                "received": ledger.log(request)[0].at,
                "records": len(ledger.records_asked(request)),
            }
            for request in ledger.requests_of(batch.id)
        ],
        "data": {
            "name": ledger.fact("data"),
            "content_sha256": ledger.fact("content_sha256"),
        },
        "before": _file(_listed(ledger.artefact(batch.base)), before),
        "after": _file(_listed(ledger.artefact(batch.result or 0)), after),
        "mask": {"provenance": provenance, "note": PROVENANCE[provenance]},
        "method": {
            "name": batch.settings["method"],
            "options": {k: str(v) for k, v in batch.settings["options"].items()},
            "seed": service.config.seed,
            "seconds": decimal(batch.facts["seconds"]),
        },
        "audit": audit,
        "level": level,
        "verdict": verdict(level, audit),
        "retired": [
            {"path": file.path, "kind": file.kind, "sha256": file.sha256}
            for file in retired
        ],
        "process": receipt.process(batch.started, batch.finished or at, at),
        "out_of_scope": scope,
    }


def verdict(level: str, audit: dict[str, Any]) -> str:
    """The level in words."""
    if level == "exact":
        return receipt.EXACTLY
    names = " and ".join(row["name"] for row in audit["attacks"])
    return (
        f"Statistical: {names} do not tell the model from ones that were retrained "
        f"without the erased records, within {audit['margin']} of AUC. "
        + audit["smallest_detectable"]
    )


def as_text(found: dict[str, Any], wanted: Settings) -> dict[str, Any]:
    """An audit as a receipt writes it, with fractions as text."""

    def row(values: dict[str, Any]) -> dict[str, Any]:
        return {k: v if isinstance(v, str) else estimate(v) for k, v in values.items()}

    half = max((r["gap"].high - r["gap"].low) / 2 for r in found["attacks"])
    n = found["attacks"][0]["gap"].n
    said = f"{n} erased records and {wanted.references} references"
    power = f"A gap in AUC below {half:.2g} would not have been seen with {said}."
    if math.isnan(half):
        power = f"No gap in AUC would have been seen with {said}."
    return {
        "margin": decimal(wanted.margin),
        "references": wanted.references,
        "metrics": [row(values) for values in found["metrics"]],
        "attacks": [row(values) for values in found["attacks"]],
        "smallest_detectable": power,
    }


def estimate(interval: Interval) -> dict[str, Any]:
    return {
        "value": decimal(interval.value),
        "low": None if math.isnan(interval.low) else decimal(interval.low),
        "high": None if math.isnan(interval.high) else decimal(interval.high),
        "n": interval.n,
    }


def _listed(file: Artefact | None) -> Artefact:
    if file is None:
        raise ValueError("the ledger lacks a model of this batch")
    return file


def _file(file: Artefact, model: Original) -> dict[str, Any]:
    total, active = work.parameters(model)
    return {
        "path": file.path,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "params_total": total,
        "params_active": active,
    }


def _why(found: dict[str, Any], wanted: Settings, provenance: str) -> str:
    """What the audit did not show, in words."""
    rows = [*found["attacks"], *(r for r in found["metrics"] if r["name"] == "UA")]

    def share(row: dict[str, Any]) -> float:
        """The far end of the gap, as a share of what it must be below."""
        widest = max(-row["gap"].low, row["gap"].high)
        control = row["control"]
        sees = control.low > 0 or control.high < 0
        return widest / min(wanted.margin, abs(control.value) if sees else math.inf)

    if rows[0]["gap"].n < receipt.FEWEST:
        n = rows[0]["gap"].n
        said = (
            f"{n} erased records are too few for attacks: {receipt.FEWEST} are needed"
        )
    elif not any(r["control"].low > 0 or r["control"].high < 0 for r in rows):
        said = "no attack sees the records in the original model, so none can miss them"
    else:
        row = max(rows, key=share)
        said = (
            f"{row['name']}: gap to retraining {row['gap']}; the whole interval must "
            f"lie within +-{wanted.margin}, and be smaller than the original's gap of "
            f"{row['control'].value:.3g} where that is seen"
        )
    fix = "ask again for method retrain, or for more requests in one batch"
    if provenance == "with-forget-data":
        fix = (
            "the mask saw the records, so that not even retraining with it is exact: "
            "ask again for more requests in one batch, or set up with a mask that is "
            "data-free"
        )
    return f"{said}; {fix}"
