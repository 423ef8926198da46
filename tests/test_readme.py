"""What the README shows works as it stands there."""

import re
import shlex
from pathlib import Path

import torch

from sparsekit import cli, report
from sparsekit.masks import count_active

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_core_in_ten_lines_and_faster_than_dense(tmp_path, monkeypatch, capsys):
    example, faster = blocks("python")
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    sparsifier, model = names["sparsifier"], names["model"]
    n_weights = 64 * 128 + 128 * 10
    alive = sum(int(mask.sum()) for mask in sparsifier.alive.values())
    assert alive == count_active(n_weights, 0.9)
    assert sparsifier.step == 100
    assert sparsifier.exploration > 0.1  # connections moved
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name, mask in sparsifier.alive.items():
        assert not model.get_parameter(name)[~mask].any()
    table = str(report.table(sparsifier, torch.zeros(1, 64)))
    assert all(word in table for word in ("FLOPs", "dense B", "csr B", "bitmask B"))

    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path))  # of times of layers
    exec(compile(faster, "README.md", "exec"), names)
    x, fast = names["x"], names["fast"]
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    printed = capsys.readouterr().out
    assert "layer" in printed
    assert "onnxruntime" in printed


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("bash")
    for line in commands.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "sparsekit"
        assert cli.main(arguments) == 0, (line, capsys.readouterr().err)
    out = capsys.readouterr().out
    assert "dense *" in out  # a baseline that nobody asked for
    assert Path("runs/a/compare.svg").stat().st_size > 1000


def test_links_lead_somewhere():
    folder = Path(__file__).parents[1]
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (folder / link).exists(), link
