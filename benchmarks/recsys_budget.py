"""The best recommender for a number of bytes: recipes on MovieLens-100k and Gowalla.

    python -m benchmarks.recsys_budget                  # five seeds; about an hour
    python -m benchmarks.recsys_budget --quick          # small, two seeds
    python -m benchmarks.recsys_budget --trained        # recipes that train, too
    python -m benchmarks.recsys_budget --factors F.npz  # Gowalla's vectors, one a seed

MovieLens-100k: LightGCN as its preset says. Gowalla, with gowalla_lightgcn.npz in
$SPARSEKIT_DATA: by default five models of implicit's ALS (d 64, settings chosen on
validation), since a LightGCN takes hours there without a GPU. Settings of every recipe
are chosen on the validation part; the test part is ranked once for each. The target is
98 % of the dense NDCG@20 at an eighth of the bytes: `target` in the result says by how
much the interval over seeds clears it. Set OMP_NUM_THREADS=1 for times of queries.
"""

import json
import os
from pathlib import Path
from typing import Any

from apps.recsys.budget import budget
from apps.recsys.budget_cli import load_factors
from apps.recsys.compression.recipes import RECIPES
from apps.recsys.config import Config, preset
from apps.recsys.curve import Curve
from apps.recsys.evaluation import select
from apps.recsys.models.als import ALS
from apps.recsys.models.factors import Factors
from benchmarks import reports

EIGHTH, TARGET = 0.125, 0.98
QUICK = (38_224, 9_556)  # bytes: a half and an eighth of 8 dimensions
ALS_GRID = tuple(
    ALS(dim=64, l2=l2, alpha=alpha, epochs=10)
    for l2, alpha in ((1.0, 5.0), (10.0, 5.0), (30.0, 10.0), (100.0, 20.0))
)
LARGE = ("fewer bits", "svd", "svd int8", "svd int4", "bits by worth", "fitted bits",
         "items only", "pruned", "pruned axes", "dictionary", "item knn")  # fmt: skip


def movielens(seeds: range, quick: bool, trained: bool, out: Path | None) -> Curve:
    config = preset("lightgcn-ml100k", "smoke" if quick else "laptop")
    names = [r.name for r in RECIPES.values() if not r.trains]
    names += ["smaller", "smaller int8"]
    if trained:
        names = list(RECIPES)
    if not quick:
        return budget(config, seeds=seeds, recipes=names, out=out)
    return budget(config, QUICK, seeds, recipes=("svd int8", "bits by worth"))


def gowalla(seeds: range, files: list[Path]) -> Curve:
    """With the given vectors, or with those of ALS."""
    config = Config(dataset="gowalla")
    factors = [load_factors(path) for path in files] or als(config, seeds)
    return budget(config, seeds=range(len(factors)), recipes=LARGE, factors=factors)


def als(config: Config, seeds: range) -> list[Factors]:
    data = config.load()
    best = select(ALS_GRID, data).best
    settings = {k: getattr(best, k) for k in ("dim", "l2", "alpha", "epochs")}
    return [ALS(seed=seed, **settings).fit(data.train) for seed in seeds]


def target(curve: Curve) -> dict[str, Any]:
    """What won at an eighth of the dense bytes, and whether it clears the target."""
    size = round(EIGHTH * curve.bytes_dense)
    name = curve.best(size)
    share = curve.of_dense(name, size)
    holds = bool(share.low >= TARGET) if share.n > 1 else None
    return {
        "dataset": curve.dataset, "bytes": size, "recipe": name, "value": share.value,
        "low": share.low, "high": share.high, "seeds": share.n, "holds": holds,
    }  # fmt: skip


def main() -> None:
    parser = reports.parser(__doc__, quick="small, two seeds", seeds=5)
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--factors", type=Path, nargs="*", default=[])
    parser.add_argument("--datasets", nargs="*", default=["ml100k", "gowalla"])
    args = parser.parse_args()
    seeds = range(2 if args.quick else args.seeds)
    folder = args.out / "recsys_budget"
    curves = []
    if "ml100k" in args.datasets:
        curves.append(movielens(seeds, args.quick, args.trained, folder))
    if (
        "gowalla" in args.datasets
        and not args.quick
        and os.environ.get("SPARSEKIT_DATA")
    ):
        curves.append(gowalla(seeds, args.factors))
    report = {
        "target": [target(c) for c in curves],
        "curves": [c.content() for c in curves],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for curve in curves:
        curve.draw(folder / f"{curve.dataset}.png")
    text = "\n".join(curve.table() for curve in curves)
    reports.save(args.out / "recsys_budget.json", report, ["```text", f"{text}```"])
    print(json.dumps(report["target"], indent=1))


if __name__ == "__main__":
    main()
