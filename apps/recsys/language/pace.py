"""When the next request may leave: a rate, pauses that a server asks for, backoff."""

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class Pace:
    """Turns for several threads. per_minute: requests; None for no limit.

    Requests leave at equal distances, so that a minute never has more than its share.
    """

    def __init__(
        self,
        per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if per_minute is not None and not per_minute > 0:
            raise ValueError(f"requests a minute must be above 0, got {per_minute}")
        self._distance = 60 / per_minute if per_minute else 0.0
        self._stopped = threading.Event()
        self._clock, self._sleep = clock, sleep or self._stopped.wait
        self._lock = threading.Lock()
        self._next = 0.0

    def turn(self) -> bool:
        """Returns True when it is this thread's turn, False if there are no more."""
        while not self._stopped.is_set():
            with self._lock:
                now = self._clock()
                if now >= self._next:
                    self._next = now + self._distance
                    return True
                left = self._next - now
            self._sleep(left)
        return False

    def rest(self, seconds: float) -> None:
        """This thread sleeps."""
        self._sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Nobody's turn comes within the next seconds."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)

    def stop(self) -> None:
        """There are no more turns: whoever waits or sleeps wakes up."""
        self._stopped.set()


def backoff(attempt: int, longest: float, draw: random.Random) -> float:
    """Seconds before attempt + 1: random up to `2^attempt / 2`, at most `longest`.

    attempt: from 0. Random, so that threads that failed together do not come back
    together (Brooker: Exponential backoff and jitter, 2015).
    """
    return draw.uniform(0, min(longest, 0.5 * 2 ** min(attempt, 30)))


def retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for; None if it is absent or malformed.

    >>> retry_after("2"), retry_after("soon"), retry_after("-1")
    (2.0, None, None)
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
