"""Unlearners and attacks that are broken on purpose, each in one way."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import nn

from apps.common.roc import attack
from apps.unlearning.attacks import relearn
from apps.unlearning.attacks.lira import deviation, ulira
from apps.unlearning.unlearners import l1_sparse
from apps.unlearning.unlearners.gradient_ascent import GradientAscent
from apps.unlearning.unlearners.influence import Influence
from apps.unlearning.unlearners.l1_sparse import L1Sparse


@dataclass(frozen=True)
class NeverStops(GradientAscent):
    """Takes all epochs, whatever `bound` says."""

    def target(self, problem):
        return -1.0

    def run(self, problem):
        return GradientAscent.run(replace(self, bound=False), problem)


@dataclass(frozen=True)
class Descends(GradientAscent):
    """Lowers the loss on the forget set: training, once more."""

    def run(self, problem):
        loss = problem.loss
        return super().run(replace(problem, loss=lambda *given: -loss(*given)))


@dataclass(frozen=True)
class WrongSign(Influence):
    """A step away from the model without the forget set."""

    def run(self, problem):
        return Influence.run(replace(self, alpha=-self.alpha), problem)


@dataclass(frozen=True)
class DividesByTheForgetSet(Influence):
    """g by the number of forgotten records, not by that of all."""

    def run(self, problem):
        n, m = len(problem.retain), len(problem.forget)
        return Influence.run(replace(self, alpha=self.alpha * (n + m) / m), problem)


@dataclass(frozen=True)
class CurvatureOfTheForgetSet(Influence):
    """Solves with the curvature of the records that go."""

    def solve(self, curvature, g, problem):
        return super().solve(curvature, g, replace(problem, retain=problem.forget))


@dataclass(frozen=True)
class NoThreshold(L1Sparse):
    """A proximal step that never comes."""

    def run(self, problem):
        return L1Sparse.run(replace(self, gamma=0.0), problem)


@dataclass(frozen=True)
class SubGradientAsProx(L1Sparse):
    """Takes the sub-gradient where the proximal step was asked for: no zeros."""

    def run(self, problem):
        return L1Sparse.run(replace(self, prox=False), problem)


@dataclass(frozen=True)
class ThresholdsBiases(L1Sparse):
    """Shrinks every parameter, biases included."""

    def run(self, problem):
        matrices = l1_sparse.matrices
        l1_sparse.matrices = lambda model: list(model.parameters())
        try:
            return super().run(problem)
        finally:
            l1_sparse.matrices = matrices


def not_normalised(own, references):
    """RMIA's ratio without its denominator: a population attack."""
    return own


def upside_down(own, references):
    return references.mean(0) / own


def one_denominator(own, references):
    """The mean over records in the place of each record's own."""
    return own / references.mean()


def losses(ratio, population):
    """The share of the population that exceeds the record."""
    return np.array([float((population > r).double().mean()) for r in ratio])


def one_cloud(unlearned, retrained, caught, fresh):
    """The density of the unlearned models only."""
    fit = unlearned.mean(0), deviation(unlearned, True)
    return attack(*(stats.norm.logpdf(c, *fit) for c in (caught, fresh)))


def fits_the_targets(unlearned, retrained, caught, fresh):
    """Calibrated by the very models that are attacked: finds something in nothing."""
    return ulira(caught, fresh, caught, fresh)


def clouds_of_all_records(unlearned, retrained, caught, fresh):
    """One mean for all records: a threshold, not an attack a record."""
    means = [np.full(a.shape[1], a.mean()) for a in (unlearned, retrained)]
    fits = [
        (m, deviation(a, True))
        for m, a in zip(means, (unlearned, retrained), strict=True)
    ]
    scores = [
        stats.norm.logpdf(c, *fits[0]) - stats.norm.logpdf(c, *fits[1])
        for c in (caught, fresh)
    ]
    return attack(*scores)


def swaps_groups(unlearned, retrained, caught, fresh):
    return ulira(retrained, unlearned, caught, fresh)


def ties_for_members(a, b):
    """An AUC in which ties are won."""
    return float((a[:, None] >= b[None]).mean())


def ties_for_others(a, b):
    return float((a[:, None] > b[None]).mean())


def relearns_in_place(model, forget, below, **given):
    """Trains the model that it was given."""
    copied = copy.deepcopy
    relearn.copy.deepcopy = lambda thing: thing
    try:
        return relearn.steps(model, forget, below, **given)
    finally:
        relearn.copy.deepcopy = copied


def looks_too_late(model, forget, below, **given):
    """The first look at the loss is after the first step."""
    found = relearn.steps(model, forget, below, **given)
    return None if found is None else max(1, found)


def from_scratch(model, forget, below, **given):
    """Relearns an untrained copy: nothing hidden is ever found."""
    blank = copy.deepcopy(model)
    for number, module in enumerate(blank.modules()):
        if isinstance(module, nn.Linear):
            torch.manual_seed(number)
            module.reset_parameters()
    return relearn.steps(blank, forget, below, **given)
