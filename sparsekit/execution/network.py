"""A whole network in the blocked layout: activations are converted at the ends only.

`torch.fx` traces the network, `rewriting` rewrites the graph, and the code that results
is the forward pass of a module with the same submodules.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import fx, nn

from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.norm import BlockedBatchNorm2d
from sparsekit.execution.reasons import first_line
from sparsekit.execution.rewriting import KEEP_ZERO_MODULES, Rewriting
from sparsekit.modes import in_mode


def blocked_network(model: nn.Module) -> tuple[nn.Module, str | None]:
    """`model`, whose sparse convolutions hand blocked tensors to each other.

    Returns:
        the network and None; or `model` itself and why it could not be traced: its
        convolutions then convert their activations, each for itself. The network
        shares submodules, parameters and names with `model`, except that batch norms
        become BlockedBatchNorm2d. It computes what `model` computes at the time of
        this call: what a `forward` reads beside its tensors and `self.training` is not
        read again, and arguments that are None by default stay None.
    """
    hooked = next((n for n, m in model.named_modules() if _has_hooks(m)), None)
    if hooked is not None:
        return model, f"module {hooked!r} has hooks, which need every activation"
    if isinstance(model, SparseLayer):
        return model, "it is one layer"
    graphs = []
    try:
        for training in (True, False):  # `forward` may ask for self.training
            with in_mode(model, training):
                graphs.append(Rewriting(model, _trace(model)).run())
    except Exception as error:  # whatever the traced code raises
        return model, f"torch.fx cannot trace it: {first_line(error)}"
    return BlockedNetwork(model, *graphs), None


class BlockedNetwork(nn.Module):
    """What `blocked_network` made of a model: same submodules, another forward.

    Attributes:
        code: the forward pass as Python source, in training and in evaluation mode.
    """

    def __init__(self, model: nn.Module, training: fx.Graph, evaluation: fx.Graph):
        super().__init__()
        for name in ("_parameters", "_buffers", "_modules", "training"):
            setattr(self, name, getattr(model, name))
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        for graph in (training, evaluation):  # tensors that are no buffers, constants
            for node in graph.find_nodes(op="get_attr"):
                if node.target in vars(model):
                    setattr(self, node.target, vars(model)[node.target])
        _replace_layers(self)
        sources = [graph.python_code("self") for graph in (training, evaluation)]
        self.code = tuple(source.src for source in sources)
        self._globals = {k: v for source in sources for k, v in source.globals.items()}
        self._compile()

    def _compile(self) -> None:
        self._forward = tuple(_function(text, self._globals) for text in self.code)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, with its arguments."""
        if self.code[0] != self.code[1] and any(
            module.training != self.training for module in self.modules()
        ):
            raise RuntimeError(
                "the model's forward depends on self.training, so that all of its "
                "modules must be in the same mode: call train() or eval() on the whole"
            )
        return self._forward[0 if self.training else 1](self, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k != "_forward"}
        state["_globals"] = {  # modules cannot be pickled: their names
            k: v.__name__ if isinstance(v, ModuleType) else v
            for k, v in self._globals.items()
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._globals = {
            k: import_module(v) if isinstance(v, str) else v
            for k, v in self._globals.items()
        }
        self._compile()


def _function(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    scope = dict(names)
    exec(compile(source, "<blocked network>", "exec"), scope)
    return scope["forward"]


def _has_hooks(module: nn.Module) -> bool:
    kinds = "forward", "forward_pre", "backward", "backward_pre"
    return any(getattr(module, f"_{kind}_hooks") for kind in kinds)


def _replace_layers(model: nn.Module) -> None:
    """Batch norms that know the layout; activations that change nothing in place."""
    new: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if type(child) is nn.BatchNorm2d:
                if child not in new:
                    new[child] = BlockedBatchNorm2d.from_dense(child)
                parent._modules[name] = new[child]
            elif isinstance(child, KEEP_ZERO_MODULES) and hasattr(child, "inplace"):
                child.inplace = False


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, SparseLayer) or super().is_leaf_module(module, name)


def _trace(model: nn.Module) -> fx.Graph:
    """Arguments that are None by default stay None: `forward` asks for that."""
    parameters = inspect.signature(model.forward).parameters.values()
    absent = {p.name: None for p in parameters if p.default is None}
    graph = _Tracer().trace(model, absent)
    for node in graph.find_nodes(op="placeholder"):
        name = str(node.target).removesuffix("_1")  # fx renames the absent ones
        if name in absent:
            node.target = name
    return graph
