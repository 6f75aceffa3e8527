"""A subject's earlier blasts: kept, looked for in later samples, and never in the way of the general answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flowmrd import pipeline
from flowmrd.errors import InputError
from flowmrd.execution import run
from flowmrd.gating.engine import GatingResult, apply_template
from flowmrd.gating.template import find_template
from flowmrd.memory import read_phenotype, reviewed
from flowmrd.pipeline import Acquisition, _differ, analyse
from flowmrd.records import MeasurementRow
from flowmrd.settings import Settings
from flowmrd.simulation.acquisition import Parameters, simulate
from flowmrd.simulation.marrow import TargetStatus
from flowmrd.simulation.writing import write_simulated

TUBE = "ball-mrd-10c"


def row(analyte: str, call: str, events: int = 30) -> MeasurementRow:
    return MeasurementRow(
        subject="S",
        visit="D28",
        acquisition="a",
        analyte=analyte,
        numerator="blasts_own" if analyte == "MRD-OWN" else "blasts",
        numerator_events=events,
        denominator="viable",
        denominator_events=1_000_000,
        fraction=events / 1e6,
        ci_low=0.0,
        ci_high=1.0,
        lod_fraction=2e-5,
        lloq_fraction=5e-5,
        category="UNDETECTED",
        mrd_neg_1e4="Y",
        call=call,
        value=None,
        unit="%",
        status="computed",
    )


def test_a_positive_own_route_takes_a_negative_answer_to_a_person_and_changes_no_number() -> None:
    template = find_template(TUBE)
    rows, findings = reviewed([row("MRD", "not_detected", 3), row("MRD-OWN", "positive")], template)
    assert [(one.analyte, one.call, one.status) for one in rows] == [
        ("MRD", "review", "needs_check"),
        ("MRD-OWN", "positive", "computed"),
    ]
    assert rows[0].numerator_events == 3
    assert [one.code for one in findings] == ["OWN_ROUTE_POSITIVE"]


@pytest.mark.parametrize("call", ["positive", "review"])
def test_an_answer_that_is_not_negative_stays_as_it_is(call: str) -> None:
    given = [row("MRD", call), row("MRD-OWN", "positive")]
    assert reviewed(given, find_template(TUBE)) == (tuple(given), [])


def test_an_own_route_that_finds_nothing_says_nothing_against_the_general_answer() -> None:
    given = [row("MRD", "not_detected", 0), row("MRD-OWN", "not_detected", 0)]
    assert reviewed(given, find_template(TUBE)) == (tuple(given), [])


def test_a_file_that_is_no_phenotype_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "phenotype.json"
    path.write_text('{"format": 99}')
    with pytest.raises(InputError, match=r"phenotype\.json"):
        read_phenotype(str(path))


# ---------------------------------------------------------------------------------------------------------- end to end

VISITS = (
    # name, visit, study day, scenario, level, events, CD19
    ("bl", "BL", -5, "diagnosis", 0.6, 12_000, TargetStatus.POSITIVE),
    ("d28", "D28", 28, "regenerating", 0.004, 30_000, TargetStatus.POSITIVE),
    ("m3", "M3", 90, "recovery", 0.004, 30_000, TargetStatus.NEGATIVE),
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> list[Acquisition]:
    """Write a simulated subject's three visits; the manifest lists the diagnosis last."""
    folder = tmp_path_factory.mktemp("subject")
    listed = []
    for number, (name, visit, day, scenario, level, events, status) in enumerate(VISITS):
        parameters = Parameters(
            tube=TUBE, scenario=scenario, blasts=level, events=events, cd19=status, patient_seed=4242
        )
        files = write_simulated(simulate(parameters, 51 + number), folder, name)
        listed.append(
            Acquisition(
                name=name,
                path=str(files.fcs),
                tube=TUBE,
                subject="S1",
                visit=visit,
                study_day=day,
                specimen_type="BM",
                after_cd19_therapy=day > 0,
            )
        )
    return listed[::-1]


@pytest.fixture(scope="module")
def one_worker(subject: list[Acquisition], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    run(subject, out, settings=Settings(), jobs=1)
    return out


def test_the_diagnosis_comes_first_whatever_the_manifest_says(one_worker: Path) -> None:
    rows = pl.read_parquet(one_worker / "measurements.parquet")
    analytes = {name: set(part["analyte"]) for (name,), part in rows.group_by("acquisition")}
    assert analytes["bl"] == {"MRD", "MRD-NOTIMEQC"}
    assert analytes["d28"] == analytes["m3"] == {"MRD", "MRD-OWN", "MRD-NOTIMEQC"}
    own = rows.filter(pl.col("analyte") == "MRD-OWN")
    assert set(own["numerator"]) == {"blasts_own"}
    assert set(own["denominator"]) == set(rows.filter(pl.col("analyte") == "MRD")["denominator"])
    # 0.4 % of some 25,000 cells are 100 blasts.
    assert all(60 < events < 150 for events in own["numerator_events"].to_list())
    assert (one_worker / "acquisitions" / "bl" / "phenotype.json").is_file()


def test_the_loss_of_the_therapys_target_is_told_by_the_own_route(one_worker: Path) -> None:
    codes = pl.read_parquet(one_worker / "findings.parquet").select("acquisition", "code").rows()
    assert ("m3", "OWN_TARGET_LOST") in codes
    assert ("d28", "OWN_TARGET_LOST") not in codes
    drift = pl.read_parquet(one_worker / "drift.parquet").filter(pl.col("marker") == "CD19")
    lost = dict(drift.select("acquisition", "lost").rows())
    assert lost["m3"] > 0.8
    assert lost["d28"] < 0.2
    assert set(drift["diagnosis"]) == {"bl"}


def test_two_workers_and_another_order_give_the_same_tables(
    subject: list[Acquisition], one_worker: Path, tmp_path: Path
) -> None:
    run(subject, tmp_path, settings=Settings(), jobs=2)
    for path in sorted(one_worker.glob("*.csv")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    for path in sorted((one_worker / "acquisitions").glob("*/*.json")):
        assert (tmp_path / path.relative_to(one_worker)).read_bytes() == path.read_bytes(), path


def test_a_resumed_run_redoes_the_follow_ups_when_the_diagnosis_changes(
    subject: list[Acquisition], one_worker: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(one_worker, out)
    kept = run(subject, out, settings=Settings(), resume=True)
    assert all(done.reused for done in kept.done)
    # Without the diagnosis the first follow-up is the earliest sample, and its own blasts are what is remembered.
    fewer = [one for one in subject if one.name != "bl"]
    again = run(fewer, out, settings=Settings(), resume=True)
    assert [done.reused for done in again.done] == [False, False]
    rows = pl.read_parquet(out / "measurements.parquet")
    assert "MRD-OWN" not in set(rows.filter(pl.col("acquisition") == "d28")["analyte"])
    assert set(pl.read_parquet(out / "drift.parquet")["diagnosis"]) == {"d28"}


def test_a_diagnosis_file_or_its_kept_phenotype_gives_the_same_as_a_manifest(
    subject: list[Acquisition], one_worker: Path
) -> None:
    template = find_template(TUBE)
    later, first = (next(one for one in subject if one.name == name) for name in ("d28", "bl"))
    rows = pl.read_parquet(one_worker / "measurements.parquet")
    expected = rows.filter((pl.col("acquisition") == "d28") & (pl.col("analyte") == "MRD-OWN"))["numerator_events"][0]
    phenotype = one_worker / "acquisitions" / "bl" / "phenotype.json"
    for diagnosis in (first.path, str(phenotype)):
        alone = Acquisition(name="a", path=later.path, tube=TUBE, diagnosis=diagnosis)
        result = analyse(alone, template, Settings()).result
        own = next(one for one in result.measurements if one.analyte == "MRD-OWN")
        assert own.numerator_events == expected
    assert json.loads(phenotype.read_text())["acquisition"] == "bl"


def test_a_diagnosis_that_cannot_be_used_is_a_finding_and_the_general_answer_stands(
    subject: list[Acquisition], tmp_path: Path
) -> None:
    template = find_template(TUBE)
    later = next(one for one in subject if one.name == "d28")
    broken = tmp_path / "diagnosis.fcs"
    broken.write_bytes(b"not an FCS file")
    result = analyse(
        Acquisition(name="a", path=later.path, tube=TUBE, diagnosis=str(broken)), template, Settings()
    ).result
    assert "OWN_UNUSABLE" in {one.code for one in result.findings}
    assert {one.analyte for one in result.measurements} == {"MRD", "MRD-NOTIMEQC"}


def test_nothing_left_out_by_time_repeats_the_counts_without_gating_again(
    subject: list[Acquisition], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted_call(*given: Any, **named: Any) -> GatingResult:
        calls.append(named)
        return apply_template(*given, **named)

    monkeypatch.setattr(pipeline, "apply_template", counted_call)
    later = next(one for one in subject if one.name == "d28")
    result = analyse(later, find_template(TUBE), Settings()).result
    by_name = {one.population: one for one in result.populations}
    removed = by_name["time_stable"].parent_events - by_name["time_stable"].events
    assert len(calls) == (2 if removed else 1)
    counted = {one.analyte: one.numerator_events for one in result.measurements}
    if not removed:
        assert counted["MRD"] == counted["MRD-NOTIMEQC"]


def test_a_clogged_stretch_is_counted_in_the_row_without_the_time_mask(tmp_path: Path) -> None:
    parameters = Parameters(tube=TUBE, scenario="regenerating", blasts=0.004, events=30_000, patient_seed=4242)
    simulated = simulate(parameters, 60)
    values = simulated.values.copy()
    rows = [i for i, channel in enumerate(simulated.channels) if (channel.pns or channel.pnn) in {"CD45", "CD38"}]
    values[rows, 12_000:16_000] *= 0.5
    files = write_simulated(replace(simulated, values=values), tmp_path, "clogged")
    result = analyse(Acquisition(name="a", path=str(files.fcs), tube=TUBE), find_template(TUBE), Settings()).result
    by_name = {one.population: one for one in result.populations}
    assert by_name["time_stable"].events < by_name["time_stable"].parent_events
    counted = {one.analyte: one for one in result.measurements}
    with_mask, without = counted["MRD"].denominator_events, counted["MRD-NOTIMEQC"].denominator_events
    assert with_mask is not None
    assert without is not None
    assert without > with_mask


def test_results_with_and_without_the_time_mask_that_share_nothing_are_a_finding() -> None:
    here = replace(row("MRD", "positive"), ci_low=1e-4, ci_high=2e-4)
    near, far = (replace(here, ci_low=low, ci_high=4 * low) for low in (1.5e-4, 3e-4))
    assert _differ(here, near, 1000) == ()
    assert [one.code for one in _differ(here, far, 1000)] == ["TIME_QC_MATTERS"]
    assert [one.code for one in _differ(far, here, 1000)] == ["TIME_QC_MATTERS"]
