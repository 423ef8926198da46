"""The README's commands, and errors that name the fix."""

import re
import shlex
from pathlib import Path

import pytest

from apps.unlearning.cli import main
from apps.unlearning.compare import load_comparison
from apps.unlearning.config import PRESETS, preset

README = Path("apps/unlearning/README.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("sparsekit unlearning ")
]


def test_the_readme_s_commands_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = [c for c in COMMANDS if c.split()[2] in OURS]
    assert len(own) >= 6
    for command in own:
        assert main(shlex.split(command)[2:]) in (0, None), command
    printed = capsys.readouterr().out
    assert "RMIA" in printed
    assert Path("runs/compare/compare.svg").is_file()
    comparison = load_comparison(Path("runs/compare"))
    assert set(comparison.values) == {
        f"{method} {pruner}"
        for method in ("finetune", "l1_sparse")
        for pruner in ("dense", "omp")
    }
    assert main(["train", "--resume", "--out", "runs/l1"]) == 0


OURS = ("data", "methods", "train", "evaluate", "compare", "report")


def test_the_readme_s_python_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:1]
    exec(compile(code, "README", "exec"), {})
    assert "UA" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("profile", ["smoke", "laptop", "full"])
def test_presets_are_valid(path, profile):
    config = preset(path.stem, profile)
    assert config.profile == profile
    assert config.sparsity == 0.95


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--method", "magic"], "choose one of"),
        (["train", "--forget", "everything"], "not understood"),
        (["train", "--options", "speed=3"], "no option 'speed'"),
        (["train", "--rewind", "99"], "rewind must be in"),
        (["train", "--method", "sisa", "--pruner", "omp"], "masks that no data decide"),
        (["evaluate"], "--run is required"),
        (["evaluate", "--run", "nowhere"], "no finished run"),
        (["report", "--run", "nowhere"], "no comparison"),
        (["compare", "--options", "finetune.gamma=1"], "has an option"),
        (["compare", "--seeds", "1"], "two or more"),
        (["unlearn"], "no verb"),
    ],
)
def test_usage_errors_name_the_fix(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err
