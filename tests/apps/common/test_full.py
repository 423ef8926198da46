"""What the scripts of full runs share: errors in a line, files that go back and on."""

import json
from pathlib import Path

import pytest

from apps.common import full


def script(called: list) -> full.Script:
    def run(arguments) -> None:
        if arguments.minutes < 0:
            raise ValueError(f"--minutes must be at least 0, got {arguments.minutes}")
        called.append(arguments)

    def merge(arguments) -> None:
        called.append([full.read_rows(part) for part in arguments.parts])

    found = full.Script("apps.example.full")
    full.add_run_flags(found.verb("run", run, "train, within the time"))
    full.add_merge_flags(found.verb("merge", merge, "parts into the book's results"))
    return found


def test_a_verb_gets_the_flags(tmp_path: Path) -> None:
    called: list = []
    flags = ["run", "--out", str(tmp_path), "--minutes", "2", "--commit", "c0ffee"]
    assert script(called).run(flags) == 0
    (arguments,) = called
    assert (arguments.out, arguments.minutes) == (tmp_path, 2)
    assert arguments.commit == "c0ffee"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["run", "--out", "x", "--minutes", "-1"], "--minutes must be at least 0"),
        (["merge", "nowhere", "--results", "x"], "No such file or directory"),
    ],
)
def test_an_error_is_a_line(flags: list[str], message: str, capsys) -> None:
    assert script([]).run(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m apps.example.full: error: ")
    assert message in line


def test_an_unknown_verb_is_a_usage_error(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        script([]).run(["train"])
    assert stop.value.code == 2
    assert "'run', 'merge'" in capsys.readouterr().err


def test_runs_are_read_back_without_the_command(tmp_path: Path) -> None:
    full.write_runs(tmp_path, {"rows": [{"seed": 1}], "timing": []}, "c0ffee")
    found = full.read_runs(tmp_path)
    assert found["rows"] == full.read_rows(tmp_path) == [{"seed": 1}]
    assert found["timing"] == []
    origin = found["provenance"]
    assert (origin["commit"], origin["dirty"]) == ("c0ffee", False)
    assert origin["profile"] == "full"
    assert "command" not in origin


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": []}', "[" * 100_000])
def test_damaged_runs_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(ValueError, match=r"runs\.json"):
        full.read_runs(tmp_path)


def test_a_table_lies_beside_the_measurements(tmp_path: Path) -> None:
    path = full.write_json(full.kept(tmp_path, "sparcl-runs"), {"rows": [1]})
    assert path == tmp_path / "full" / "sparcl-runs.json"
    assert json.loads(path.read_text()) == {"rows": [1]}
