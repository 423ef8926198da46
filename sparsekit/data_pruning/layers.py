"""Rules of norms and embeddings, and the table of all layers that have a rule.

A layer without one is never guessed at.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.data_pruning.products import ConvRule, LinearRule
from sparsekit.data_pruning.rule import Rule, Use


class NormRule(Rule):
    """Norms that scale a standardised input: weight * x + bias."""

    @abstractmethod
    def standardised(self, use: Use) -> Tensor:
        """The input, standardised, in the shape of the input."""

    @abstractmethod
    def summed(self, use: Use, entries: Tensor) -> Tensor:
        """[B, *shape of the input] summed to [B, *shape of the parameter]."""

    def gradients(self, use: Use, names: set[str]) -> dict[str, Tensor]:
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
        dtype, module = use.grads.dtype, use.module
        mean, var = module.running_mean.to(dtype), module.running_var.to(dtype)
        return F.batch_norm(use.inputs.to(dtype), mean, var, eps=module.eps)

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

    def gradients(self, use: Use, names: set[str]) -> dict[str, Tensor]:
        weight = use.module.weight
        tokens, grads = self._rows(use)
        found = grads.new_zeros(len(tokens), *weight.shape)
        where = tokens.unsqueeze(2).expand_as(grads)
        return {"weight": use.masked("weight", found.scatter_add_(1, where, grads))}

    def squared_norms(self, use: Use, names: set[str]) -> dict[str, Tensor]:
        tokens, grads = self._rows(use)
        n_samples, n_tokens = len(tokens), use.module.num_embeddings
        samples = torch.arange(n_samples, device=tokens.device).unsqueeze(1)
        pairs, index = (samples * n_tokens + tokens).unique(return_inverse=True)
        sums = grads.new_zeros(len(pairs), grads.shape[2])
        sums.index_add_(0, index.flatten(), grads.flatten(0, 1))
        if "weight" in use.masks:
            sums *= use.masks["weight"][pairs % n_tokens]
        norms = grads.new_zeros(n_samples)
        norms.index_add_(0, pairs // n_tokens, sums.square().sum(1))
        return {"weight": norms}

    def _rows(self, use: Use) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] and gradients [B, T, d], zero at the padding."""
        tokens = use.inputs.reshape(len(use.inputs), -1).long()
        grads = use.grads.reshape(*tokens.shape, use.module.embedding_dim)
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


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of exactly this type (a subclass may compute something else), or None.

    Other parameters than a weight and a bias, as `torch.nn.utils.weight_norm` and
    `prune` put in their place, have no rule.
    """
    if any(name not in ("weight", "bias") for name, _ in module.named_parameters()):
        return None
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return None
    return RULES.get(type(module))


def require_per_sample(name: str, module: nn.Module) -> None:
    """Raises ValueError for a layer in a mode whose gradient is not per sample."""
    kind = f"{name!r} is a {type(module).__name__}"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
        module.training or module.running_mean is None
    ):
        raise ValueError(
            f"{kind} that uses statistics of the batch, which mix the samples: call "
            "model.eval(), and keep running statistics"
        )
    if isinstance(module, nn.modules.dropout._DropoutNd) and (
        module.training and module.p > 0
    ):
        raise ValueError(f"{kind} that draws at random: call model.eval()")
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise ValueError(f"{kind} with max_norm, which changes its weight when called")
