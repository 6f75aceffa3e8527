"""Antigens, clean-up, dilution and therapies beside a result, on simulated marrows with known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowmrd.assessment import Request, gather, with_dilution, withhold
from flowmrd.gating.engine import apply_template
from flowmrd.gating.template import GatingTemplate, find_template, load_template, template_paths
from flowmrd.pipeline import Acquisition, analyse, open_acquisition
from flowmrd.records import AcquisitionResult, AntigenRow, MeasurementRow
from flowmrd.settings import Settings
from flowmrd.simulation import Immunophenotype, Parameters, TargetStatus, simulate, write_simulated

TUBE = "ball-mrd-10c"
# Bright in CD10 and CD58, dim in CD38 and CD45: no detector misses it, so the antigens are those of all blasts.
CLEAR = Immunophenotype.model_validate(
    {"start": 0.12, "spread": 0.03, "shifts": {"CD58": 0.6, "CD38": -0.9, "CD10": 0.4, "CD66c+CD123": 1.4}}
)


def marrow(folder: Path, *, seed: int = 21, **parameters: object) -> Path:
    chosen = {"tube": TUBE, "events": 60_000, "scenario": "normal", "blasts": 0.02, "phenotype": CLEAR, **parameters}
    return write_simulated(simulate(Parameters(**chosen), seed), folder, "sample").fcs  # type: ignore[arg-type]


def run(path: Path, template: GatingTemplate | None = None, **facts: object) -> AcquisitionResult:
    acquisition = Acquisition(name="a", path=str(path), tube=TUBE, specimen_type="BM", **facts)  # type: ignore[arg-type]
    return analyse(acquisition, template or find_template(TUBE), Settings()).result


def codes(result: AcquisitionResult) -> set[str]:
    return {finding.code for finding in result.findings}


def antigen(result: AcquisitionResult, marker: str) -> AntigenRow:
    return next(row for row in result.antigens if row.antigen == marker)


@pytest.mark.parametrize(
    ("status", "expected", "strength"),
    [
        ("positive", {"CD19pos"}, {"normal", "dim"}),
        ("dim", {"CD19pos", "CD19partial"}, {"dim"}),
        ("negative", {"CD19neg"}, {"", "dim"}),
    ],
)
def test_the_antigen_of_the_blasts_is_that_of_the_truth(
    status: str, expected: set[str], strength: set[str], tmp_path: Path
) -> None:
    result = run(marrow(tmp_path, cd19=TargetStatus(status)))
    row = antigen(result, "CD19")
    assert row.events > 900
    assert row.status in expected
    assert row.strength in strength
    assert antigen(result, "CD22").status == "CD22pos"
    assert ("SECOND_READER" in codes(result)) == (status == "negative")


def test_a_mixture_is_partial_and_its_share_that_of_the_positive_blasts(tmp_path: Path) -> None:
    simulated = simulate(
        Parameters(tube=TUBE, events=60_000, blasts=0.02, phenotype=CLEAR, cd19=TargetStatus.MIXED), 21
    )
    result = run(write_simulated(simulated, tmp_path, "sample").fcs)
    row = antigen(result, "CD19")
    blasts = simulated.compensated("CD19")[simulated.labels.blast]
    assert row.threshold is not None
    truth = float(np.mean(blasts > row.threshold))
    assert row.share == pytest.approx(truth, abs=0.05)
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low < row.share < row.ci_high  # type: ignore[operator]


def test_the_median_is_linear_and_compensated(tmp_path: Path) -> None:
    simulated = simulate(Parameters(tube=TUBE, events=60_000, blasts=0.02, phenotype=CLEAR), 21)
    row = antigen(run(write_simulated(simulated, tmp_path, "sample").fcs), "CD22")
    blasts = simulated.compensated("CD22")[simulated.labels.blast]
    assert row.mfi == pytest.approx(float(np.median(blasts)), rel=0.05)


def test_a_lost_antigen_after_therapy_may_be_masked_and_no_therapy_is_said_so(tmp_path: Path) -> None:
    path = marrow(tmp_path, cd19=TargetStatus.NEGATIVE)
    given = run(path, request=Request(therapies=(("CD19", "given"), ("CD22", "not_given"))))
    assert antigen(given, "CD19").masked == "possible"
    assert antigen(given, "CD22").masked == ""
    assert codes(given) >= {"ANTIGEN_MASKED", "THERAPY_HISTORY", "LINEAGE_SWITCH_NOT_EXCLUDED"}
    never = run(path, request=Request(therapies=(("CD19", "not_given"), ("CD22", "not_given"))))
    assert antigen(never, "CD19").masked == ""
    assert not codes(never) & {"ANTIGEN_MASKED", "LINEAGE_SWITCH_NOT_EXCLUDED"}
    assert antigen(run(path), "CD19").therapy == "not_stated"


def test_blasts_that_lost_every_target_hint_at_a_lineage_switch(tmp_path: Path) -> None:
    phenotype = CLEAR.model_copy(update={"shifts": {**CLEAR.shifts, "CD22": -2.5}})
    result = run(marrow(tmp_path, cd19=TargetStatus.NEGATIVE, phenotype=phenotype))
    assert {row.status for row in result.antigens} == {"CD19neg", "CD22neg"}
    assert "LINEAGE_SWITCH_POSSIBLE" in codes(result)


def test_what_clean_up_took_is_counted_event_by_event(tmp_path: Path) -> None:
    path = marrow(tmp_path)
    template = find_template(TUBE)
    opened = open_acquisition(Acquisition(name="a", path=str(path), tube=TUBE), template, Settings())
    gating = apply_template(opened.source, template, usable=opened.usable)
    gathered = gather(opened.source, gating, template)
    cut = gating.placed["ssc_low"].found["cut"]
    inside = np.concatenate(
        [
            (block.scaled("CD10") >= 0.55) & (block.scaled("SSC-A") < cut)
            for _, block in opened.source.blocks(("CD10", "SSC-A"))
        ]
    )
    for row in template.population:
        if row.kind == "clean_up":
            before = gating.memberships.mask(row.parent)
            lost = before & ~gating.memberships.mask(row.name)
            expected = (int(np.sum(inside & before)), int(np.sum(inside & lost)))
            assert gathered.removed[row.name, "CD10+"] == expected, row.name


def test_a_clean_up_gate_that_cuts_the_leukemia_withholds_the_result(tmp_path: Path) -> None:
    text = template_paths()[TUBE].read_text(encoding="utf-8")
    start = text.index('name = "dye_low"')
    end = text.index("[[population]]", start)
    # A valley looked for too low: bright CD10 spills into the dye and is taken for dead.
    rule = 'name = "dye_low"\nparent = "singlets"\nkind = "control"\nchannels = ["CD10"]\nmethod = "interval"\n'
    rule += 'params = { high = 0.5 }\npurpose = "A wrong gate."\n\n'
    path = tmp_path / f"{TUBE}.toml"
    path.write_text(text[:start] + rule + text[end:], encoding="utf-8")
    result = run(marrow(tmp_path), load_template(path))
    row = next(one for one in result.cleanup if (one.gate, one.phenotype) == ("live", "CD10+"))
    assert row.verdict == "FAIL"
    assert row.removed_events > 0.8 * row.events
    assert "CLEANUP_REMOVED_PHENOTYPE" in codes(result)
    assert (result.measurements[0].call, result.measurements[0].value) == ("review", None)
    assert "clean-up removed cells of interest" in result.wording[0]


def test_a_marrow_diluted_with_blood_says_so_beside_the_result(tmp_path: Path) -> None:
    diluted = run(marrow(tmp_path, scenario="hemodilute", blasts=0.0, seed=23))
    assert diluted.hemodilution == "SUSPECT"
    assert diluted.wording[0].endswith("; hemodiluted sample suspected")
    usual = run(marrow(tmp_path, blasts=0.0))
    assert usual.hemodilution == "UNCERTAIN"
    assert "hemodiluted" not in usual.wording[0]


def test_blood_is_not_judged_as_marrow(tmp_path: Path) -> None:
    path = marrow(tmp_path, scenario="hemodilute", blasts=0.0)
    acquisition = Acquisition(name="a", path=str(path), tube=TUBE, specimen_type="PB")
    assert analyse(acquisition, find_template(TUBE), Settings()).result.hemodilution == ""


def test_handling_is_judged_by_the_times_of_the_request(tmp_path: Path) -> None:
    late = run(marrow(tmp_path), request=Request(age_hours=60.0, pull_number=2))
    levels = {finding.code: str(finding.level) for finding in late.findings}
    assert levels["SPECIMEN_AGE"] == "warning"
    assert levels["LATER_PULL"] == "info"


def row(**changes: object) -> MeasurementRow:
    base = MeasurementRow(
        subject="S",
        visit="D28",
        acquisition="a",
        analyte="MRD",
        numerator="blasts",
        numerator_events=80,
        denominator="viable",
        denominator_events=1_000_000,
        fraction=8e-5,
        ci_low=6e-5,
        ci_high=1e-4,
        lod_fraction=2e-5,
        lloq_fraction=5e-5,
        category="QUANTIFIABLE",
        mrd_neg_1e4="Y",
        call="positive",
        value=0.008,
        unit="%",
        status="computed",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_withheld_row_keeps_its_counts_and_loses_everything_that_could_be_taken_for_a_result() -> None:
    held, sentence = withhold(row(), "MRD 0.008%", ("controls are not as they must be",))
    assert (held.call, held.value, held.mrd_neg_1e4, held.status) == ("review", None, "NE", "needs_check")
    assert (held.numerator_events, held.fraction) == (80, 8e-5)
    assert sentence == "No MRD result without review: controls are not as they must be"
    negative, _ = withhold(row(category="UNDETECTED", value=None, call="not_detected"), "", ("x",))
    assert negative.category == "UNDETECTED_GATING_INADEQUATE"


def test_without_a_reason_a_row_stays_as_it_is() -> None:
    assert withhold(row(), "MRD 0.008%", ()) == (row(), "MRD 0.008%")


def test_the_words_on_dilution_are_put_once_and_taken_away_again() -> None:
    once = with_dilution("MRD not detected (LOD 0.002%)", "SUSPECT")
    assert with_dilution(once, "SUSPECT") == once == "MRD not detected (LOD 0.002%); hemodiluted sample suspected"
    assert with_dilution(once, "OK") == "MRD not detected (LOD 0.002%)"
