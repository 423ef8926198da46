"""Splits, filters, leaks and reports against loops in Python."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given as draw
from hypothesis import settings
from hypothesis import strategies as st

from apps.recsys import splits
from apps.recsys.data import Preparation, gowalla, load, ml100k, split_by
from apps.recsys.interactions import Interactions, at_least, k_core, without_duplicates
from apps.recsys.report import as_text, leakage, report


def made_up(seed=0, n=301, n_users=23, n_items=37, times=50):
    """A log with ties in time and repeated pairs."""
    rng = np.random.default_rng(seed)
    users = np.append(rng.integers(0, n_users, n), np.arange(n_users))
    items = np.append(rng.integers(0, n_items, n), np.zeros(n_users, int))
    items[-1] = n_items - 1
    items[:n_items] = np.arange(n_items)
    return Interactions(
        "made-up",
        users.astype(np.int32),
        items.astype(np.int32),
        np.array([f"u{i:02}" for i in range(n_users)], object),
        np.array([f"i{i:02}" for i in range(n_items)], object),
        rng.integers(1, 6, len(users)).astype(np.float32),
        rng.integers(0, times, len(users)).astype(np.float64),
        dropped={},
    )


def pairs(data, part):
    table = sp.coo_array(data.part(part))
    return {
        (data.user_ids[u], data.item_ids[i])
        for u, i in zip(table.row, table.col, strict=True)
    }


def logged(log):
    return [
        (log.user_ids[u], log.item_ids[i])
        for u, i in zip(log.users, log.items, strict=True)
    ]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_duplicates(keep):
    log = made_up()
    best = {}
    for row, pair in enumerate(logged(log)):
        moment = (log.timestamps[row], row)
        better = max if keep == "last" else min
        best[pair] = better(best.get(pair, moment), moment)
    kept = without_duplicates(log, keep)
    assert len(kept) == len(best) < len(log)
    assert kept.dropped == {"duplicate": len(log) - len(best)}
    for row, pair in enumerate(logged(kept)):
        assert kept.timestamps[row] == best[pair][0]
        assert kept.ratings[row] == log.ratings[best[pair][1]]
    with pytest.raises(ValueError, match=r"in rows \d+ and \d+"):
        without_duplicates(log, "raise")
    assert without_duplicates(kept, "raise") is kept


def test_threshold():
    log = without_duplicates(made_up())
    liked = at_least(log, 4)
    expected = [p for p, r in zip(logged(log), log.ratings, strict=True) if r >= 4]
    assert logged(liked) == expected
    assert (liked.ratings >= 4).all()
    with pytest.raises(ValueError, match="no interaction is left"):
        at_least(log, 6)
    with pytest.raises(ValueError, match="no ratings"):
        at_least(replace(log, ratings=None), 4)


@draw(seed=st.integers(0, 99), users=st.integers(1, 8), items=st.integers(1, 8))
@settings(max_examples=40)
def test_k_core(seed, users, items):
    """One offender at a time leads to the same core."""
    log = without_duplicates(made_up(seed))
    left = set(logged(log))
    while True:
        for side, least in ((0, users), (1, items)):
            count = {}
            for pair in left:
                count[pair[side]] = count.get(pair[side], 0) + 1
            few = [name for name, n in count.items() if n < least]
            if few:
                left = {pair for pair in left if pair[side] != few[0]}
                break
        else:
            break
    if left:
        core = k_core(log, users, items)
        assert set(logged(core)) == left
        assert set(core.user_ids) == {u for u, _ in left}
    else:
        with pytest.raises(ValueError, match="no interaction is left"):
            k_core(log, users, items)


def last_two(log, data):
    """{user: (test item, validation item)} of those who have them."""
    found = [dict(pairs(data, part)) for part in ("test", "valid")]
    assert found[0].keys() == found[1].keys()
    return {user: (found[0][user], found[1][user]) for user in found[0]}


@pytest.mark.parametrize("times", [50, 10**6])
def test_leave_one_out(times):
    log = without_duplicates(made_up(times=times))
    moment = dict(zip(logged(log), log.timestamps, strict=True))
    data = splits.leave_one_out(log, seed=1)
    assert set.union(*(pairs(data, part) for part in splits.PARTS)) == set(logged(log))
    assert sum(data.part(part).nnz for part in splits.PARTS) == len(log)
    left = last_two(log, data)
    for u, user in enumerate(log.user_ids):
        mine = sorted(t for (who, _), t in moment.items() if who == user)
        assert (user in left) == (len(mine) >= 3)
        if len(mine) >= 3:
            assert [moment[user, i] for i in left[user]] == mine[:-3:-1]
        assert np.diff(data.train.indptr)[u] == len(mine) - 2 * (len(mine) >= 3)
    if times > 50:
        assert len(set(moment.values())) == len(moment)  # without ties: any seed
        assert last_two(log, splits.leave_one_out(log, seed=2)) == left


def test_equal_times_are_dice():
    """Every item of one time is test as often as the others; rows do not matter."""
    n_users, n_items = 400, 5
    users, items = np.divmod(np.arange(n_users * n_items, dtype=np.int32), n_items)
    log = Interactions(
        "tied", users, items.astype(np.int32),
        np.array([f"u{i:03}" for i in range(n_users)], object),
        np.array(list("abcde"), object), timestamps=np.zeros(len(users)),
    )  # fmt: skip
    data = splits.leave_one_out(log, seed=3)
    for part in (data.test, data.valid):
        often = np.bincount(part.indices, minlength=n_items)
        assert scipy.stats.chisquare(often).pvalue > 0.001
    rows = np.random.default_rng(0).permutation(len(users))
    mixed = replace(log, users=log.users[rows], items=log.items[rows])
    assert last_two(mixed, splits.leave_one_out(mixed, seed=3)) == last_two(log, data)
    assert last_two(log, split_by(log, "leave_one_out", 3)) == last_two(log, data)
    assert last_two(log, split_by(log, "leave_one_out", 4)) != last_two(log, data)


def test_global_time():
    log = without_duplicates(made_up(times=1000))
    data = splits.global_time(log, valid=0.2, test=0.1)
    assert data.times.train.max() < data.times.valid.min()
    assert data.times.valid.max() < data.times.test.min()
    assert data.test.nnz == pytest.approx(0.1 * len(log), abs=3)
    assert data.valid.nnz == pytest.approx(0.2 * len(log), abs=3)
    assert leakage(data)["later than the first of test"] == 0
    tied = replace(log, timestamps=np.zeros(len(log)))
    with pytest.raises(ValueError, match="part is empty"):
        splits.global_time(tied)


def test_undivided():
    """What is too small to split is whole: one click each of two users."""
    log = without_duplicates(made_up(times=1000))
    data = split_by(log, "none")
    ids = zip(log.user_ids[log.users], log.item_ids[log.items], strict=True)
    assert pairs(data, "train") == set(ids)
    assert (data.valid.nnz, data.test.nnz, data.split) == (0, 0, "not split")
    assert sorted(data.times.train) == sorted(log.timestamps)
    two = replace(log, users=log.users[:0], items=log.items[:0], timestamps=None)
    with pytest.raises(ValueError, match="the train part is empty"):
        splits.undivided(two)


@draw(seed=st.integers(0, 99))
@settings(max_examples=20)
def test_random_ratio(seed):
    log = without_duplicates(made_up(seed))
    data = splits.random_ratio(log, valid=0.2, test=0.3, seed=seed)
    whole = [pairs(data, part) for part in splits.PARTS]
    assert set.union(*whole) == set(logged(log))
    assert sum(map(len, whole)) == len(log)
    n = np.bincount(log.users)
    assert (
        np.diff(data.test.indptr) == np.minimum(np.floor(0.3 * n + 0.5), n - 1)
    ).all()
    assert (np.diff(data.train.indptr) >= 1).all()
    shuffled = np.random.default_rng(1).permutation(len(log))
    again = replace(
        log, users=log.users[shuffled], items=log.items[shuffled],
        timestamps=log.timestamps[shuffled], ratings=log.ratings[shuffled],
    )  # fmt: skip
    again = splits.random_ratio(again, valid=0.2, test=0.3, seed=seed)
    assert pairs(again, "test") == pairs(data, "test")
    np.testing.assert_array_equal(again.times.train, data.times.train)
    other = splits.random_ratio(log, valid=0.2, test=0.3, seed=seed + 1)
    assert pairs(other, "test") != pairs(data, "test")


def test_times_stand_beside_their_entries():
    log = without_duplicates(made_up())
    moment = dict(zip(logged(log), log.timestamps, strict=True))
    data = splits.random_ratio(log)
    final = data.final()
    for table, times in (
        (data.test, data.times.test),
        (final.train, final.times.train),
    ):
        entries = sp.coo_array(table)
        for u, i, t in zip(entries.row, entries.col, times, strict=True):
            assert moment[data.user_ids[u], data.item_ids[i]] == t
    assert pairs(final, "train") == pairs(data, "train") | pairs(data, "valid")
    assert final.valid.nnz == 0
    assert (final.known("test") != data.known("test")).nnz == 0


def test_given_parts_and_their_leaks():
    log = without_duplicates(made_up())
    data = splits.random_ratio(log, test=0.3)
    parts = []
    for name in splits.PARTS:
        chosen = pairs(data, name)
        rows = [row for row, pair in enumerate(logged(log)) if pair in chosen]
        part = replace(log, users=log.users[rows], items=log.items[rows], ratings=None)
        parts.append(replace(part, timestamps=log.timestamps[rows]))
    again = splits.given(parts[0], parts[2], parts[1])
    for name in splits.PARTS:
        assert pairs(again, name) == pairs(data, name)
    assert leakage(again) == leakage(data)
    assert leakage(again)["train and test"] == 0
    # The validation part handed in as test part too.
    leaky = splits.given(parts[0], parts[1], parts[1])
    assert leakage(leaky)["valid and test"] == data.valid.nnz
    assert "LEAK" in as_text(report(leaky))
    shares = splits.given(parts[0], parts[2], 0.25, seed=3)
    assert pairs(shares, "train") | pairs(shares, "valid") == pairs(data, "train")
    assert pairs(shares, "test") == pairs(data, "test")


def test_leaks_counted_by_hand():
    log = Interactions(
        "tiny", *(np.array(x, np.int32) for x in ([0, 0, 1, 2, 3], [0, 1, 1, 2, 0])),
        *(np.array(list(x), object) for x in ("abcd", "xyz")),
    )  # fmt: skip
    data = splits._dataset(log, np.array([0, 0, 1, 2, 2], np.int8), "by hand")
    found = leakage(data)
    assert found["unknown users of valid"] == 1
    assert found["unknown items of valid"] == 0
    assert found["unknown users of test"] == 2
    assert found["unknown items of test"] == 1
    assert found["later than the first of test"] is None


def test_refusals():
    log = without_duplicates(made_up())
    with pytest.raises(ValueError, match="no timestamps"):
        splits.leave_one_out(replace(log, timestamps=None))
    with pytest.raises(ValueError, match="shares"):
        splits.random_ratio(log, valid=0.5, test=0.5)
    with pytest.raises(ValueError, match="repeats pairs"):
        splits.global_time(made_up())
    with pytest.raises(ValueError, match="part must be"):
        splits.random_ratio(log).part("dev")
    with pytest.raises(ValueError, match="not for train"):
        splits.random_ratio(log).known("train")


def test_movielens():
    log = ml100k()
    assert len(log) == 100_000
    data = load("ml100k")
    assert data.shape == (942, 1447)
    assert sum(data.part(p).nnz for p in splits.PARTS) == 55_375
    star_wars = data.item_ids.tolist().index("50")
    assert data.titles[star_wars] == "Star Wars"
    assert data.item_table["class"][star_wars].startswith("Action")
    facts = report(data)
    assert facts["dropped"] == {"rating below 4": 44_625}
    assert facts["time"]["from"] == "1997-09-20 03:05"
    assert json.loads(json.dumps(facts)) == facts
    assert "1,447 items" in as_text(facts)
    with pytest.raises(ValueError, match="split must be"):
        load("ml100k", split="holdout")


def test_gowalla_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    every = np.unique(rng.integers(0, [13, 31], (203, 2)), axis=0).astype(np.int32)
    every = rng.permutation(every)
    path = tmp_path / "gowalla_lightgcn.npz"
    np.savez(path, train=every[:120], test=every[120:])
    data = gowalla(seed=1)
    assert data.train.nnz + data.valid.nnz == 120
    assert pairs(data, "test") == {(str(u), str(i)) for u, i in every[120:]}
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged"):
        gowalla()


def test_a_file_with_its_test_file(tmp_path):
    (tmp_path / "a.csv").write_text(
        "user_id,item_id\n" + "".join(f"{u},{i}\n" for u in "abc" for i in range(7))
    )
    (tmp_path / "b.csv").write_text("user_id,item_id\na,9\nd,1\n")
    data = load(tmp_path / "a.csv", Preparation(core=3), test=tmp_path / "b.csv")
    assert data.item_ids.tolist() == ["0", "1", "2", "3", "4", "5", "6", "9"]
    assert pairs(data, "test") == {("a", "9"), ("d", "1")}
    assert leakage(data)["unknown users of test"] == 1
