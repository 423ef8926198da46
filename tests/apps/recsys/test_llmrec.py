"""LLMRec against a slow definition, LightGCN, and a run that was interrupted."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.recsys.augmentation import (
    Augmentation,
    LLMRecSettings,
    fingerprint,
    fingerprints,
    load,
    save,
)
from apps.recsys.compare import _digest
from apps.recsys.compression.packed import PackedAugmented
from apps.recsys.config import Config
from apps.recsys.data import load as load_data
from apps.recsys.models.lightgcn import LightGCN, normalised_adjacency
from apps.recsys.models.llmrec import LLMRec
from apps.recsys.result import load_result
from apps.recsys.tables import Sparse, encode
from apps.recsys.train import train

USERS, ITEMS = 13, 17
PLAIN = LLMRecSettings(edges=0.0)


@pytest.fixture(scope="module")
def matrix():
    dense = np.random.default_rng(0).random((USERS, ITEMS)) < 0.3
    dense[:, 0] = dense[0, :] = True
    dense[0, 1:3] = False
    return sp.csr_array(dense, dtype=np.float32)


@pytest.fixture(scope="module")
def made(matrix):
    draw = np.random.default_rng(1)
    text = draw.normal(size=(ITEMS, 5)).astype(np.float32)
    text[3] = 0  # nothing known
    return Augmentation(
        matrix.shape,
        (fingerprint(matrix),),
        users=np.array([2, 5, 11], np.int32),
        liked=np.array([1, 0, 16], np.int32),
        disliked=np.array([4, 2, 3], np.int32),
        user_features={"profile": draw.normal(size=(USERS, 3)).astype(np.float32)},
        item_features={"text": text},
    )


def network(matrix, made, **settings):
    return LLMRec(matrix, 6, 2, 1e-3, 7, made, replace(PLAIN, **settings))


def batch(n=40):
    draw = torch.Generator().manual_seed(3)
    users = torch.randint(USERS, (n,), generator=draw)
    items = torch.randint(ITEMS, (2, n), generator=draw)
    return torch.cat([users[None], items])


def slow_vectors(model, features):
    """Definition with dense matrices and loops."""
    adjacency = normalised_adjacency(model_matrix(model)).toarray().astype(np.float64)
    e = model.embedding.weight.detach().double().numpy()
    total = sum(np.linalg.matrix_power(adjacency, k) @ e for k in range(3)) / 3
    for name, feature in features.items():
        start = np.zeros_like(e)
        weight = model.project[name].weight.detach().double().numpy()
        start[model.starts[name]] = feature @ weight.T
        f = sum(np.linalg.matrix_power(adjacency, k) @ start for k in range(3)) / 3
        lengths = np.linalg.norm(f, axis=1, keepdims=True)
        w = model.settings.items if name == "text" else model.settings.users
        total += w * f / np.where(lengths > 0, lengths, 1)
    return total


def model_matrix(model):
    rows = model.adjacency.to_dense()[: model.n_users, model.n_users :] > 0
    return sp.csr_array(rows.numpy(), dtype=np.float32)


def given_features(made):
    return {**made.item_features, **made.user_features}


def test_vectors_against_the_definition(matrix, made):
    model = network(matrix, made, items=0.7, users=0.3)
    expected = slow_vectors(model, given_features(made))
    np.testing.assert_allclose(model.vectors().detach(), expected, atol=1e-5)
    factors = model.fitted()
    np.testing.assert_allclose(factors.users, expected[:USERS], atol=1e-5)
    scores = factors.scores(np.arange(USERS))
    np.testing.assert_allclose(scores, expected[:USERS] @ expected[USERS:].T, atol=1e-4)


@pytest.mark.parametrize("which", ["hard", "easy", "middle"])
def test_loss_against_the_definition(matrix, made, which):
    model = network(
        matrix, made, edges=0.5, dropped=0.4, keep=which, alone=0.2, items=0.4
    )
    rows = batch()
    h = slow_vectors(model, given_features(made))
    triplets = list(zip(*rows.tolist(), strict=True))
    told = dict(zip(made.users.tolist(), zip(made.liked, made.disliked, strict=True),
                    strict=True))  # fmt: skip
    triplets += [(u, *told[u]) for u in rows[0, :20].tolist() if u in told]
    assert len(triplets) > 40

    def losses(vectors):
        u, i, j = np.array(triplets).T
        users, positives, negatives = vectors[u], vectors[USERS + i], vectors[USERS + j]
        return np.logaddexp(0, (users * (negatives - positives)).sum(1))

    each = np.sort(losses(h))
    n, m = len(each), len(each) - round(0.4 * len(each))
    first = {"easy": 0, "hard": n - m, "middle": (n - m) // 2}[which]
    expected = each[first : first + m].mean()
    e = model.embedding.weight.detach().double().numpy()
    own = [e[rows[0]], e[USERS + rows[1]], e[USERS + rows[2]]]
    expected += 1e-3 / (2 * 40) * sum((x**2).sum() for x in own)
    for name in ("text", "profile"):
        part = model.part(name, model.feature(name)).detach().double().numpy()
        expected += 0.2 * losses(part).mean()
    assert model.loss(rows).item() == pytest.approx(expected, rel=1e-5)


def test_without_weights_it_is_lightgcn(matrix, made):
    """Vectors, loss and gradients, with features that count for nothing."""
    plain = LightGCN(matrix, 6, 2, 1e-3, 7)
    model = network(matrix, made, items=0.0, users=0.0)
    assert torch.equal(model.embedding.weight, plain.embedding.weight)
    torch.testing.assert_close(model.vectors(), plain.vectors())
    rows = batch()
    ours, theirs = model.loss(rows), plain.loss(rows)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(model.embedding.weight.grad, plain.embedding.weight.grad)


def test_restoration_against_the_definition(matrix, made):
    """Masked rows are replaced by the token before the graph, and decoded after it."""
    model = network(matrix, made, restored=1.0, masked=0.5, gamma=3.0, items=0.0,
                    users=0.0)  # fmt: skip
    with torch.no_grad():
        model.token["text"].fill_(0.5)
    torch.manual_seed(0)
    feature, rows = model.masked("text")
    assert 0 < rows.sum() < ITEMS
    assert not rows[3]  # nothing is known there: nothing to restore
    expected = torch.from_numpy(made.item_features["text"]).clone()
    expected[rows] = 0.5
    assert torch.equal(feature, expected)
    part = model.part("text", feature)
    decoded = model.decode["text"](part[USERS:][rows]).detach().numpy()
    wanted = made.item_features["text"][rows.numpy()]
    cosines = [d @ w / np.linalg.norm(d) / np.linalg.norm(w)
               for d, w in zip(decoded, wanted, strict=True)]  # fmt: skip
    error = model.restoration("text", part, rows)
    assert error.item() == pytest.approx(
        np.mean((1 - np.array(cosines)) ** 3), rel=1e-4
    )
    nobody = torch.zeros(ITEMS, dtype=torch.bool)
    assert model.restoration("text", part, nobody).item() == 0


def test_restoration_is_learned_for_users_and_items(matrix, made):
    model = network(matrix, made, restored=1.0, masked=0.4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    torch.manual_seed(0)
    kept = {name: model.feature(name).clone() for name in model.starts}

    def error(name):
        found = [model.masked(name) for _ in range(50)]
        with torch.no_grad():
            return np.mean([model.restoration(name, model.part(name, x), rows).item()
                            for x, rows in found])  # fmt: skip

    before = {name: error(name) for name in model.starts}
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(batch()).backward()
        optimizer.step()
    for name in model.starts:
        assert error(name) < 0.8 * before[name]
        assert model.token[name].grad.abs().sum() > 0
        assert torch.equal(model.feature(name), kept[name])  # nothing masked for good


def test_features_are_no_parameters_and_no_state(matrix, made):
    model = network(matrix, made, restored=0.1)
    names = {name for name, _ in model.named_parameters()}
    assert names == {
        "embedding.weight", "project.text.weight", "project.profile.weight",
        "decode.text.weight", "decode.text.bias", "decode.profile.weight",
        "decode.profile.bias", "token.text", "token.profile",
    }  # fmt: skip
    assert names == set(model.state_dict())
    assert "decode.text.bias" not in network(matrix, made).state_dict()
    assert model.sparse_names == ("embedding.weight",)


def test_other_interactions_are_refused(matrix, made):
    other = matrix.copy()
    other = sp.csr_array(np.roll(other.toarray(), 1, axis=0))
    with pytest.raises(ValueError, match="made from other interactions"):
        LLMRec(other, 6, 2, 0.0, 0, made, PLAIN)


@given(st.data())
def test_files_come_back(tmp_path_factory, data):
    shape = (3, 4)
    users = data.draw(st.lists(st.integers(0, 2), unique=True))
    likes = np.array([data.draw(st.integers(0, 3)) for _ in users], np.int32)
    array = np.float32(data.draw(st.lists(st.floats(-9, 9, width=32), min_size=4,
                                          max_size=4)))  # fmt: skip
    made = Augmentation(
        shape, ("x",), np.array(users, np.int32), likes, (likes + 1) % np.int32(4),
        item_features={"a": array[:, None]},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("a") / "x.safetensors"
    save(path, made)
    found = load(path)
    assert (found.shape, found.made_from) == (shape, ("x",))
    for name in ("users", "liked", "disliked"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    np.testing.assert_array_equal(found.item_features["a"], array[:, None])


def test_wrong_augmentations_are_named(made, tmp_path):
    three = np.zeros(3, np.int32)
    for change, message in (
        ({"liked": np.array([1, 0, 17], np.int32)}, "outside 0 ... 16"),
        ({"users": np.array([2, 2, 3], np.int32)}, "somebody twice"),
        ({"liked": made.disliked}, "liked and disliked"),
        ({"users": three[:2]}, "vector of int32"),
        ({"liked": np.zeros(3)}, "vector of int32"),
        ({"item_features": {"x": np.zeros((3, 2), np.float32)}}, "17 rows"),
        ({"item_features": {"x": np.full((17, 2), np.nan, np.float32)}}, "no numbers"),
        ({"item_features": {"x y": np.zeros((17, 2), np.float32)}}, "letters"),
        ({"item_features": {"profile": np.zeros((17, 2), np.float32)}}, "both have"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(made, **change)
    path = tmp_path / "damaged"
    save(path, made)
    content = path.read_bytes()
    for damaged in (
        b"",
        content[:100],
        content[:-9],
        content.replace(b"users", b"usexs"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no augmentation, or damaged"):
            load(path)
    with pytest.raises(FileNotFoundError, match="make one with `augment`"):
        load(tmp_path / "none")


def test_settings_are_checked():
    for wrong in (
        {"edges": 1.5}, {"dropped": 1.0}, {"keep": "soft"}, {"items": -1.0},
        {"restored": 1.0, "masked": 0.0}, {"gamma": float("nan")},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"llmrec\."):
            LLMRecSettings(**wrong)
    with pytest.raises(ValueError, match="needs augmentation"):
        Config(model="llmrec")


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    """A file for MovieLens-100k: genres of items, and triplets at random."""
    data = load_data("ml100k")
    n_users, n_items = data.shape
    draw = np.random.default_rng(0)
    names = [str(text).split() for text in data.item_table["class"]]
    genres = sorted({name for row in names for name in row})
    table = np.array([[g in row for g in genres] for row in names], np.float32)
    pairs = np.stack([draw.choice(n_items, 2, replace=False) for _ in range(n_users)])
    path = tmp_path_factory.mktemp("made") / "a.safetensors"
    save(
        path,
        Augmentation(
            data.shape,
            fingerprints(data),
            np.arange(n_users, dtype=np.int32),
            *pairs.T.astype(np.int32),
            item_features={"genres": table},
        ),
    )
    return path


def config(path, **changes):
    return Config(
        model="llmrec", augmentation=path, dim=8, layers=1, epochs=4, every=2,
        batch=4096, lr=0.01,
        llmrec=LLMRecSettings(edges=0.1, dropped=0.2, restored=0.1),
        **changes,
    )  # fmt: skip


def test_resumed_is_uninterrupted(movielens, tmp_path):
    whole = train(config(movielens))

    def stop(epoch, *_):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(movielens, out=tmp_path / "run"), watch=stop)
    resumed = train(config(movielens, out=tmp_path / "run", resume=True))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    assert resumed.metrics["ndcg@20"] == whole.metrics["ndcg@20"]


def test_a_changed_augmentation_is_refused(movielens, tmp_path):
    """The same path with another content: nothing goes on as if it were the same."""
    path, other = tmp_path / "a.safetensors", load(movielens)
    path.write_bytes(movielens.read_bytes())

    def stop(epoch, *_):
        if epoch == 3:
            raise KeyboardInterrupt

    plan = config(path, out=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(plan, watch=stop)
    save(path, replace(other, liked=other.disliked, disliked=other.liked))
    with pytest.raises(ValueError, match="another content"):
        train(replace(plan, resume=True))
    path.write_bytes(movielens.read_bytes())
    train(replace(plan, resume=True))
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    digest = hashlib.sha256(movielens.read_bytes()).hexdigest()
    assert stored["provenance"]["augmentation"] == digest
    load_result(tmp_path / "run")
    save(path, other)  # the same numbers, so the same bytes
    load_result(tmp_path / "run")
    path.write_bytes(movielens.read_bytes() + b" ")
    with pytest.raises(ValueError, match="another content"):
        load_result(tmp_path / "run")


def test_trials_are_of_this_content(movielens, tmp_path):
    """A cached trial of a comparison does not stand for another augmentation."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(movielens.read_bytes())
    first = _digest(config(path))
    assert _digest(config(path)) == first
    made = load(movielens)
    save(path, replace(made, liked=made.disliked, disliked=made.liked))
    assert _digest(config(path)) != first


def test_augmented_and_sparse(movielens):
    """The table of ids is pruned to a tenth; features stay."""
    options = {"begin": 0, "end": "75%", "every": 5}
    result = train(config(movielens, method="gradual", sparsity=0.9, options=options))
    weight = result.network.embedding.weight
    assert (weight != 0).sum() <= round(0.1 * weight.numel())
    assert result.cost["params_active"] < result.cost["params_total"]
    assert result.metrics["ndcg@20"].value > 0.02


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_packed_tables_score_as_the_network(movielens, weight):
    """Exactly with floats; with features in 4 bits nearly."""
    options = {"begin": 0, "end": "75%", "every": 5}
    use = LLMRecSettings(items=weight, edges=0.0)
    plan = replace(config(movielens, method="gradual", options=options), llmrec=use)
    result = train(plan)
    n_users = result.data.shape[0]
    weights = result.network.embedding.weight.detach().numpy()
    mask = result.masks["embedding.weight"].numpy()
    users, items = (
        Sparse.of(weights[half], mask[half], "float32")
        for half in (slice(None, n_users), slice(n_users, None))
    )
    with torch.no_grad():
        network = result.network
        features = network.project["genres"](network.feature("genres")).numpy()
    some = np.arange(0, n_users, 50)
    expected = result.model.scores(some)
    for kind, near in (("float32", 1e-4), ("int4", 0.25)):
        packed = PackedAugmented(users, items, encode(features, kind), weight, 1)
        assert packed.nbytes == sum(
            table.nbytes for table in (users, items, encode(features, kind))
        )
        found = packed.model(result.data.train).scores(some)
        assert np.abs(found - expected).max() < near * np.abs(expected).max()


def test_training_on_everything_takes_the_same_file(movielens):
    result = train(config(movielens, train_on="all"))
    assert np.isfinite(result.metrics["ndcg@20"].value)
    with pytest.raises(ValueError, match="made from other interactions"):
        train(config(movielens, split_seed=1))
