"""Recipes for finished vectors: nothing is trained again."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import scipy.sparse as sp

from apps.recsys import fold_in
from apps.recsys.compression import pruning
from apps.recsys.compression.candidate import Candidate, Recipe, Subject, choose
from apps.recsys.compression.codes import sparse_codes
from apps.recsys.compression.packed import PackedFactors
from apps.recsys.compression.principal import random_rotation
from apps.recsys.compression.rounding import fitted
from apps.recsys.compression.worth import bits_within
from apps.recsys.models.factors import Factors
from apps.recsys.scoring import FoldIn
from apps.recsys.tables import Columns, Sparse, encode
from apps.recsys.tables.bits import width

RANKS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
MOST_ACTIVE = 12  # atoms a row: the time of the pursuit grows with the square
COLUMN = 9  # bytes that `Columns` stores for a column
LIST = 50  # items of a user whose scores are kept by `fitted_bits`
EVERYWHERE = (0.1, 1.0)  # weight of all scores of a user together, beside the list's
FEWEST_BITS = 2  # of a row's numbers: at 1, fewer dimensions are better
UNSEEN, L2 = (0.01, 0.1, 1.0), (1.0, 10.0, 100.0)


def row_bytes(d: int, kind: str) -> int:
    """Of a row of d numbers; integers with their scale.

    >>> [row_bytes(64, kind) for kind in ("float32", "float16", "int8", "int4")]
    [256, 128, 66, 34]
    """
    if kind.startswith("float"):
        return d * int(kind.removeprefix("float")) // 8
    return width(d, int(kind.removeprefix("int"))) + 2


def fitting_rank(n: int, most: int, budget: int, kind: str) -> int:
    """The most dimensions of n rows that fit; 0 if none does."""
    fits = [d for d in range(1, most + 1) if n * row_bytes(d, kind) <= budget]
    return max(fits, default=0)


def encoded(factors: Factors, kind: str) -> PackedFactors:
    return PackedFactors(encode(factors.users, kind), encode(factors.items, kind))


def fewer_bits(subject: Subject, budget: int) -> Iterator[Candidate]:
    """All dimensions in the most bits that fit, as they are and turned at random."""
    factors = subject.factors
    d = factors.items.shape[1]
    for kind in ("float32", "float16", *(f"int{bits}" for bits in range(8, 0, -1))):
        if n_rows(factors) * row_bytes(d, kind) <= budget:
            break
    else:
        return
    yield Candidate({"kind": kind}, encoded(factors, kind))
    if kind.startswith("int"):
        turned = random_rotation(factors)
        yield Candidate(
            {"kind": kind, "turned": "at random"},
            encoded(turned, kind),
        )


def truncated(*kinds: str) -> Callable[[Subject, int], Iterator[Candidate]]:
    """The most principal axes that fit, as they are and turned at random."""

    def candidates(subject: Subject, budget: int) -> Iterator[Candidate]:
        factors = subject.factors
        for kind in kinds:
            rank = fitting_rank(n_rows(factors), factors.items.shape[1], budget, kind)
            if rank == 0:
                continue
            cut = subject.first(rank)
            settings = {"rank": rank, "kind": kind}
            yield Candidate(settings, encoded(cut, kind))
            if kind in ("int6", "int5", "int4", "int3", "int2"):
                turned = random_rotation(cut)
                yield Candidate(
                    settings | {"turned": "at random"},
                    encoded(turned, kind),
                )

    return candidates


def bits_by_worth(subject: Subject, budget: int) -> Iterator[Candidate]:
    """Principal axes, each in as many bits as the error of scores says."""
    for rank in ranks(subject):
        cut = subject.first(rank)
        found = bits_within(cut, budget - 2 * COLUMN * rank)
        if found is None:
            continue
        users, items = (
            Columns.of(side, bits)
            for side, bits in zip((cut.users, cut.items), found, strict=True)
        )
        yield Candidate({"rank": rank}, PackedFactors(users, items))


def fitted_bits(subject: Subject, budget: int) -> Iterator[Candidate]:
    """The best table of bits by column and of bits with a scale a row, each rounded
    anew so that the scores of every user's best items stay."""
    lists = subject.once("best items", partial(_best_items, subject))
    for plain in (BY_WORTH, BY_SIDE):
        start = choose(plain, subject, budget)
        if start is None:
            continue
        packed = start.best.packed
        for weight in EVERYWHERE:
            tables = fitted(
                subject.factors, packed.users, packed.items, lists,
                weight * LIST / lists.shape[1],
            )  # fmt: skip
            settings = start.best.settings | {"everywhere": weight}
            yield Candidate(settings, PackedFactors(*tables))


def _best_items(subject: Subject) -> sp.csr_array:
    """CSR [U, I]: what the dense model ranks first among what is no training item."""
    train = subject.data.train
    n_users, n_items = train.shape
    best = subject.factors.best(np.arange(n_users), min(LIST, n_items), train)
    there = best >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(1))])
    ones = np.ones(offsets[-1], np.float32)
    return sp.csr_array((ones, best[there], offsets), shape=train.shape)


def bits_by_side(subject: Subject, budget: int) -> Iterator[Candidate]:
    """Principal axes turned at random; users and items in bits of their own, which
    differ by at most 1, and with a scale a row."""
    n_users, n_items = len(subject.factors.users), len(subject.factors.items)
    most = subject.factors.items.shape[1]
    for rank in ranks(subject):
        if rank < most and 2 * (n_users + n_items) * row_bytes(rank, "int8") < budget:
            continue  # there is room for more than this many dimensions
        cut, fits = random_rotation(subject.first(rank)), []
        for bits in range(8, FEWEST_BITS - 1, -1):
            for other in range(min(bits + 1, 8), max(bits - 2, FEWEST_BITS - 1), -1):
                sizes = (row_bytes(rank, f"int{b}") for b in (bits, other))
                fit = np.dot((n_users, n_items), tuple(sizes)) <= budget
                if fit and not any(a >= bits and b >= other for a, b in fits):
                    fits.append((bits, other))
        for bits, other in fits:
            kinds = {"users": f"int{bits}", "items": f"int{other}"}
            tables = (
                encode(cut.users, kinds["users"]),
                encode(cut.items, kinds["items"]),
            )
            yield Candidate({"rank": rank} | kinds, PackedFactors(*tables))


def items_only(subject: Subject, budget: int) -> Iterator[Candidate]:
    """`bits_by_worth` of the items; a user's vector comes from the history.

    Only with a validation part: it chooses how histories are folded in.
    """
    if not subject.data.valid.nnz:
        return
    for rank in ranks(subject):
        cut = subject.first(rank)
        found = bits_within(cut, budget - COLUMN * rank, stored_users=False)
        if found is None:
            continue
        items = Columns.of(cut.items, found[1])
        fold = subject.once(f"fold-in {rank}", partial(_fold_in, subject, rank))
        yield Candidate({"rank": rank}, PackedFactors(None, items, fold))


def _fold_in(subject: Subject, rank: int) -> FoldIn:
    items, data = subject.first(rank).items, subject.data
    return fold_in.choose(items, data, unseen=UNSEEN, l2=L2, seed=subject.seed).best


def pruned(axes: str) -> Callable[[Subject, int], Iterator[Candidate]]:
    """The largest numbers, of the table or of each row, in three kinds of values."""

    def candidates(subject: Subject, budget: int) -> Iterator[Candidate]:
        factors = subject.factors if axes == "trained" else subject.turned
        for values in ("float16", "int8", "int4"):
            for by in ("table", "row"):
                tables = [
                    _pruned(side, budget * len(side) // n_rows(factors), values, by)
                    for side in (factors.users, factors.items)
                ]
                if None in tables:
                    continue
                users, items = tables
                density = (users.nnz + items.nnz) / (users.d * n_rows(factors))
                yield Candidate(
                    {"values": values, "by": by, "density": round(density, 4)},
                    PackedFactors(users, items),
                )

    return candidates


def _pruned(
    matrix: np.ndarray, budget: int, values: str, by: pruning.By
) -> Sparse | None:
    n_kept = pruning.fitting(*matrix.shape, budget, values, by)
    if n_kept == 0:
        return None
    return Sparse.of(matrix, pruning.largest(matrix, n_kept, by), values)


def shared_dictionary(subject: Subject, budget: int) -> Iterator[Candidate]:
    """Sparse codes of principal axes; a dictionary for users and one for items."""
    n = n_rows(subject.factors)
    for rank in (r for r in ranks(subject) if r in (16, 32, 64)):
        cut = subject.first(rank)
        sides = (cut.users, cut.items)
        for atoms in (64, 128, 256):
            left = budget - 2 * atoms * rank * 2
            active = min(left // n // 2 - 1, MOST_ACTIVE)  # a byte each, and a scale
            if active < 1 or atoms > min(map(len, sides)):
                continue
            tables = [
                sparse_codes(side, atoms, active, (other**2).mean(0), seed=subject.seed)
                for side, other in (sides, sides[::-1])
            ]
            yield Candidate(
                {"rank": rank, "atoms": atoms, "active": active},
                PackedFactors(*tables),
            )


BY_WORTH = Recipe(
    "bits by worth", "principal axes, each in bits of its own", bits_by_worth
)
BY_SIDE = Recipe("bits by side", "principal axes, one scale a row", bits_by_side)


def ranks(subject: Subject) -> Iterator[int]:
    d = subject.turned.items.shape[1]
    return (rank for rank in sorted({*RANKS, d}) if rank <= d)


def n_rows(factors: Factors) -> int:
    return len(factors.users) + len(factors.items)


FINISHED = (
    Recipe("fewer bits", "all dimensions, one scale a row", fewer_bits),
    Recipe("svd", "principal axes, float32", truncated("float32")),
    Recipe("svd int8", "principal axes, int8", truncated("int8")),
    Recipe("svd int4", "principal axes, int4", truncated("int4")),
    Recipe("svd int", "principal axes, 3 to 8 bits",
           truncated(*(f"int{bits}" for bits in range(8, 2, -1)))),
    BY_WORTH,
    Recipe("fitted bits", "bits chosen so that users' best items keep their scores",
           fitted_bits),
    Recipe("items only", "bits by worth; users from their histories", items_only),
    Recipe("pruned", "the largest numbers as trained", pruned("trained")),
    Recipe("pruned axes", "the largest numbers of principal axes", pruned("principal")),
    Recipe("dictionary", "sparse codes of principal axes", shared_dictionary),
)  # fmt: skip
