"""The service: its answers are the recommender's, and nothing that is sent harms it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.recsys import service as module
from apps.recsys.artefact import save
from apps.recsys.export import artefact_of
from apps.recsys.models.factors import Factors
from apps.recsys.recommender import Filters, Recommender
from apps.recsys.scoring import FoldIn
from apps.recsys.service import Limits, create_app
from tests.apps.recsys.artefacts import dataset, vectors

testclient = pytest.importorskip("starlette.testclient")
ROOT = Path(__file__).parents[3]


def write(path, fold_in=0.5):
    data = dataset()
    model = Factors(*vectors(data))
    return save(path, artefact_of(model, data, fold_in=FoldIn(0.1, fold_in)))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("service") / "secret-folder.safetensors"
    write(path)
    return path


@pytest.fixture(scope="module")
def recommender(path):
    return Recommender.open(path)


@pytest.fixture(scope="module")
def client(path):
    app = create_app(path, Limits(body=20_000))
    with testclient.TestClient(app, raise_server_exceptions=False) as client:
        yield client


def plain(found):
    return json.loads(json.dumps(found))


def test_recommendations_are_the_recommenders(client, recommender):
    got = client.post("/recommend", json={"user": "u/3", "k": 4, "reasons": 2})
    assert got.status_code == 200
    expected = asdict(recommender.recommend("u/3", k=4, reasons=2))
    assert got.json() == plain({"model": recommender.artefact.name, **expected})

    asked = {
        "history": ["i1", "i8", "gone"], "k": 5, "exclude_seen": False,
        "only": ["i1", "i3", "i4", "i12"], "without": ["i3"],
        "where": {"genre": ["War", "Drama"]}, "unknown": "skip",
    }  # fmt: skip
    got = client.post("/recommend", json=asked).json()
    filters = Filters(["i1", "i3", "i4", "i12"], ["i3"], {"genre": ["War", "Drama"]})
    found = recommender.recommend(
        history=["i1", "i8", "gone"], k=5, exclude_seen=False, filters=filters,
        unknown="skip",
    )  # fmt: skip
    assert got["items"] == plain(asdict(found))["items"]
    assert got["source"] == "folded"


@pytest.mark.parametrize("value", ["5..8", 7, 7.0, [3, "40..", 9.5]])
def test_numbers_and_ranges_are_filters(client, recommender, value):
    """The fixture's item i has the length i."""
    got = client.post("/recommend", json={"history": [], "where": {"length": value}})
    texts = [str(v) for v in value] if isinstance(value, list) else str(value)
    filters = Filters(where={"length": texts})
    expected = recommender.recommend(history=[], filters=filters).items
    assert got.json()["items"] == plain([asdict(item) for item in expected])
    assert expected


def test_similar_items(client, recommender):
    got = client.post("/similar", json={"item": "i5", "k": 3})
    expected = [asdict(item) for item in recommender.similar("i5", 3)]
    assert got.json()["items"] == plain(expected)


def test_titles_are_data(client):
    """Markup in a title reaches the client as it is, as JSON that nobody renders."""
    got = client.post("/recommend", json={"user": "u/3", "k": 1})
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "<b>é</b>" in got.json()["items"][0]["title"]


def test_health_metrics_and_description(client, recommender):
    assert client.get("/health").json() == {
        "status": "ok", "model": recommender.artefact.name, "users": 31, "items": 47,
    }  # fmt: skip
    client.get("/nowhere/at-all")
    text = client.get("/metrics").text
    assert 'sparsekit_requests_total{path="/recommend",status="200"}' in text
    assert 'sparsekit_requests_total{path="other",status="404"}' in text
    assert 'sparsekit_request_seconds_bucket{le="0.01",path="/recommend"}' in text
    assert 'sparsekit_recommendations_total{source="folded"}' in text
    assert "nowhere" not in text
    described = client.get("/openapi.json").json()["paths"]["/recommend"]["post"]
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["k"]["maximum"] == 1000


REFUSED = {
    "empty": (422, b""),
    "no JSON": (422, b"{"),
    "no UTF-8": (422, b'{"user": "\xff"}'),
    "a list": (422, b"[]"),
    "nobody": (422, b"{}"),
    "unknown user": (404, b'{"user": "u/99"}'),
    "unknown item": (404, b'{"history": ["x"]}'),
    "unknown key": (422, b'{"user": "u/3", "sql": "DROP TABLE"}'),
    "k zero": (422, b'{"user": "u/3", "k": 0}'),
    "k negative": (422, b'{"user": "u/3", "k": -5}'),
    "k large": (422, b'{"user": "u/3", "k": 1001}'),
    "k endless": (422, b'{"user": "u/3", "k": ' + b"9" * 5000 + b"}"),
    "k fraction": (422, b'{"user": "u/3", "k": 1.5}'),
    "k text": (422, b'{"user": "u/3", "k": "5"}'),
    "k true": (422, b'{"user": "u/3", "k": true}'),
    "k NaN": (422, b'{"user": "u/3", "k": NaN}'),
    "k infinite": (422, b'{"user": "u/3", "k": 1e999}'),
    "user a number": (422, b'{"user": 3}'),
    "user too long": (422, b'{"user": "' + b"u" * 513 + b'"}'),
    "history no list": (422, b'{"history": "i1"}'),
    "history of numbers": (422, b'{"history": [1, NaN]}'),
    "history too long": (422, json.dumps({"history": ["i1"] * 1001}).encode()),
    "filter too long": (
        422, json.dumps({"user": "u/3", "only": [""] * 10_001})[:19_999].encode(),
    ),
    "column unknown": (422, b'{"user": "u/3", "where": {"actor": "x"}}'),
    "value true": (422, b'{"user": "u/3", "where": {"length": true}}'),
    "value NaN": (422, b'{"user": "u/3", "where": {"length": NaN}}'),
    "value infinite": (422, b'{"user": "u/3", "where": {"length": [1e999]}}'),
    "value endless": (422, b'{"user": "u/3", "where": {"x": ' + b"9" * 5000 + b"}}"),
    "value no range": (422, b'{"user": "u/3", "where": {"length": "20..5"}}'),
    "value unknown": (422, b'{"user": "u/3", "where": {"genre": "x"}}'),
    "deep": (422, b'{"user": ' + b"[" * 9_000 + b"]" * 9_000 + b"}"),
    "surrogate": (422, b'{"user": "\\ud800"}'),
    "path": (404, b'{"user": "../../etc/passwd"}'),
    "markup": (404, b'{"user": "<script>alert(1)</script>"}'),
    "nul": (404, b'{"user": "u/3\\u0000"}'),
    "too large": (413, b'{"user": "' + b"u" * 20_000 + b'"}'),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(client, case):
    status, body = REFUSED[case]
    got = client.post("/recommend", content=body)
    assert got.status_code == status, got.text
    assert set(got.json()) == {"error"}
    assert len(got.text) < 1000
    for secret in (
        "secret-folder",
        "Traceback",
        "site-packages",
        ".py",
        "pydantic.dev",
    ):
        assert secret not in got.text


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/recommend", 405),
        ("DELETE", "/health", 405),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/../secret-folder.safetensors", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("POST", "/recommend/../../etc/passwd", 404),
    ],
)
def test_other_paths(client, method, url, status):
    got = client.request(method, url)
    assert got.status_code == status
    assert set(got.json()) == {"error"}


def test_an_error_of_ours_tells_nothing(client, monkeypatch, caplog):
    def broken(*arguments, **keywords):
        raise RuntimeError("/home/someone/secret-folder")

    monkeypatch.setattr(Recommender, "recommend", broken)
    got = client.post("/recommend", json={"user": "u/3"})
    assert got.status_code == 500
    assert got.json() == {"error": "internal error"}
    assert "secret-folder" in caplog.text  # but the log does
    monkeypatch.undo()
    assert client.post("/recommend", json={"user": "u/3"}).status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = ("user", "history", "item", "k", "only", "without", "where", "unknown",
          "exclude_seen", "reasons")  # fmt: skip
likely = st.sampled_from(["i1", "i2", "u/3", "genre", "War", "skip", 1, 5, True]) | (
    st.lists(st.sampled_from(["i1", "i7", "i46"]), max_size=4)
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/recommend", "/similar"]),
    st.dictionaries(st.sampled_from(FIELDS), likely | json_values, max_size=6)
    | json_values,
)
def test_any_json_gets_an_answer(client, path, value):
    got = client.post(path, content=json.dumps(value))
    assert got.status_code in (200, 404, 422)
    assert "error" in got.json() or got.json()["items"] is not None


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["/recommend", "/similar", "/health"]), st.binary(max_size=50))
def test_any_bytes_get_an_answer(client, path, body):
    got = client.post(path, content=body)
    assert got.status_code in (405, 422)
    assert "error" in got.json()


def answered(app, receive):
    """What a request is answered whose body comes from `receive`."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/recommend", "headers": [],
        "query_string": b"", "root_path": "", "scheme": "http",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_slow_body_is_not_waited_for(path, monkeypatch):
    async def silent():
        await asyncio.sleep(60)

    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    assert answered(create_app(path), silent)[0]["status"] == 408


def test_a_body_may_come_in_parts_or_not_to_its_end(path):
    app = create_app(path)
    parts = [b'{"user"', b': "u/3", "k"', b": 2}"]

    async def in_parts():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    start, body, *_ = answered(app, in_parts)
    assert start["status"] == 200
    assert len(json.loads(body["body"])["items"]) == 2

    async def gone():
        return {"type": "http.disconnect"}

    assert answered(app, gone) == []
    text = testclient.TestClient(app).get("/metrics").text
    assert 'sparsekit_requests_total{path="/recommend",status="gone"} 1.0' in text


def test_a_damaged_file_is_no_service(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="file: no safetensors file"):
        create_app(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        create_app(tmp_path / "nothing")


def until(condition):
    """Waits for it, a minute at most; its last value."""
    for _ in range(600):
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    return condition()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_process_reloads_and_ends_gracefully(tmp_path):
    """A new file is served after SIGHUP, a damaged one never; SIGTERM ends it."""
    path = tmp_path / "file"
    first = write(path)
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    code = f"from apps.recsys.service import run; run({str(path)!r}, port={port})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{port}"

    def model():
        try:
            return httpx.get(f"{url}/health", trust_env=False).json()["model"]
        except httpx.TransportError:
            assert process.poll() is None
            return None

    def reloads(outcome):
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        return f'sparsekit_reloads_total{{outcome="{outcome}"}} 1.0' in text

    try:
        assert until(model) == first
        second = write(path, fold_in=0.7)
        assert second != first
        assert model() == first
        os.kill(process.pid, signal.SIGHUP)
        assert until(lambda: model() == second)

        (tmp_path / "damaged").write_bytes(path.read_bytes()[:-1])
        os.replace(tmp_path / "damaged", path)
        os.kill(process.pid, signal.SIGHUP)
        assert until(lambda: reloads("failed"))
        assert model() == second

        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "the old recommender stays" in errors
    finally:
        process.kill()
        process.wait()
