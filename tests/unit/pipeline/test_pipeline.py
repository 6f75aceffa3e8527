"""What the path says about therapy, compensation, declared scales and gates of one subject."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import DataState
from flowmrd.errors import Level
from flowmrd.fcs import read_fcs
from flowmrd.gating.template import GatingTemplate, find_template, load_template, template_paths
from flowmrd.pipeline import Acquisition, Analysis, analyse
from flowmrd.records import AcquisitionResult
from flowmrd.settings import Settings
from flowmrd.simulation import demo_subject, simulate, write_simulated

Analyse = Callable[..., AcquisitionResult]


@pytest.fixture(scope="module")
def tube() -> GatingTemplate:
    return find_template("ball-mrd-10c")


@pytest.fixture(scope="module")
def negative_sytotube(shared_fcs: Path) -> Path:
    """A marrow of 60,000 events without a blast, in a tube that sees B cells by CD19 only."""
    return shared_fcs / "ball_mrd_sim" / "SIMS04.fcs"


def syto(path: Path, *, after: bool | None) -> AcquisitionResult:
    acquisition = Acquisition(name="a", path=str(path), tube="aieop-bfm-syto", after_cd19_therapy=after)
    return analyse(acquisition, find_template("aieop-bfm-syto"), Settings()).result


def codes(result: AcquisitionResult) -> set[str]:
    return {finding.code for finding in result.findings}


def test_after_cd19_therapy_an_empty_cd19_gate_proves_nothing(negative_sytotube: Path) -> None:
    result = syto(negative_sytotube, after=True)
    row = result.measurements[0]
    assert (row.category, row.mrd_neg_1e4) == ("UNDETECTED_GATING_INADEQUATE", "NE")
    assert row.call == "review"
    assert row.value is None
    assert "CD19_GATED_ONLY" in codes(result)


def test_before_cd19_therapy_the_same_tube_is_limited_by_its_events_only(negative_sytotube: Path) -> None:
    row = syto(negative_sytotube, after=False).measurements[0]
    assert row.category == "UNDETECTED_INSUFFICIENT"
    assert row.mrd_neg_1e4 == "NE"
    assert row.lod_fraction == 20 / (row.denominator_events or 0)


def test_therapy_that_is_not_stated_is_never_taken_for_none(negative_sytotube: Path) -> None:
    assert syto(negative_sytotube, after=None).measurements[0].mrd_neg_1e4 == "NE"


def test_the_ten_colour_tube_has_ways_to_the_lineage_without_cd19(tmp_path: Path, tube: GatingTemplate) -> None:
    visit = next(one for one in demo_subject().visits if one.timepoint == "D28")
    write_simulated(simulate(visit.parameters, visit.seed), tmp_path, "d28")
    acquisition = Acquisition(name="d28", path=str(tmp_path / "d28.fcs"), tube="ball-mrd-10c", after_cd19_therapy=True)
    result = analyse(acquisition, tube, Settings()).result
    row = result.measurements[0]
    assert "LINEAGE_ROUTES" in codes(result)
    assert (row.category, row.mrd_neg_1e4, row.call) == ("UNDETECTED", "Y", "not_detected")
    assert result.wording[0] == f"MRD not detected (LOD {100 * (row.lod_fraction or 0):.2g}%)"


def test_a_cd19_negative_relapse_is_found_and_reported_as_detected(repository: Path, tube: GatingTemplate) -> None:
    path = next(iter(sorted((repository / "sample_fcs").glob("*cd19-negative*.fcs"))))
    acquisition = Acquisition(name="a", path=str(path), tube="ball-mrd-10c", after_cd19_therapy=True)
    row = analyse(acquisition, tube, Settings()).result.measurements[0]
    assert row.call == "positive"
    assert row.numerator_events == pytest.approx(185, rel=0.25)


def test_each_result_says_how_it_was_compensated(shared_fcs: Path) -> None:
    path = str(shared_fcs / "ball_mrd_dilution" / "P494_mrd0p5pct.fcs")
    template = find_template("aieop-bfm-syto")

    def compensation(**settings: str) -> str:
        return analyse(
            Acquisition(name="a", path=path, tube=""), template, Settings.model_validate(settings)
        ).result.compensation

    assert compensation().startswith("$SPILLOVER of the file, 8 channels, SHA-256 ")
    assert compensation(matrix="none") == "none applied: declared so"
    assert compensation(state="compensated") == "none applied: the data are declared compensated"


def test_compensation_moves_the_counts(shared_fcs: Path) -> None:
    path = str(shared_fcs / "ball_mrd_dilution" / "P494_mrd5pct.fcs")
    template = find_template("aieop-bfm-syto")
    acquisition = Acquisition(name="a", path=path, tube="")
    with_matrix, without = (analyse(acquisition, template, Settings(matrix=m)).result for m in ("file", "none"))
    counts = [{row.population: row.events for row in result.populations} for result in (with_matrix, without)]
    assert counts[0] != counts[1]


def test_a_file_without_matrix_is_used_as_recorded_and_says_so(shared_fcs: Path) -> None:
    result = syto(shared_fcs / "ball_mrd_sim" / "SIMS04.fcs", after=False)
    assert result.compensation.startswith("$SPILLOVER of the file")
    path = shared_fcs / "lst_optimalflow" / "LST_05_HD.fcs"
    assert read_fcs(path).spillover is None
    scaled = Settings(state=DataState.SCALED, scaled_range=(0.0, 10000.0))
    outcome = analyse(Acquisition(name="a", path=str(path), tube=""), find_template("tbnk"), scaled)
    # The lymphoid screening tube is no TBNK tube: refused by its markers, not gated by chance.
    assert outcome.failed


def write_template(folder: Path, addition: str) -> GatingTemplate:
    text = template_paths()["ball-mrd-10c"].read_text(encoding="utf-8")
    path = folder / "ball-mrd-10c.toml"
    path.write_text(text + addition, encoding="utf-8")
    return load_template(path)


def test_a_gate_of_one_subject_stands_in_for_the_templates_and_names_its_author(
    repository: Path, tmp_path: Path
) -> None:
    template = write_template(
        tmp_path,
        """
[[override]]
subject = "S7"
population = "cd19"
gate = { kind = "rectangle", markers = ["CD19"], low = [0.9], high = [2.0] }
by = "A. Reviewer"
source = "diagnosis file of day -20"
""",
    )
    path = next(iter(sorted((repository / "sample_fcs").glob("*normal*.fcs"))))

    def gate_of(subject: str) -> tuple[int, str, str]:
        acquisition = Acquisition(name="a", path=str(path), tube="", subject=subject)
        result = analyse(acquisition, template, Settings()).result
        row = next(row for row in result.populations if row.population == "cd19")
        placed = next(row for row in result.gates if row.population == "cd19")
        return row.events, placed.method, placed.reason

    other, own = gate_of("S8"), gate_of("S7")
    assert own[0] < 0.1 * other[0]
    assert own[1:] == ("override", "drawn by A. Reviewer from diagnosis file of day -20")
    assert other[1] != "override"


def test_a_file_that_is_not_the_listed_one_is_refused(repository: Path, tube: GatingTemplate) -> None:
    path = next(iter(sorted((repository / "sample_fcs").glob("*normal*.fcs"))))
    acquisition = Acquisition(name="a", path=str(path), tube="", expected_sha256="0" * 64)
    outcome = analyse(acquisition, tube, Settings())
    assert outcome.failed
    assert outcome.result.findings[0].level is Level.VIOLATION
    assert "is not the manifest's" in outcome.result.findings[0].message


def test_no_keyword_that_may_name_a_person_reaches_a_result(
    repository: Path, tmp_path: Path, tube: GatingTemplate
) -> None:
    source = next(iter(sorted((repository / "sample_fcs").glob("*normal*.fcs")))).read_bytes()
    # A file's own system name is replaced by one of the same length that would be noticed.
    marker = b"$CYT"
    assert marker in source
    path = tmp_path / "named.fcs"
    path.write_bytes(source.replace(b"$CYT", b"$SRC", 1))
    keywords = read_fcs(path).keywords
    person = keywords["$SRC"]
    outcome: Analysis = analyse(Acquisition(name="a", path=str(path), tube=""), tube, Settings())
    text = repr([finding.message for finding in outcome.result.findings]) + repr(outcome.result.markers)
    assert person
    assert person not in text


def test_a_file_of_no_events_is_gated_without_a_number(tmp_path: Path, repository: Path, tube: GatingTemplate) -> None:
    from flowmrd.fcs import write_fcs

    source = read_fcs(next(iter(sorted((repository / "sample_fcs").glob("*normal*.fcs")))))
    path = tmp_path / "empty.fcs"
    write_fcs(path, np.empty((len(source.channels), 0), np.float32), source.channels, spillover=source.spillover)
    outcome = analyse(Acquisition(name="a", path=str(path), tube=""), tube, Settings())
    assert not outcome.failed
    row = outcome.result.measurements[0]
    assert (row.numerator_events, row.denominator_events, row.fraction, row.value) == (0, 0, None, None)
    assert row.mrd_neg_1e4 == "NE"


def test_events_with_a_value_that_is_no_number_are_counted_nowhere(
    tmp_path: Path, repository: Path, tube: GatingTemplate
) -> None:
    from flowmrd.fcs import write_fcs

    source = read_fcs(next(iter(sorted((repository / "sample_fcs").glob("*normal*.fcs")))))
    values = np.array(source.events())
    marker = next(channel.index for channel in source.channels if channel.pns == "CD20")

    def analysed(path: Path) -> AcquisitionResult:
        return analyse(Acquisition(name="a", path=str(path), tube=""), tube, Settings()).result

    def counts(result: AcquisitionResult) -> dict[str, int]:
        return {row.population: row.events for row in result.populations}

    write_fcs(tmp_path / "whole.fcs", values, source.channels, spillover=source.spillover)
    write_fcs(tmp_path / "shorter.fcs", values[:, :-100], source.channels, spillover=source.spillover)
    # The writer refuses NaN, so it is put into the bytes of a good file: the last 100 events lose their CD20.
    raw = bytearray((tmp_path / "whole.fcs").read_bytes())
    keywords = read_fcs(tmp_path / "whole.fcs").keywords
    begin, width = int(keywords["$BEGINDATA"]), 4 * len(source.channels)
    order = "<f4" if keywords["$BYTEORD"].startswith("1") else ">f4"
    for row in range(source.event_count - 100, source.event_count):
        at = begin + row * width + 4 * marker
        raw[at : at + 4] = np.array([np.nan], order).tobytes()
    damaged = tmp_path / "damaged.fcs"
    damaged.write_bytes(raw)
    result = analysed(damaged)
    assert "EVENTS_EXCLUDED" in codes(result)
    assert counts(result) == counts(analysed(tmp_path / "shorter.fcs"))
    assert counts(result)["viable"] < counts(analysed(tmp_path / "whole.fcs"))["viable"]
