"""Tests of the tests: every mutant must fail the contract, for the right reason."""

import re

import pytest

from sparsekit.methods.dsl import DSL
from sparsekit.methods.imp import IMP
from sparsekit.methods.set import SET
from sparsekit.methods.tdm import TDM
from sparsekit.testing import check_method
from sparsekit.testing.backends import check_backends
from sparsekit.testing.processes import check_processes
from sparsekit.testing.subject import Subject
from sparsekit.testing.training import one_thread
from tests.mutants import methods, sparsifiers, values

METHODS = {
    methods.OffByOne: "wrong count, 18[67] of 618",
    methods.Truncates: "wrong count",
    methods.DrawsOnDevice: "global random state was used|two masks .* same context",
    methods.BreaksTiesByEpsilon: r"all weights \+-4096, .* wrong count",
    methods.GrowsIntoKept: "wrong count",
    methods.ChangesContext: "changed the context",
    methods.MovesWhenNotDue: "wrong count",
    methods.KeepsState: "two masks .* same context",
    methods.HoldsTensor: "scores is a Tensor",
    methods.AcceptsAnySparsity: r"sparsity=-0\.1\) must raise a ValueError",
    methods.IgnoresZero: "sparsity 0 differs from dense",
    methods.KeepsExpansion: "step 4 .* wrong count",
    methods.RemembersImportance: "two masks .* same context",
}

SPARSIFIERS = {
    sparsifiers.KeepsMoments: "moment 'momentum_buffer' .* not zero",
    sparsifiers.RegrowsStaleValues: "grown weights .* do not start at zero",
    sparsifiers.MasksGradientsOnly: "weight .* not zero where the connection is absent",
    sparsifiers.LetsFrozenDrift: "frozen weights .* drifted",
    sparsifiers.RebindsMasks: "rebound to another tensor",
    sparsifiers.ForgetsStep: "the sparsifier is at step 0",
    sparsifiers.ForgetsVisited: "'visited mask .* differ",
    sparsifiers.LosesRemovedWeights: "resumed after 6 of 13 steps .* differ",
    sparsifiers.UsesGlobalRandomState: "global random state was used",
    sparsifiers.ClipsDenseGradient: "gradient of .* not masked",
    sparsifiers.ShowsDenseGradients: "another gradient of absent weights",
    sparsifiers.StepsWhenScalerSkips: "GradScaler|called twice",
}

GATHERING = {
    sparsifiers.ShowsLastGradient: "update sees is not the sum over the last 2 steps",
    sparsifiers.KeepsSum: "update sees is not the sum over the last",
    sparsifiers.SumsMaskedGradients: "update sees is not the sum over the last 2",
    sparsifiers.AliasesGradient: "update sees is not the sum over the last 2 steps",
    sparsifiers.ForgetsSum: "resumed after .* differ",
}

LOSSES = {
    sparsifiers.LetsLossesTrainNorms: r"changed the context: 'state\[1.running_mean",
    sparsifiers.AddsLossesToGradient: "changed the context: 'grads",
}

VALUES = {
    values.LeavesMoments: "step 3 .* with momentum: .* differ",
    values.LeavesGradient: "step 3 in values mode with .* differ",
    values.InheritsMoments: "step 3 .* with momentum: .* differ",
    values.LeavesTrainable: "trainable mask|drops frozen",
    values.LetsFrozenDrift: "'weight .* differ",
    values.ForgetsVisited: "'visited mask of .* differ",
    values.KeepsDenseMask: "keeps a tensor of 90 entries, but has",
    values.LosesFirstMove: "resumed after 6 of 13 steps: .* differ",
    values.AddsSkippedGradient: "gradient of '0.weight' has NaN",
    values.ShowsScaledGradient: "GradScaler with AdamW that skips step 1: .* differ",
    values.DoublesDenseGradient: "step 3 .* differ",
    values.MovesLate: "gradient of absent weights of .* was not collected",
}
GATHERING_VALUES = {
    values.WatchesTheLastStepOnly: "gradient of absent weights of .* not collected",
    values.KeepsSum: "step 3 .* keeps a tensor of 90 entries|step 6 .* differ",
}
ERRORS = (AssertionError, RuntimeError, ValueError)


def gathering(sparsity: float) -> DSL:
    return DSL(sparsity, every=3, end=9, gradient_steps=2)


def name_of(value: object) -> str | None:
    return value.__name__ if isinstance(value, type) else None


def test_the_sound_method_passes() -> None:
    check_method(methods.Moving)


@pytest.mark.parametrize(("mutant", "reason"), METHODS.items(), ids=name_of)
def test_broken_methods_fail(mutant: type, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_method(mutant)


@pytest.mark.parametrize(("mutant", "reason"), SPARSIFIERS.items(), ids=name_of)
def test_broken_sparsifiers_fail(mutant: type, reason: str) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=reason):
        check_method(SET, sparsifier=mutant)


def test_the_sound_one_in_values_mode_passes() -> None:
    with one_thread():
        check_backends(
            Subject(lambda s: values.Growing(s, 3, 9), 0.7, 13, values.InValuesMode)
        )


@pytest.mark.parametrize(("mutant", "reason"), VALUES.items(), ids=name_of)
def test_broken_ones_in_values_mode_fail(mutant: type, reason: str) -> None:
    subject = Subject(lambda s: values.Growing(s, 3, 9), 0.7, 13, mutant)
    with one_thread(), pytest.raises(ERRORS, match=reason):
        check_backends(subject)


def test_the_sound_one_that_gathers_passes() -> None:
    with one_thread():
        check_backends(Subject(gathering, 0.7, 13, values.InValuesMode))


@pytest.mark.parametrize(("mutant", "reason"), GATHERING.items(), ids=name_of)
def test_broken_sums_of_gradients_fail(mutant: type, reason: str) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=reason):
        check_method(gathering, sparsifier=mutant)


@pytest.mark.parametrize(("mutant", "reason"), LOSSES.items(), ids=name_of)
def test_losses_that_leave_something_behind_fail(mutant: type, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_method(lambda s: TDM(s, 1, 3, 9, variant="paper"), sparsifier=mutant)


@pytest.mark.parametrize(("mutant", "reason"), GATHERING_VALUES.items(), ids=name_of)
def test_broken_sums_in_values_mode_fail(mutant: type, reason: str) -> None:
    subject = Subject(gathering, 0.7, 13, mutant)
    with one_thread(), pytest.raises(ERRORS, match=reason):
        check_backends(subject)


def test_a_dense_gradient_of_one_process_fails() -> None:
    method = values.Growing(0.7, 3, 9)
    with pytest.raises(AssertionError, match=r"second process: .* differ"):
        check_processes([method], sparsifier=values.SeesOwnHalf, values=[True])


def test_a_lost_rewind_point_fails() -> None:
    with pytest.raises(AssertionError, match=r"resumed after \d of 13 steps"):
        check_method(IMP, sparsifier=sparsifiers.ForgetsRewindPoint)


def test_masks_drawn_by_rank_fail() -> None:
    method = methods.Moving(0.7)
    with pytest.raises(AssertionError, match=r"second process: .* differ") as failure:
        check_processes([method], sparsifier=sparsifiers.ChoosesByRank)
    assert re.search("mask|weight", str(failure.value))
