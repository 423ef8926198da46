"""The command `forget`: in a finished run, or in an exported file.

sparsekit recsys forget --run runs/a --users 42 17 --out runs/b
sparsekit recsys forget --run runs/a --items 50 --method finetune --out runs/b
sparsekit recsys forget --run runs/a --interactions gone.csv --references 3 --out runs/b
sparsekit recsys forget --file ease.safetensors --users 42 --out ease.safetensors
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apps.common.config import VerbConfig, parse
from apps.common.verbs import Verbs, plain, required, tell
from apps.recsys.artefact import load, save
from apps.recsys.config import Value
from apps.recsys.forgetting.files import without
from apps.recsys.forgetting.leftovers import Leftover
from apps.recsys.forgetting.request import Request, read_request
from apps.recsys.reading import Columns
from apps.recsys.scoring import FactorScorer


@dataclass(frozen=True)
class ForgetConfig(VerbConfig):
    """Writes a run, or a file, that has forgotten users, items or interactions.

    Args:
        run: folder of a finished run.
        file: in place of a run: what `export` wrote.
        users: ids, or one .txt file with an id a line.
        items: likewise.
        interactions: a file with a user and an item a row: .csv, .tsv, .parquet.
        columns: names in that file: user, item.
        method: of a run: retrain (exact), finetune, ascent, random_items or drop. Of a
            file: refit or downdate (item weights, exact), or drop (vectors). Default:
            retrain; for a file refit.
        options: of the method, as epochs=5.
        references: of a run: models to train without them, with other seeds, to compare
            with: 1 for the differences to retraining, 2 or more for an attack as well.
        look: folders to search for files that still hold them; default: where the run
            or file is.
        receipt: of a run, retrained: a signed receipt, a new .json file, which
            `sparsekit unlearning verify` checks; its key is key.pem beside it.
        out: the new folder, or file.
    """

    run: Path | None = None
    file: Path | None = None
    users: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    interactions: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    method: str | None = None
    options: dict[str, Value] = field(default_factory=dict)
    references: int = 0
    look: tuple[Path, ...] = ()
    receipt: Path | None = None
    out: Path | None = None


def forget_command(argv: list[str]) -> None:
    """Forget users, items or interactions, in a run or in an exported file.

    sparsekit recsys forget --run runs/lightgcn --users 42 17 --out runs/forgotten
    sparsekit recsys forget --file ease.safetensors --users 42 --out newer.safetensors
    """
    config = parse(ForgetConfig, argv)
    out = required(config.out, "out")
    if (config.run is None) == (config.file is None):
        raise ValueError("give --run, a finished training, or --file, from export")
    unknown = sorted(set(config.columns) - {"user", "item"})
    if unknown:
        raise ValueError(f"columns of interactions are user and item, not {unknown[0]}")
    request = read_request(
        config.users, config.items, config.interactions, Columns(**config.columns)
    )
    if config.run is not None:
        _in_run(config, config.run, request, out)
    else:
        _in_file(config, required(config.file, "file"), request, out)


def _in_run(config: ForgetConfig, run: Path, request: Request, out: Path) -> None:
    from apps.common.receipt import now
    from apps.recsys.forgetting import receipt  # torch
    from apps.recsys.forgetting.forget import (
        AUDIT,
        EXACT,
        FEWEST,
        forget,
    )

    method, started = config.method or EXACT, ""
    if config.receipt is not None:
        started = now()
        receipt.check(config.receipt, method)
    done = forget(
        run, request, method, out=out, options=config.options,
        references=config.references, look=config.look or None,
    )  # fmt: skip
    users, items = done.result.data.shape
    exact = "exact" if method == EXACT else "not exact"
    shown = {"ndcg@20": done.result.metrics["ndcg@20"]}
    for name, interval in done.result.metrics.items():
        if name.startswith(AUDIT):
            shown[name.removeprefix(AUDIT)] = interval
    lines = [
        f"{out}: {users:,} users and {items:,} items stay; {method}, {exact}",
        f"{done.seconds:.2f} s",
    ]
    for name, value in shown.items():
        ends = "" if math.isnan(value.low) else f" [{value.low:.4f}, {value.high:.4f}]"
        lines.append(f"  {name:46}{value.value:.4f}{ends}")
    if config.references > 1 and not any(name.startswith("auc") for name in shown):
        lines.append(f"  an attack needs {FEWEST} users, items or interactions")
    content = {
        "out": out, "users": users, "items": items, "method": method,
        "exact": method == EXACT, "seconds": done.seconds, "metrics": plain(shown),
    }  # fmt: skip
    if config.receipt is not None:
        asked, folder = receipt.write(config.receipt, run, done, started)
        content |= {"receipt": config.receipt, "request": asked}
        lines += [
            f"request {asked}, receipt {config.receipt}; to check it:",
            f"  sparsekit unlearning verify {config.receipt} --files {folder}",
        ]
    _tell(content, lines, done.leftovers)


def _in_file(config: ForgetConfig, path: Path, request: Request, out: Path) -> None:
    from apps.recsys.forgetting.leftovers import leftovers

    if config.options or config.references or config.receipt:
        raise ValueError("options, references and receipt are of a run: leave them out")
    newer = without(load(path), request, config.method or "refit")
    save(out, newer)
    users, items = len(newer.user_ids), len(newer.item_ids)
    lines = [f"{out}: {users:,} users and {items:,} items"]
    if isinstance(newer.model, FactorScorer):
        lines.append("their rows are gone; what item vectors learned from them stays")
    found = leftovers(config.look or (path.parent,), request, None, out)
    _tell({"out": out, "users": users, "items": items}, lines, found)


def _tell(content: dict[str, Any], lines: list[str], found: list[Leftover]) -> None:
    """What stays, and the files that still hold what was to be forgotten."""
    tell(
        content | {"leftovers": list(map(asdict, found))},
        *lines,
        f"\n{len(found)} files still hold them, or learned from them",
        *(f"  {one.path}: {one.why}" for one in found),
    )


FORGET_VERBS: Verbs = {"forget": forget_command}
