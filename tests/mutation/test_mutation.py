"""The tool itself: which faults it plants, where, and that tests notice one."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation import scores
from tests.mutation.lines import Lines, digest
from tests.mutation.operators import mutants, mutated

ROOT = Path(__file__).parents[2]


def after(source: str) -> dict[str, list[str]]:
    """{operator: the texts that it makes of a source}."""
    found: dict[str, list[str]] = {}
    for mutant in mutants(source):
        text = ast.unparse(mutated(source, mutant.number))
        found.setdefault(mutant.operator, []).append(text)
    return found


@pytest.mark.parametrize(
    ("source", "operator", "texts"),
    [
        ("a < b", "comparison", ["a <= b"]),
        ("a < b <= c", "comparison", ["a <= b <= c", "a < b < c"]),
        ("a is not b", "comparison", ["a is b"]),
        ("a + b * 2", "arithmetic", ["a - b * 2", "a + b / 2"]),
        ("a += 1", "arithmetic", ["a -= 1"]),
        ("a += 1", "statement", ["pass"]),
        ("a and b", "boolean", ["a or b"]),
        ("not a", "unary", ["a"]),
        ("x = True", "constant", ["x = False"]),
        ("x = 3", "constant", ["x = 4"]),
        ("x = 0.5", "constant", ["x = 1.0"]),
        ("min(a)", "call", ["max(a)"]),
        ("a.any()", "call", ["a.all()"]),
        ("y = x.clone()", "copy", ["y = x"]),
        ("f(a)", "statement", ["pass"]),
        ("a.b = c", "statement", ["pass"]),
        ("raise f(1)", "statement", ["pass"]),
        ("if a > b:\n    pass", "condition", ["if not a > b:\n    pass"]),
        ("with f():\n    g", "context", ["if True:\n    g"]),
        ("def f():\n    return a", "return", ["def f():\n    return None"]),
    ],
)
def test_faults(source: str, operator: str, texts: list[str]) -> None:
    assert after(source)[operator] == texts


@pytest.mark.parametrize(
    "source",
    [
        "'''A docstring.'''",
        "__all__ = [f(1)]",
        "def f(a: g(1) = None) -> h(2): ...",
        "raise_ = f'{a + 1}'",
        "from a import b",
        "if TYPE_CHECKING:\n    a = 1",
        "x = None",
        "@f(1)\nclass A:\n    pass",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert mutants(source) == []


KERNEL = """
def kernel(x, row, blocks):
    following = x + row
    if blocks > 2:
        following = x + 2 * row
    for block in range(blocks + 5):
        target = x + 7
        if block == 0:
            ahead = following + 11
            prefetch(1, ahead, target + 13)
            for w in range(0, 17, 19):
                prefetch(w, 23)
        f(target, 29)
"""


@pytest.mark.parametrize(
    ("change", "more"),
    [
        (("", ""), set()),
        (("f(target, 29)", "f(target, 29, ahead)"), {"x + row", "blocks > 2", "11"}),
        (("f(target, 29)", "f(target, 29, following)"), {"x + row", "2 * row"}),
        (("prefetch(w, 23)", "f(w, 23)"), {"block == 0", "0", "17", "19", "23"}),
        (("ahead = following", "ahead = g() + following"), {"block == 0", "11"}),
        (("ahead = following", "ahead += following"), {"11", "block == 0"}),
        (("prefetch", "fetch"), {"1", "17", "23", "target + 13", "blocks > 2"}),
    ],
)
def test_no_fault_where_memory_is_asked_for_ahead(
    change: tuple[str, str], more: set[str]
) -> None:
    """Only where nothing else reads what was computed."""
    always = {"blocks + 5", "5", "x + 7", "7", "29"}
    found = {m.before for m in mutants(KERNEL.replace(*change))}
    found = {text for text in found if "(" not in text and "ahead" not in text}
    assert always <= found
    assert found >= more
    if not more:
        assert found == always


def test_lines_in_which_a_fault_is_noticed() -> None:
    source = "A = 1\ndef f(x=2):\n    if (\n        x > 3\n    ):\n        return x\n"
    found = {m.before: (m.first, m.last) for m in mutants(source)}
    assert found["1"] == (0, 0)  # on import
    assert found["2"] == (2, 6)  # whenever the function runs
    assert found["x > 3"] == (3, 5)
    assert found["return x"] == (6, 6)
    with pytest.raises(IndexError):
        mutated(source, len(mutants(source)))


def test_tests_of_a_line_of_an_import_and_of_a_changed_file(tmp_path: Path) -> None:
    (tmp_path / "sparsekit/execution").mkdir(parents=True)
    (tmp_path / "sparsekit/a.py").write_text("A = 1\n")
    (tmp_path / "sparsekit/b.py").write_text("B = 1\n")
    (tmp_path / "sparsekit/c.py").write_text("from sparsekit.b import B\n")
    lines = Lines(tmp_path, {})
    lines.add(["\tsparsekit/a.py\t1\n", "t1\tsparsekit/a.py\t5\n", "t1\t\t1.0\n"])
    lines.add(["t2\tsparsekit/a.py\t6\n", "failed\tsparsekit/a.py\t5\n"])
    lines.add(["t2\tsparsekit/c.py\t2\n", "t2\t\t2.0\n"])
    lines.write(tmp_path / "lines.json")
    read = Lines.read(tmp_path / "lines.json", tmp_path)
    assert read.tests == {"t1": 1.0, "t2": 2.0}
    assert read.tests_of("sparsekit/a.py", 5, 5) == {"t1"}
    assert read.tests_of("sparsekit/a.py", 5, 6) == {"t1", "t2"}
    assert read.tests_of("sparsekit/a.py", 0, 0) == {"t1", "t2"}
    assert read.tests_of("sparsekit/a.py", 1, 4) == set()
    assert read.tests_of("sparsekit/b.py", 0, 0) == {"t2"}  # which runs an importer
    read.tests["tests/test_b.py::t3"] = 1.0  # or is named after the file
    assert read.indirect("sparsekit/b.py") == {"t2", "tests/test_b.py::t3"}
    del read.tests["tests/test_b.py::t3"]
    digest.cache_clear()
    (tmp_path / "sparsekit/a.py").write_text("A = 2\n")
    assert read.tests_of("sparsekit/a.py", 5, 5) == {"t1", "t2"}


PLANTED = """
import tests.mutation.hook.sitecustomize
from sparsekit.masks import count_active
print(count_active(10, 0.9), count_active(10, 0.5))
"""


@pytest.mark.parametrize("planted", [False, True])
def test_a_fault_is_planted_in_the_process_that_imports_it(planted: bool) -> None:
    """`count_active` rounds up to one weight at least: max(1, ...) or so."""
    source = (ROOT / "sparsekit/masks.py").read_text("utf-8")
    tree = ast.parse(source)
    (function,) = [n for n in tree.body if getattr(n, "name", "") == "count_active"]
    last = [n for n in ast.walk(function) if isinstance(n, ast.Return)][-1]
    (number,) = [
        m.number
        for m in mutants(source)
        if m.operator == "return" and m.line == last.lineno
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MUTATION_TREE": str(ROOT)}
    if planted:
        environment["MUTANT"] = f"sparsekit/masks.py:{number}"
    done = subprocess.run(
        [sys.executable, "-c", PLANTED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == (["None", "None"] if planted else ["1", "5"])


LEAVES_A_FOLDER_AND_RETURNS = """
import pathlib
from tests.mutation import child
kernels = "tests/sparsekit/execution/kernels"
tests = [
    f"{kernels}/test_dense.py::test_dense[1-window0]",
    "tests/sparsekit/test_masks.py::test_topk_of_a_view_a_scalar_and_a_leaf",
    f"{kernels}/test_depthwise.py::test_small_depthwise[0-window0]",
]
result = child.run_tests(pathlib.Path.cwd(), {}, [tests])
print("failed:", result["failed"], "ran:", len(result["seconds"]))
"""


def test_fixtures_of_a_folder_are_found_when_tests_of_another_come_between() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_A_FOLDER_AND_RETURNS],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["failed: [] ran: 3"], done.stdout[-2000:]


def test_the_package_is_not_imported_before_a_fault_is_planted() -> None:
    program = "import sys, tests.mutation.__main__; print('sparsekit' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "False\n", done.stderr


def test_scores_forget_files_that_changed(tmp_path: Path) -> None:
    digest.cache_clear()
    (tmp_path / "a.py").write_text("A = 1\n")
    known = {"file": "a.py", "source": digest(tmp_path / "a.py"), "tests": 3}
    known |= {"line": 1, "operator": "constant", "before": "1", "after": "2"}
    rows = [
        {**known, "number": 0, "result": "survived"},
        {**known, "number": 0, "result": "killed"},  # tried again
        {**known, "number": 1, "result": "survived"},
        {**known, "number": 2, "result": "killed", "source": "another"},
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{scores.json.dumps(row)}\n" for row in rows))
    found = scores.read(path, tmp_path)
    assert {key[1]: row["result"] for key, row in found.items()} == {
        0: "killed", 1: "survived",
    }  # fmt: skip
    shown = scores.text(found)
    assert "  50.0%       1        0         1  all" in shown
    assert "a.py:1: constant: 1 -> 2  (3 tests)" in shown


def test_faults_known_from_another_folder_are_left_out(tmp_path: Path) -> None:
    digest.cache_clear()
    (tmp_path / "a.py").write_text("A = 1\n")
    known = {"file": "a.py", "source": digest(tmp_path / "a.py")}
    rows = [
        {**known, "number": 0, "result": "survived"},
        {**known, "number": 1, "result": "killed"},
    ]
    others = [{**known, "number": 2}, {**known, "source": "another", "number": 3}]
    for name, written in {"results": rows, "known": others, "none": []}.items():
        text = "".join(f"{scores.json.dumps(row)}\n" for row in written)
        (tmp_path / name).write_text(text)
    chosen = [{**known, "number": number} for number in range(5)]
    found = scores.unfinished(chosen, tmp_path, tmp_path / "results")
    assert [[m["number"] for m in kind] for kind in found] == [[0], [2, 3, 4]]
    found = scores.unfinished(
        chosen, tmp_path, tmp_path / "results", tmp_path / "known"
    )
    assert [[m["number"] for m in kind] for kind in found] == [[0], [3, 4]]
    found = scores.unfinished(chosen, tmp_path, tmp_path / "none", tmp_path / "known")
    assert [[m["number"] for m in kind] for kind in found] == [[], [0, 1, 3, 4]]
    with pytest.raises(FileNotFoundError):
        scores.unfinished(chosen, tmp_path, tmp_path / "none", tmp_path / "missing")


def test_scores_of_parts_are_weighted_by_their_faults(tmp_path: Path) -> None:
    """Methods: 2 faults of 30 tried; the rest: 4 of 10, of which one was tried anew."""
    digest.cache_clear()
    files = {"sparsekit/methods/a.py": 30, "sparsekit/b.py": 10}
    rows = []
    for file, n in files.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"x{i} = {i}\n" for i in range(n)))
        rows += [
            {"file": file, "source": digest(path), "number": i, "result": result}
            for i, result in enumerate(["survived", "killed", "survived", "killed"])
        ]
    del rows[2:4]
    old = [row | {"suite": "old"} for row in rows[:-1]]
    new = [
        row | {"suite": "new"} for row in [rows[-1], {**rows[2], "result": "killed"}]
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{scores.json.dumps(row)}\n" for row in old + new))
    whole = scores.table(path, tmp_path)
    assert whole["what"] == scores.WHAT  # of methods nothing was tried anew
    table = whole["rows"]
    rest = table["masks, sparsifier and what they need"]
    assert (rest["faults"], rest["tried"]) == ("10", "4")
    assert rest["at first"].startswith("50 % [")
    assert rest["now"].startswith("75 % [")
    assert rest["new"].split(" [")[0] == "100 %"
    both = table[scores.ALL]
    assert (both["faults"], both["tried"], both["new"]) == ("40", "6", "–")
    # 0.75 * 1/2 + 0.25 * 3/4 = 0.5625. Variances: 3/6 * 3/6 / 6 * 28/30 of methods,
    # 5/8 * 3/8 / 8 * 6/10 of the rest.
    reach = 1.96 * (0.75**2 * 0.25 / 6 * 28 / 30 + 0.25**2 * 15 / 64 / 8 * 0.6) ** 0.5
    low, high = 0.5625 - reach, 0.5625 + reach
    assert both["now"] == f"56 % [{100 * low:.0f} %, {100 * high:.0f} %] of 6"


def test_the_share_of_new_faults_comes_first(tmp_path: Path) -> None:
    """A fault tried again is not new, nor one of an older suite."""
    digest.cache_clear()
    (tmp_path / "sparsekit").mkdir()
    (tmp_path / "sparsekit/b.py").write_text("".join(f"x{i} = {i}\n" for i in range(9)))
    known = {"file": "sparsekit/b.py", "source": digest(tmp_path / "sparsekit/b.py")}
    tried = [
        (0, "survived", "old"), (1, "killed", "old"), (0, "killed", "new"),
        (2, "timeout", "new"), (3, "survived", "new"), (4, "killed", "new"),
    ]  # fmt: skip
    rows = [{**known, "number": n, "result": r, "suite": s} for n, r, s in tried]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{scores.json.dumps(row)}\n" for row in rows))
    table = scores.table(path, tmp_path)
    share = table["rows"][scores.ALL]["new"]
    assert share.startswith("67 % [")
    assert share.endswith("of 3")
    assert table["what"].startswith(scores.HEADLINE.format(share))
    assert list(table["columns"])[1] == "new"
    rows.append({**known, "number": 1, "result": "killed", "suite": "newer"})
    path.write_text("".join(f"{scores.json.dumps(row)}\n" for row in rows))
    table = scores.table(path, tmp_path)  # nothing was first tried with that suite
    assert "new" not in table["columns"]
    assert table["what"] == scores.WHAT
    assert all(list(row) == list(table["columns"]) for row in table["rows"].values())


def test_a_part_that_hardly_counts_may_be_missing() -> None:
    counts = {"a": scores.Counter({"new": 4, "new, noticed": 3}), "b": scores.Counter()}
    alone = scores._share({"a": 99}, counts, "new")
    assert alone.startswith("75 % [")
    assert scores._share({"a": 99, "b": 1}, counts, "new") == alone
    assert scores._share({"a": 99, "b": 2}, counts, "new") == scores.NONE
    assert scores._share({"b": 2}, counts, "new") == scores.NONE
