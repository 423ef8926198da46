"""The norm of every sample's gradient, exactly, in one backward pass.

No per-sample gradient is stored: as the backward pass reaches a layer, the layer's rule
(`layers.py`) turns its input and the gradient of its output into squared norms.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.data_pruning.layers import Rule, Use, rule_of

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample: logits [B, K], targets [B] int64 -> [B]."""
    return F.cross_entropy(logits, targets, reduction="none")


def gradient_norms(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = cross_entropy,
    params: Collection[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """||d loss_i / d parameters||_2 of every sample i, [B].

    The loss is summed over the batch, not averaged, so a value does not depend on the
    batch around it. Works for every model made of linear layers, 1-D and 2-D
    convolutions, embeddings, batch norm in evaluation mode, layer, group and RMS norms,
    and any operation without parameters between them, in place or not; a weight may be
    shared by several of them. The model is not changed: parameters, gradients and
    buffers stay as they were.

    Args:
        model: on the device of `inputs`; called as `model(inputs)`.
        inputs: [B, ...]; targets: [B, ...].
        loss: (outputs, targets) -> [B], the loss of each sample.
        params: names of the parameters whose gradients count; default all.
        masks: {parameter name: bool mask}: only entries that are True count. For a
            sparse network, `sparsifier.alive`; without, absent weights count too.

    Raises:
        ValueError: naming the parameter, if it is used by a layer that has no rule, or
            outside of one (a wrong number is never returned); naming the layer, if it
            is not called once for each sample (a batch that is not the first dimension,
            statistics of the batch); for unknown names, an empty batch, or a loss that
            is not one number a sample.

    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> torch.nn.init.zeros_(model.weight).shape
    torch.Size([2, 2])
    >>> x, y = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> gradient_norms(model, x, y)  # sqrt(1/2) ||x||
    tensor([3.5355, 0.7071])
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    shared = dict(model.named_parameters())
    wanted = set(shared) if params is None else set(params)
    _require_names(wanted, shared, "params")
    _require_names(set(masks or ()), shared, "masks")
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"inputs and targets need as many samples, at least 1; they have "
            f"{len(inputs)} and {len(targets)}"
        )
    known = {
        module: _Layer(name, rule)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        and (rule := rule_of(name, module)) is not None
    }
    uses = _count_uses(model, inputs, targets, loss, wanted, known)
    return _Pass(model, wanted, known, uses, masks or {}).run(inputs, targets, loss)


@dataclass(frozen=True)
class _Layer:
    name: str
    rule: Rule


@contextmanager
def _hooks(modules: Collection[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [m.register_forward_hook(hook) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count_uses(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    wanted: set[str],
    known: Mapping[nn.Module, _Layer],
) -> tuple[Counter[str], Tensor, int]:
    """How often known layers use each wanted parameter, by a run on few samples.

    Every use in the graph of the loss must be one by a known layer. The number of
    samples differs from the batch's, so that a dimension which happens to be as long as
    the batch is not taken for it. Also returns the losses, which a batch of another
    size must reproduce, and the number of samples.
    """
    few = 2 if len(inputs) == 1 else 1
    sample, target = (
        x[:1].repeat(few, *[1] * (x.dim() - 1)) for x in (inputs, targets)
    )
    leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    names = {id(leaf): name for name, leaf in leaves.items()}
    by_layers: Counter[str] = Counter()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        layer = known[module]
        used = [names[id(p)] for p in module.parameters(recurse=False)]
        by_layers.update(used)
        if wanted & set(used):
            _require_batch_first(layer.name, args, output, few)

    with _hooks(known, hook), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        outputs = torch.func.functional_call(model, leaves, (sample,))
        losses = loss(outputs, target)
        _require_losses(losses, few)
        in_graph = _leaf_uses(losses, names)
    for name in wanted:
        if in_graph[name] > by_layers[name]:
            owner, kind = _owner(model, name)
            raise ValueError(
                f"no per-sample rule covers {name!r} of {owner!r} ({kind}): "
                f"{in_graph[name] - by_layers[name]} of its {in_graph[name]} uses are "
                "outside of the known layers. Leave it out through params, or build "
                "the model from torch.nn layers that have one"
            )
    return by_layers, losses.detach(), few


def _leaf_uses(losses: Tensor, names: Mapping[int, str]) -> Counter[str]:
    """How many edges of the graph lead to each parameter."""
    found: Counter[str] = Counter()
    seen, stack = set(), [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is not None and id(leaf) in names:
                found[names[id(leaf)]] += 1
            else:
                stack.append(following)
    return found


@dataclass
class _Pass:
    """One forward and one backward pass that adds up squared norms."""

    model: nn.Module
    wanted: set[str]
    known: Mapping[nn.Module, _Layer]
    probe: tuple[Counter[str], Tensor, int]
    masks: Mapping[str, Tensor]
    squares: list[Tensor] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)  # gradients of shared weights

    def run(self, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        frozen = {n: p.detach() for n, p in self.model.named_parameters()}
        self.names = {id(p): name for name, p in frozen.items()}
        # Nothing but this zero requires a gradient, so that the backward pass computes
        # gradients of activations only; it is added where the graph begins.
        self.source = torch.zeros((), device=inputs.device, requires_grad=True)
        hook = partial(self._forward_hook, len(inputs))
        with _hooks(self.known, hook), torch.enable_grad():
            with torch.random.fork_rng(devices=[]):
                outputs = torch.func.functional_call(self.model, frozen, (inputs,))
            losses = loss(outputs, targets)
            _require_losses(losses, len(inputs))
            self._require_independent(losses)
            if losses.requires_grad:
                losses.sum().backward(inputs=[self.source])
        total = torch.zeros(len(inputs), dtype=losses.dtype, device=inputs.device)
        for square in self.squares:
            total += square
        for gradient in self.sums.values():
            total += gradient.flatten(1).square().sum(1)
        return total.sqrt()

    def _forward_hook(
        self, n_samples: int, module: nn.Module, args: Any, output: Any
    ) -> Tensor | None:
        own = {
            own: self.names[id(p)] for own, p in module.named_parameters(recurse=False)
        }
        own = {short: name for short, name in own.items() if name in self.wanted}
        if not own:
            return None
        _require_batch_first(self.known[module].name, args, output, n_samples)
        if not output.requires_grad:
            output = output + self.source.to(output.dtype)
        saved = args[0].detach()
        version = saved._version
        output.register_hook(
            lambda grads: self._backward_hook(module, own, saved, version, grads)
        )
        return output

    @torch.no_grad()
    def _backward_hook(
        self,
        module: nn.Module,
        own: Mapping[str, str],
        saved: Tensor,
        version: int,
        grads: Tensor,
    ) -> None:
        layer = self.known[module]
        if saved._version != version:
            raise ValueError(
                f"the input of {layer.name!r} was changed in place after the layer "
                "used it, so its gradient is lost: write x = x + y, not x += y"
            )
        masks = {
            short: self.masks[name] for short, name in own.items() if name in self.masks
        }
        use = Use(module, saved, grads.detach(), masks)
        uses = self.probe[0]
        alone = {short for short, name in own.items() if uses[name] == 1}
        if alone:
            self.squares.append(layer.rule.squared_norms(use, alone))
        if len(alone) < len(own):
            for short, gradient in layer.rule.gradients(use, set(own) - alone).items():
                name = own[short]
                old = self.sums.get(name)
                self.sums[name] = gradient if old is None else old.add_(gradient)

    def _require_independent(self, losses: Tensor) -> None:
        """A sample's loss must not depend on the batch that it is in."""
        _, few, _ = self.probe
        if not torch.allclose(losses[:1].detach(), few[:1], rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"the loss of the first sample is {float(few[0]):.6g} by itself and "
                f"{float(losses[0]):.6g} in its batch: samples influence each other, "
                "or the model is random. Call model.eval()"
            )


def _require_names(given: set[str], known: Mapping[str, Any], what: str) -> None:
    unknown = sorted(given - set(known))
    if unknown:
        raise ValueError(
            f"{what}: the model has no parameter {unknown[0]!r}; it has "
            f"{', '.join(known)}"
        )


def _require_batch_first(name: str, args: Any, output: Any, n_samples: int) -> None:
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


def _require_losses(losses: Tensor, n_samples: int) -> None:
    if losses.shape != (n_samples,):
        raise ValueError(
            f"loss must return one number a sample, [{n_samples}], got shape "
            f"{tuple(losses.shape)}: use reduction='none'"
        )


def _owner(model: nn.Module, parameter: str) -> tuple[str, str]:
    owner = parameter.rpartition(".")[0]
    return owner or "the model", type(model.get_submodule(owner)).__name__
