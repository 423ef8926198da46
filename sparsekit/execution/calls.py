"""What a call in a torch.fx graph does: its function, options, and whether in place."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparsekit.execution.pool import average_pool, max_pool

_MAXIMUM = "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
_AVERAGE = (
    "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
    "divisor_override",
)  # fmt: skip
_IN_PLACE = {
    getattr(operator, name)
    for name in dir(operator)
    if name.startswith("i") and hasattr(operator, name[1:])
} | {operator.setitem}  # iadd and the like


def called(node: fx.Node, functions: Iterable[Any], methods: Iterable[str]) -> bool:
    """Does the node call one of these functions or tensor methods?"""
    if node.op == "call_function":
        return any(node.target is function for function in functions)
    return node.op == "call_method" and str(node.target) in methods


def plain(node: fx.Node, n: int, keywords: tuple[str, ...] = ()) -> bool:
    """Is it called with n arguments, the first being a value, and known keywords?"""
    return (
        len(node.args) == n
        and isinstance(node.args[0], fx.Node)
        and not set(node.kwargs) - set(keywords)
    )


def in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Does the call change its first argument?"""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = getattr(node.target, "__name__", str(node.target))
    ends = name.endswith("_") and not name.endswith("__")
    return ends or node.target in _IN_PLACE or bool(node.kwargs.get("inplace", False))


def is_global_mean(node: fx.Node, module: nn.Module | None) -> bool:
    """Is it the mean over rows and columns?"""
    if type(module) is nn.AdaptiveAvgPool2d:
        return module.output_size in (1, (1, 1)) and plain(node, 1)
    if called(node, (F.adaptive_avg_pool2d,), ()):
        return plain(node, 2) and node.args[1] in (1, (1, 1), [1, 1])
    if not called(node, (torch.mean,), ("mean",)):
        return False
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(dims, (tuple, list)) or set(node.kwargs) - {"dim", "keepdim"}:
        return False
    return sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]


def keeps_pixels(node: fx.Node) -> bool:
    """Is the result of a global mean [N, C, 1, 1], not [N, C]?"""
    if not called(node, (torch.mean,), ("mean",)):
        return True
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return bool(keep)


def window(node: fx.Node, module: nn.Module | None) -> tuple[Any, ...] | None:
    """(max_pool, side, stride, padding) or (average_pool, side, stride), if it is one.

    Windows are square, not dilated, and end within the image; means have no padding.
    """
    options: dict[str, Any]
    if type(module) in (nn.MaxPool2d, nn.AvgPool2d) and plain(node, 1):
        maximum = type(module) is nn.MaxPool2d
        names = _MAXIMUM if maximum else _AVERAGE
        options = {name: getattr(module, name) for name in names}
    elif called(node, (F.max_pool2d, F.avg_pool2d, torch.max_pool2d), ()):
        maximum = node.target is not F.avg_pool2d
        names = _MAXIMUM if maximum else _AVERAGE
        options = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    else:
        return None
    side = _square(options.pop("kernel_size"))
    stride = _square(options.pop("stride", None) or side)
    padding = _square(options.pop("padding", 0))
    dilation = _square(options.pop("dilation", 1))
    options.pop("count_include_pad", None)
    if None in (side, stride, padding) or dilation != 1 or any(options.values()):
        return None
    if maximum:
        return max_pool, side, stride, padding
    return (average_pool, side, stride) if padding == 0 else None


def _square(option: Any) -> int | None:
    pair = (option, option) if isinstance(option, int) else tuple(option or ())
    same = len(pair) == 2 and pair[0] == pair[1] and isinstance(pair[0], int)
    return pair[0] if same else None
