"""The ledger: states, batches, the map of data; files that are no ledger."""

import os
import random
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from apps.unlearning import ledger_schema
from apps.unlearning.ledger import NEXT, Ledger

AT = "2026-11-28T10:00:00Z"
HASH = "0" * 64


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as found:
        pairs = [("a", 1), ("a", 2), ("b", 2), ("c", 9)]
        found.install(("m/0", HASH, 5), [1, 2, 3, 4], {"n_records": "10"}, pairs, AT)
        yield found


def file(ledger, path, parents=(), kind="export", trained_on=()):
    return ledger.add_artefact(
        path, HASH, 5, kind, AT, parents=parents, trained_on=trained_on
    )


def test_a_request_asked_twice_is_one(ledger):
    first = ledger.ask("a", AT)
    assert ledger.ask("a", AT) == first
    assert ledger.records_asked(first) == [1, 2]
    assert [line.state for line in ledger.log(first)] == ["received"]
    other = ledger.ask("b", AT)
    assert ledger.requests() == [first, other]
    ledger.add_subjects([("a", 7)])  # a record that the first request did not name
    later = ledger.ask("a", AT)
    assert later not in (first, other)
    assert ledger.records_asked(later) == [1, 2, 7]
    assert ledger.ask("a", AT) == later
    with pytest.raises(ValueError, match="not in the ledger"):
        ledger.ask("nobody", AT)


def test_many_may_ask_at_once(ledger, tmp_path):
    """Each through a connection of its own, as processes do: one request a subject."""

    def ask(i: int) -> str:
        with Ledger(tmp_path / "ledger.sqlite") as own:
            return own.ask("abc"[i % 3], AT)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(48)))
    assert len(set(found)) == 3
    assert sorted(ledger.requests()) == sorted(set(found))
    assert len(ledger.log()) == 3


def test_from_a_request_to_a_receipt(ledger):
    requests = [ledger.ask("a", AT), ledger.ask("b", AT)]
    batch = ledger.begin(requests, 1, {"method": "x", "options": {}}, AT)
    assert ledger.open_batch() == batch
    ledger.finish(batch, ("m/1", HASH, 5), [3, 4], {"seconds": 1.0}, AT)
    number = ledger.settle(ledger.open_batch(), {"a": 1}, "text", [1], "exact", AT)
    assert (number, ledger.receipts()) == (1, [(1, 1, "text")])
    assert ledger.open_batch() is None
    assert ledger.fact("current") == "2"
    assert ledger.artefact(1).state == "retired"
    for request in requests:
        states = [line.state for line in ledger.log(request)]
        assert states == ["received", "running", "done", "verified"]
        assert ledger.ask({requests[0]: "a", requests[1]: "b"}[request], AT) == request


def test_what_fails_can_be_asked_again(ledger):
    request = ledger.ask("a", AT)
    batch = ledger.begin([request], 1, {}, AT)
    ledger.finish(batch, ("m/1", HASH, 5), [3, 4], {}, AT)
    ledger.fail(ledger.open_batch(), "not shown", AT, {"x": 1})
    assert ledger.state(request) == "failed"
    assert ledger.fact("current") == "1"  # the model before stays
    assert ledger.artefact(2).state == "retired"
    assert ledger.ask("a", AT) == request
    assert ledger.requests("received") == [request]
    assert ledger.batch(1).audit == {"x": 1, "why": "not shown"}


def test_a_step_that_fails_in_the_middle_is_none(ledger):
    """begin with a request that cannot run: no batch, and the other one still waits."""
    first, second = ledger.ask("a", AT), ledger.ask("b", AT)
    before = ledger.log()
    with pytest.raises(sqlite3.IntegrityError):
        ledger.begin([first, second, second], 1, {}, AT)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.begin([first, "r-unknown"], 1, {}, AT)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.begin([first], 99, {}, AT)  # no such model
    assert ledger.log() == before
    assert ledger.batches() == []
    ledger.begin([first], 1, {}, AT)
    with pytest.raises(sqlite3.IntegrityError):  # one batch at a time
        ledger.begin([second], 1, {}, AT)


def test_a_full_disk_changes_nothing(ledger):
    """SQLite's own limit of pages stands for the disk."""
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    many = [(f"subject {i}", i) for i in range(5000)]
    before = ledger.counts()
    with pytest.raises(ValueError, match=r"full.*nothing was changed"):
        ledger.add_subjects(many)
    assert ledger.counts() == before
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert ledger.add_subjects(many) == 5000


def test_a_ledger_that_another_process_holds(ledger, tmp_path):
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger._db.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(ValueError, match="locked"):
        ledger.ask("a", AT)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.ask("a", AT)


def test_only_states_that_may_follow(ledger):
    request = ledger.ask("c", AT)
    draw = random.Random(0)
    states = [s for s in NEXT if s]
    for _ in range(200):
        now, to = ledger.state(request), draw.choice(states)
        if to in NEXT[now]:
            with ledger.transaction():
                ledger._move(request, to, AT, "")
            assert ledger.state(request) == to
        else:
            with pytest.raises(ValueError, match="cannot become"):
                ledger._move(request, to, AT, "")
            assert ledger.state(request) == now


@pytest.mark.parametrize("table", ["states", "receipts"])
def test_logs_are_append_only(ledger, table):
    request = ledger.ask("a", AT)
    batch = ledger.begin([request], 1, {}, AT)
    ledger.finish(batch, ("m/1", HASH, 5), [3, 4], {}, AT)
    ledger.settle(ledger.open_batch(), {}, "text", [], "", AT)
    for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET rowid = 99"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ledger._db.execute(sql)


def test_files_with_a_record_by_brute_force(ledger):
    """Random trees of derived files, against a search by hand."""
    draw = random.Random(3)
    parents, trained = {1: []}, {1: {1, 2, 3, 4}}
    kinds = {1: "model"}
    for number in range(2, 40):
        above = draw.sample(sorted(parents), draw.randint(0, min(2, number - 1)))
        kind = draw.choice(["export", "copy", "unlearned", "model"])
        own = (
            set(draw.sample(range(10), 3)) if kind in ("unlearned", "model") else set()
        )
        assert file(ledger, f"f/{number}", above, kind, own) == number
        parents[number], trained[number], kinds[number] = above, own, kind

    def holds(number, records):
        if trained[number] & records:
            return True
        if kinds[number] == "unlearned":
            return False
        return any(holds(parent, records) for parent in parents[number])

    for _ in range(30):
        records = set(draw.sample(range(12), 2))
        found = {f.id for f in ledger.artefacts_with(records)}
        assert found == {n for n in parents if holds(n, records)}


def test_what_derives_from_a_retired_file_is_retired(ledger):
    """Made before or after it was; an unlearned model is not."""
    batch = ledger.begin([ledger.ask("a", AT)], 1, {}, AT)
    ledger.finish(batch, ("m/1", HASH, 5), [3, 4], {}, AT)
    early = file(ledger, "f/early", [2])
    deeper = file(ledger, "f/deeper", [early])
    ledger.fail(ledger.open_batch(), "not shown", AT)
    late = file(ledger, "f/late", [deeper])
    again = ledger.begin([ledger.ask("b", AT)], 1, {}, AT)
    ledger.finish(again, ("m/2", HASH, 5), [3, 4], {}, AT)
    states = [ledger.artefact(n).state for n in (2, early, deeper, late)]
    assert states == ["retired"] * 4
    assert ledger.artefact(1).state == ledger.artefact("m/2").state == "live"
    ledger.settle(ledger.open_batch(), {}, "", [1], "", AT)
    assert ledger.artefact("m/2").state == "live"
    ledger.mark_wiped(late, AT)
    assert file(ledger, "f/later", [late]) in {
        f.id for f in ledger.artefacts("retired")
    }


def test_a_path_is_listed_once(ledger):
    number = file(ledger, "f/x", [1])
    assert file(ledger, "f/x", [1]) == number
    with pytest.raises(ValueError, match="listed already"):
        ledger.add_artefact("f/x", "1" * 64, 5, "export", AT, parents=[1])
    with pytest.raises(ValueError, match=r"kind '.*' is unknown"):
        file(ledger, "f/y", [1], kind="thing")
    with pytest.raises(sqlite3.IntegrityError):
        file(ledger, "f/y", [99])


def test_what_is_written_survives_a_reopening(tmp_path):
    path = tmp_path / "sub" / "ledger.sqlite"
    with Ledger(path, create=True) as ledger:
        ledger.add_subjects([("a", 1)])
        request = ledger.ask("a", AT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Ledger(path) as ledger:
        assert ledger.requests() == [request]
        assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ledger._db.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_files_that_are_no_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(FileNotFoundError, match="setup"):
        Ledger(path)
    path.write_bytes(b"not a database" * 99)
    with pytest.raises(ValueError, match="no ledger, or a damaged one"):
        Ledger(path)
    os.remove(path)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (a)")
    other.close()
    for create in (False, True):
        with pytest.raises(ValueError, match="another program"):
            Ledger(path, create=create)
    os.remove(path)
    path.touch()
    with pytest.raises(ValueError, match="another program"):
        Ledger(path)


@pytest.mark.parametrize(("version", "word"), [(2, "a newer"), (0, "does not convert")])
def test_another_version_is_refused(tmp_path, version, word):
    path = tmp_path / "ledger.sqlite"
    Ledger(path, create=True).close()
    raw = sqlite3.connect(path)
    raw.execute(f"PRAGMA user_version = {version}")
    raw.close()
    with pytest.raises(ValueError, match=word):
        Ledger(path)
    assert ledger_schema.VERSION == 1
