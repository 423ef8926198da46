"""Options: units of time by hand, conversions, errors that list what is valid."""

from pathlib import Path

import pytest

from apps.common import options
from sparsekit import allocation
from sparsekit.method import discover
from sparsekit.patterns import NM, Block, Rows


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (100, 100),
        ("100", 100),
        ("100 steps", 100),
        ("2 epochs", 70),
        ("1 epoch", 35),
        ("0.5 epochs", 18),
        ("75%", 262),
        ("100%", 350),
        ("0%", 0),
        (None, None),
    ],
)
def test_times(value, steps) -> None:
    assert options.in_steps("end", value, 35, 350) == steps


@pytest.mark.parametrize("value", ["soon", "2 days", 0.75, True, "-3", ""])
def test_a_time_without_a_known_unit_is_refused(value) -> None:
    with pytest.raises(ValueError, match=r"end is a time"):
        options.in_steps("end", value, 35, 350)


def test_every_is_at_least_one_step() -> None:
    assert options.in_steps("every", "0.1%", 35, 350) == 1


@pytest.mark.parametrize("name", options.names())
def test_every_discovered_method_builds_with_default_times(name: str) -> None:
    method = options.build(name, 0.9, {}, 35, 350)
    if name == "dense":
        assert method is None
        return
    assert type(method) is discover()[name]
    assert method.sparsity_at(350) == pytest.approx(0.9)  # reached within the training


def test_rounds_of_imp_share_the_training() -> None:
    method = options.build("imp", 0.9, {"rounds": 4}, 35, 350)
    assert (method.rounds, method.every) == (4, 70)
    moves = [step for step in range(350) if method.due(step)]
    assert moves == [70, 140, 210, 280]


def test_conversions_from_text() -> None:
    rigl = options.build(
        "rigl",
        0.9,
        {"allocation": "er", "fraction": "0.5", "every": "2 epochs"},
        35,
        350,
    )
    assert (rigl.allocation, rigl.fraction, rigl.every) == (allocation.er, 0.5, 70)
    pruned = {"pattern": "2:4", "across_layers": "true", "at": 7}
    oneshot = options.build("oneshot", 0.5, pruned, 35, 350)
    assert (oneshot.pattern, oneshot.across_layers, oneshot.at) == (NM(2, 4), True, 7)
    assert options.pattern("rows") == Rows()
    assert options.pattern("4x8") == Block(4, 8)


@pytest.mark.parametrize(
    ("name", "sparsity", "given", "message"),
    [
        ("rigle", 0.9, {}, "choose one of dense, .*rigl, .*set"),
        ("rigl", 0.9, {"alpha": 0.3}, "no option 'alpha'; it has every, end, fraction"),
        ("rigl", 0.9, {"fraction": "much"}, "fraction must be float, got 'much'"),
        ("rigl", 0.9, {"fraction": True}, "fraction must be float, got True"),
        (
            "rigl",
            0.9,
            {"allocation": "big"},
            "allocation 'big' is unknown; choose one of",
        ),
        ("imp", 0.9, {"rounds": 2.5}, "rounds must be int"),
        ("oneshot", 0.9, {"pattern": "2/4"}, "pattern '2/4' is unknown"),
        ("oneshot", 0.9, {"across_layers": "perhaps"}, "across_layers must be bool"),
        ("rigl", 1.0, {}, r"in \[0, 1\), got 1.0"),
        ("dense", 0.9, {"every": 3}, "takes no options"),
    ],
)
def test_bad_options_are_named(name, sparsity, given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options.build(name, sparsity, given, 35, 350)


MINE = '''
from dataclasses import dataclass
import torch
from sparsekit.method import Method

@dataclass(frozen=True)
class FirstRows(Method):
    """Keeps the first weights."""
    sparsity: float
    def start(self, context):
        from sparsekit.masks import count_active
        masks = {}
        for name, weight in context.weights.items():
            n_active = count_active(weight.numel(), self.sparsity)
            flat = torch.arange(weight.numel()) < n_active
            masks[name] = flat.view(weight.shape)
        return masks
    def sparsity_at(self, step):
        return self.sparsity
'''


def test_a_method_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    for name in (str(path), f"{path}:FirstRows"):
        assert type(options.build(name, 0.5, {}, 35, 350)).__name__ == "FirstRows"
    with pytest.raises(ValueError, match="'Other'"):
        options.method_class(f"{path}:Other")
    with pytest.raises(FileNotFoundError, match="absent"):
        options.method_class(str(tmp_path / "absent.py"))
