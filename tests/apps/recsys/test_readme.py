"""What the README shows of serving: the printed list, and the service with curl."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from apps.recsys import cli

ROOT = Path(__file__).parents[3]
README = (Path(cli.__file__).parent / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README's file of EASE is."""
    folder = tmp_path_factory.mktemp("readme")
    (line,) = re.findall(r"^sparsekit recsys (export --model ease .*)$", README, re.M)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main(shlex.split(line)) == 0
    finally:
        os.chdir(before)
    return folder


def test_the_list_of_somebody_new(folder, monkeypatch, capsys):
    """All that is printed but the scores' last digits."""
    monkeypatch.chdir(folder)
    (line,) = re.findall(r"^sparsekit recsys (recommend .* --liked .*)$", README, re.M)
    assert cli.main(shlex.split(line)) == 0
    (shown,) = blocks("text")

    def rounded(text):
        return re.sub(r"(0\.\d\d)\d\d", r"\1", text).strip()

    assert rounded(capsys.readouterr().out) == rounded(shown)


def answered(line: str, port: str) -> httpx.Response:
    """A line with curl, asked by httpx."""
    program, url, *rest = shlex.split(line)
    assert program == "curl"
    url = "http://" + url.replace("localhost:8000", f"127.0.0.1:{port}")
    with httpx.Client(trust_env=False) as client:
        return client.post(url, content=rest[1]) if rest else client.get(url)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_the_service_with_curl(folder):
    (text,) = blocks("sh")
    start, *lines, reload = text.strip().splitlines()
    assert reload == "kill -HUP %1"
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = str(chosen.getsockname()[1])
    program, app, *arguments = shlex.split(start.replace("8000", port))
    assert (program, app, arguments.pop()) == ("sparsekit", "recsys", "&")
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.recsys", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        for _ in range(600):
            try:
                answered("curl localhost:8000/health", port)
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.1)
        answers = {line: answered(line, port) for line in lines}
        assert len(answers) == 5
        assert all(answer.status_code == 200 for answer in answers.values())
        titles = [item["title"] for item in answers[lines[0]].json()["items"]]
        assert "Return of the Jedi" in titles
        process.send_signal(signal.SIGHUP)
        for _ in range(600):
            if 'outcome="done"} 1.0' in answered(lines[-1], port).text:
                break
            time.sleep(0.1)
        assert 'outcome="done"} 1.0' in answered(lines[-1], port).text
    finally:
        process.terminate()
        process.wait()
