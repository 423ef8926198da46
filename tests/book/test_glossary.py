"""One vocabulary: the glossary's names exist, and other words for them are not used."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from sparsekit import cli

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "book" / "glossary.md").read_text("utf-8")
ENTRY = re.compile(r"(?m)^(\w[^\n]*)\n: ((?:.+\n)(?:  .+\n)*)")
ENTRIES = {term: " ".join(text.split()) for term, text in ENTRY.findall(GLOSSARY)}
PAGES = sorted(
    [
        *(p for p in (ROOT / "book").glob("*.md") if p.name != "glossary.md"),
        *(ROOT / "book" / "chapters").glob("*.md"),
        *ROOT.glob("*.md"),
        *(ROOT / "apps").rglob("*.md"),
    ]
)


def names() -> list[str]:
    return sorted(set(re.findall(r"`((?:sparsekit|apps)\.[\w.]+)`", GLOSSARY)))


def unused() -> list[str]:
    """The words after "Not:", each alone."""
    found = []
    for text in ENTRIES.values():
        listed = re.search(r"Not: (.+?)\.$", text)
        found += listed[1].split(", ") if listed else []
    return found


def prose(text: str) -> str:
    """A page without code, formulas, citations, addresses and comments."""
    text = re.sub(r"(?ms)^(`{3,}|~{3,})(?:\{code-cell\}|\w|$).*?^\1\s*$", " ", text)
    text = re.sub(r"(?s)\$\$.*?\$\$|<!--.*?-->", " ", text)
    return re.sub(r"\{\w+(?::\w+)?\}`[^`]*`|`[^`]*`|\]\([^)]*\)", " ", text)


@pytest.mark.parametrize("name", names())
def test_a_name_of_the_code_exists(name):
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        owner = found
        for part in parts[n:]:
            fields = getattr(owner, "__annotations__", {})
            assert hasattr(owner, part) or part in fields or sets(owner, part), name
            owner = getattr(owner, part, None)
        return
    pytest.fail(f"{name} is no module")


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"`sparsekit ([a-z][^`]+)`", GLOSSARY)))
)
def test_a_command_of_the_glossary_exists(command, capsys):
    words = command.split()
    verb = [word for word in words if not word.startswith("--")]
    assert cli.main([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    for flag in words[len(verb) :]:
        assert re.search(rf"{flag}\b", text), flag


def sets(owner: object, attribute: str) -> bool:
    """Whether a class sets this attribute in its methods."""
    import inspect

    return f"self.{attribute}" in inspect.getsource(owner)  # type: ignore[arg-type]


def test_the_glossary_is_read():
    assert len(ENTRIES) > 50
    assert len(names()) > 30
    assert {"rehearsal", "speedup", "test set"} <= set(unused())


def test_terms_are_said_once_and_are_not_forbidden():
    terms = re.findall(r"(?m)^(\w[^\n]*)\n: ", GLOSSARY)
    assert len(terms) == len(set(terms))
    assert not set(terms) & set(unused())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_uses_no_other_word(page):
    text = " ".join(prose(page.read_text("utf-8")).split())
    for word in unused():
        found = re.search(rf"(?i)\b{re.escape(word)}s?\b", text)
        around = text[max(0, found.start() - 40) : found.end() + 40] if found else ""
        assert not found, f"{page.name}: {word!r} in ...{around}...; see the glossary"
