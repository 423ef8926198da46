"""SERVICE.md: its commands, its check with openssl, its report in a browser."""

import contextlib
import io
import json
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
from tests.book.conftest import ARGS, BROWSERS

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


def test_the_same_in_python(folder, capsys):
    with contextlib.chdir(folder[0]):
        exec(compile(block("python"), "SERVICE.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("verified [Line(path='models/0001.safetensors'")
    assert said.endswith(" 400\n")  # records of four subjects


def test_openssl_says_the_same(folder):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    assert "Verified Successfully" in shell(block("sh"), folder[0])


LOOK = """
import json, sys
from playwright.sync_api import sync_playwright

program, url, width, scheme = sys.argv[1:5]
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=program, args=sys.argv[5:])
    page = browser.new_page(
        viewport={"width": int(width), "height": 800}, color_scheme=scheme
    )
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(url)
    found = page.evaluate('''() => {
      const shown = [...document.querySelectorAll("svg text")];
      const style = getComputedStyle(document.body);
      const light = (c) => c.match(/[0-9]+/g).reduce((a, b) => a + Number(b), 0) / 3;
      return {
        width: document.documentElement.scrollWidth,
        smallest: Math.min(...shown.map((t) => t.getBoundingClientRect().height)),
        ink: light(style.color), page: light(style.backgroundColor)};
    }''')
    print(json.dumps(found | {"asked": asked, "said": said}))
    browser.close()
"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_the_report_in_a_browser(folder, width, scheme):
    """It fits a phone, asks nothing of the network, and is readable in both schemes.

    In a process of its own: Playwright runs once in a process, and the book's tests
    have it already.
    """
    places = [os.environ.get("SPARSEKIT_CHROMIUM"), *map(shutil.which, BROWSERS)]
    program = next((p for p in places if p and Path(p).exists()), None)
    if program is None:
        assert os.environ.get("SPARSEKIT_REQUIRE_BROWSER") != "1", "no chromium found"
        pytest.skip("no chromium found")
    url = (folder[0] / "report.html").as_uri()
    done = subprocess.run(
        [sys.executable, "-c", LOOK, program, url, str(width), scheme, *ARGS],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["asked"] == [url]
    assert found["said"] == []
    assert found["width"] == width
    assert found["smallest"] >= 10
    assert abs(found["ink"] - found["page"]) > 180
    assert (found["page"] < 128) == (scheme == "dark")
