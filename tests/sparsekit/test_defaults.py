"""A default is part of the interface: who changes one changes what users get."""

import json

from tests.sparsekit.defaults import FILE, defaults


def test_defaults_are_those_written_down() -> None:
    """If one is changed on purpose: `python -m tests.sparsekit.defaults`, CHANGELOG."""
    kept, found = json.loads(FILE.read_text("utf-8")), defaults()
    both = kept.keys() & found.keys()
    changed = {n: (kept[n], found[n]) for n in both if kept[n] != found[n]}
    assert not changed
    assert len(both) > 0.9 * len(kept)  # else the file is out of date
    kinds = {name: type(kept[name]) for name in both}
    assert kinds == {name: type(found[name]) for name in both}
