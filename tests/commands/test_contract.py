"""Every verb x {help, small run, --json, flags, bad flag and file, missing data,
read-only folder, full disk, Ctrl-C, kill -9 and going on}.

Each cell really happens, in a process of its own. What a page of the book says about
it, book/results/contracts/cli.json, is compared cell by cell;
`SPARSEKIT_CONTRACTS=write` writes it anew. Cells that repeat a run, or need a slow one,
are left to `make contracts`, which sets `SPARSEKIT_CONTRACTS=all`; CI runs it.
"""

import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from apps.common import runs, verbs
from apps.common.config import RunConfig, parse, settings
from apps.common.verbs import examples
from sparsekit.cli import commands
from tests.commands.child import Done, Trouble, inside, server
from tests.commands.outcome import outcome, unfinished
from tests.commands.place import Place, files, ran, words
from tests.commands.rows import ROWS, Row
from tests.commands.use import Watch

COLUMNS = {
    "help": "says what the verb does, every flag, examples that it takes; status 0",
    "small": "a small run ends with status 0 and writes nothing but what it says",
    "--json": "a small run, or a finished one, prints JSON on stdout and nothing else",
    "flags": "it uses each flag that its help offers, in a small run",
    "bad flag": "status 2 and one line that names the command and the flag",
    "bad file": "settings with an unknown key: status 2, names file and key",
    "missing": "an input that is not there: status 2, names it",
    "read-only": "a folder that takes no file: status 2, names it, before the work",
    "full": "no room for a file: status 2, says so, leaves no half file",
    "Ctrl-C": "status 130, one word, no half file",
    "kill": "kill -9 at a random file operation, called again: the same result",
}
STORED = Path(__file__).parents[2] / "book" / "results" / "contracts" / "cli.json"
MODE = os.environ.get("SPARSEKIT_CONTRACTS", "")
REPEATS = ("full", "Ctrl-C", "kill")
WHERE = ("yes", "CI")  # with every change; where


def registered() -> list[str]:
    """Every verb of every command, as the entry points have them."""
    found = ["methods"]
    for name, point in commands().items():
        own = import_module(point.module).VERBS
        if name in ("claims", "completion"):
            found.append(name)
        else:
            found += [f"{name} {verb}" for verb in own]
    return found


def verb_function(name: str):
    """The function behind "classify train"; None for commands of argparse."""
    app, _, verb = name.partition(" ")
    points = commands()
    if app not in points:
        return None
    return import_module(points[app].module).VERBS.get(verb)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("commands") / "place")


def not_here(name: str, column: str) -> str:
    """Why a cell does not apply; "" if it does."""
    row = ROWS[name]
    told = dict(row.not_here).get(column)
    if told is not None:
        return f"– {told}"
    function = verb_function(name)
    takes_none = name.startswith("data ") or name == "unlearning verify"
    if column == "bad file" and (function is None or takes_none):
        return "– takes no --config"
    if column == "missing" and not row.missing:
        return "– reads nothing"
    if column in ("read-only", "full", "kill") and not row.writes:
        return "– writes nothing"
    return ""


def is_slow(name: str) -> bool:
    row = ROWS[name]
    return row.slow or any(ROWS[step].slow for step in row.after)


def expected(name: str, column: str) -> str:
    why = not_here(name, column)
    if why:
        return why
    works = column in ("small", "flags", "--json", "read-only", "missing")
    writes = ROWS[name].writes and not name.endswith(" train")  # again, for its JSON
    is_left = column in REPEATS or (column == "--json" and writes)
    is_left = is_left or (works and is_slow(name))
    return WHERE[is_left]


def grouped(names: Iterable[str]) -> list[Any]:
    """Names as parameters; one process tests all verbs of an app, which share runs."""
    return [
        pytest.param(name, marks=pytest.mark.xdist_group(f"{name.split()[0]} commands"))
        for name in names
    ]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", grouped(ROWS))
def test_cell(name: str, column: str, place: Place) -> None:
    told = expected(name, column)
    if told.startswith("–"):
        return
    if told == "CI" and MODE != "all":
        pytest.skip("make contracts")
    is_service = (name, column) == ("recsys serve", "small")
    check = serving_cell if is_service else CELLS[column]
    check(name, ROWS[name], place)


def test_every_verb_has_a_row() -> None:
    missing = sorted(set(registered()) ^ set(ROWS))
    assert not missing, f"give these a row in tests/commands/rows.py: {missing}"


def test_the_page_says_what_is_tested() -> None:
    content = {
        "what": "Every verb.",
        "columns": COLUMNS,
        "rows": {n: {c: expected(n, c) for c in COLUMNS} for n in ROWS},
    }
    if MODE == "write":
        STORED.parent.mkdir(parents=True, exist_ok=True)
        STORED.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    assert json.loads(STORED.read_text()) == content, "SPARSEKIT_CONTRACTS=write"


SCHEMA = json.loads((Path(runs.__file__).parent / "result.schema.json").read_text())
TRAINS = [name for name in ROWS if name.endswith(" train")]


@pytest.mark.parametrize("name", grouped(TRAINS))
def test_the_result_of_every_app_is_what_the_schema_says(
    name: str, place: Place
) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    path = place.small(name)[1] / "run" / "result.json"
    found = json.loads(path.read_text())
    assert not [error.message for error in validator.iter_errors(found)]
    assert found["app"] == name.split()[0].replace("-", "_")
    assert list(found) == SCHEMA["required"]
    assert found["config"]["seed"] == found["seed"]
    for change in (
        {"seed": "0"}, {"metrics": {}}, {"cost": {}}, {"extra": 1}, {"provenance": {}},
        {"metrics": {"a": {"value": None, "low": 0, "high": 1, "n": 5}}},
    ):  # fmt: skip
        assert list(validator.iter_errors(found | change)), change


def error_line(name: str, done: Done) -> str:
    """The message of a command that was refused; the test fails if it is no line."""
    assert done.status == 2, (done.status, done.out[-300:], done.err[-1500:])
    start = f"sparsekit {name}: error: "
    lines = re.split(r"[\r\n]+", done.err.strip())  # a bar of progress ends in \r
    # What is fetched is said, and a bar of progress may stand there.
    own = [
        line
        for line in lines
        if line.strip() and not re.match(r"sparsekit: fetching|.*(run/s|s/run)\]", line)
    ]
    assert len(own) == 1, done.err[-1500:]
    assert own[0].startswith(start), own[0]
    return own[0].removeprefix(start)


def help_cell(name: str, row: Row, place: Place) -> None:
    done = inside([*name.split(), "--help"], place.made[()])
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"usage: sparsekit {name} [")
    _, _, shown = done.out.partition("examples:\n")
    lines = [line.strip() for line in shown.strip().splitlines()]
    assert lines
    assert all(line.startswith(f"sparsekit {name}") for line in lines), lines
    for line in lines:  # all is right in it but for what is added
        taken = inside([*shlex.split(line)[1:], "--nope"], place.made[()])
        assert "unknown argument '--nope'" in error_line(name, taken), line
    assert "None" not in done.out.partition("examples:")[0]
    function = verb_function(name)
    if function is not None:
        assert lines == examples(function)


def small_cell(name: str, row: Row, place: Place) -> None:
    done, folder, changed = place.small(name)
    assert done.status == 0, done.err[-2000:]
    assert done.out.strip()
    assert "Traceback" not in done.err
    assert not unfinished(folder)
    for path in changed:
        own = row.writes and path.parts[0] in (row.writes, "replies.db")
        assert own, f"{path} was written"
    if row.writes:
        assert changed


def serving_cell(name: str, row: Row, place: Place) -> None:
    """It answers at the address and with the limits that it is given, until Ctrl-C."""
    with serving(place, "--body", "300", "--connections", "7") as (url, process):
        body = {"history": ["i1"], "k": 2}
        got = httpx.post(f"{url}/recommend", json=body, trust_env=False)
        assert len(got.json()["items"]) == 2
        much = {"history": ["i1"] * 100, "k": 2}
        refused = httpx.post(f"{url}/recommend", json=much, trust_env=False)
        assert refused.status_code == 413
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert url in out


@contextmanager
def serving(place: Place, *more: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`recsys serve` of a small model, as it is typed: its address, its process."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = str(chosen.getsockname()[1])
    file = place.cell("recsys serve") / "model.safetensors"
    words = ["recsys", "serve", "--file", str(file), "--port", port, *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsekit", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with suppress(httpx.TransportError):
                assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
                break
            assert process.poll() is None
            time.sleep(0.1)
        yield url, process
    finally:
        process.kill()
        process.wait()


def json_cell(name: str, row: Row, place: Place) -> None:
    """A program that reads stdout to its end has one JSON value there."""
    text = row.words
    if name.endswith((" train", " compare")):  # the finished run again
        folder, text = place.copy(place.small(name)[1]), row.again or row.words
    else:
        folder = place.cell(name)
    done = ran(name, folder, f"{text} --json")
    assert done.status == 0, done.err[-2000:]
    assert json.loads(done.out)
    assert "Traceback" not in done.err


def flags_cell(name: str, row: Row, place: Place) -> None:
    """Nothing that is asked for is passed over in silence."""
    ignored = set(place.small(name)[0].ignored)
    for other in row.also:
        done = ran(name, place.cell(name), other)
        assert done.status == 0, done.err[-2000:]
        ignored &= set(done.ignored)
    assert not ignored


def test_a_flag_that_is_ignored_is_found(tmp_path: Path) -> None:
    """The watch on a verb that offers six flags and uses three."""
    reading, writing = multiprocessing.Pipe(duplex=False)
    process = server().Process(target=_careless, args=(writing,))
    process.start()
    assert reading.recv() == ["n_tasks", "resume", "seed"]
    process.join()


def _careless(pipe: Any) -> None:
    @dataclass(frozen=True)
    class Config(RunConfig):
        lr: float = 0.1
        note: str = ""
        n_tasks: int = 5

    watch = Watch()
    watch.start()
    config = parse(Config, ["--seed", "3"])
    settings(config)
    copy = verbs.narrowed(config, RunConfig, seed=4)
    assert (config.lr, config.note, copy.seed, copy.resume) == (0.1, "", 4, False)
    assert config.out is None
    pipe.send([name for name in watch.ignored() if name != "profile"])


def bad_flag_cell(name: str, row: Row, place: Place) -> None:
    done = inside([*words(name, row.words), "--nope"], place.made[()])
    assert "--nope" in error_line(name, done)


def bad_file_cell(name: str, row: Row, place: Place) -> None:
    folder = place.made[()]
    before = files(folder)
    done = inside([*words(name, row.words), "--config", "bad.toml"], folder)
    message = error_line(name, done)
    assert "bad.toml: unknown key 'epocs'" in message
    assert files(folder) == before


def missing_cell(name: str, row: Row, place: Place) -> None:
    folder = place.cell(name)
    before = files(folder)
    message = error_line(name, inside(words(name, row.missing), folder))
    assert row.absent in message
    assert files(folder) == before


def read_only_cell(name: str, row: Row, place: Place) -> None:
    folder = place.cell(name)
    environ = ()
    if row.writes == "service" and (folder / "service").exists():
        locked = folder / "service"
        for path in (locked, *locked.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        text = row.words
    else:
        locked = folder / "locked"
        locked.mkdir(0o555)
        out = f"locked/{row.writes}"
        text = f"{row.words} --folder {out}"
        if row.environ:
            text, environ = row.words, (("SPARSEKIT_CACHE", out),)
        elif row.writes != "service":
            text = re.sub(r"--(out|erased) \S+", rf"--\1 {out}", row.words)
    before = files(folder)
    done = ran(name, folder, text, Trouble(powerless=True, environ=environ))
    for path in (locked, *locked.rglob("*")):  # so that pytest can remove them
        path.chmod(0o755)
    message = error_line(name, done)
    assert locked.name in message
    assert files(folder) == before


def full_cell(name: str, row: Row, place: Place) -> None:
    folder, changed = place.small(name)[1:]
    largest = max((folder / path).stat().st_size for path in changed)
    cell = place.cell(name)
    # SQLite writes page by page, into a file that is there.
    trouble = Trouble(limit=1024 if row.writes == "service" else largest // 2)
    message = error_line(name, ran(name, cell, None, trouble))
    assert re.search("size limit|disk full|disk is full", message), message
    assert not unfinished(cell)
    again = ran(name, cell, row.again or None)
    assert again.status == 0, again.err[-2000:]
    if row.writes != "service":
        assert outcome(cell / row.writes) == outcome(folder / row.writes)


def random_step(name: str, place: Place) -> int:
    """One of the file operations of the small run."""
    steps = place.small(name)[0].steps
    return random.Random(name).randint(1, max(1, steps))


def interrupt_cell(name: str, row: Row, place: Place) -> None:
    folder = place.cell(name)
    trouble = Trouble(signal=signal.SIGINT, at=random_step(name, place))
    done = ran(name, folder, None, trouble)
    assert done.status == 130, (trouble, done)
    assert done.err.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.err
    assert not unfinished(folder)


def kill_cell(name: str, row: Row, place: Place) -> None:
    folder = place.cell(name)
    trouble = Trouble(signal=signal.SIGKILL, at=random_step(name, place))
    done = ran(name, folder, None, trouble)
    assert done.status == -signal.SIGKILL
    again = ran(name, folder, row.again or None)
    assert again.status == 0, (trouble, again.err[-2000:])
    found, wanted = (
        outcome(folder / row.writes),
        outcome(place.small(name)[1] / row.writes),
    )
    found = {k: v for k, v in found.items() if not k.endswith(".tmp")}
    if row.writes == "service":  # keys, times and weights of a second are its own
        found, wanted = (told(path) for path in (folder, place.small(name)[1]))
    assert found == wanted


def told(folder: Path) -> dict[str, Any]:
    """What a service says of its requests and files, without times and names."""
    done = inside(["unlearning", "status", "--json"], folder)
    assert done.status == 0, done.err
    content = json.loads(done.out)
    for request in content["requests"]:
        del request["request"], request["at"]
    receipts = (folder / "service" / "receipts").glob("*")
    return content | {"receipts": sorted(path.name for path in receipts)}


CELLS = dict(
    zip(
        COLUMNS,
        (
            help_cell, small_cell, json_cell, flags_cell, bad_flag_cell, bad_file_cell,
            missing_cell, read_only_cell, full_cell, interrupt_cell, kill_cell,
        ),
        strict=True,
    )
)  # fmt: skip
