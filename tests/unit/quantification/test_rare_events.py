"""Every worked example on MRD, LOB/LOD, denominators and dilution, and the rules of domain reference 3-sensitivity."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from flowmrd.errors import QuantificationError
from flowmrd.quantification import rare_events as rare
from flowmrd.quantification.rare_events import (
    Call,
    Category,
    ElnClass,
    Hemodilution,
    Level,
    MrdResult,
    Negativity,
    RareEventRules,
    load_rules,
    measure_mrd,
)


def close(expected: Any) -> Any:
    """Allow 1e-9 relative to numbers printed with ten digits: half a unit of the last one is 5e-10 at most."""
    return pytest.approx(expected, rel=1e-9, abs=0)


@pytest.fixture(scope="module")
def examples(shared: Path) -> dict[str, dict[str, Any]]:
    items = json.loads((shared / "domain" / "worked_examples.json").read_text(encoding="utf-8"))
    return {item["id"]: item for item in items}


def measure(n: int, size: int, *, independent: bool | None = True, **options: Any) -> MrdResult:
    rules = options.pop("rules", load_rules())
    return measure_mrd(
        numerator_events=n,
        denominator_events=size,
        rules=rules,
        cd19_independent=independent,
        after_cd19_therapy=options.pop("after_cd19_therapy", True),
        **options,
    )


@pytest.mark.parametrize("item", ["W01", "W02", "W03", "W04"])
def test_worked_mrd_examples_reproduce(examples: dict[str, dict[str, Any]], item: str) -> None:
    given, expected = examples[item]["inputs"], examples[item]["expected"]
    n, size = given["mrd_events"], given["denominator"]
    rules = RareEventRules(lod_events=given["lod_events"], lloq_events=given["lloq_events"])
    result = measure(n, size, rules=rules)
    assert result.fraction is not None
    assert result.lod_fraction is not None
    assert result.lloq_fraction is not None
    assert result.ci_low is not None
    assert result.ci_high is not None
    found: dict[str, Any] = {
        "fraction": result.fraction,
        "percent": 100 * result.fraction,
        "lod_fraction": result.lod_fraction,
        "lod_percent": 100 * result.lod_fraction,
        "lloq_fraction": result.lloq_fraction,
        "lloq_percent": 100 * result.lloq_fraction,
        "category": result.category.value,
        "cp95_percent": [100 * result.ci_low, 100 * result.ci_high],
        "poisson95_percent": [100 * limit for limit in rare.poisson_interval(n, size)],
        "mrd_neg_1e4": result.mrd_neg_1e4.value,
        "counting_cv_percent": result.counting_cv_percent,
        "upper95_one_sided_percent": 100 * rare.upper_limit(n, size),
        "rule_of_three_percent": 100 * rare.rule_of_three(size),
    }
    for name, value in expected.items():
        assert found[name] == (close(value) if not isinstance(value, str) else value), name


def test_worked_required_denominators_reproduce(examples: dict[str, dict[str, Any]]) -> None:
    given, expected = examples["W05"]["inputs"], examples["W05"]["expected"]
    for rule in expected.values():
        found = rare.required_denominator(
            rule["events"], target_fraction=given["target_fraction"], assurance=given["assurance"]
        )
        assert found.min_denominator == rule["min_denominator"]
        assert found.p_at_min == close(rule["p_at_min"])
        assert found.expected_events == close(rule["lambda_for_95pct"])
        assert found.denominator_events == rule["denominator_for_95pct"]


def test_worked_limits_of_blank_and_detection_reproduce(examples: dict[str, dict[str, Any]]) -> None:
    given, expected = examples["W06"]["inputs"], examples["W06"]["expected"]
    found = rare.blank_limits(given["blank_per_million"], given["low_positive_per_million"])
    assert found.blank_mean == close(expected["blank_mean"])
    assert found.blank_sd == close(expected["blank_sd"])
    assert found.lob == close(expected["lob"])
    assert found.low_sd == close(expected["low_sd"])
    assert found.low_cv_percent == close(expected["low_cv_percent"])
    assert found.lod == close(expected["lod"])
    assert found.lod_corrected == close(expected["lod_with_ep17_cp"])


def test_worked_denominator_conversions_reproduce(examples: dict[str, dict[str, Any]]) -> None:
    given, expected = examples["W07"]["inputs"], examples["W07"]["expected"]
    share = given["mnc_fraction_of_nucleated"]
    assert rare.per_nucleated(given["mrd_percent_of_mnc"], mnc_share_of_nucleated=share) == close(
        expected["mrd_percent_of_nucleated"]
    )
    two_tube = rare.two_tube_fraction(
        target_events=given["tube1_blasts"],
        lineage_events=given["tube1_cd19"],
        reference_lineage_events=given["tube3_cd19"],
        reference_denominator_events=given["tube3_mnc"],
    )
    assert 100 * two_tube == close(expected["two_tube_mrd_percent_of_mnc"])


def test_worked_blood_contamination_reproduces(examples: dict[str, dict[str, Any]]) -> None:
    given, expected = examples["W14"]["inputs"], examples["W14"]["expected"]
    blood = rare.blood_fraction(
        rbc_marrow=given["rbc_bm_1e12"],
        rbc_blood=given["rbc_pb_1e12"],
        wbc_blood=given["wbc_pb_1e9"],
        nucleated_marrow=given["nucleated_bm_1e9"],
    )
    assert blood == close(expected["holdrinet_blood_fraction"])
    bound = rare.mature_cell_bound(percent_marrow=given["t_percent_bm"], percent_blood=given["t_percent_pb"])
    assert bound == close(expected["t_cell_upper_bound"])
    assert rare.corrected_for_blood(given["mrd_percent"], blood=blood) == close(
        expected["corrected_mrd_percent_comment_only"]
    )


def test_the_patients_of_the_vignettes_get_their_mrd_columns(shared: Path) -> None:
    with (shared / "domain" / "vignettes.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["mrd_events"]]
    assert len(rows) > 30
    for row in rows:
        result = measure(
            int(row["mrd_events"]),
            int(row["mrd_denominator"]),
            independent=row["cd19_indep_gating"] == "Y",
            lineage_switch=row["lineage_switch"] == "Y",
        )
        assert result.category == row["exp_mrd_category"], row["patient_id"]
        assert result.mrd_neg_1e4 == row["exp_mrd_neg_1e4"], row["patient_id"]
        flags = set(row["exp_flags"].split("|")) & {"MRD_LOW_POSITIVE", "CD19_GATED_ONLY", "LINEAGE_SWITCH"}
        assert set(result.flags) == flags, row["patient_id"]


# (events, denominator, category, negative at 1e-4, ELN class, call), read as a haematologist would
CASES = [
    (0, 200_000, "UNDETECTED", "Y", "COMPLETE", "not_detected"),
    (0, 199_999, "UNDETECTED_INSUFFICIENT", "NE", "OTHER", "not_detected"),
    (19, 200_000, "UNDETECTED", "Y", "COMPLETE", "not_detected"),
    (20, 200_000, "DETECTED_BELOW_LLOQ", "N", "OTHER", "positive"),
    (20, 200_001, "DETECTED_BELOW_LLOQ", "NE", "OTHER", "positive"),
    (20, 500_000, "DETECTED_BELOW_LLOQ", "Y", "OTHER", "positive"),
    (49, 499_999, "DETECTED_BELOW_LLOQ", "NE", "OTHER", "positive"),
    (50, 500_000, "QUANTIFIABLE", "N", "FAILURE", "positive"),
    (50, 500_001, "QUANTIFIABLE", "Y", "OTHER", "positive"),
    (60, 1_000_000, "QUANTIFIABLE", "Y", "OTHER", "positive"),
    (34_174, 77_000, "QUANTIFIABLE", "N", "FAILURE", "positive"),
    (30, 30, "DETECTED_BELOW_LLOQ", "N", "OTHER", "positive"),
]


@pytest.mark.parametrize(("n", "size", "category", "negative", "eln", "call"), CASES)
def test_the_boundaries_of_the_categories(n: int, size: int, category: str, negative: str, eln: str, call: str) -> None:
    result = measure(n, size)
    assert (result.category, result.mrd_neg_1e4, result.eln_class, result.call) == (category, negative, eln, call)


@pytest.mark.parametrize("independent", [False, None])
def test_an_empty_gate_that_needs_the_antigen_proves_nothing_after_therapy_against_it(
    *, independent: bool | None
) -> None:
    result = measure(0, 1_000_000, independent=independent)
    assert result.category is Category.UNDETECTED_GATING_INADEQUATE
    assert result.mrd_neg_1e4 is Negativity.NOT_EVALUABLE
    assert result.call is Call.REVIEW
    assert result.flags == ("CD19_GATED_ONLY",)
    assert result.wording == "Not evaluable for MRD negativity (LOD 0.0020%)"


def test_inadequate_gating_is_tested_before_insufficient_cells() -> None:
    assert measure(0, 1000, independent=False).category is Category.UNDETECTED_GATING_INADEQUATE
    assert measure(0, 1000).category is Category.UNDETECTED_INSUFFICIENT


def test_before_therapy_a_gate_on_the_antigen_is_adequate() -> None:
    result = measure(0, 1_000_000, independent=False, after_cd19_therapy=False)
    assert (result.category, result.flags) == (Category.UNDETECTED, ())


def test_inadequate_gating_turns_a_yes_into_not_evaluable_and_leaves_a_no() -> None:
    low = measure(60, 1_000_000, independent=False)
    assert (low.category, low.mrd_neg_1e4) == (Category.QUANTIFIABLE, Negativity.NOT_EVALUABLE)
    assert low.flags == ("CD19_GATED_ONLY", "MRD_LOW_POSITIVE")
    assert measure(600, 1_000_000, independent=False).mrd_neg_1e4 is Negativity.NO


def test_a_lineage_switch_is_never_negative() -> None:
    result = measure(0, 1_000_000, lineage_switch=True)
    assert result.category is Category.UNDETECTED_GATING_INADEQUATE
    assert result.flags == ("LINEAGE_SWITCH",)


def test_an_empty_denominator_is_not_evaluable_and_divides_nothing() -> None:
    result = measure(0, 0, denominator="viable")
    assert result.category is Category.UNDETECTED_INSUFFICIENT
    assert result.mrd_neg_1e4 is Negativity.NOT_EVALUABLE
    assert (result.fraction, result.ci_low, result.ci_high, result.lod_fraction, result.eln_class) == (None,) * 5
    assert result.call is Call.REVIEW
    assert result.value_percent is None
    assert result.wording == "Not evaluable: no events in the denominator (viable)"


def test_the_assay_limit_counts_where_it_is_worse_than_the_sample() -> None:
    result = measure(0, 1_000_000, assay_lod=1e-3, assay_lloq=2e-3)
    assert (result.lod_fraction, result.lloq_fraction, result.sample_lod_fraction) == (1e-3, 2e-3, 2e-5)
    assert result.category is Category.UNDETECTED_INSUFFICIENT
    assert result.mrd_neg_1e4 is Negativity.YES  # by 3.4 this column looks at the sample's own LOD
    assert measure(0, 1_000_000, assay_lod=1e-6).lod_fraction == 2e-5


def test_a_number_below_the_validated_limits_is_not_reported_as_a_number() -> None:
    result = measure(400, 1_000_000, assay_lod=5e-4, assay_lloq=1e-3)
    assert result.category is Category.DETECTED_BELOW_LLOQ
    assert result.call is Call.REVIEW
    assert result.flags == ("BELOW_ASSAY_LLOQ", "BELOW_ASSAY_LOD")
    assert result.value_percent is None


def test_scattered_events_are_for_a_person_to_judge() -> None:
    assert measure(100, 500_000, clustered_share=0.70).call is Call.POSITIVE
    result = measure(100, 500_000, clustered_share=0.69)
    assert (result.call, result.flags) == (Call.REVIEW, ("EVENTS_SCATTERED",))
    assert measure(5, 500_000, clustered_share=0.1).call is Call.NOT_DETECTED


@pytest.mark.parametrize(
    ("n", "size", "wording"),
    [
        (0, 750_000, "MRD not detected (LOD 0.0027%)"),
        (
            3,
            90_000,
            (
                "No abnormal population in 90,000 cells; sensitivity insufficient (LOD 0.022%), "
                "MRD below 0.01% not excluded"
            ),
        ),
        (31, 480_000, "MRD detected, below LLOQ (< 0.010%)"),
        (137, 1_250_000, "MRD 0.011% of nucleated cells (95% CI 0.0092% to 0.013%)"),
        (34_174, 77_000, "MRD 44% of nucleated cells (95% CI 44% to 45%)"),
        (77_000, 77_000, "MRD 100% of nucleated cells (95% CI 100% to 100%)"),
    ],
)
def test_the_sentence_of_each_category(n: int, size: int, wording: str) -> None:
    assert measure(n, size).wording == wording


def test_the_named_rule_sets() -> None:
    assert load_rules() == RareEventRules(lod_events=20, lloq_events=50, name="iccs_20_50")
    assert load_rules("euroflow_10_40") == RareEventRules(lod_events=10, lloq_events=40, name="euroflow_10_40")
    with pytest.raises(QuantificationError, match="expected one of iccs_20_50, euroflow_10_40; got 'mine'"):
        load_rules("mine")
    assert set(rare.load_rule_book().wording) == {*Category, "EMPTY"}


@pytest.mark.parametrize(
    ("n", "size", "options", "message"),
    [
        (5, 4, {}, "counts: expected 0 <= numerator <= denominator; got 5 of 4"),
        (-1, 4, {}, "counts: expected 0 <= numerator <= denominator; got -1 of 4"),
        (1, 4, {"assay_lod": 0.0}, "assay_lod: expected a fraction inside 0…1; got 0.0"),
        (1, 4, {"assay_lloq": 2.0}, "assay_lloq: expected a fraction inside 0…1; got 2.0"),
    ],
)
def test_impossible_counts_and_limits_are_refused(n: int, size: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantificationError, match=f"^{re.escape(message)}$"):
        measure(n, size, **options)


@pytest.mark.parametrize(("lod", "lloq"), [(0, 50), (20, 19)])
def test_rules_out_of_order_are_refused(lod: int, lloq: int) -> None:
    with pytest.raises(QuantificationError, match=f"got {lod} and {lloq}"):
        RareEventRules(lod_events=lod, lloq_events=lloq)


def test_the_required_denominators_of_the_reference_table() -> None:
    needed = [rare.required_denominator(k, target_fraction=1e-4).min_denominator for k in (20, 50, 10, 40)]
    assert needed == [200_000, 500_000, 100_000, 400_000]
    with pytest.raises(QuantificationError, match="expected at least 1 event"):
        rare.required_denominator(20, target_fraction=0.0)


def test_the_limit_of_blank_by_rank() -> None:
    assert rare.rank_limit_of_blank([float(value) for value in range(60, 0, -1)]) == 57.5
    with pytest.raises(QuantificationError, match="blanks: expected at least 20 results; got 3"):
        rare.rank_limit_of_blank([1.0, 2.0, 3.0])


def test_limits_need_enough_blanks_and_more_results_than_specimens() -> None:
    with pytest.raises(QuantificationError, match="blanks: expected at least 20 results; got 19"):
        rare.blank_limits([0.0] * 19, [1.0, 2.0])
    with pytest.raises(QuantificationError, match="got 2 results of 2 specimens"):
        rare.blank_limits([0.0] * 20, [1.0, 2.0], samples=2)
    with pytest.raises(QuantificationError, match="low positives: expected numbers; got NaN or infinity"):
        rare.blank_limits([0.0] * 20, [1.0, float("nan")])


def test_lloq_is_the_lowest_level_that_meets_cv_bias_and_events() -> None:
    rules = load_rules()
    levels = [
        Level(expected=1e-3, results=(1.0e-3, 1.1e-3, 0.9e-3), events=(500, 550, 450)),
        Level(expected=1e-4, results=(1.0e-4, 1.2e-4, 0.9e-4), events=(50, 60, 50)),
        Level(expected=5e-5, results=(5e-5, 6e-5, 4e-5), events=(49, 60, 50)),
        Level(expected=2e-5, results=(1e-5, 6e-5, 1e-5), events=(90, 90, 90)),
    ]
    found = rare.find_lloq(levels, rules=rules)
    assert (found.lloq, found.failing_above) == (1e-4, ())
    strict = rare.find_lloq(levels, rules=rules, max_cv_percent=12.0)
    assert (strict.lloq, strict.failing_above) == (1e-3, ())
    biased = [Level(expected=1e-2, results=(1e-3, 1e-3), events=(900, 900)), *levels]
    assert rare.find_lloq(biased, rules=rules).failing_above == (1e-2,)
    assert rare.find_lloq(levels[3:], rules=rules).lloq is None


def test_other_denominators() -> None:
    assert rare.per_leukocytes(0.01, nucleated_events=1000, nucleated_red_events=200) == pytest.approx(0.0125)
    by_singlets = rare.two_tube_fraction_by_singlets(
        target_events=10, singlet_events=1000, reference_denominator_events=400, reference_singlet_events=800
    )
    assert by_singlets == pytest.approx(0.02)
    assert rare.pool_replicates([(3, 100), (5, 300)]) == (8, 400)


def test_conversions_without_cells_are_refused() -> None:
    with pytest.raises(QuantificationError, match="expected 0 <= nucleated red cells < nucleated cells"):
        rare.per_leukocytes(0.01, nucleated_events=10, nucleated_red_events=10)
    with pytest.raises(QuantificationError, match="expected the target inside the lineage gate; got 5 of 4"):
        rare.two_tube_fraction(
            target_events=5, lineage_events=4, reference_lineage_events=1, reference_denominator_events=1
        )
    with pytest.raises(QuantificationError, match="replicates: expected at least one tube"):
        rare.pool_replicates([])
    with pytest.raises(QuantificationError, match="mnc_share_of_nucleated"):
        rare.per_nucleated(0.1, mnc_share_of_nucleated=0.0)
    with pytest.raises(QuantificationError, match="expected 0 <= F < 1"):
        rare.corrected_for_blood(0.1, blood=1.0)


@pytest.mark.parametrize(
    ("blood", "bound", "failed", "expected"),
    [
        (0.5, None, 0, Hemodilution.SUSPECT),
        (0.49, 0.9, 3, Hemodilution.UNCERTAIN),
        (0.30, None, 0, Hemodilution.UNCERTAIN),
        (0.29, None, 3, Hemodilution.OK),
        (None, 0.9, 2, Hemodilution.SUSPECT),
        (None, 0.9, 1, Hemodilution.UNCERTAIN),
        (None, 1.0, 3, Hemodilution.UNCERTAIN),
        (None, None, 1, Hemodilution.UNCERTAIN),
        (None, None, 2, Hemodilution.SUSPECT),
        (None, 0.29, 3, Hemodilution.OK),
    ],
)
def test_hemodilution_follows_the_reference(
    blood: float | None, bound: float | None, failed: int, expected: Hemodilution
) -> None:
    assert rare.classify_hemodilution(blood=blood, bound=bound, failed_checks=failed) is expected


def test_marrow_checks_count_only_what_was_measured() -> None:
    assert rare.failed_marrow_checks({"erythroid": 0.001, "plasma_cells": None}) == ("erythroid",)
    assert rare.failed_marrow_checks({"erythroid": 0.01, "progenitors": 0.001, "plasma_cells": 0.0005}) == ()
    with pytest.raises(QuantificationError, match="marrow checks: expected among erythroid"):
        rare.failed_marrow_checks({"mast": 0.1})


def test_the_eln_class_names_what_the_trial_reports() -> None:
    assert {measure(n, size).eln_class for n, size, *_ in CASES} == set(ElnClass)
