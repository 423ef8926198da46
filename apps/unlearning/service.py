"""A deletion service in a folder: from a request to a signed receipt.

`service_setup.setup` makes the folder, trains the model and makes the keys. Then:

    with Service(folder) as service:
        service.request("c-1041")                  # received, for good
        service.run()                              # one unlearning run for all received
        service.audit()                            # retrains, attacks, signs a receipt

    service/
      ledger.sqlite  config.toml  key.pem  public.pem  salt
      models/0000.safetensors  models/0001.safetensors ...   original, after each batch
      shards/        checkpoints of sisa, if that is the method of the setup
      receipts/0001.json  receipts/public.pem
      work/          what an interrupted run goes on from

A call that is killed at any point leaves the ledger before or after a step, never
between; the next call of the same verb goes on. Requests of an unfinished batch stay in
it, and keep its settings.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from apps.common import inside, signing
from apps.common.config import parse
from apps.common.receipt import now
from apps.unlearning import (
    ledger_import,
    service_folder,
    service_retire,
    service_shards,
)
from apps.unlearning import service_work as work
from apps.unlearning.config import Config
from apps.unlearning.ledger import Batch, Ledger
from apps.unlearning.ledger_data import DERIVED
from apps.unlearning.pruning import Original
from apps.unlearning.service_audit import Settings
from apps.unlearning.service_folder import hash_and_size, locked
from apps.unlearning.service_receipt import audit_batch
from apps.unlearning.service_shards import SHARDS
from apps.unlearning.service_work import Material
from apps.unlearning.unlearner import build
from sparsekit import atomic
from sparsekit.spelling import choice

MOST_REQUESTS = 10_000  # of a batch; the others wait for the next


class Service:
    """An open service. Raises FileNotFoundError, ValueError if it is not set up."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.ledger = Ledger(self.folder / "ledger.sqlite")
        try:
            self.ledger.fact("current")
            path = self.folder / "config.toml"
            self.config = parse(Config, ["--config", str(path)])
        except BaseException:
            self.ledger.close()
            raise

    def import_mapping(self, path: Path) -> int:
        """Adds (subject, record) rows of a file, all or none; how many were new."""
        pairs = ledger_import.read_mapping(path, int(self.ledger.fact("n_records")))
        return self.ledger.add_subjects((self._opaque(s), r) for s, r in pairs)

    def request(self, subject: str) -> str:
        """Receives the request to erase a subject; its id, the same if asked twice."""
        return self.request_all([subject])[0]

    def request_all(self, subjects: Iterable[str]) -> list[str]:
        """Receives the requests of all subjects, or none: ValueError names an unknown
        one. Their ids, in the order given."""
        names = {subject: self._opaque(subject) for subject in subjects}
        for subject, name in names.items():
            if not self.ledger.knows(name):
                raise ValueError(
                    f"subject {subject!r} is not in the ledger: import the mapping "
                    "that names it, or check the spelling; nothing was received"
                )
        return [self.ledger.ask(name, self._now()) for name in names.values()]

    def register(self, path: str, kind: str, parents: list[str]) -> None:
        """Lists a file of the folder that derives from listed ones.

        kind: one of `ledger_data.DERIVED`. Raises ValueError for a path out of the
        folder, FileNotFoundError for a file that is not there.
        """
        if kind not in DERIVED:
            raise ValueError(choice(f"kind {kind!r} is unknown", kind, DERIVED))
        service_folder.require_foreign(path)
        if path in parents:
            raise ValueError(f"{path} cannot derive from itself")
        with locked(self.folder):
            numbers = []
            for parent in parents:
                found = self.ledger.artefact(parent)
                if found is None:
                    raise ValueError(f"{parent} is not listed: register it first")
                numbers.append(found.id)
            if not numbers:
                raise ValueError("give the file that it derives from: --parents PATH")
            size = hash_and_size(self.folder, path)
            self.ledger.add_artefact(path, *size, kind, self._now(), parents=numbers)

    def run(
        self, method: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Batch | None:
        """Unlearns all received requests at once; None if there is nothing to do.

        An interrupted run goes on with its own requests and settings. Raises ValueError
        for a batch that awaits its audit, an unknown method or option, and if the
        method fails: the requests are then `failed`, and can be asked again.
        """
        with self._at_work():
            batch = self.ledger.open_batch()
            if batch is not None and batch.state == "done":
                raise ValueError(f"batch {batch.id} awaits its audit: run `audit`")
            if batch is None:
                batch = self._begin(method, options)
            else:
                _require_same(batch, {"method": method, "options": options})
            if batch is not None:
                self._unlearn(batch)
                batch = self.ledger.batch(batch.id)
        return batch

    def audit(self, wanted: Settings | None = None) -> Batch | None:
        """Compares the last batch with retraining; verified with a receipt, or failed.

        None if no batch awaits it. Raises ValueError for a batch that is not done,
        FileNotFoundError without the signing key.
        """
        with self._at_work():
            batch = self.ledger.open_batch()
            if batch is None:
                self._copy_receipts()
                return None
            if batch.state == "running":
                raise ValueError(f"batch {batch.id} was interrupted: call `run` first")
            key = signing.load_key(self.folder / "key.pem")
            data = self._data()
            before = self.model(batch.base, data)
            after = self.model(batch.result or 0, data)
            path = self._work(batch) / "audit"
            audit_batch(self, batch, data, before, after, key, wanted, path, self._now)
            self._copy_receipts()
            work.clear(self._work(batch))
            return self.ledger.batch(batch.id)

    def abandon(self) -> Batch | None:
        """Gives the open batch up, for one that cannot end: a file is lost, the data
        are others. Its requests fail, and can be asked again; None without one."""
        with self._at_work():
            batch = self.ledger.open_batch()
            if batch is None:
                return None
            self.ledger.fail(batch, "abandoned", self._now())
            work.clear(self._work(batch))
            return self.ledger.batch(batch.id)

    def erased(self) -> list[int]:
        """Records of all verified requests: what a later training must leave out."""
        return sorted(self._records(self.ledger.requests("verified")))

    def pending(self) -> list[service_retire.Line]:
        """Retired files, and copies of them, that are still to be wiped."""
        return service_retire.pending(self.ledger, self.folder)

    def wipe(self) -> list[service_retire.Line]:
        """Wipes them; what became of each."""
        with self._at_work():
            return service_retire.wipe(self.ledger, self.folder, self._now())

    def model(self, number: int, data: Material) -> Original:
        """A listed model, if its file is what was listed. data: for its shape."""
        file = self.ledger.artefact(number)
        if file is None:
            raise ValueError(f"the ledger has no file {number}")
        if inside.digest(self.folder, file.path) != file.sha256:
            raise ValueError(f"{file.path} is gone or was changed: restore your backup")
        provenance = self.ledger.fact("provenance")
        return work.read_model(
            self.folder / file.path,
            "data-free" if provenance == "dense" else provenance,
            self.config,
            data,
            self.folder / SHARDS,
        )

    def _begin(
        self, method: str | None, options: Mapping[str, Any] | None
    ) -> Batch | None:
        base = int(self.ledger.fact("current"))
        learned = set(self.ledger.trained_on(base))
        wanted = []
        for request in self.ledger.requests("received")[:MOST_REQUESTS]:
            if learned & set(self.ledger.records_asked(request)):
                wanted.append(request)
            else:
                self._absent(request)
        if not wanted:
            return None
        if learned <= self._records(wanted):
            raise ValueError(
                "the requests name all records that the model was trained on: nothing "
                "is left to learn from; delete the model instead"
            )
        chosen = self.config.method if method is None else method
        if options is None:
            options = self.config.options if chosen == self.config.method else {}
        build(chosen, options)  # all this before a request is touched
        self._require_served(chosen, options)
        self._data()
        return self.ledger.begin(
            wanted, base, {"method": chosen, "options": dict(options)}, self._now()
        )

    def _unlearn(self, batch: Batch) -> None:
        config = replace(self.config, **batch.settings)
        learned = set(self.ledger.trained_on(batch.base))
        erased = learned & self._records(self.ledger.requests_of(batch.id))
        kept = sorted(learned - erased)
        path = f"models/{batch.id:04}.safetensors"
        try:
            data = self._data()
            before = self.model(batch.base, data)
            service_shards.require_checkpoints(self.ledger, self.folder)
            result = work.unlearned(
                config, data, before, kept, sorted(erased), self._work(batch)
            )
            work.require_usable(result.model, before.model)
        except (ValueError, RuntimeError) as error:  # torch's own are RuntimeErrors
            reason = f"{batch.settings['method']}: {error}"
            self.ledger.fail(batch, reason, self._now())
            work.clear(self._work(batch))
            raise ValueError(f"batch {batch.id} failed: {reason}") from error
        work.write_model(self.folder / path, result.model, dict(result.masks))
        facts = {"seconds": result.seconds, "exact": result.exact}
        at = self._now()
        service_shards.list_checkpoints(self.ledger, self.folder, result.model, at)
        file = (path, *hash_and_size(self.folder, path))
        self.ledger.finish(batch, file, kept, facts, at)
        work.clear(self._work(batch))

    def _require_served(self, method: str, options: Mapping[str, Any]) -> None:
        """ValueError for a method that this service's model cannot be unlearned by."""
        sharded = self.config.method == "sisa"
        if method == "sisa" and not sharded:
            raise ValueError(
                "the model was not trained in shards: `setup --method sisa` makes a "
                "service whose model is; here, retrain is exact"
            )
        if sharded and method == "retrain":
            raise ValueError(
                "the model was trained in shards: sisa is what retrains it"
            )
        if method == "sisa" and options != self.config.options:
            raise ValueError(
                "shards and slices are those of `setup`: leave options out"
            )

    def _now(self) -> str:
        """The time, or that of the last line of the log if the clock was set back."""
        return max(now(), self.ledger.latest())

    def _absent(self, request: str) -> None:
        records = self.ledger.records_asked(request)
        held = self.ledger.artefacts_with(records)
        live = [file.id for file in held if file.state == "live"]
        note = "none of its records is in the model"
        self.ledger.absent(request, live, note, self._now())

    def _records(self, requests: list[str]) -> set[int]:
        return {r for request in requests for r in self.ledger.records_asked(request)}

    def _data(self) -> Material:
        """The data; what was ever asked to be erased is in no held-out part."""
        asked = self._records(self.ledger.requests())
        data = work.material(self.config, asked)
        if data.content_sha256() != self.ledger.fact("content_sha256"):
            raise ValueError(
                "the training data are not those that the model was trained on"
            )
        return data

    def _opaque(self, subject: str) -> str:
        ledger_import.require_subject(subject)
        if self.ledger.fact("hashed") == "no":
            return subject
        try:
            salt = (self.folder / "salt").read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no salt at {self.folder / 'salt'}: without it no subject can be "
                "found; restore your backup"
            ) from None
        return ledger_import.hashed(subject, salt)

    def _work(self, batch: Batch) -> Path:
        return self.folder / "work" / f"batch-{batch.id:04}"

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Alone in the folder, without what batches that ended have left in `work`."""
        with locked(self.folder):
            batch = self.ledger.open_batch()
            if batch is None:
                service_shards.clear_unlisted(self.ledger, self.folder)
            left = self.folder / "work"
            for path in left.iterdir() if left.is_dir() else ():
                if batch is None or path != self._work(batch):
                    work.clear(path)
            yield

    def _copy_receipts(self) -> None:
        """The files of receipts are copies of what the ledger keeps."""
        folder = self.folder / "receipts"
        for number, _, text in self.ledger.receipts():
            path = folder / f"{number:04}.json"
            if not path.is_file() or path.read_text("utf-8") != text:
                atomic.write_text(path, text)
        public = (self.folder / "public.pem").read_bytes()
        if self.ledger.receipts() and not (folder / "public.pem").is_file():
            atomic.write_bytes(folder / "public.pem", public)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.ledger.close()


def _require_same(batch: Batch, asked: Mapping[str, Any]) -> None:
    """ValueError if an interrupted batch is asked to go on with other settings."""
    for name, value in asked.items():
        if value is not None and value != batch.settings[name]:
            raise ValueError(
                f"batch {batch.id} was interrupted, and goes on with {name} "
                f"{batch.settings[name]!r}: call `run` without --{name}, or give the "
                "batch up with `run --abandon`"
            )
