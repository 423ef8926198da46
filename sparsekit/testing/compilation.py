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
) -> None:
    """A compiled model trains with exact counts and zeros, and is compiled once.

    With a backend that runs the same kernels in the same order, "aot_eager" or
    "eager", the result equals that of the plain model bit for bit.

    Raises:
        AssertionError: naming the step and the tensor, or the number of compilations.
    """
    compilations = 0

    def counted(graph: torch.fx.GraphModule, inputs: list) -> object:
        nonlocal compilations
        compilations += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    def compiler(model: nn.Module) -> Callable:
        return torch.compile(model, backend=counted, fullgraph=True)

    torch._dynamo.reset()
    compiled = Training(method, sparsifier, compiler=compiler)
    for t in range(n_steps):
        compiled.step(t)
        check_counts(compiled, t, f"after step {t} of the compiled model")
        check_zeros(compiled, f"after step {t} of the compiled model")
    require(compilations == 1, f"{method}: the model was compiled {compilations} times")
    if backend != "inductor":  # which fuses, and so rounds differently
        plain = Training(method, sparsifier).run(n_steps)
        require_equal(
            compiled.tensors(), plain.tensors(), f"{method}: compiled model differs"
        )
