"""The service from setup to receipt, with a real model; and all that can be wrong."""

import json
import os
import shutil
import stat
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file

from apps.common import receipt, signing
from apps.unlearning import cli, service_work
from apps.unlearning.fitting import fit
from apps.unlearning.ledger_import import hashed
from apps.unlearning.receipt import verify_command
from apps.unlearning.service import Service
from apps.unlearning.service_audit import Settings
from apps.unlearning.service_html import page
from apps.unlearning.service_setup import setup
from sparsekit import fixed
from tests.apps.unlearning import deletion

TWO = Settings(references=2)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return deletion.make(tmp_path_factory.mktemp("template"))


@pytest.fixture
def folder(template, tmp_path):
    """A service that is set up, for one test."""
    return deletion.copied(template, tmp_path / "service")


def records_of(subject: int) -> set[int]:
    return {i for i in range(600) if i % deletion.SUBJECTS == subject}


def test_setup_makes_what_it_says(folder):
    modes = {
        name: stat.S_IMODE((folder / name).stat().st_mode)
        for name in ("key.pem", "salt", "ledger.sqlite", ".")
    }
    assert modes == {"key.pem": 0o600, "salt": 0o600, "ledger.sqlite": 0o600,
                     ".": 0o700}  # fmt: skip
    assert not (folder / "work").exists()  # no optimizer state stays
    with Service(folder) as service:
        counts = service.ledger.counts()
        assert (counts["subjects"], counts["records"]) == (12, 600)
        data = service_work.material(service.config)
        assert service.ledger.trained_on(1) == sorted(data.train.ids.tolist())
    content = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert b"Jo 1" not in content  # nor any name,
    assert b"s-1" not in content  # or id as it was given
    salt = (folder / "salt").read_bytes()
    assert hashed("s-1", salt).encode() in content


def test_the_erased_model_is_the_one_that_never_saw_them(folder):
    """Retraining through the service, against a training by hand on what is left."""
    with Service(folder) as service:
        request = service.request("s-1")
        assert service.request("s-1") == request
        batch = service.run("retrain")
        config, data = service.config, service_work.material(service.config)
        learned = set(data.train.ids.tolist())
        kept = service.ledger.trained_on(batch.result)
        assert set(kept) == learned - records_of(1)
        before, after = (service.model(n, data) for n in (batch.base, batch.result))
    model = service_work.builder(config, data)(config.seed)
    fixed.apply(model, before.masks)
    keep = torch.tensor([int(i) % deletion.SUBJECTS != 1 for i in data.train.ids])
    left = service_work.sets.subset(data.train, keep.nonzero().squeeze(1))
    fit(model, left, config.recipe, seed=config.seed, masks=before.masks)
    for name, value in model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name])
    for name, mask in before.masks.items():
        assert torch.equal(mask, after.masks[name])
        assert not after.model.get_parameter(name)[~mask].any()


def test_a_batch_from_request_to_receipt(folder):
    with Service(folder) as service:
        requests = [service.request(f"s-{i}") for i in (1, 2, 3)]
        service.run("retrain")
        with pytest.raises(ValueError, match="awaits its audit"):
            service.run("retrain")
        batch = service.audit(TWO)
        assert batch.state == "verified"
        assert {service.ledger.state(r) for r in requests} == {"verified"}
        assert service.audit(TWO) is None
        assert service.run("retrain") is None
    path = folder / "receipts" / "0001.json"
    found, said = receipt.verify(path, files=folder)
    assert found.level == "exact"
    erased = records_of(1) | records_of(2) | records_of(3)
    assert sum(r.records for r in found.requests) == len(erased)
    assert said[-1] == "retired: 0 gone, 1 still there"
    assert found.previous_sha256 is None

    with Service(folder) as service:
        (line,) = service.wipe()
        assert (line.path, line.state) == ("models/0000.safetensors", "wiped")
        receipt.verify(path, files=folder, wiped=True)
        service.request("s-4")
        service.run("retrain")
        service.audit(TWO)
    second, _ = receipt.verify(folder / "receipts" / "0002.json", files=folder)
    assert second.previous_sha256 == receipt.text_sha256(path.read_text("utf-8"))
    assert second.before.sha256 == found.after.sha256
    later = folder / "receipts" / "0002.json"
    assert run("verify", later, "--previous", path, "--files", folder) == 0
    assert run("verify", path, "--previous", later) == 1
    table = json.loads(path.read_text("utf-8"))
    other = folder / "other.json"
    other.write_text(json.dumps(table), "utf-8")  # valid, but not the same bytes
    assert run("verify", other, "--key", folder / "public.pem") == 0
    assert run("verify", later, "--previous", other) == 1
    assert run("verify", later, "--previous", folder / "none") == 2
    assert second.data.index_sha256_before == found.data.index_sha256_after


def test_hashes_of_the_index_by_hand(folder):
    with Service(folder) as service:
        service.request("s-5")
        service.run("retrain")
        service.audit(TWO)
        learned = service_work.material(service.config).train.ids.tolist()
    table = json.loads((folder / "receipts" / "0001.json").read_text("utf-8"))

    def of(ids) -> str:
        return sha256("".join(f"{i}\n" for i in sorted(ids)).encode()).hexdigest()

    left = [i for i in learned if i % deletion.SUBJECTS != 5]
    assert table["data"]["index_sha256_before"] == of(learned)
    assert table["data"]["index_sha256_after"] == of(left)
    assert table["data"]["index_sha256_erased"] == of(set(learned) - set(left))
    assert "s-5" not in json.dumps(table)


def test_what_is_not_shown_gets_no_receipt(folder):
    """Doing nothing is not verified, and the requests can be asked again."""
    with Service(folder) as service:
        requests = [service.request(f"s-{i}") for i in range(4)]
        service.run("finetune", {"epochs": 0})
        batch = service.audit(TWO)
        assert batch.state == "failed"
        assert {service.ledger.state(r) for r in requests} == {"failed"}
        assert "ask again" in service.ledger.log(requests[0])[-1].note
        assert service.ledger.receipts() == []
        assert int(service.ledger.fact("current")) == 1
        assert [line.path for line in service.pending()] == ["models/0001.safetensors"]
        assert service.request("s-0") == requests[0]
        assert service.run("retrain").base == 1
        assert service.audit(TWO).state == "verified"
        assert service.ledger.state(requests[0]) == "verified"
        assert service.ledger.state(requests[1]) == "failed"  # nobody asked again
    assert len(list((folder / "receipts").glob("*.json"))) == 1


def test_a_mask_that_saw_the_records_is_not_exact(tmp_path):
    """Retraining with it is judged by the attacks, and the receipt names the mask.

    The labels of two subjects are wrong: what is learned of them is all by heart.
    """
    data = deletion.write_digits(tmp_path, 1797, wrong=(7, 8))
    subjects = deletion.write_subjects(tmp_path, 1797)
    settings = {"pruner": "omp", "width": 48, "epochs": 25, "weight_decay": 0.0}
    folder = tmp_path / "service"
    setup(folder, deletion.config(data, **settings), subjects)
    with Service(folder) as service:
        service.request("s-7")
        service.request("s-8")
        service.run("finetune", {"epochs": 1})
        assert service.audit(TWO).state == "failed"
        service.request("s-7")
        service.request("s-8")
        service.run("retrain")
        assert service.audit(TWO).state == "verified"
    found, said = receipt.verify(folder / "receipts" / "0001.json", files=folder)
    assert (found.level, found.mask.provenance) == ("statistical", "with-forget-data")
    assert "within 0.1 of AUC" in said[1]
    assert len(found.out_of_scope) == 10
    with Service(folder) as service:  # one subject alone shows nothing
        records = service.ledger.records_of(service._opaque("s-9"))[:30]
        path = tmp_path / "few.csv"
        path.write_text("subject,record\n" + "".join(f"few,{i}\n" for i in records[:9]))
        service.import_mapping(path)
        request = service.request("few")
        service.run("retrain")
        assert service.audit(TWO).state == "failed"
        assert "too few for attacks" in service.ledger.log(request)[-1].note


def test_a_request_of_nobody_in_the_model(template, tmp_path):
    """Records of the test part alone: there is nothing to unlearn."""
    folder = deletion.copied(template, tmp_path / "service")
    with Service(folder) as service:
        data = service_work.material(service.config)
        path = tmp_path / "more.csv"
        rows = "".join(f"late,{i}\n" for i in data.fresh.ids.tolist()[:5])
        path.write_text("subject,record\n" + rows)
        assert service.import_mapping(path) == 5
        assert service.import_mapping(path) == 0
        request = service.request("late")
        assert service.run() is None
        assert service.ledger.state(request) == "verified"
        assert "none of its records" in service.ledger.log(request)[-1].note
        # And the audit of others does not use them as fresh records.
        assert len(service._data().fresh) == len(data.fresh) - 5


def test_derived_files_are_retired_too(folder):
    (folder / "exports").mkdir()
    (folder / "exports" / "model.onnx").write_bytes(b"onnx")
    (folder / "exports" / "adam.pt").write_bytes(b"moments")
    shutil.copy(folder / "models" / "0000.safetensors", folder / "exports" / "copy.st")
    with Service(folder) as service:
        service.register("exports/model.onnx", "export", ["models/0000.safetensors"])
        service.register("exports/adam.pt", "optimizer", ["exports/model.onnx"])
        for path, parents, message in (
            ("../x", ["models/0000.safetensors"], "no path within"),
            ("exports/none", ["models/0000.safetensors"], "no file"),
            ("exports/model.onnx", ["exports/none"], "is not listed"),
            ("exports/model.onnx", [], "--parents"),
        ):
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                service.register(path, "export", parents)
        with pytest.raises(ValueError, match="is unknown; choose"):
            service.register("exports/adam.pt", "unlearned", ["exports/model.onnx"])
        service.request("s-1")
        service.run("retrain")
        service.audit(TWO)
        states = {line.path: line.state for line in service.wipe()}
    assert states == dict.fromkeys(
        ("exports/copy.st", "models/0000.safetensors", "exports/model.onnx",
         "exports/adam.pt"), "wiped",
    )  # fmt: skip
    assert [p.name for p in (folder / "models").iterdir()] == ["0001.safetensors"]
    assert list((folder / "exports").iterdir()) == []


def test_bad_input_touches_nothing(folder, tmp_path):
    with Service(folder) as service:
        before = service.ledger.log()
        for subject in ("", "nobody", "x" * 300, "a\nb"):
            with pytest.raises(ValueError, match="subject"):
                service.request(subject)
        request = service.request("s-1")
        with pytest.raises(ValueError, match="unknown"):
            service.run("magic")
        with pytest.raises(ValueError, match="no option"):
            service.run("finetune", {"speed": 3})
        assert service.ledger.state(request) == "received"
        assert len(service.ledger.log()) == len(before) + 1
        os.rename(folder / "key.pem", tmp_path / "key.pem")
        service.run("retrain")
        with pytest.raises(FileNotFoundError, match="no signing key"):
            service.audit(TWO)
        assert service.ledger.state(request) == "done"
        os.rename(tmp_path / "key.pem", folder / "key.pem")
        assert service.audit(TWO).state == "verified"
        (folder / "salt").unlink()
        with pytest.raises(FileNotFoundError, match="no salt"):
            service.request("s-2")


def test_an_interrupted_run_keeps_its_settings(folder, monkeypatch):
    """Control-C in the method: the next call goes on, and takes no other method."""

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    with Service(folder) as service:
        request = service.request("s-1")
        with monkeypatch.context() as patched:
            patched.setattr(service_work, "unlearned", interrupted)
            with pytest.raises(KeyboardInterrupt):
                service.run("retrain")
        assert service.ledger.state(request) == "running"
        with pytest.raises(ValueError, match="`run` first"):
            service.audit(TWO)
        with pytest.raises(ValueError, match="goes on with method 'retrain'"):
            service.run("finetune")
        with pytest.raises(ValueError, match="goes on with options"):
            service.run("retrain", {"x": 1})
        later = service.request("s-2")  # waits for the next batch
        batch = service.run()
        assert service.ledger.requests_of(batch.id) == [request]
        assert service.ledger.state(later) == "received"


def test_a_batch_that_cannot_end_can_be_given_up(folder, capsys):
    with Service(folder) as service:
        assert service.abandon() is None
        request = service.request("s-1")
        service.run("retrain")
        (folder / "models" / "0001.safetensors").unlink()
        with pytest.raises(ValueError, match="is gone or was changed"):
            service.audit(TWO)
    assert run("run", "--folder", folder, "--abandon") == 0
    assert "batch 1: failed" in capsys.readouterr().out
    with Service(folder) as service:
        assert service.ledger.state(request) == "failed"
        assert service.request("s-1") == request
        service.run("retrain")
        assert service.audit(TWO).state == "verified"
        assert [line.path for line in service.wipe()] == [
            "models/0000.safetensors", "models/0001.safetensors",
        ]  # fmt: skip


def test_everybody_at_once(folder):
    with Service(folder) as service:
        for i in range(deletion.SUBJECTS):
            service.request(f"s-{i}")
        with pytest.raises(ValueError, match="delete the model instead"):
            service.run("retrain")
        assert len(service.ledger.requests("received")) == deletion.SUBJECTS


def test_a_method_that_fails_leaves_a_reason(folder):
    with Service(folder) as service:
        request = service.request("s-1")
        with pytest.raises(ValueError, match="failed: finetune"):
            service.run("finetune", {"lr": 1e30, "epochs": 3})
        last = service.ledger.log(request)[-1]
        assert last.state == "failed"
        assert "not finite afterwards: lower the method" in last.note
        assert "not finite afterwards" in page(service.ledger)
        service.request("s-1")
        with pytest.raises(ValueError, match="was not trained in shards"):
            service.run("sisa", {"shards": 2, "slices": 1})
        assert service.ledger.state(request) == "received"  # it was not touched
        assert int(service.ledger.fact("current")) == 1
        model = service.model(1, service_work.material(service.config)).model
    with pytest.raises(ValueError, match="another form"):
        service_work.require_usable(torch.nn.Linear(2, 2), model)
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        service_work.require_usable(model, model)


def test_a_changed_model_or_other_data_are_noticed(folder, tmp_path):
    with Service(folder) as service:
        service.request("s-1")
        path = folder / "models" / "0000.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + b"x")
        with pytest.raises(ValueError, match="was changed"):
            service.run("retrain")
        path.write_bytes(whole)


def test_a_ledger_that_was_changed_signs_nothing(folder):
    """Records that were struck off the map, and a key that is not the old one."""
    with Service(folder) as service:
        service.request("s-1")
        service.run("retrain")
        service.audit(TWO)
        service.request("s-2")
        batch = service.run("retrain")
        kept = (folder / "key.pem").read_bytes()
        (folder / "key.pem").unlink()
        signing.create_key(folder / "key.pem")
        with pytest.raises(ValueError, match="not the key that receipt 1 was signed"):
            service.audit(TWO)
        signing.write_secret(folder / "key.pem", kept)
        (hidden, *_) = service.ledger.trained_on(batch.base)
        rows = [batch.base, hidden]
        with service.ledger.transaction():
            service.ledger._many(
                "DELETE FROM trained_on WHERE artefact = ? AND record = ?", [rows]
            )
        with pytest.raises(ValueError, match="records of receipt 1: it was changed"):
            service.audit(TWO)
        with service.ledger.transaction():
            service.ledger._many("INSERT INTO trained_on VALUES (?, ?)", [rows])
        assert service.audit(TWO).state == "verified"
    receipt.verify(
        folder / "receipts" / "0002.json", None, folder,
        previous=folder / "receipts" / "0001.json",
    )  # fmt: skip


def test_a_clock_that_is_set_back_keeps_the_order_of_the_log(folder, monkeypatch):
    times = iter(f"2026-11-28T10:{59 - n:02}:00Z" for n in range(60))
    monkeypatch.setattr("apps.unlearning.service.now", lambda: next(times))
    with Service(folder) as service:
        service.request("s-1")
        service.run("retrain")
        assert service.audit(TWO).state == "verified"
        log = [line.at for line in service.ledger.log()]
        assert log == sorted(log)


def test_many_requests_are_received_or_none_is(folder, capsys):
    argv = ["request", "--folder", str(folder), "--subjects", "s-1", "nobody", "s-2"]
    assert cli.main(argv) == 2
    assert "subject 'nobody' is not in the ledger" in capsys.readouterr().err
    with Service(folder) as service:
        assert service.ledger.requests() == []
        assert len(service.request_all(["s-1", "s-1", "s-2"])) == 2


@pytest.mark.parametrize("path", ["key.pem", "ledger.sqlite", "receipts/0001.json"])
def test_what_the_service_needs_cannot_be_retired(folder, path):
    own = pytest.raises(ValueError, match="the service's own")
    with Service(folder) as service, own:
        service.register(path, "copy", ["models/0000.safetensors"])


def test_setup_refuses_what_is_there(folder, template, tmp_path):
    with Service(folder) as service:
        config = service.config
    with pytest.raises(ValueError, match="is set up already"):
        setup(folder, config)
    with pytest.raises(ValueError, match="width"):
        setup(folder, deletion.config(config.dataset, width=17))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        setup(other, config)
    with pytest.raises(ValueError, match="is a file"):
        setup(other / "thesis.tex", config)
    with pytest.raises(FileNotFoundError, match="setup"):
        Service(tmp_path / "none")
    bad = tmp_path / "bad.csv"
    bad.write_text("subject,record\na,600\n")
    with pytest.raises(ValueError, match="line 2"):
        setup(tmp_path / "new", config, bad)
    assert not (tmp_path / "new").exists()


def run(*words: str) -> int:
    return cli.main(list(map(str, words)))


def test_the_commands(folder, tmp_path, capsys):
    """Statuses: 0, 1 for what is not shown or not valid, 2 for a usage error."""
    at = ("--folder", folder)
    assert run("request", *at, "--subjects", "s-1", "s-2") == 0
    first = capsys.readouterr().out
    assert run("request", *at, "--subjects", "s-1", "s-2") == 0
    assert capsys.readouterr().out == first
    assert run("run", *at, "--method", "finetune", "--options", "epochs=0") == 0
    assert run("audit", *at, "--references", "2") == 1
    assert "failed: not shown" in capsys.readouterr().out
    assert run("request", *at, "--subjects", "s-1", "s-2") == 0
    assert run("run", *at, "--method", "retrain") == 0
    assert run("audit", *at, "--references", "2") == 0
    assert "verified" in capsys.readouterr().out
    path = folder / "receipts" / "0001.json"
    assert run("verify", path, "--files", folder) == 0
    assert run("verify", path, "--files", folder, "--wiped") == 1
    assert run("retire", *at) == 0
    assert "to wipe" in capsys.readouterr().out
    assert run("retire", *at, "--wipe") == 0
    assert run("verify", path, "--files", folder, "--wiped") == 0
    assert run("status", *at, "--erased", tmp_path / "ids.txt") == 0
    ids = {int(line) for line in (tmp_path / "ids.txt").read_text().split()}
    assert ids == records_of(1) | records_of(2)
    assert "current" in capsys.readouterr().out
    assert run("report", *at, "--out", tmp_path / "r.html") == 0
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")
    assert run("request", *at) == 2
    assert run("request", *at, "--subjects", "nobody") == 2
    assert run("status", "--folder", tmp_path / "none") == 2
    assert run("register", *at) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    path.write_text(path.read_text("utf-8").replace('"seed": 0', '"seed": 1'), "utf-8")
    assert run("verify", path) == 1


def test_the_report_escapes_and_loads_nothing(folder):
    with Service(folder) as service:
        service.request("s-1")
        service.run("retrain")
        service.audit(TWO)
        evil = "<script>alert(1)</script>\"'&"
        with service.ledger.transaction():  # as by another hand
            execute = service.ledger._db.execute
            execute("UPDATE facts SET value = ? WHERE name = 'data'", (evil,))
            execute("UPDATE artefacts SET kind = ?", (evil,))
        text = page(service.ledger)
    assert evil not in text
    assert text.count("&lt;script&gt;") >= 2
    for word in ("<script", "http://", "https://", "src=", "@import", "url("):
        assert word not in text
    assert text.count("<svg") == 2
    assert "default-src 'none'" in text


def test_a_receipt_of_a_stolen_name_is_not_ours(folder):
    """What the public key beside a receipt shows, and what it does not."""
    with Service(folder) as service:
        service.request("s-1")
        service.run("retrain")
        service.audit(TWO)
    path = folder / "receipts" / "0001.json"
    published = folder / "public.pem"
    forger = folder.parent / "forger"
    forger.mkdir()
    signing.create_key(forger / "key.pem")
    table = json.loads(path.read_text("utf-8"))
    del table["signature"]
    table["method"]["seed"] = 7
    key = signing.load_key(forger / "key.pem")
    (forger / "0001.json").write_text(receipt.write(table, key), "utf-8")
    assert verify_command([str(forger / "0001.json")]) == 0  # its own key
    argv = [str(forger / "0001.json"), "--key", str(published)]
    assert verify_command(argv) == 1


def own_model(folder, sparse=False, **changes):
    """A user's network, trained by a plain loop; its file of weights."""
    config = deletion.config(deletion.write_digits(folder), **changes)
    data = service_work.material(config)
    model = service_work.builder(config, data)(7)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(data.train.x), data.train.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if sparse:
        with torch.no_grad():
            model[1].weight[:, ::2] = 0
    path = folder / "mine.safetensors"
    save_file(model.state_dict(), path)
    return config, model, path


def test_a_model_of_the_user_s_own_is_served(tmp_path):
    config, model, path = own_model(tmp_path)
    folder, subjects = tmp_path / "service", deletion.write_subjects(tmp_path)
    setup(folder, config, subjects, weights=path)
    with Service(folder) as service:
        data = service_work.material(service.config)
        kept = service.model(1, data)
        for name, value in model.state_dict().items():
            assert torch.equal(kept.model.state_dict()[name], value)
        assert not kept.masks
        service.request("s-3")
        service.run("retrain")
        batch = service.audit(TWO)
        assert batch.state == "verified"
    content = json.loads((folder / "receipts" / "0001.json").read_text())
    assert content["level"] == "exact"


def test_a_sparse_model_of_the_user_s_own_gets_no_exact_receipt(tmp_path):
    config, model, path = own_model(tmp_path, sparse=True)
    data = service_work.material(config)
    given = service_work.given(config, data, path)
    assert given.provenance == "with-forget-data"
    assert torch.equal(given.masks["1.weight"], model[1].weight != 0)


def test_weights_that_cannot_be_served_are_named(tmp_path):
    config, model, path = own_model(tmp_path)
    wider = deletion.config(tmp_path / "digits.npz", width=17)
    subjects = deletion.write_subjects(tmp_path)
    for changed, weights, message in (
        (wider, path, "does not fit model 'mlp' of width 17"),
        (config, tmp_path / "digits.npz", "damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            setup(tmp_path / "service", changed, subjects, weights=weights)
        shutil.rmtree(tmp_path / "service")
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        setup(tmp_path / "service", config, subjects, weights=tmp_path / "none")
    model[1].weight.data[0, 0] = torch.nan
    save_file(model.state_dict(), path)
    with pytest.raises(ValueError, match=r"1\.weight is not finite"):
        setup(tmp_path / "other", config, subjects, weights=path)
