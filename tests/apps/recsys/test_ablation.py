"""Variants differ from LightGCN in what they name, and in nothing else."""

from dataclasses import fields

import numpy as np
import pytest

from apps.recsys.ablation import VARIANTS, WEIGHTS, variants
from apps.recsys.augmentation import load
from apps.recsys.compare import compare
from apps.recsys.config import Config, preset

FAST = ("genres", "edges base", "edges random", "keep hard")


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    return variants(preset("lightgcn-ml100k", "smoke"), folder, FAST, cold=20)


def test_only_what_a_variant_names_differs(configs):
    assert list(configs) == ["lightgcn", *FAST]
    plain = configs["lightgcn"]
    for name in FAST:
        differ = {
            f.name
            for f in fields(Config)
            if getattr(configs[name], f.name) != getattr(plain, f.name)
        }
        assert differ == {"model", "augmentation", "llmrec"}
        used = VARIANTS[name].used
        for part, weight in WEIGHTS.items():
            assert getattr(configs[name].llmrec, part) == (
                weight if part in used else 0
            )


def test_files_hold_what_the_variant_needs(configs):
    made = {name: load(configs[name].augmentation) for name in FAST}
    assert list(made["genres"].item_features) == ["genres"]
    assert len(made["genres"].users) == 0
    for name in ("edges base", "edges random"):
        assert made[name].item_features == {}
        assert 0 < len(made[name].users) < 942  # the cold ones
    same = made["edges base"].liked == made["edges random"].liked
    assert same.mean() < 0.5
    assert len(made["keep hard"].users) == 0


def test_a_comparison_of_variants(configs):
    two = {name: configs[name] for name in ("lightgcn", "edges base")}
    found = compare(two, range(2), trials=1, baseline="lightgcn")
    assert "edges base" in found.table()


def test_every_variant_has_valid_settings():
    for variant in VARIANTS.values():
        settings = variant.settings()
        assert np.isfinite([settings.items, settings.edges]).all()
        assert bool(variant.used)


def test_unknown_names_and_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no variant 'magic'"):
        variants(preset("lightgcn-ml100k", "smoke"), tmp_path, ["magic"])
    with pytest.raises(ValueError, match="starts from lightgcn"):
        variants(Config(model="mf"), tmp_path)
