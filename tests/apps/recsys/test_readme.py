"""What the README shows of serving: the printed list, and the service with curl."""

import gzip
import json
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
import numpy as np
import pytest

from apps.recsys import cli

ROOT = Path(__file__).parents[3]
README = (Path(cli.__file__).parent / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_data_of_ones_own(tmp_path, monkeypatch, capsys):
    """The commands of that section, on a small shop, at the smoke profile."""
    monkeypatch.chdir(tmp_path)
    (settings,) = blocks("toml")
    (tmp_path / "shop.toml").write_text(settings)
    rng = np.random.default_rng(0)
    events = ("buy", "view", "cart")
    pairs = zip(rng.integers(100, 140, 3000), rng.integers(99, size=3000), strict=True)
    rows = [
        f"c-{u},S{i},{events[i % 3]},2026-01-{1 + i % 28:02}T10:0{u % 6}:00Z"
        for u, i in pairs
    ]
    head = "customer,sku,event,at"
    text = "\n".join([head, *rows]) + "\n"
    (tmp_path / "clicks.csv.gz").write_bytes(gzip.compress(text.encode()))
    kinds = ["Tea", "Mugs"]
    items = [f"S{i},Good thing {i},{kinds[i // 3 % 2]},{i / 2}" for i in range(99)]
    (tmp_path / "items.csv").write_text("\n".join(["sku,title,category,price", *items]))
    (tmp_path / "today.txt").write_text("c-104\nc-120\n")
    late = [
        f"c-{u},S{i},buy,2026-02-01T00:00:00Z" for u in (1, 104, 120) for i in range(99)
    ]
    (tmp_path / "news.csv").write_text("\n".join([head, *late]) + "\n")
    (text,) = blocks("console")
    fewer = ["--profile", "smoke", "--trials", "1", "--seeds", "2", "--models", "mf"]
    told = {}
    for line in text.strip().splitlines():
        words = shlex.split(line.removeprefix("$ sparsekit recsys "))
        small = {"compare": fewer, "train": fewer[:2]}.get(words[0], [])
        assert cli.main([*words, *small]) == 0, line
        told.setdefault(words[0], capsys.readouterr().out)
    assert "known        title of" in told["data"]
    found = json.loads(told["recommend"])["items"]
    assert found
    assert all(int(row["item"][1:]) <= 40 for row in found)
    assert len((tmp_path / "lists.csv").read_text().splitlines()) == 21
    assert "2 users, with 95 % intervals" in told["backtest"]
    assert "99 of unknown users" in told["backtest"]
    assert "1 new users, 33 new items" in told["update"]
    stored = (tmp_path / "runs/best/config.toml").read_text()
    assert "lr = 0.01" in stored  # of the preset
    assert 'dataset = "clicks.csv.gz"' in stored


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
        assert len(answers) == 6
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
