"""Lists for many users into a Parquet or CSV file, a block of users at a time.

    rows = write("lists.parquet", load("model.safetensors"), k=20)
    rows = write("lists.csv", artefact, filters=Filters(where={"category": "Mugs"}))

One row a recommendation: user, rank (from 1), item, score, source (see
`Recommendations`). Neither users x items nor all lists are ever in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import scipy.sparse as sp

from apps.recsys.artefact import Artefact
from apps.recsys.export import matrix_of
from apps.recsys.fold_in import folded
from apps.recsys.recommender import BadQuestion, Filters, Recommender, Unknown
from apps.recsys.scoring import FactorScorer, LinearScorer, best
from apps.recsys.topk import Ranking, top_k_factors, top_k_scores
from sparsekit import atomic

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 2048  # users
SOURCES = ("trained", "folded", "popularity")
# Users [B], their histories and what is masked -> lists, and [B] bool: no score.
Rank = Callable[
    [np.ndarray, sp.csr_array, sp.csr_array | None], tuple[Ranking, np.ndarray]
]


def write(
    path: str | Path,
    artefact: Artefact,
    k: int = 10,
    users: Sequence[str] | None = None,
    *,
    exclude_seen: bool = True,
    filters: Filters | None = None,
    unknown: Unknown = "raise",
    block: int = BLOCK,
) -> int:
    """Create or replace a file with the k best items of each user; the number of rows.

    path: .parquet or .csv. users: ids, default all of the file. exclude_seen: whether
    items of the history are left out. filters: what items must be; unknown: about
    their ids. The lists are those of `Recommender.recommend`.

    Raises BadQuestion for a user that the file does not have and for filters that make
    no sense, ValueError for another kind of file and for k < 1.
    """
    path = Path(path)
    writer_of = _writer(path)
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, got {k} and {block}")
    recommender = Recommender(artefact)
    allowed = np.flatnonzero(recommender.passing(filters or Filters(), unknown))
    if not len(allowed):
        raise BadQuestion("no item passes all filters")
    rows = np.arange(len(artefact.user_ids))
    if users is not None:
        rows = np.array([recommender.row_of(user) for user in users], np.int64)
    names = _names(artefact)
    blocks = lists(
        artefact, rows, k, exclude_seen=exclude_seen, allowed=allowed, block=block
    )
    written = 0

    def fill(file: BinaryIO) -> None:
        nonlocal written
        with writer_of(file, _schema()) as writer:
            for chosen, found, sources in blocks:
                table = _table(artefact, names, chosen, found, sources)
                writer.write_table(table)
                written += table.num_rows

    atomic.write(path, fill)
    return written


def lists(
    artefact: Artefact,
    rows: np.ndarray,
    k: int,
    *,
    exclude_seen: bool = True,
    allowed: np.ndarray | None = None,
    block: int = BLOCK,
) -> Iterator[tuple[np.ndarray, Ranking, np.ndarray]]:
    """Blocks of the users, [B]; their k best items; [B] numbers in SOURCES.

    rows: indices of users. allowed: rising indices of items, default all.
    """
    if allowed is None:
        allowed = np.arange(len(artefact.item_ids))
    history = matrix_of(artefact.history, len(artefact.item_ids))
    rank = _ranking(artefact, k, allowed)
    popularity = artefact.popularity[allowed].astype(np.float32)
    model = artefact.model
    is_trained = isinstance(model, FactorScorer) and model.users is not None
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        own = history[chosen]
        seen = own[:, allowed] if exclude_seen else None
        found, silent = rank(chosen, own, seen)
        _with_popularity(popularity, found, np.flatnonzero(silent), seen)
        found.items[found.items >= 0] = allowed[found.items[found.items >= 0]]
        yield chosen, found, np.where(silent, 2, 0 if is_trained else 1)


def _writer(path: Path) -> "Callable[[BinaryIO, pa.Schema], Any]":
    """What writes tables into a file of that kind."""
    from pyarrow.csv import CSVWriter
    from pyarrow.parquet import ParquetWriter

    writers = {".parquet": ParquetWriter, ".csv": CSVWriter}
    if path.suffix not in writers:
        raise ValueError(f"{path}: lists are .parquet or .csv")
    return writers[path.suffix]


def _ranking(artefact: Artefact, k: int, allowed: np.ndarray) -> Rank:
    """How users of a block are ranked. allowed: rising items; others are left out."""
    model = artefact.model
    if isinstance(model, FactorScorer):
        items = model.items.rows(slice(None))
        offered = items[allowed]

        def by_factors(
            users: np.ndarray, own: sp.csr_array, seen: sp.csr_array | None
        ) -> tuple[Ranking, np.ndarray]:
            if model.users is None:
                vectors = folded(model.fold_in, own, items)
                silent = ~vectors.any(1)
            else:
                vectors = model.users.rows(users)
                silent = np.diff(own.indptr) == 0
            return top_k_factors(vectors, offered, k, seen), silent

        return by_factors
    weights = _weights(model)

    def by_weights(
        users: np.ndarray, own: sp.csr_array, seen: sp.csr_array | None
    ) -> tuple[Ranking, np.ndarray]:
        silent = np.empty(len(users), bool)

        def scores(rows: np.ndarray) -> np.ndarray:
            found = (own[rows] @ weights).toarray()
            silent[rows] = ~found.any(1)
            return found[:, allowed]

        return top_k_scores(scores, k, seen, n_users=len(users)), silent

    return by_weights


def _weights(model: LinearScorer) -> sp.csr_array:
    matrix = matrix_of(model.weights, model.n_items)
    matrix.data = np.array(model.values, np.float32)
    return matrix


def _with_popularity(
    popularity: np.ndarray, found: Ranking, rows: np.ndarray, seen: sp.csr_array | None
) -> None:
    """Writes lists by popularity into these rows. seen: CSR [B, I], what is masked."""
    for row in rows:
        scores = popularity.copy()
        if seen is not None:
            scores[seen[[row]].indices] = -np.inf
        chosen = best(scores, found.items.shape[1])
        found.items[row] = -1
        found.items[row, : len(chosen)] = chosen
        found.scores[row, : len(chosen)] = scores[chosen]


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        {
            "user": pa.string(), "rank": pa.int32(), "item": pa.string(),
            "score": pa.float32(), "source": pa.string(),
        }
    )  # fmt: skip


def _names(artefact: Artefact) -> "pa.Array":
    import pyarrow as pa

    return pa.array(list(artefact.item_ids), pa.string())


def _table(
    artefact: Artefact,
    names: "pa.Array",
    users: np.ndarray,
    found: Ranking,
    sources: np.ndarray,
) -> "pa.Table":
    import pyarrow as pa

    rows, places = np.nonzero(found.items >= 0)
    user_names = pa.array([artefact.user_ids[row] for row in users], pa.string())
    columns = {
        "user": user_names.take(pa.array(rows)),
        "rank": pa.array(places + 1, pa.int32()),
        "item": names.take(pa.array(found.items[rows, places])),
        "score": pa.array(found.scores[rows, places]),
        "source": pa.array(SOURCES, pa.string()).take(pa.array(sources[rows])),
    }
    return pa.table(columns, schema=_schema())
