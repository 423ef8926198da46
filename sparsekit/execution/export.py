"""Writes a sparse network into one file, for `sparsekit.execution.reader` or ONNX."""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from sparsekit import atomic, packing
from sparsekit.execution import reader
from sparsekit.execution.layer import SparseLayer
from sparsekit.execution.model_file import ENCODINGS, FORMAT, VERSION
from sparsekit.execution.tracing import Layer, trace
from sparsekit.modes import in_mode

# Of stored values: type, and the relative error that the written file may have.
VALUES = {
    "float32": (torch.float32, 1e-4),
    "float16": (torch.float16, 2e-2),
    "bfloat16": (torch.bfloat16, 1e-1),
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        bytes_on_disk: of the file; dense_bytes: of its dense weights in float32.
        error: max |file - model| / max |model| on the example.
        encodings: {layer: how its weight is stored}.
    """

    path: Path
    bytes_on_disk: int
    dense_bytes: int
    error: float
    encodings: dict[str, str]


@torch.no_grad()
def save(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    masks: Mapping[str, Tensor] | None = None,
    values: str = "float32",
) -> Exported:
    """Writes `model` for inference, if the file computes what the model does.

    Batch norm is folded into the layer before it. Each weight is stored in the smallest
    of the encodings dense, bitmask and delta (see `sparsekit.packing`). Alive weights
    of value 0 are not stored: they change nothing any more.

    Args:
        model: on the CPU; made of convolutions (groups 1 or depthwise), linear layers
            or their sparse forms, batch norm, ReLU, ReLU6, additions, pooling and
            flattening. It is run in evaluation mode.
        example: [N, ...] float32, an input; the file is checked on it.
        path: replaced in one step, or left as it is.
        masks: {name of a weight: bool}, for dense weights that are not masked yet.
        values: type that weights are stored in: float32, float16 or bfloat16. Biases
            are float32, and so is the computation.

    Raises:
        ValueError: naming a module that has no step; or if the file's output differs
            from the model's, which is then not written.
    """
    if values not in VALUES:
        raise ValueError(f"values is one of {list(VALUES)}, got {values!r}")
    if example.dtype != torch.float32 or len(example) < 1:
        raise ValueError(
            f"example is float32 with at least one sample, got {example.dtype} "
            f"of shape {tuple(example.shape)}"
        )
    path = Path(path)
    with in_mode(model, training=False):
        steps = trace(model, example, masks)
        expected = _masked_output(model, example, masks or {})
    content, encodings, dense = _pack(steps, tuple(example.shape[1:]), values)
    error = _error(content, example, expected)
    limit = VALUES[values][1]
    if not error <= limit:
        raise ValueError(
            f"the exported network's output differs from the model's by {error:.1e} of "
            f"its largest value, more than {limit:.0e}; {path} was not written"
            + ("" if values == "float32" else "; take values='float32'")
        )
    atomic.write_bytes(path, content)
    return Exported(path, len(content), dense, error, encodings)


@torch.no_grad()
def save_onnx(model: nn.Module, example: Tensor, path: str | Path) -> Path:
    """Writes a plain (dense or compacted) model as ONNX, checked with onnxruntime.

    Zeros are stored like any number: ONNX has no sparse convolutions. The model is run
    in evaluation mode.

    Raises:
        ValueError: for layers in values mode, or if onnxruntime's output differs from
            the model's.
    """
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            raise ValueError(
                f"{name!r} is in values mode, which ONNX has not: write the model it "
                "was made of, after load_state_dict(dense_state_dict(model))"
            )
    with in_mode(model, training=False):
        return _save_onnx(model, example, Path(path))


def _save_onnx(model: nn.Module, example: Tensor, path: Path) -> Path:
    import onnxruntime

    batch = ({0: torch.export.Dim.DYNAMIC},) if len(example) > 1 else None
    content = onnx_content(model, example, batch)
    session = onnxruntime.InferenceSession(content)
    (name,) = (x.name for x in session.get_inputs())
    found = session.run(None, {name: example.numpy()})[0]
    error = _relative(found, model(example).numpy())
    limit = VALUES["float32"][1]
    if not error <= limit:
        raise ValueError(f"onnxruntime differs by {error:.1e}; {path} was not written")
    atomic.write_bytes(path, content)
    return path


def onnx_content(
    model: nn.Module, example: Tensor, shapes: tuple[Any, ...] | None = None
) -> bytes:
    """A model in ONNX as torch writes it, quietly; `shapes`: dynamic ones."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is no need
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own code
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes
        )
    assert program is not None  # it is without a file
    content: bytes = program.model_proto.SerializeToString()
    return content


def _masked_output(
    model: nn.Module, example: Tensor, masks: Mapping[str, Tensor]
) -> Tensor:
    """The model's own output, with masks applied to what it computes with."""
    weights = {
        name: model.get_parameter(name) * mask
        for name, mask in masks.items()
        if name in dict(model.named_parameters())
    }
    output: Tensor = torch.func.functional_call(model, weights, (example,))
    return output


def _pack(
    steps: list[Layer], shape: tuple[int, ...], values: str
) -> tuple[bytes, dict[str, str], int]:
    """The file's content, {layer: encoding}, bytes of the dense weights."""
    tensors: dict[str, Tensor] = {}
    encodings = {}
    dense_bytes = 0
    for layer in steps:
        if layer.weight is None:
            continue
        weight = layer.weight.to(VALUES[values][0])
        mask = weight != 0
        encoding = min(
            ENCODINGS,
            key=lambda e: packing.predicted_nbytes(mask, e, weight.element_size()),
        )
        for part, tensor in packing.encode(weight, mask, encoding).items():
            tensors[f"{layer.name}.{part}"] = tensor.contiguous()
        if layer.bias is not None:
            tensors[f"{layer.name}.bias"] = layer.bias.float()
        layer.entry |= {"weight": list(weight.shape), "encoding": encoding}
        encodings[layer.name] = encoding
        dense_bytes += 4 * weight.numel()
    graph = {
        "format": FORMAT,
        "version": VERSION,
        "input": list(shape),
        "output": steps[-1].name,
        "steps": [layer.entry for layer in steps],
    }
    metadata = {"sparsekit": json.dumps(graph)}
    return safetensors.torch.save(tensors, metadata), encodings, dense_bytes


def _error(content: bytes, example: Tensor, expected: Tensor) -> float:
    found = reader.loads(content)(np.ascontiguousarray(example.numpy()))
    return _relative(found, expected.numpy())


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest number; 1 if all should be 0, and are not."""
    if found.shape != expected.shape:
        return float("inf")
    difference, largest = np.abs(found - expected).max(), np.abs(expected).max()
    return float(difference / largest if largest else difference != 0)
