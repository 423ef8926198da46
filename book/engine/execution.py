"""Run one chapter with papermill, in a process of its own.

The process reads a job (JSON) from the file named on its command line and reports
on stdout, one JSON object a line: `cell`, then `done` or `failed`. A process per
chapter gives each its own working directory and environment.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from book.engine.chapter import code_cells, tags


def report(event: str, **values: Any) -> None:
    """Tell the scheduler; stdout carries nothing else."""
    print(json.dumps({"event": event, **values}), flush=True)


class Client(PapermillNotebookClient):
    """papermill's client with an IPC kernel: no TCP port, so no warning about one.

    Two kernels with the default relative `ip` would share sockets and mix their
    messages, hence a folder per kernel, short enough for a Unix socket's path.
    """

    def create_kernel_manager(self):
        manager = super().create_kernel_manager()
        if sys.platform != "win32":
            self.sockets = tempfile.mkdtemp(prefix="book-")
            manager.transport = "ipc"
            manager.ip = str(Path(self.sockets) / "k")
        return manager

    def execute(self, **kwargs):
        try:
            return super().execute(**kwargs)
        finally:
            shutil.rmtree(getattr(self, "sockets", ""), ignore_errors=True)


class Engine(NBClientEngine):
    """nbclient, reporting every code cell as it starts."""

    current: NotebookNode | None = None  # the running cell and its number, for errors
    position: int | None = None

    @classmethod
    def execute_managed_notebook(
        cls, nb_man, kernel_name, *, cell_seconds=None, start_timeout=60, **_
    ):
        cells = code_cells(nb_man.nb)
        start = nb_man.cell_start

        def cell_start(cell, *args, **kwargs):
            if any(cell is c for c in cells):
                cls.current, cls.position = cell, chapter_cells(nb_man.nb, cell)
                report("cell", number=cls.position, total=chapter_cells(nb_man.nb))
            start(cell, *args, **kwargs)

        nb_man.cell_start = cell_start
        Client(
            nb_man,
            timeout=cell_seconds,
            startup_timeout=start_timeout,
            kernel_name=kernel_name,
        ).execute()


def chapter_cells(notebook: NotebookNode, until: NotebookNode | None = None) -> int:
    """Number of code cells up to `until`, not counting papermill's injected one."""
    count = 0
    for cell in code_cells(notebook):
        count += "injected-parameters" not in tags(cell)
        if cell is until:
            break
    return count


def fold_parameters(notebook: NotebookNode, parameters: dict[str, Any]) -> None:
    """Write the values that were used into the chapter's own parameters cell.

    papermill appends a second cell that overrides the first; a reader of the page
    or of the downloaded notebook should see one cell, with the values that ran.
    """
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in tags(c)]
    for cell in notebook.cells:
        if "parameters" in tags(cell):
            for name, value in parameters.items():
                literal = f'"{value}"' if isinstance(value, str) else repr(value)
                cell.source = re.sub(
                    rf"(?m)^({re.escape(name)}\s*=\s*)[^#\n]*?(\s*(?:#.*)?)$",
                    rf"\g<1>{literal}\g<2>",
                    cell.source,
                    count=1,
                )


def clean(notebook: NotebookNode) -> None:
    """Remove what papermill leaves: absolute paths, times, per-cell records."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)


def failure(kind: str, text: str, cell: int | None = None, source: str = "") -> None:
    """Report a failure of the chapter, without IPython's colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    report("failed", kind=kind, text=plain, cell=cell, source=source)


def check_executed(notebook: NotebookNode) -> bool:
    """Report the first thing wrong with an executed notebook; True if nothing is.

    SystemExit ends a kernel's run without an error, so every cell must have run.
    """
    for number, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count is None:
            failure(
                "cell did not run",
                f"code cell {number} has no execution count: an earlier cell ended "
                "the kernel (SystemExit, exit(), quit()?)",
                number,
                cell.source,
            )
            return False
        for output in cell.outputs:
            problem = output_problem(output)
            if problem:
                failure(*problem, number, cell.source)
                return False
    return True


def output_problem(output: NotebookNode) -> tuple[str, str] | None:
    """Why an output may not appear in the book: (kind, text), or None."""
    if output.output_type == "error":
        if output.ename == "SystemExit":
            return "SystemExit", "a chapter must not end its kernel"
        return "error output", "\n".join(output.traceback)
    if output.output_type == "stream" and output.name == "stderr":
        return (
            "output on stderr",
            f"{output.text}\nFix its cause, or filter that one warning in the chapter.",
        )
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        return (
            "widget output",
            "widgets load scripts from the network; draw with matplotlib instead, and "
            "import tqdm from `tqdm`, not from `tqdm.auto`",
        )
    return None


def run(job: dict[str, Any]) -> None:
    """Execute the job's chapter and write the cleaned notebook to `job["output"]`."""
    began = time.perf_counter()
    notebook = jupytext.reads(Path(job["source"]).read_text("utf-8"), fmt="md:myst")
    # papermill wants language and display name; a chapter need not repeat them.
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    unrun = Path(job["folder"]) / "chapter.ipynb"
    nbformat.write(notebook, unrun)
    known = papermill.inspect_notebook(str(unrun))
    for name in job["parameters"]:
        if name not in known:
            return failure(
                "unknown parameter",
                f"the cell tagged `parameters` does not set {name!r}; it sets "
                f"{sorted(known)}",
            )
    papermill_engines.register("book", Engine)
    output = Path(job["folder"]) / "executed.ipynb"
    try:
        notebook = papermill.execute_notebook(
            str(unrun),
            str(output),
            parameters=job["parameters"],
            engine_name="book",
            kernel_name="python3",
            progress_bar=False,
            request_save_on_cell_execute=False,
            cwd=job["cwd"],
            cell_seconds=job["cell_seconds"],
        )
    except papermill.PapermillExecutionError as error:
        kind, text = error.ename, "\n".join(error.traceback)
        if kind == "SystemExit":
            text = "a chapter must not end its kernel"
        return failure(kind, text, *where())
    except DeadKernelError:
        return failure("kernel died", "the kernel died: out of memory?", *where())
    except CellTimeoutError:
        return failure(
            "time limit",
            f"the cell ran longer than {job['cell_seconds']} s; make it smaller in "
            "this profile, or set `sparsekit: {cell_seconds: N}` in the front matter",
            *where(),
        )
    fold_parameters(notebook, job["parameters"])
    clean(notebook)
    if check_executed(notebook):
        nbformat.write(notebook, job["output"])
        report("done", seconds=time.perf_counter() - began)


def where() -> tuple[int | None, str]:
    """Number and source of the code cell that was running."""
    if Engine.current is None:
        return None, ""
    return Engine.position, Engine.current.source


if __name__ == "__main__":
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    run(json.loads(Path(sys.argv[1]).read_text("utf-8")))
