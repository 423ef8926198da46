"""A deletion service in a folder: from a request to a signed receipt.

    setup(folder, config, Path("subjects.csv"))    # trains the model, makes the keys
    with Service(folder) as service:
        service.request("c-1041")                  # received, for good
        service.run()                              # one unlearning run for all received
        service.audit()                            # retrains, attacks, signs a receipt

    service/
      ledger.sqlite  config.toml  key.pem  public.pem  salt
      models/0000.safetensors  models/0001.safetensors ...   original, after each batch
      receipts/0001.json  receipts/public.pem
      work/          what an interrupted run goes on from

A call that is killed at any point leaves the ledger before or after a step, never
between; the next call of the same verb goes on. Requests of an unfinished batch stay in
it, and keep its settings.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apps.common.config import parse, refuse_other_settings, settings, to_toml
from apps.unlearning import ledger_import, service_paths, service_retire, signing
from apps.unlearning import service_work as work
from apps.unlearning.config import Config
from apps.unlearning.ledger import Batch, Ledger
from apps.unlearning.ledger_data import DERIVED
from apps.unlearning.pruning import Original
from apps.unlearning.service_audit import Settings
from apps.unlearning.service_receipt import audit_batch
from apps.unlearning.service_work import Material
from apps.unlearning.unlearner import build
from sparsekit import atomic

MOST_REQUESTS = 10_000  # of a batch; the others wait for the next


def now() -> str:
    """UTC to the second, such as 2026-11-28T10:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
    pairs = [] if mapping is None else _mapping(mapping, data)
    _make_folder(folder)
    with _locked(folder):
        _keep_config(folder, config)
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
                trained = work.original(config, data, folder / "work" / "setup")
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
            file = (path, *_hash_and_size(folder, path))
            ledger.install(file, data.train.ids.tolist(), facts, named, now())
        work.clear(folder / "work")


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
        return self.ledger.ask(self._opaque(subject), now())

    def register(self, path: str, kind: str, parents: list[str]) -> None:
        """Lists a file of the folder that derives from listed ones.

        kind: one of `ledger_data.DERIVED`. Raises ValueError for a path out of the
        folder, FileNotFoundError for a file that is not there.
        """
        if kind not in DERIVED:
            raise ValueError(f"kind must be one of {', '.join(DERIVED)}, got {kind!r}")
        with _locked(self.folder):
            numbers = []
            for parent in parents:
                found = self.ledger.artefact(parent)
                if found is None:
                    raise ValueError(f"{parent} is not listed: register it first")
                numbers.append(found.id)
            if not numbers:
                raise ValueError("give the file that it derives from: --parents PATH")
            size = _hash_and_size(self.folder, path)
            self.ledger.add_artefact(path, *size, kind, now(), parents=numbers)

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
            audit_batch(self, batch, data, before, after, key, wanted, path, now)
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
            self.ledger.fail(batch, "abandoned", now())
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
            return service_retire.wipe(self.ledger, self.folder, now())

    def model(self, number: int, data: Material) -> Original:
        """A listed model, if its file is what was listed. data: for its shape."""
        file = self.ledger.artefact(number)
        if file is None:
            raise ValueError(f"the ledger has no file {number}")
        if service_paths.digest(self.folder, file.path) != file.sha256:
            raise ValueError(f"{file.path} is gone or was changed: restore your backup")
        provenance = self.ledger.fact("provenance")
        return work.read_model(
            self.folder / file.path,
            "data-free" if provenance == "dense" else provenance,
            work.builder(self.config, data),
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
            options = self.config.options if method is None else {}
        build(chosen, options)  # before a request is touched
        return self.ledger.begin(
            wanted, base, {"method": chosen, "options": dict(options)}, now()
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
            result = work.unlearned(
                config, data, before, kept, sorted(erased), self._work(batch)
            )
            work.require_usable(result.model, before.model)
        except (ValueError, RuntimeError) as error:  # torch's own are RuntimeErrors
            reason = f"{batch.settings['method']}: {error}"
            self.ledger.fail(batch, reason, now())
            work.clear(self._work(batch))
            raise ValueError(f"batch {batch.id} failed: {reason}") from error
        work.write_model(self.folder / path, result.model, dict(result.masks))
        facts = {"seconds": result.seconds, "exact": result.exact}
        file = (path, *_hash_and_size(self.folder, path))
        self.ledger.finish(batch, file, kept, facts, now())
        work.clear(self._work(batch))

    def _absent(self, request: str) -> None:
        records = self.ledger.records_asked(request)
        held = self.ledger.artefacts_with(records)
        live = [file.id for file in held if file.state == "live"]
        note = "none of its records is in the model"
        self.ledger.absent(request, live, note, now())

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
        with _locked(self.folder):
            batch = self.ledger.open_batch()
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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


def _mapping(path: Path, data: Material) -> list[tuple[str, int]]:
    return ledger_import.read_mapping(path, data.n_records)


def _make_folder(folder: Path) -> None:
    """Ours alone; one that holds anything else is refused."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give a folder for the service")
    known = (*service_retire.KEPT, "models", "work", "receipts")
    if folder.is_dir():
        others = [p.name for p in folder.iterdir() if not p.name.startswith(known)]
        others = [name for name in others if not name.startswith(".")]
        if others:
            raise ValueError(f"{folder} holds {others[0]!r}: give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)


def _keep_config(folder: Path, config: Config) -> None:
    path = folder / "config.toml"
    if path.is_file():
        before = parse(Config, ["--config", str(path)])
        refuse_other_settings(config, settings(before), folder)
    else:
        atomic.write_text(path, to_toml(config))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the system gives a lock back when its holder is killed."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no service in {folder}: make one with `setup`")
    connection = sqlite3.connect(folder / "lock.sqlite", timeout=0)
    try:
        connection.isolation_level = None
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{folder} is in use by another process ({error}): wait for it"
            ) from None
        yield
    finally:
        connection.close()


def _hash_and_size(folder: Path, path: str) -> tuple[str, int]:
    content = service_paths.digest(folder, path)
    found = service_paths.size_and_links(folder, path)
    if content is None or found is None:
        raise FileNotFoundError(f"no file {path} in {folder}")
    return content, found[0]
