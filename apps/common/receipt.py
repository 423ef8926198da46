"""The signed receipt of a deletion: how it is written, read and verified.

    receipt, table = read(Path("receipts/0001.json"))     # hostile until it returns
    verify(path, key=None, files=None)                    # all of it, or ValueError

The file is JSON. Its member `signature` signs the canonical bytes of all the others.
Fractions are text, such as "0.5125", so that they have one spelling in every language.
`apps/unlearning/SERVICE.md` describes every byte.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apps.common import inside, signing
from apps.common.receipt_fields import Audit, Level, Receipt

MOST_BYTES = 10_000_000
EXACT = ("retrain", "sisa")
EXACTLY = (
    "Exact: the model was computed without the erased records, by a method that leaves "
    "no trace of them by construction."
)
FEWEST = 20  # erased records: the intervals are those of means


def write(content: Mapping[str, Any], key: Any) -> str:
    """The text of a receipt's file: the content, signed.

    Raises ValueError for content that `read` would refuse, such as an empty list of
    what is out of scope, or a level that its own numbers do not support.
    """
    signature = {
        "algorithm": "Ed25519",
        "key_sha256": signing.fingerprint(key.public_key()),
        "value": signing.sign(dict(content), key),
    }
    signed = dict(content) | {"signature": signature}
    text = json.dumps(signed, indent=1, ensure_ascii=False) + "\n"
    written = text.encode("utf-8")
    if len(written) > MOST_BYTES:
        raise ValueError(f"the receipt would have more than {MOST_BYTES:,} bytes")
    parse(written)
    return text


def read(path: Path) -> tuple[Receipt, dict[str, Any]]:
    """The receipt, and the JSON as it stands. Raises FileNotFoundError, ValueError."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give a receipt in it")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES:,} bytes: this is no receipt")
    return parse(content)


def parse(content: bytes) -> tuple[Receipt, dict[str, Any]]:
    """Validates the bytes of a file. The signature is not checked here."""
    try:
        table = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_no_fraction,
            parse_constant=_no_fraction,
            parse_int=_small,
        )
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not JSON, or cut off: {error.msg} at {where}") from None
    if not isinstance(table, dict):
        raise ValueError("not a JSON object")
    try:
        receipt = Receipt.model_validate(table)
    except ValidationError as error:
        raise ValueError("; ".join(map(_explained, error.errors()[:3]))) from None
    _check_sense(receipt)
    return receipt, table


def supported_level(method: str, provenance: str, audit: Audit) -> Level | None:
    """The highest level that the numbers allow; None: the deletion is not shown.

    exact: a method that is exact by construction, and a mask that did not see the
    erased records.
    statistical: for every attack, and for UA, the whole interval of the gap lies within
    the margin; some of them sees the records in the original model (the interval of its
    control excludes 0); and for each of these the whole interval of the gap is smaller
    than the control; and there are at least `FEWEST` erased records. So doing nothing
    never passes, nor an audit that sees nothing.
    """
    if method in EXACT and provenance != "with-forget-data":
        return "exact"
    margin, seen = float(audit.margin), 0
    for row in (*audit.attacks, *(m for m in audit.metrics if m.name == "UA")):
        ends = (row.gap.low, row.gap.high, row.control.low, row.control.high)
        if None in ends or row.gap.n < FEWEST:
            return None
        low, high, *control = (float(end) for end in ends if end is not None)
        widest = max(abs(low), abs(high))
        sees = control[0] > 0 or control[1] < 0
        seen += sees
        if widest > margin or (sees and widest >= abs(float(row.control.value))):
            return None
    enough = audit.attacks and audit.references >= 2
    return "statistical" if seen and enough else None


def verify(
    path: Path,
    key: Path | None = None,
    files: Path | None = None,
    wiped: bool = False,
    previous: Path | None = None,
    request: str | None = None,
) -> tuple[Receipt, list[str]]:
    """Checks fields, sense and signature, and with `files` the hashes of the models.

    key: the public key; default: that beside the receipt. files: the service's folder;
    then the model after the deletion must be there with its hash. wiped: and no retired
    file may be there. previous: the receipt before, whose model and records this one
    must go on from. request: the id of one that it must answer: an old receipt may be
    handed out again, for another request.

    Returns the receipt and what was checked, a line each. Raises ValueError that says
    what does not fit, FileNotFoundError for a file or key that is not there.
    """
    receipt, table = read(path)
    public = signing.load_public(key or key_beside(path))
    print_of_key = signing.fingerprint(public)
    if receipt.signature.key_sha256 != print_of_key:
        raise ValueError(
            f"signed with the key {receipt.signature.key_sha256[:16]}..., not with "
            f"{print_of_key[:16]}..."
        )
    _check_signature(receipt, table, public)
    checked = [f"signature: Ed25519, key {print_of_key}"]
    margin = f" within {receipt.audit.margin} of AUC" * (receipt.level != "exact")
    checked.append(f"level: {receipt.level}{margin}, as its numbers allow")
    if request is not None:
        if request not in [item.request for item in receipt.requests]:
            raise ValueError(f"it does not answer request {request!r:.50}")
        checked.append(f"answers: request {request}")
    if previous is not None:
        checked.append(_check_chain(receipt, previous))
    if files is not None:
        checked += _check_files(receipt, files, wiped)
    return receipt, checked


def key_beside(path: Path) -> Path:
    """NAME.pem for NAME.json if it is there, or public.pem in the same folder."""
    own = path.with_suffix(".pem")
    return own if own.is_file() else path.with_name("public.pem")


def _check_chain(receipt: Receipt, path: Path) -> str:
    earlier, _ = read(path)
    if receipt.previous_sha256 != sha256(path.read_bytes()).hexdigest():
        raise ValueError(f"it does not follow {path}, byte for byte")
    then, now = earlier.data, receipt.data
    if (
        receipt.number != earlier.number + 1
        or receipt.before.sha256 != earlier.after.sha256
        or now.index_sha256_before != then.index_sha256_after
    ):
        raise ValueError(f"it does not go on from the model and records of {path}")
    return f"follows: receipt {earlier.number}"


def require_chain(
    receipts: Sequence[str], records: Sequence[int], sha256: str, key: Any
) -> None:
    """Before a receipt is signed: do ledger and key go on from the one before?

    receipts: texts of the earlier ones. records: that the model before was trained on;
    sha256: of its file. Raises ValueError if the key is another one, or the ledger was
    changed.
    """
    if not receipts:
        return
    last, table = parse(receipts[-1].encode("utf-8"))
    public = key.public_key()
    if last.signature.key_sha256 != signing.fingerprint(public):
        raise ValueError(
            f"key.pem is not the key that receipt {last.number} was signed with: "
            "restore it from your backup, since nobody could follow the chain"
        )
    _check_signature(last, table, public)
    same = last.after.sha256, last.data.index_sha256_after
    if same != (sha256, index_sha256(records)):
        raise ValueError(
            f"the ledger does not go on from the model and records of receipt "
            f"{last.number}: it was changed; restore your backup"
        )


def _check_signature(receipt: Receipt, table: dict[str, Any], public: Any) -> None:
    signed = {name: value for name, value in table.items() if name != "signature"}
    signing.check(signed, receipt.signature.value, public)


def _check_files(receipt: Receipt, folder: Path, wiped: bool) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    after = receipt.after
    found = inside.digest(folder, after.path)
    if found is None:
        raise ValueError(
            f"{after.path} is not in {folder}; if a later receipt retired it, verify "
            "that one"
        )
    if found != after.sha256:
        raise ValueError(f"{after.path} has another content than the receipt says")
    there = [
        f.path for f in receipt.retired if inside.digest(folder, f.path) == f.sha256
    ]
    if wiped and there:
        raise ValueError(f"{there[0]} is retired, and still there ({len(there)} are)")
    gone = len(receipt.retired) - len(there)
    return [f"file: {after.path}", f"retired: {gone} gone, {len(there)} still there"]


def _check_sense(receipt: Receipt) -> None:
    """What no field alone shows."""
    data, process = receipt.data, receipt.process
    times = [process.started, process.finished, process.audited]
    times.insert(0, max(item.received for item in receipt.requests))
    if times != sorted(times):
        raise ValueError(
            "process: received, started, finished and audited are not in this order"
        )
    if data.records_before - data.records_erased != data.records_after:
        raise ValueError("data: records before, erased and after do not add up")
    if not data.records_erased:
        raise ValueError("data: no record was erased")
    supported = supported_level(
        receipt.method.name, receipt.mask.provenance, receipt.audit
    )
    if supported is None or (receipt.level, supported) == ("exact", "statistical"):
        raise ValueError(
            f"level {receipt.level!r} is claimed, but the receipt's own numbers "
            f"support {supported or 'no level'}"
        )
    for item in (receipt.before, receipt.after, *receipt.retired):
        inside.require_inside(item.path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.50} stands twice")
    return table


def _no_fraction(text: str) -> Any:
    raise ValueError(f"{text:.30} is a fraction: a receipt writes these as text")


def _small(text: str) -> int:
    if len(text) > 17:
        raise ValueError(f"the integer {text:.20}... is too large")
    return int(text)


def _explained(error: Any) -> str:
    """Where and what, without the input: it may be long, or no text."""
    where = ".".join(str(part)[:40] for part in error["loc"][:5])
    return f"{where or 'the receipt'}: {error['msg']}"


def now() -> str:
    """UTC to the second, such as 2026-11-28T10:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def process(started: str, finished: str, audited: str) -> dict[str, Any]:
    """The member `process`: when, with what code, on what."""
    from apps.common import provenance

    commit, changed = provenance.code_version()
    return {
        "started": started,
        "finished": finished,
        "audited": audited,
        "commit": commit,
        "changed": changed,
        "versions": provenance.versions(),
        "device": provenance.device(),
    }


def decimal(value: float) -> str:
    """Six significant digits.

    >>> decimal(0.5), decimal(1 / 3), decimal(2e-7)
    ('0.5', '0.333333', '2e-07')
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place on a receipt")
    return f"{value + 0.0:.6g}"


def index_sha256(records: Sequence[int]) -> str:
    r"""SHA-256 of the record indices in ascending order, each in decimal with "\n".

    >>> index_sha256([10, 2])[:16]
    '84fa61ffd2392fe8'
    """
    lines = "".join(f"{record}\n" for record in sorted(records))
    return sha256(lines.encode("ascii")).hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256, in hex, of a receipt's file, by which the next one names it."""
    return sha256(text.encode("utf-8")).hexdigest()


def printable(text: str) -> str:
    """Text of a receipt for a terminal: control characters, and those that turn the
    direction of writing, are shown as "?"."""
    return "".join(c if c.isprintable() else "?" for c in text)
