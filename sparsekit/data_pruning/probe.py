"""One sample by plain backpropagation: what the fast pass must agree with.

`per_sample.gradient_norms` trusts the rules of the layers only as far as this probe of
its batch bears them out.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.data_pruning.rule import Rule

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    name: str
    rule: Rule


@dataclass(frozen=True)
class Task:
    model: nn.Module
    layers: Mapping[nn.Module, Layer]
    loss: Loss
    wanted: frozenset[str]
    masks: Mapping[str, Tensor]

    def losses(
        self, tensors: Mapping[str, Tensor], hook: Any, inputs: Tensor, targets: Tensor
    ) -> Tensor:
        """Loss of each sample, [B], with `tensors` in the place of the parameters.

        hook: called as (module, args, output) after every layer that has a rule, before
        hooks of the user's change the output.
        """
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        handles = [m.register_forward_hook(hook, prepend=True) for m in self.layers]
        try:
            outputs = torch.func.functional_call(
                self.model, {**tensors, **buffers}, (inputs,)
            )
        finally:
            for handle in handles:
                handle.remove()
        losses = self.loss(outputs, targets)
        if losses.shape != targets.shape[:1]:
            raise ValueError(
                f"loss must return one number a sample, [{len(targets)}], got shape "
                f"{tuple(losses.shape)}: use reduction='none'"
            )
        return losses

    def leaves(self) -> dict[str, Tensor]:
        """The parameters as tensors of their own; those wanted require a gradient."""
        return {
            name: p.detach().requires_grad_(name in self.wanted)
            for name, p in self.model.named_parameters()
        }

    def own(self, module: nn.Module, names: Mapping[int, str]) -> dict[str, str]:
        """{"weight" or "bias": name in the model} of a layer, those wanted."""
        pairs = module.named_parameters(remove_duplicate=False)
        own = {short: names[id(p)] for short, p in pairs}
        return {short: name for short, name in own.items() if name in self.wanted}


@dataclass(frozen=True)
class Probe:
    """What plain backpropagation finds for one sample of the batch.

    uses: how often layers use each parameter; squares: {parameter: squared norm of its
    gradient}.
    """

    sample: int
    uses: Counter[str]
    loss: float
    squares: Mapping[str, float]

    @classmethod
    def of(cls, task: Task, inputs: Tensor, targets: Tensor) -> "Probe":
        """One sample by itself, or twice if it is the whole batch.

        The number of samples differs from the batch's, so that a dimension which
        happens to be as long as the batch is not taken for it.
        """
        sample, few = len(inputs) // 2, 2 if len(inputs) == 1 else 1
        x, y = (
            t[sample : sample + 1].repeat(few, *[1] * (t.dim() - 1))
            for t in (inputs, targets)
        )
        leaves = task.leaves()
        names = {id(leaf): name for name, leaf in leaves.items()}
        calls: list[tuple[set[str], Any, Any]] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            own = set(task.own(module, names).values())
            if own:
                require_batch_first(task.layers[module].name, args, output, few)
                calls.append((own, output.grad_fn, args[0].grad_fn))

        losses = task.losses(leaves, hook, x, y)
        uses, nodes = _leaf_uses(losses.grad_fn, names)
        by_layers: Counter[str] = Counter()
        for own, node, before in calls:
            if node in nodes:  # or its output does not matter
                within, _ = _leaf_uses(node, names, before)
                by_layers.update({n: k for n, k in within.items() if n in own})
        for name in sorted(task.wanted):
            if uses[name] > by_layers[name]:
                raise _uncovered(task.model, name, uses[name], by_layers[name])
        used = {name: leaf for name, leaf in leaves.items() if uses[name]}
        squares = _squares(losses[0], used, task.masks)
        return cls(sample, by_layers, losses[0].item(), squares)

    def check(self, losses: Tensor, squares: Mapping[str, Tensor]) -> None:
        """Raises if the fast pass over the whole batch found something else."""
        tolerance = _tolerance(losses)
        loss = losses[self.sample].item()
        if not abs(loss - self.loss) <= tolerance * max(abs(self.loss), 1):
            raise ValueError(
                f"the loss of sample {self.sample} is {self.loss:.6g} by itself and "
                f"{loss:.6g} in its batch: samples influence each other, or the model "
                "is random. Call model.eval()"
            )
        if abs(self.loss) < 0.05:
            return  # of a loss near its minimum only rounding is left of the gradient
        slack = tolerance * sum(self.squares.values()) ** 0.5
        of_sample = {name: square[self.sample] for name, square in squares.items()}
        own = _floats(of_sample)
        for name, expected in self.squares.items():
            found = own.get(name, 0.0)
            if not abs(found**0.5 - expected**0.5) <= 10 * slack:
                raise ValueError(
                    f"the gradient of {name!r} has norm {expected**0.5:.6g} for sample "
                    f"{self.sample} by itself, and {found**0.5:.6g} by the rule of its "
                    "layer: the layer computes something else than its type says, or "
                    "differently in a batch. Leave it out through params"
                )


def by_backpropagation(task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient norm of every sample, [B], by a backward pass for each."""
    leaves = task.leaves()
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    norms = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        losses = task.losses(leaves, None, x, y)
        squares = (
            _squares(losses[0], wanted, task.masks) if losses.requires_grad else {}
        )
        norms.append(sum(squares.values()) ** 0.5)
    return torch.tensor(norms, dtype=precise(losses).dtype, device=losses.device)


def _leaf_uses(
    start: Any, names: Mapping[int, str], stop: Any = None
) -> tuple[Counter[str], set[Any]]:
    """How many edges lead to each parameter, in the graph from `start` up to `stop`.

    Also returns the nodes of the graph.
    """
    found: Counter[str] = Counter()
    nodes, stack = {stop, None}, [start]
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is None:
                stack.append(following)
            elif id(leaf) in names:
                found[names[id(leaf)]] += 1
            else:
                raise ValueError(
                    f"a tensor of shape {tuple(leaf.shape)} requires a gradient and is "
                    "no parameter of the model: detach it"
                )
    return found, nodes


def require_batch_first(name: str, args: Any, output: Any, n_samples: int) -> None:
    tensors = [*args[:1], output]
    if any(not isinstance(x, Tensor) for x in tensors) or len(args) != 1:
        raise ValueError(f"{name!r} must be called with one tensor and return one")
    for tensor in tensors:
        least = 2 if tensor.dtype.is_floating_point else 1  # tokens may be [B]
        if tensor.dim() < least or len(tensor) != n_samples:
            raise ValueError(
                f"{name!r} is called with a tensor of shape {tuple(tensor.shape)} in a "
                f"batch of {n_samples}: the batch must be its first dimension, one "
                "row a sample"
            )


def _uncovered(model: nn.Module, name: str, uses: int, by_layers: int) -> ValueError:
    owner = name.rpartition(".")[0]
    kind = type(model.get_submodule(owner)).__name__
    return ValueError(
        f"no per-sample rule covers {name!r} of {owner or 'the model'!r} ({kind}): "
        f"{uses - by_layers} of its {uses} uses are outside of the known layers. Leave "
        "it out through params, or pass one_by_one=True, which takes a backward pass "
        "for each sample"
    )


def precise(x: Tensor) -> Tensor:
    """float32 at least: squares of half precision would vanish or overflow."""
    return x if x.dtype == torch.float64 else x.float()


def _tolerance(losses: Tensor) -> float:
    """How far one number may be from itself, computed in a batch of another size."""
    exact = (
        losses.device.type == "cpu"
        and losses.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and torch.get_float32_matmul_precision() == "highest"
    )
    return 1e-4 if exact else 3e-2


def _squares(
    loss: Tensor, leaves: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, float]:
    """Squared norms of the gradients of one loss."""
    if not leaves:
        return {}
    found = {}
    grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    for name, grad in zip(leaves, grads, strict=True):
        grad = precise(grad.to_dense())
        found[name] = (grad * masks[name] if name in masks else grad).square().sum()
    return _floats(found)


def _floats(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """One transfer from the device for all."""
    if not scalars:
        return {}
    values = torch.stack(list(scalars.values())).tolist()
    return dict(zip(scalars, values, strict=True))
