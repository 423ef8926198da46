"""The norm of every sample's gradient, exactly, in one backward pass.

No per-sample gradient is stored: as the backward pass reaches a layer, the layer's rule
(`layers.py`) turns its input and the gradient of its output into squared norms.

A wrong number is never returned. One sample of the batch goes through the model by
itself first, by plain backpropagation (`_Probe`): every use of a parameter in its graph
must be one by a layer with a rule, and its loss and gradient norms must be those that
the fast pass finds.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.data_pruning.layers import require_per_sample, rule_of
from sparsekit.data_pruning.rule import Rule, Use

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
            layers[module] = _Layer(name, rule)
    task = _Task(model, layers, loss, _wanted(model, params), _masks(model, masks))
    inputs, targets = inputs.detach(), targets.detach()
    with _undisturbed(inputs.device):
        probe = _Probe.of(task, inputs, targets)
        return _Pass(task, probe).run(inputs, targets)


@dataclass(frozen=True)
class _Layer:
    name: str
    rule: Rule


@dataclass(frozen=True)
class _Task:
    model: nn.Module
    layers: Mapping[nn.Module, _Layer]
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

    def own(self, module: nn.Module, names: Mapping[int, str]) -> dict[str, str]:
        """{"weight" or "bias": name in the model} of a layer, those wanted."""
        pairs = module.named_parameters(recurse=False, remove_duplicate=False)
        own = {short: names[id(p)] for short, p in pairs}
        return {short: name for short, name in own.items() if name in self.wanted}


@dataclass(frozen=True)
class _Probe:
    """What plain backpropagation finds for one sample of the batch.

    uses: how often layers use each parameter; squares: {parameter: squared norm of its
    gradient}.
    """

    sample: int
    uses: Counter[str]
    loss: float
    squares: Mapping[str, float]

    @classmethod
    def of(cls, task: _Task, inputs: Tensor, targets: Tensor) -> "_Probe":
        """One sample by itself, or twice if it is the whole batch.

        The number of samples differs from the batch's, so that a dimension which
        happens to be as long as the batch is not taken for it.
        """
        sample, few = len(inputs) // 2, 2 if len(inputs) == 1 else 1
        x, y = (
            t[sample : sample + 1].repeat(few, *[1] * (t.dim() - 1))
            for t in (inputs, targets)
        )
        leaves = {
            name: p.detach().requires_grad_(name in task.wanted)
            for name, p in task.model.named_parameters()
        }
        names = {id(leaf): name for name, leaf in leaves.items()}
        calls: list[tuple[set[str], Any, Any]] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            own = set(task.own(module, names).values())
            if own:
                _require_batch_first(task.layers[module].name, args, output, few)
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
        squares = {}
        used = [name for name in leaves if uses[name]]
        if used:
            grads = torch.autograd.grad(losses[0], [leaves[name] for name in used])
            for name, grad in zip(used, grads, strict=True):
                grad = _precise(grad.to_dense())
                masked = grad * task.masks[name] if name in task.masks else grad
                squares[name] = float(masked.square().sum())
        return cls(sample, by_layers, float(losses[0].detach()), squares)

    def check(self, losses: Tensor, squares: Mapping[str, Tensor]) -> None:
        """Raises if the fast pass over the whole batch found something else."""
        tolerance = _tolerance(losses)
        loss = float(losses[self.sample])
        if not abs(loss - self.loss) <= tolerance * max(abs(self.loss), 1):
            raise ValueError(
                f"the loss of sample {self.sample} is {self.loss:.6g} by itself and "
                f"{loss:.6g} in its batch: samples influence each other, or the model "
                "is random. Call model.eval()"
            )
        if abs(self.loss) < 0.05:
            return  # of a loss near its minimum only rounding is left of the gradient
        slack = tolerance * sum(self.squares.values()) ** 0.5
        for name, expected in self.squares.items():
            found = float(squares[name][self.sample]) if name in squares else 0.0
            if not abs(found**0.5 - expected**0.5) <= 10 * slack:
                raise ValueError(
                    f"the gradient of {name!r} has norm {expected**0.5:.6g} for sample "
                    f"{self.sample} by itself, and {found**0.5:.6g} by the rule of its "
                    "layer: the layer computes something else than its type says, or "
                    "differently in a batch. Leave it out through params"
                )


@dataclass
class _Pass:
    """One forward and one backward pass that adds up squared norms."""

    task: _Task
    probe: _Probe
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
        for name, uses in self.shared.items():
            self.squares[name] = _shared_norms(uses)
        self.probe.check(losses.detach(), self.squares)
        total = _precise(torch.zeros_like(losses.detach()))
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
        _require_batch_first(layer.name, args, output, n_samples)
        if not output.requires_grad:
            output = output + source.to(output.dtype)
        saved = args[0].detach()
        hook = partial(self._backward_hook, module, own, saved, saved._version)
        output.register_hook(hook)
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
        layer = self.task.layers[module]
        if saved._version != version:
            raise ValueError(
                f"the input of {layer.name!r} was changed in place after the layer "
                "used it, so its gradient is lost: write x = x + y, not x += y"
            )
        masks = {
            short: self.task.masks[name]
            for short, name in own.items()
            if name in self.task.masks
        }
        use = Use(module, saved, _precise(grads.detach()), masks)
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
        gradient = torch.zeros(())
        for (short, rule, _), use in zip(uses, chunks, strict=True):
            found = rule.gradients(use, {short})[short]
            gradient = gradient.to(found) + found
        parts.append(gradient.flatten(1).square().sum(1))
    return torch.cat(parts)


def _leaf_uses(
    start: Any, names: Mapping[int, str], stop: Any = None
) -> tuple[Counter[str], set[Any]]:
    """How many edges lead to each parameter, in the graph from `start` up to `stop`.

    Also returns the nodes of the graph.
    """
    found: Counter[str] = Counter()
    nodes, stack = {stop}, [start]
    while stack:
        node = stack.pop()
        if node is None or node in nodes:
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
        found[name] = mask.detach().to(known[name].device)
    return found


def _require_names(given: Collection[str], known: Mapping[str, Any], what: str) -> None:
    unknown = sorted(set(given) - set(known))
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


def _uncovered(model: nn.Module, name: str, uses: int, by_layers: int) -> ValueError:
    owner = name.rpartition(".")[0]
    kind = type(model.get_submodule(owner)).__name__
    return ValueError(
        f"no per-sample rule covers {name!r} of {owner or 'the model'!r} ({kind}): "
        f"{uses - by_layers} of its {uses} uses are outside of the known layers. Leave "
        "it out through params, or build the model from torch.nn layers that have one"
    )


def _precise(x: Tensor) -> Tensor:
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
