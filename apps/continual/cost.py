"""What a training on a stream costs: FLOPs as they are spent."""

from collections.abc import Mapping

from torch import Tensor, nn

from sparsekit.accounting import forward_flops

Masks = Mapping[str, Tensor]


class TrainingFlops:
    """FLOPs of the examples that went through the model so far.

    With f the forward FLOPs of one example, absent weights skipped: an example that is
    back-propagated costs 3 f (forward, gradient of the activations, gradient of the
    weights) less the first layer's f, whose input needs no gradient; one that is not
    costs f. Replayed examples count like any other. A step in which a method reads the
    gradient of absent weights pays the dense weight gradient. This is what is needed,
    not what masked dense kernels execute.
    """

    def __init__(self, model: nn.Module, sample: Tensor):
        self.forward = forward_flops(model, sample)  # sample: one example
        self.first = next(name for name, f in self.forward.parameters.items() if f > 0)
        self.dense = self.forward.total
        self.total, self.back_propagated = 0, 0
        self.update({})

    def update(self, masks: Masks) -> None:
        """Takes the densities of new masks for what follows."""
        sparse = self.forward.sparse(masks)
        self.sparse = sparse.total
        self.backward = 2 * sparse.total - sparse.parameters[self.first]

    def add_forward(self, examples: int, back_propagated: bool) -> None:
        self.total += examples * self.sparse
        if back_propagated:
            self.total += examples * self.backward
            self.back_propagated += examples  # since the last `add_dense_gradient`

    def end_step(self, dense_gradient: bool) -> None:
        """After a step; dense_gradient: it computed that of absent weights too."""
        if dense_gradient:
            self.total += self.back_propagated * (self.dense - self.sparse)
        self.back_propagated = 0
