"""Nothing leaves without permission, and it is said what leaves."""

import pytest

from apps.recsys.data import load
from apps.recsys.language import edges, profiles
from apps.recsys.language.catalogue import catalogue, histories
from apps.recsys.language.destination import (
    as_text,
    check_url,
    disclosure,
    is_loopback,
    permit,
)
from apps.recsys.language.endpoint import Endpoint
from apps.recsys.language.interface import Prompt, Settings
from apps.recsys.models.closed_form import Popularity
from tests.apps.recsys.language.chat_server import chat, echo

LOCAL = ("http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "http://127.9.9.9/v1")
REMOTE = (
    "https://api.example.com/v1", "http://localhost:8000/v1", "http://192.168.0.2/v1",
    "http://0.0.0.0:80/v1", "http://127.0.0.1.example.com/v1", "http://[::2]/v1",
    "http://2130706433/v1", "http://[::ffff:8.8.8.8]/v1",
)  # fmt: skip


def test_what_counts_as_local():
    for url in LOCAL:
        assert is_loopback(url)
        permit(url, local=True, allow_remote=False, has_key=True)
        with pytest.raises(ValueError, match="allow_remote=True"):
            permit(url, local=False, allow_remote=False, has_key=False)
    for url in REMOTE:
        assert not is_loopback(url)
        with pytest.raises(ValueError, match="numeric loopback"):
            permit(url, local=True, allow_remote=True, has_key=False)
        with pytest.raises(ValueError, match="would send data to"):
            permit(url, local=False, allow_remote=False, has_key=False)
        permit(url, local=False, allow_remote=True, has_key=False)


def test_keys_travel_encrypted():
    permit("https://x.example/v1", local=False, allow_remote=True, has_key=True)
    with pytest.raises(ValueError, match=r"unencrypted to x\.example"):
        permit("http://x.example/v1", local=False, allow_remote=True, has_key=True)


@pytest.mark.parametrize(
    "url",
    ["", "api.example.com", "file:///etc/passwd", "http://", "https://me:pw@x.example",
     "https://x.example/v1?key=SECRET", "https://x.example/#SECRET", "http://x:99999",
     "http://x:0/v1", "http://[::1/v1"],
)  # fmt: skip
def test_addresses_that_are_refused(url):
    with pytest.raises(ValueError, match=r"address|holds") as raised:
        check_url(url)
    assert "SECRET" not in str(raised.value)
    assert "pw" not in str(raised.value)
    assert not is_loopback(url)


def test_nothing_is_sent_without_permission(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with chat(echo) as server:
        model = Endpoint(server.url, "small")
        with pytest.raises(ValueError, match="allow_remote"):
            next(model.complete([Prompt("a", "b")], Settings()))
        assert server.seen == []


@pytest.fixture(scope="module")
def movielens():
    data = load("ml100k")
    return data, catalogue(data), histories(data, 12)


def test_prompts_hold_titles_and_nothing_that_names_a_user(movielens):
    """Every line is a key and what is known of a film: of no user anything else."""
    data, items, read = movielens
    offered = edges.candidates(Popularity().fit(data.train), data, 10)
    asked, *_ = edges.questions(items, read, offered)
    more, _ = profiles.questions(items, read)
    assert len(asked) == len(more) == data.shape[0]
    for user, prompt in [*asked.items(), *more.items()]:
        lines = [line.partition(" ")[2] for line in prompt.user.splitlines()]
        known = {f'"{items.line(i)}"' for i in read[user]}
        offers = {f'"{items.line(i)}"' for i in offered[user]}
        assert {line for line in lines if line} <= known | offers
    assert {field for p in more.values() for field in p.fields} == {
        "titles that a user liked", "years", "genres",
    }  # fmt: skip


def test_the_list_of_what_leaves(movielens):
    _, items, read = movielens
    asked, _ = profiles.questions(items, read, users=range(20))
    facts = disclosure("https://api.example.com/v1", list(asked.values()))
    assert (facts["host"], facts["prompts"]) == ("api.example.com", 20)
    assert facts["bytes"] == sum(
        len((p.system + p.user).encode()) for p in asked.values()
    )
    assert facts["fields"]["titles that a user liked"] == 20
    text = as_text(facts)
    assert facts["examples"][0].splitlines()[-1] in text
    assert "never sent: ids" in text
    assert "zip codes" in text
