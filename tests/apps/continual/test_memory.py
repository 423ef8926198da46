"""A limit of memory: measured by a trial, refused with a figure, held, given back."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apps.continual import memory
from apps.continual.cli import main
from apps.continual.config import Config

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA and /proc")
SMALL = ["--dataset", "digits", "--strategy", "derpp", "--tasks", "2"]


def test_what_does_not_fit_is_refused_with_a_figure_and_what_fits_is_held() -> None:
    command = [sys.executable, "-m", "apps.continual", "train", *SMALL, "--memory-mb"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(megabytes: float) -> subprocess.CompletedProcess:
        line = [*command, str(megabytes)]
        return subprocess.run(
            line, capture_output=True, text=True, cwd=ROOT, env=environment
        )

    refused = run(50)
    assert refused.returncode == 2
    (takes,) = re.findall(r"memory_mb is 50, .* takes (\d+) MB", refused.stderr)
    assert 100 < int(takes) < 1000
    given = int(takes) + 60
    done = run(given)
    assert done.returncode == 0, done.stderr[-2000:]
    (peak,) = re.findall(r"peak_rss_mb +([\d.,]+)", done.stdout)
    assert float(peak.replace(",", "")) <= given


def test_a_larger_buffer_takes_more() -> None:
    """200,000 examples of 64 pixels and a label, and ten logits in float32."""
    config = Config(dataset="digits", strategy="derpp", tasks=2, buffer=200_000)
    found = memory.needed(config)
    with_none = memory.needed(Config(dataset="digits", strategy="finetune", tasks=2))
    assert 0.8 < (found - with_none) / (0.2 * (64 + 10 * 4 + 8)) < 1.4


def test_what_wants_more_on_the_way_is_named_and_the_limit_goes(monkeypatch) -> None:
    monkeypatch.setattr(memory, "needed", lambda config: 0.0)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    now = memory._pages(memory.RESIDENT) / 1e6
    with (
        pytest.raises(ValueError, match=r"wants more than memory_mb = .* --resume"),
        memory.held(now + 200, Config()),
    ):
        torch.ones(10**9)  # 4 GB
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.ones(10**8)
    with (
        pytest.raises(RuntimeError, match="another"),
        memory.held(now + 500, Config()),
    ):
        raise RuntimeError("another")
    with memory.held(now + 500, Config()):
        torch.ones(10**7)  # 40 MB
    with memory.held(None, Config()):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_other_devices_and_a_trial_that_fails_are_named(capsys) -> None:
    assert main(["train", *SMALL, "--memory-mb", "900", "--device", "cuda"]) == 2
    assert "held on Linux, for device cpu" in capsys.readouterr().err
    assert main(["train", "--dataset", "no", "--memory-mb", "900"]) == 2
    assert "trial for memory_mb failed: " in capsys.readouterr().err
