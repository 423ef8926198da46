"""What a command left behind, without what differs from run to run: times, memory."""

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

VARYING = {
    "clock", "command", "commit", "date", "dirty", "memory_mb", "milliseconds",
    "peak_rss_mb", "retrain_seconds", "run time", "score_seconds", "seconds",
    "train_seconds", "unlearn_seconds",
}  # fmt: skip
# Tables for people hold seconds; a database, keys and signatures are made anew.
SKIPPED = (".txt", ".png", ".sqlite", ".pem", ".db", ".lock")


def outcome(path: Path) -> dict[str, Any]:
    """{file: content}, comparable with == after a run that did the same."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = {}
    for file in files:
        # What a download leaves behind that was killed is removed a day later.
        is_left = any(part.startswith(".fetch-") for part in file.parts)
        if file.is_file() and file.suffix not in SKIPPED and not is_left:
            found[str(file.relative_to(path))] = _content(file)
    return found


def unfinished(folder: Path) -> list[Path]:
    """Files that are neither the old nor the new one."""
    return [*folder.rglob("*.tmp"), *folder.rglob(".fetch-*")]


def _content(file: Path) -> Any:
    if file.suffix == ".json":
        return _steady(json.loads(file.read_text()))
    if file.suffix == ".jsonl":
        return [_steady(json.loads(line)) for line in file.read_text().splitlines()]
    if file.suffix == ".safetensors":
        try:
            arrays = load_file(file)
        except Exception:  # a type that numpy does not know
            return file.read_bytes()
        arrays = _steady(arrays)
        return {k: (str(v.dtype), v.shape, v.tobytes()) for k, v in arrays.items()}
    return file.read_bytes()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in VARYING}
    if isinstance(value, list):
        return [_steady(v) for v in value]
    return value
