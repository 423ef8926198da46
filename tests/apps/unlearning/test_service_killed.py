"""A service that is killed anywhere: no request is half-done, none is lost."""

import json
import multiprocessing
import os
import random
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from apps.common import inside
from apps.common.receipt import verify
from apps.unlearning.ledger import NEXT, Ledger
from apps.unlearning.service import Service
from tests.apps.unlearning import deletion

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks a process that has imported torch already"
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(function, *arguments) -> a process of its own that can be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([deletion.__name__])

    def started(function, *arguments):
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    return started


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A service that is set up, and what an undisturbed one ends with."""
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def fresh_shards(tmp_path_factory):
    """The same of a model that is trained in shards."""
    options = {"shards": 2, "slices": 2}
    return undisturbed(
        tmp_path_factory.mktemp("shards"), method="sisa", options=options
    )


def undisturbed(folder: Path, **changes) -> tuple[Path, dict]:
    service = deletion.make(folder, **changes)
    whole = deletion.copied(service, folder / "whole")
    deletion.finish(whole)
    return service, ending(whole)


def ending(folder: Path) -> dict:
    """All that must not depend on how often a service was killed."""
    with Ledger(folder / "ledger.sqlite") as ledger:
        states = [
            [(line.state, line.note) for line in ledger.log(request)]
            for request in ledger.requests()
        ]
        files = [(f.path, f.sha256, f.kind, f.state) for f in ledger.artefacts()]
        left = ledger.trained_on(int(ledger.fact("current")))
        receipts = [json.loads(text) for *_, text in ledger.receipts()]
    for receipt in receipts:
        for changing in ("process", "signature"):
            del receipt[changing]
        del receipt["method"]["seconds"]
        for request in receipt["requests"]:
            del request["request"], request["received"]
    return {"states": states, "files": files, "left": left, "receipts": receipts}


def check_between(folder: Path, earlier: list) -> list:
    """What holds at any time, also right after a kill; the log of states."""
    with Ledger(folder / "ledger.sqlite") as ledger:
        log = ledger.log()
        assert log[: len(earlier)] == earlier  # it only grows
        for request in ledger.requests():
            states = [None, *(line.state for line in ledger.log(request))]
            for state, following in pairwise(states):
                assert following in NEXT[state]
        batch = ledger.open_batch()
        if batch is not None:  # all requests of a batch are in its state
            of_batch = {ledger.state(r) for r in ledger.requests_of(batch.id)}
            assert of_batch == {batch.state}
        current = int(ledger.fact("current"))
        for file in ledger.artefacts():  # no half file has the name of a whole one
            if file.state == "live" or file.id == current:
                assert inside.digest(folder, file.path) == file.sha256
            if file.state == "wiped":
                assert not (folder / file.path).exists()
        assert len(ledger.receipts()) == len([b for b in ledger.batches()
                                              if b.state == "verified"])  # fmt: skip
    return log


EVERY = int(os.environ.get("SPARSEKIT_KILL_EVERY", "43"))  # 1: at each, minutes


@pytest.mark.parametrize("which", ["fresh", "fresh_shards"])
def test_killed_at_any_step_it_ends_where_an_undisturbed_one_does(
    which, request, start, tmp_path
):
    """SIGKILL of a real process at one step, of the next at a later one; then the rest.

    A step is a file opened, renamed or removed, a transaction begun, about to be
    committed, or committed: all that can be seen from outside lies between two of them.
    """
    service, expected = request.getfixturevalue(which)
    done, draw = tmp_path / "done", random.Random(1)
    start(
        deletion.work, str(deletion.copied(service, tmp_path / "0")), 0, str(done)
    ).join()
    n_steps = int(done.read_text())
    assert n_steps > 100
    for step in range(1 + draw.randrange(EVERY), n_steps, EVERY):
        folder = deletion.copied(service, tmp_path / str(step))
        log = []
        for kill, ends in ((step, {-9}), (draw.randint(1, n_steps), {-9, 0})):
            process = start(deletion.work, str(folder), kill, str(tmp_path / "again"))
            process.join(120)
            assert process.exitcode in ends  # a second life may be long enough
            log = check_between(folder, log)
        deletion.finish(folder)
        assert ending(folder) == expected, step
        receipt, _ = verify(folder / "receipts" / "0001.json", None, folder, wiped=True)
        assert receipt.data.records_erased > 50
        assert not [p for p in inside.files(folder) if p.startswith("work/")]


def test_a_setup_that_is_killed_goes_on(fresh, start, tmp_path):
    """Again and again, after ever more steps; with the keys that were made first."""
    service, _ = fresh
    deletion.write_digits(tmp_path)
    deletion.write_subjects(tmp_path)
    folder, keys, kill, ended = tmp_path / "service", set(), 2, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        arguments = (str(folder), kill, str(tmp_path / "done"), True)
        process = start(deletion.work, *arguments)
        process.join(120)
        ended, kill = process.exitcode, kill + 6
        if (folder / "key.pem").exists():
            keys.add((folder / "key.pem").read_bytes())
    assert ended == 0
    assert kill > 14
    assert len(keys) == 1
    with Service(folder) as ours, Service(service) as theirs:
        assert ours.ledger.counts() == theirs.ledger.counts()
        assert ours.ledger.artefacts() == theirs.ledger.artefacts()
    deletion.finish(folder)
    assert not (folder / "work").exists() or not list((folder / "work").iterdir())


def test_killed_at_random_times(fresh, start, tmp_path):
    """The same by the clock, so that SQLite and torch are hit too."""
    service, expected = fresh
    draw = random.Random(2)
    folder = deletion.copied(service, tmp_path / "service")
    log, kills, done = [], 0, tmp_path / "done"
    longest = 0.5
    while not done.exists():
        process = start(deletion.work, str(folder), 0, str(done))
        process.join(draw.uniform(0.02, longest))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        log = check_between(folder, log)
        longest *= 1.6  # a busy machine gets there too
    assert kills >= 2
    assert ending(folder) == expected


def test_two_processes_do_not_work_at_once(fresh, start, tmp_path):
    service, _ = fresh
    folder = deletion.copied(service, tmp_path / "service")
    with Service(folder) as first, Service(folder) as second:
        with first._at_work(), pytest.raises(ValueError, match="another process"):
            second.run()
        assert second.request("s-3") == first.request("s-3")  # asking needs no lock
