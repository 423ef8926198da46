"""A recommender over HTTP: one file, one process, answers in milliseconds.

    sparsekit recsys serve --file model.safetensors --port 8000
    python -m apps.recsys.service model.safetensors        # the same, without torch
    curl localhost:8000/recommend -d '{"history": ["50", "181"], "k": 3, "reasons": 1}'
    curl localhost:8000/similar -d '{"item": "50", "k": 3}'
    curl localhost:8000/health
    curl localhost:8000/metrics                     # Prometheus
    kill -HUP PID                                   # the file was replaced: read it

An answer is computed in the event loop, not in a thread: it takes less time than the
switch. More cores are more processes on one port's proxy; they share the mapped file.
There is no authentication and no TLS: it listens on loopback unless told otherwise, and
wants a proxy in front of it. The longest answer within the limits takes about 0.1 s.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as prometheus_text
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.recsys.recommender import BadQuestion, Filters, Recommender, UnknownId

log = logging.getLogger(__name__)

BODY_SECONDS = 10.0  # within which a request's body has to come
MOST_K = 1000
MOST_REASONS = 10
MOST_HISTORY = 1000
MOST_IDS = 10_000  # of a filter
BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)

Id = Annotated[str, StringConstraints(max_length=512)]
Ids = Annotated[list[Id], Field(max_length=MOST_IDS)]
Number = (
    Annotated[int, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(allow_inf_nan=False)]
)
Value = Id | Number
Values = Value | Annotated[list[Value], Field(max_length=100)]
K = Annotated[int, Field(ge=1, le=MOST_K)]


class Question(BaseModel):
    """What both questions may hold; unknown keys and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    k: K = 10
    only: Ids | None = None
    without: Ids = []
    where: Annotated[dict[Id, Values], Field(max_length=20)] = {}
    unknown: Literal["raise", "skip"] = "raise"

    @property
    def filters(self) -> Filters | None:
        if self.only is None and not self.without and not self.where:
            return None
        where = {
            column: [str(v) for v in values]
            if isinstance(values, list)
            else str(values)
            for column, values in self.where.items()
        }
        return Filters(self.only, self.without, where)


class Recommend(Question):
    """For whom: a user of the file, whoever has that history, or both together."""

    user: Id | None = None
    history: Annotated[list[Id], Field(max_length=MOST_HISTORY)] | None = None
    exclude_seen: bool = True
    reasons: Annotated[int, Field(ge=0, le=MOST_REASONS)] = 0


class Similar(Question):
    """To what."""

    item: Id


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request; connections: at once, more get 503."""

    body: int = 500_000
    connections: int = 500


class Service:
    """The recommender of now, how it is replaced, and what is counted."""

    def __init__(self, path: Path):
        self.path = path
        self.recommender = Recommender.open(path)
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sparsekit_requests", "Answered requests.", ["path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "sparsekit_request_seconds", "From a request's last byte to its answer.",
            ["path"], buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.sources = Counter(
            "sparsekit_recommendations", "Lists by how they came about.", ["source"],
            registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter(
            "sparsekit_reloads", "Files read again.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.loaded = Gauge(
            "sparsekit_model_loaded_seconds", "When the file was read, seconds since "
            "1970.", registry=self.registry,
        )  # fmt: skip
        self.loaded.set_to_current_time()

    async def reload(self) -> bool:
        """Reads the file again, beside the requests; the old one stays if it fails."""
        try:
            self.recommender = await asyncio.to_thread(Recommender.open, self.path)
        except (OSError, ValueError) as error:
            log.error("the old recommender stays: %s", error)
            self.reloads.labels("failed").inc()
            return False
        self.reloads.labels("done").inc()
        self.loaded.set_to_current_time()
        return True

    def recommend(self, question: Recommend) -> dict[str, Any]:
        recommender = self.recommender
        found = recommender.recommend(
            question.user,
            history=question.history,
            k=question.k,
            filters=question.filters,
            exclude_seen=question.exclude_seen,
            reasons=question.reasons,
            unknown=question.unknown,
        )
        self.sources.labels(found.source).inc()
        return {"model": recommender.artefact.name, **asdict(found)}

    def similar(self, question: Similar) -> dict[str, Any]:
        recommender = self.recommender
        items = recommender.similar(
            question.item, question.k, question.filters, question.unknown
        )
        return {
            "model": recommender.artefact.name, "items": [asdict(i) for i in items],
        }  # fmt: skip

    def health(self) -> dict[str, Any]:
        artefact = self.recommender.artefact
        return {
            "status": "ok", "model": artefact.name,
            "users": len(artefact.user_ids), "items": len(artefact.item_ids),
        }  # fmt: skip


def create_app(path: str | Path, limits: Limits | None = None) -> FastAPI:
    """The service of a file. Raises DamagedFile (a ValueError), FileNotFoundError."""
    service = Service(Path(path))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks: set[asyncio.Task[bool]] = set()  # a task that nobody holds may vanish

        def reload() -> None:
            task = asyncio.ensure_future(service.reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        # Not on Windows, nor outside of the main thread.
        with suppress(NotImplementedError, AttributeError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        yield

    app = FastAPI(
        title="sparsekit recommender", docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.service = service

    @app.post("/recommend", openapi_extra=_body(Recommend))
    async def recommend(request: Request) -> Response:
        return _answer(service.recommend, Recommend, await request.body())

    @app.post("/similar", openapi_extra=_body(Similar))
    async def similar(request: Request) -> Response:
        return _answer(service.similar, Similar, await request.body())

    @app.get("/health")
    async def health() -> Response:
        return _json(200, service.health())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(
            prometheus_text(service.registry), media_type="text/plain; version=0.0.4"
        )

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _json(error.status_code, {"error": str(error.detail)}, error.headers)

    app.add_middleware(Guard, service=service, limit=(limits or Limits()).body)
    return app


class Guard:
    """Reads a body up to a limit, counts and times, and lets no error through."""

    def __init__(self, app: ASGIApp, service: Service, limit: int):
        self.app, self.service, self.limit = app, service, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        known = ("/recommend", "/similar", "/health", "/metrics")
        path = scope["path"] if scope["path"] in known else "other"
        status = 0  # nothing was answered yet
        began = time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await asyncio.wait_for(self._body(receive), BODY_SECONDS)
            began = time.perf_counter()
            if body is None:
                return  # the client is gone
            await self.app(scope, _replay(body, receive), sending)
        except TimeoutError:
            await _json(408, {"error": "the body did not come in time"})(
                scope, receive, sending
            )
        except _TooLarge:
            error = f"a body may have {self.limit} bytes"
            await _json(413, {"error": error}, {"connection": "close"})(
                scope, receive, sending
            )
        except Exception:
            log.exception("a request failed")
            if not status:
                await _json(500, {"error": "internal error"})(scope, receive, sending)
        finally:
            self.service.requests.labels(path, str(status or "gone")).inc()
            self.service.seconds.labels(path).observe(time.perf_counter() - began)

    async def _body(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.limit:
                raise _TooLarge
            if not message.get("more_body", False):
                return bytes(body)


class _TooLarge(Exception):
    pass


def run(
    path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
) -> None:
    """Serves until it is stopped; running requests get ten seconds to end."""
    import uvicorn

    limits = limits or Limits()
    app = create_app(path, limits)
    print(f"http://{host}:{port} serves {path}", flush=True)
    uvicorn.run(
        app, host=host, port=port, log_level="error",
        access_log=False, server_header=False, limit_concurrency=limits.connections,
        timeout_graceful_shutdown=10,
    )  # fmt: skip


def _answer(
    answer: Callable[[Any], dict[str, Any]], kind: type[Question], body: bytes
) -> Response:
    try:
        return _json(200, answer(kind.model_validate_json(body)))
    except ValidationError as error:
        return _json(422, {"error": "; ".join(map(_explained, error.errors()[:5]))})
    except UnknownId as error:
        return _json(404, {"error": str(error)})
    except BadQuestion as error:
        return _json(422, {"error": str(error)})


def _explained(error: Any) -> str:
    """Where and what, without the input: it may be long, or no text."""
    where = ".".join(str(part)[:40] for part in error["loc"][:4])
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _json(status: int, content: dict[str, Any], headers: Any = None) -> Response:
    # ASCII: any id, a lone surrogate too, is sent as an escape. No NaN.
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(
        text, status, {"x-content-type-options": "nosniff", **(headers or {})},
        "application/json",
    )  # fmt: skip


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """What the description of the interface says of a body."""
    content = {"application/json": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, then whatever comes."""
    first = True

    async def replayed() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


def main(argv: Sequence[str] | None = None) -> int:
    """Serves a file until stopped; 2 with a message if it cannot be read."""
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m apps.recsys.service", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--body", type=int, default=limits.body)
    parser.add_argument("--connections", type=int, default=limits.connections)
    args = parser.parse_args(argv)
    limits = Limits(args.body, args.connections)
    try:
        run(args.file, host=args.host, port=args.port, limits=limits)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
