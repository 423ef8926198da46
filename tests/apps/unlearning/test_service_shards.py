"""A service whose model is trained in shards: exact, and little is trained again."""

import pytest
import torch

from apps.common import inside, receipt
from apps.unlearning import service_work
from apps.unlearning.cli import main
from apps.unlearning.ensemble import Shards, train_shards
from apps.unlearning.service import Service
from apps.unlearning.service_audit import Settings
from tests.apps.unlearning import deletion

OPTIONS = {"shards": 3, "slices": 2}
TWO = Settings(references=2)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    return deletion.make(folder, method="sisa", options=OPTIONS, model="cnn", width=3)


@pytest.fixture
def folder(template, tmp_path):
    return deletion.copied(template, tmp_path / "service")


def checkpoints(service: Service) -> dict[str, str]:
    return {
        file.path: file.state
        for file in service.ledger.artefacts()
        if file.kind == "checkpoint"
    }


def test_every_slice_is_listed_with_the_records_that_it_learned(folder):
    with Service(folder) as service:
        data = service_work.material(service.config)
        learned = [
            service.ledger.trained_on(file.id)
            for file in service.ledger.artefacts()
            if file.kind == "checkpoint"
        ]
        assert len(learned) == 6
        assert set(checkpoints(service).values()) == {"live"}
    # The last slice of a shard has learned all of its records; shards share none.
    whole = sorted(learned, key=len)[-3:]
    assert sorted(i for part in whole for i in part) == sorted(data.train.ids.tolist())


def test_the_new_model_is_the_one_that_never_saw_the_records(folder):
    with Service(folder) as service:
        service.request("s-1")
        batch = service.run()
        assert batch.settings == {"method": "sisa", "options": OPTIONS}
        data = service_work.material(service.config)
        after = service.model(batch.result, data)
        kept = [int(i) for i in data.train.ids if int(i) % deletion.SUBJECTS != 1]
        assert service.ledger.trained_on(batch.result) == sorted(kept)
        config = service.config
    expected = train_shards(
        service_work.builder(config, data), service_work.chosen(data.train, kept),
        Shards(3, 2), config.recipe, seed=config.seed, masks=after.model.masks,
    )  # fmt: skip
    for name, value in expected.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name]), name
    assert after.masks
    for name, mask in after.masks.items():
        assert not after.model.get_parameter(name)[~mask].any()


def test_one_record_costs_one_shard_and_its_checkpoints_alone_go(folder):
    """A record of a last slice: of six checkpoints one is trained again."""
    with Service(folder) as service:
        ids = service_work.material(service.config).train.ids.tolist()
        seed = service.config.seed
        record = next(i for i in ids if Shards(3, 2).place(i, seed)[1] == 1)
        service.ledger.add_subjects([(service._opaque("one"), record)])
        before = checkpoints(service)
        service.request("one")
        service.run()
        batch = service.audit(TWO)
        assert batch.state == "verified"
        after = checkpoints(service)
        (gone,) = [path for path, state in after.items() if state == "retired"]
        assert gone in before
        assert len(after) == len(before) + 1
        assert {line.path for line in service.pending()} == {
            gone, "models/0000.safetensors",
        }  # fmt: skip
        service.wipe()
    found, _ = receipt.verify(
        folder / "receipts" / "0001.json", files=folder, wiped=True
    )
    assert (found.level, found.method.name) == ("exact", "sisa")
    assert found.method.options == {"shards": "3", "slices": "2"}
    assert {file.path for file in found.retired} >= {gone}
    assert not (folder / gone).exists()


def test_a_checkpoint_that_was_changed_is_not_gone_on_from(folder):
    with Service(folder) as service:
        path = next(iter(checkpoints(service)))
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        service.request("s-1")
        with pytest.raises(ValueError, match=f"{path} is gone or was changed"):
            service.run()
        assert (
            int(service.ledger.fact("current"))
            == service.ledger.artefacts("live")[-1].id
        )


def test_what_an_abandoned_batch_has_trained_goes(folder):
    with Service(folder) as service:
        (folder / "shards" / "left.safetensors").write_bytes(b"of a batch that was cut")
        assert service.run() is None
        files = {path for path in inside.files(folder) if path.startswith("shards")}
        assert files == set(checkpoints(service))


def test_what_does_not_fit_shards_is_refused(folder, tmp_path, capsys):
    with Service(folder) as service:
        request = service.request("s-1")
        with pytest.raises(ValueError, match="sisa is what retrains it"):
            service.run("retrain")
        with pytest.raises(ValueError, match="those of `setup`"):
            service.run("sisa", {"shards": 5})
        assert service.ledger.state(request) == "received"
    weights = folder / "models" / "0000.safetensors"
    config = deletion.config(folder.parent / "digits.npz", method="sisa")
    with pytest.raises(ValueError, match="leave the weights out"):
        service_work.given(config, None, weights)
    argv = [
        "setup",
        "--method",
        "sisa",
        "--pruner",
        "omp",
        "--folder",
        str(tmp_path / "x"),
    ]
    assert main(argv) == 2
    assert "masks that no data decide" in capsys.readouterr().err
