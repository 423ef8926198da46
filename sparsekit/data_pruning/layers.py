"""Per-sample gradients of layers, from their inputs and the gradients of their outputs.

A rule of a layer type answers two questions about `Use`: the squared norm of each
sample's gradient, as cheaply as it can, and the gradients themselves, which shared
weights need. A layer without a rule is never guessed at.

Linear layers and convolutions are products: with a sample's inputs A (d, T) and output
gradients G (q, T) at T positions, the gradient of the weight is G A' (q, d). Its
squared norm is either that of the product ("instantiate", T d q operations), or the sum
over pairs of positions <A'A, G'G> ("ghost", T^2 (d + q) operations): whichever is less.

Source: Goodfellow 2015, arXiv 1510.01799, for T = 1; Bu et al. 2022, mixed ghost
clipping, for the choice.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Entries of the largest temporary array: 16 MB in float32, small enough for a cache.
CHUNK = 2**22
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Use:
    """One call of a layer: `module(inputs)`, and the gradient of what it returned.

    inputs: [B, ...]; grads: [B, ...], of the summed loss, one sample a row; masks: of
    the module's own parameters, True = counts.
    """

    module: Any
    inputs: Tensor
    grads: Tensor
    masks: Mapping[str, Tensor]

    def chunks(self, entries_per_sample: int) -> Iterator["Use"]:
        """Parts of the batch whose temporary arrays fit into `CHUNK` entries."""
        size = max(1, CHUNK // max(1, entries_per_sample))
        pairs = zip(self.inputs.split(size), self.grads.split(size), strict=True)
        for inputs, grads in pairs:
            yield Use(self.module, inputs, grads, self.masks)

    def masked(self, name: str, gradient: Tensor) -> Tensor:
        """A parameter's gradient [B, *shape] without the entries that do not count."""
        return gradient * self.masks[name] if name in self.masks else gradient


class Rule(ABC):
    """How a type of layer answers. `names` are parameters of the module."""

    @abstractmethod
    def gradients(self, use: Use, names: set[str]) -> Gradients:
        """{name: [B, *shape of the parameter]}, masked."""

    def squared_norms(self, use: Use, names: set[str]) -> Tensor:
        """[B], summed over the named parameters."""
        gradients = self.gradients(use, names).values()
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)


class Product(Rule):
    """Layers whose weight gradient is a product G A' at each sample."""

    @abstractmethod
    def size(self, use: Use) -> int:
        """Entries that `factors` makes for one sample."""

    @abstractmethod
    def factors(self, use: Use) -> tuple[Tensor, Tensor]:
        """A [B * groups, d, T] and G [B * groups, q, T]."""

    def bias(self, use: Use) -> Tensor:
        """Gradient of the bias: G summed over positions, [B, out]."""
        _, outputs = self.outputs(use)
        return use.masked("bias", outputs)

    @abstractmethod
    def outputs(self, use: Use) -> tuple[Tensor, Tensor]:
        """Output gradients [B, out, T], and their sums over T, [B, out]."""

    def gradients(self, use: Use, names: set[str]) -> Gradients:
        found = {}
        if "weight" in names:
            a, g = self.factors(use)
            weight = torch.bmm(g, a.transpose(1, 2))
            shape = (len(use.inputs), *use.module.weight.shape)
            found["weight"] = use.masked("weight", weight.reshape(shape))
        if "bias" in names:
            found["bias"] = self.bias(use)
        return found

    def squared_norms(self, use: Use, names: set[str]) -> Tensor:
        total = torch.zeros(len(use.inputs), dtype=use.grads.dtype).to(use.grads.device)
        if "bias" in names:
            total += self.bias(use).square().sum(1)
        if "weight" in names:
            parts = [self._weight(part) for part in use.chunks(self.size(use))]
            total += torch.cat(parts)
        return total

    def _weight(self, use: Use) -> Tensor:
        a, g = self.factors(use)
        mask = use.masks.get("weight")
        if mask is not None:
            norms = masked_product_norms(a, g, mask.view(-1, g.shape[1], a.shape[1]))
        else:
            norms = product_norms(a, g)
        return norms.view(len(use.inputs), -1).sum(1)


def product_norms(a: Tensor, g: Tensor) -> Tensor:
    """||G A'||^2 of each sample: a [n, d, T], g [n, q, T] -> [n].

    >>> a, g = torch.ones(1, 2, 3), torch.ones(1, 5, 3)  # G A' is 5x2, all 3
    >>> product_norms(a, g)
    tensor([90.])
    """
    (d, positions), q = a.shape[1:], g.shape[1]
    if positions == 1:
        return a.square().sum((1, 2)) * g.square().sum((1, 2))
    if positions * (d + q) < d * q:
        pairs = torch.bmm(a.transpose(1, 2), a) * torch.bmm(g.transpose(1, 2), g)
        return pairs.sum((1, 2)).clamp_(min=0)  # rounding of terms that cancel
    return torch.bmm(g, a.transpose(1, 2)).square_().sum((1, 2))


def masked_product_norms(a: Tensor, g: Tensor, mask: Tensor) -> Tensor:
    """||M * (G A')||^2 of each sample; mask: [groups, q, d] bool."""
    weights = mask.to(a.dtype).repeat(len(a) // len(mask), 1, 1)
    if a.shape[2] == 1:  # sum_ij m_ij g_i^2 a_j^2
        return torch.bmm(torch.bmm(g.square().mT, weights), a.square()).flatten()
    return (torch.bmm(g, a.transpose(1, 2)) * weights).square_().sum((1, 2))


class LinearRule(Product):
    """nn.Linear on [B, d] or [B, ..., d]."""

    def size(self, use: Use) -> int:
        positions = use.inputs[0].numel() // use.module.in_features
        d, q = use.module.in_features, use.module.out_features
        return 1 if positions == 1 else max(min(positions**2, d * q), positions)

    def outputs(self, use: Use) -> tuple[Tensor, Tensor]:
        grads = use.grads.reshape(len(use.grads), -1, use.grads.shape[-1])
        return grads.transpose(1, 2), grads.sum(1)

    def factors(self, use: Use) -> tuple[Tensor, Tensor]:
        inputs = use.inputs.reshape(len(use.inputs), -1, use.inputs.shape[-1])
        return inputs.transpose(1, 2), self.outputs(use)[0]


class ConvRule(Product):
    """nn.Conv1d and nn.Conv2d: groups, stride, dilation, every padding mode."""

    def size(self, use: Use) -> int:
        kernel = use.module.weight[0].numel() * use.module.groups
        return kernel * use.grads[0, 0].numel()

    def outputs(self, use: Use) -> tuple[Tensor, Tensor]:
        grads = use.grads.flatten(2)
        return grads, grads.sum(2)

    def factors(self, use: Use) -> tuple[Tensor, Tensor]:
        module, n_samples = use.module, len(use.inputs)
        groups, grads = module.groups, use.grads.flatten(2)
        patches = self._patches(module, use.inputs)
        a = patches.reshape(n_samples * groups, -1, patches.shape[2])
        return a, grads.reshape(n_samples * groups, -1, grads.shape[2])

    def _patches(self, module: Any, inputs: Tensor) -> Tensor:
        """Inputs of every output position: [B, channels * kernel, T]."""
        padding = module._reversed_padding_repeated_twice  # for 'same' uneven
        if any(padding):
            mode = module.padding_mode
            inputs = F.pad(inputs, padding, "constant" if mode == "zeros" else mode)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if inputs.dim() == 3:  # Conv1d: one row
            inputs = inputs.unsqueeze(2)
            kernel, stride, dilation = ((1, *x) for x in (kernel, stride, dilation))
        if tuple(kernel) == (1, 1):
            return inputs[:, :, :: stride[0], :: stride[1]].flatten(2)
        return F.unfold(inputs, kernel, dilation=dilation, stride=stride)


class NormRule(Rule):
    """Norms that scale a standardised input: weight * x + bias."""

    @abstractmethod
    def standardised(self, use: Use) -> Tensor:
        """The input, standardised, in the shape of the input."""

    @abstractmethod
    def summed(self, use: Use, entries: Tensor) -> Tensor:
        """[B, *shape of the input] summed to [B, *shape of the parameter]."""

    def gradients(self, use: Use, names: set[str]) -> Gradients:
        found = {}
        if "weight" in names:
            gradient = self.summed(use, use.grads * self.standardised(use))
            found["weight"] = use.masked("weight", gradient)
        if "bias" in names:
            found["bias"] = use.masked("bias", self.summed(use, use.grads))
        return found


class BatchNormRule(NormRule):
    """In evaluation mode only: in training mode samples mix."""

    def standardised(self, use: Use) -> Tensor:
        module = use.module
        return F.batch_norm(
            use.inputs, module.running_mean, module.running_var, eps=module.eps
        )

    def summed(self, use: Use, entries: Tensor) -> Tensor:
        return entries.flatten(2).sum(2) if entries.dim() > 2 else entries


class LayerNormRule(NormRule):
    """nn.LayerNorm over the last dimensions."""

    def standardised(self, use: Use) -> Tensor:
        module = use.module
        return F.layer_norm(use.inputs, module.normalized_shape, eps=module.eps)

    def summed(self, use: Use, entries: Tensor) -> Tensor:
        shape = use.module.normalized_shape
        return entries.reshape(len(entries), -1, *shape).sum(1)


class RMSNormRule(LayerNormRule):
    """nn.RMSNorm over the last dimensions."""

    def standardised(self, use: Use) -> Tensor:
        module = use.module
        return F.rms_norm(use.inputs, list(module.normalized_shape), eps=module.eps)


class GroupNormRule(BatchNormRule):
    """nn.GroupNorm on [B, channels, ...]."""

    def standardised(self, use: Use) -> Tensor:
        module = use.module
        return F.group_norm(use.inputs, module.num_groups, eps=module.eps)


class EmbeddingRule(Rule):
    """nn.Embedding on [B, ...] indices: gradients are summed by token first."""

    def gradients(self, use: Use, names: set[str]) -> Gradients:
        weight = use.module.weight
        tokens, grads = self._rows(use)
        found = grads.new_zeros(len(tokens), *weight.shape)
        where = tokens.unsqueeze(2).expand_as(grads)
        return {"weight": use.masked("weight", found.scatter_add_(1, where, grads))}

    def squared_norms(self, use: Use, names: set[str]) -> Tensor:
        tokens, grads = self._rows(use)
        n_samples, n_tokens = len(tokens), use.module.num_embeddings
        samples = torch.arange(n_samples, device=tokens.device).unsqueeze(1)
        pairs, index = (samples * n_tokens + tokens).unique(return_inverse=True)
        sums = grads.new_zeros(len(pairs), grads.shape[2])
        sums.index_add_(0, index.flatten(), grads.flatten(0, 1))
        if "weight" in use.masks:
            sums *= use.masks["weight"][pairs % n_tokens]
        norms = grads.new_zeros(n_samples)
        return norms.index_add_(0, pairs // n_tokens, sums.square().sum(1))

    def _rows(self, use: Use) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] and gradients [B, T, d], zero at the padding."""
        tokens = use.inputs.reshape(len(use.inputs), -1)
        grads = use.grads.reshape(*tokens.shape, -1)
        if use.module.padding_idx is not None:
            padding = tokens == use.module.padding_idx
            grads = grads.masked_fill(padding.unsqueeze(2), 0)
        return tokens, grads


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: LinearRule(),
    nn.Conv1d: ConvRule(),
    nn.Conv2d: ConvRule(),
    nn.BatchNorm1d: BatchNormRule(),
    nn.BatchNorm2d: BatchNormRule(),
    nn.BatchNorm3d: BatchNormRule(),
    nn.LayerNorm: LayerNormRule(),
    nn.RMSNorm: RMSNormRule(),
    nn.GroupNorm: GroupNormRule(),
    nn.Embedding: EmbeddingRule(),
}


def rule_of(name: str, module: nn.Module) -> Rule | None:
    """The rule of exactly this type (a subclass may compute something else), or None.

    Raises ValueError for a layer in a mode whose gradient is not per sample.
    """
    rule = RULES.get(type(module))
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
        module.training or module.running_mean is None
    ):
        raise ValueError(
            f"{name!r} is a {type(module).__name__} that uses statistics of the batch, "
            "which mix the samples: call model.eval(), and keep running statistics"
        )
    if isinstance(module, nn.Embedding) and (
        module.max_norm is not None or module.scale_grad_by_freq
    ):
        return None
    return rule
