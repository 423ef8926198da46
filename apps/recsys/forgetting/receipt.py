"""A signed receipt of a retraining without whom or what is to be forgotten.

The form is that of the deletion service of `apps.unlearning`, and so is the check:

    sparsekit recsys forget --run runs/a --users 42 --out runs/b --receipt runs/b.json
    sparsekit unlearning verify runs/b.json --files runs

Only an exact method gets one: a training by the same settings that never saw what was
erased, masks included. A record is an interaction.
"""

import os
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from apps.common import inside, receipt, signing
from apps.common.receipt_fields import SCHEMA
from apps.recsys.forgetting.forget import EXACT, Outcome, problem_of
from apps.recsys.forgetting.request import Forgotten
from apps.recsys.result import FORGOTTEN, Result, load_result
from sparsekit import atomic

MODEL = "model.safetensors"
OUT_OF_SCOPE = (
    "The interactions themselves, and the file they came from: delete them from your "
    "data store.",
    "Files elsewhere: backups, downloads, exports, augmentations and answers of "
    "language models, and whatever was not looked for.",
    "What a disk, a snapshot or a backup still holds of files that were removed.",
    "What others did because of them: interactions that followed from recommendations.",
    "Settings that were chosen with them, and the split of the data.",
    "Recommendations that were made before.",
    "The list of keyed hashes that keeps them out of later trainings.",
    "That what is stated is true: a signature shows who states it, and that nothing "
    "was changed since.",
)


def check(path: Path, method: str) -> None:
    """ValueError before any work: for a method that is not exact, or a file there."""
    if method != EXACT:
        raise ValueError(
            f"a receipt is given for an exact method alone: --method {EXACT}, not "
            f"{method}"
        )
    if path.suffix != ".json":
        raise ValueError(f"a receipt is a .json file, got {path.name!r}")
    if path.exists():
        raise ValueError(f"{path} exists: receipts are not overwritten")


def write(path: Path, run: Path, done: Outcome, started: str) -> tuple[str, Path]:
    """Writes the receipt; the id of its request, and the folder that holds all files.

    Its key is key.pem beside it, made with public.pem if there is none. run: what was
    forgotten in. started: when, by `receipt.now`.
    """
    out = Path(done.result.config.out or "")
    folder = Path(os.path.commonpath([run.resolve(), out.resolve()]))
    old = load_result(run)
    request = f"r-{secrets.token_hex(8)}"
    finished = receipt.now()
    data = _data(old, done)
    masked = bool(done.result.masks)
    content = {
        "schema": SCHEMA,
        "number": 1,
        "previous_sha256": None,
        "requests": [
            {"request": request, "received": started, "records": data["records_erased"]}
        ],
        "data": data,
        "before": _file(folder, run / MODEL, old),
        "after": _file(folder, out / MODEL, done.result),
        "mask": {
            "provenance": "retain-only" if masked else "dense",
            "note": "chosen anew, without the erased records"
            if masked
            else "no mask: every weight exists",
        },
        "method": {
            "name": EXACT,
            "options": {"model": old.config.model},
            "seed": old.config.seed,
            "seconds": receipt.decimal(done.seconds),
        },
        "audit": {
            "margin": "0.1",
            "references": 0,
            "metrics": [],
            "attacks": [],
            "smallest_detectable": "No attack was made: the training never saw them.",
        },
        "level": "exact",
        "verdict": receipt.EXACTLY,
        "retired": _leftovers(folder, done),
        "process": receipt.process(started, finished, finished),
        "out_of_scope": list(OUT_OF_SCOPE),
    }
    key = path.with_name("key.pem")
    signing.create_key(key)
    atomic.write_text(path, receipt.write(content, signing.load_key(key)))
    return request, folder


def _data(old: Result, done: Outcome) -> dict[str, Any]:
    """Interactions that were learned, by user x items + item in the old numbering."""
    config = done.result.config
    forgotten = Forgotten.load(Path(config.out or "") / FORGOTTEN)
    problem = problem_of(old, config, forgotten)
    before = problem.before.tocoo()
    learned = before.row.astype(np.int64) * before.shape[1] + before.col
    erased = np.intersect1d(learned, problem.forgotten)
    kept = np.setdiff1d(learned, erased)
    if len(erased) == 0:
        raise ValueError(
            "none of what is forgotten was learned from: there is nothing to sign; the "
            "run without it is written"
        )
    content = sha256(np.sort(learned).astype("<i8").tobytes()).hexdigest()
    return {
        "name": old.data.name,
        "content_sha256": content,
        "index_sha256_before": receipt.index_sha256(learned.tolist()),
        "index_sha256_after": receipt.index_sha256(kept.tolist()),
        "index_sha256_erased": receipt.index_sha256(erased.tolist()),
        "records_before": len(learned),
        "records_after": len(kept),
        "records_erased": len(erased),
    }


def _file(folder: Path, path: Path, result: Result) -> dict[str, Any]:
    name = path.resolve().relative_to(folder).as_posix()
    return {
        "path": name,
        "bytes": path.stat().st_size,
        "sha256": inside.digest(folder, name),
        "params_total": int(result.cost["params_total"]),
        "params_active": int(result.cost["params_active"]),
    }


def _leftovers(folder: Path, done: Outcome) -> list[dict[str, Any]]:
    """Files in the folder that still hold them; `why` stands for their kind."""
    found = []
    for one in done.leftovers:
        path = one.path.resolve()
        if path.is_relative_to(folder):
            name = path.relative_to(folder).as_posix()
            digest = inside.digest(folder, name)
            found.append({"path": name, "kind": one.why, "sha256": digest})
    return found
