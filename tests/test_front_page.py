"""README and the first page say what the kept results say."""

import json
import re
import shlex
import tomllib
from statistics import mean

import pytest

from benchmarks.front import headlines, keep, page, picture
from sparsekit import cli

README = page.README.read_text("utf-8")
INDEX = page.INDEX.read_text("utf-8")


def kept(name: str) -> dict:
    return json.loads((keep.KEPT / f"{name}.json").read_text("utf-8"))


def test_pages_and_picture_are_up_to_date():
    assert page.stale() == [], "run python -m benchmarks.front.page"


def test_the_picture_is_drawn_from_the_results_and_for_both_backgrounds(tmp_path):
    picture.draw(tmp_path / "density.svg")
    drawn = (tmp_path / "density.svg").read_text("utf-8")
    assert not picture.is_stale(tmp_path / "density.svg")
    assert "#ffffff" not in drawn
    assert "#000000" not in drawn
    (tmp_path / "density.svg").write_text(drawn.replace(picture.digest(), "older"))
    assert picture.is_stale(tmp_path / "density.svg")


def test_numbers_of_the_density_row_are_those_of_its_trainings():
    """From the single trainings, not from the rows that the benchmark made of them."""
    trainings = kept("density")["report"]["trainings"]

    def over_seeds(arm: str, density: float, what: str) -> float:
        return mean(
            t[what] for t in trainings if (t["arm"], t["density"]) == (arm, density)
        )

    dense, half, ours = (
        over_seeds(arm, density, "seconds")
        for arm, density in (("dense", 1), ("bfloat16", 1), ("rigl", 0.05))
    )
    ratios = f"**{dense / ours:.1f}x faster**, {half / ours:.1f}x over bfloat16"
    for text in (README, INDEX):
        assert f"{ratios}: {ours:.1f} s" in text
        right = 100 * over_seeds("narrow", 0.1, "accuracy")
        seconds = over_seeds("narrow", 0.1, "seconds")
        assert f"{right:.1f} % right after {seconds:.1f} s" in " ".join(text.split())


def test_every_row_has_a_file_and_every_file_of_a_row_says_where_it_is_from():
    table = headlines.table(lambda path: path.name)
    rows = [line for line in table.splitlines() if line.endswith(".json |")]
    sources = [headlines.path_of(s) for s in headlines.ROWS]
    assert len(rows) == sum(path.is_file() for path in sources) >= 3
    for path in sources:
        if path.is_file():
            origin = json.loads(path.read_text("utf-8"))["provenance"]
            assert origin["device"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", origin["date"])
            assert "command" not in origin  # its paths have no place there


def test_a_row_without_results_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(headlines, "KEPT", tmp_path)
    table = headlines.table(lambda path: path.name)
    assert "MNIST" not in table
    assert "in 12.5 % of its bytes" in table  # kept with the book


def test_a_block_that_is_missing_or_there_twice_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "README.md"
    monkeypatch.setattr(page, "README", broken)
    broken.write_text(README.replace("<!-- /want -->", ""))
    with pytest.raises(ValueError, match=r"README\.md needs one block <!-- want -->"):
        page.renewed(broken)
    broken.write_text(README + "<!-- want -->\n<!-- /want -->\n")
    with pytest.raises(ValueError, match="needs one block <!-- want -->"):
        page.renewed(broken)


def test_both_pages_say_the_same():
    for name in ("about", "planned"):
        block = rf"<!-- {name} -->\n(.*?)<!-- /{name} -->"
        assert re.search(block, README, re.S)[1] == re.search(block, INDEX, re.S)[1]
    for text in (README, INDEX):
        assert text.count("| I want to ... |") == 1
        assert len(re.findall(r"(?m)^\| [a-z].+ \| `.+` \| .+ \|$", text)) == 12


def test_papers_are_counted_as_in_the_list():
    """Against the file itself: what is planned, and in which parts."""
    table = tomllib.loads((keep.ROOT / "book" / "claims.toml").read_text("utf-8"))
    tested = {claim["paper"] for claim in table["claim"]}
    parts = {paper["index"]: paper["part"] for paper in table["paper"]}
    planned = [part for index, part in parts.items() if index not in tested]
    later = sum(part in ("VI", "VII", "VIII") for part in planned)
    said = " ".join(README.split())
    assert f"{len(planned)} of the 45 papers have no chapter" in said
    assert f"{len(planned) - later} belong to parts that have begun" in said
    assert f"{later} to parts VI to VIII" in said
    assert f"for the {len(tested)} tested so far" in said


def test_commands_of_the_wants_exist(capsys):
    commands = re.findall(r"\| `(sparsekit [a-z].*?)` \|", README)
    assert len(commands) >= 8
    for command in commands:
        words = shlex.split(command)[1:]
        verbs = [w for w in words[:2] if not w.startswith("-")]
        assert cli.main([*verbs, "--help"]) == 0 if len(verbs) > 1 else True
        text = capsys.readouterr().out
        for flag in (w for w in words[len(verbs) :] if w.startswith("--")):
            assert flag in text, command
        if len(verbs) > 1:  # all is right in it but for what is added
            assert cli.main([*words, "--nope"]) == 2
            assert "unknown argument '--nope'" in capsys.readouterr().err, command
    for command in (
        "recsys augment",
        "unlearning setup",
    ):  # what they cannot do without
        assert cli.main(command.split()) == 2
        missing = re.search(r"--\w+ is required", capsys.readouterr().err)[0]
        assert missing.split()[0] in README.partition(f"sparsekit {command}")[2][:90]
    assert cli.main(["claims", "--json"]) == 0


@pytest.mark.parametrize("as_it_is", [False, True])
def test_a_benchmark_is_run_and_kept(tmp_path, monkeypatch, as_it_is):
    monkeypatch.setattr(keep, "BUILT", tmp_path / "built")
    monkeypatch.setattr(keep, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(keep, "ROOT", keep.ROOT)
    if as_it_is:
        (tmp_path / "built").mkdir()
        (tmp_path / "built" / "streamed_scores.json").write_text('[{"examples": 5}]')
    arguments = ["--sizes", "2000", "--out", str(tmp_path / "built")]
    content = json.loads(keep.keep("streamed_scores", arguments, as_it_is).read_text())
    assert content["report"][0]["examples"] == (5 if as_it_is else 2000)
    assert content["provenance"]["device"]
    assert len(content["load"]) == (0 if as_it_is else 2)


def test_what_cannot_be_kept_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "BUILT", keep.ROOT / "build" / "nowhere")
    with pytest.raises(ValueError, match="no benchmark 'fastest'"):
        keep.keep("fastest", [])
    with pytest.raises(ValueError, match="no report at build/nowhere"):
        keep.keep("density", [], as_it_is=True)
