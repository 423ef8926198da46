"""Tests of the tests of unlearning: each mutant must fail, for the right reason."""

import pytest

from apps.common.roc import auc
from apps.unlearning.attacks.rmia import ratios, wins
from tests.apps.unlearning import checks
from tests.mutants import unlearning as broken

MUTANTS = {
    broken.NeverStops: (checks.ascends, "nothing bounds"),
    broken.Descends: (checks.ascends, "did not rise"),
    broken.WrongSign: (checks.steps_to_the_optimum, "not the retrained weights"),
    broken.DividesByTheForgetSet: (checks.steps_to_the_optimum, "not the retrained"),
    broken.CurvatureOfTheForgetSet: (checks.steps_to_the_optimum, "not the retrained"),
    broken.NoThreshold: (checks.makes_zeros, "weight: not soft-thresholded"),
    broken.SubGradientAsProx: (checks.makes_zeros, "not soft-thresholded"),
    broken.ThresholdsBiases: (checks.makes_zeros, "bias: not soft-thresholded"),
    broken.one_cloud: (checks.tells_clouds_apart, "not told apart"),
    broken.fits_the_targets: (checks.tells_clouds_apart, "a null of"),
    broken.clouds_of_all_records: (checks.tells_clouds_apart, "not told apart"),
    broken.swaps_groups: (checks.tells_clouds_apart, "not told apart"),
    broken.ties_for_members: (checks.counts_pairs, "share of pairs"),
    broken.ties_for_others: (checks.counts_pairs, "share of pairs"),
    broken.relearns_in_place: (checks.relearns, "was changed"),
    broken.looks_too_late: (checks.relearns, "known already takes steps"),
    broken.from_scratch: (checks.relearns, "known already takes steps"),
}
RMIA = {
    broken.not_normalised: (wins, "not found"),
    broken.upside_down: (wins, "not found"),
    broken.one_denominator: (wins, "not found"),
    ratios: (broken.losses, "not found"),
}


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("mutant", "caught"), MUTANTS.items(), ids=name_of)
def test_broken_unlearners_and_attacks_fail(mutant, caught):
    check, reason = caught
    with pytest.raises(AssertionError, match=reason):
        check(mutant)


@pytest.mark.parametrize(("relative", "caught"), RMIA.items(), ids=name_of)
def test_broken_rmia_fails(relative, caught):
    ranks, reason = caught
    with pytest.raises(AssertionError, match=reason):
        checks.calibrates(relative, ranks)


def test_an_auc_of_members_alone_fails():
    with pytest.raises(AssertionError, match="share of pairs"):
        checks.counts_pairs(lambda a, b: 1 - auc(a, b))
