"""The README of an app: its blocks of code run as they stand there."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def run_readme(
    cli: ModuleType, app: str, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The verbs of the commands, in their order; python is run, `# my_x.py` written."""
    ran = []
    for language, block in blocks(cli):
        own_file = re.match(r"# (my_\w+\.py)\n", block)
        if language == "bash":
            ran += [run_line(line, cli.main, app, capsys) for line in lines(block)]
        elif own_file is not None:
            Path(own_file[1]).write_text(block)
        else:
            exec(compile(block, "README.md", "exec"), {})
    assert ran
    return ran


def blocks(cli: ModuleType) -> list[tuple[str, str]]:
    """(bash or python, text) of each block of the README beside a module."""
    text = (Path(cli.__file__).parent / "README.md").read_text("utf-8")
    return re.findall(r"```(bash|python)\n(.*?)```", text, re.S)


def lines(block: str) -> list[str]:
    return block.strip().splitlines()


def run_line(
    line: str,
    main: Callable[[list[str]], int],
    app: str,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The verb of `sparsekit APP VERB ...`, which must end well."""
    program, name, *arguments = shlex.split(line)
    assert (program, name) == ("sparsekit", app)
    assert main(arguments) == 0, (line, capsys.readouterr().err)
    return arguments[0]
