"""A receipt made by hand, with every field, signed with a key of the tests."""

import copy

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def estimate(value: str, low: str | None, high: str | None) -> dict:
    return {"value": value, "low": low, "high": high, "n": 50}


def comparison(name: str, **changes) -> dict:
    return {
        "name": name,
        "about": f"what {name} is",
        "original": estimate("0.7", "0.65", "0.75"),
        "unlearned": estimate("0.51", "0.46", "0.56"),
        "retrained": estimate("0.5", "0.45", "0.55"),
        "gap": estimate("0.01", "-0.04", "0.06"),
        "control": estimate("0.2", "0.15", "0.25"),
    } | changes


CONTENT = {
    "schema": "sparsekit.unlearning.receipt/1",
    "number": 1,
    "previous_sha256": None,
    "requests": [
        {"request": "r-1", "received": "2026-11-28T10:00:00Z", "records": 50},
    ],
    "data": {
        "name": "digits",
        "content_sha256": "0" * 64,
        "records_before": 500,
        "records_after": 450,
        "records_erased": 50,
        "index_sha256_before": "1" * 64,
        "index_sha256_after": "2" * 64,
        "index_sha256_erased": "3" * 64,
    },
    "before": {
        "path": "models/0000.safetensors", "bytes": 1000, "sha256": "4" * 64,
        "params_total": 100, "params_active": 50,
    },
    "after": {
        "path": "models/0001.safetensors", "bytes": 1000, "sha256": "5" * 64,
        "params_total": 100, "params_active": 50,
    },
    "mask": {"provenance": "data-free", "note": "chosen without any record"},
    "method": {"name": "l1_sparse", "options": {"lr": "0.01"}, "seed": 0,
               "seconds": "1.5"},
    "audit": {
        "margin": "0.1",
        "references": 3,
        "metrics": [comparison("UA"), comparison("TA")],
        "attacks": [comparison("rmia"), comparison("confidence")],
        "smallest_detectable": "0.05",
    },
    "level": "statistical",
    "verdict": "not told apart",
    "retired": [
        {"path": "models/0000.safetensors", "kind": "model", "sha256": "4" * 64},
    ],
    "process": {
        "started": "2026-11-28T10:01:00Z", "finished": "2026-11-28T10:02:00Z",
        "audited": "2026-11-28T10:03:00Z", "commit": None, "changed": None,
        "versions": {"torch": "2.13.0"}, "device": "a processor, 1 thread",
    },
    "out_of_scope": ["backups"],
}  # fmt: skip


def content(**changes) -> dict:
    return copy.deepcopy(CONTENT) | changes
