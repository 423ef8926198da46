"""The page of contracts: a table from what the tests wrote."""

import json
import re
from pathlib import Path

import pytest

from book.engine import contracts
from book.engine.scoreboard import cell

BOOK = Path(contracts.__file__).parents[1]


def test_a_table_has_meanings_cells_and_numbered_reasons():
    text = contracts.table(
        {
            "what": "All.",
            "columns": {"help": "a | b", "kill": "again"},
            "rows": {
                "one": {"help": "yes", "kill": "– elsewhere"},
                "two": {"help": "CI", "kill": "– elsewhere"},
                "three": {"help": "– nothing", "kill": "yes"},
            },
        }
    )
    lines = text.splitlines()
    assert "help" in lines
    at = lines.index("| | help | kill |")
    assert lines[at + 2 :] == [
        "| one | yes | –¹ |",
        "| two | CI | –¹ |",
        "| three | –² | yes |",
        "",
        "1. elsewhere",
        "2. nothing",
    ]
    assert "a | b" not in text  # it would be two cells elsewhere


def test_the_page_has_both_tables():
    template = (BOOK / "contracts.md").read_text("utf-8")
    text = contracts.page(template, BOOK / "results" / "contracts")
    for name in contracts.TABLES:
        stored = BOOK / "results" / "contracts" / f"{name}.json"
        for row in json.loads(stored.read_text("utf-8"))["rows"]:
            assert f"\n| {cell(row)} |" in text
        assert f"<!-- {name} -->" not in text
    with pytest.raises(ValueError, match="needs one line '<!-- cli -->'"):
        contracts.page("no mark", BOOK / "results" / "contracts")


def test_code_stays_code_and_intervals_hold_together():
    assert contracts.said("`a_b.c *d*` in [79 %, 82 %] | *e*") == (
        "`a_b.c *d*` in \\[79\xa0%,\xa082\xa0%\\] \\| \\*e\\*"
    )


def test_no_flag_becomes_a_dash(mini_site):
    for page in mini_site.glob("*.html"):
        assert not re.search(r"–[a-z]+\b", page.read_text("utf-8")), page.name


def test_the_page_of_commands_names_every_key_of_a_result():
    schema = json.loads((BOOK.parent / "apps/common/result.schema.json").read_text())
    page = (BOOK / "commands.md").read_text("utf-8").split("(commands-result)=")[1]
    for key in schema["required"]:
        assert f"`{key}`" in page, key
    properties = schema["properties"]
    for key in properties["cost"]["required"]:
        assert f"`{key}`" in page, key
    for key in schema["$defs"]["interval"]["required"]:
        assert re.search(rf"[{{ ]{key}[,}}]", page), key


def test_the_site_has_the_schemas(mini_site):
    for name in ("result", "claims"):
        published = mini_site / "data" / f"{name}.schema.json"
        source = BOOK.parent / "apps" / "common" / published.name
        assert published.read_bytes() == source.read_bytes()
