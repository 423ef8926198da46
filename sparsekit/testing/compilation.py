"""`torch.compile` of the model: moves need no new compilation."""

from collections.abc import Callable

import torch
from torch import nn

from sparsekit.method import Method
from sparsekit.sparsifier import Sparsifier
from sparsekit.testing.steps import check_counts, check_zeros
from sparsekit.testing.training import Training, require, require_equal


def check_compile(
    method: Method,
    n_steps: int = 13,
    sparsifier: type[Sparsifier] = Sparsifier,
    backend: str = "aot_eager",
    values: bool = False,
    compilations: int = 1,
) -> None:
    """A compiled model trains with exact counts and zeros, and is compiled once.

    With `values` its layers are in values mode, where the gradient of absent weights
    takes a second compilation.

    With a backend that runs the same kernels in the same order, "aot_eager" or
    "eager", the result equals that of the plain model bit for bit.

    Raises:
        AssertionError: naming the step and the tensor, or the number of compilations.
    """
    compiled_graphs = 0

    def counted(graph: torch.fx.GraphModule, inputs: list) -> object:
        nonlocal compiled_graphs
        compiled_graphs += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    def compiler(model: nn.Module) -> Callable:
        return torch.compile(model, backend=counted, fullgraph=True)

    torch._dynamo.reset()
    compiled = Training(method, sparsifier, compiler=compiler, values=values)
    for t in range(n_steps):
        compiled.step(t)
        check_counts(compiled, t, f"after step {t} of the compiled model")
        if not values:
            check_zeros(compiled, f"after step {t} of the compiled model")
    require(
        compiled_graphs == compilations,
        f"{method}: the model was compiled {compiled_graphs} times",
    )
    if backend != "inductor":  # which fuses, and so rounds differently
        plain = Training(method, sparsifier, values=values).run(n_steps)
        require_equal(
            compiled.tensors(), plain.tensors(), f"{method}: compiled model differs"
        )
