"""Variants differ from LightGCN in what they name, and in nothing else."""

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.sparse as sp

from apps.recsys import ablation
from apps.recsys.ablation import PENALTIES, TRIALS, VARIANTS, WEIGHTS, needs_lm
from apps.recsys.augmentation import fingerprint, load
from apps.recsys.config import Config, Source, preset
from apps.recsys.data import load as load_data
from apps.recsys.evaluation import Evaluation
from apps.recsys.ingredients import Ingredients
from apps.recsys.preparation import COLD, make
from apps.recsys.splits import Dataset

SPLIT = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What needs no models, for one split."""
    folder = tmp_path_factory.mktemp("made")
    said: list[str] = []
    make(folder, Source(), [SPLIT], texts=False, store=folder / "r.db", say=said.append)
    assert [line.split('"')[3] for line in said] == [f"split-{SPLIT}", "items"]
    again: list[str] = []
    make(
        folder, Source(), [SPLIT], texts=False, store=folder / "r.db", say=again.append
    )
    assert again == []
    return folder


@pytest.fixture(scope="module")
def mixed(made):
    return Ingredients.load(made, SPLIT)


@pytest.fixture(scope="module")
def data():
    return load_data("ml100k", seed=SPLIT)


def test_ingredients_are_of_this_split(mixed, data):
    assert mixed.shape == data.shape
    assert mixed.made_from[0] == fingerprint(data.train)
    np.testing.assert_array_equal(mixed.cold, np.diff(data.train.indptr) <= COLD)
    assert set(mixed.edges) == {"base", "random", "popularity", "genres"}
    known = data.train.toarray() > 0
    for liked, disliked in mixed.edges.values():
        users = np.flatnonzero(liked >= 0)
        assert len(users) == len(known)
        assert not known[users, liked].any()
        assert not known[users, disliked].any()
        assert (liked != disliked).all()


def test_mixtures_hold_what_they_are_asked_for(mixed):
    everybody = mixed.augmentation(edges="random")
    cold = mixed.augmentation(items="genres", edges="random", cold=True)
    assert len(everybody.users) == mixed.shape[0]
    assert cold.users.tolist() == np.flatnonzero(mixed.cold).tolist()
    chosen = np.isin(everybody.users, cold.users)
    np.testing.assert_array_equal(everybody.liked[chosen], cold.liked)
    assert everybody.item_features == {}
    assert list(cold.item_features) == ["genres"]
    shuffled = mixed.augmentation(items="genres", shuffled=True).item_features["genres"]
    straight = cold.item_features["genres"]
    assert (shuffled != straight).any(1).mean() > 0.5
    order = np.lexsort
    np.testing.assert_array_equal(
        shuffled[order(shuffled.T)], straight[order(straight.T)]
    )  # the same rows


def test_profiles_of_cold_users_only():
    rows = np.ones((4, 2), np.float32)
    cold = np.array([True, False, False, True])
    mixed = Ingredients((4, 3), ("x",), cold, {}, {"counted": rows}, {})
    everybody = mixed.augmentation(users="counted").user_features["counted"]
    some = mixed.augmentation(users="counted", cold=True).user_features["counted"]
    np.testing.assert_array_equal(everybody, rows)
    assert some.any(1).tolist() == cold.tolist()
    assert some.dtype == np.float32


def test_only_what_a_variant_names_differs(mixed, tmp_path):
    plain = preset("lightgcn-ml100k", "smoke", split_seed=SPLIT)
    for name in ("genres", "cold edges base", "keep hard", "noisy, easy kept"):
        for trial in range(TRIALS):
            found = ablation.config(plain, mixed, name, trial, tmp_path)
            differ = {
                f.name
                for f in fields(Config)
                if getattr(found, f.name) != getattr(plain, f.name)
            }
            assert differ == {"model", "augmentation", "llmrec"}
            parts = dict(zip(WEIGHTS, VARIANTS[name].parts, strict=True))
            for part, weights in WEIGHTS.items():
                used = getattr(found.llmrec, part)
                assert used == (weights[trial] if parts[part] else 0)
            load(found.augmentation).for_training(found.load().train)
    trials = [
        ablation.config(plain, mixed, "lightgcn", k, tmp_path) for k in range(TRIALS)
    ]
    assert [one.l2 for one in trials] == list(PENALTIES)
    assert all(replace(one, l2=plain.l2) == plain for one in trials)


def test_every_variant_has_valid_settings():
    for name, variant in VARIANTS.items():
        for trial in range(TRIALS):
            variant.settings(trial)
        assert any(variant.parts), name
    assert needs_lm("llmrec")
    assert needs_lm("text lm")
    assert not needs_lm("without lm")
    assert not needs_lm("lightgcn")
    # What is compared with the language model differs from it in who made it alone.
    lm, other = VARIANTS["llmrec"], VARIANTS["without lm"]
    assert (lm.keep, lm.restored) == (other.keep, other.restored) == ("hard", True)
    assert other.cold


def test_the_best_trial_on_validation_is_taken(mixed, tmp_path):
    plain = preset("lightgcn-ml100k", "smoke", split_seed=SPLIT)
    short = replace(plain, epochs=1, every=1)
    trials = [replace(short, lr=1e-9), replace(plain, lr=0.05), short]
    result, values = ablation.trained(trials)
    assert np.argmax(values) == 1
    assert result.config == trials[1]
    assert values[1] == max(
        row["ndcg@20"] for row in result.history if row.get("eligible")
    )


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_slices_by_hand():
    """Three users, four items; item 0 is popular."""
    train = sp.csr_array(np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], "f4"))
    test = sp.csr_array(np.array([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], "f4"))
    ranked = np.full((3, 20), -1)
    ranked[0, :3], ranked[1, :2] = (1, 2, 3), (2, 3)
    ndcg = np.array([1.0, 1 / np.log2(3), np.nan])
    values = {"ndcg@20": ndcg, "recall@20": np.array([1.0, 1.0, np.nan])}

    ids = np.array(list("abcd"), object)
    parts = Dataset("toy", "by hand", train, test, test, ids[:3], ids)
    found = ablation.sliced(
        Evaluation("test", ranked, values), parts, np.array([True, False, False])
    )
    assert found["ndcg@20"] == pytest.approx(ndcg[:2].mean())
    assert found["cold"] == 1
    assert found["warm"] == pytest.approx(ndcg[1])
    # In the order of their users the items are 3, 1, 2, 0; the tail are the first 3.
    assert found["tail"] == pytest.approx(ndcg[:2].mean())
    assert np.isnan(found["middle"])  # item 0 is the middle, and nobody's test item


def test_what_is_missing_or_unknown_is_named(mixed, tmp_path):
    plain = preset("lightgcn-ml100k", "smoke", split_seed=SPLIT)
    with pytest.raises(ValueError, match="no variant 'magic'"):
        ablation.config(plain, mixed, "magic", 0, tmp_path)
    with pytest.raises(ValueError, match="starts from lightgcn"):
        ablation.config(Config(model="mf"), mixed, "genres", 0, tmp_path)
    with pytest.raises(ValueError, match="no ingredient 'text_lm'"):
        ablation.config(plain, mixed, "llmrec", 0, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"items\.npz is missing"):
        Ingredients.load(tmp_path, SPLIT)
    (tmp_path / "items.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="damaged"):
        Ingredients.load(tmp_path, SPLIT)
