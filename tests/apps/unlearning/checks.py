"""What an unlearner or an attack must do, whoever wrote it.

Each check takes the thing to be checked and raises AssertionError if it is not sound.
The package's own pass (`test_checks.py`); the broken ones in `tests/mutants` must not.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from apps.common.images import Split
from apps.common.roc import Attack, auc
from apps.unlearning import unlearn
from apps.unlearning.fitting import Recipe, fit
from apps.unlearning.unlearner import Unlearner

RECIPE = Recipe(epochs=30, batch=13, lr=0.02, weight_decay=0.0)
Make = Callable[..., Unlearner]


@lru_cache
def memorising() -> tuple[nn.Module, Split, Split, Split]:
    """A network that learned random labels by heart; retain, forget and fresh."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(120, 11, generator=generator)
    y = torch.randint(0, 3, (120,), generator=generator)
    parts = [torch.arange(120)[a:b] for a, b in ((0, 60), (60, 90), (90, 120))]
    retain, forget, fresh = (Split(x[p], y[p], p) for p in parts)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(11, 48), nn.ReLU(), nn.Linear(48, 3))
    both = Split(x[:90], y[:90])
    return fit(network, both, RECIPE, seed=0), retain, forget, fresh


def ascends(make: Make) -> None:
    """Gradient ascent forgets, and stops where unseen records are."""
    network, retain, forget, fresh = memorising()
    held_out = {"held_out": fresh, "masks": {}}
    gentle = make(lr=1e-3, epochs=1)
    before = unlearn(network, retain, forget, "finetune", options={"epochs": 0})
    after = unlearn(network, retain, forget, gentle, **held_out)
    losses = [float(r.samples["forget"]["loss"].mean()) for r in (before, after)]
    assert losses[1] > losses[0], "the loss on the forget set did not rise"

    strong = make(lr=0.05, epochs=40)
    bounded = unlearn(network, retain, forget, strong, **held_out)
    free = unlearn(network, retain, forget, replace(strong, bound=False), **held_out)
    assert bounded.metrics["RA"] > free.metrics["RA"] + 0.1, "nothing bounds the ascent"


def half_square(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs[:, 0] - y).square() / 2


def steps_to_the_optimum(make: Make) -> None:
    """One Newton step of least squares is training again, from any start."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator)
    y = torch.randint(-9, 9, (40,), generator=generator)
    retain = x[:30], y[:30]
    exact = torch.linalg.lstsq(retain[0].double(), retain[1][:, None].double()).solution
    everything = torch.linalg.lstsq(x.double(), y[:, None].double()).solution
    line = nn.Linear(4, 1, bias=False)
    line.weight.data.copy_(everything.T)
    method = make(solver="cg", damping=0.0, samples=0)
    result = unlearn(
        line, TensorDataset(*retain), TensorDataset(x[30:], y[30:]), method,
        loss=half_square,
    )  # fmt: skip
    found = result.model.weight.detach().double()
    assert torch.allclose(found, exact.T, atol=1e-4), "not the retrained weights"


def makes_zeros(make: Make) -> None:
    """With prox one step is SGD's, then the soft threshold of matrices alone."""
    network, retain, forget, _ = memorising()
    one = {"epochs": 1, "batch": 60, "momentum": 0.0, "weight_decay": 0.0}
    lr, gamma = 0.1, 0.4
    method = make(lr=lr, gamma=gamma, prox=True, **one)
    found = unlearn(network, retain, forget, method, masks={}).model
    plain = unlearn(
        network, retain, forget, "finetune", options=one | {"lr": lr}, masks={}
    ).model
    for name, expected in plain.named_parameters():
        value = expected.detach()
        if value.dim() > 1:
            value = value.sign() * (value.abs() - lr * gamma).clamp(min=0)
        given = found.get_parameter(name)
        assert torch.allclose(given, value, atol=1e-6), f"{name}: not soft-thresholded"


Relative = Callable[[Tensor, Tensor], Tensor]  # (own [N], references [R, N]) -> [N]


def calibrates(
    relative: Relative, wins: Callable[[Tensor, Tensor], np.ndarray]
) -> None:
    """RMIA: where every record is as hard for members as for others, what was learned
    of the members is found, from above and from below, and nothing where there is
    nothing."""
    generator = np.random.default_rng(0)
    n = 900
    hard = generator.normal(1, 3, n)

    def probability(shift: float) -> Tensor:
        odds = hard + generator.normal(0, 0.4, n)
        odds[:300] += shift
        return torch.from_numpy(1 / (1 + np.exp(-odds)))

    references = torch.stack([probability(0.0) for _ in range(3)])
    found = {}
    for shift in (-1.5, 0.0, 1.5):
        r = relative(probability(shift), references)
        scores = wins(r[:600], r[600:])
        found[shift] = auc(scores[:300], scores[300:])
    assert abs(found[0.0] - 0.5) < 0.06, f"a null of {found[0.0]:.2f}"
    assert found[1.5] > 0.75, f"members are not found: AUC {found[1.5]:.2f}"
    assert found[-1.5] < 0.3, f"over-forgotten ones are not: AUC {found[-1.5]:.2f}"


def tells_clouds_apart(ulira: Callable[..., Attack]) -> None:
    """U-LiRA: shifts of both signs are found, a null is 1/2, and a record in which the
    clouds are narrow counts for more."""
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 3, size=60)
    shift = np.where(np.arange(60) < 30, 1.0, -1.0)

    def models(n: int, moved: float = 0.0) -> np.ndarray:
        return hard + moved * shift + generator.normal(size=(n, 60))

    found = ulira(models(12, 1.0), models(12), models(12, 1.0), models(12)).auc.value
    assert found > 0.7, f"shifted clouds are not told apart: AUC {found:.2f}"
    nulls = [
        ulira(models(6), models(6), models(6), models(6)).auc.value for _ in range(10)
    ]
    assert abs(np.mean(nulls) - 0.5) < 0.03, f"a null of {np.mean(nulls):.2f}"


def counts_pairs(area: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """An AUC is the share of pairs in the right order, ties counting half."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = (generator.integers(0, 5, n).astype(float) for n in (7, 11))
        pairs = [(x > y) + (x == y) / 2 for x in a for y in b]
        assert abs(area(a, b) - np.mean(pairs)) < 1e-12, "not the share of pairs"


def relearns(steps: Callable[..., int | None]) -> None:
    """A model that only hides its records knows them again sooner than one that never
    saw them; neither is changed."""
    network, retain, forget, _ = memorising()
    torch.manual_seed(1)
    blank = nn.Sequential(nn.Linear(11, 48), nn.ReLU(), nn.Linear(48, 3))
    never = fit(blank, retain, RECIPE, seed=1)
    hidden = nn.Sequential(*network, nn.Linear(3, 3))
    hidden[-1].weight.data.copy_(0.01 * torch.eye(3))
    nn.init.zeros_(hidden[-1].bias)
    taken = {}
    for name, model in (("itself", network), ("hidden", hidden), ("never", never)):
        before = [p.detach().clone() for p in model.parameters()]
        taken[name] = steps(model, forget, below=0.4, lr=0.3, most=2000)
        after = list(model.parameters())
        same = all(torch.equal(p, q) for p, q in zip(before, after, strict=True))
        assert same, f"the model {name!r} was changed"
    assert taken["itself"] == 0, "what is known already takes steps"
    assert taken["hidden"] is not None
    assert taken["never"] is not None
    assert 0 < taken["hidden"] < taken["never"], f"{taken}"
