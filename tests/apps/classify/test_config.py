"""Settings: a preset from Python is the preset of the command line."""

import tomllib
from dataclasses import fields

import pytest

from apps.classify.config import PRESETS, Config, preset

NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))


@pytest.mark.parametrize("profile", ["smoke", "laptop", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_preset_is_its_file_under_its_profile(name: str, profile: str) -> None:
    table = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    expected = table | table.pop("profiles").get(profile, {})
    config = preset(name, profile)
    assert {key: getattr(config, key) for key in expected} == expected
    unchanged = {f.name for f in fields(Config)} - set(expected) - {"profile"}
    assert all(getattr(config, key) == getattr(Config(), key) for key in unchanged)
    assert config.profile == profile


def test_preset_takes_changes_and_checks_them() -> None:
    config = preset("mlp-mnist5k", method="set", options={"every": "2 epochs"}, seed=3)
    assert (config.method, config.seed, config.epochs) == ("set", 3, 20)
    with pytest.raises(FileNotFoundError, match="cnn-mnist5k"):
        preset("resnet")
    with pytest.raises(ValueError, match="sparsity"):
        preset("mlp-mnist5k", sparsity=1.0)
    with pytest.raises(ValueError, match="method 'set' has no option 'zeta'"):
        preset("mlp-mnist5k", method="set", options={"zeta": 0.3})
    with pytest.raises(TypeError, match="breadth"):
        preset("mlp-mnist5k", breadth=3)
