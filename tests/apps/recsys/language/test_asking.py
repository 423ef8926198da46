"""Each question is asked once: stores, budgets, runs that are killed anywhere."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from apps.recsys.language.answers import Verdict
from apps.recsys.language.asking import (
    Budget,
    OverBudget,
    ask,
    ask_until_accepted,
    unanswered,
)
from apps.recsys.language.cost import Bill, Prices, estimate
from apps.recsys.language.dry_run import as_text, rehearse
from apps.recsys.language.endpoint import Endpoint
from apps.recsys.language.interface import (
    EndpointError,
    Prompt,
    Reply,
    Settings,
    digest,
    key,
)
from apps.recsys.language.store import Store
from tests.apps.recsys.language.chat_server import Handler, chat, echo, reply

PROMPTS = [Prompt("system", f"question {i}", ("titles",)) for i in range(12)]
SHORT = Settings(max_tokens=20)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "kept" / "replies.db") as opened:
        yield opened


def endpoint(server, **settings):
    chosen = {"timeout": 5.0, "retries": 1, "longest_wait": 0.01, **settings}
    return Endpoint(server.url, "small", local=True, **chosen)


def test_a_second_run_asks_nothing(store):
    with chat(echo) as server:
        first, bill = ask(endpoint(server), PROMPTS, SHORT, store)
        again, free = ask(endpoint(server), PROMPTS, SHORT, store)
        assert len(server.seen) == 12
    assert [r.text for r in first] == [p.user for p in PROMPTS]
    assert again == first
    assert (bill.prompts, bill.stored, bill.requests, bill.guessed) == (12, 0, 12, 0)
    assert (bill.prompt_tokens, bill.reply_tokens) == (12 * 11, 12 * 3)
    assert bill.cost(Prices(1.0, 10.0)) == pytest.approx(12 * (11 + 30) / 1e6)
    free.seconds = 0
    assert free == Bill(stored=12)


def test_other_questions_models_and_settings_are_other_replies(store):
    with chat(echo) as server:
        model = endpoint(server)
        ask(model, PROMPTS[:1], SHORT, store)
        for changed in (
            (replace(model, model="large"), PROMPTS[0], SHORT),
            (model, replace(PROMPTS[0], system="other"), SHORT),
            (model, PROMPTS[0], replace(SHORT, seed=1)),
            (model, PROMPTS[0], replace(SHORT, max_tokens=21)),
        ):
            ask(changed[0], [changed[1]], changed[2], store)
        assert len(server.seen) == 5
        # How fast it is asked makes no other reply.
        ask(replace(model, concurrency=1, stream=True), PROMPTS[:1], SHORT, store)
        assert len(server.seen) == 5


def test_keys_tell_parts_apart():
    keys = {
        key("m", Prompt(a, b), SHORT)
        for a, b in (("x", "yz"), ("xy", "z"), ("", "xyz"), ("xyz", ""))
    }
    assert len(keys) == 4
    assert key("m", Prompt("a", "b", ("t",)), SHORT) == key(
        "m", Prompt("a", "b"), SHORT
    )
    assert len(digest(["\ud800"])) == 64


def test_equal_questions_are_asked_once(store):
    with chat(echo) as server:
        replies, bill = ask(endpoint(server), [PROMPTS[0]] * 9, SHORT, store)
    assert (len(replies), len(server.seen), bill.prompts) == (9, 1, 1)


def test_the_order_of_requests_does_not_follow_the_users(store):
    many = [replace(PROMPTS[0], user=f"{i:03}") for i in range(40)]
    with chat(echo) as server:
        ask(endpoint(server, concurrency=1), many, SHORT, store)
    order = [int(body["messages"][1]["content"]) for _, _, body in server.seen]
    assert sorted(order) == list(range(40))
    assert sum(b - a == 1 for a, b in pairwise(order)) < 10


def test_failures_are_not_kept(store):
    with chat(lambda h: h.send(b"", 500)) as server:
        replies, bill = ask(endpoint(server, give_up=99), PROMPTS, SHORT, store)
    assert {r.reason for r in replies} == {"status 500"}
    assert (bill.requests, bill.prompt_tokens, len(store)) == (24, 0, 0)
    assert store.lost() == set()
    with chat(echo) as server:
        model = endpoint(server)
        assert len(unanswered(model, PROMPTS, SHORT, store)) == 12
        replies, _ = ask(model, PROMPTS, SHORT, store)
        assert all(isinstance(r, Reply) for r in replies)
        assert unanswered(model, PROMPTS, SHORT, store) == []


def test_what_came_before_an_error_is_kept(store):
    def behave(handler: Handler) -> None:
        if handler.number == 7:
            handler.send(b"", 401)
        else:
            echo(handler)

    with chat(behave) as server:
        model = endpoint(server, concurrency=1)
        with pytest.raises(EndpointError):
            ask(model, PROMPTS, SHORT, store)
        assert len(store) == 7
        _, bill = ask(model, PROMPTS, SHORT, store)
    assert (bill.stored, bill.requests) == (7, 5)


def test_long_and_uncounted_replies_are_kept_and_guessed(store):
    def behave(handler: Handler) -> None:
        handler.send(reply("y" * (200_000 if handler.number else 8), usage=None))

    with chat(behave) as server:
        model = endpoint(server, concurrency=1)
        for _ in range(2):
            replies, bill = ask(model, PROMPTS[:2], SHORT, store)
        assert len(server.seen) == 2
    assert sorted(r.finish for r in replies) == ["stop", "too long"]
    assert bill.requests == 0


def test_estimates_bound_what_is_spent():
    prices = Prices(prompt=2.0, reply=8.0)
    expected = estimate(PROMPTS, SHORT, prices, tries=2)
    assert (expected.prompts, expected.reply_tokens) == (12, 240)
    assert 0 < expected.cost < expected.most
    assert expected.cost == pytest.approx((2 * expected.prompt_tokens + 8 * 240) / 1e6)
    with pytest.raises(ValueError, match="price"):
        Prices(prompt=-1)


def test_a_dry_run_sends_nothing_and_says_what_it_would(store):
    with chat(echo) as server:
        model = endpoint(server)
        ask(model, PROMPTS[:4], SHORT, store)
        remote = replace(model, local=False)  # needs no permission: nothing leaves
        facts = rehearse(remote, PROMPTS * 2, SHORT, store, Prices(2.0, 8.0))
        assert len(server.seen) == 4
    assert facts.stored == 4
    assert facts.expected == estimate(PROMPTS[4:], SHORT, Prices(2.0, 8.0), tries=2)
    assert facts.disclosure["prompts"] == 8
    text = as_text(facts)
    for part in ("to 127.0.0.1: 8 prompts", "titles (8)", "at most 160 of replies",
                 "4 prompts are answered already", "  question 1"):  # fmt: skip
        assert part in text


def test_budgets(store):
    prices = Prices(prompt=1e6, reply=0)  # one a token
    with chat(echo) as server:
        model = endpoint(server, concurrency=1)
        with pytest.raises(OverBudget, match="raise the budget"):
            ask(model, PROMPTS, SHORT, store, budget=Budget(prices, most=50))
        assert server.seen == []
    # The estimate is right about size; this server counts a hundred times as much.
    with chat(lambda h: h.send(reply("x", usage=(1000, 1)))) as server:
        model = endpoint(server, concurrency=1)
        with pytest.raises(OverBudget, match="9 of 12 prompts were not sent"):
            ask(model, PROMPTS, SHORT, store, budget=Budget(prices, most=2500))
        assert len(server.seen) == 3
    assert len(store) == 3


def test_answers_that_are_not_accepted_are_asked_for_again(store):
    """The second question says why; a third is not asked."""

    def behave(handler: Handler) -> None:
        good = "0" in handler.question or "earlier answer" in handler.question
        bad = handler.question.startswith("question 11")
        handler.send(reply("yes" if good and not bad else "no"))

    def judge(name: int, text: str) -> Verdict:
        return Verdict(name * 10) if text == "yes" else Verdict(reason="says no")

    with chat(behave) as server:
        asked = dict(enumerate(PROMPTS))
        for _ in range(2):
            found, tally, bill = ask_until_accepted(
                endpoint(server), asked, judge, SHORT, store, tries=2
            )
        assert len(server.seen) == 12 + 10
        assert sum("(says no)" in b["messages"][1]["content"]
                   for *_, b in server.seen) == 10  # fmt: skip
    assert found == {i: i * 10 for i in range(11)}
    assert (tally.accepted, tally.dropped, bill.requests) == (11, 1, 0)
    assert tally.reasons == {"says no": 11}


def test_the_store_keeps_the_first_value_and_no_question(store):
    store.put("k", "first")
    store.put("k", "second")
    assert store.get("k") == "first"
    with chat(echo) as server:
        ask(endpoint(server), [Prompt("private", "history")], SHORT, store)
    content = b"".join(p.read_bytes() for p in store.path.parent.iterdir())
    assert b"private" not in content
    assert os.stat(store.path).st_mode & 0o077 == 0


def test_files_that_are_no_store(tmp_path):
    cases = {"text": b"hello, this is no database at all", "empty": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="move it away"):
        Store(tmp_path / "text")
    with Store(tmp_path / "empty") as fresh:
        assert len(fresh) == 0
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE replies (x)")
    with pytest.raises(ValueError, match="version 0, not 1"):
        Store(tmp_path / "other")
    with Store(tmp_path / "odd") as odd:
        odd.put(key("m", PROMPTS[0], SHORT), json.dumps({"text": 3, "finish": "stop"}))
        named = type("M", (), {"identity": "m", "complete": None})()
        with pytest.raises(ValueError, match="something else"):
            ask(named, PROMPTS[:1], SHORT, odd)


def test_two_processes_may_write(tmp_path):
    """Every value of both is there, and no write is lost to a lock."""
    path = tmp_path / "both.db"
    script = (
        "import sys; from apps.recsys.language.store import Store\n"
        "with Store(sys.argv[1]) as s:\n"
        "    for i in range(60): s.put(f'{sys.argv[2]}{i}', 'v')\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name])
        for name in "ab"
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    with Store(path) as store:
        assert len(store) == 120


ASKING = """
import sys
from apps.recsys.language.asking import ask
from apps.recsys.language.dry_run import as_text, rehearse
from apps.recsys.language.endpoint import Endpoint
from apps.recsys.language.interface import Prompt, Settings
from apps.recsys.language.store import Store

url, path, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = Endpoint(url, "small", local=True, concurrency=3)
prompts = [Prompt("system", f"question {i}") for i in range(n)]
with Store(path) as store:
    replies, bill = ask(model, prompts, Settings(max_tokens=20), store)
assert [reply.text for reply in replies] == [prompt.user for prompt in prompts]
print(bill.requests, bill.lost)
"""


def test_a_run_that_is_killed_anywhere_asks_nothing_twice(tmp_path):
    """kill -9 of a real process; a server counts what it is asked.

    What was kept is never asked again. What was under way, at most as many as are asked
    at a time, cannot be known to be answered: it is asked again, and reported.
    """
    path, n, draw = tmp_path / "replies.db", 80, random.Random(0)
    command = [sys.executable, "-c", ASKING]
    counts, kills, kept = [], 0, set()
    lock = threading.Lock()

    def count(handler: Handler) -> None:
        with lock:
            counts.append(handler.question)
        time.sleep(0.01)
        echo(handler)

    def key_of(question: str) -> str:
        model = Endpoint(server.url, "small", local=True)
        return key(model.identity, Prompt("system", question), SHORT)

    with chat(count) as server:
        arguments = [*command, server.url, str(path), str(n)]
        # Each is killed after some requests of its own, and a random moment more.
        for wanted in (0, 1, 7, 12, 15, 20):
            before = len(counts)
            run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
            while len(counts) - before < wanted and run.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.random() * (0.3 if wanted == 0 else 0.02))
            run.send_signal(signal.SIGKILL)
            kills += run.wait() == -signal.SIGKILL
            time.sleep(0.05)  # what it had sent arrives
            asked_now = counts[before:]
            assert not kept & set(asked_now)
            assert len(set(asked_now)) == len(asked_now)
            with Store(path) as store:
                kept = {q for q in map("question {}".format, range(n))
                        if store.get(key_of(q)) is not None}  # fmt: skip
                assert len(store.lost()) <= 3
            assert len(set(asked_now) - kept) <= 3
        before = len(counts)
        last = subprocess.run(arguments, capture_output=True, text=True, check=True)
        requests, lost = map(int, last.stdout.split())
        assert (requests, len(counts) - before) == (n - len(kept), n - len(kept))
        assert lost <= 3
        assert set(counts) == {f"question {i}" for i in range(n)}
        assert kills >= 5
        assert len(counts) <= n + 3 * kills
        free = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert free.stdout.split() == ["0", "0"]
        assert len(counts) == before + n - len(kept)


def test_failures_and_judges_meet(store):
    """A failed request is a reason of its own, not a rejected answer."""
    with chat(lambda h: h.send(b"", 400)) as server:
        found, tally, _ = ask_until_accepted(
            endpoint(server, give_up=99), dict(enumerate(PROMPTS)),
            lambda name, text: Verdict(1), SHORT, store,
        )  # fmt: skip
        assert len(server.seen) == 12
    assert (found, tally.dropped) == ({}, 12)
    assert tally.reasons == {"failure: status 400": 12}
