"""SERVICE.md: its commands, its check with openssl, its report in a browser."""

import contextlib
import io
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from apps.unlearning import cli
from tests.book.conftest import browser  # noqa: F401

ROOT = Path(__file__).parents[3]
PAGE = (Path(cli.__file__).parent / "SERVICE.md").read_text("utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return found


def shell(script: str, folder: Path) -> str:
    """Output of a script, run by the shell; `python` is this one."""
    programs = folder.parent / "bin"
    programs.mkdir(exist_ok=True)
    path = programs / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        ["sh", "-e", "-c", script], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands ran, and what they printed; ours in this process."""
    folder = tmp_path_factory.mktemp("page") / "here"
    folder.mkdir()
    (folder / "apps").symlink_to(ROOT / "apps")
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        for line in block("bash").splitlines():
            if not line.startswith("sparsekit unlearning "):
                shell(line, folder)
                continue
            assert cli.main(shlex.split(line)[2:]) == 0, line
    return folder, said.getvalue()


def test_the_commands(folder):
    _, said = folder
    assert said.count("VALID  ") == 3
    assert "50 subjects, 5000 records" in said
    assert "wiped    model      models/0000.safetensors" in said


def test_openssl_says_the_same(folder):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    assert "Verified Successfully" in shell(block("sh"), folder[0])


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_the_report_in_a_browser(folder, browser, width, scheme):  # noqa: F811
    """It fits a phone, asks nothing of the network, and is readable in both schemes."""
    page = browser.new_page(
        viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.goto((folder[0] / "report.html").as_uri())
    assert len(asked) == 1
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map("
        "t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 10
    luminance = page.evaluate(
        "[getComputedStyle(document.body).color, "
        "getComputedStyle(document.body).backgroundColor].map("
        "c => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b) / 3)"
    )
    assert abs(luminance[0] - luminance[1]) > 180
    assert (luminance[1] < 128) == (scheme == "dark")
    page.close()
