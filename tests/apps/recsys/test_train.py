"""Training: identities (sparsity 0 = dense, resume = uninterrupted), choice, errors."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from apps.recsys import splits
from apps.recsys.config import Config
from apps.recsys.evaluation import evaluate
from apps.recsys.interactions import Interactions
from apps.recsys.metrics import ranking_metrics
from apps.recsys.models.closed_form import Popularity
from apps.recsys.result import Result, load_result
from apps.recsys.train import learning_rate_factor, seeded, train
from sparsekit.masks import count_active

MODELS = ("lightgcn", "mf", "multvae", "neumf")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory) -> str:
    """40 users of two tastes, 2 x 15 items; some like what the other half likes."""
    rng = np.random.default_rng(0)
    share = np.kron(np.eye(2), np.full((20, 15), 0.6)) + 0.05
    users, items = np.nonzero(rng.random(share.shape) < share)
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    rows = [f"{u},{i}" for u, i in zip(users, items, strict=True)]
    path.write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    return str(path)


@pytest.fixture
def tiny(clicks) -> Config:
    return Config(
        dataset=clicks, dim=6, hidden=9, layers=2, batch=20, epochs=6, every=2, lr=0.02
    )


def weights(result: Result) -> dict[str, torch.Tensor]:
    return result.network.state_dict()


def assert_equal(a: Result, b: Result) -> None:
    """The same training, bit for bit, except for time and memory."""
    assert weights(a).keys() == weights(b).keys()
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    assert a.masks.keys() == b.masks.keys()
    assert all(torch.equal(a.masks[name], b.masks[name]) for name in a.masks)
    timeless = [[{**row, "seconds": 0} for row in r.history] for r in (a, b)]
    assert timeless[0] == timeless[1]
    assert a.epoch == b.epoch
    np.testing.assert_array_equal(a.evaluation.ranked, b.evaluation.ranked)
    assert str(a.metrics) == str(b.metrics)  # as text: some ends are nan
    assert a.cost["train_flops"] == b.cost["train_flops"]


@pytest.mark.parametrize("model", MODELS)
def test_models_learn_two_tastes(tiny, model):
    """Far better than popularity, which cannot tell the two halves apart."""
    batch = 10 if model == "multvae" else 40
    result = train(replace(tiny, model=model, epochs=60, every=20, batch=batch))
    data = result.data
    popular = evaluate(Popularity().fit(data.train), data, "test").means["ndcg@20"]
    assert result.metrics["ndcg@20"].value > popular + 0.1
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    n = result.metrics["ndcg@20"].n
    assert n == (np.diff(data.test.indptr) > 0).sum()


@pytest.mark.parametrize("model", MODELS)
def test_equal_seeds_give_equal_results_and_others_do_not(tiny, model):
    config = replace(tiny, model=model, epochs=2, batch=10)
    state = torch.get_rng_state()
    first = train(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(first, train(config))
    other = train(replace(config, seed=1))
    name = first.network.sparse_names[0]
    assert not torch.equal(weights(first)[name], weights(other)[name])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["static", "rigl"])
def test_sparsity_0_is_dense_bit_for_bit(tiny, model, method):
    config = replace(tiny, model=model, epochs=2, batch=10)
    options = {"fraction": 0.0} if method == "rigl" else {}
    dense = train(config)
    sparse = train(replace(config, method=method, sparsity=0.0, options=options))
    for name, value in weights(dense).items():
        assert torch.equal(value, weights(sparse)[name])
    assert dense.cost["train_flops"] == sparse.cost["train_flops"]


@pytest.mark.parametrize("model", MODELS)
def test_masks_have_exact_counts_and_zeros(tiny, model):
    config = replace(tiny, model=model, batch=10, method="rigl", sparsity=0.7)
    result = train(replace(config, options={"every": 3}))
    assert set(result.masks) == set(result.network.sparse_names)
    total = sum(mask.numel() for mask in result.masks.values())
    alive = sum(int(mask.sum()) for mask in result.masks.values())
    assert alive == count_active(total, 0.7)
    for name, mask in result.masks.items():
        assert not result.network.get_parameter(name)[~mask].any()
    assert result.cost["params_active"] == result.cost["params_total"] - total + alive
    assert result.cost["bytes_on_disk"] < 4 * result.cost["params_total"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["static", "rigl"])
def test_values_mode_is_masked_training(tiny, model, method):
    config = replace(tiny, model=model, epochs=2, batch=10, method=method, sparsity=0.5)
    config = replace(config, options={"every": 5} if method == "rigl" else {})
    masked, values = train(config), train(replace(config, backend="values"))
    assert masked.masks.keys() == values.masks.keys()
    for name, mask in masked.masks.items():
        assert torch.equal(mask, values.masks[name])
    for name, value in weights(masked).items():
        torch.testing.assert_close(value, weights(values)[name], atol=2e-5, rtol=1e-4)
    assert masked.metrics["recall@20"].value == pytest.approx(
        values.metrics["recall@20"].value, abs=0.01
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "multvae", "batch": 10},
        {"model": "neumf", "dropout": 0.3, "negatives": 2},
        {"method": "gradual", "options": {"every": 3}},
        {"method": "rigl", "options": {"every": 3}, "schedule": "cosine"},
        {"model": "mf", "method": "rigl", "options": {"every": 3}, "backend": "values"},
        {"train_on": "all"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "dense",
)
def test_resume_is_uninterrupted_training(tiny, tmp_path: Path, changes):
    """Stopped within an epoch: what follows the last checkpoint is done again."""
    config = replace(tiny, **changes)
    whole = train(config)

    class Stop(Exception):
        pass

    def stop(epoch, network, sparsifier):
        if epoch == 3:
            raise Stop

    out = replace(config, out=tmp_path / "run")
    with pytest.raises(Stop):
        train(out, stop)
    resumed = train(replace(out, resume=True))
    assert_equal(resumed, whole)
    assert_equal(load_result(tmp_path / "run"), whole)
    assert_equal(train(replace(out, resume=True)), whole)  # finished: read back
    with pytest.raises(ValueError, match="finished run"):
        train(out)
    with pytest.raises(ValueError, match=r"lr = 0\.02, not 0\.5"):
        train(replace(out, resume=True, lr=0.5))


def test_the_best_epoch_on_validation_is_tested(tiny):
    """Its weights, as they were then: trained again for so long, they are the same."""
    result = train(replace(tiny, epochs=30, every=3, lr=0.1))
    values = {r["epoch"]: r["ndcg@20"] for r in result.history if "ndcg@20" in r}
    assert list(values) == list(range(3, 31, 3))
    assert result.epoch == max(values, key=values.get) < 30
    again = train(replace(tiny, epochs=result.epoch, every=result.epoch, lr=0.1))
    for name, value in weights(result).items():
        assert torch.equal(value, weights(again)[name])
    ranked = ranking_metrics(result.evaluation.ranked, result.data.test, [20])
    for name, value in ranked.items():
        np.testing.assert_array_equal(result.evaluation.values[name], value)


def test_the_test_part_decides_nothing(tiny, monkeypatch):
    first = train(replace(tiny, epochs=30, every=3, patience=2, lr=0.1))
    data = first.data
    other = replace(data, test=data.test[::-1])
    monkeypatch.setattr(Config, "load", lambda config: other)
    second = train(replace(tiny, epochs=30, every=3, patience=2, lr=0.1))
    assert first.epoch == second.epoch
    assert first.metrics["ndcg@20"] != second.metrics["ndcg@20"]
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name])


def test_patience_ends_the_training(tiny):
    patient = train(replace(tiny, epochs=40, every=1, patience=0, lr=0.1))
    values = [row["ndcg@20"] for row in patient.history]
    assert len(values) == 40
    for patience in (1, 3):
        result = train(replace(tiny, epochs=40, every=1, patience=patience, lr=0.1))
        best = epoch = 0
        while epoch - best < patience:  # epochs count from 1, values from 0
            epoch += 1
            if epoch == 1 or values[epoch - 1] > values[best - 1]:
                best = epoch
        assert len(result.history) == epoch
        assert result.epoch == best


def test_a_denser_epoch_is_not_chosen(tiny):
    """Gradual pruning that costs quality: the best epoch is among the sparse ones."""
    config = replace(tiny, epochs=12, every=1, method="gradual", sparsity=0.95)
    result = train(replace(config, options={"every": 5, "end": "75%"}, patience=2))
    eligible = [row["epoch"] for row in result.history if row.get("eligible")]
    assert 1 < min(eligible) <= result.epoch
    (mask,) = result.masks.values()
    assert int(mask.sum()) == count_active(mask.numel(), 0.95)


def test_training_on_all_chooses_nothing(tiny):
    result = train(replace(tiny, train_on="all"))
    assert result.epoch == 6
    assert not any("ndcg@20" in row for row in result.history)
    steps = result.data.final().train.nnz // 20
    assert steps > result.data.train.nnz // 20
    part = train(tiny)
    flops = [r.cost["train_flops"] / 6 for r in (result, part)]
    assert flops[0] > flops[1]


def test_batches_are_decided_by_seed_and_epoch(tiny):
    def numbers(config, epoch):
        with seeded(config, epoch) as generator:
            return torch.rand(3, generator=generator).tolist(), torch.rand(3).tolist()

    assert numbers(tiny, 4) == numbers(tiny, 4)
    drawn = [numbers(c, e) for c in (tiny, replace(tiny, seed=1)) for e in (0, 1)]
    for own in zip(*drawn, strict=True):  # of the generator, of torch's own numbers
        assert len(set(map(str, own))) == 4


def test_learning_rate():
    assert learning_rate_factor("constant", 7, 10) == 1
    factors = [learning_rate_factor("cosine", t, 11) for t in range(11)]
    assert factors[0] == 1
    assert factors[5] == pytest.approx(0.505)
    assert factors[-1] == pytest.approx(0.01)
    assert factors == sorted(factors, reverse=True)


def toy(known: np.ndarray) -> splits.Dataset:
    users, items = np.nonzero(known)
    ids = [np.arange(n).astype(str).astype(object) for n in known.shape]
    log = Interactions("toy", users.astype(np.int32), items.astype(np.int32), *ids)
    return splits.random_ratio(log)


def test_one_user(tiny, monkeypatch):
    known = np.zeros((1, 40))
    known[0, :20] = 1
    monkeypatch.setattr(Config, "load", lambda config: toy(known))
    result = train(replace(tiny, batch=4))
    assert result.metrics["ndcg@20"].n == 1
    assert math.isnan(result.metrics["ndcg@20"].low)
    monkeypatch.setattr(Config, "load", lambda config: toy(known[:, :20]))
    # Its own validation and test items are still there as negatives.
    assert train(replace(tiny, batch=4)).metrics["recall@20"].value == 1
    full = toy(known[:, :20])
    full = replace(full, train=sp.csr_array(np.ones((1, 20), np.float32)))
    monkeypatch.setattr(Config, "load", lambda config: full)
    with pytest.raises(ValueError, match="every item that could be a negative"):
        train(replace(tiny, batch=4))


def test_empty_parts(tiny, monkeypatch):
    data = toy(np.random.default_rng(0).random((20, 30)) < 0.5)
    for part in ("train", "valid", "test"):
        empty = replace(data, **{part: sp.csr_array(data.shape, dtype=np.float32)})
        monkeypatch.setattr(Config, "load", lambda config, empty=empty: empty)
        with pytest.raises(ValueError, match=f"0 training|the {part} part is empty"):
            train(tiny)


def test_refusals(tiny):
    for wrong, message in (
        ({"model": "bert4rec"}, "model 'bert4rec' is unknown; choose one of lightgcn"),
        ({"dim": -3}, "dim must be at least 1, got -3"),
        ({"layers": -1}, "layers must be at least 0"),
        ({"batch": 0}, "batch must be"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"l2": -1.0}, "l2 must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"sparsity": 1.0}, "sparsity is the fraction"),
        ({"method": "riggle"}, "method 'riggle' is unknown"),
        ({"method": "rigl", "options": {"zeta": 1}}, "no option 'zeta'"),
        ({"backend": "values"}, "needs backend masked"),
        ({"backend": "values", "method": "set", "device": "cuda"}, "on the cpu"),
        ({"sparse": ("embedding.weight",)}, "masks none"),
        ({"mask_seed": -1}, "mask_seed"),
        ({"device": "tpu"}, "device must be cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(tiny, **wrong)
    with pytest.raises(ValueError, match="no parameter of lightgcn; it has embedding"):
        train(replace(tiny, method="static", sparse=("vectors",)))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            train(replace(tiny, device="cuda"))
    with pytest.raises(ValueError, match="exceeds the"):
        train(replace(tiny, batch=10_000))
    with pytest.raises(ValueError, match="layers of neumf"):
        train(replace(tiny, model="neumf", layers=0))
    with pytest.raises(ValueError, match="no column 'stars'; choose one of user"):
        train(replace(tiny, columns={"stars": "x"}))
    for changes in ({"core": 5}, {"rating": 4.0}, {"split": "global_time"}):
        with pytest.raises(ValueError, match="gowalla has its own split"):
            train(replace(tiny, dataset="gowalla", **changes))
    with pytest.raises(ValueError, match="core must be"):
        train(replace(tiny, core=0))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        train(replace(tiny, dataset="nowhere.csv"))
    with pytest.raises(ValueError, match="lower lr"):
        train(replace(tiny, lr=1e30))
