"""Products of matrices as they run, and the parameter that each of them uses."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop

aten = torch.ops.aten

Formula = Callable[..., int]


@dataclass(frozen=True)
class View:
    """The part of a parameter that an operation used, as strides into its storage."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # from the parameter's first entry

    @property
    def numel(self) -> int:
        return math.prod(self.size)


def _product_flop(a: Any, b: Any, out_shape: Any = None, **_: Any) -> int:
    """mv, dot: every entry of the first operand is multiplied once."""
    return 2 * math.prod(a)


def _shapes_then(formula: Formula) -> Formula:
    """Call a formula of shapes with tensors, as torch's registry does."""

    def of_tensors(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        shape_of = lambda x: x.shape if isinstance(x, Tensor) else x  # noqa: E731
        mapped = [torch.utils._pytree.tree_map(shape_of, a) for a in (args, kwargs)]
        out = torch.utils._pytree.tree_map(shape_of, out_val)
        return formula(*mapped[0], out_shape=out, **mapped[1])

    return of_tensors


_FORMULAS: dict[Any, Formula] = {
    **flop_registry,
    # The CPU's attention kernel; torch's counter has only those of CUDA.
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten.mv: _shapes_then(_product_flop),
    aten.dot: _shapes_then(_product_flop),
    aten.vdot: _shapes_then(_product_flop),
    aten.addmv: _shapes_then(lambda _, a, b, **k: _product_flop(a, b)),
}

# Where the two factors of a product are, if they are not the first two arguments.
_FACTORS = {aten.addmm: (1, 2), aten.baddbmm: (1, 2), aten.addmv: (1, 2)}

_HEAVY = re.compile(
    r"mm|matmul|conv|attention|linear|lstm|gru|rnn|fft|linalg|cdist|einsum|addr|"
    r"trilinear|cholesky|svd|inverse|solve|lu_|qr|triangular|transformer|pdist|ger|"
    r"correlation|scan|quantized"
)
_LIGHT_NAMES = re.compile(
    r"_(?:unsafe_)?(?:view|reshape_alias)|.*embedding.*|.*norm.*|.*index.*|.*copy.*|"
    r"clone|cat|stack|sum|mean|var.*|std.*|prod|amax|amin|max|min|.*softmax.*|gather|"
    r"scatter.*|.*like.*|new_.*|zeros|ones|empty.*|full|fill.*|constant_pad_nd|flip|"
    r"roll|repeat.*|tril.*|triu.*|where|masked_.*|topk|kthvalue|sort|argsort|argmax|"
    r"argmin|any|all|nonzero|unsafe_split.*|split.*|.*pool.*|.*upsample.*|rand.*|"
    r"bernoulli.*|dropout|native_dropout|_local_scalar_dense|item|equal|cum.*|"
    r"linear_interpolation|logsumexp|detach.*|lift.*|resize.*|set_|_thnn_fused.*|take|"
    r"bincount|histc|_to_copy|multinomial|.*pad.*|unfold.*|im2col|col2im|"
    r"_weight_norm.*|normal_|uniform_|diag.*|aminmax|median|unique.*|isin"
)


class FlopCounter(TorchDispatchMode):
    """Counts products and finds the parameter that each of them uses.

    A storage is either a parameter's, or derived from parameters only (a cast, a
    masked copy), or depends on the input. Storages are held by weak references, which
    keep their addresses from being used again.

    Attributes:
        counts: {name: FLOPs of products with that parameter}.
        uses: {part of a parameter: FLOPs}.
        other: FLOPs of products between activations.
    """

    def __init__(self, model: nn.Module, formulas: Mapping[Any, Formula]):
        super().__init__()
        self.formulas = {
            **_FORMULAS,
            **{op: _shapes_then(formula) for op, formula in formulas.items()},
        }
        self.parameters = dict(model.named_parameters())
        self.own: dict[StorageWeakRef, list[str]] = {}
        for name, parameter in self.parameters.items():
            self.own.setdefault(_storage(parameter), []).append(name)
        self.derived: dict[StorageWeakRef, tuple[View, ...]] = {}
        self.from_input: set[StorageWeakRef] = set()
        self.counts = dict.fromkeys(self.parameters, 0)
        self.uses: dict[View, int] = {}
        self.other = 0

    def see_inputs(self, leaves: list[Any]) -> None:
        """Mark tensors as activations."""
        self.from_input |= {_storage(leaf) for leaf in leaves if _is_dense(leaf)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", func)
        if packet not in self.formulas and hasattr(func, "decompose"):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if _is_dense(t)]
        if packet in self.formulas:
            flops = self.formulas[packet](*args, **kwargs, out_val=out)
            self._attribute(packet, args, flops)
            # A product of two weights is not itself a weight whose entries are known.
            if any(_storage(t) in self.from_input for t in tensors):
                self.see_inputs(tree_leaves(out))
        else:
            self._require_light(func, tensors)
            self._follow(tensors, [t for t in tree_leaves(out) if _is_dense(t)])
        return out

    def _attribute(self, packet: Any, args: Any, flops: int) -> None:
        views: tuple[View, ...] = ()
        if flops and "attention" not in str(packet):
            # Of two weights the second, where F.linear and convolutions have theirs.
            last = 2 if packet in _FORMULAS else len(args)
            for i in reversed(_FACTORS.get(packet, range(min(last, len(args))))):
                views = views or self._weight(args[i])
        shares = [flops * v.numel // sum(w.numel for w in views) for v in views]
        for view, share in zip(views, shares, strict=True):
            self.counts[view.name] += share
            self.uses[view] = self.uses.get(view, 0) + share
        self.other += flops - sum(shares)

    def _weight(self, factor: Any) -> tuple[View, ...]:
        """The parts of parameters that make up a factor; none if it is no weight.

        A derived factor is explained by the one source of its size (a masked or cast
        copy, also if broadcast), or by all sources together (a concatenation).
        """
        if not _is_dense(factor) or _storage(factor) in self.from_input:
            return ()
        own = self._own_view(factor)
        if own:
            return (own,)
        sources = self.derived.get(_storage(factor), ())
        same = tuple(v for v in sources if v.numel == factor.numel())
        if len(same) == 1:
            return same
        if len(sources) == 1 and factor.numel() % sources[0].numel == 0:
            return sources
        if sum(v.numel for v in sources) == factor.numel():
            return sources
        return ()

    def _own_view(self, tensor: Tensor) -> View | None:
        """The view of a parameter that shares the tensor's storage and holds it."""
        for name in self.own.get(_storage(tensor), ()):
            parameter = self.parameters[name]
            offset = tensor.storage_offset() - parameter.storage_offset()
            if offset >= 0 and offset + _extent(tensor) <= _extent(parameter):
                return View(name, tuple(tensor.shape), tensor.stride(), int(offset))
        return None

    def _sources(self, tensor: Tensor) -> tuple[View, ...]:
        own = self._own_view(tensor)
        return (own,) if own else self.derived.get(_storage(tensor), ())

    def _follow(self, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        """What the outputs depend on."""
        from_input = any(_storage(t) in self.from_input for t in tensors)
        sources = tuple({v: None for t in tensors for v in self._sources(t)})
        for output in outputs:
            if from_input:
                self.from_input.add(_storage(output))
            elif sources:
                self.derived[_storage(output)] = sources

    def _require_light(self, func: Any, tensors: list[Tensor]) -> None:
        """Refuse an unknown operation that may multiply matrices."""
        namespace, _, name = str(getattr(func, "_name", func)).partition("::")
        name = name.partition(".")[0]
        own = namespace in ("aten", "prim", "prims")
        light = own and (_is_light(func) or _LIGHT_NAMES.fullmatch(name))
        reads_weight = any(v for t in tensors if t.dim() > 1 for v in self._sources(t))
        if light or (own and not reads_weight and not _HEAVY.search(name)):
            return
        raise NotImplementedError(
            f"the FLOPs of {func} on {[tuple(t.shape) for t in tensors]} are not "
            "known: pass forward_flops(..., formulas={operation: f}), where f(*shapes, "
            "out_shape=...) returns them (0 if it multiplies no matrices)"
        )


def _is_light(func: Any) -> bool:
    return bool(getattr(func, "is_view", False)) or (
        torch.Tag.pointwise in getattr(func, "tags", ())
    )


def _is_dense(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _extent(tensor: Tensor) -> int:
    """Entries of the storage from the tensor's first to its last."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)
