"""Synaptic flow of a chain of matrices, path by path."""

from itertools import product
from math import prod


def path_scores(layers: list[list[list[float]]]) -> list[list[list[float]]]:
    """Scores of |weights| (out, in): the sum over paths through it of their products.

    A path picks one neuron in every layer of neurons; inputs are 1, outputs are summed.
    """
    sizes = [len(layers[0][0])] + [len(layer) for layer in layers]
    scores = [[[0.0] * len(row) for row in layer] for layer in layers]
    for path in product(*(range(size) for size in sizes)):
        edges = list(zip(path[1:], path[:-1], strict=True))
        value = prod(abs(layers[k][o][i]) for k, (o, i) in enumerate(edges))
        for k, (o, i) in enumerate(edges):
            scores[k][o][i] += value
    return scores
