"""Sparse codes over a dictionary that all rows of a table share, learned for scores."""

import numpy as np

from apps.recsys.tables import Dictionary, encode

SAMPLE = 4_000  # rows that the atoms are learned from
ROUNDS = 8


def sparse_codes(
    matrix: np.ndarray,
    atoms: int,
    active: int,
    importance: np.ndarray | None = None,
    *,
    weights: str = "int8",
    kind: str = "float16",
    seed: int = 0,
) -> Dictionary:
    """Each row as a sum of `active` out of `atoms` vectors.

    `min |X - W A|^2` over A and W with `active` non-zeros a row, by the method of
    optimal directions: orthogonal matching pursuit finds W for the A at hand, least
    squares the A for that W, and an atom that nobody uses becomes the row that is
    worst approximated.

    Args:
        matrix: [n, d] float.
        importance: [d], of a squared error in each column; default: all 1. For vectors
            turned to their principal axes it is the mean square of the other side's
            column: then the error of scores is what is made small.
        weights, kind: how weights and atoms are stored.
        seed: of the rows that the atoms begin as.

    Raises ValueError unless 1 <= active <= atoms <= n and active <= d.

    Engan, Aase, Husøy: Method of optimal directions for frame design, 1999; Kasalický
    et al.: CompresSAE, 2025, for the use. Differs from the latter, which trains an
    autoencoder whose code keeps the largest of its activations.
    """
    n, d = matrix.shape
    if not 1 <= active <= atoms <= n or active > d:
        raise ValueError(
            f"active <= atoms <= {n} rows and active <= {d} dimensions, got active "
            f"{active} and atoms {atoms}"
        )
    rng = np.random.default_rng(seed)
    scale = np.sqrt(np.ones(d) if importance is None else importance)
    rows = matrix.astype(np.float64) * scale

    learned = rows[rng.choice(n, min(n, SAMPLE), replace=False)]
    dictionary = _unit(rows[rng.choice(n, atoms, replace=False)], rng)
    for _ in range(ROUNDS):
        chosen, found = pursue(learned, dictionary, active)
        spread = np.zeros((len(learned), atoms))
        np.put_along_axis(spread, chosen, found, axis=1)
        fitted = np.linalg.lstsq(spread, learned, rcond=None)[0]
        unused = np.flatnonzero(~spread.any(0))
        worst = np.argsort(-((learned - spread @ fitted) ** 2).sum(1))
        fitted[unused] = learned[worst[: len(unused)]]
        dictionary = _unit(fitted, rng)
    parts = [
        pursue(rows[start : start + SAMPLE], dictionary, active)
        for start in range(0, n, SAMPLE)
    ]
    chosen, found = (np.concatenate(part) for part in zip(*parts, strict=True))
    vectors = dictionary / np.where(scale > 0, scale, 1)
    return Dictionary.of(chosen, encode(found, weights), encode(vectors, kind))


def pursue(
    rows: np.ndarray, dictionary: np.ndarray, active: int
) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal matching pursuit, all rows at once.

    rows: [n, d]; dictionary: [m, d], rows of length 1. Returns atoms [n, active] and
    their weights: again and again the atom most like what is left of a row is added,
    and the weights of all its atoms are fitted anew.

    >>> chosen, weights = pursue(np.array([[0.0, 2.0, 1.0]]), np.eye(3), 2)
    >>> chosen.tolist(), weights.round(6).tolist()
    ([[1, 2]], [[2.0, 1.0]])

    Pati, Rezaiifar, Krishnaprasad: Orthogonal matching pursuit, 1993.
    """
    n = len(rows)
    gram, products = dictionary @ dictionary.T, rows @ dictionary.T
    left, every = products.copy(), np.arange(n)
    chosen = np.zeros((n, active), np.int64)
    weights = np.zeros((n, 0))
    for j in range(active):
        likeness = np.abs(left)
        likeness[every[:, None], chosen[:, :j]] = -1
        chosen[:, j] = likeness.argmax(1)
        mine = chosen[:, : j + 1]
        # Atoms that depend on each other share their weight.
        normal = gram[mine[:, :, None], mine[:, None]] + 1e-9 * np.eye(j + 1)
        wanted = np.take_along_axis(products, mine, axis=1)
        weights = np.linalg.solve(normal, wanted[:, :, None])[:, :, 0]
        left = (
            rows - np.einsum("nj,njd->nd", weights, dictionary[mine])
        ) @ dictionary.T
    return chosen, weights


def _unit(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of length 1; a row of zeros points anywhere."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.where(lengths > 0, rows, rng.standard_normal(rows.shape))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
