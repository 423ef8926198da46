"""What is to be forgotten, and data sets without it.

    request = read_request(users=["42", "17"])
    request.check(data)                          # unknown, twice, everybody: ValueError
    forgotten = Forgotten.of(request)
    forgotten.save("runs/b/forgotten.json")      # hashes of ids, no ids
    data = forgotten.remove(data)                # neither row nor interaction is left

The list outlives the data: `--without forgotten.json` leaves the same users, items and
interactions out of every later training, also where they still are in the source.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.recsys.interactions import Interactions, rows_of
from apps.recsys.reading import Columns, read
from apps.recsys.splits import PARTS, Dataset, Times
from sparsekit import atomic

FORMAT, VERSION = "sparsekit.forgotten", 1
SHOWN = 5  # ids in an error message
Pair = tuple[str, str]


@dataclass(frozen=True)
class Request:
    """Ids of users, of items, and (user, item) interactions to forget."""

    users: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()

    def check(self, data: Dataset) -> None:
        """ValueError if it is empty, names something twice, or what `data` does not
        have, or if nothing would be left."""
        if not (self.users or self.items or self.pairs):
            raise ValueError("nothing to forget: give users, items or interactions")
        for what, ids, known in (
            ("user", self.users, data.user_ids),
            ("item", self.items, data.item_ids),
        ):
            refuse_twice(what, ids)
            there = set(known)
            found = [name if name in there else None for name in ids]
            refuse_unknown(what, ids, found, data.name)
            if len(ids) == len(known):
                raise ValueError(
                    f"these are all {len(ids):,} {what}s of {data.name}: nothing is "
                    "left to recommend from; delete the model"
                )
        refuse_twice("interaction", self.pairs)
        if self.pairs:
            pairs = interactions_of(data)
            found = [pair if pair in pairs else None for pair in self.pairs]
            refuse_unknown("interaction", self.pairs, found, data.name)


def read_request(
    users: Sequence[str] = (), items: Sequence[str] = (),
    interactions: str | Path | None = None, columns: Columns | None = None,
) -> Request:  # fmt: skip
    """From words of a command line.

    users, items: ids, or one .txt file with an id a line. interactions: a file that
    `reading.read` reads; columns but those of users and items do not matter.

    Raises ValueError that names the file, for one without a row too; FileNotFoundError.
    """
    pairs = () if interactions is None else _pairs(Path(interactions), columns)
    return Request(id_list(users), id_list(items), pairs)


def _pairs(path: Path, columns: Columns | None) -> tuple[Pair, ...]:
    log = read(path, replace(columns or Columns(), rating=None, timestamp=None))
    pairs = zip(log.user_ids[log.users], log.item_ids[log.items], strict=True)
    return tuple((str(user), str(item)) for user, item in pairs)


def interactions_of(data: Dataset) -> set[Pair]:
    """(user id, item id) of all three parts."""
    found: set[Pair] = set()
    for name in PARTS:
        part = data.part(name)
        users = np.repeat(data.user_ids, np.diff(part.indptr))
        found |= set(zip(users, data.item_ids[part.indices], strict=True))
    return found


@dataclass(frozen=True)
class Forgotten:
    """A list of what was forgotten, as keyed hashes.

    users, items, pairs: sets of hexadecimal BLAKE2b hashes with `salt` as their key.
    Whoever has the list and an id can tell whether the id is in it; nobody can read
    the ids from it unless they can be guessed.
    """

    salt: str
    users: frozenset[str] = frozenset()
    items: frozenset[str] = frozenset()
    pairs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, request: Request, earlier: "Forgotten | None" = None) -> "Forgotten":
        """The list of a request, and of all before it."""
        start = earlier or cls(secrets.token_hex(16))
        return replace(
            start,
            users=start.users | {start.hash("user", u) for u in request.users},
            items=start.items | {start.hash("item", i) for i in request.items},
            pairs=start.pairs | {start.hash("pair", *p) for p in request.pairs},
        )

    def hash(self, *words: str) -> str:
        """Of a kind and ids; the lengths make ("a", "bc") another than ("ab", "c")."""
        text = json.dumps(words).encode()
        key = bytes.fromhex(self.salt)
        return hashlib.blake2b(text, key=key, digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        content["salt"] = self.salt
        for name in ("users", "items", "pairs"):
            content[name] = sorted(getattr(self, name))
        atomic.write_text(Path(path), json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Forgotten":
        """What `save` wrote; ValueError for anything else, FileNotFoundError."""
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise ValueError(f"its format is {str(content['format'])[:40]!r}")
            lists = {n: _hashes(content[n]) for n in ("users", "items", "pairs")}
            if len(bytes.fromhex(content["salt"])) != 16:
                raise ValueError("the salt has not 16 bytes")
            return cls(content["salt"], **lists)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is no list of what was forgotten ({error}): use a "
                "forgotten.json that `sparsekit recsys forget` wrote"
            ) from None

    def kept(self, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the users and of the items that are not in the list, rising."""
        users = [self.hash("user", u) not in self.users for u in data.user_ids]
        items = [self.hash("item", i) not in self.items for i in data.item_ids]
        return np.flatnonzero(users), np.flatnonzero(items)

    def holds_pair(self, user: str, item: str) -> bool:
        return self.hash("pair", user, item) in self.pairs

    def passed(self, log: Interactions) -> Interactions:
        """The interactions of a log that are not in the list, so that nobody comes back
        with an update. ValueError if none is left."""
        users = np.array([self.hash("user", u) in self.users for u in log.user_ids])
        items = np.array([self.hash("item", i) in self.items for i in log.item_ids])
        stays = ~(users[log.users] | items[log.items])
        if self.pairs:
            for row in np.flatnonzero(stays):
                pair = log.user_ids[log.users[row]], log.item_ids[log.items[row]]
                stays[row] = not self.holds_pair(*pair)
        return rows_of(log, np.flatnonzero(stays), "forgotten")

    def remove(self, data: Dataset) -> Dataset:
        """`data` without users, items and interactions of the list, numbered anew.

        The others stay in the parts where they are. What the list names and `data` does
        not have is already gone.

        Raises ValueError if no training interaction is left.
        """
        users, items = self.kept(data)
        parts, times, gone = [], [], 0
        for which, name in enumerate(PARTS):
            part, stays = self._part(data, data.part(name), users, items)
            parts.append(part)
            gone += int((~stays).sum())
            if data.times is not None:
                times.append(data.times[which][stays])
        if parts[0].nnz == 0:
            raise ValueError(f"{data.name}: no training interaction is left")
        dropped = dict(data.dropped or {})
        if gone:
            dropped["forgotten"] = dropped.get("forgotten", 0) + gone
        train, valid, test = parts
        return replace(
            data, train=train, valid=valid, test=test, dropped=dropped,
            user_ids=data.user_ids[users], item_ids=data.item_ids[items],
            times=Times(*times) if times else None,
            titles=None if data.titles is None else data.titles[items],
            user_table=_rows(data.user_table, users),
            item_table=_rows(data.item_table, items),
        )  # fmt: skip

    def _part(
        self, data: Dataset, part: sp.csr_array, users: np.ndarray, items: np.ndarray
    ) -> tuple[sp.csr_array, np.ndarray]:
        """A part with renumbered rows and columns, and which entries stay, [nnz]."""
        rows = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        columns = part.indices
        stays = np.isin(rows, users) & np.isin(columns, items)
        if self.pairs:
            for entry in np.flatnonzero(stays):
                pair = data.user_ids[rows[entry]], data.item_ids[columns[entry]]
                stays[entry] = not self.holds_pair(*pair)
        return chosen(part, stays, users, items), stays


def chosen(
    part: sp.csr_array, stays: np.ndarray, users: np.ndarray, items: np.ndarray
) -> sp.csr_array:
    """The entries that stay, in the given rows and columns, sorted; int32 indices.

    part: CSR [U, I] with sorted columns; stays: [nnz] bool, none outside of users and
    items, which rise.
    """
    lengths = np.bincount(
        np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))[stays],
        minlength=part.shape[0],
    )[users]
    number = np.zeros(part.shape[1], np.int32)
    number[items] = np.arange(len(items), dtype=np.int32)
    pointers = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    return sp.csr_array(
        (part.data[stays], number[part.indices[stays]], pointers),
        shape=(len(users), len(items)),
    )


def id_list(words: Sequence[str]) -> tuple[str, ...]:
    """Ids as they are given, or those of one .txt file with an id a line."""
    if len(words) != 1 or Path(words[0]).suffix != ".txt":
        return tuple(words)
    lines = Path(words[0]).read_text("utf-8-sig").splitlines()
    ids = tuple(line.strip() for line in lines if line.strip())
    if not ids:
        raise ValueError(f"{words[0]} holds no id")
    return ids


def _hashes(values: Any) -> frozenset[str]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError("users, items and pairs must be lists of hashes")
    return frozenset(values)


def refuse_unknown(
    what: str, names: Sequence[Any], found: Sequence[Any], where: str
) -> None:
    """ValueError that lists the names for which None was found."""
    missing = [n for n, hit in zip(names, found, strict=True) if hit is None]
    if missing:
        shown = ", ".join(repr(name)[:100] for name in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" * (len(missing) > SHOWN)
        raise ValueError(f"no {what} {shown}{more} in {where}")


def refuse_twice(what: str, names: Sequence[Any]) -> None:
    """ValueError for the first name that is there a second time."""
    if len(set(names)) < len(names):
        seen: set[Any] = set()
        for name in names:
            if name in seen:
                raise ValueError(f"{what} {name!r} is named twice")
            seen.add(name)


def _rows(table: Any, rows: np.ndarray) -> Any:
    return None if table is None else table.iloc[rows].reset_index(drop=True)
