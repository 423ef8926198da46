"""DataPruner: scikit-learn's own checks, data sets, planted label noise."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from torch import nn
from torch.utils.data import TensorDataset

from sparsekit.data_pruning import el2n, select
from sparsekit.data_pruning import pruner as pruner_module
from sparsekit.data_pruning.pruner import OF_MODEL, OF_TRACE, DataPruner
from sparsekit.data_pruning.training import train

ROWS = "it chooses among the rows of fit: other rows have no answer"
NOT_APPLICABLE = {
    "check_estimators_nan_inf": "transform takes rows out and looks at no value",
    "check_transformer_data_not_an_array": ROWS,
    "check_transformer_general": ROWS,
    "check_methods_sample_order_invariance": ROWS,
    "check_methods_subset_invariance": ROWS,
    "check_fit_idempotent": ROWS,
    "check_fit2d_predict1d": ROWS,
}


def blobs(n=120, flipped=0.0, seed=0):
    """Three classes in the plane; a share of the labels is wrong."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = generator.normal(size=(n, 2)) + 4 * np.stack(
        [np.cos(2.1 * y), np.sin(2.1 * y)], 1
    )
    wrong = np.zeros(n, bool)
    wrong[generator.choice(n, round(flipped * n), replace=False)] = True
    y = np.where(wrong, (y + generator.integers(1, 3, n)) % 3, y)
    return X.astype(np.float32), y, wrong


@pytest.mark.filterwarnings("ignore:Estimator DataPruner does not inherit")
@pytest.mark.filterwarnings("ignore:'top' keeps")
@pytest.mark.filterwarnings("ignore:Skipping check")
def test_scikit_learns_checks():
    results = check_estimator(
        DataPruner(seeds=1, epochs=1),
        expected_failed_checks=NOT_APPLICABLE,
        on_fail=None,
    )
    failed = [r["check_name"] for r in results if r["status"] == "failed"]
    assert failed == []
    expected = {r["check_name"] for r in results if r["status"] == "xfail"}
    assert expected == set(NOT_APPLICABLE)
    assert sum(r["status"] == "passed" for r in results) > 35


def test_arrays():
    X, y, _ = blobs()
    names = np.array(["ape", "bat", "cow"])[y]
    before = X.copy()
    pruner = DataPruner(keep=0.3, per_class=True, seeds=2, epochs=2)
    assert pruner.fit(X, names) is pruner
    support = pruner.get_support()
    assert support.dtype == bool
    assert support.sum() == 36
    assert np.unique(names[support], return_counts=True)[1].tolist() == [12, 12, 12]
    assert np.array_equal(pruner.get_support(indices=True), np.flatnonzero(support))
    assert np.array_equal(pruner.transform(X), X[support])
    assert np.array_equal(pruner.fit_transform(X, names), X[support])
    assert pruner.classes_.tolist() == ["ape", "bat", "cow"]
    assert np.array_equal(X, before)
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b"])
    assert pruner.transform(table).equals(table[support])


def test_the_scores_are_those_of_its_models_and_select():
    X, y, _ = blobs()
    pruner = DataPruner(keep=50, policy="top", seeds=3, epochs=2, policy_options={})
    with pytest.warns(UserWarning, match="'top' keeps 50 of 120"):
        pruner.fit(X, y)
    x, labels = torch.from_numpy(X), torch.from_numpy(y)
    rows = torch.stack([el2n(model, x, labels) for model in pruner.models_])
    torch.testing.assert_close(pruner.scores_.per_run, rows, rtol=1e-4, atol=1e-6)
    assert len({tuple(row.tolist()) for row in rows}) == 3  # the seeds differ
    kept = select(pruner.scores_.values, 60, "top")
    assert set(pruner.get_support(indices=True)) <= set(kept.tolist())


@pytest.mark.parametrize("scores", [*OF_MODEL, *OF_TRACE])
def test_every_score(scores):
    X, y, _ = blobs(40)
    pruner = DataPruner(keep=0.5, scores=scores, seeds=2, epochs=11).fit(X, y)
    assert pruner.get_support().sum() == 20
    assert pruner.scores_.per_run.shape == (2, 40)


@pytest.mark.parametrize("policy", ["beta", "random", "d2"])
def test_other_policies(policy):
    X, y, _ = blobs(40)
    options = {"features": torch.from_numpy(X)} if policy == "d2" else None
    pruner = DataPruner(20, policy=policy, policy_options=options, seeds=1, epochs=2)
    assert pruner.fit(X, y).get_support().sum() == 20


def test_the_same_random_state_is_the_same_result_and_the_processs_stays():
    X, y, _ = blobs()
    random = torch.get_rng_state()
    first, second, other = (
        DataPruner(keep=0.5, seeds=1, epochs=1, random_state=s).fit(X, y)
        for s in (4, 4, 5)
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(first.scores_.per_run, second.scores_.per_run)
    assert np.array_equal(first.get_support(), second.get_support())
    assert not torch.equal(first.scores_.per_run, other.scores_.per_run)
    copy = pickle.loads(pickle.dumps(first))
    assert np.array_equal(copy.get_support(), first.get_support())
    assert clone(first).get_params() == first.get_params()
    assert (
        repr(clone(other)) == "DataPruner(keep=0.5, epochs=1, seeds=1, random_state=5)"
    )


def test_a_data_set_and_ones_own_network():
    X, y, _ = blobs()
    dataset = TensorDataset(torch.from_numpy(X).view(-1, 1, 2, 1), torch.from_numpy(y))

    def make():
        return nn.Sequential(nn.Conv2d(1, 5, (2, 1)), nn.ReLU(), nn.Flatten(),
                             nn.Linear(5, 3))  # fmt: skip

    pruner = DataPruner(keep=70, model=make, scores="grand", seeds=2, epochs=2)
    subset = pruner.fit(dataset).subset()
    assert len(subset) == 70
    for i, (x, label) in zip(pruner.get_support(indices=True), subset, strict=True):
        assert torch.equal(x, dataset[i][0])
        assert label == y[i]


def test_training_with_batch_norm_and_one_left_over():
    X, y, _ = blobs(9)
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))

    def make():
        return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))

    model, trace = train(make, dataset, epochs=3, seed=0, batch_size=4)
    assert not model.training
    assert trace.own.shape == (3, 9)
    assert not np.isnan(trace.own).any()
    model, trace = train(
        make, dataset, epochs=1, seed=0, members=torch.tensor([1, 5, 7]), batch_size=2
    )
    assert trace is None


@pytest.mark.parametrize("by", ["out_of_fold", "aum"])
def test_planted_noise_is_suspected(by):
    """With 20 % wrong labels nearly all suspects are wrong ones; chance is 20 %."""
    X, y, wrong = blobs(flipped=0.2, seed=3)
    pruner = DataPruner(epochs=20, seeds=2).fit(X, y)
    found = pruner.suspects(24, by=by)
    assert len(set(found.tolist())) == 24
    assert wrong[found].mean() > 0.8
    suspicion = pruner.suspicion(by)
    assert suspicion[found[0]] == suspicion.max()
    scores = pruner.scores_.values.numpy()
    assert scores[wrong].mean() > 1.5 * scores[~wrong].mean()
    # why the window has an offset: the hardest are the wrong ones
    top = select(pruner.scores_.values, 0.5, "top").numpy()
    window = select(pruner.scores_.values, 0.5, "window", drop_hardest=0.2).numpy()
    assert wrong[top].sum() > 2 * wrong[window].sum()


def test_out_of_fold_models_have_not_seen_the_example(monkeypatch):
    X, y, _ = blobs(20)
    pruner = DataPruner(epochs=1, seeds=2).fit(X, y)
    left_out, scored = [], []
    train_as_before, score_as_before = pruner._train, pruner_module.score

    def watch_training(seed, members):
        left_out.append(set(range(20)) - set(members.tolist()))
        return train_as_before(seed, members)

    def watch_scoring(model, part, function):
        scored.append(set(part.indices))
        return score_as_before(model, part, function)

    monkeypatch.setattr(pruner, "_train", watch_training)
    monkeypatch.setattr(pruner_module, "score", watch_scoring)
    pruner.suspicion("out_of_fold", folds=3)
    assert scored == left_out
    for run in (scored[:3], scored[3:]):
        assert sorted(i for fold in run for i in fold) == list(range(20))
        assert {len(fold) for fold in run} <= {6, 7}


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.zeros((4, 2)), None, "requires y"),
        (np.zeros((4, 2)), np.zeros(4), "two classes at least, got 1"),
        (np.zeros((4, 2)), np.arange(3), r"y is \[4\], got shape"),
        (np.zeros(4), np.arange(4), "Reshape your data"),
        (np.full((4, 2), np.nan), np.arange(4), "NaN or infinity"),
        (np.array([["a"], ["b"]]), np.arange(2), "no numbers"),
        (TensorDataset(torch.zeros(2, 1), torch.tensor([0, 2])), None, "0 ... K - 1"),
        (TensorDataset(torch.zeros(2, 1), torch.arange(2)), [0, 1], "leave y out"),
    ],
)
def test_refused(X, y, message):
    with pytest.raises(ValueError, match=message):
        DataPruner(seeds=1, epochs=1).fit(X, y)


class Named(torch.utils.data.Dataset):
    """Items as those of Hugging Face's data sets are."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"image": torch.zeros(2), "label": i % 2}


def test_what_is_no_pair_and_no_function_is_named():
    with pytest.raises(TypeError, match=r"pairs \(x, class\).* the first is a dict"):
        DataPruner(seeds=1, epochs=1).fit(Named())
    X, y, _ = blobs()
    with pytest.raises(TypeError, match=r"lambda: Net\(\), not Net\(\); got a Linear"):
        DataPruner(model=nn.Linear(2, 3), seeds=1, epochs=1).fit(X, y)


def test_refused_arguments_and_calls():
    X, y, _ = blobs(30)
    with pytest.raises(
        ValueError, match=r"no score 'best'.* choose one of el2n, grand"
    ):
        DataPruner(scores="best").fit(X, y)
    with pytest.raises(ValueError, match="epochs and seeds are at least 1"):
        DataPruner(seeds=0).fit(X, y)
    with pytest.raises(ValueError, match="no parameter 'depth'"):
        DataPruner().set_params(depth=3)
    with pytest.raises(NotFittedError, match="call fit"):
        DataPruner().get_support()
    fitted = DataPruner(seeds=1, epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="fit saw 30 examples, X has 29"):
        fitted.transform(X[1:])
    with pytest.raises(ValueError, match="'out_of_fold' or 'aum'"):
        fitted.suspects(3, by="loss")
    with pytest.raises(ValueError, match="folds is in"):
        fitted.suspects(3, folds=1)


def test_small_data_and_batches_are_enough():
    """Two examples with one feature, batches of two, one epoch, one training."""
    X, y = np.array([[0.0], [1.0]]), np.array(["a", "b"])
    pruner = DataPruner(keep=1, seeds=1, epochs=1, batch_size=2).fit(X, y)
    assert pruner.get_support().sum() == 1
    assert pruner.n_features_in_ == 1
    assert pruner.classes_.tolist() == ["a", "b"]
    for wrong in ({"batch_size": 1}, {"epochs": 0}, {"seeds": 0}):
        with pytest.raises(ValueError, match="at least 1, batch_size at least 2, got"):
            DataPruner(keep=1, **{"seeds": 1, "epochs": 1, **wrong}).fit(X, y)
    for few, named in ((X[:1], "1 sample"), (X[:0], "0 sample"), (X[:, :0], "0 feat")):
        with pytest.raises(ValueError, match=named):
            DataPruner(seeds=1, epochs=1).fit(few, y[: len(few)])


def test_a_data_set_of_one_class_is_refused_as_such():
    data = TensorDataset(torch.randn(4, 2), torch.zeros(4).long())
    with pytest.raises(ValueError, match="two classes at least, got 1"):
        DataPruner(seeds=1, epochs=1).fit(data)
    for labels in ([0, 2, 0, 2], [-1, 0, 1, 0], [1, 2, 1, 2]):
        data = TensorDataset(torch.randn(4, 2), torch.tensor(labels))
        with pytest.raises(ValueError, match=r"0 \.\.\. K - 1, each of them present"):
            DataPruner(seeds=1, epochs=1).fit(data)


def test_the_pruners_own_network_for_inputs_of_any_shape():
    X, y = np.random.default_rng(0).normal(size=(12, 3, 2)), np.arange(12) % 4
    (model,) = DataPruner(keep=6, seeds=1, epochs=1).fit(X, y).models_
    kinds = ["Flatten", "BatchNorm1d", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in model] == kinds
    sizes = [(m.in_features, m.out_features) for m in model[2::2]]
    assert sizes == [(6, 64), (64, 64), (64, 4)]


def test_what_is_handed_out_is_a_copy():
    X, y, _ = blobs(30)
    pruner = DataPruner(keep=10, seeds=1, epochs=1).fit(X, y)
    support, indices = pruner.get_support().copy(), pruner.get_support(True).copy()
    aum = pruner.suspicion("aum").clone()
    pruner.get_support()[:] = False
    pruner.get_support(indices=True)[:] = 0
    pruner.suspicion("aum").zero_()
    assert np.array_equal(pruner.get_support(), support)
    assert np.array_equal(pruner.get_support(True), indices)
    assert torch.equal(pruner.suspicion("aum"), aum)
    assert np.array_equal(np.flatnonzero(support), indices)


def test_beta_gets_the_mean_probabilities_of_all_trainings():
    X, y, _ = blobs(60)
    pruner = DataPruner(keep=20, policy="beta", seeds=2, epochs=3).fit(X, y)
    traces = [pruner._train(seed)[1] for seed in (0, 1)]
    mean_p = sum(torch.from_numpy(trace.own).mean(0) for trace in traces) / 2
    expected = select(pruner.scores_.values, 20, "beta", mean_p=mean_p)
    assert torch.equal(pruner.indices_, expected)
    given = {"mean_p": torch.linspace(0, 1, 60)}
    pruner.set_params(policy_options=given).fit(X, y)
    assert torch.equal(
        pruner.indices_, select(pruner.scores_.values, 20, "beta", **given)
    )
    assert list(given) == ["mean_p"]


def test_folds_hold_equal_shares_of_the_classes():
    from sparsekit.data_pruning.pruner import _folds

    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 5)[torch.randperm(35)]
    found = _folds(labels, 5, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(found).tolist()) == list(range(35))
    for fold in found:
        assert labels[fold].bincount().tolist() == [4, 2, 1]


def test_rows_of_tables_and_of_lists():
    X, y, _ = blobs(12)
    pruner = DataPruner(keep=4, seeds=1, epochs=1).fit(X, y)
    kept = pruner.get_support()
    assert np.array_equal(pruner.transform(X), X[kept])
    assert np.array_equal(pruner.transform(X.tolist()), np.asarray(X.tolist())[kept])
    table = pytest.importorskip("pandas").DataFrame(X, index=list("lkjihgfedcba"))
    assert pruner.transform(table).index.tolist() == table.index[kept].tolist()
    with pytest.raises(ValueError, match="3 features, but DataPruner is expecting 2"):
        pruner.transform(np.zeros((12, 3)))


def test_only_what_is_not_the_default_is_shown():
    assert repr(DataPruner()) == "DataPruner()"
    assert repr(DataPruner(0.5, seeds=2)) == "DataPruner(keep=0.5, seeds=2)"
