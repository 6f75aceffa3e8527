"""A reference learnt on half of a healthy marrow (mass cytometry), and what it says of the other half."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowmrd.errors import PanelMismatchError
from flowmrd.fcs import read_fcs, write_fcs
from flowmrd.gating.detection.storage import to_bytes
from flowmrd.gating.template import find_template, load_template
from flowmrd.learning import build_reference
from flowmrd.pipeline import Acquisition, analyse, open_acquisition
from flowmrd.settings import Settings

TEMPLATE = Path(__file__).with_name("marrow_cytof.toml")


@pytest.fixture(scope="module")
def halves(shared_fcs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write the two halves of the marrow, drawn at random; commas in detector names become underscores."""
    folder = tmp_path_factory.mktemp("cytof")
    whole = read_fcs(shared_fcs / "marrow_cytof" / "Marrow1_Basal1.fcs")
    values = np.asarray(whole.events())
    first = np.random.default_rng(0).random(values.shape[1]) < 0.5
    channels = [replace(one, pnn=one.pnn.replace(",", "_")) for one in whole.channels]
    paths = folder / "first.fcs", folder / "second.fcs"
    for path, rows in zip(paths, (first, ~first), strict=True):
        write_fcs(path, np.ascontiguousarray(values[:, rows]), channels)
    return paths


def test_the_other_half_of_a_healthy_marrow_is_not_positive(halves: tuple[Path, Path], tmp_path: Path) -> None:
    template = load_template(TEMPLATE)
    settings = Settings(matrix="none")
    built = build_reference([halves[0]], [], template, settings, name="half a marrow")
    path = tmp_path / "half.reference"
    path.write_bytes(to_bytes(built.reference))

    acquisition = Acquisition(name="second", path=str(halves[1]), tube="marrow-cytof")
    result = analyse(acquisition, template, settings, reference=path).result

    row = next(one for one in result.measurements if one.analyte == "MRD")
    assert row.numerator_events is not None
    assert row.numerator_events < 20
    assert row.call != "positive"
    assert "REFERENCE_SMALL" in {finding.code for finding in result.findings}


def test_a_lymphoid_screening_tube_is_refused_by_a_marrow_template(shared_fcs: Path) -> None:
    path = min((shared_fcs / "lst_optimalflow").glob("*.fcs"))
    template = find_template("ball-mrd-10c")

    with pytest.raises(PanelMismatchError, match="no channel for"):
        open_acquisition(Acquisition(name="lst", path=str(path), tube="ball-mrd-10c"), template, Settings())
