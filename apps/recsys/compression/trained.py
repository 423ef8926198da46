"""Recipes that train: smaller vectors, rows that share numbers, tables that are sparse
while they learn."""

from collections.abc import Callable, Iterator
from functools import partial

from apps.recsys.compression import pruning
from apps.recsys.compression.candidate import Candidate, Recipe, Subject
from apps.recsys.compression.finished import (
    encoded,
    fitting_rank,
    n_rows,
    row_bytes,
)
from apps.recsys.compression.packed import PackedFactors, PackedGraph
from apps.recsys.models.factors import Factors
from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.models.mf import MF
from apps.recsys.models.shared_rows import fewest, split
from apps.recsys.result import Result
from apps.recsys.tables import Hashed, QuotientRemainder, Sparse, Table, encode

VALUES = "int8"  # of shared rows and sparse tables: more numbers, at next to no loss
DIMS = (2, 4, 8, 12, 16, 24, 32, 48, 64)
# Options of dynamic sparse learning: as released, and what repairs it (the book says
# why): a move an epoch, by the summed gradient, each row with its own budget.
RELEASED = {"every": "7%", "end": "100%"}
REPAIRED = {
    "every": "1 epoch", "end": "75%", "gradient_steps": "1 epoch", "by_row": True,
}  # fmt: skip


def smaller(*kinds: str) -> Callable[[Subject, int], Iterator[Candidate]]:
    """The largest of DIMS that fits, trained from scratch."""

    def candidates(subject: Subject, budget: int) -> Iterator[Candidate]:
        n, most = n_rows(subject.factors), subject.factors.items.shape[1]
        for kind in kinds:
            rank = fitting_rank(n, most, budget, kind)
            dim = max((d for d in DIMS if d <= rank), default=0)
            if dim:
                factors = subject.once(f"dim {dim}", partial(_vectors, subject, dim))
                yield Candidate({"dim": dim, "kind": kind}, encoded(factors, kind))

    return candidates


def _vectors(subject: Subject, dim: int) -> Factors:
    return subject.train(dim=dim).model


def shared(sharing: str) -> Callable[[Subject, int], Iterator[Candidate]]:
    """A table whose rows share numbers while it learns, as many rows as fit."""

    def candidates(subject: Subject, budget: int) -> Iterator[Candidate]:
        shape, d = subject.data.shape, subject.factors.items.shape[1]
        stored = budget // row_bytes(d, VALUES)
        if stored >= sum(shape):
            return  # nothing has to be shared
        for n, share in zip(shape, split(shape, stored), strict=True):
            if share < fewest(n, sharing):
                return
        result = subject.train(sharing=sharing, stored_rows=stored)
        yield Candidate({"rows": stored}, packed_rows(result, VALUES))

    return candidates


def packed_rows(result: Result, kind: str) -> PackedFactors | PackedGraph:
    """The stored rows of a training of MF or LightGCN whose table shares them."""
    network, tables = result.network, []
    rows = network.embedding
    for n, (quotient, remainder) in zip(rows.shape, rows.tables(), strict=True):
        packed = encode(remainder, kind)
        if rows.sharing == "hashed":
            tables.append(Hashed(n, packed))
        else:
            how = rows.sharing
            tables.append(QuotientRemainder(n, encode(quotient, kind), packed, how))
    return _as_served(network, *tables)


def _as_served(network: MF, users: Table, items: Table) -> PackedFactors | PackedGraph:
    if isinstance(network, LightGCN):
        return PackedGraph(users, items, network.layers)
    return PackedFactors(users, items)


def sparse(
    method: str, **options: int | float | str
) -> Callable[[Subject, int], Iterator[Candidate]]:
    """The learned table under a sparsity method, as many weights as fit."""

    def candidates(subject: Subject, budget: int) -> Iterator[Candidate]:
        n, d = n_rows(subject.factors), subject.factors.items.shape[1]
        n_kept = pruning.fitting(n, d, budget, VALUES)
        if not 0 < n_kept < n * d:
            return  # nothing fits, or all of it
        sparsity = 1 - n_kept / (n * d)
        result = subject.train(
            method=method, sparsity=sparsity, options=options, patience=0
        )
        density = round(n_kept / (n * d), 4)
        yield Candidate({"density": density}, packed_table(result, VALUES))

    return candidates


def packed_table(result: Result, values: str) -> PackedFactors | PackedGraph:
    """The masked table of a training of MF or LightGCN, users and items apart."""
    network = result.network
    name = "embedding.weight"
    weight = network.state_dict()[name].float().cpu().numpy()
    mask = result.masks[name].cpu().numpy().astype(bool)
    cut = network.n_users
    users, items = (
        Sparse.of(weight[part], mask[part], values)
        for part in (slice(None, cut), slice(cut, None))
    )
    return _as_served(network, users, items)


TRAINED = (
    Recipe("smaller", "fewer dimensions, trained, float32", smaller("float32"), True),
    Recipe("smaller int8", "fewer dimensions, trained, int8", smaller("int8"), True),
    Recipe("hashed", "rows that are others' too, trained", shared("hashed"), True),
    Recipe("compositional", "rows as products of shared ones, trained",
           shared("product"), True),
    Recipe("static", "random places, trained", sparse("static"), True),
    Recipe("gradual", "pruned while it learns", sparse("gradual"), True),
    Recipe("rigl", "weights that move by gradient", sparse("rigl"), True),
    Recipe("dsl", "dynamic sparse learning, repaired", sparse("dsl", **REPAIRED), True),
    Recipe("dsl released", "dynamic sparse learning, as released",
           sparse("dsl", **RELEASED), True),
)  # fmt: skip
