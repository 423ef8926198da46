"""The folder of one run: settings, log, checkpoint, model, result.

    folder = RunFolder("runs/a")
    folder.write_config(config)          # config.toml
    folder.write_checkpoint(state)       # checkpoint.pt, until there is a result
    folder.write_log(rows)               # log.jsonl, one JSON object a line
    folder.write_tensors("model.safetensors", tensors)
    folder.write_result(Result(...))     # result.json, last: it marks a finished run

Every file is written in one step. What is read is validated: a damaged file is a
ValueError that names it.
"""

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from apps.common import atomic
from apps.common import provenance as origin
from apps.common.config import RunConfig, to_toml
from apps.common.statistics import Interval

COSTS = (
    "train_seconds", "train_flops", "peak_rss_mb",
    "params_total", "params_active", "bytes_on_disk",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What `result.json` holds; the same keys in every app.

    metrics: {name: Interval}; an unknown end (nan) is null in the file. cost: at least
    the names in `COSTS`: seconds, FLOPs, MB of 10^6 bytes, counts and bytes.
    provenance: commit, command, versions, device, profile, date.
    """

    app: str
    method: str
    dataset: str
    seed: int
    metrics: dict[str, Interval]
    cost: dict[str, float]
    provenance: dict[str, Any]


def provenance(config: RunConfig) -> dict[str, Any]:
    """Where the numbers of a run come from."""
    return origin.provenance(config.profile)


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes the files of a run. The folder is made by the first write.

    Raises ValueError for a path that is a file.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if self.path.is_file():
            raise ValueError(f"{self.path} is a file: give a folder for the run")

    def write_text(self, name: str, text: str) -> None:
        """Any other file, UTF-8."""
        atomic.write_text(self.path / name, text)

    def write_config(self, config: RunConfig) -> None:
        """`config.toml`, which `--config` reads back."""
        self.write_text("config.toml", to_toml(config))

    def write_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """`log.jsonl`: all rows so far, one JSON object a line."""
        self.write_text("log.jsonl", "".join(json.dumps(dict(r)) + "\n" for r in rows))

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of `log.jsonl`; FileNotFoundError if there is none."""
        path = self.path / "log.jsonl"
        try:
            return [json.loads(line) for line in _text(path).splitlines()]
        except (ValueError, RecursionError) as error:
            raise _damaged(path, error) from error

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """`checkpoint.pt`: tensors and plain values, replaced in one step."""
        atomic.write(self.path / "checkpoint.pt", lambda f: torch.save(dict(state), f))

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The state of an interrupted run, on CPU; None if there is none.

        Only tensors and plain values are unpickled: a checkpoint cannot run code.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile) as error:
            raise _damaged(path, error) from error
        if not isinstance(state, dict):
            raise _damaged(path, f"it holds a {type(state).__name__}, not a table")
        return state

    def write_tensors(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """A safetensors file. Tensors must be contiguous and share no memory."""
        content = save(dict(tensors), dict(metadata or {}))
        atomic.write_bytes(self.path / name, content)

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors, on CPU, and metadata of a safetensors file."""
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the run is not complete")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return tensors, dict(file.metadata() or {})
        except (SafetensorError, UnicodeDecodeError) as error:
            raise _damaged(path, error) from error

    def write_result(self, result: Result) -> None:
        """`result.json`; the checkpoint has served its purpose and is removed.

        Raises ValueError for a missing cost, or a value that is not a finite number.
        """
        missing = [name for name in COSTS if name not in result.cost]
        if missing:
            raise ValueError(f"the result's cost lacks {', '.join(missing)}")
        content = asdict(result)
        for interval in content["metrics"].values():
            for end in ("low", "high"):
                interval[end] = None if math.isnan(interval[end]) else interval[end]
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except ValueError as error:
            raise ValueError(
                f"the result has a value that is no number: {error}"
            ) from None
        self.write_text("result.json", text + "\n")
        (self.path / "checkpoint.pt").unlink(missing_ok=True)

    def read_result(self) -> Result:
        """The result of a finished run; FileNotFoundError if it is not finished."""
        path = self.path / "result.json"
        try:
            content = json.loads(_text(path))
            metrics = {n: _interval(row) for n, row in content["metrics"].items()}
            values = {f.name: content[f.name] for f in fields(Result)}
            if not (isinstance(values["cost"], dict) and type(values["seed"]) is int):
                raise ValueError("cost must be a table and seed an integer")
            return Result(**(values | {"metrics": metrics}))
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise _damaged(path, error) from error


def _interval(row: Mapping[str, Any]) -> Interval:
    low, high = (math.nan if row[end] is None else row[end] for end in ("low", "high"))
    return Interval(float(row["value"]), float(low), float(high), int(row["n"]))


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the run is not complete")
    return path.read_text("utf-8")


def _damaged(path: Path, error: object) -> ValueError:
    reason = f"no {error}" if isinstance(error, KeyError) else error
    return ValueError(f"{path} is damaged ({reason}): delete the folder and run again")
