"""Strategies x shares kept x budgets x seeds, the whole pipeline anew for every seed.

    comparison = compare(Config(), ["el2n", "ccs"], keeps=(0.5, 0.3), seeds=range(5))
    print(comparison.table())

A seed draws the split, what is planted, the trainings that score, the random choices,
and the trainings on the subsets, which start from the same weights in every row, so
that differences are paired by seed. Test data are looked at once, after the last step.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from apps.common.provenance import provenance
from apps.common.runs import RunFolder
from apps.data_pruning import data as sources
from apps.data_pruning import metrics, scoring
from apps.data_pruning.comparison import Comparison, Row, load_comparison
from apps.data_pruning.config import Config, settings
from apps.data_pruning.data import Data
from apps.data_pruning.scoring import Measured
from apps.data_pruning.strategy import Strategy, choose, parse
from apps.data_pruning.train import BUDGETS, n_steps, predict, train
from sparsekit import atomic

BASELINES = ("random", "stratified")
FULL = "full"


@dataclass(frozen=True)
class Cell:
    """One training: a strategy (None for all data), what it keeps, for which budget."""

    strategy: Strategy | None
    keep: float
    budget: str

    @property
    def label(self) -> str:
        return FULL if self.strategy is None else self.strategy.label

    def key(self, seed: int) -> tuple[int, str, float, str]:
        return seed, self.label, self.keep, self.budget


def compare(
    config: Config,
    strategies: Sequence[str] = ("el2n",),
    keeps: Iterable[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    seeds: Iterable[int] = range(5),
    *,
    budgets: Sequence[str] = BUDGETS,
    baselines: Sequence[str] = BASELINES,
    out: Path | None = None,
    minutes: float | None = None,
    watch: Callable[[Row], None] | None = None,
) -> Comparison:
    """Trains every cell of every seed, beside random subsets and all data.

    Args:
        config: settings; its seed and out are set here.
        strategies: words as in `strategy`.
        keeps: shares in (0, 1]; at 1 every strategy is all data.
        seeds: different ones; two or more give intervals.
        budgets: "steps" of all data, "epochs" over the subset.
        baselines: strategies that are added if they are missing.
        out: folder of compare.json, compare.txt and the scores. What is complete there
            is not repeated, so that a call with more seeds or strategies adds rows.
        minutes: begin no training that would end later than this.
        watch: called with each new row.
    """
    words = dict.fromkeys((*baselines, *strategies))
    chosen = [parse(config, word) for word in words]
    cells = list(plan(chosen, tuple(keeps), tuple(budgets)))
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"compare needs different seeds, one at least, got {seeds}")
    comparison = begin(config, out)
    clock = _Clock(minutes, comparison.rows)
    total = len(cells) * len(seeds)
    with tqdm(total=total, unit="run", leave=False, disable=None) as progress:
        for seed in seeds:
            found = {row.key for row in comparison.rows}
            missing = [cell for cell in cells if cell.key(seed) not in found]
            progress.update(len(cells) - len(missing))
            if not missing:
                continue
            seeded = replace(config, seed=seed, out=None, resume=False)
            if not clock.has_time_for(clock.scoring):
                break
            data = load(seeded)
            began = time.perf_counter()
            measured = score_seed(seeded, data, missing, out)
            clock.scoring = time.perf_counter() - began
            for cell in missing:
                n_kept = round(cell.keep * len(data))
                steps = n_steps(seeded, len(data), n_kept, cell.budget)
                if not clock.has_time_for(clock.per_step * steps):
                    break
                progress.set_description(f"seed {seed}, {cell.label} {cell.keep:g}")
                row = run(seeded, data, measured, cell)
                clock.per_step = row.train_seconds / row.steps
                comparison.rows.append(row)
                if out is not None:
                    comparison.save(Path(out))
                if watch is not None:
                    watch(row)
                progress.update()
    if out is not None:
        RunFolder(out).write_text("compare.txt", comparison.table())
    return comparison


# Reading and standardising takes as long as a short training. Nobody writes into it.
@lru_cache(maxsize=2)
def load(config: Config) -> Data:
    return sources.load(config)


def plan(
    strategies: Sequence[Strategy], keeps: Sequence[float], budgets: Sequence[str]
) -> Iterator[Cell]:
    """All data first, then every budget, share and strategy."""
    for keep in keeps:
        if not 0 < keep <= 1:
            raise ValueError(f"keeps are shares in (0, 1], got {keep}")
    for budget in budgets:
        if budget not in BUDGETS:
            raise ValueError(f"budgets are {', '.join(BUDGETS)}, got {budget!r}")
    yield Cell(None, 1.0, BUDGETS[0])
    for budget in budgets:
        for keep in keeps:
            if keep < 1:
                for strategy in strategies:
                    yield Cell(strategy, keep, budget)


def begin(config: Config, out: Path | None) -> Comparison:
    """The comparison in `out`, if its settings are these, or a new one."""
    before = settings(config)
    if out is not None:
        atomic.require_writable(out)
    if out is not None and (Path(out) / "compare.json").is_file():
        comparison = load_comparison(Path(out))
        comparison.refuse_other_settings(before, str(out))
        return comparison
    torch.empty(0, device=config.device)  # in use, so that provenance names the GPU
    return Comparison(before, [], provenance(config.profile))


def score_seed(
    config: Config, data: Data, cells: Sequence[Cell], out: Path | None
) -> Measured:
    """What the cells need, from the folder if it is there."""
    needs = dict.fromkeys(
        name for cell in cells if cell.strategy for name in cell.strategy.needs
    )
    needs.pop("random", None)
    if out is None:
        return scoring.measure(config, data, needs)
    folder, name = RunFolder(out), f"scores-{config.seed}.safetensors"
    if (folder.path / name).is_file():
        stored = _read_scores(folder, name)
        have = {*stored.per_run, *stored.extras}
        if have >= set(needs):
            return stored
        needs = dict.fromkeys((*needs, *have))
        needs.pop("random", None)
    measured = scoring.measure(config, data, needs)
    _write_scores(folder, name, measured)
    return measured


def run(config: Config, data: Data, measured: Measured, cell: Cell) -> Row:
    """One training, tested once."""
    indices, cost = None, (0.0, 0.0)
    if cell.strategy is not None:
        indices = choose(cell.strategy, measured, data, cell.keep, config.seed)
        cost = measured.cost(config, data, cell.strategy.needs)
    trained = train(config, data, indices, budget=cell.budget)
    test = data.splits.test
    kept = torch.arange(len(data)) if indices is None else indices
    n_flipped = int(data.flipped.sum())
    return Row(
        seed=config.seed,
        label=cell.label,
        keep=cell.keep,
        budget=cell.budget,
        n=len(kept),
        steps=trained.steps,
        **metrics.measure(predict(config, trained.model, test.x), test.y),
        flipped_kept=int(data.flipped[kept].sum()) / n_flipped if n_flipped else None,
        copies_kept=_copies(data, kept),
        train_seconds=trained.seconds,
        train_flops=trained.flops,
        score_seconds=cost[0],
        score_flops=cost[1],
    )


def _copies(data: Data, kept: torch.Tensor) -> float | None:
    """Share of the near copies that are kept."""
    is_copy = data.copy_of >= 0
    n_copies = int(is_copy.sum())
    return int(is_copy[kept].sum()) / n_copies if n_copies else None


class _Clock:
    """Knows what a step and a scoring took, and the time that is left."""

    def __init__(self, minutes: float | None, rows: Sequence[Row]):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.per_step, self.scoring = 0.0, 0.0
        if rows:
            self.per_step = rows[-1].train_seconds / rows[-1].steps

    def has_time_for(self, seconds: float) -> bool:
        return self.end is None or time.monotonic() + seconds < self.end


def _write_scores(folder: RunFolder, name: str, measured: Measured) -> None:
    tensors = {f"run:{n}": t.contiguous() for n, t in measured.per_run.items()}
    tensors |= {f"extra:{n}": t.contiguous() for n, t in measured.extras.items()}
    passes = json.dumps(measured.passes)
    folder.write_tensors(name, tensors | {"clock": measured.clock}, {"passes": passes})


def _read_scores(folder: RunFolder, name: str) -> Measured:
    tensors, metadata = folder.read_tensors(name)
    try:
        passes: dict[str, Any] = json.loads(metadata["passes"])
        clock = tensors.pop("clock")
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{folder.path / name} is damaged ({error}): delete it"
        ) from error
    parts: dict[str, dict[str, torch.Tensor]] = {"run": {}, "extra": {}}
    for key, tensor in tensors.items():
        kind, _, own = key.partition(":")
        parts[kind][own] = tensor
    return Measured(parts["run"], parts["extra"], clock, passes)
