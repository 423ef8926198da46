"""The engine on small chapters, most of them broken on purpose."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import psutil
import pytest

from book.engine import cache, runs
from book.engine.__main__ import main
from book.engine.chapter import ChapterError, read_chapter, read_contents
from book.engine.execution import check_executed, fold_parameters, output_problem
from book.engine.runs import ROOT, Book, Processes, RunError, run_chapters

PARAMETERS = """\
```{code-cell} ipython3
:tags: [parameters]

profile = "full"  # which one
```
"""


def chapter_text(*cells, front="", parameters=PARAMETERS, prose="Prose.\n"):
    """A chapter with these code cells after the parameters cell."""
    head = f"---\n{front}\n---\n" if front else ""
    code = "".join(
        f"\n```{{code-cell}} ipython3\n{textwrap.dedent(c).strip()}\n```\n"
        for c in cells
    )
    return f"{head}# A chapter\n\n{prose}\n{parameters}{code}"


def make_book(folder, chapters, **book):
    """A book with these texts by name."""
    (folder / "chapters").mkdir(parents=True)
    for name, text in chapters.items():
        (folder / "chapters" / f"{name}.md").write_text(text)
    listed = "".join(f"      - file: chapters/{name}\n" for name in chapters)
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nparts:\n  - caption: One\n    chapters:\n"
        + listed
    )
    (folder / "index.md").write_text("# Index\n\nA page.\n")
    build = folder / "build"
    return Book(folder=folder, build=build, results=build / "results", **book)


BROKEN = {
    "divides": chapter_text("x = 1", "y = 0\nx / y", "z = 2"),
    "exits": chapter_text("raise SystemExit(0)", "x = 1"),
    "dies": chapter_text("import os", "os._exit(1)"),
    "sleeps": chapter_text(
        "import time\ntime.sleep(60)", front="sparsekit:\n  cell_seconds: 2"
    ),
    "warns": chapter_text("import warnings\nwarnings.warn('old')"),
    "widget": chapter_text("import ipywidgets\nipywidgets.IntSlider()"),
    "borrows": chapter_text(
        """
        import os, pathlib
        path = pathlib.Path(os.environ["SPARSEKIT_RESULTS"]) / profile / "other.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        """
    ),
}
GOOD = chapter_text(
    """
    import os, pathlib
    from tqdm import tqdm
    for _ in tqdm(range(3)):
        pass
    pathlib.Path("rubbish.txt").write_text("left in the working directory")
    results = pathlib.Path(os.environ["SPARSEKIT_RESULTS"]) / profile
    results.mkdir(parents=True)
    _ = (results / "good.json").write_text('{"profile": "%s"}' % profile)
    """,
    "print(profile, os.environ['OMP_NUM_THREADS'], os.listdir())",
    front="sparsekit:\n  threads: 2\n  alone: true",
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The broken chapters and a good one, run together: (book, failures by name)."""
    folder = tmp_path_factory.mktemp("broken")
    book = make_book(folder, {**BROKEN, "good": GOOD})
    with pytest.raises(RunError) as caught:
        run_chapters(book.chapters(), "smoke", book)
    return book, {failure.chapter: failure for failure in caught.value.failures}


def test_every_broken_chapter_fails_and_the_good_one_does_not(outcome):
    _, failures = outcome
    assert set(failures) == set(BROKEN)


def test_the_book_is_built_without_a_chapter_that_fails(tmp_path, monkeypatch, capsys):
    broken = BROKEN["divides"] + "\nIt is {glue:text}`unmeasured`.\n"
    book = make_book(tmp_path, {"divides": broken, "good": GOOD})
    monkeypatch.setattr("book.engine.__main__.Book", lambda: book)
    assert main(["--profile", "smoke"]) == 1
    told = capsys.readouterr()
    assert "A draft without results of: divides\n" in told.out
    assert "unmeasured" not in told.out  # expected of a page without results
    assert "divides, code cell 3: ZeroDivisionError" in told.err
    assert told.err.endswith("The book was built without: divides\n")
    pages = tmp_path / "build" / "book" / "chapters"
    assert "This chapter was not run in this build" in (
        (pages / "divides.html").read_text()
    )
    assert "smoke 2" in (pages / "good.html").read_text()
    assert main(["--profile", "smoke", "--chapter", "divides"]) == 1
    assert capsys.readouterr().err.endswith("The book was not built.\n")


BUILD = """
import signal
import sys
from pathlib import Path
import book.engine.__main__ as command
folder = Path(sys.argv[1])
build = folder / "build"
mine = command.Book(folder, build, folder, build / "results")  # nobody edits it
command.Book = lambda: mine
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
sys.exit(command.main(["--profile", "smoke", "--no-site", "--jobs", "1"]))
"""


def test_an_interrupted_build_ends_its_processes_and_goes_on_from_there(tmp_path):
    slow = "import time\nfrom pathlib import Path\n"
    slow += f"if not Path({str(tmp_path / 'fast')!r}).exists():\n    time.sleep(600)"
    make_book(tmp_path, {"good": GOOD, "slow": chapter_text(slow)})
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    build = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in build.stdout:  # the good one has run, the slow one has begun
        if "slow: running" in line:
            break
    processes = psutil.Process(build.pid)
    while len(children := processes.children(recursive=True)) < 2:  # and its kernel
        time.sleep(0.1)
    build.send_signal(signal.SIGINT)
    _, error = build.communicate(timeout=60)
    assert build.returncode == 130
    assert "interrupted" in error
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == []
    (tmp_path / "fast").touch()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "good: unchanged, from the cache" in again.stdout
    assert "slow: ran in" in again.stdout


def test_a_process_that_does_not_listen_is_ended(monkeypatch):
    monkeypatch.setattr(runs, "GRACE", 0.5)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    deaf += "print('deaf', flush=True); signal.pause()"
    command = [sys.executable, "-c", deaf]
    processes = Processes()
    with processes.started(*command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "deaf\n"
        processes.stop()
        assert process.returncode == -signal.SIGKILL
    with (
        pytest.raises(InterruptedError, match="no process is started any more"),
        processes.started(*command),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "kind", "cell", "words"),
    [
        ("divides", "ZeroDivisionError", 3, "division by zero"),
        ("exits", "SystemExit", 2, "must not end its kernel"),
        ("dies", "kernel died", 3, "out of memory?"),
        ("sleeps", "time limit", 2, "cell_seconds"),
        ("warns", "stderr", 2, "UserWarning: old"),
        ("widget", "widget", 2, "matplotlib"),
        ("borrows", "another chapter", None, 'Ledger(chapter="borrows"'),
    ],
)
def test_a_failure_names_chapter_cell_and_cause(outcome, name, kind, cell, words):
    failure = outcome[1][name]
    assert kind in failure.kind
    assert failure.cell == cell
    assert words in failure.text
    message = str(failure)
    assert message.startswith(name)
    if cell:
        assert f"code cell {cell}" in message
        assert failure.source
        assert failure.source.splitlines()[0] in message


def test_traceback_and_source_of_a_failing_cell_are_shown(outcome):
    message = str(outcome[1]["divides"])
    assert "    x / y" in message
    assert "Traceback" in message


def test_a_good_chapter_is_kept_clean(outcome):
    book, _ = outcome
    (folder,) = (book.cache / "smoke" / "good").iterdir()
    text = (folder / "notebook.ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == [1, 3, 4]  # 2: what papermill put in
    assert cells[0].source == 'profile = "smoke"  # which one'
    assert cells[-1].outputs[0].text == "smoke 2 ['rubbish.txt']\n"
    assert str(book.folder) not in text
    assert "papermill" not in text
    assert not list((book.build / "runs").iterdir())  # nothing is left behind
    assert not list(book.folder.rglob("rubbish.txt"))
    recorded = json.loads((book.results / "smoke" / "good.json").read_text())
    assert recorded == {"profile": "smoke"}
    facts = cache.Run(folder).facts
    assert facts["profile"] == "smoke"
    assert facts["seconds"] > 0


def test_cached_run_restores_notebook_and_measurements(outcome, capsys):
    book, _ = outcome
    recorded = book.results / "smoke" / "good.json"
    recorded.write_text("stale")
    good = [c for c in book.chapters() if c.name == "good"]
    began = time.perf_counter()
    runs = run_chapters(good, "smoke", book)
    assert time.perf_counter() - began < 1
    assert "from the cache" in capsys.readouterr().out
    assert runs["good"].notebook.is_file()
    assert json.loads(recorded.read_text()) == {"profile": "smoke"}


def test_edited_code_runs_the_chapter_again(tmp_path):
    # The renderer's own cache does not notice this; ours must.
    root = tmp_path / "root"
    (root / "sparsekit").mkdir(parents=True)
    (root / "sparsekit" / "masks.py").write_text("x = 1\n")
    book = make_book(tmp_path / "book", {"one": chapter_text("1")}, root=root)
    first = run_chapters(book.chapters(), "smoke", book)["one"]
    assert run_chapters(book.chapters(), "smoke", book)["one"] == first
    (root / "sparsekit" / "masks.py").write_text("raise RuntimeError\n")
    assert run_chapters(book.chapters(), "smoke", book)["one"] != first


@pytest.fixture
def keyed(tmp_path):
    """A function that gives the key of a chapter in a small tree of code."""
    files = {
        "sparsekit/masks.py": "x = 1",
        "apps/__init__.py": "",
        "apps/common/datasets.py": "pin = 'a'",
        "apps/classify/train.py": "y = 1",
        "apps/classify/presets/a.toml": "z = 1",
        "apps/recsys/train.py": "y = 1",
        "book/engine/execution.py": "run = 1",
        "book/engine/site.py": "render = 1",
        "constraints.txt": "torch==2.13.0",
    }
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    claims = tmp_path / "claims.toml"
    claims.write_text('[[claim]]\nid = "a"\nchapter = "one"\n')
    path = tmp_path / "one.md"

    def key(text="from apps.classify import train", profile="smoke"):
        path.write_text(chapter_text(text))
        chapter = read_chapter(path)
        return cache.run_key(
            chapter, {"profile": profile}, root=tmp_path / "root", claims=claims
        )

    return key, tmp_path


def test_key_is_reproducible(keyed):
    key, _ = keyed
    assert key() == key()
    assert len(key()) == 64


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("root/sparsekit/masks.py", True),
        ("root/apps/common/datasets.py", True),  # where data is pinned
        ("root/apps/classify/train.py", True),
        ("root/apps/classify/presets/a.toml", True),
        ("root/book/engine/execution.py", True),
        ("root/constraints.txt", True),
        ("root/apps/recsys/train.py", False),  # the chapter does not name this app
        ("root/book/engine/site.py", False),  # rendering is not execution
        ("results/full/one-runs.json", True),  # stored, shown on the page
        ("results/full/two.json", False),
    ],
)
def test_key_depends_on_what_the_chapter_can_reach(keyed, name, changes):
    key, folder = keyed
    before = key()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("changed = 2")
    assert (key() != before) is changes


def test_key_depends_on_stored_results_that_the_text_names(keyed):
    key, folder = keyed
    text = 'load("results/full/gpu.json")  # from apps.classify import train'
    before, other = key(text=text), key()
    (folder / "results" / "full").mkdir(parents=True)
    (folder / "results" / "full" / "gpu.json").write_text("{}")
    assert key(text=text) != before
    assert key() == other


def test_key_depends_on_text_profile_new_files_and_own_claims(keyed):
    key, folder = keyed
    before = key()
    assert key(text="from apps.classify import data") != before
    assert key(profile="laptop") != before
    other = '\n[[claim]]\nid = "b"\nchapter = "two"\n'
    claims = folder / "claims.toml"
    claims.write_text(claims.read_text() + other)
    assert key() == before
    claims.write_text(claims.read_text().replace('"a"', '"c"'))
    assert key() != before
    before = key()
    (folder / "root/sparsekit/new.py").write_text("")
    assert key() != before


def test_cache_drops_the_oldest_entries(tmp_path):
    notebook = tmp_path / "n.ipynb"
    notebook.write_text("{}")
    for index in range(cache.KEPT + 2):
        cache.store(
            tmp_path / "cache",
            "smoke",
            "one",
            f"{index:064d}"[::-1],
            notebook=notebook,
            results=None,
            facts={"index": index},
        )
        time.sleep(0.01)
    kept = sorted(
        cache.Run(p).facts["index"] for p in (tmp_path / "cache/smoke/one").iterdir()
    )
    assert kept == [2, 3, 4]


def test_a_run_without_measurements_removes_stale_ones(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    stale = tmp_path / "results" / "smoke" / "one.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    cache.restore_results(cache.Run(folder), tmp_path / "results", "smoke", "one")
    assert not stale.exists()


def code(tag, source):
    return f"```{{code-cell}} ipython3\n:tags: [{tag}]\n\n{source}\n```\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (chapter_text("x = 1", parameters=""), "exactly one code cell tagged"),
        (chapter_text("x = 1", parameters=PARAMETERS * 2), "found 2"),
        (chapter_text(parameters=code("parameters", "profil = 1")), "must set `prof"),
        (chapter_text("1", front="sparsekit:\n  thread: 2"), "unknown option 'thread'"),
        (chapter_text("1", front="sparsekit:\n  threads: two"), "must be an integer"),
        (chapter_text("1", front="sparsekit:\n  threads: 0"), "at least 1"),
        (chapter_text("1", front="sparsekit:\n  alone: 1"), "true or false"),
        (chapter_text("1", front="sparsekit:\n  data: mnist"), "a list of names"),
        (chapter_text("1", front="sparsekit: fast"), "must be a mapping"),
        (chapter_text("1", front="kernelspec:\n  name: x"), "cannot be read as MyST"),
        (
            chapter_text("1") + code("raises-exception", "1 / 0"),
            "code cell 3: the tag `raises-exception`",
        ),
    ],
)
def test_mistakes_in_a_source_are_found_before_it_runs(tmp_path, text, words):
    path = tmp_path / "chapter.md"
    path.write_text(text)
    with pytest.raises(ChapterError, match="chapter") as caught:
        read_chapter(path)
    assert words in str(caught.value)


def test_contents_list_only_chapters_that_exist(tmp_path):
    book = make_book(tmp_path / "book", {"one": chapter_text("1")})
    toc = book.folder / "_toc.yml"
    assert [p.stem for p in read_contents(toc)] == ["one"]
    toc.write_text(toc.read_text() + "      - file: scoreboard\n")
    assert [p.stem for p in read_contents(toc)] == ["one"]
    text = toc.read_text()
    toc.write_text(text + "      - file: chapters/one\n")
    with pytest.raises(ChapterError, match="twice"):
        read_contents(toc)
    toc.write_text(text + "      - file: chapters/two\n")
    with pytest.raises(ChapterError, match=r"lists chapters/two.*write it or remove"):
        read_contents(toc)


def test_data_is_fetched_before_anything_runs(tmp_path):
    text = chapter_text("1", front="sparsekit:\n  data: [no_such_set]")
    book = make_book(tmp_path / "book", {"one": text})
    with pytest.raises(ChapterError, match=r"data of one: .*no_such_set"):
        run_chapters(book.chapters(), "smoke", book)
    assert not (book.build / "runs").exists()


def test_command_reports_a_bad_chapter_and_exits_with_1(capsys):
    assert main(["--profile", "smoke", "--chapter", "no-such-chapter"]) == 1
    assert "no-such-chapter: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["--profile", "huge"])
    assert usage.value.code == 2


def notebook_with(source):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('profile = "smoke"', 'profile = "laptop"'),
        ("profile='smoke'  # or 'full'", "profile=\"laptop\"  # or 'full'"),
        (
            'n = 3\nprofile = "smoke"\nprofiles = 1',
            'n = 3\nprofile = "laptop"\nprofiles = 1',
        ),
    ],
)
def test_parameters_are_folded_into_their_cell(source, expected):
    notebook = notebook_with(source)
    fold_parameters(notebook, {"profile": "laptop"})
    assert notebook.cells[0].source == expected


def test_a_cell_that_did_not_run_is_found(capsys):
    notebook = notebook_with("x = 1")
    notebook.cells += [nbformat.v4.new_code_cell(""), nbformat.v4.new_code_cell("y")]
    notebook.cells[0].execution_count = 1
    assert not check_executed(notebook)
    event = json.loads(capsys.readouterr().out)
    assert (event["kind"], event["cell"]) == ("cell did not run", 2)
    notebook.cells[2].execution_count = 2
    assert check_executed(notebook)  # an empty cell has nothing to run


def test_outputs_that_may_not_appear():
    new = nbformat.v4.new_output
    assert output_problem(new("stream", name="stdout", text="fine")) is None
    assert output_problem(new("display_data", data={"text/plain": "1"})) is None
    assert output_problem(new("stream", name="stderr", text="oh"))[0]
    error = new("error", ename="ValueError", evalue="v", traceback=["line"])
    assert output_problem(error) == ("error output", "line")
    widget = {"application/vnd.jupyter.widget-view+json": {}}
    assert "widget" in output_problem(new("display_data", data=widget))[0]
