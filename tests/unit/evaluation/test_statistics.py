"""Overlap, rates, detection curves and agreement against worked values and other implementations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmrd.errors import QuantificationError
from flowmrd.evaluation.statistics import (
    agreement,
    detection_curve,
    median_interval,
    overlap,
    probit,
    wilson,
)


@pytest.fixture(scope="module")
def worked(shared: Path) -> list[dict[str, Any]]:
    examples: list[dict[str, Any]] = json.loads((shared / "domain" / "worked_examples.json").read_text("utf-8"))
    return examples


def test_wilsons_interval_has_the_worked_values(worked: list[dict[str, Any]]) -> None:
    cases = [one for one in worked if "wilson95_percent_for_contrast" in one["expected"]]
    assert len(cases) == 4
    for case in cases:
        rate = wilson(case["inputs"]["responders"], case["inputs"]["n"])
        assert rate.low is not None
        assert rate.high is not None
        expected = case["expected"]["wilson95_percent_for_contrast"]
        assert [100 * rate.low, 100 * rate.high] == pytest.approx(expected, rel=1e-8), case["id"]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # Newcombe RG. Stat Med 1998;17:857-872, table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_newcombes_published_values(k: int, n: int, low: float, high: float) -> None:
    rate = wilson(k, n)
    assert rate.low == pytest.approx(low, abs=5e-5)
    assert rate.high == pytest.approx(high, abs=5e-5)


def test_a_rate_of_nothing_is_no_rate() -> None:
    rate = wilson(0, 0)
    assert (rate.value, rate.low, rate.high) == (None, None, None)
    with pytest.raises(QuantificationError, match="expected 0 <= k <= n; got 3 of 2"):
        wilson(3, 2)


def test_overlap_counts_shared_events() -> None:
    found = np.array([True, True, True, False, False])
    true = np.array([True, False, False, True, False])
    shared = overlap(found, true)
    assert (shared.precision, shared.recall, shared.f1) == (1 / 3, 1 / 2, 2 / 5)


def test_nothing_true_has_no_recall_and_nothing_found_no_precision() -> None:
    none, some = np.zeros(3, np.bool_), np.array([True, False, False])
    assert (overlap(some, none).precision, overlap(some, none).recall, overlap(some, none).f1) == (0.0, None, None)
    assert (overlap(none, some).precision, overlap(none, some).recall, overlap(none, some).f1) == (None, 0.0, 0.0)
    with pytest.raises(QuantificationError, match="expected as many events in both; got 3 and 2"):
        overlap(none, some[:2])


def test_the_median_interval_lies_between_the_tabulated_ranks() -> None:
    # Ranks for 95 %: Conover, table A3 (binomial); n = 20: 6th and 15th, n = 10: 2nd and 9th, n = 30: 10th and 21st.
    assert median_interval([float(value) for value in range(1, 21)]) == (6.0, 15.0)
    assert median_interval([float(value) for value in range(1, 11)]) == (2.0, 9.0)
    assert median_interval([float(value) for value in range(1, 31)]) == (10.0, 21.0)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_the_probit_curve_is_that_of_an_independent_maximum_likelihood_fit() -> None:
    from scipy.optimize import minimize
    from scipy.stats import norm

    rng = np.random.default_rng(7)
    levels = 10 ** rng.uniform(-5.5, -3, 160)
    hits = rng.random(160) < norm.cdf((np.log10(levels) + 4.4) * 3)
    curve = probit(list(levels), list(hits))

    def loss(beta: Any) -> float:
        eta = beta[0] + beta[1] * (np.log10(levels) + 4)
        return -float(norm.logcdf(np.where(hits, eta, -eta)).sum())

    best = minimize(loss, np.array([0.0, 1.0]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9})
    limit = (norm.ppf(0.95) - best.x[0]) / best.x[1] - 4
    assert curve.lod is not None
    assert math.log10(curve.lod) == pytest.approx(limit, abs=1e-4)
    # The interval by the delta method, from the curvature of the same likelihood.
    step = 1e-4
    hessian = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            e, f = np.eye(2)[i] * step, np.eye(2)[j] * step
            hessian[i, j] = (
                loss(best.x + e + f) - loss(best.x + e - f) - loss(best.x - e + f) + loss(best.x - e - f)
            ) / (4 * step * step)
    # Observed and expected information differ a little for the probit link.
    covariance = np.linalg.inv(hessian)
    gradient = np.array([-1.0, -(norm.ppf(0.95) - best.x[0]) / best.x[1]]) / best.x[1]
    half = 1.96 * math.sqrt(gradient @ covariance @ gradient)
    assert curve.high is not None
    assert math.log10(curve.high / curve.lod) == pytest.approx(half, rel=0.1)


def test_the_curve_passes_through_its_limit_of_detection() -> None:
    levels = [1e-5, 1e-5, 3e-5, 3e-5, 1e-4, 1e-4, 3e-4, 3e-4, 1e-3, 1e-3]
    curve = probit(levels, [False, False, False, True, False, True, True, True, True, True])
    assert curve.lod is not None
    assert curve.low is not None
    middle, low, high = detection_curve(curve, [curve.lod])
    assert middle[0] == pytest.approx(0.95)
    assert low[0] < 0.95 < high[0]
    assert curve.low < curve.lod


@pytest.mark.parametrize(
    ("levels", "hits", "note"),
    [
        ([], [], "no samples with disease"),
        ([1e-4, 1e-3], [True, True], "every sample was found: the limit lies below the lowest level"),
        ([1e-4, 1e-3], [False, False], "no sample was found: the limit lies above the highest level"),
        ([1e-4, 1e-3], [False, True], "levels missed and found do not overlap: the limit lies between them"),
        ([1e-5, 1e-4, 1e-4, 1e-3], [True, True, False, False], "detection does not rise with the level"),
        ([1e-5, 2e-5, 1e-4, 1e-3], [True, False, True, False], "detection does not rise with the level"),
    ],
)
def test_where_no_curve_is_unique_the_reason_is_given(levels: list[float], hits: list[bool], note: str) -> None:
    curve = probit(levels, hits)
    assert curve.lod is None
    assert curve.note == note
    with pytest.raises(QuantificationError, match="there is none"):
        detection_curve(curve, [1e-4])


def test_levels_without_a_logarithm_are_refused() -> None:
    with pytest.raises(QuantificationError, match="levels above 0"):
        probit([0.0, 1e-4], [False, True])


def test_agreement_has_the_values_worked_by_hand() -> None:
    one = agreement([1e-4, 1e-3, 1e-2], [2e-4, 1e-3, 5e-3])
    # Errors: +0.30103, 0, -0.30103.
    assert one.bias == pytest.approx(0.0, abs=1e-12)
    assert one.median_absolute == pytest.approx(0.30103, abs=1e-5)
    assert one.sd == pytest.approx(0.30103, abs=1e-5)
    assert one.high == pytest.approx(1.959964 * 0.30103, abs=1e-5)
    # y - mean: -0.69897, 0, 0.69897 against -1, 0, 1: a straight line, but not the identity.
    assert one.r2 == pytest.approx(1.0)
    assert one.r2_identity == pytest.approx(1 - 2 * 0.30103**2 / 2, abs=1e-5)


def test_a_constant_factor_is_a_bias_and_no_scatter() -> None:
    one = agreement([1e-5, 1e-4, 1e-2], [2e-5, 2e-4, 2e-2])
    assert one.bias == pytest.approx(math.log10(2))
    assert one.sd == pytest.approx(0.0, abs=1e-12)
    assert one.r2 == pytest.approx(1.0)
    assert one.r2_identity is not None
    assert one.r2_identity < 1


def test_agreement_of_nothing_or_of_one_pair_claims_nothing() -> None:
    assert agreement([], []).bias is None
    single = agreement([1e-4], [1e-4])
    assert (single.bias, single.sd, single.r2) == (0.0, None, None)
    with pytest.raises(QuantificationError, match="pairs of fractions above 0"):
        agreement([1e-4], [0.0])
