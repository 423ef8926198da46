"""Recipes that train: smaller vectors, and tables that are sparse while they learn."""

from collections.abc import Callable, Iterator
from functools import partial

from apps.recsys.compression import pruning
from apps.recsys.compression.candidate import Candidate, Recipe, Subject
from apps.recsys.compression.finished import encoded, fitting_rank, n_rows
from apps.recsys.compression.packed import PackedFactors, PackedGraph
from apps.recsys.models.factors import Factors
from apps.recsys.models.lightgcn import LightGCN
from apps.recsys.result import Result
from apps.recsys.tables import Sparse

DIMS = (2, 4, 8, 12, 16, 24, 32, 48, 64)


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


def sparse(
    method: str, **options: int | float | str
) -> Callable[[Subject, int], Iterator[Candidate]]:
    """The learned table under a sparsity method, as many weights as fit."""

    def candidates(subject: Subject, budget: int) -> Iterator[Candidate]:
        n, d = n_rows(subject.factors), subject.factors.items.shape[1]
        for values in ("float16", "int8"):
            n_kept = pruning.fitting(n, d, budget, values)
            if n_kept == 0:
                continue
            sparsity = 1 - n_kept / (n * d)
            result = subject.train(method=method, sparsity=sparsity, options=options)
            settings = {"values": values, "density": round(n_kept / (n * d), 4)}
            yield Candidate(settings, packed_table(result, values))

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
    if isinstance(network, LightGCN):
        return PackedGraph(users, items, network.layers)
    return PackedFactors(users, items)


TRAINED = (
    Recipe("smaller", "fewer dimensions, trained, float32", smaller("float32"), True),
    Recipe("smaller int8", "fewer dimensions, trained, int8", smaller("int8"), True),
    Recipe("static", "random places, trained", sparse("static"), True),
    Recipe("gradual", "pruned while it learns", sparse("gradual"), True),
    Recipe("rigl", "weights that move by gradient", sparse("rigl"), True),
    Recipe("dsl", "dynamic sparse learning", sparse("dsl"), True),
)  # fmt: skip
