"""Checkpoints of a service whose model was trained in shards (SISA).

Each slice's checkpoint is a listed file, with the records that it learned: a deletion
trains again what comes after the first slice that held one of them, and retires just
the checkpoints that did.
"""

from pathlib import Path

from torch import nn

from apps.common import inside
from apps.unlearning.ensemble import Ensemble
from apps.unlearning.ledger import Ledger
from apps.unlearning.service_folder import hash_and_size

SHARDS = "shards"


def list_checkpoints(ledger: Ledger, folder: Path, model: nn.Module, at: str) -> None:
    """Lists the checkpoints of a model's shards; those that are listed stay as they
    are. Any other model has none."""
    if isinstance(model, Ensemble):
        for key, records in model.keys.items():
            path = f"{SHARDS}/{key}.safetensors"
            found = hash_and_size(folder, path)
            ledger.add_artefact(path, *found, "checkpoint", at, trained_on=records)


def require_checkpoints(ledger: Ledger, folder: Path) -> None:
    """ValueError unless every listed checkpoint is there as it was listed."""
    for file in ledger.artefacts("live"):
        own = file.path.startswith(f"{SHARDS}/")
        if own and inside.digest(folder, file.path) != file.sha256:
            raise ValueError(f"{file.path} is gone or was changed: restore your backup")


def clear_unlisted(ledger: Ledger, folder: Path) -> None:
    """Removes checkpoints that a batch which came to nothing has left."""
    listed = {file.path for file in ledger.artefacts()}
    if (folder / SHARDS).is_dir():
        for name in inside.files(folder / SHARDS):
            if f"{SHARDS}/{name}" not in listed:
                inside.remove(folder, f"{SHARDS}/{name}")
