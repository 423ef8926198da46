"""The HTTP client against a real server on this machine that misbehaves."""

import json
import logging
import random
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from apps.recsys.language.endpoint import Endpoint
from apps.recsys.language.interface import (
    EndpointError,
    Failure,
    Prompt,
    Reply,
    Settings,
)
from apps.recsys.language.pace import Pace, backoff, retry_after
from tests.apps.recsys.language.chat_server import (
    Chat,
    Handler,
    chat,
    echo,
    pieces,
    reply,
)

PROMPT = Prompt("be brief", "question é \u2028 𝔘")
KEY = "sk-Sekret-0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def endpoint(server: Chat, **settings) -> Endpoint:
    chosen = {"timeout": 5.0, "retries": 3, "longest_wait": 0.01, **settings}
    return Endpoint(server.url, "small", local=True, **chosen)


def asked(model: Endpoint, n: int = 1, settings: Settings | None = None):
    """What came back, in the order of the prompts."""
    prompts = [replace(PROMPT, user=f"{PROMPT.user} {i}") for i in range(n)]
    return [
        result
        for _, result in sorted(
            model.complete(prompts, settings or Settings(max_tokens=20)),
            key=lambda pair: pair[0],
        )
    ]


def until_error(model: Endpoint, n: int):
    """What came back before the run ended, and why it did."""
    results = []

    def run() -> None:
        for _, result in model.complete([PROMPT] * n, Settings()):
            results.append(result)

    with pytest.raises(EndpointError) as raised:
        run()
    return results, str(raised.value)


def in_turn(*behaviours):
    """Each request by the next behaviour; the last one goes on."""

    def behave(handler: Handler) -> None:
        behaviours[min(handler.number, len(behaviours) - 1)](handler)

    return behave


@pytest.mark.parametrize("stream", [False, True])
def test_replies_come_whole_and_in_place(stream):
    with chat(echo) as server:
        replies = asked(endpoint(server, stream=stream), 20)
    assert [r.text for r in replies] == [f"{PROMPT.user} {i}" for i in range(20)]
    assert {(r.prompt_tokens, r.reply_tokens, r.requests) for r in replies} == {
        (11, 3, 1)
    }
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert "authorization" not in headers
    assert body["model"] == "small"
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["max_tokens"] == 20
    assert (body["stream"], "stream_options" in body) == (stream, stream)
    assert not {"seed", "top_p"} & body.keys()  # no effect at temperature 0


def test_settings_reach_the_server():
    with chat(echo) as server:
        model = endpoint(server, length_field="max_completion_tokens")
        asked(model, 1, Settings(temperature=0.5, top_p=0.9, max_tokens=7, seed=3))
    body = server.seen[0][2]
    wanted = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_completion_tokens": 7}
    assert wanted.items() <= body.items()
    assert "max_tokens" not in body


def test_a_server_may_answer_in_one_piece_though_asked_to_stream():
    with chat(lambda handler: handler.send(reply("whole"))) as server:
        (result,) = asked(endpoint(server, stream=True))
    assert result.text == "whole"


def test_streams_are_read_in_any_cut():
    """Events torn apart anywhere, other line ends, comments, no [DONE]."""
    content = b"".join(b"data: " + event + b"\r\n\r\n" for event in pieces("a\nb", "é"))
    content = b": comment\r\nevent: x\r\n" + content

    def torn(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        cuts = sorted(random.Random(handler.number).sample(range(len(content)), 40))
        for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True):
            part = content[a:b]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    with chat(torn) as server:
        replies = asked(endpoint(server, stream=True), 10)
    assert {r.text for r in replies} == {"a\nbé"}
    without_done = pieces("x")[:-1]
    with chat(lambda handler: handler.events(without_done)) as server:
        (result,) = asked(endpoint(server, stream=True))
    assert (result.text, result.prompt_tokens) == ("x", 11)


def test_busy_and_broken_servers_are_asked_again():
    behave = in_turn(
        lambda h: h.send(b"busy", 429, retry_after="0"),
        lambda h: h.send(b"oops", 500),
        lambda h: h.send(b"<html>proxy</html>", 503, "text/html"),
        echo,
    )
    with chat(behave) as server:
        (result,) = asked(endpoint(server))
    assert result.text.startswith(PROMPT.user)
    assert (result.requests, len(server.seen)) == (4, 4)


def test_retry_after_holds_for_everyone():
    behave = in_turn(lambda h: h.send(b"", 429, retry_after="1"), echo)
    with chat(behave) as server:
        asked(endpoint(server, concurrency=1, longest_wait=5.0), 2)
    assert server.times[1] - server.times[0] >= 1.0
    assert len(server.seen) == 3


def test_a_server_that_asks_for_hours_is_given_up():
    with chat(lambda h: h.send(b"", 429, retry_after="86400")) as server:
        (result,) = asked(endpoint(server))
    assert (result.reason, result.requests) == ("status 429", 1)
    assert "86400" in result.detail


@pytest.mark.parametrize("stream", [False, True])
def test_cut_connections_are_asked_again(stream):
    def halfway(handler: Handler) -> None:
        handler.send_response(200)
        kind = "text/event-stream" if stream else "application/json"
        handler.send_header("content-type", kind)
        handler.send_header("content-length", "5000")
        handler.end_headers()
        handler.wfile.write(b"data: " + pieces("half")[1] + b"\n\n")
        handler.cut()

    with chat(in_turn(lambda h: h.cut(), halfway, halfway, echo)) as server:
        (result,) = asked(endpoint(server, stream=stream))
        assert result.text.startswith(PROMPT.user)
        assert result.requests == 4
    with chat(halfway) as server:
        (result,) = asked(endpoint(server, stream=stream, retries=1))
    assert isinstance(result, Failure)
    assert result.reason.startswith("connection: ")
    assert len(server.seen) == 2


def test_a_stream_that_just_ends_is_not_taken_for_an_answer():
    events = pieces("The film is not")[:2]
    with chat(lambda h: h.events(events)) as server:
        (result,) = asked(endpoint(server, stream=True, retries=1))
    assert result == Failure("garbled: the stream ended before its end", 2)


GARBAGE = {
    "html": b"<html>hello</html>",
    "empty": b"",
    "half": reply("x")[:40],
    "list": b"[1, 2]",
    "no choices": b'{"choices": []}',
    "choices of the wrong kind": b'{"choices": [3]}',
    "no text": reply(None),
    "text of the wrong kind": reply({"a": 1}),
    "bytes": bytes(range(256)),
    "deep": b"[" * 200_000,
    "large number": b'{"choices": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage(name):
    with chat(lambda h: h.send(GARBAGE[name])) as server:
        (result,) = asked(endpoint(server, retries=1))
    assert isinstance(result, Failure)
    assert result.reason.startswith("garbled: ")
    assert len(server.seen) == 2
    with chat(lambda h: h.events([GARBAGE[name].replace(b"\n", b" ")])) as server:
        (result,) = asked(endpoint(server, stream=True, retries=0))
    assert isinstance(result, Failure) or result.text == ""


def test_wrong_counts_of_tokens_are_not_believed():
    for usage in ((-5, 1), (True, 1), ("many", 1), (10**12, 1)):
        with chat(lambda h, u=usage: h.send(reply("x", usage=u))) as server:
            (result,) = asked(endpoint(server))
        assert result.prompt_tokens is None
        assert result.reply_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_long_replies_are_not_read_to_the_end(stream):
    """Ten megabytes, and a server that would send a gigabyte."""
    sent = []

    def much(handler: Handler) -> None:
        n = 100 if handler.number == 0 else 10_000
        handler.send_response(200)
        kind = "text/event-stream" if stream else "application/json"
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(n * 100_000))
        handler.end_headers()
        handler.wfile.write(b'{"choices": [{"message": {"content": "')
        for _ in range(n):
            handler.wfile.write(b"y" * 100_000)
            sent.append(handler.number)

    with chat(much) as server:
        results = asked(endpoint(server, stream=stream, concurrency=1), 2)
    assert results == [Reply("", "too long")] * 2
    assert len(server.seen) == 2  # it would come again
    assert sent.count(1) < 1000


def test_compressed_replies_are_refused():
    with chat(lambda h: h.send(b"x", content_encoding="gzip")) as server:
        (result,) = asked(endpoint(server, retries=0))
    assert result.reason.startswith("garbled: a compressed reply")
    assert server.seen[0][1]["accept-encoding"] == "identity"


def test_slow_servers_are_given_up():
    stop = threading.Event()

    def silent(handler: Handler) -> None:
        stop.wait(20)

    def drip(handler: Handler) -> None:
        """Always a little, so that no single wait is long."""
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        while not stop.wait(0.05):
            handler.wfile.write(b": still there\n")
            handler.wfile.flush()

    def drip_headers(handler: Handler) -> None:
        """A header that never ends, a byte at a time."""
        handler.connection.sendall(b"HTTP/1.1 200 OK\r\nx-patience: ")
        with suppress(OSError):  # the client hangs up
            while not stop.wait(0.05):
                handler.connection.sendall(b"a")
        handler.close_connection = True

    def drip_status(handler: Handler) -> None:
        with suppress(OSError):
            while not stop.wait(0.05):
                handler.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        handler.close_connection = True

    for behave in (silent, drip, drip_headers, drip_status):
        stop.clear()
        with chat(behave) as server:
            model = endpoint(server, timeout=0.3, retries=1, stream=True)
            started = time.monotonic()
            (result,) = asked(model)
            seconds = time.monotonic() - started
            stop.set()
        assert result == Failure("too slow", 2)
        assert seconds < 10


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_will_not_pass_ends_the_run(status):
    with chat(lambda h: h.send(b'{"error": "no such model"}', status)) as server:
        with pytest.raises(EndpointError, match=f"{status} for model 'small'.*no such"):
            asked(endpoint(server, concurrency=2), 50)
        assert len(server.seen) <= 3


def test_redirects_are_not_followed():
    elsewhere = chat(echo)
    with elsewhere as other:
        behave = in_turn(lambda h: h.send(b"", 307, location=f"{other.url}/x"))
        with chat(behave) as server, pytest.raises(EndpointError, match="307"):
            asked(endpoint(server))
        assert other.seen == []


def test_a_prompt_that_is_refused_does_not_stop_the_others():
    def picky(handler: Handler) -> None:
        if handler.question.endswith(" 3"):
            handler.send(b'{"error": {"message": "content filter"}}', 400)
        else:
            echo(handler)

    with chat(picky) as server:
        results = asked(endpoint(server), 6)
    assert [type(r).__name__ for r in results].count("Reply") == 5
    assert results[3].reason == "status 400"
    assert "content filter" in results[3].detail
    assert len(server.seen) == 6  # once


def test_a_dead_server_is_noticed():
    with chat(lambda h: h.send(b"", 500)) as server:
        model = endpoint(server, retries=0, give_up=5, concurrency=2)
        with pytest.raises(EndpointError, match=r"5 prompts in a row.*status 500"):
            asked(model, 100)
        assert len(server.seen) < 10
    with pytest.raises(EndpointError, match="connection: ConnectError"):
        asked(replace(model, give_up=1))  # nobody listens any more


def test_what_was_under_way_is_not_lost_when_the_run_ends():
    """Five are asked together; one is refused for good, four answers still come."""
    together = threading.Barrier(5)

    def behave(handler: Handler) -> None:
        together.wait(10)
        if handler.number == 0:
            handler.send(b"", 401)
        else:
            time.sleep(0.2)
            echo(handler)

    with chat(behave) as server:
        results, _ = until_error(endpoint(server, concurrency=5), 50)
        assert len(server.seen) == 5
    assert len(results) == 4


def test_concurrency_is_bounded_and_prompts_are_taken_late():
    taken = []

    def slowly(handler: Handler) -> None:
        time.sleep(0.03)
        echo(handler)

    def prompts():
        for i in range(24):
            taken.append(i)
            yield replace(PROMPT, user=str(i))

    with chat(slowly) as server:
        done = 0
        for _ in endpoint(server, concurrency=3).complete(prompts(), Settings()):
            done += 1
            assert len(taken) - done <= 3
    assert done == 24
    assert 2 <= server.most <= 3


def test_rate():
    with chat(echo) as server:
        asked(endpoint(server, concurrency=6, per_minute=1200), 8)
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    # Arrival may be late, never early: eight take seven distances of 50 ms.
    assert server.times[-1] - server.times[0] >= 7 * 0.05 - 0.03
    assert len(gaps) == 7


def test_turns_by_a_clock_of_our_own():
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(60, clock=lambda: now[0], sleep=sleep)
    times = []
    for _ in range(3):
        assert pace.turn()
        times.append(now[0])
    assert times == [100, 101, 102]
    pace.pause(10)
    assert pace.turn()
    assert now[0] == 112
    pace.stop()
    assert not pace.turn()
    with pytest.raises(ValueError, match="above 0"):
        Pace(0)


def test_backoff_grows_to_its_limit():
    draw = random.Random(0)
    for attempt, most in ((0, 0.5), (3, 4.0), (10, 60.0), (10_000, 60.0)):
        waits = [backoff(attempt, 60.0, draw) for _ in range(500)]
        assert 0 <= min(waits) <= 0.05 * most
        assert 0.9 * most <= max(waits) <= most


def test_retry_after_headers():
    now = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
    assert retry_after("Sat, 28 Nov 2026 12:00:07 GMT", now) == 7
    assert retry_after("Sat, 28 Nov 2026 11:00:00 GMT", now) == 0
    assert retry_after(" 3 ") == 3
    for text in (None, "", "soon", "-1", "1e9", "٣", "nan", "9" * 400, "Sat, 99"):
        assert retry_after(text) is None


def test_interrupting_does_not_wait_for_retries():
    """Whoever stops reading results ends the threads that sleep before a retry."""
    with chat(in_turn(echo, lambda h: h.send(b"", 500))) as server:
        model = endpoint(server, concurrency=1, retries=50, longest_wait=1000.0)
        results = model.complete([PROMPT, PROMPT], Settings())
        next(results)
        started = time.monotonic()
        results.close()
    assert time.monotonic() - started < 5


def test_the_key_is_sent_and_never_shown(monkeypatch, caplog, capfd):
    """Servers that send it back, in errors and answers, cannot make us print it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def leak(handler: Handler) -> None:
        said = handler.headers["authorization"]
        status = [200, 400, 401][handler.number]
        content = reply(f"your key is {said}") if status == 200 else said.encode()
        handler.send(content, status)

    with chat(leak) as server:
        model = endpoint(server, concurrency=1)
        results, error = until_error(model, 3)
    assert server.seen[0][1]["authorization"] == f"Bearer {KEY}"
    shown = [
        repr(model),
        error,
        repr(results),
        caplog.text,
        *capfd.readouterr(),
    ]
    assert "your key is Bearer [key]" in shown[2]
    assert not any(KEY in text for text in shown)
    monkeypatch.setenv("OPENAI_API_KEY", "two words\n")
    with chat(echo) as server, pytest.raises(ValueError, match="holds no key") as odd:
        asked(endpoint(server))
    assert "two words" not in str(odd.value)


def test_a_proxy_of_the_environment_does_not_see_local_data(monkeypatch):
    with chat(echo) as proxy, chat(echo) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        asked(endpoint(server))
        assert (len(proxy.seen), len(server.seen)) == (0, 1)


def test_settings_are_checked():
    for wrong in (
        {"concurrency": 0}, {"retries": -1}, {"timeout": 0.0}, {"give_up": 0},
        {"longest_wait": float("nan")}, {"model": ""}, {"url": "ftp://x"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            Endpoint(**{"url": "http://127.0.0.1:1/v1", "model": "m", **wrong})
    for wrong in (
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0},
        {"max_tokens": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            Settings(**wrong)


def test_lone_surrogates_become_text():
    content = reply("x").replace(b'"x"', b'"\\ud800 x"')
    with chat(lambda h: h.send(content)) as server:
        (result,) = asked(endpoint(server))
    assert json.loads(json.dumps(result.text)).encode() == b"? x"
