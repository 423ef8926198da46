"""The end of a request's time, whatever the server does.

    with Deadline(60.0) as deadline:
        client.stream("POST", url, extensions={"trace": deadline.trace})
        deadline.passed

A client's timeout is that of one wait. A server that sends a byte of its headers now
and then keeps every wait short, and the request for hours. Here the connection is cut.
"""

import socket
import threading
from contextlib import suppress
from typing import Any


class Deadline:
    """Cuts the connection that `trace` saw opened when the seconds are over.

    Whoever waits for it then gets an error of the network. `trace` is for the extension
    of that name of httpx; the request must open a connection of its own, or it belongs
    to another one's deadline.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._stream: Any = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._over)
        self._timer.daemon = True

    def trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._stream = info["return_value"]
                if self.passed:
                    self._cut()

    def _over(self) -> None:
        with self._lock:
            self.passed = True
            self._cut()

    def _cut(self) -> None:
        if self._stream is not None:
            with suppress(OSError):  # it is closed already
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Deadline":
        self._timer.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._timer.cancel()
