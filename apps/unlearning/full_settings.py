"""The settings of the GPU run: the network, what is forgotten, what methods try."""

from itertools import product
from typing import Any

from apps.unlearning.config import Config, preset

FORGET = {"class": "class:3", "random": "random:0.1"}
PRUNERS = ("dense", "omp")
PROVENANCE = {"dense": "data-free", "omp": "with-forget-data", "random": "data-free"}
COMMON: dict[str, dict[str, Any]] = {
    "finetune": {"epochs": 2},
    "gradient_ascent": {"epochs": 5},
    "fisher": {"samples": 200},
    "influence": {"samples": 200, "precision": "float32"},
    "l1_sparse": {"epochs": 2},
}
LRS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8)
# As many for each method, for each forget set, for dense and for sparse networks.
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "finetune": [{"lr": lr} for lr in LRS],
    "gradient_ascent": [{"lr": x} for x in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)],
    "fisher": [{"alpha": x} for x in (1e-10, 1e-9, 3e-9, 1e-8, 3e-8, 1e-7)],
    "influence": [{"damping": x} for x in (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)],
    "l1_sparse": [
        {"lr": lr, "gamma": gamma}
        for lr, gamma in product((0.05, 0.2), (2e-5, 1e-4, 3e-4))
    ],
}
# Grids whose best value was their last one, moved; AGAIN: for which forget set.
MOVED: dict[str, list[dict[str, Any]]] = {
    "gradient_ascent": [{"lr": x} for x in (1e-6, 3e-6, 1e-5, 3e-5, 6e-5, 1e-4)],
    "influence": [{"damping": x} for x in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)],
    "fisher": [{"alpha": x} for x in (5e-8, 1e-7, 1.5e-7, 2e-7, 3e-7, 5e-7)],
}
AGAIN = {"class": ("gradient_ascent", "influence"), "random": tuple(MOVED)}
# Ten rates a decade for the method that has no middle when a class is forgotten.
FINER: dict[str, list[dict[str, Any]]] = {
    "gradient_ascent": [{"lr": float(f"{10 ** (n / 10 - 6):.3g}")} for n in range(21)],
}
PUBLISHED: dict[str, dict[str, Any]] = {  # ten epochs, whatever that costs here
    "finetune": {"epochs": 10, "lr": 0.01},
    "gradient_ascent": {"epochs": 5, "lr": 1e-4, "batchnorm": "train", "bound": False},
    "l1_sparse": {"epochs": 10, "lr": 0.01, "gamma": 5e-4},
}
USABLE = 0.05  # of RA may be lost on the validation part, for the second choice
DECIMALS = 3  # of confidences, for the published membership attack


def base(profile: str = "laptop", **changes: Any) -> Config:
    """CIFAR-10 and ResNet-18 as in the paper, with 36 epochs in place of 182."""
    short = {"epochs": 36, "rewind": 2, "lr": 0.2, "schedule": "one-cycle"}
    return preset("cifar10-class", profile, **(short | changes))
