"""The folder of one run: settings, log, checkpoint, model, result.

    folder = RunFolder("runs/a")
    folder.write_config(config)          # config.toml
    folder.write_checkpoint(state)       # checkpoint.pt, until there is a result
    folder.write_log(rows)               # log.jsonl, one JSON object a line
    folder.write_tensors("model.safetensors", tensors)
    folder.write_result(Result(...))     # result.json, last: it marks a finished run

    state = folder.begin(config)         # config.toml, or the checkpoint to go on from

Every file is written in one step. What is read is validated: a damaged file is a
ValueError that names it.
"""

import json
import math
import pickle
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from apps.common import processes
from apps.common import provenance as origin
from apps.common.config import (
    RunConfig,
    parse,
    refuse_other_settings,
    settings,
    to_toml,
)
from apps.common.statistics import Interval
from sparsekit import atomic

COSTS = (
    "train_seconds", "train_flops", "peak_rss_mb",
    "params_total", "params_active", "bytes_on_disk",
)  # fmt: skip
# What a checkpoint may hold beside tensors: what `torch.load(weights_only=True)` takes.
# Types exactly: a float64 of numpy is a float, and yet not read back.
PLAIN = (
    type(None), bool, int, float, complex, str, bytes,
    torch.Size, torch.dtype, torch.device,
)  # fmt: skip
# What JSON of another form than expected leads to.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Result:
    """What `result.json` holds; the same keys in every app.

    The file's JSON Schema is `result.schema.json`, beside this module. config: settings
    of the run, without its folder. metrics: {name: Interval}; an unknown end (nan) is
    null in the file. cost: at least the names in `COSTS`: seconds, FLOPs, MB of 10^6
    bytes, counts and bytes, None for what was not counted. Numbers may be numpy's, or
    tensors of one element.
    provenance: commit, command, versions, device, profile, date.
    """

    app: str
    method: str
    dataset: str
    seed: int
    config: dict[str, Any]
    metrics: dict[str, Interval]
    cost: dict[str, float | None]
    provenance: dict[str, Any]


C = TypeVar("C", bound=RunConfig)


def provenance(config: RunConfig) -> dict[str, Any]:
    """Where the numbers of a run come from."""
    return origin.provenance(config.profile)


def is_finished(path: Path | None) -> bool:
    """Whether a folder holds a finished run."""
    return path is not None and (Path(path) / "result.json").is_file()


def load_run(
    path: Path | None, cls: type[C], config: C | None = None
) -> tuple["RunFolder", C, Result]:
    """Folder, settings and result of a finished run.

    Raises FileNotFoundError if there is none, ValueError if `config` is given and the
    run had other settings.
    """
    if path is None or not is_finished(path):
        raise FileNotFoundError(f"no finished run in {path}: it has no result.json")
    folder = RunFolder(path)
    stored = folder.read_result()
    if config is None:
        config = parse(cls, ["--config", str(folder.path / "config.toml")])
    refuse_other_settings(config, stored.config, folder.path)
    return folder, replace(config, out=folder.path), stored


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

    def begin(self, config: RunConfig) -> dict[str, Any] | None:
        """The checkpoint of the interrupted run that `config` resumes.

        None for a run that begins; its settings are written.

        Raises ValueError if the folder holds a finished run, or one with other
        settings.
        """
        if not config.resume and is_finished(self.path):
            raise ValueError(
                f"{self.path} holds a finished run: load it with --resume, or give "
                "another --out"
            )
        state = self.read_checkpoint() if config.resume else None
        if state is None:
            self.write_config(config)
        else:
            before = state.get("settings")
            if not isinstance(before, dict):
                raise _damaged(self.path / "checkpoint.pt", "it holds no settings")
            refuse_other_settings(config, before, self.path)
        return state

    @property
    def _is_writer(self) -> bool:
        """Of several processes that train together the first one writes."""
        return processes.rank() == 0

    def write_text(self, name: str, text: str) -> None:
        """Any other file, UTF-8."""
        if self._is_writer:
            atomic.write_text(self.path / name, text)

    def write_config(self, config: RunConfig) -> None:
        """`config.toml`, which `--config` reads back."""
        self.write_text("config.toml", to_toml(config))

    def write_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """`log.jsonl`: all rows so far, one JSON object a line.

        JSON has no NaN and no infinity: they are null there, None when read.
        """
        lines = [json.dumps(_without_nan(row), allow_nan=False) for row in rows]
        self.write_text("log.jsonl", "".join(line + "\n" for line in lines))

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of `log.jsonl`; FileNotFoundError if there is none."""
        path = self.path / "log.jsonl"
        try:
            rows = [json.loads(line) for line in _text(path).splitlines()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no JSON object")
            return rows
        except (ValueError, RecursionError) as error:
            raise _damaged(path, error) from error

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """`checkpoint.pt`: tensors and plain values, replaced in one step.

        Raises ValueError for anything else, which could not be read back.
        """
        _refuse_objects("", state)

        def fill(file: BinaryIO) -> None:
            try:
                torch.save(dict(state), file)
            except RuntimeError as error:
                # torch's writer hides the system's error, a full disk, behind its own.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

        if self._is_writer:
            atomic.write(self.path / "checkpoint.pt", fill)

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The state of an interrupted run, on CPU; None if there is none.

        Only tensors and plain values are unpickled: a checkpoint cannot run code.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            try:
                state = torch.load(file, weights_only=True, map_location="cpu")
            except pickle.UnpicklingError as error:  # its text advises to run the code
                reason = (
                    "it is no checkpoint, or holds more than tensors and plain values"
                )
                raise _damaged(path, reason) from error
            except Exception as error:  # a damaged pickle raises nearly anything
                reason = f"{type(error).__name__}: {error}".partition(". ")[0]
                raise _damaged(path, reason) from error
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
        content = save(dict(tensors), dict(metadata) if metadata else None)
        if self._is_writer:
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

    def write_run(
        self,
        app: str,
        config: RunConfig,
        *,
        method: str,
        dataset: str,
        metrics: Mapping[str, Interval],
        cost: Mapping[str, float | None],
        **more: Any,
    ) -> None:
        """`write_result` of a run with these settings. more: goes to provenance."""
        result = Result(
            app=app, method=method, dataset=dataset, seed=config.seed,
            config=settings(config), metrics=dict(metrics), cost=dict(cost),
            provenance=provenance(config) | more,
        )  # fmt: skip
        self.write_result(result)

    def write_result(self, result: Result) -> None:
        """`result.json`; the checkpoint has served its purpose and is removed.

        Raises ValueError for a missing cost, or a value that is not a finite number.
        The content is what `result.schema.json` describes.
        """
        missing = [name for name in COSTS if name not in result.cost]
        if missing:
            raise ValueError(f"the result's cost lacks {', '.join(missing)}")
        content = asdict(_checked(result))
        for interval in content["metrics"].values():
            for end in ("low", "high"):
                interval[end] = None if math.isnan(interval[end]) else interval[end]
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "the result's config and provenance must be finite numbers, text, "
                f"lists and tables ({error})"
            ) from None
        self.write_text("result.json", text + "\n")
        if self._is_writer:
            (self.path / "checkpoint.pt").unlink(missing_ok=True)

    def read_result(self) -> Result:
        """The result of a finished run; FileNotFoundError if it is not finished."""
        path = self.path / "result.json"
        try:
            content = json.loads(_text(path))
            names = [f.name for f in fields(Interval)]
            metrics = {
                metric: Interval(**{name: row[name] for name in names})
                for metric, row in content["metrics"].items()
            }
            values = {f.name: content[f.name] for f in fields(Result)}
            return _checked(Result(**(values | {"metrics": metrics})))
        except MALFORMED as error:
            raise _damaged(path, error) from error


def _checked(result: Result) -> Result:
    """The result in Python's own numbers; ValueError that names what is no number."""
    for name in ("app", "method", "dataset"):
        if not isinstance(getattr(result, name), str):
            raise ValueError(f"{name} must be text, got {getattr(result, name)!r}")
    for name in ("config", "metrics", "cost", "provenance"):
        if not isinstance(getattr(result, name), dict):
            raise ValueError(f"{name} must be a table, got {getattr(result, name)!r}")
    metrics = {
        name: Interval(
            float(_number(f"metric {name!r}", interval.value)),
            _end(f"the low end of metric {name!r}", interval.low),
            _end(f"the high end of metric {name!r}", interval.high),
            _integer(f"n of metric {name!r}", interval.n),
        )
        for name, interval in result.metrics.items()
    }
    cost = {
        name: None if value is None else _number(f"cost {name!r}", value)
        for name, value in result.cost.items()
    }
    seed = _integer("seed", result.seed)
    return replace(result, seed=seed, metrics=metrics, cost=cost)


def _refuse_objects(name: str, value: Any) -> None:
    """ValueError, with its place in the state, for what does not read back."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_objects(f"{name}[key {key!r}]", key)
            _refuse_objects(f"{name}[{key!r}]", inner)
    elif type(value) in (list, tuple, set):
        for i, inner in enumerate(value):
            _refuse_objects(f"{name}[{i}]", inner)
    elif type(value) not in PLAIN and not isinstance(value, Tensor):
        raise ValueError(
            f"the checkpoint's state{name} is a {type(value).__name__}: keep tensors "
            "and plain values, others are not read back"
        )


def _number(name: str, value: Any) -> int | float:
    """A finite number as Python's own."""
    plain = _plain(value)
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        with suppress(OverflowError):  # an integer beyond the range of floats
            if math.isfinite(plain):
                return plain
    raise ValueError(f"{name} is {reprlib.repr(value)}, not a finite number")


def _integer(name: str, value: Any) -> int:
    number = _number(name, value)
    if not isinstance(number, int):
        raise ValueError(f"{name} is {value!r}, not an integer")
    return number


def _end(name: str, value: Any) -> float:
    plain = _plain(value)
    unknown = plain is None or (isinstance(plain, float) and math.isnan(plain))
    return math.nan if unknown else float(_number(name, plain))


def _plain(value: Any) -> Any:
    """Python's own number for one of numpy or torch."""
    return value.item() if hasattr(value, "item") else value


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in row.items()}
    return {
        name: None if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in plain.items()
    }


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the run is not complete")
    return path.read_text("utf-8")


def _damaged(path: Path, error: object) -> ValueError:
    reason = f"no {error}" if isinstance(error, KeyError) else error
    return ValueError(f"{path} is damaged ({reason}): delete the folder and run again")
