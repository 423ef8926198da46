"""The table of measured headlines, from results that are kept.

Each row is read from a JSON file that a benchmark wrote (`benchmarks.front.keep`) or
that the book keeps; a row whose file is missing is left out. Nothing is typed by hand
but words. `benchmarks.front.page` puts the table into README and the first page.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.front.keep import KEPT
from benchmarks.reports import ROOT

RECIPES = ROOT / "book" / "results" / "full" / "dynamic-sparse-learning-recipes.json"
Kept = dict[str, Any]


@dataclass(frozen=True)
class Headline:
    """One row: what was done, what it is compared with, the result."""

    what: str
    rival: str
    result: str


def whole_training(kept: Kept) -> Headline:
    report = kept["report"]
    rows = {(row["arm"], row["density"]): row for row in report["rows"]}
    dense, half, ours = (
        rows[key] for key in (("dense", 1.0), ("bfloat16", 1.0), ("rigl", 0.05))
    )
    times, over_half = (
        row["seconds"]["value"] / ours["seconds"]["value"] for row in (dense, half)
    )
    return Headline(
        f"Training an MLP of {report['width']:,} units a layer on MNIST, 5 % of the "
        "weights from the first step on (RigL), to the last epoch",
        f"dense torch, the same epochs: {dense['seconds']['value']:.1f} s, "
        f"{percent(dense['accuracy'])} right; with products in bfloat16: "
        f"{half['seconds']['value']:.1f} s, {percent(half['accuracy'])} right",
        f"**{times:.1f}x faster**, {over_half:.1f}x over bfloat16: "
        f"{ours['seconds']['value']:.1f} s, "
        f"{percent(ours['accuracy'])} right",
    )


def percent(interval: dict[str, float]) -> str:
    ends = f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    return f"{100 * interval['value']:.1f} % {ends}"


def mlp_step(kept: Kept) -> Headline:
    report = kept["report"]
    row = next(
        r for r in report["steps"] if r["sparsity"] == 0.95 and r["width"] == 4096
    )
    return Headline(
        "A training step of a 4,096-wide MLP at 95 % sparsity, Adam, batch "
        f"{report['batch']}",
        f"the fastest of dense torch in float32 ({row['dense']}), and with products in "
        f"bfloat16; a masked dense step: {row['speedup']['masked']:.2f}x",
        f"**{row['speedup']['ours']:.1f}x faster**, "
        f"{row['speedup_over_bfloat16']:.1f}x over bfloat16; {row['state']:.2f} of the "
        "memory for weights and moments",
    )


def resnet_step(kept: Kept) -> Headline:
    report = kept["report"]
    network = report["widths"]["64"]
    float32, half = (
        [network["sparse"][density][over] for density in ("0.1", "0.05")]
        for over in ("speedup", "speedup_over_bfloat16")
    )
    return Headline(
        "A training step of a ResNet-18 on 32x32 images at 90 and 95 % sparsity",
        f"the fastest of dense torch in float32, compiled or not "
        f"({network['fastest']}); with products in bfloat16",
        f"**{float32[0]:.1f}x and {float32[1]:.1f}x faster**; over bfloat16 "
        f"{half[0]:.1f}x and {half[1]:.1f}x",
    )


def inference(kept: Kept) -> Headline:
    network = kept["report"]["networks"]["efficientnet-lite0, threads: 1"]
    row = network["sparse"]["0.9"]
    return Headline(
        "One image through EfficientNet-lite0 with 10 % of its 1x1 weights, from the "
        "exported file, without torch",
        f"the fastest dense engine ({network['fastest']})",
        f"**{row['speedup']:.1f}x faster**, {row['megabytes']:.1f} of "
        f"{row['dense_megabytes']:.1f} MB on disk",
    )


def evaluation(kept: Kept) -> Headline:
    times = {
        row["method"]: row["seconds to ours"]
        for row in kept["report"]["evaluation"]["ml100k"]["times"]
    }

    def best(library: str) -> float:
        return min(t for name, t in times.items() if name.startswith(library))

    return Headline(
        "Full-rank evaluation of a recommender on MovieLens-100k, equal metrics",
        "RecBole 1.2.1 at its best batch size, implicit 0.7.3, Cornac 3.0.1",
        f"**{best('RecBole'):.1f}x, {best('implicit'):.1f}x, {best('Cornac'):.0f}x "
        "faster**",
    )


def lightgcn(kept: Kept) -> Headline:
    report = kept["report"]
    epoch = report["seconds an epoch"]
    return Headline(
        "An epoch of LightGCN on MovieLens-100k",
        f"RecBole 1.2.1: {1e3 * epoch['RecBole']:.0f} ms",
        f"**{epoch['times ours']:.1f}x faster**: {1e3 * epoch['ours']:.0f} ms",
    )


def recommender_bytes(stored: Kept) -> Headline:
    budget = max(stored["budgets"], key=lambda b: b["bytes"])
    kept = budget["recipes"][budget["best"]]["of_dense"]
    share = budget["bytes"] / stored["bytes_dense"]
    return Headline(
        f"A LightGCN of MovieLens-100k in {100 * share:.1f} % of its bytes "
        f"(`{budget['best']}`)",
        "its dense table in float32",
        f"**{100 * kept['value']:.1f} % [{100 * kept['low']:.1f}, "
        f"{100 * kept['high']:.1f}] of the NDCG@20**",
    )


# Name of the kept result, or path of the book's: what makes a row of it.
ROWS: dict[str | Path, Callable[[Kept], Headline]] = {
    "density": whole_training,
    "mlp_training": mlp_step,
    "resnet_training": resnet_step,
    "inference": inference,
    RECIPES: recommender_bytes,
    "recsys_peers": evaluation,
    "recsys_peers_training": lightgcn,
}


def path_of(source: str | Path) -> Path:
    return source if isinstance(source, Path) else KEPT / f"{source}.json"


def table(link: Callable[[Path], str]) -> str:
    """The table in Markdown; `link` makes the link of a page to a file of results."""
    lines = ["| measured here | compared with | result |", "|---|---|---|"]
    origins = []
    for source, row in ROWS.items():
        path = path_of(source)
        if path.is_file():
            kept = json.loads(path.read_text("utf-8"))
            found = row(kept)
            origins.append(kept["provenance"])
            cells = [found.what, found.rival, f"{found.result} {link(path)}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", under(origins)])


def under(origins: list[dict[str, Any]]) -> str:
    """The line under the table: machine, versions, dates, and what the numbers are."""
    devices = sorted({origin["device"] for origin in origins})
    torch = sorted({o["versions"]["torch"].partition("+")[0] for o in origins})
    dates = sorted({origin["date"] for origin in origins})
    when = dates[0] if len(dates) < 2 else f"{dates[0]} to {dates[-1]}"
    return (
        f"*{'; '.join(devices)}; torch {', '.join(torch)}; {when}. Times of steps, "
        "images and evaluations are medians of ratios within interleaved rounds; "
        "brackets are 95 % intervals over seeds. Each JSON holds the load of the "
        "machine while it was measured.*"
    )
