"""The receipt of a forgetting: against data and files, and by the other app's verb."""

import json
import shutil
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from apps.common import receipt, signing
from apps.recsys import cli
from apps.recsys.config import Config
from apps.recsys.result import load_result
from apps.recsys.train import train
from apps.unlearning import cli as unlearning
from tests.apps.words import runner

run = runner(cli)


def verify(*arguments: object) -> int:
    return unlearning.main(["verify", *map(str, arguments)])


@pytest.fixture(scope="module")
def forgotten(tmp_path_factory):
    """A folder with a run, one that has forgotten u3, and the receipt."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    pairs = np.argwhere(rng.random((30, 20)) < 0.3)
    table = pd.DataFrame({"user_id": pairs[:, 0], "item_id": pairs[:, 1]})
    table["user_id"] = "u" + table["user_id"].astype(str)
    table.to_csv(folder / "clicks.csv", index=False)
    settings = {"model": "mf", "dim": 4, "epochs": 2, "every": 1, "batch": 64}
    sparse = {"method": "gradual", "sparsity": 0.5}
    config = Config(dataset=str(folder / "clicks.csv"), **settings, **sparse)
    train(Config(**{**vars(config), "out": folder / "old"}))
    argv = ["--run", folder / "old", "--out", folder / "new"]
    argv += ["--receipt", folder / "r.json"]
    assert run("forget", "--users", "u3", *argv) == 0
    return folder


def test_it_is_verified_by_the_service_s_verb(forgotten, capsys):
    assert verify(forgotten / "r.json", "--files", forgotten) == 0
    said = capsys.readouterr().out
    assert "level: exact" in said
    assert "file: new/model.safetensors" in said
    (name,) = [r["request"] for r in content(forgotten)["requests"]]
    assert verify(forgotten / "r.json", "--request", name) == 0
    assert verify(forgotten / "r.json", "--request", "r-other") == 1


def content(folder) -> dict:
    return json.loads((folder / "r.json").read_text("utf-8"))


def test_its_numbers_are_those_of_the_data_and_the_files(forgotten):
    old, told = load_result(forgotten / "old"), content(forgotten)
    users, items = old.data.train.nonzero()
    learned = users * old.data.shape[1] + items
    gone = learned[np.asarray(old.data.user_ids)[users] == "u3"]
    data = told["data"]
    assert data["records_erased"] == told["requests"][0]["records"] == len(gone) > 0
    assert data["records_before"] == len(learned)
    lines = "".join(f"{i}\n" for i in sorted(gone))
    assert data["index_sha256_erased"] == sha256(lines.encode()).hexdigest()
    for member, name in (("before", "old"), ("after", "new")):
        file = forgotten / name / "model.safetensors"
        assert told[member]["sha256"] == sha256(file.read_bytes()).hexdigest()
        assert told[member]["path"] == f"{name}/model.safetensors"
    assert told["mask"]["provenance"] == "retain-only"
    assert told["after"]["params_active"] < told["after"]["params_total"]
    # The old run still holds them: that is said, with what it is.
    retired = {file["path"] for file in told["retired"]}
    assert "old/model.safetensors" in retired
    assert "u3" not in (forgotten / "r.json").read_text("utf-8").replace("ru3", "")


def test_what_was_changed_is_not_valid(forgotten, tmp_path, capsys):
    folder = shutil.copytree(forgotten, tmp_path / "copy")
    model = folder / "new" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert verify(folder / "r.json", "--files", folder) == 1
    assert "another content" in capsys.readouterr().err
    text = (folder / "r.json").read_text("utf-8")
    (folder / "r.json").write_text(text.replace('"exact"', '"statistical"'), "utf-8")
    assert verify(folder / "r.json") == 1
    assert "signature does not fit" in capsys.readouterr().err
    shutil.rmtree(folder / "old")
    shutil.copy(forgotten / "r.json", folder / "r.json")
    shutil.copy(forgotten / "new" / "model.safetensors", model)
    assert verify(folder / "r.json", "--files", folder, "--wiped") == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "drop"], "for an exact method alone"),
        (["--receipt", "r.txt"], "is a .json file"),
        ([], "receipts are not overwritten"),
    ],
)
def test_what_gets_no_receipt(forgotten, tmp_path, capsys, argv, message):
    words = ["--run", forgotten / "old", "--users", "u4", "--out", tmp_path / "n"]
    assert run("forget", *words, "--receipt", forgotten / "r.json", *argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


def test_a_key_of_another_is_not_ours(forgotten, tmp_path):
    signing.create_key(tmp_path / "key.pem")
    with pytest.raises(ValueError, match="not with"):
        receipt.verify(forgotten / "r.json", tmp_path / "public.pem")
