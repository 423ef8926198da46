"""A server on 127.0.0.1 that speaks the chat protocol, and misbehaves as told."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request. body: what the client asked, as JSON. number: from 0."""

    protocol_version = "HTTP/1.1"
    server: "Chat"
    body: dict[str, Any]
    number: int

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.body = json.loads(self.rfile.read(length))
        with self.server.lock:
            self.number = len(self.server.seen)
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.seen.append((self.path, headers, self.body))
            self.server.times.append(time.monotonic())
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        try:
            self.server.behave(self)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send(
        self, content: bytes, status: int = 200, kind: str = "application/json",
        **headers: str,
    ) -> None:  # fmt: skip
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def events(self, events: list[bytes]) -> None:
        """Server-sent events; without a length, the end of the connection ends them."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in events:
            self.wfile.write(b"data: " + event + b"\n\n")
            self.wfile.flush()

    def cut(self) -> None:
        """Ends the connection as a crash would: the other side gets a reset."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    @property
    def question(self) -> str:
        return str(self.body["messages"][-1]["content"])


class Chat(ThreadingHTTPServer):
    """seen: (path, headers, body) of each request; times: of their arrival."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = behave
        self.lock = threading.Lock()
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.times: list[float] = []
        self.under_way = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that are killed, connections that are cut


@contextmanager
def chat(behave: Behaviour) -> Iterator[Chat]:
    server = Chat(behave)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(text: Any, usage: tuple[int, int] | None = (11, 3)) -> bytes:
    """A whole answer."""
    content: dict[str, Any] = {
        "id": "x", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": text}}],
    }  # fmt: skip
    if usage:
        content["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return json.dumps(content).encode()


def pieces(*texts: str, usage: tuple[int, int] | None = (11, 3)) -> list[bytes]:
    """The events of a streamed answer, up to the last."""
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant"}}]}]
    events += [{"choices": [{"delta": {"content": text}}]} for text in texts]
    events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    if usage:
        tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
        events += [{"choices": [], "usage": tokens}]
    return [json.dumps(event).encode() for event in events] + [b"[DONE]"]


def echo(handler: Handler) -> None:
    """Answers with the question, streamed if the client wants it so."""
    if handler.body["stream"]:
        half = len(handler.question) // 2
        handler.events(pieces(handler.question[:half], handler.question[half:]))
    else:
        handler.send(reply(handler.question))
