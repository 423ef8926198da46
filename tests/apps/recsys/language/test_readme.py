"""The README's commands and code, as they stand there."""

import re
import shlex
from pathlib import Path

from apps.recsys import cli, language

README = (Path(language.__file__).parent / "README.md").read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [line for text in blocks("bash") for line in text.splitlines()]
    assert len(commands) == 2
    for command in commands:
        program, app, *rest = shlex.split(command)
        assert (program, app) == ("sparsekit", "recsys")
        assert cli.main(rest) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "llmrec" / "result.json").is_file()


def test_code(capsys):
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"942 .+\(\d{4}\), .+\n", capsys.readouterr().out)


def test_every_file_is_listed():
    listed = set(re.findall(r"`(\w+\.py)`", README))
    folder = Path(language.__file__).parent
    assert listed == {path.name for path in folder.glob("*.py")} - {"__init__.py"}
