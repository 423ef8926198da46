"""The commands after training, on MovieLens-100k as they are typed."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from apps.recsys.artefact import load
from apps.recsys.cli import main
from apps.recsys.recommender import Filters, Recommender

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ease(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "ease.safetensors"
    command = ["export", "--model", "ease", "--options", "l2=250", "--keep", "50"]
    assert main([*command, "--out", str(path)]) == 0
    return path


def test_a_run_becomes_a_file(tmp_path, capsys):
    """Train, export, recommend: the file's lists are the run's vectors'."""
    run, path = tmp_path / "run", tmp_path / "model.safetensors"
    train = ["train", "--model", "mf", "--dim", "8", "--epochs", "2", "--lr", "0.01"]
    assert main([*train, "--out", str(run)]) == 0
    export = ["export", "--run", str(run), "--kind", "int8", "--out", str(path)]
    assert main(export) == 0
    artefact = load(path)
    assert artefact.model.items.kind == "int8"
    assert artefact.about["model"] == {"name": "mf", "method": "dense"}
    assert 0 < artefact.about["metrics"]["ndcg@20"]["value"] < 1
    assert artefact.about["metrics"]["coverage@20"]["low"] is None
    assert str(tmp_path) not in str(artefact.about)
    assert "new users: NDCG@20 0." in capsys.readouterr().out
    assert main(["recommend", "--file", str(path), "--user", "42", "--k", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("source: trained\n  1  ")
    best = Recommender(artefact).recommend("42", k=3).items
    assert all(item.title in out for item in best)


def test_a_run_on_the_validation_part_needs_its_fold_in(tmp_path, capsys):
    run, path = tmp_path / "run", tmp_path / "model.safetensors"
    train = ["train", "--model", "mf", "--dim", "4", "--epochs", "1"]
    assert main([*train, "--train-on", "all", "--out", str(run)]) == 0
    export = ["export", "--run", str(run), "--out", str(path)]
    assert main(export) == 2
    assert "trained on the validation part" in capsys.readouterr().err
    assert main([*export, "--fold-in", "0.1"]) == 2
    assert "two numbers" in capsys.readouterr().err
    assert main([*export, "--fold-in", "0.1", "10"]) == 0
    model = load(path).model
    assert model.fold_in.unseen == 0.1
    assert model.fold_in.l2 == pytest.approx(10 * (model.lengths**2).mean())


def test_somebody_new(ease, capsys):
    asked = ["--liked", "star wars", "Toy Story", "--because", "1", "--k", "4"]
    command = ["recommend", "--file", str(ease), *asked, "--where", "class=Animation"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("because of") == 4
    by_id = ["--history", "50", "1", "--because", "1", "--k", "4"]
    command = ["recommend", "--file", str(ease), *by_id, "--where", "class=Animation"]
    assert main(command) == 0
    assert capsys.readouterr().out == out
    assert main(["recommend", "--file", str(ease), "--like", "50", "--k", "2"]) == 0
    assert "Return of the Jedi" in capsys.readouterr().out


def test_everybody(ease, tmp_path, capsys):
    path = tmp_path / "lists.parquet"
    assert main(["recommend", "--file", str(ease), "--k", "5", "--out", str(path)]) == 0
    assert "4,710 rows for 942 users" in capsys.readouterr().out
    assert pq.read_table(path).num_rows == 4710


def test_some_with_filters(ease, tmp_path, capsys):
    """Each list is what the recommender gives for the same filters."""
    some, path = tmp_path / "some.txt", tmp_path / "lists.csv"
    some.write_text("42\n7\n", "utf-8-sig")  # as some editors write it
    command = ["recommend", "--file", str(ease), "--k", "4", "--users", str(some)]
    command += ["--where", "class=War,Comedy", "--without", "50", "--out", str(path)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 8
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    filters = Filters(where={"class": ["War", "Comedy"]}, without=["50"])
    for user in ("42", "7"):
        found = Recommender.open(ease).recommend(user, k=4, filters=filters)
        listed = [row["item"] for row in rows if row["user"] == user]
        assert listed == [item.item for item in found.items]
    one = ["recommend", "--file", str(ease), "--user", "42", "--only", "50", "172"]
    assert main([*one, "--seen", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["items"]
    assert {item["item"] for item in found} == {"50", "172"}


def test_vectors_leave_as_plain_arrays(tmp_path, capsys):
    """A file for an index of inner products: the lists are the exported model's."""
    pytest.importorskip("implicit")
    model, arrays = tmp_path / "m.safetensors", tmp_path / "v.npz"
    export = ["export", "--model", "als", "--options", "dim=8", "epochs=3"]
    assert main([*export, "--out", str(model)]) == 0
    assert main([*export, "--out", str(arrays), "--json"]) == 0
    lines = capsys.readouterr().out
    assert json.loads(lines[lines.index("{") :])["content"] is None
    found = np.load(arrays, allow_pickle=False)
    row = found["user_ids"].tolist().index("42")
    scores = found["items"] @ found["users"][row]
    ranked = found["item_ids"][np.argsort(-scores)[:9]].tolist()
    recommender = Recommender.open(model)
    same = recommender.recommend("42", k=9, exclude_seen=False).items
    assert ranked == [item.item for item in same]


def test_a_shop_of_ones_own(tmp_path, capsys):
    """Titles and categories from a table of items; then a single new click."""
    rng = np.random.default_rng(0)
    pairs = {(int(u), int(i)) for u, i in rng.integers(0, (23, 31), (300, 2))}
    clicks, items = tmp_path / "clicks.csv", tmp_path / "items.csv"
    bought = [f"c{u},S{i},{'buy' if i % 2 else 'view'}" for u, i in sorted(pairs)]
    clicks.write_text("\n".join(["customer,sku,event", *bought]))
    named = [f'S{i},"<b>Tea</b>, no {i}",cat{i % 3}' for i in range(40)]
    items.write_text("\n".join(["sku,product_name,category", *named]))
    path = tmp_path / "ease.safetensors"
    own = ["--columns", "user=customer", "item=sku", "--catalogue", str(items)]
    log = ["--dataset", str(clicks), "--where", "event=buy"]
    command = ["export", "--model", "ease", "--options", "l2=5", *log, *own]
    assert main([*command, "--out", str(path)]) == 0
    assert str(tmp_path) not in str(load(path).about)
    capsys.readouterr()
    ask = ["recommend", "--file", str(path), "--liked", "<b>tea</b>, no 7"]
    assert main([*ask, "--where", "category=cat0", "--k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "source: folded"
    assert len(lines) == 4
    for line in lines[1:]:
        number = int(line.split()[2].removeprefix("S"))
        assert number % 2 == 1
        assert number % 3 == 0
        assert line.endswith(f"<b>Tea</b>, no {number}")
    clicks.write_text("customer,sku,event\nnobody,S38,buy\n")
    update = ["update", "--file", str(path), "--dataset", str(clicks), *own]
    assert main(update) == 0
    assert "1 new interactions, 1 new users, 1 new items" in capsys.readouterr().out
    newer = load(path)
    assert newer.texts["product_name"][len(newer.item_ids) - 1] == "<b>Tea</b>, no 38"


def test_what_is_too_few_to_split_is_exported(tmp_path, capsys, monkeypatch):
    """A model whose settings are given needs no validation part."""
    monkeypatch.chdir(tmp_path)
    Path("few.csv").write_text("user_id,item_id\nu,a\nv,b\nw,a\nw,b\n")
    command = ["export", "--dataset", "few.csv", "--split", "global_time"]
    command += ["--model", "ease", "--out", "few.safetensors"]
    assert main(command) == 0
    found = Recommender.open("few.safetensors").recommend("u", k=3)
    assert [item.item for item in found.items] == ["b"]
    assert main(["train", "--model", "mf", *command[1:5], "--out", "run"]) == 2
    assert "has no timestamps" in capsys.readouterr().err


def test_who_is_new_since_the_training(tmp_path, capsys, monkeypatch):
    """Split by time: left out of the metrics, counted, and served from the history."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pairs = [(u, i) for u in range(30) for i in range(40) if rng.random() < 0.3]
    # The last three users come at the end of time; some clicks of others, too.
    late = [u > 26 or rng.random() < 0.05 for u, _ in pairs]
    times = rng.integers(90, size=len(pairs)) + 1000 * np.array(late)
    rows = [f"{u},{i},{t}" for (u, i), t in zip(pairs, times, strict=True)]
    Path("log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    log = ["--dataset", "log.csv", "--split", "global_time"]
    small = ["--model", "mf", "--dim", "4", "--epochs", "2", "--batch", "50"]
    assert main(["train", *log, *small, "--out", "run"]) == 0
    assert "left out: 3 who are new since training" in capsys.readouterr().out
    again = ["--models", "als", "--trials", "1", "--seeds", "2", "--json"]
    assert main(["compare", *log, *small, *again]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note == "Left out: 3 users of the test part, new since training."
    assert main(["export", "--run", "run", "--out", "m.safetensors"]) == 0
    recommender = Recommender.open("m.safetensors")
    for user in ("27", "28", "29"):
        own = recommender.artefact.history[recommender.row_of(user)]
        history = [recommender.artefact.item_ids[i] for i in own]
        expected = recommender.recommend(history=history, k=40).items
        found = recommender.recommend(user, k=40).items
        assert [item.item for item in found] == [item.item for item in expected]


def test_an_update(ease, tmp_path, capsys):
    news, newer = tmp_path / "news.csv", tmp_path / "newer.safetensors"
    news.write_text("user_id,item_id,rating\nme,50,5\nme,new,5\nyou,new,4\nyou,2,1\n")
    command = ["update", "--file", str(ease), "--dataset", str(news), "--rating", "4"]
    assert main([*command, "--out", str(newer)]) == 0
    assert "3 new interactions, 2 new users, 1 new items" in capsys.readouterr().out
    found = Recommender.open(newer).recommend("me", k=3, exclude_seen=False)
    assert len(found.items) == 3
    assert len(load(newer).history[942]) == 2
    assert load(ease).user_ids.find("me") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--model", "ease"], "--out is required"),
        (["export", "--out", "x.npz"], "give --run, a finished training, or --model"),
        (
            ["export", "--run", "nowhere", "--out", "x.npz"],
            "no finished run in nowhere",
        ),
        (
            ["export", "--model", "ease", "--options", "lr=1", "--out", "x.npz"],
            "model 'ease' has no option 'lr'; it has l2, most_items",
        ),
        (["recommend", "--user", "1"], "--file is required"),
        (["recommend", "--file", "nowhere", "--user", "1"], "No such file"),
        (["recommend", "--file", "{ease}"], "--out, or --user, --history"),
        (["recommend", "--file", "{ease}", "--user", "x"], "no user 'x'"),
        (
            ["recommend", "--file", "{ease}", "--liked", "wallace"],
            "no title 'wallace'; near it: Wallace & Gromit",
        ),
        (
            ["recommend", "--file", "{ease}", "--liked", "Star Warz"],
            "no title 'Star Warz'; near it: Star Wars",
        ),
        (
            ["recommend", "--file", "{ease}", "--without", "1", "--out", "x"],
            "x: lists are .parquet or .csv",
        ),
        (
            ["recommend", "--file", "{ease}", "--because", "1", "--out", "x.csv"],
            "lists of users name no reasons",
        ),
        (
            ["recommend", "--file", "{ease}", "--user", "1", "--where", "class=Wer"],
            "no item has class",
        ),
        (["export", "--model", "ease", "--out", "x.npz"], "item weights"),
        (
            ["export", "--model", "ease", "--out", "x.onnx"],
            "x.onnx: an exported file is .safetensors or .npz; an index or an ONNX",
        ),
        (["update", "--file", "{ease}"], "--dataset is required"),
        (["update", "--file", "{ease}", "--dataset", "nowhere.csv"], "no file nowhere"),
        (["serve", "--file", "nowhere"], "No such file"),
    ],
)
def test_what_is_refused(ease, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [a.replace("{ease}", str(ease)) for a in arguments]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_service_as_it_is_typed(ease):
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = str(chosen.getsockname()[1])
    command = [sys.executable, "-m", "apps.recsys", "serve", "--file", str(ease)]
    process = subprocess.Popen([*command, "--port", port], cwd=ROOT, env=os.environ)
    body = {"history": ["50"], "k": 2}
    try:
        for _ in range(600):
            try:
                url = f"http://127.0.0.1:{port}/recommend"
                got = httpx.post(url, json=body, trust_env=False)
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.1)
        expected = Recommender.open(ease).recommend(history=["50"], k=2)
        items = [item["item"] for item in got.json()["items"]]
        assert items == [item.item for item in expected.items]
    finally:
        process.terminate()
        process.wait()
