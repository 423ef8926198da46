"""Requests and what they remove, against slices of dense matrices; exact downdates
against fits; ways to forget."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys import networks
from apps.recsys.config import Config
from apps.recsys.forgetting import methods
from apps.recsys.forgetting.downdate import downdated, inverse_of
from apps.recsys.forgetting.methods import Ascent, Drop, FineTune, Problem, RandomItems
from apps.recsys.forgetting.request import Forgotten, Request, read_request
from apps.recsys.models.closed_form import EASE
from apps.recsys.reading import Columns
from apps.recsys.splits import PARTS
from tests.apps.recsys.artefacts import dataset

USERS, ITEMS = ("u/3", "u/8"), ("i5",)


@pytest.fixture(scope="module")
def data():
    return dataset()


def pair_of(data, part="train", row=0):
    """An interaction of the `row`-th user who has one."""
    matrix = data.part(part)
    user = np.flatnonzero(np.diff(matrix.indptr))[row]
    return data.user_ids[user], data.item_ids[matrix.indices[matrix.indptr[user]]]


# ------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (Request(), "nothing to forget"),
        (Request(users=("u/1", "nobody")), "no user 'nobody' in small"),
        (Request(items=("i1", "i1")), "item 'i1' is named twice"),
        (Request(users=tuple(f"u/{u}" for u in range(31))), "all 31 users"),
        (Request(items=tuple(f"i{i}" for i in range(47))), "all 47 items"),
        (Request(pairs=(("u/1", "nothing"),)), "no interaction"),
    ],
)
def test_a_request_that_cannot_be_met(data, request_, fault):
    with pytest.raises(ValueError, match=fault):
        request_.check(data)


def test_ids_and_interactions_from_files(tmp_path):
    (tmp_path / "ids.txt").write_text("u/1\n\n u/2 \n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "pairs.csv").write_text("who,what\nu/1,i2\n")
    (tmp_path / "empty.csv").write_text("user_id,item_id\n")
    (tmp_path / "blank.csv").write_bytes(b"")
    (tmp_path / "bytes.csv").write_bytes(b"user_id,item_id\n\xff,1\n")
    found = read_request([str(tmp_path / "ids.txt")])
    assert found.users == ("u/1", "u/2")
    columns = Columns(user="who", item="what")
    # As `train` reads them: a byte order mark, packed, whole numbers beside a gap.
    packed = gzip.compress("\ufeffwho,when,what\nu/1,soon,i2\n".encode())
    (tmp_path / "pairs.csv.gz").write_bytes(packed)
    found = read_request(interactions=tmp_path / "pairs.csv.gz", columns=columns)
    assert found.pairs == (("u/1", "i2"),)
    found = read_request(interactions=tmp_path / "pairs.csv", columns=columns)
    assert found.pairs == (("u/1", "i2"),)
    with pytest.raises(ValueError, match="holds no id"):
        read_request([str(tmp_path / "none.txt")])
    with pytest.raises(ValueError, match=r"empty\.csv has a header but no rows"):
        read_request(interactions=tmp_path / "empty.csv")
    for name, fault in (
        ("blank.csv", " is empty"),
        ("bytes.csv", ", line 2: byte 0xff"),
    ):
        with pytest.raises(ValueError, match=f"{name}{fault}"):
            read_request(interactions=tmp_path / name)
    with pytest.raises(ValueError, match="no column 'user_id' for the user"):
        read_request(interactions=tmp_path / "pairs.csv")
    with pytest.raises(FileNotFoundError):
        read_request(interactions=tmp_path / "nothing.csv")


def test_what_is_removed(data):
    gone = pair_of(data, row=5)
    request = Request(USERS, ITEMS, (gone,))
    request.check(data)
    after = Forgotten.of(request).remove(data)
    users = [u for u in range(31) if data.user_ids[u] not in USERS]
    items = [i for i in range(47) if data.item_ids[i] not in ITEMS]
    n = 0
    for name in PARTS:
        whole = data.part(name).toarray()
        n += int(whole.sum())
        u, i = (list(ids).index(x) for ids, x in zip(
            (data.user_ids, data.item_ids), gone, strict=True))  # fmt: skip
        whole[u, i] = 0
        assert np.array_equal(after.part(name).toarray(), whole[np.ix_(users, items)])
        assert after.part(name).has_sorted_indices
        n -= after.part(name).nnz
    assert after.dropped["forgotten"] == n
    assert list(after.user_ids) == [data.user_ids[u] for u in users]
    assert list(after.titles) == [data.titles[i] for i in items]
    assert list(after.item_table["item_id"]) == list(after.item_ids)


def test_times_stay_with_their_interactions():
    from apps.recsys.config import Source

    data = Source().load()
    request = Request(users=tuple(data.user_ids[3:9]), items=tuple(data.item_ids[:5]))
    after = Forgotten.of(request).remove(data)
    when = {}
    for name, times in zip(PARTS, data.times, strict=True):
        part = data.part(name)
        rows = np.repeat(data.user_ids, np.diff(part.indptr))
        when |= dict(
            zip(zip(rows, data.item_ids[part.indices], strict=True), times, strict=True)
        )
    for name, times in zip(PARTS, after.times, strict=True):
        part = after.part(name)
        rows = np.repeat(after.user_ids, np.diff(part.indptr))
        pairs = zip(rows, after.item_ids[part.indices], strict=True)
        assert [when[pair] for pair in pairs] == times.tolist()


def test_the_list_tells_no_ids_and_grows(data, tmp_path):
    first = Forgotten.of(Request(users=USERS))
    both = Forgotten.of(Request(items=ITEMS, pairs=(("u/1", "i2"),)), first)
    both.save(tmp_path / "list.json")
    text = (tmp_path / "list.json").read_text()
    assert not any(name in text for name in (*USERS, *ITEMS, "i2"))
    assert Forgotten.load(tmp_path / "list.json") == both
    assert both.users == first.users
    assert both.holds_pair("u/1", "i2")
    assert not both.holds_pair("u/1i", "2")  # neither a user "u/1i"
    other = Forgotten.of(Request(users=USERS))
    assert not other.users & first.users  # another salt


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "x", "version": 1}', '{"users": NaN}', "[" * 10_000],
)
def test_a_damaged_list(tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=r"list\.json is no list"):
        Forgotten.load(tmp_path / "list.json")


def test_a_list_with_other_values(tmp_path):
    Forgotten.of(Request(users=USERS)).save(tmp_path / "list.json")
    content = json.loads((tmp_path / "list.json").read_text())
    for change in ({"users": [1]}, {"salt": "zz"}, {"salt": ""}, {"pairs": None}):
        (tmp_path / "bad.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=r"bad\.json"):
            Forgotten.load(tmp_path / "bad.json")


def test_nobody_comes_back_with_an_update():
    from apps.recsys.interactions import Interactions

    ids = np.array(["a", "b"], object), np.array(["x", "y"], object)
    log = Interactions("news", np.array([0, 1, 1]), np.array([0, 0, 1]), *ids)
    gone = Forgotten.of(Request(users=("a",), pairs=(("b", "y"),)))
    left = gone.passed(log)
    assert (list(left.user_ids), list(left.item_ids)) == (["b"], ["x"])
    with pytest.raises(ValueError, match="forgotten"):
        Forgotten.of(Request(items=("x", "y"))).passed(log)


# --------------------------------------------------------- EASE, exactly


def random_matrix(rng, users=14, items=9):
    return sp.csr_array((rng.random((users, items)) < 0.4).astype(np.float32))


@given(st.integers(0, 10_000), st.sampled_from(["users", "items", "pairs", "all"]))
@settings(max_examples=40, deadline=None)
def test_a_downdate_is_a_fit_on_what_stays(seed, kind):
    rng = np.random.default_rng(seed)
    before = random_matrix(rng)
    dense = before.toarray()
    if kind in ("users", "all"):
        dense[rng.choice(14, 3, replace=False)] = 0
    if kind in ("items", "all"):
        dense[:, rng.choice(9, 2, replace=False)] = 0
    if kind in ("pairs", "all"):
        dense[rng.random(dense.shape) < 0.2] = 0
    after = sp.csr_array(dense)
    ease = EASE(l2=float(rng.uniform(0.5, 20)))
    found = downdated(ease.fit(before).weights, before, after, ease.l2)
    np.testing.assert_allclose(found, ease.fit(after).weights, atol=2e-5)


def test_the_inverse_that_weights_tell():
    x = random_matrix(np.random.default_rng(1))
    gram = (x.T @ x).toarray().astype(float) + 3 * np.eye(9)
    found = inverse_of(EASE(l2=3.0).fit(x).weights, x, 3.0)
    np.testing.assert_allclose(found, np.linalg.inv(gram), atol=1e-6)


def test_a_downdate_of_what_does_not_fit():
    x = random_matrix(np.random.default_rng(1))
    weights = EASE(l2=3.0).fit(x).weights
    with pytest.raises(ValueError, match="same users and items"):
        downdated(weights, x, x[:3], 3.0)
    with pytest.raises(ValueError, match="not those of"):
        downdated(np.ones_like(weights) * 50, x, sp.csr_array(x.shape), 3.0)


# --------------------------------------------------------------- networks


def problem(data, model="mf", masks=None, network=None, request=None, **changes):
    settings = {"dim": 4, "layers": 2, "hidden": 6, "batch": 64, "epochs": 3}
    config = Config(model=model, **(settings | changes))
    forgotten = Forgotten.of(request or Request(USERS, ITEMS))
    network = network or networks.build(config, data.train)
    users, items = forgotten.kept(data)
    after = forgotten.remove(data)
    return Problem(
        config, network, masks or {}, data.train, after.train, users, items, data.valid
    )


@pytest.mark.parametrize("model", ["mf", "neumf"])
def test_dropping_rows_leaves_the_scores_of_others(data, model):
    p = problem(data, model)
    found, flops = Drop().run(p)
    everybody = np.arange(len(p.users))
    before = p.network.fitted().scores(p.users)[:, p.items]
    np.testing.assert_array_equal(found.fitted().scores(everybody), before)
    assert flops == 0


def test_lightgcn_is_propagated_on_the_graph_that_stays(data):
    request = Request(USERS, ITEMS, (pair_of(data, row=5),))
    p = problem(data, "lightgcn", request=request)
    found, _ = Drop().run(p)
    rows = np.concatenate([p.users, p.items + 31])
    own = p.network.embedding.weight.detach().numpy()[rows].astype(float)
    matrix = p.after.toarray()
    graph = np.block(
        [[np.zeros((29, 29)), matrix], [matrix.T, np.zeros((46, 46))]]
    )  # fmt: skip
    degree = np.maximum(graph.sum(1), 1) ** -0.5
    graph = degree[:, None] * graph * degree
    final = (own + graph @ own + graph @ graph @ own) / 3
    np.testing.assert_allclose(found.fitted().users, final[:29], atol=1e-6)
    np.testing.assert_allclose(found.fitted().items, final[29:], atol=1e-6)


def test_an_autoencoder_without_items(data):
    p = problem(data, "multvae", request=Request(items=ITEMS))
    found, _ = Drop().run(p)
    # An item that nobody has, in the old network, is one that is not there.
    emptied = data.train.toarray()
    emptied[:, 5] = 0
    old = p.network.fitted().fold_in(sp.csr_array(emptied))
    new = found.fitted().scores(np.arange(31))
    np.testing.assert_allclose(new, np.delete(old, 5, axis=1), atol=1e-6)


WAYS = [FineTune(2), Ascent(3, bound=5.0, repair=1), RandomItems(2)]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_what_every_way_does(data, way):
    generator = torch.Generator().manual_seed(0)
    masks = {"embedding.weight": torch.rand(78, 4, generator=generator) < 0.5}
    p = problem(data, "lightgcn", masks)
    with torch.no_grad():
        p.network.embedding.weight.mul_(masks["embedding.weight"])
    before = p.network.embedding.weight.detach().clone()
    first, flops = way.run(p)
    second, _ = way.run(p)
    assert torch.equal(p.network.embedding.weight, before)  # the given one is kept
    assert torch.equal(first.embedding.weight, second.embedding.weight)  # by its seed
    (absent,) = (~mask for mask in p.staying_masks.values())
    assert absent.sum() > 20
    assert not first.embedding.weight[absent].any()
    assert not torch.equal(first.embedding.weight, Drop().run(p)[0].embedding.weight)
    assert flops > 0


def test_fine_tuning_for_no_epoch_is_dropping(data):
    p = problem(data, "lightgcn")
    tuned, dropped = FineTune(0).run(p)[0], Drop().run(p)[0]
    assert torch.equal(tuned.embedding.weight, dropped.embedding.weight)


def test_fine_tuning_reads_nothing_of_those_who_left(data):
    p = problem(data, "lightgcn")
    other = problem(data, "lightgcn")
    gone = np.setdiff1d(np.arange(78), np.concatenate([p.users, p.items + 31]))
    with torch.no_grad():
        other.network.embedding.weight[torch.from_numpy(gone)] = 1e6
    one, two = FineTune(2).run(p)[0], FineTune(2).run(other)[0]
    assert torch.equal(one.embedding.weight, two.embedding.weight)


def test_ascent_ends_at_its_bound(data):
    p = problem(data, "mf")
    users, items = np.divmod(p.forgotten, 47)
    assert set(data.user_ids[users]) | set(data.item_ids[items]) >= {*USERS, *ITEMS}

    def loss(network):
        draws = torch.Generator().manual_seed(5)
        found = methods.ranking_loss(network, p.before, users, items, draws)
        return float(found.detach())

    def after(way):
        return loss(way.raised(p)[0])

    start = loss(p.network)
    assert after(Ascent(40, lr=0.05, bound=2.0, repair=0)) > start + 0.5
    bounded = after(Ascent(400, lr=0.05, bound=1.0, repair=0))
    assert start < bounded < 2.0  # one step may overshoot, 400 would by far
    assert after(Ascent(400, lr=0.05, bound=0.01, repair=0)) == start
    blind = replace(p, held_out=sp.csr_array(p.before.shape))
    with pytest.raises(ValueError, match="give bound"):
        Ascent().run(blind)


def test_random_items_take_the_place_of_theirs(data):
    p = problem(data)
    taught = methods.with_random_items(p.before, p.forgotten, seed=0)
    new, old = set(methods.keys(taught).tolist()), set(methods.keys(p.before).tolist())
    gone = set(p.forgotten.tolist())
    assert not gone & new
    assert old - gone <= new
    users = {key // 47 for key in gone}
    assert {key // 47 for key in new - old} <= users
    assert len(new) >= 0.8 * len(old)


def test_methods_by_name():
    assert methods.build("finetune", {"epochs": 3}) == FineTune(3)
    for name, options, fault in (
        ("scrub", {}, "choose one of retrain, drop, finetune"),
        ("finetune", {"epoch": 3}, "no option 'epoch'; did you mean 'epochs'"),
        ("drop", {"epochs": 3}, "it has none"),
        ("finetune", {"epochs": -1}, "epochs must be a whole number"),
        ("ascent", {"lr": 0.0}, "lr must be a positive number"),
        ("ascent", {"bound": "high"}, "bound must be a positive number"),
    ):
        with pytest.raises(ValueError, match=fault):
            methods.build(name, options)
    with pytest.raises(ValueError, match="ascent needs mf or lightgcn"):
        Ascent().run(problem(dataset(), "neumf"))
    with pytest.raises(ValueError, match="multvae"):
        RandomItems().run(problem(dataset(), "multvae"))
