"""The GPU run's path, small: stops in time, goes on, parts merge into the ledger."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apps.common.provenance import ROOT
from apps.data_pruning import full
from apps.data_pruning.comparison import load_comparison
from tests.apps.data_pruning.conftest import images

# What a machine with torch need not have.
ABSENT = (
    "matplotlib", "numba", "pandas", "platformdirs", "pyarrow", "rich", "sklearn",
    "tomli_w", "tyro",
)  # fmt: skip


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("full")
    x, y = images(120, size=16, channels=3)
    np.savez(folder / "images.npz", x=x, y=y)
    preset = folder / "tiny.toml"
    preset.write_text(
        f'dataset = "{folder}/images.npz"\nmodel = "resnet18"\nwidth = 3\nepochs = 2\n'
        'batch = 16\noptimizer = "sgd"\nlr = 0.05\naugment = true\nscore_epoch = 1\n'
        'score_runs = 1\nprecision = "bf16"\n'
    )
    return ["--preset", str(preset), "--profile", "full"]


def test_parts_merge_into_measurements_of_every_claim(
    flags, tmp_path: Path, capsys
) -> None:
    for part, seeds in (("a", ["0", "1"]), ("b", ["2"])):
        out = str(tmp_path / part)
        small = ["--keeps", "0.5", "0.1", "--strategies", "random", "el2n", "ccs"]
        run = ["run", *flags, *small, "--seeds", *seeds, "--commit", "c0ffee"]
        assert full.main([*run, "--out", out, "--budgets", "steps"]) == 0
    results = tmp_path / "results"
    parts = [str(tmp_path / part) for part in "ab"]
    assert full.main(["merge", *parts, "--results", str(results)]) == 0
    stored = json.loads((results / "full/data-diet.json").read_text())
    assert set(stored["metrics"]) == set(full.METRICS)
    assert stored["provenance"]["commit"] == "c0ffee"
    assert "command" not in stored["provenance"]
    whole = load_comparison(results / "full/data-diet-runs.json")
    assert len(whole.rows) == 3 * (1 + 2 * 3)
    entry = stored["metrics"]["full_minus_el2n_accuracy_half:cifar10"]
    by_hand = [
        {r.label: r.accuracy for r in whole.rows
         if r.seed == seed and (r.keep == 0.5 or r.label == "full")}
        for seed in range(3)
    ]  # fmt: skip
    assert entry["values"] == [r["full"] - r["el2n"] for r in by_hand]
    assert entry["seeds"] == [0, 1, 2]
    # too few seeds for the claims
    capsys.readouterr()
    assert full.main(["merge", parts[0], "--results", str(tmp_path / "x")]) == 2
    assert "2 values, but its claim needs 3 seeds" in capsys.readouterr().err
    assert full.main(["merge", str(tmp_path / "none"), "--results", "x"]) == 2


def test_torch_and_few_packages_are_enough(flags, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"for name in {ABSENT}: sys.modules[name] = None\n"
        "from apps.data_pruning.full import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    run = ["run", *flags, "--keeps", "0.5", "--strategies", "random", "--seeds", "0"]
    command = [sys.executable, "-c", code, *run, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout
    assert len(load_comparison(tmp_path).rows) == 3
