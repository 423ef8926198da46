"""The norm of every sample's gradient, exactly, in one backward pass.

No per-sample gradient is stored: as the backward pass reaches a layer, the layer's rule
(`layers.py`) turns its input and the gradient of its output into squared norms.

A wrong number is never returned. One sample of the batch goes through the model by
itself first, by plain backpropagation (`probe.py`): every use of a parameter in its
graph must be one by a layer with a rule, and its loss and gradient norms must be those
that the fast pass finds.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.data_pruning.layers import require_per_sample, rule_of
from sparsekit.data_pruning.probe import (
    Layer,
    Loss,
    Probe,
    Task,
    by_backpropagation,
    precise,
    require_batch_first,
)
from sparsekit.data_pruning.rule import Rule, Use


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
    one_by_one: bool = False,
) -> Tensor:
    """||d loss_i / d parameters||_2 of every sample i, [B].

    The loss is summed over the batch, not averaged, so a value does not depend on the
    batch around it. Works for every model made of linear layers, 1-D and 2-D
    convolutions, embeddings, batch norm in evaluation mode, layer, group and RMS norms,
    and any operation without parameters between them, in place or not; a weight may be
    shared by several of them. The model is not changed: parameters, gradients, buffers,
    modes and random states stay as they were.

    Args:
        model: on the device of `inputs`; called as `model(inputs)`.
        inputs: [B, ...]; targets: [B, ...].
        loss: (outputs, targets) -> [B], the loss of each sample.
        params: names of the parameters whose gradients count; default all that require
            a gradient.
        masks: {parameter name: bool mask}: only entries that are True count. For a
            sparse network, `sparsifier.alive`; without, absent weights count too.
        one_by_one: a backward pass for each sample: as many times slower, for models
            with any other layer, such as attention of torch.nn and LSTMs.

    Raises:
        ValueError: naming the parameter, if it is used by a layer that has no rule, or
            outside of one; naming the layer, if it is not called once for each sample
            (a batch that is not the first dimension, statistics of the batch, dropout);
            for unknown names, an empty batch, or a loss that is not one number a
            sample.

    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> torch.nn.init.zeros_(model.weight).shape
    torch.Size([2, 2])
    >>> x, y = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> gradient_norms(model, x, y)  # sqrt(1/2) ||x||
    tensor([3.5355, 0.7071])
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"inputs and targets need as many samples, at least 1; they have "
            f"{len(inputs)} and {len(targets)}"
        )
    layers = {}
    for name, module in model.named_modules():
        require_per_sample(name, module)
        if (rule := rule_of(module)) is not None:
            layers[module] = Layer(name, rule)
    task = Task(model, layers, loss, _wanted(model, params), _masks(model, masks))
    inputs, targets = inputs.detach(), targets.detach()
    with _undisturbed(inputs.device):
        if one_by_one:
            return by_backpropagation(replace(task, layers={}), inputs, targets)
        probe = Probe.of(task, inputs, targets)
        return _Pass(task, probe).run(inputs, targets)


@dataclass
class _Pass:
    """One forward and one backward pass that adds up squared norms."""

    task: Task
    probe: Probe
    squares: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, list[tuple[str, Rule, Use]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def run(self, inputs: Tensor, targets: Tensor) -> Tensor:
        frozen = {n: p.detach() for n, p in self.task.model.named_parameters()}
        names = {id(p): name for name, p in frozen.items()}
        # Nothing but this zero requires a gradient, so that the backward pass computes
        # gradients of activations only; it is added where the graph begins.
        source = torch.zeros((), device=inputs.device, requires_grad=True)
        hook = partial(self._forward_hook, names, source, len(inputs))
        losses = self.task.losses(frozen, hook, inputs, targets)
        if losses.requires_grad:
            losses.sum().backward(inputs=[source])
        with torch.autocast(inputs.device.type, enabled=False):
            for name, uses in self.shared.items():
                self.squares[name] = _shared_norms(uses)
        self.probe.check(losses, self.squares)
        total = precise(torch.zeros_like(losses))
        for square in self.squares.values():
            total += square
        return total.sqrt_()

    def _forward_hook(
        self,
        names: Mapping[int, str],
        source: Tensor,
        n_samples: int,
        module: nn.Module,
        args: Any,
        output: Any,
    ) -> Tensor | None:
        own = self.task.own(module, names)
        if not own or not torch.is_grad_enabled():
            return None
        layer = self.task.layers[module]
        require_batch_first(layer.name, args, output, n_samples)
        if not output.requires_grad:
            output = torch.add(output, source)
        output.register_hook(
            partial(self._backward_hook, module, own, args[0].detach())
        )
        return output

    @torch.no_grad()
    def _backward_hook(
        self,
        module: nn.Module,
        own: Mapping[str, str],
        inputs: Tensor,
        grads: Tensor,
    ) -> None:
        layer = self.task.layers[module]
        masks = {
            short: self.task.masks[name]
            for short, name in own.items()
            if name in self.task.masks
        }
        use = Use(module, inputs, precise(grads), masks)
        alone = {short for short, name in own.items() if self.probe.uses[name] == 1}
        with torch.autocast(grads.device.type, enabled=False):
            for short, norms in layer.rule.squared_norms(use, alone).items():
                self.squares[own[short]] = norms
        for short in set(own) - alone:
            self.shared[own[short]].append((short, layer.rule, use))


def _shared_norms(uses: list[tuple[str, Rule, Use]]) -> Tensor:
    """[B] of one parameter: its gradients are added over its uses before the norm."""
    short, _, first = uses[0]
    entries = getattr(first.module, short).numel()
    parts = []
    for chunks in zip(*(use.chunks(entries) for _, _, use in uses), strict=True):
        gradients = (
            rule.gradients(use, {short})[short]
            for (short, rule, _), use in zip(uses, chunks, strict=True)
        )
        gradient = reduce(torch.add, gradients)
        parts.append(gradient.flatten(1).square().sum(1))
    return torch.cat(parts)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Gradients on, compilation off, and the random states as they were afterwards."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=devices),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def _wanted(model: nn.Module, params: Collection[str] | None) -> frozenset[str]:
    known = dict(model.named_parameters())
    if params is None:
        wanted = frozenset(name for name, p in known.items() if p.requires_grad)
    else:
        wanted = frozenset(params)
    _require_names(wanted, known, "params")
    if not wanted:
        raise ValueError(
            "no parameter counts: none of the model requires a gradient, or params is "
            "empty"
        )
    return wanted


def _masks(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    known = dict(model.named_parameters())
    _require_names(masks or {}, known, "masks")
    found = {}
    for name, mask in (masks or {}).items():
        if mask.dtype != torch.bool or mask.shape != known[name].shape:
            raise ValueError(
                f"the mask of {name!r} is bool of shape {tuple(known[name].shape)}, "
                f"got {mask.dtype} of {tuple(mask.shape)}"
            )
        found[name] = mask.to(known[name].device)
    return found


def _require_names(given: Collection[str], known: Mapping[str, Any], what: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"{what}: the model has no parameter {unknown[0]!r}; it has "
            f"{', '.join(known)}"
        )
