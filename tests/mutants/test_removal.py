"""Tests of the tests of data removal: each mutant must fail, for the right reason."""

import pytest

from sparsekit.data_pruning.dynamics import misclassified
from tests.mutants import removal as broken
from tests.sparsekit.data_pruning import test_removal as tests


def chooses(cls) -> None:
    for seed in range(5):
        tests.removes_what_dicts_remove(cls, seed, "misclassified", 1)


def resumes(cls) -> None:
    for score in (misclassified, None):
        tests.resumes_within_a_stage(cls, score, 5)


MUTANTS = {
    broken.RemovesTheHardest: (chooses, "another example left"),
    broken.IgnoresTheTie: (chooses, "another example left"),
    broken.BringsBack: (chooses, "another example left"),
    broken.Truncates: (tests.counts_are_those_of_the_schedule, "another number left"),
    broken.AllAtOnce: (tests.counts_are_those_of_the_schedule, "another number left"),
    broken.ForgetsTheStage: (resumes, "resumed, it differs"),
    broken.DrawsAnew: (resumes, "resumed, it differs"),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda cls: cls.__name__)
def test_broken_removal_fails(mutant) -> None:
    check, reason = MUTANTS[mutant]
    with pytest.raises(AssertionError, match=reason):
        check(mutant)
