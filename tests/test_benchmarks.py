"""Benchmarks run and write what they measured; how fast is not a test's business."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_streamed_scores(tmp_path):
    command = [sys.executable, "-m", "benchmarks.streamed_scores"]
    command += ["--sizes", "2000", "5000", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / "streamed_scores.json").read_text())
    assert [row["examples"] for row in rows] == [2000, 5000]
    table = (tmp_path / "streamed_scores.md").read_text()
    assert "| 5,000 |" in table


def test_per_sample_norms(tmp_path):
    """Methods agree with a loop in float64, and numba and pandas are not needed."""
    (tmp_path / "numba.py").write_text("raise ImportError('not on this machine')\n")
    (tmp_path / "pandas.py").write_text("raise ImportError('not on this machine')\n")
    out = tmp_path / "a" / "norms.json"
    command = [sys.executable, "-m", "benchmarks.per_sample_norms", "--batch", "3"]
    command += ["--rounds", "1", "--network", "vit-w96-d4", "--out", str(out)]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=env)
    report = json.loads(out.read_text())
    rows = report["networks"]["vit-w96-d4"]
    assert {"plain", "ours", "vmap", "loop"} <= set(rows)
    assert max(row["error"] for row in rows.values()) < 1e-4
    assert report["provenance"]["device"]
    assert "| ours |" in out.with_suffix(".md").read_text()
