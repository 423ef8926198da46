"""Forgetting in runs and files: against trainings and fits that never saw them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from apps.recsys import cli, plain_vectors
from apps.recsys.artefact import load, save
from apps.recsys.config import Config
from apps.recsys.export import artefact_of, factors_of, matrix_of
from apps.recsys.forgetting import forget as module
from apps.recsys.forgetting.files import without
from apps.recsys.forgetting.forget import AUDIT, audit, forget, problem_of
from apps.recsys.forgetting.leftovers import leftovers
from apps.recsys.forgetting.methods import Drop
from apps.recsys.forgetting.request import Forgotten, Request
from apps.recsys.forgetting.study import trial
from apps.recsys.models.closed_form import EASE, ItemKNN
from apps.recsys.models.factors import Factors
from apps.recsys.recommender import Recommender, UnknownId
from apps.recsys.result import load_result
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import LowRank, encode
from apps.recsys.train import train
from tests.apps.recsys.artefacts import dataset, vectors
from tests.apps.words import runner

SMALL = {"dim": 4, "layers": 1, "batch": 64, "epochs": 4, "every": 2, "l2": 0.01}
GONE = ("u1", "u4", "u6", "u9", "u20")


run = runner(cli)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """A file of two tastes, and its rows."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{i}")
        for u in range(40) for i in range(30)
        if rng.random() < (0.6 if u % 2 == i % 2 else 0.1)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    pd.DataFrame(rows, columns=["user_id", "item_id"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def old(clicks, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "old"
    train(Config(dataset=str(clicks), model="lightgcn", out=out, **SMALL))
    return out


def test_retraining_is_a_training_that_never_saw_them(tmp_path):
    """A split that comes as files: the user's rows are deleted from them, or listed."""
    rng = np.random.default_rng(1)
    parts = {}
    for name, share in (("train", 0.4), ("test", 0.1)):
        pairs = np.argwhere(rng.random((30, 25)) < share)
        parts[name] = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    settings = SMALL | {"model": "lightgcn", "train_on": "all"}
    found = {}
    for name, gone in (("with", []), ("without", [3, 8])):
        for part, table in parts.items():
            path = tmp_path / f"{name}-{part}.csv"
            table[~table["user_id"].isin(gone)].to_csv(path, index=False)
        files = {part: str(tmp_path / f"{name}-{part}.csv") for part in parts}
        config = Config(dataset=files["train"], test=files["test"], **settings)
        found[name] = (config, tmp_path / name)
    config, out = found["with"]
    train(Config(**{**vars(config), "out": out}))
    gone = Request(users=("3", "8"))
    listed = forget(out, gone, "retrain", out=tmp_path / "new").result
    deleted = train(found["without"][0])
    assert list(listed.data.user_ids) == list(deleted.data.user_ids)
    assert torch.equal(
        listed.network.embedding.weight, deleted.network.embedding.weight
    )
    for name, values in deleted.evaluation.values.items():
        np.testing.assert_array_equal(listed.evaluation.values[name], values)


@pytest.mark.parametrize("method", ["drop", "finetune", "ascent", "random_items"])
def test_a_run_that_has_forgotten_is_a_run(old, tmp_path, method):
    options = {} if method == "drop" else {"epochs": 1}
    done = forget(old, Request(users=GONE), method, options=options, out=tmp_path / "n")
    found = load_result(tmp_path / "n")
    assert found.data.shape == (35, 30)
    assert not set(GONE) & set(found.data.user_ids)
    first, again = done.result.model, found.model
    np.testing.assert_array_equal(first.users, again.users)
    np.testing.assert_array_equal(first.items, again.items)
    assert found.metrics == done.result.metrics
    told = json.loads((tmp_path / "n" / "result.json").read_text())
    story = told["provenance"]["forgetting"]
    assert (story["method"], story["exact"], story["users"]) == (method, False, 5)
    text = "".join(
        path.read_bytes().decode(errors="replace")
        for path in (tmp_path / "n").iterdir()
    )
    assert not any(f'"{user}"' in text for user in GONE)
    moved = shutil.move(tmp_path / "n", tmp_path / "moved")
    assert load_result(moved).data.shape == (35, 30)


def test_requests_add_up(old, tmp_path):
    forget(old, Request(users=GONE[:2]), "drop", out=tmp_path / "a")
    data = load_result(tmp_path / "a").data
    pair = data.user_ids[0], data.item_ids[data.train[[0]].indices[0]]
    request = Request(users=GONE[2:], items=("i3",), pairs=(pair,))
    done = forget(tmp_path / "a", request, "finetune", out=tmp_path / "b")
    assert done.result.data.shape == (35, 29)
    user = list(done.result.data.user_ids).index(pair[0])
    item = list(done.result.data.item_ids).index(pair[1])
    assert done.result.data.train[user, item] == 0
    with pytest.raises(ValueError, match="no user 'u1'"):
        forget(tmp_path / "b", Request(users=("u1",)), "drop", out=tmp_path / "c")


def test_an_interrupted_forgetting_begins_again(old, tmp_path, monkeypatch):
    request, out = Request(users=GONE), tmp_path / "n"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(old, request, "finetune", out=out)
    with pytest.raises(FileNotFoundError, match="no finished run"):
        load_result(out)
    forget(old, request, "finetune", out=out)
    straight = forget(old, request, "finetune", out=tmp_path / "straight").result
    np.testing.assert_array_equal(load_result(out).model.items, straight.model.items)
    with pytest.raises(ValueError, match="holds a finished run"):
        forget(old, request, "drop", out=out)


def test_nothing_is_written_for_a_request_that_fails(old, tmp_path):
    everybody = tuple(load_result(old).data.user_ids)
    for request, method, fault in (
        (Request(users=("nobody",)), "drop", "no user 'nobody'"),
        (Request(users=everybody), "drop", "all 40 users"),
        (Request(users=GONE), "scrub", "method 'scrub' is unknown"),
        (Request(users=GONE), "nothing", "method .nothing. is unknown"),
    ):
        with pytest.raises(ValueError, match=fault):
            forget(old, request, method, out=tmp_path / "n")
    with pytest.raises(ValueError, match="retrain has no option 'epochs'"):
        forget(old, Request(users=GONE), options={"epochs": 1}, out=tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_an_item_without_interactions_can_go(clicks, tmp_path):
    """Its only one is a test item: nothing was learned from it."""
    config = Config(dataset=str(clicks), model="mf", out=tmp_path / "a", **SMALL)
    train(config)
    data = load_result(tmp_path / "a").data
    pairs = [
        (str(user), "i7")
        for user, row in zip(data.user_ids, data.train.toarray(), strict=True)
        if row[list(data.item_ids).index("i7")]
    ]
    forget(tmp_path / "a", Request(pairs=tuple(pairs)), "drop", out=tmp_path / "b")
    after = load_result(tmp_path / "b").data
    assert after.train.toarray()[:, list(after.item_ids).index("i7")].sum() == 0
    forget(tmp_path / "b", Request(items=("i7",)), "drop", out=tmp_path / "c")
    assert "i7" not in load_result(tmp_path / "c").data.item_ids


def test_what_an_audit_says(old, tmp_path):
    result = load_result(old)
    data = result.data
    pairs = []
    for row in range(30, 36):
        pairs.append((data.user_ids[row], data.item_ids[data.train[[row]].indices[0]]))
    request = Request(users=GONE, pairs=tuple(pairs))
    forgotten = Forgotten.of(request)
    forgotten.save(tmp_path / "list.json")
    config = Config(
        **{**vars(result.config), "without": tmp_path / "list.json", "out": None}
    )
    problem = problem_of(result, config, forgotten)
    others = [train(Config(**{**vars(config), "seed": s})) for s in (0, 1, 2)]
    found = audit(problem, request, data, others[0], others)
    # A model beside itself: no difference, and an attack that finds nothing.
    assert found[f"{AUDIT}ndcg@20 minus retrained"].value == 0
    assert found[f"{AUDIT}same items"].value == 1
    assert found[f"{AUDIT}auc users"].value == 0.5
    assert found[f"{AUDIT}auc interactions"].value == 0.5
    assert found[f"{AUDIT}same items, two retrained"].value < 1
    assert f"{AUDIT}auc users, row dropped" in found
    few = audit(problem, request, data, others[0], others[:1])
    assert not any("auc" in name for name in few)


def test_a_trial_with_strangers():
    config = Config(model="mf", dim=8, epochs=3, every=3, batch=2048, lr=0.02)
    rows = trial(config, 0, {"drop": Drop()}, share=0.05)
    assert set(rows) == {"original", "retrain", "drop"}
    # Without a graph, the rows of items are all that is served.
    assert rows["original"]["auc"] == rows["drop"]["auc"]
    assert all(0 <= row["auc"] <= 1 for row in rows.values())
    with pytest.raises(ValueError, match="cannot be drawn"):
        trial(config, 0, {}, share=0.6)


# ------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def data():
    return dataset()


def history(data):
    return sp.csr_array(data.train + data.valid + data.test)


def emptied(data, request):
    """The histories of those who stay, by dense matrices."""
    whole = history(data).toarray()
    users = [u not in request.users for u in data.user_ids]
    items = [i not in request.items for i in data.item_ids]
    for user, item in request.pairs:
        whole[list(data.user_ids).index(user), list(data.item_ids).index(item)] = 0
    return sp.csr_array(whole[np.ix_(users, items)])


@pytest.mark.parametrize("method", ["refit", "downdate"])
@pytest.mark.parametrize("kind", ["users", "items", "pairs", "all"])
def test_item_weights_forget_exactly(data, tmp_path, method, kind):
    dense = history(data)
    first = dense.indices[0]
    parts = {
        "users": {"users": ("u/3", "u/8")},
        "items": {"items": ("i5", "i6")},
        "pairs": {"pairs": (("u/0", data.item_ids[first]),)},
    }
    chosen = parts.values() if kind == "all" else [parts[kind]]
    request = Request(**{key: value for part in chosen for key, value in part.items()})
    ease = EASE(l2=3.0)
    whole = artefact_of(ease.fit(dense), data, settings=ease)
    save(tmp_path / "e.safetensors", without(whole, request, method))
    found = load(tmp_path / "e.safetensors")
    left = emptied(data, request)
    wanted = ease.fit(left)
    assert (matrix_of(found.history, left.shape[1]) != left).nnz == 0
    np.testing.assert_array_equal(
        found.popularity, np.asarray(left.sum(0)).astype(int).ravel()
    )
    scores = wanted.scores(np.arange(left.shape[0]))
    for row in (0, 4):
        np.testing.assert_allclose(
            found.model.folded(found.history[row]), scores[row], atol=1e-4
        )
    assert found.about["forgettings"][0]["method"] == method
    rows = data.item_table.set_index("item_id").loc[list(found.item_ids), "length"]
    np.testing.assert_array_equal(found.numbers["length"], rows)
    titles = found.texts["movie_title"]
    assert list(titles) == [
        t for t, i in zip(data.titles, data.item_ids, strict=True)
        if i not in request.items
    ]  # fmt: skip
    for index, value in enumerate(found.tags["genre"].values):
        named = {found.item_ids[i] for i in found.tags["genre"].items[index]}
        rows = data.item_table[data.item_table["genre"].str.split("|").map(
            lambda values, value=value: value in values)]  # fmt: skip
        assert named == set(rows["item_id"]) - set(request.items)


def test_item_neighbours_forget_exactly(data):
    knn = ItemKNN(neighbours=5)
    request = Request(users=("u/3", "u/8", "u/11"))
    found = without(artefact_of(knn.fit(history(data)), data, settings=knn), request,
                    "refit")  # fmt: skip
    left = emptied(data, request)
    scores = knn.fit(left).scores(np.arange(28))
    np.testing.assert_allclose(
        found.model.folded(found.history[5]), scores[5], rtol=1e-5
    )


def test_a_forgotten_user_is_unknown(data, tmp_path):
    users, items = vectors(data)
    whole = artefact_of(Factors(users, items), data, fold_in=FoldIn(0.1, 0.5))
    request = Request(users=("u/3",), items=("i5",))
    save(tmp_path / "f.safetensors", without(whole, request, "drop"))
    found = Recommender.open(tmp_path / "f.safetensors")
    with pytest.raises(UnknownId, match="no user 'u/3'"):
        found.recommend("u/3")
    with pytest.raises(UnknownId, match="no item 'i5'"):
        found.recommend(history=["i5"])
    assert found.recommend(history=[]).source == "popularity"  # like anybody new
    assert found.recommend(history=["i7"]).source == "folded"
    old = Recommender(whole)
    for user in ("u/2", "u/4", "u/30"):  # the others' lists, without the item
        before = [r.item for r in old.recommend(user, k=40).items if r.item != "i5"]
        assert [r.item for r in found.recommend(user, k=40).items][:20] == before[:20]


def test_files_that_cannot_forget(data):
    users, items = vectors(data)
    factors = artefact_of(Factors(users, items), data, fold_in=FoldIn(0.1, 0.5))
    ease = artefact_of(EASE(l2=3.0).fit(data.train), data, settings=EASE(l2=3.0))
    kept = artefact_of(
        EASE(l2=3.0).fit(data.train), data, settings=EASE(l2=3.0), keep=3
    )
    untold = artefact_of(EASE(l2=3.0).fit(data.train), data)
    axes = LowRank(encode(items, "float32"), encode(np.eye(5), "float32"))
    packed = factors_of(None, axes, data, fold_in=FoldIn(0.1, 0.5))
    one = Request(users=("u/3",))
    for artefact, request, method, fault in (
        (factors, one, "refit", "forget in the run"),
        (factors, Request(pairs=(("u/1", "i1"),)), "drop", "use --run"),
        (packed, Request(items=("i5",)), "drop", "no rows of its own"),
        (ease, one, "drop", "use --method refit"),
        (ease, one, "scrub", "no method 'scrub' for a file"),
        (ease, Request(), "refit", "nothing to forget"),
        (ease, Request(users=("u/3", "u/3")), "refit", "named twice"),
        (ease, Request(items=("x",)), "refit", "no item 'x' in the file"),
        (ease, Request(pairs=(("u/3", "x"),)), "refit", "no interaction"),
        (ease, Request(users=tuple(data.user_ids)), "refit", "all 31 users"),
        (kept, one, "downdate", "use --method refit"),
        (untold, one, "refit", "export it with settings"),
    ):
        with pytest.raises(ValueError, match=fault):
            without(artefact, request, method)
    nobody = artefact_of(EASE(l2=3.0).fit(data.train), data, users="nothing")
    with pytest.raises(ValueError, match="no users and histories"):
        without(nobody, one, "refit")


# --------------------------------------------------------------- leftovers


def test_what_still_holds_them(old, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(old, runs / "old")
    artefact = runs / "model.safetensors"
    nobody = runs / "nobody.safetensors"
    assert run("export", "--run", runs / "old", "--out", artefact) == 0
    assert (
        run("export", "--run", runs / "old", "--users", "nothing", "--out", nobody) == 0
    )
    assert (
        run("recommend", "--file", artefact, "--k", 3, "--out", runs / "l.parquet") == 0
    )
    lists = runs / "l.csv"
    assert run("recommend", "--file", artefact, "--k", 2, "--out", lists) == 0
    plain_vectors.write(runs / "v.npz", load(artefact))
    np.savez(runs / "other.npz", items=np.eye(3))
    (runs / "torn.npz").write_bytes(b"PK")
    (runs / "notes.csv").write_text("user,note\n42,x\n")
    (runs / "notes.safetensors").write_bytes(b"no tensors")
    (runs / "other.parquet").write_bytes(b"no table")
    pd.DataFrame({"user": ["x"], "item": ["y"]}).to_parquet(runs / "x.parquet")
    request = Request(users=GONE)
    found = forget(runs / "old", request, "drop", out=runs / "new").leftovers
    names = {one.path.relative_to(runs).as_posix() for one in found}
    assert names == {
        "old/config.toml", "old/log.jsonl", "old/model.safetensors", "old/result.json",
        "old/users.safetensors", "model.safetensors", "nobody.safetensors", "l.parquet",
        "l.csv", "v.npz",
    }  # fmt: skip
    why = {one.path.name: one.why for one in found}
    assert why["l.parquet"] == "lists with 15 rows of users, 0 of items"
    assert why["l.csv"] == "lists with 10 rows of users, 0 of items"
    assert why["v.npz"] == "vectors of 5 users and 0 items of the request"
    clean = runs / "clean.safetensors"
    assert (
        run("export", "--run", runs / "new", "--users", "nothing", "--out", clean) == 0
    )
    again = leftovers([runs], request, load_result(old).config.dataset, runs / "none")
    assert {one.path.relative_to(runs).as_posix() for one in again} == names
    with pytest.raises(FileNotFoundError, match="no folder"):
        leftovers([tmp_path / "nowhere"], request, "x", runs / "new")


# ----------------------------------------------------------------- command


def test_the_command(old, clicks, tmp_path, capsys):
    out = tmp_path / "new"
    (tmp_path / "ids.txt").write_text("\n".join(GONE))
    chosen = ("--run", old, "--users", tmp_path / "ids.txt", "--out", out)
    assert run("forget", *chosen, "--method", "finetune", "--options", "epochs=1",
               "--references", "2") == 0  # fmt: skip
    printed = capsys.readouterr().out
    for part in ("35 users and 30 items stay; finetune, not exact", "auc users",
                 "same items, two retrained", "files still hold them"):  # fmt: skip
        assert part in printed
    assert run("evaluate", "--run", out) == 0
    assert "forgetting: auc users" in capsys.readouterr().out
    artefact = tmp_path / "model.safetensors"
    assert run("export", "--run", out, "--out", artefact) == 0
    assert run("recommend", "--file", artefact, "--user", "u1") == 2
    assert "no user 'u1' in the file" in capsys.readouterr().err
    # An update that still holds them brings nobody back.
    news = ("--dataset", clicks, "--file", artefact)
    assert run("update", *news, "--without", out / "forgotten.json") == 0
    assert run("recommend", "--file", artefact, "--user", "u1") == 2
    assert run("update", *news) == 0
    assert run("recommend", "--file", artefact, "--user", "u1") == 0


def test_the_command_on_a_file(clicks, tmp_path, capsys):
    path = tmp_path / "ease.safetensors"
    fit = ("export", "--model", "ease", "--options", "l2=5", "--dataset", clicks)
    assert run(*fit, "--out", path) == 0
    assert run("forget", "--file", path, "--users", "u1", "--out", path) == 0
    assert run("recommend", "--file", path, "--user", "u1") == 2
    capsys.readouterr()
    # Fitted on a data set from which they are left out, it is the same.
    Forgotten.of(Request(users=("u1",))).save(tmp_path / "list.json")
    other = tmp_path / "other.safetensors"
    assert run(*fit, "--without", tmp_path / "list.json", "--out", other) == 0
    one, two = load(path).model, load(other).model
    np.testing.assert_allclose(one.values, two.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--out", "n"), "give --run"),
        (("--run", "OLD"), "--out is required"),
        (("--run", "OLD", "--out", "n"), "nothing to forget"),
        (("--run", "OLD", "--users", "x", "--out", "n"), "no user 'x'"),
        (("--run", "OLD", "--users", "u1", "u1", "--out", "n"), "named twice"),
        (("--run", "nowhere", "--users", "u1", "--out", "n"), "no finished run"),
        (("--file", "nowhere", "--users", "u1", "--out", "n"), "nowhere"),
        (("--run", "OLD", "--interactions", "none.csv", "--out", "n"), "none.csv"),
        (("--run", "OLD", "--users", "u1", "--references", "-1", "--out", "n"),
         "references must be"),
        (("--run", "OLD", "--users", "u1", "--columns", "rating=x", "--out", "n"),
         "columns of interactions"),
    ],
)  # fmt: skip
def test_a_command_that_makes_no_sense(
    old, tmp_path, monkeypatch, capsys, arguments, fault
):
    monkeypatch.chdir(tmp_path)
    words = [str(old) if word == "OLD" else word for word in arguments]
    assert run("forget", *words) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert "Traceback" not in error
    assert not (tmp_path / "n").exists()
