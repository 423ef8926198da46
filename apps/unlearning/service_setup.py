"""Makes a service: keys, the ledger, the model that is trained on all records."""

import secrets
from pathlib import Path

from apps.common import signing
from apps.common.receipt import now
from apps.unlearning import ledger_import, service_folder, service_shards
from apps.unlearning import service_work as work
from apps.unlearning.config import Config
from apps.unlearning.ledger import Ledger
from apps.unlearning.service_folder import hash_and_size, locked
from apps.unlearning.service_shards import SHARDS


def setup(
    folder: Path,
    config: Config,
    mapping: Path | None = None,
    hashed: bool = True,
    weights: Path | None = None,
) -> None:
    """Makes the folder: keys, ledger, the model that is trained on all records.

    mapping: whose the records are, see `ledger_import`. hashed: the ledger keeps
    HMAC-SHA256 of subject ids, with a salt in the folder, in place of the ids.
    weights: of a model that was trained elsewhere, on the training part that the
    config's seed draws; then nothing is trained here. See `service_work.given`.

    An interrupted setup goes on. Raises ValueError for a folder that holds something
    else or is set up already, and for a mapping that does not fit the data.
    """
    data = work.material(config)
    pairs: list[tuple[str, int]] = []
    if mapping is not None:
        pairs = ledger_import.read_mapping(mapping, data.n_records)
    service_folder.make(folder)
    with locked(folder):
        service_folder.keep_config(folder, config)
        signing.create_key(folder / "key.pem")
        if not (folder / "salt").exists():
            signing.write_secret(folder / "salt", secrets.token_bytes(32))
        with Ledger(folder / "ledger.sqlite", create=True) as ledger:
            if ledger.is_installed():
                raise ValueError(
                    f"{folder} is set up already: `import` adds to its mapping"
                )
            salt = (folder / "salt").read_bytes() if hashed else None
            named = [(ledger_import.hashed(s, salt), record) for s, record in pairs]
            if weights is None:
                path = folder / "work" / "setup"
                trained = work.original(config, data, path, folder / SHARDS)
            else:
                trained = work.given(config, data, weights)
            path = "models/0000.safetensors"
            work.write_model(folder / path, trained.model, trained.masks)
            facts = {
                "hashed": "yes" if hashed else "no",
                "data": data.name,
                "content_sha256": data.content_sha256(),
                "n_records": str(data.n_records),
                "provenance": trained.provenance if trained.masks else "dense",
            }
            service_shards.list_checkpoints(ledger, folder, trained.model, now())
            file = (path, *hash_and_size(folder, path))
            ledger.install(file, data.train.ids.tolist(), facts, named, now())
        work.clear(folder / "work")
