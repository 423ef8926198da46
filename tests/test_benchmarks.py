"""Benchmarks run and write what they measured; how fast is not a test's business."""

import json
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
