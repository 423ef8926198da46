"""What a trained model costs: parameters, bytes on disk, memory."""

import json
from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sparsekit.memory import peak_rss
from sparsekit.packing import FORMATS, decode, decode_mask, encode, nbytes

Masks = Mapping[str, Tensor]


def packed(model: nn.Module, masks: Masks) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that stores masked weights in few bytes.

    Each masked weight takes the smallest of `sparsekit.packing.FORMATS`; "dense" only
    if its mask is full, since that format would lose the mask.
    """
    tensors, layout = {}, {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        if name not in masks:
            tensors[name] = value
            continue
        mask = masks[name].cpu()
        formats = FORMATS if mask.all() else [f for f in FORMATS if f != "dense"]
        choices = {form: encode(value, mask, form) for form in formats}
        form = min(choices, key=lambda form: nbytes(choices[form]))
        layout[name] = {"format": form, "shape": list(value.shape)}
        tensors |= {f"{name}:{part}": t for part, t in choices[form].items()}
    return tensors, {"sparsekit.packing": json.dumps(layout)}


def unpacked(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dict and masks from what `packed` returned; the values are exact."""
    layout = json.loads(metadata["sparsekit.packing"])
    state = {name: tensor for name, tensor in tensors.items() if ":" not in name}
    masks = {}
    for name, entry in layout.items():
        form, shape = entry["format"], entry["shape"]
        prefix = f"{name}:"
        parts = {
            k.removeprefix(prefix): t
            for k, t in tensors.items()
            if k.startswith(prefix)
        }
        state[name] = decode(parts, shape, form)
        full = form == "dense"
        masks[name] = (
            torch.ones(shape, dtype=torch.bool)
            if full
            else decode_mask(parts, shape, form)
        )
    return state, masks


def bytes_on_disk(model: nn.Module, masks: Masks) -> int:
    """Size of the packed safetensors file, header included."""
    tensors, metadata = packed(model, masks)
    return len(save(tensors, metadata))


def count_parameters(model: nn.Module, masks: Masks) -> tuple[int, int]:
    """All parameters, and those that are active: alive, or not masked at all."""
    total = sum(p.numel() for p in model.parameters())
    absent = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    return total, total - absent


def costs(
    model: nn.Module, masks: Masks, *, seconds: float, flops: float | None
) -> dict[str, float | None]:
    """What every result tells of a training, under the names of `runs.COSTS`.

    flops: None if they were not counted.
    """
    params_total, params_active = count_parameters(model, masks)
    return {
        "train_seconds": seconds,
        "train_flops": flops,
        "peak_rss_mb": peak_rss() / 1e6,
        "params_total": params_total,
        "params_active": params_active,
        "bytes_on_disk": bytes_on_disk(model, masks),
    }
