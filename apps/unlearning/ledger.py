"""The ledger: the map of personal data, and what was asked and done about it.

    with Ledger(folder / "ledger.sqlite") as ledger:
        request = ledger.ask("a1f3", "2026-11-28T10:00:00Z")
        batch = ledger.begin([request], base=1, settings={}, at="2026-11-28T10:01:00Z")

Every method that writes is one transaction, on the disk when it returns. A request is
in one of five states, and its log only grows:

    received -> running -> done -> verified
                   |         |
                   +---------+---> failed -> received, when it is asked again
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from apps.unlearning.ledger_data import DataMap

NEXT = {
    None: ("received",),
    "received": ("running",),
    "running": ("done", "failed"),
    "done": ("verified", "failed"),
    "failed": ("received",),
    "verified": (),
}
_BATCH = "id, state, settings, base, result, facts, audit, started, finished"


@dataclass(frozen=True)
class Batch:
    """Requests that are handled by one unlearning run.

    settings: method, options, seed; facts: what the run measured of itself; audit: what
    the audit found; base: the model before, result: the one after.
    """

    id: int
    state: str
    settings: dict[str, Any]
    base: int
    result: int | None
    facts: dict[str, Any]
    audit: dict[str, Any]
    started: str
    finished: str | None


@dataclass(frozen=True)
class State:
    """One line of a request's log."""

    request: str
    state: str
    at: str
    note: str


class Ledger(DataMap):
    """Requests, their log, the batches they are handled in, the receipts."""

    # requests

    def ask(self, subject: str, at: str) -> str:
        """Receives a subject's request; the request's id.

        The same request twice is one: while a request of the subject covers all its
        records, its id is returned and nothing is added. After `failed` it is received
        again. Raises ValueError for an unknown subject.
        """
        with self.transaction():
            records = set(self.records_of(subject))
            for (request,) in self._all(
                "SELECT requests.id FROM requests JOIN subjects ON subjects.id = "
                "subject WHERE name = ? ORDER BY requests.id", subject,
            ):  # fmt: skip
                if records <= set(self.records_asked(str(request))):
                    if self.state(request) == "failed":
                        self._move(request, "received", at, "asked again")
                    return str(request)
            request = f"r-{secrets.token_hex(8)}"
            self._db.execute(
                "INSERT INTO requests SELECT ?, id FROM subjects WHERE name = ?",
                (request, subject),
            )
            self._many(
                "INSERT INTO request_records VALUES (?, ?)",
                ((request, record) for record in records),
            )
            self._move(request, "received", at, "")
            return request

    def records_asked(self, request: str) -> list[int]:
        """The records that a request names, ascending."""
        rows = self._all(
            "SELECT record FROM request_records WHERE request = ? ORDER BY record",
            request,
        )
        return [row[0] for row in rows]

    def state(self, request: str) -> str | None:
        row = self._one(
            "SELECT state FROM states WHERE request = ? ORDER BY id DESC LIMIT 1",
            request,
        )
        return None if row is None else str(row[0])

    def log(self, request: str | None = None) -> list[State]:
        """All lines, or those of a request, oldest first."""
        rows = self._all(
            "SELECT request, state, at, note FROM states "
            "WHERE ?1 IS NULL OR request = ?1 ORDER BY id",
            request,
        )
        return [State(*row) for row in rows]

    def latest(self) -> str:
        """The latest time in the log; "" if it is empty."""
        (found,) = self._all("SELECT max(at) FROM states")
        return found[0] or ""

    def requests(self, state: str | None = None) -> list[str]:
        """Ids of requests, in the order of their reception."""
        rows = self._all("SELECT request FROM states GROUP BY request ORDER BY min(id)")
        found = [str(row[0]) for row in rows]
        return [r for r in found if state is None or self.state(r) == state]

    def _move(self, request: str, state: str, at: str, note: str) -> None:
        now = self.state(request)
        if state not in NEXT[now]:
            raise ValueError(f"request {request} is {now}: it cannot become {state}")
        self._db.execute(
            "INSERT INTO states (request, state, at, note) VALUES (?, ?, ?, ?)",
            (request, state, at, note),
        )

    # batches

    def open_batch(self) -> Batch | None:
        """The batch that is running, or done and not yet audited."""
        return self._batch("WHERE state IN ('running', 'done')")

    def batch(self, number: int) -> Batch:
        found = self._batch("WHERE id = ?", number)
        if found is None:
            raise ValueError(f"there is no batch {number}")
        return found

    def batches(self) -> list[Batch]:
        rows = self._all("SELECT id FROM batches ORDER BY id")
        return [self.batch(row[0]) for row in rows]

    def _batch(self, where: str, *values: Any) -> Batch | None:
        row = self._one(f"SELECT {_BATCH} FROM batches {where}", *values)
        if row is None:
            return None
        number, state, settings, base, result, facts, audit, started, finished = row
        return Batch(
            number, state, json.loads(settings), base, result,
            json.loads(facts or "{}"), json.loads(audit or "{}"), started, finished,
        )  # fmt: skip

    def requests_of(self, batch: int) -> list[str]:
        rows = self._all(
            "SELECT request FROM batch_requests WHERE batch = ? ORDER BY request", batch
        )
        return [str(row[0]) for row in rows]

    def begin(
        self, requests: Sequence[str], base: int, settings: dict[str, Any], at: str
    ) -> Batch:
        """Received requests become one running batch."""
        with self.transaction():
            row = self._db.execute(
                "INSERT INTO batches (state, settings, base, started) "
                "VALUES ('running', ?, ?, ?)", (json.dumps(settings), base, at),
            )  # fmt: skip
            number = int(row.lastrowid or 0)
            for request in requests:
                self._db.execute(
                    "INSERT INTO batch_requests VALUES (?, ?)", (number, request)
                )
                self._move(request, "running", at, f"batch {number}")
        return self.batch(number)

    def finish(
        self, batch: Batch, file: tuple[str, str, int], trained_on: Iterable[int],
        facts: dict[str, Any], at: str,
    ) -> None:  # fmt: skip
        """The unlearned model is there: file = (path, SHA-256, bytes)."""
        with self.transaction():
            result = self._add(*file, "unlearned", at, [batch.base], trained_on)
            self._db.execute(
                "UPDATE batches SET state = 'done', result = ?, facts = ?, "
                "finished = ? WHERE id = ?",
                (result, json.dumps(facts), at, batch.id),
            )
            for request in self.requests_of(batch.id):
                self._move(request, "done", at, f"batch {batch.id}")

    def fail(
        self, batch: Batch, why: str, at: str, audit: dict[str, Any] | None = None
    ) -> None:
        """The batch came to nothing: the model before stays, the one after is retired.

        The requests can be asked again, with another method.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE batches SET state = 'failed', audit = ? WHERE id = ?",
                (json.dumps((audit or {}) | {"why": why}), batch.id),
            )
            self._retire([] if batch.result is None else [batch.result])
            for request in self.requests_of(batch.id):
                self._move(request, "failed", at, why)

    def settle(
        self, batch: Batch, audit: dict[str, Any], receipt: str, retire: Sequence[int],
        note: str, at: str,
    ) -> int:  # fmt: skip
        """The audit passed: the new model is current, the old files are to be wiped.

        receipt: its text, kept here; the file is a copy of it. Returns its number.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE batches SET state = 'verified', audit = ? WHERE id = ?",
                (json.dumps(audit), batch.id),
            )
            self._retire(retire)
            self._set({"current": str(batch.result)})
            row = self._db.execute(
                "INSERT INTO receipts (batch, content) VALUES (?, ?)",
                (batch.id, receipt),
            )
            for request in self.requests_of(batch.id):
                self._move(request, "verified", at, note)
            return int(row.lastrowid or 0)

    def absent(self, request: str, retire: Sequence[int], note: str, at: str) -> None:
        """No record of the request is in the current model: nothing is unlearned."""
        with self.transaction():
            self._retire(retire)
            for state in ("running", "done", "verified"):
                self._move(request, state, at, note)

    # receipts

    def receipts(self) -> list[tuple[int, int, str]]:
        """(number, batch, text), oldest first."""
        return self._all("SELECT number, batch, content FROM receipts ORDER BY number")
