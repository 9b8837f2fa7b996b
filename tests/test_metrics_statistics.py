"""Per-patient statistics: closed forms, known tables, and what must not be counted twice."""

import math

import numpy as np
import pytest
from scipy import stats

from cldm_jax.errors import UserError
from cldm_jax.metrics import aggregate, statistics


def test_patient_mean_leaves_out_what_it_cannot_average():
    assert statistics.patient_mean([10.0, 20.0, math.nan, math.inf]) == 15.0
    assert statistics.patient_mean([math.inf, math.nan]) == math.inf
    assert math.isnan(statistics.patient_mean([math.nan]))
    assert math.isnan(statistics.patient_mean([]))


def test_bootstrap_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = statistics.bootstrap_ci(values, seed=1)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_is_deterministic_and_needs_two_people():
    values = np.random.default_rng(0).random(30)
    first = statistics.bootstrap_ci(values, seed=3)
    assert first == statistics.bootstrap_ci(values, seed=3)
    assert first != statistics.bootstrap_ci(values, seed=4)
    assert all(map(math.isnan, statistics.bootstrap_ci([1.0], seed=0)))
    with pytest.raises(ValueError, match="finite"):
        statistics.bootstrap_ci([1.0, math.nan], seed=0)


def test_bootstrap_of_two_values_has_known_quantiles():
    # Means 0, 1/2, 1 have probability 1/4, 1/2, 1/4: the 2.5 and 97.5 % points are the ends.
    assert statistics.bootstrap_ci([0.0, 1.0], seed=0) == (0.0, 1.0)


def test_clusters_widen_the_interval():
    """Eight copies of each head are no more information than one of each."""
    heads = np.random.default_rng(0).normal(0, 1, 6)
    values, clusters = np.repeat(heads, 8), np.repeat(np.arange(6), 8)
    width = np.ptp(statistics.bootstrap_ci(values, seed=0))
    clustered = np.ptp(statistics.bootstrap_ci(values, seed=0, clusters=clusters))
    single = np.ptp(statistics.bootstrap_ci(heads, seed=0))
    assert clustered == pytest.approx(single, rel=1e-9)
    assert clustered > 2 * width


def test_summarise_known_values_and_undefined_counted():
    entry = statistics.summarise([1.0, 2.0, 3.0, 4.0, math.inf, math.nan], seed=0)
    assert entry["mean"] == 2.5 and entry["median"] == 2.5
    assert entry["sd"] == pytest.approx(math.sqrt(5 / 3))
    assert entry["iqr"] == [1.75, 3.25]
    assert (entry["n"], entry["n_undefined"]) == (4, 2)
    one = statistics.summarise([7.0], seed=0)
    assert (one["mean"], one["sd"], one["ci95"]) == (7.0, None, None)
    assert statistics.summarise([], seed=0)["mean"] is None


@pytest.mark.parametrize("n", [3, 8, 20])
def test_wilcoxon_equals_scipy_exact(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.4, 1, n), rng.normal(0, 1, n)
    expected = stats.wilcoxon(a, b, method="exact").pvalue
    assert statistics.paired_test(a, b, seed=0).p_wilcoxon == pytest.approx(expected, rel=1e-9)


def test_wilcoxon_with_ties_equals_full_enumeration():
    difference = np.array([1.0, 1.0, -1.0, 2.0, 2.0, 3.0, 0.0])
    ranks = stats.rankdata(np.abs(difference[difference != 0]))
    signs = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1)
    null = ranks @ signs
    observed = ranks[difference[difference != 0] > 0].sum()
    smaller = min(observed, ranks.sum() - observed)
    result = statistics.paired_test(difference, np.zeros(7), seed=0)
    assert result.p_wilcoxon == pytest.approx(min(1, 2 * np.mean(null <= smaller)))
    assert result.rank_biserial == pytest.approx((2 * observed - ranks.sum()) / ranks.sum())


def test_smallest_p_is_reached_when_all_agree():
    for n in (5, 6, 8):
        result = statistics.paired_test(np.arange(1.0, n + 1), np.zeros(n), seed=0)
        assert result.p_wilcoxon == pytest.approx(statistics.smallest_p(n)) == 2.0 ** (1 - n)
        assert result.rank_biserial == 1.0
    assert statistics.paired_test(np.ones(3), np.ones(3), seed=0).p_wilcoxon == 1.0


def test_equivalence_is_the_interval_of_nine_in_ten_inside_the_margin():
    """p < 0.05 exactly where the 90 % t interval lies within: two one-sided tests."""
    d = np.array([0.05, -0.02, 0.03, 0.08, -0.01, 0.02])
    half = stats.t.ppf(0.95, 5) * d.std(ddof=1) / math.sqrt(6)
    edge = d.mean() + half
    assert statistics.equivalence(d, edge) == pytest.approx(0.05)
    assert statistics.equivalence(d, 2 * edge) < 0.05 < statistics.equivalence(d, 0.5 * edge)
    assert statistics.equivalence(d - 1, edge) > 0.99  # far away is not equivalent
    assert math.isnan(statistics.equivalence([0.1], 1.0))
    twice = statistics.paired_test(
        np.repeat(d, 2), np.zeros(12), seed=0, clusters=list("aabbccddeeff"), margin=edge
    )
    assert twice.p_equivalent == pytest.approx(0.05)  # people of one head count once


def test_paired_test_counts_undefined_pairs_and_uses_clusters():
    a = np.array([1.0, 2.0, math.inf, 4.0, 5.0])
    result = statistics.paired_test(a, np.zeros(5), seed=0)
    assert (result.n, result.n_undefined, result.mean_diff) == (4, 1, 3.0)
    clustered = statistics.paired_test(
        np.arange(1.0, 9.0), np.zeros(8), seed=0, clusters=list("aabbccdd")
    )
    assert clustered.n == 4 and clustered.p_wilcoxon == pytest.approx(0.125)
    assert math.isnan(statistics.paired_test([math.nan], [0.0], seed=0).p_wilcoxon)
    with pytest.raises(ValueError, match="paired"):
        statistics.paired_test([1.0, 2.0], [1.0], seed=0)


def test_patient_level_test_keeps_its_level_where_slices_do_not():
    """40 slices a person, within-person correlation 0.3, no true difference."""
    rng = np.random.default_rng(0)
    repeats, people, slices = 150, 8, 40
    by_slice = by_patient = 0
    for _ in range(repeats):
        person = rng.normal(0, math.sqrt(0.3), (people, 1))
        values = person + rng.normal(0, math.sqrt(0.7), (people, slices))
        by_slice += stats.wilcoxon(values.ravel()).pvalue < 0.05
        means = values.mean(axis=1)
        by_patient += statistics._signed_rank(means)[0] < 0.05
    assert by_slice / repeats > 0.4
    assert by_patient / repeats < 0.1


def test_holm_known_example():
    adjusted = statistics.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    with_gap = statistics.holm([0.02, math.nan, 0.01])
    assert with_gap[::2] == pytest.approx([0.02, 0.02]) and math.isnan(with_gap[1])


def test_power_caveat_below_nine_people_only():
    text = statistics.power_caveat(6, 12)
    assert "6 independent test people" in text and "0.031" in text and "0.38" in text
    assert statistics.power_caveat(9, 12) is None
    assert "no difference can reach 0.05" in statistics.power_caveat(9, 100)
    assert "no difference can reach" not in statistics.power_caveat(8, 1)
    assert "1 independent test person" in statistics.power_caveat(1, 1)


def make_scores(values, method, mode="predict", groups=None):
    return [
        {
            "patient": f"p{i}",
            "group": f"g{i}" if groups is None else groups[i],
            "split": "test",
            "method": method,
            "mode": mode,
            "target": "ct",
            "metric": "psnr",
            "value": v,
            "n_slices": 3,
        }
        for i, v in enumerate(values)
    ]


def test_summary_rows_and_tests_from_scores():
    scores = make_scores([1.0, 2.0, 3.0, 4.0], "unet")
    scores += make_scores([2.0, 3.5, 4.0, 5.5], "ldm", "onestep")[::-1]  # order must not matter
    rows = aggregate.summarise_scores(scores, seed=0)
    assert [(r["method"], r["n_patients"]) for r in rows] == [("unet", 4), ("ldm", 4)]
    assert rows[1]["psnr"]["mean"] == 3.75
    (test,) = aggregate.paired_tests(scores, [("ldm:onestep", "unet:predict")], seed=0)
    assert test["mean_diff"] == pytest.approx(1.25)
    assert test["p_wilcoxon"] == test["p_holm"] == pytest.approx(0.125)
    assert aggregate.paired_tests(scores, [("ldm:sample", "unet:predict")], seed=0) == []


def test_trainings_are_averaged_within_a_patient_and_their_spread_is_told_apart():
    scores = make_scores([1.0, 2.0, 3.0], "unet") + make_scores([3.0, 2.0, 7.0], "unet-seed1")
    scores += make_scores([5.0, 5.0, 5.0], "ldm", "onestep")
    averaged = aggregate.average_seeds(scores)
    assert [(r["method"], r["value"]) for r in averaged[:3]] == [
        ("unet", 2.0),
        ("unet", 2.0),
        ("unet", 5.0),
    ]
    (test,) = aggregate.paired_tests(averaged, [("ldm:onestep", "unet:predict")], seed=0)
    assert test["n"] == 3 and test["mean_diff"] == pytest.approx(2.0)
    (spread,) = aggregate.seed_spread(scores, metric="psnr")  # trainings' means: 2 and 4
    assert (spread["method"], spread["n_seeds"], spread["mean"]) == ("unet", 2, 3.0)
    assert spread["sd"] == pytest.approx(2**0.5)
    scores += make_scores([np.nan, np.nan, np.nan], "unet-seed2")
    assert aggregate.seed_spread(scores, metric="psnr") == [spread]
    alike = make_scores([1.0, 2.0, 9.0], "unet") + make_scores([1.0, 2.0, np.nan], "unet-seed1")
    (spread,) = aggregate.seed_spread(alike, metric="psnr")  # of the two people whom both have
    assert (spread["mean"], spread["sd"]) == (1.5, 0.0)


def test_shared_heads_count_once():
    groups = ["a", "a", "b", "b"]
    scores = make_scores([1, 2, 3, 4.0], "unet", groups=groups)
    scores += make_scores([2, 3, 4, 5.0], "ldm", "onestep", groups=groups)
    row = aggregate.summarise_scores(scores, seed=0)[0]
    assert (row["n_patients"], row["n_independent"]) == (4, 2)
    (test,) = aggregate.paired_tests(scores, [("ldm:onestep", "unet:predict")], seed=0)
    assert test["n"] == 2


def test_duplicate_or_missing_people_are_refused():
    scores = make_scores([1.0, 2.0], "unet")
    with pytest.raises(UserError, match="two values"):
        aggregate.summarise_scores(scores + scores[:1], seed=0)
    scores += make_scores([1.0], "ldm", "onestep")
    with pytest.raises(UserError, match="p1"):
        aggregate.paired_tests(scores, [("ldm:onestep", "unet:predict")], seed=0)


def test_cases_are_picked_by_rule():
    scores = make_scores([3.0, 9.0, math.nan, 5.0, 1.0], "ldm", "onestep")
    cases = aggregate.pick_cases(scores, "ldm:onestep", "ct")
    assert cases == {"best": "p1", "worst": "p4", "median": "p3"}
    assert aggregate.pick_cases(scores[:1], "ldm:onestep", "ct") == {"median": "p0"}
    assert aggregate.pick_cases(scores, "ldm:onestep", "mr") == {}
