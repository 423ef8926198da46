"""The picture of the first page: quality and wall clock against density."""

import hashlib
import json
from pathlib import Path
from typing import Any

from apps.common import figures
from benchmarks.front.keep import KEPT

SOURCE = KEPT / "density.json"
LOOKS: dict[str, dict[str, Any]] = {
    "rigl": {**figures.line("rigl"), "label": "RigL, values mode"},
    "static": {**figures.line("static"), "label": "random connections, values mode"},
    "narrow": {
        "color": figures.PURPLE, "linestyle": "-.", "marker": "v",
        "label": "narrow dense network, as many weights",
    },
    "masked": {
        "color": figures.BLUE, "linestyle": ":", "marker": "P",
        "label": "RigL's masks on dense kernels",
    },
}  # fmt: skip


def digest() -> str:
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def is_stale(picture: Path) -> bool:
    """Whether the picture was drawn from other results than those that are kept."""
    return not picture.is_file() or digest() not in picture.read_text("utf-8")


def caption() -> str:
    """What the picture shows, with the numbers that it is drawn from."""
    kept = json.loads(SOURCE.read_text("utf-8"))
    report, origin = kept["report"], kept["provenance"]
    rows = {(row["arm"], row["density"]): row for row in report["rows"]}
    seeds = max(row["seeds"] for row in rows.values())
    masked = max(row["seeds"] for (arm, _), row in rows.items() if arm == "masked")

    def told(arm: str, density: float) -> str:
        row = rows[arm, density]
        accuracy, seconds = row["accuracy"]["value"], row["seconds"]["value"]
        return f"{100 * accuracy:.1f} % right after {seconds:.1f} s"

    return (
        f"Whole trainings of an MLP, {report['width']:,} units a layer, on MNIST, "
        f"{report['epochs']} epochs each. Dense: {told('dense', 1.0)}, with products "
        f"in bfloat16: {told('bfloat16', 1.0)}; with a tenth of "
        f"the weights from the first step on, in values mode: {told('rigl', 0.1)}; the "
        f"same masks on dense kernels: {told('masked', 0.1)}; a dense network as "
        f"narrow as that has weights: {told('narrow', 0.1)}. Means, 95 % intervals "
        f"over {seeds} seeds, of times of masks over {masked}; {origin['device']}, "
        f"{origin['date']}."
    )


def draw(picture: Path) -> None:
    """Two panels over density, from all weights on the left to few on the right."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    report = json.loads(SOURCE.read_text("utf-8"))["report"]
    rows = {(row["arm"], row["density"]): row for row in report["rows"]}
    densities = sorted({d for _, d in rows}, reverse=True)
    with plt.rc_context(figures.rc()):
        fig, axes = plt.subplots(1, 2, figsize=(9.0, 4.0), sharex=True)
        for ax, name, scale in zip(
            axes, ("accuracy", "seconds"), (100, 1), strict=True
        ):
            dense = rows["dense", 1.0][name]
            label = f"dense, {report['width']:,} units a layer"
            ax.axhline(
                scale * dense["value"], **figures.line("dense") | {"label": label}
            )
            half = {"linestyle": ":", "label": "dense, products in bfloat16"}
            ax.axhline(
                scale * rows["bfloat16", 1.0][name]["value"],
                **figures.line("dense") | half,
            )
            if "low" in dense:
                band = scale * dense["low"], scale * dense["high"]
                ax.axhspan(*band, color=figures.INK, alpha=0.2, linewidth=0)
            for arm, look in LOOKS.items():
                if arm == "masked" and name == "accuracy":
                    continue  # the same masks: the same accuracy, up to rounding
                own = [rows[arm, d][name] for d in densities if (arm, d) in rows]
                at = [100 * d for d in densities if (arm, d) in rows]
                ax.plot(at, [scale * row["value"] for row in own], **look)
                if all("low" in row for row in own):
                    low, high = (
                        [scale * row[k] for row in own] for k in ("low", "high")
                    )
                    ax.fill_between(
                        at, low, high, color=look["color"], alpha=0.2, linewidth=0
                    )
        axes[0].set(ylabel="test accuracy (%)", xlabel="density: weights kept (%)")
        axes[1].set(ylabel="seconds to train, one thread", xlabel=axes[0].get_xlabel())
        axes[1].set_ylim(0, None)
        axes[0].set_xscale("log")
        axes[0].invert_xaxis()
        ticks = [100 * d for d in densities if d < 1]
        axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes[0].minorticks_off()
        handles, labels = axes[1].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=2)
        fig.savefig(
            picture,
            format="svg",
            metadata={"Date": None, "Source": f"sha256:{digest()}"},
        )
        plt.close(fig)
