"""Erdős–Rényi-kernel densities as RigL's released code finds them, layer by layer."""

from math import prod


def erk(shapes: dict, sparsity: float, power: float, dense: tuple = ()) -> dict:
    dense_layers = set(dense)
    while True:
        divisor, rhs, raw = 0.0, 0.0, {}
        for name, shape in shapes.items():
            n_param = prod(shape)
            n_zeros = n_param * sparsity
            if name in dense_layers:
                rhs -= n_zeros
            else:
                rhs += n_param - n_zeros
                raw[name] = (sum(shape) / n_param) ** power
                divisor += raw[name] * n_param
        if not raw:
            return dict.fromkeys(shapes, 1.0)
        epsilon = rhs / divisor
        largest = max(raw, key=lambda name: raw[name])
        if raw[largest] * epsilon <= 1:
            break
        dense_layers.add(largest)
    return {n: 1.0 if n in dense_layers else epsilon * raw[n] for n in shapes}
