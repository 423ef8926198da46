"""The command `sparsekit`: what it finds, what it says, how it ends."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from sparsekit import cli
from sparsekit.method import discover

SCRIPT = Path(sys.executable).parent / "sparsekit"
COMMANDS = ("claims", "classify", "data", "methods")


def command(tmp_path: Path, monkeypatch, source: str, name: str = "demo") -> EntryPoint:
    """An installed command whose module holds `source`, and no other."""
    module = f"sparsekit_command_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(name, f"{module}:run", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [point])
    return point


def test_alone_it_prints_usage_and_exits_with_2(capsys) -> None:
    assert cli.main([]) == 2
    alone = capsys.readouterr().out
    for flag in ("-h", "--help"):
        assert cli.main([flag]) == 0
        assert capsys.readouterr().out == alone
    listed = re.findall(r"^  ([\w-]+) +(\S.*)$", alone, re.MULTILINE)
    assert [name for name, _ in listed] == sorted(name for name, _ in listed)
    assert set(COMMANDS) <= {name for name, _ in listed}
    assert all(len(line) <= 88 for line in alone.splitlines())
    assert len({about for _, about in listed}) == len(listed)


def test_version(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparsekit {version('sparsekit')}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("dat", "; did you mean 'data'?"), ("fly", "\n"), ("--v", "\n")]
)
def test_an_unknown_command_exits_with_2_and_helps(name, hint, capsys) -> None:
    assert cli.main([name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"sparsekit: error: no command {name!r}{hint}" in err
    for known in COMMANDS:
        assert known in err


def test_methods_lists_every_method_with_its_options(capsys) -> None:
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    shown = re.findall(r"^(\w+) +(\S.*)(?:\n +(\S.*))?$", out, re.MULTILINE)
    assert [name for name, _, _ in shown] == list(discover())
    for (name, cls), (_, about, options) in zip(discover().items(), shown, strict=True):
        assert about == cls.__doc__.strip().splitlines()[0], name
        names = re.findall(r"(\w+)=", options)
        assert [n for n in names if n in {f.name for f in fields(cls)}] == [
            f.name for f in fields(cls) if f.name != "sparsity"
        ]


def test_methods_takes_no_arguments_but_help(capsys) -> None:
    for word, hint in (("rigl", ";"), ("--jsn", "; did you mean '--json'?")):
        assert cli.main(["methods", word]) == 2
        said = capsys.readouterr().err
        start = f"sparsekit methods: error: unknown argument {word!r}{hint} valid: "
        assert said == f"{start}--help, --json, -h\n"
    with pytest.raises(SystemExit) as stop:
        cli.main(["methods", "--help"])
    assert stop.value.code == 0
    assert "usage: sparsekit methods" in capsys.readouterr().out


def test_methods_as_json_say_what_the_list_says(capsys) -> None:
    assert cli.main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert cli.main(["methods"]) == 0
    text = capsys.readouterr().out
    assert [row["name"] for row in rows] == list(discover())
    for row in rows:
        assert re.search(f"^{row['name']} +{re.escape(row['what'])}$", text, re.M)
        for name, value in row["options"].items():
            assert f"{name}={value}" in text


def test_a_command_of_another_package_is_found_and_run(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    source = (
        "def run(argv):\n"
        '    """Does a demonstration.\n\n    More.\n    """\n'
        "    print(argv)\n"
        "    return int(argv[0]) if argv else None\n"
    )
    command(tmp_path, monkeypatch, source)
    assert cli.main(["demo", "7", "--help"]) == 7
    assert capsys.readouterr().out == "['7', '--help']\n"
    assert cli.main(["demo"]) == 0
    capsys.readouterr()
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  demo +Does a demonstration\.$", out, re.MULTILINE)


def test_help_needs_no_import_of_the_commands(tmp_path, monkeypatch, capsys) -> None:
    source = 'import absent_package\ndef run(argv):\n    """Needs more."""\n'
    command(tmp_path, monkeypatch, source)
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  demo +Needs more\.$", out, re.MULTILINE)
    assert cli.main(["demo"]) == 2
    err = capsys.readouterr().err
    assert "demo: error: more packages are needed (No module named" in err
    assert "pip install 'sparsekit[apps]'" in err
    assert cli.extra_of("recsys") == "recsys"


@pytest.mark.parametrize("source", ["def run(argv): pass", "run = print", "run ="])
def test_a_command_without_docstring_is_listed(
    tmp_path, monkeypatch, capsys, source
) -> None:
    command(tmp_path, monkeypatch, source)
    assert cli.main(["--help"]) == 0
    assert "\n  demo\n" in capsys.readouterr().out
    monkeypatch.setattr(
        cli, "entry_points", lambda group: [EntryPoint("gone", "no.such:f", cli.GROUP)]
    )
    assert cli.main(["--help"]) == 0
    assert "\n  gone\n" in capsys.readouterr().out


def test_help_is_a_word_too(tmp_path: Path, monkeypatch, capsys) -> None:
    command(tmp_path, monkeypatch, "def run(argv):\n    print(argv)\n")
    assert cli.main(["help", "demo", "verb"]) == 0
    assert capsys.readouterr().out == "['verb', '--help']\n"
    assert cli.main(["--help"]) == 0
    alone = capsys.readouterr().out
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out == alone


@pytest.mark.parametrize(("given", "width"), [("30", 40), ("60", 60), ("300", 88)])
def test_usage_fits_the_terminal(given: str, width: int, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", given)
    about = " ".join(["word"] * 40)
    lines = cli.fitted("usage", "", f"  name      {about}", f"known: {about}").split(
        "\n"
    )
    assert lines[:2] == ["usage", ""]
    assert width - 5 < max(map(len, lines)) <= width
    # What goes on stands below the column in which it began.
    starts = [re.match(r" *", line).end() for line in lines[2:]]
    at = starts.index(0)
    assert starts[0] == 2
    assert set(starts[1:at]) == {12}
    assert set(starts[at + 1 :]) == {7}
    assert " ".join(lines).split() == f"usage name {about} known: {about}".split()


def test_an_interrupt_ends_with_130(tmp_path, monkeypatch, capsys) -> None:
    command(tmp_path, monkeypatch, "def run(argv):\n    raise KeyboardInterrupt\n")
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_the_installed_script_as_a_user_calls_it(tmp_path: Path) -> None:
    env = {**os.environ, "SPARSEKIT_RESULTS": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,  # no checkout here
            env=env,
        )

    done = run("data", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mnist5k" in done.stdout
    done = run("data", "fetch", "mnist6k")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "no data set or wheel 'mnist6k'; did you mean 'mnist5k'? choose one of mnist5k"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
@pytest.mark.parametrize(
    "command",
    [
        f"{SCRIPT} methods", f"{SCRIPT} claims --json",
        f"{sys.executable} -m apps.classify --help",
    ],
)  # fmt: skip
def test_a_reader_that_stops_early_is_no_error(command: str) -> None:
    # It reads nothing, and is gone before anything is written.
    script = f"({command}; echo $? >&2) | true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.stderr == "0\n"


@pytest.mark.parametrize(("given", "width"), [("30", 40), ("61", 61), ("300", 88)])
def test_usage_fills_the_terminal_to_the_last_column(given, width, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", given)
    fill = " ".join("a" * 200)  # a line may end in every second column
    for name in ("cd", "cde"):
        longest = max(map(len, cli.fitted(f"  {name} {fill}").split("\n")))
        assert longest in (width - 1, width)
    both = {max(map(len, cli.fitted(f"  {n} {fill}").split("\n"))) for n in ("c", "cd")}
    assert max(both) == width


def test_without_a_terminal_it_is_80_columns(monkeypatch) -> None:
    asked = []

    def size(fallback):
        asked.append(fallback)
        return os.terminal_size(fallback)

    monkeypatch.setattr(cli.shutil, "get_terminal_size", size)
    assert max(map(len, cli.fitted("  c " + " ".join("a" * 99)).split("\n"))) in (
        79,
        80,
    )
    assert asked == [(80, 24)]


def test_the_extra_of_a_command(monkeypatch) -> None:
    def absent(name):
        raise cli.PackageNotFoundError(name)

    class Lists(dict):
        get_all = dict.get

    for found, expected in (
        ({"Provides-Extra": ["demo", "apps"]}, "demo"),
        ({"Provides-Extra": ["apps"]}, "apps"),
        ({}, "apps"),
    ):
        monkeypatch.setattr(cli, "metadata", lambda name, f=found: Lists(f))
        assert cli.extra_of("demo") == expected
    monkeypatch.setattr(cli, "metadata", absent)
    assert cli.extra_of("demo") == "apps"


def test_a_docstring_is_that_of_the_function_itself(tmp_path, monkeypatch) -> None:
    source = (
        'def other():\n    """Another."""\n\nclass run2:\n    """A class."""\n\n'
        'def run(argv):\n    """\n    Itself.\n    More.\n    """\n'
    )
    point = command(tmp_path, monkeypatch, source)
    assert cli.described(point) == "Itself."
    (tmp_path / "names").mkdir()  # a package without a file
    assert cli.described(EntryPoint("n", "names:run", cli.GROUP)) == ""


def test_statuses_are_those_of_the_command(tmp_path, monkeypatch, capsys) -> None:
    command(tmp_path, monkeypatch, "def run(argv):\n    return {'a': 3}.get(argv[0])\n")
    assert cli.main(["demo", "a"]) == 3
    assert cli.main(["demo", "b"]) == 0
    monkeypatch.setattr(sys, "argv", ["sparsekit", "demo", "a"])
    assert cli.main() == 3
    assert cli.ended(lambda: 5) == 5
    assert cli.main(["methods", "--bad"]) == 2
    assert capsys.readouterr().err.startswith("sparsekit methods: error: unknown")


def test_a_stdout_that_is_closed_is_no_error() -> None:
    line = f"'{SCRIPT}' --version >&-; echo $?"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_flags_are_written_in_full(capsys) -> None:
    parser = cli.Parser(prog="p")
    parser.add_argument("--long-name")
    assert parser.parse_args(["--long-name", "x"]).long_name == "x"
    with pytest.raises(
        ValueError, match="unknown argument '--long'; did you mean '--l"
    ):
        parser.parse_args(["--long=3"])
    with pytest.raises(ValueError, match="expected one argument"):
        parser.parse_args(["--long-name"])
    assert cli.Parser(allow_abbrev=True).allow_abbrev is True
