"""People into train, val and test, once and for good. Groups, never slices, never half a group."""

import collections
from collections.abc import Iterable, Sequence

import numpy as np

from cldm_jax import files
from cldm_jax.data.bids import SPLITS, Subject
from cldm_jax.errors import UserError

MODES = ("default", "fold", "abstract", "manifest", "external")


def make_splits(
    subjects: Sequence[Subject],
    *,
    mode: str,
    fractions: tuple[float, float, float],
    seed: int,
    abstract_train_groups: int,
    fold: tuple[int, int] = (0, 1),
) -> dict:
    """{"mode", "seed", "hash", "train": [ids], "val": [ids], "test": [ids]}, the index's "splits".

    "default"   groups drawn by `seed` to `fractions` (train, val, test), with the kinds of targets
                people have spread evenly, and at least one group wherever the fraction is not 0
    "fold"      cross-validation: of the same drawn order, every K-th group from the k-th on is test,
                for fold = (k, K); val is `fractions[1]` of all groups. Over k = 0 .. K-1 everyone is
                test once
    "abstract"  `abstract_train_groups` groups train; the rest are val AND test: the model is selected
                on the people it is reported on, as in the abstract, and the report must say so
    "manifest"  as the cohort's split column says
    "external"  everyone is test: people from elsewhere, for a model that was trained before
    Raises UserError when there are too few groups. The hash covers who is in which split.
    """
    if mode not in MODES:
        raise UserError("split_mode", f"unknown mode {mode!r}", f"Known: {', '.join(MODES)}")
    if mode == "manifest":
        home = {s.group: s.split for s in subjects}
        ids = {k: [s.id for s in subjects if home[s.group] == k] for k in SPLITS}
    elif mode == "external":
        ids = {"train": [], "val": [], "test": [s.id for s in subjects]}
    else:
        groups = _shuffled_groups(subjects, seed)
        if mode == "default":
            parts = _deal(groups, fractions)
        elif mode == "fold":
            parts = _fold(groups, fractions, *fold)
        else:
            parts = _abstract(groups, abstract_train_groups)
        ids = {k: [s.id for s in subjects if s.group in parts[k]] for k in SPLITS}
    if not ids["train"] and mode != "external":
        raise UserError("split", "nobody is in train", "Assign people to train")
    members = {k: sorted(v) for k, v in ids.items()}
    return {"mode": mode, "seed": seed, "hash": files.sha256_json(members), **ids}


def _shuffled_groups(subjects: Sequence[Subject], seed: int) -> list[str]:
    """Groups in an order drawn by `seed`, then gathered by the targets their people have."""
    targets: dict[str, set] = {}
    for s in subjects:
        targets.setdefault(s.group, set()).update({"ct", "mr"} & set(s.files))
    names = sorted(targets)
    order = np.random.default_rng(seed).permutation(len(names))
    return sorted((names[i] for i in order), key=lambda g: sorted(targets[g]))  # stable


def _spread(items: list[str], count: int) -> set[str]:
    """So many of the items, at even distances."""
    return {items[int((i + 0.5) * len(items) / count)] for i in range(count)}


def _deal(groups: list[str], fractions: tuple[float, float, float]) -> dict[str, set[str]]:
    """val and test at even distances along the gathered list: each kind of person gets its share."""
    n = len(groups)
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        reason = f"{tuple(fractions)} do not add up to 1"
        raise UserError("split_fractions", reason, "Give train, val, test")
    count = {k: max(1, round(f * n)) if f else 0 for k, f in zip(SPLITS, fractions, strict=True)}
    if n < 3 or count["val"] + count["test"] >= n:
        reason = f"{n} people (groups) cannot make train, val and test of {tuple(fractions)}"
        raise UserError("split", reason, "Add people, or split by hand with split_mode manifest")
    rest, parts = list(groups), {}
    for k in ("test", "val"):
        parts[k] = _spread(rest, count[k])
        rest = [g for g in rest if g not in parts[k]]
    return {"train": set(rest), **parts}


def _fold(groups: list[str], fractions, k: int, folds: int) -> dict[str, set[str]]:
    n = len(groups)
    if not 0 <= k < folds or folds < 2:
        raise UserError(
            "fold", f"({k}, {folds})", "Give (k, K), k from 0 to K - 1 and K at least 2"
        )
    val = max(1, round(fractions[1] * n)) if fractions[1] else 0
    if folds > n or n - -(-n // folds) - val < 1:
        reason = f"{n} people (groups) are too few for {folds} folds with {val} for val"
        raise UserError("fold", reason, "Add people or make fewer folds")
    test = groups[k::folds]
    rest = [g for g in groups if g not in test]
    chosen = _spread(rest, val)
    return {"train": set(rest) - chosen, "val": chosen, "test": set(test)}


def _abstract(groups: list[str], train: int) -> dict[str, set[str]]:
    n = len(groups)
    if n <= train:
        reason = f"{n} people (groups), {train} wanted for training and none left to report on"
        raise UserError("abstract_train_groups", reason, "Lower it, or use split_mode default")
    chosen = _spread(groups, train)
    rest = set(groups) - chosen
    return {"train": chosen, "val": rest, "test": rest}


def by_turns(subjects: Iterable[int], groups) -> list[int]:
    """Subject numbers once each: the first of every group, then the second, and so on, as a cohort lists
    all people of a head before the next head. groups: of every subject number.
    """
    turns, seen = {}, collections.Counter()
    for subject in dict.fromkeys(subjects):
        turns[subject] = seen[groups[subject]]
        seen[groups[subject]] += 1
    return sorted(turns, key=turns.get)
