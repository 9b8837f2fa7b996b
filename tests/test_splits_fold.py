"""Cross-validation folds: every group is tested once, none is parted."""

import pathlib

import pytest

from cldm_jax.data import splits
from cldm_jax.data.bids import Subject
from cldm_jax.errors import UserError


def people(groups=13, each=4):
    files = {m: pathlib.Path(f"{m}.nii") for m in ("pet", "ct", "mr")}
    return [
        Subject(f"sub-{g:02d}-{i}", f"head-{g:02d}", "", files)
        for g in range(groups)
        for i in range(each)
    ]


def make(subjects, k, folds, seed=0):
    return splits.make_splits(
        subjects,
        mode="fold",
        fractions=(0.7, 0.1, 0.2),
        seed=seed,
        abstract_train_groups=50,
        fold=(k, folds),
    )


@pytest.mark.parametrize("folds", [2, 3, 5, 11])
def test_everyone_is_tested_once(folds):
    subjects = people()
    tested = [i for k in range(folds) for i in make(subjects, k, folds)["test"]]
    assert sorted(tested) == sorted(s.id for s in subjects)


def test_no_group_is_parted_and_nobody_is_in_two_parts():
    subjects = people()
    group = {s.id: s.group for s in subjects}
    for k in range(3):
        parts = make(subjects, k, 3)
        members = [{group[i] for i in parts[name]} for name in splits.SPLITS]
        assert all(members)
        assert sum(len(m) for m in members) == len(set.union(*members)) == 13
        assert sum(len(parts[name]) for name in splits.SPLITS) == len(subjects)


def test_folds_depend_on_the_seed_alone():
    subjects = people()
    assert make(subjects, 1, 3) == make(subjects[::-1], 1, 3) | {
        name: [i for i in (s.id for s in subjects) if i in make(subjects, 1, 3)[name]]
        for name in splits.SPLITS
    }
    assert make(subjects, 1, 3)["hash"] != make(subjects, 1, 3, seed=1)["hash"]


@pytest.mark.parametrize(("k", "folds"), [(3, 3), (-1, 3), (0, 1)])
def test_a_fold_that_is_not_there_is_refused(k, folds):
    with pytest.raises(UserError, match="fold"):
        make(people(), k, folds)


def test_too_few_groups_are_refused():
    with pytest.raises(UserError, match="too few"):
        make(people(groups=2), 0, 2)
    with pytest.raises(UserError, match="too few"):
        make(people(groups=4), 0, 5)
