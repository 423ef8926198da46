"""From a shop's file to the printed NDCG, computed a second time from the raw file.

Only the csv module, Python and the stored vectors: no reader, split, ranking or metric
of ours.
"""

import csv
import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from safetensors.numpy import load_file

from apps.recsys.cli import main

COLUMNS = ["--columns", "user=customer_id", "item=sku", "timestamp=at"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Clicks with a byte order mark, quoted commas, repeats, times with a zone."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("shop") / "clicks.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["customer_id", "title", "sku", "at", "event"])
        for row in range(1500):
            user, item = rng.integers(37), rng.zipf(1.5) % 53
            second = 1_700_000_000 + int(rng.permutation(10**6)[0]) * 1500 + row
            at = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            event = ["view", "buy"][rng.integers(2)]
            name = f'<b>"{item}"</b>, ü'
            writer.writerow([f"c-{user:03}", name, f"S,{item}", at, event])
    return path


def last_two(path, event):
    """{user: items, oldest first, the latest time of each}, of one kind of event."""
    latest = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            if row["event"] == event:
                pair = row["customer_id"], row["sku"]
                latest[pair] = max(latest.get(pair, ""), row["at"])
    of_user = {}
    for (user, item), at in latest.items():
        of_user.setdefault(user, []).append((at, item))
    return {user: [item for _, item in sorted(ats)] for user, ats in of_user.items()}


@pytest.mark.parametrize("event", ["view", "buy"])
def test_the_printed_metrics_follow_from_the_raw_file(shop, event, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "--dataset", str(shop), *COLUMNS, "--where", f"event={event}"]
    command += ["--split", "leave_one_out", "--model", "mf", "--dim", "4", "--l2", "0"]
    command += ["--epochs", "3", "--every", "3", "--batch", "64", "--lr", "0.05"]
    assert main([*command, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["metrics"]

    histories = last_two(shop, event)
    users = sorted(histories)
    items = sorted({item for history in histories.values() for item in history})
    table = next(iter(load_file(run / "model.safetensors").values()))
    assert table.shape == (len(users) + len(items), 4)
    ndcg, recall = [], []
    for row, user in enumerate(users):
        history = histories[user]
        if len(history) < 3:
            continue  # all of it is for training
        known, wanted = set(history[:-1]), history[-1]
        scores = {
            item: sum(
                float(a) * float(b) for a, b in zip(table[row], vector, strict=True)
            )
            for item, vector in zip(items, table[len(users) :], strict=True)
            if item not in known
        }
        rank = 1 + sorted(scores, key=lambda i: -scores[i]).index(wanted)
        ndcg.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
        recall.append(float(rank <= 10))
    assert told["ndcg@10"]["n"] == len(ndcg) > 30
    assert told["ndcg@10"]["value"] == pytest.approx(np.mean(ndcg), abs=1e-12)
    assert told["recall@10"]["value"] == pytest.approx(np.mean(recall), abs=1e-12)
    assert 0 < np.mean(recall) < 1


def test_a_run_again_from_its_settings_is_the_same(shop, tmp_path, capsys):
    """config.toml alone, and what result.json tells, bring back every number."""
    first, second = tmp_path / "a", tmp_path / "b"
    command = ["train", "--dataset", str(shop), *COLUMNS, "--model", "mf", "--dim", "4"]
    command += ["--epochs", "2", "--batch", "64", "--seed", "7", "--split-seed", "3"]
    assert main([*command, "--out", str(first)]) == 0
    again = ["train", "--config", str(first / "config.toml"), "--out", str(second)]
    assert main(again) == 0
    a, b = (json.loads((f / "result.json").read_text()) for f in (first, second))
    assert a["metrics"] == b["metrics"]
    assert a["config"] == b["config"]
    for name in ("model.safetensors", "users.safetensors"):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
