"""A finished run as one small file, for a device without torch, and as ONNX.

    sparsekit continual export --run runs/sparcl
    python -m sparsekit.execution.reader runs/sparcl/device.safetensors x.npy y.npy

Both take standardised inputs, as `Stream.view` makes them: device.json tells the mean
and the deviation of each channel, and what the classes are called. ONNX stores zeros
like any number, so that its file is not smaller.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from apps.common.runs import RunFolder
from apps.continual.result import load_result
from sparsekit import atomic
from sparsekit.execution.export import Exported, save, save_onnx


@dataclass(frozen=True)
class Exports:
    """What was written: the file of the reader, what is to be done before and after it,
    and the ONNX file if there is one."""

    device: Exported
    about: Path
    onnx: Path | None


def export(
    run: Path, out: Path | None = None, values: str = "float32", onnx: bool = False
) -> Exports:
    """Writes device.safetensors, .json and, if asked for, .onnx beside the run.

    device.json: {"input": shape, "standardise": {"mean", "std"}, one number a channel,
    null for counts of words c, which become log(1 + c), scaled to length sqrt(D);
    "classes": names, in the order of the outputs}. Each model is checked: it computes
    what the run's does, or it is not written.

    Args:
        run: folder of a finished run.
        out: another folder to write to.
        values: type of stored weights: float32, float16 or bfloat16.
        onnx: needs the packages of `pip install sparsekit[export]`.

    Raises:
        FileNotFoundError: if there is no finished run.
        ValueError: if the model has a layer that cannot be exported, or the file's
            output differs.
    """
    result = load_result(run)
    _, described = RunFolder(run).read_tensors("samples.safetensors")
    facts = json.loads(described["run"])
    if "mean" not in facts:
        raise ValueError(
            f"{run} is of an older version, which did not keep how inputs are "
            "standardised: train it again"
        )
    shape = facts["shape"]
    folder = run if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    model = result.model.cpu()
    written = save(
        model, example, folder / "device.safetensors", result.masks or None, values
    )
    moments = {name: facts[name] for name in ("mean", "std")}
    about = {
        "input": shape,
        "standardise": None if facts["counts"] else moments,
        "classes": facts["names"],
    }
    told = folder / "device.json"
    atomic.write_text(told, json.dumps(about, indent=1) + "\n")
    path = save_onnx(model, example, folder / "device.onnx") if onnx else None
    return Exports(written, told, path)
