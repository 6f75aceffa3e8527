"""Our placed gates as Gating-ML 2.0: identical members for us and for FlowKit; foreign scales made straight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.cytometry.transforms import Logicle
from flowmrd.errors import ExportError
from flowmrd.fcs import Channel, FcsFile, Spillover, read_fcs, write_fcs
from flowmrd.gating.engine import apply_template
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Intervals, Nothing, Polygon, Rectangle, Whole
from flowmrd.gating.interop.as_template import to_template
from flowmrd.gating.interop.document import (
    FROM_FILE,
    Dimension,
    ForeignGate,
    ForeignStrategy,
    Scale,
    column_names,
    evaluate,
)
from flowmrd.gating.interop.export import export_gatingml, strategy_of, write_gatingml
from flowmrd.gating.interop.gatingml import read_gatingml
from flowmrd.gating.interop.vendor_scales import Clipped, FlowJoBiex, FlowJoLinear
from flowmrd.gating.template import find_template, load_template

SAMPLES = {
    "aieop-bfm-syto": "",
    "ball-mrd-10c": "blasts-1e-2.fcs",
    "ball-mrd-post-cd19": "blasts-cd19-negative.fcs",
    "tbnk": "tbnk.fcs",
    "cart-persistence": "cart-persistence.fcs",
}


def sample_of(template: str, repository: Path) -> Path:
    if SAMPLES[template]:
        return repository / "sample_fcs" / SAMPLES[template]
    path = repository.parent / "shared" / "fcs" / "ball_mrd_real" / "47333tubeB10001.fcs"
    if not path.is_file():
        pytest.skip("the real marrows (shared/fcs) are not beside the repository")
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_a_shipped_template_as_placed_reads_back_with_identical_members(
    name: str, repository: Path, tmp_path: Path
) -> None:
    flowkit = pytest.importorskip("flowkit")
    path = sample_of(name, repository)
    fcs = read_fcs(path)
    template = find_template(name)
    source = EventSource(
        fcs, resolve_panel(template.channel, fcs.channels, tube=name), template.channel, spillover=fcs.spillover
    )
    result = apply_template(source, template)
    data = write_gatingml(strategy_of(result, source, fcs))
    assert data == write_gatingml(strategy_of(result, source, fcs))
    again = read_gatingml(data, "export.xml")
    evaluation = evaluate(again, fcs)
    ours = {one.name: evaluation.memberships.mask(one.path) for one in again.gates}
    for population in result.counts:
        assert np.array_equal(ours[population], result.memberships.mask(population)), population
    document = tmp_path / "export.xml"
    document.write_bytes(data)
    sample = flowkit.Sample(str(path), sample_id="x", ignore_offset_error=True, subsample=1)
    theirs = flowkit.parse_gating_xml(str(document)).gate_sample(sample)
    for population, mask in ours.items():
        assert np.array_equal(theirs.get_gate_membership(population), mask), population


@pytest.fixture(scope="module")
def fcs(tmp_path_factory: pytest.TempPathFactory) -> FcsFile:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(500, 900, (3, 4000)), rng.uniform(-5e3, 3e5, (3, 1000))], axis=1)
    channels = [Channel(index=i, pnn=name, range=262144.0) for i, name in enumerate(("FSC-A", "FL1-A", "FL2-A"))]
    path = tmp_path_factory.mktemp("export") / "a.fcs"
    matrix = Spillover(channels=("FL1-A", "FL2-A"), matrix=np.array([[1, 0.2], [0.1, 1]]), source="$SPILLOVER")
    write_fcs(path, values, channels, spillover=matrix, datatype="D")
    return read_fcs(path)


def strategy(gates: dict[str, tuple[str, Gate]], scales: dict[str, Scale] | None = None) -> ForeignStrategy:
    scales = {"a": Logicle(T=262144.0, W=0.5, M=4.5)} if scales is None else scales
    dimensions = {
        name: Dimension(key=name, channel=f"{name}-A", compensation=FROM_FILE, scale="a" if "a" in scales else None)
        for name in ("FL1", "FL2")
    }
    return ForeignStrategy(
        source="test",
        kind="test",
        dimensions=dimensions,
        scales=scales,
        matrices={},
        gates=tuple(
            ForeignGate(name=path.rpartition("/")[2], path=path, parent=parent, gate=gate)
            for path, (parent, gate) in gates.items()
        ),
    )


def box(low: float, high: float) -> Rectangle:
    return Rectangle(markers=("FL1",), low=(low,), high=(high,))


DIAMOND = Polygon(markers=("FL1", "FL2"), vertices=((0.3, 0.1), (0.9, 0.4), (0.6, 0.95), (0.0, 0.5)))
ELLIPSE = Ellipsoid(markers=("FL1", "FL2"), mean=(0.5, 0.5), covariance=((0.02, 0.01), (0.01, 0.03)), distance_square=2)


def assert_same(before: ForeignStrategy, after: ForeignStrategy, fcs: FcsFile) -> None:
    first, second = evaluate(before, fcs), evaluate(after, fcs)
    places = {name: path for path, name in column_names(after.gates).items()}
    assert first.counts
    for path, name in column_names(before.gates).items():
        assert np.array_equal(first.memberships.mask(path), second.memberships.mask(places[name])), name


def test_every_kind_of_gate_is_written(fcs: FcsFile) -> None:
    one = strategy(
        {
            "/all": ("", Whole()),
            "/none": ("", Nothing()),
            "/a": ("", box(0.2, 0.8)),
            "/a/b": ("/a", DIAMOND),
            "/a/e": ("/a", ELLIPSE),
            "/a/two": ("/a", Intervals(marker="FL2", ranges=((0.1, 0.3), (0.5, 0.7)))),
            "/a/one": ("/a", Intervals(marker="FL2", ranges=((0.1, 0.3),))),
            "/a/zero": ("/a", Intervals(marker="FL2", ranges=())),
            "/a/not": ("/a", Boolean(operator="and", operands=(("/a", False), ("/a/b", True)))),
            "/a/same": ("/a", Boolean(operator="and", operands=(("/a", False),))),
            "/a/or": ("/a", Boolean(operator="or", operands=(("/a/b", False), ("/a/e", True)))),
            "/b": ("", box(0.5, 0.9)),
        }
    )
    assert_same(one, read_gatingml(write_gatingml(one), "x"), fcs)


@pytest.mark.parametrize(
    "scale",
    [
        FlowJoBiex(top=262144.0, positive=4.5, negative=0.5, width=-100.0),
        FlowJoLinear(low=-2000.0, high=250000.0),
        Clipped(scale=FlowJoLinear(low=0.0, high=262144.0)),
        Clipped(scale=Logicle(T=262144.0, W=0.7, M=4.5)),
    ],
    ids=["biex", "linear", "clipped linear", "clipped logicle"],
)
def test_a_scale_of_another_program_is_written_with_the_same_members(scale: Scale, fcs: FcsFile) -> None:
    gates: dict[str, tuple[str, Gate]] = {
        "/low": ("", box(0.0, 0.4)),
        "/top": ("", box(0.6, 1.0)),
        "/beyond": ("", box(0.6, 1.1)),
        "/diamond": ("", DIAMOND),
        # Drawn to the border of the plot, where a clamped scale piles up what lies beyond.
        "/corner": ("", Polygon(markers=("FL1", "FL2"), vertices=((0, 0), (0.7, 0), (0.5, 0.6), (0, 1), (-0.1, 0.5)))),
    }
    one = strategy(gates, {"a": scale})
    data, findings = export_gatingml(one)
    assert not findings
    assert_same(one, read_gatingml(data, "x"), fcs)


def test_an_ellipse_on_a_scale_that_the_standard_lacks_becomes_a_polygon_and_is_said(fcs: FcsFile) -> None:
    one = strategy({"/e": ("", ELLIPSE)}, {"a": FlowJoBiex(top=262144.0, positive=4.5, negative=0.0, width=-10.0)})
    data, findings = export_gatingml(one)
    assert [finding.code for finding in findings] == ["ELLIPSE_AS_POLYGON"]
    again = read_gatingml(data, "x")
    before, after = evaluate(one, fcs), evaluate(again, fcs)
    assert abs(before.counts["/e"] - after.counts["/e"]) <= 0.001 * before.counts["/e"]
    with pytest.raises(ExportError, match="the ellipse became a polygon"):
        write_gatingml(one)


def test_a_converted_template_is_checked_and_gates_to_the_same_members(fcs: FcsFile, tmp_path: Path) -> None:
    one = strategy(
        {
            "/Cells +": ("", box(0.2, 0.8)),
            "/Cells +/B-": ("/Cells +", DIAMOND),
            "/Cells +/e": ("/Cells +", ELLIPSE),
            "/Cells +/root": ("/Cells +", Boolean(operator="not", operands=(("/Cells +/B-", False),))),
            "/open": ("", box(-np.inf, np.inf)),
            "/none": ("", Nothing()),
        }
    )
    converted = to_template(one, template_id="My Gates", fcs=fcs)
    assert converted.complete
    assert list(converted.names.values()) == ["cells_pos", "open", "none", "b_neg", "e", "root_2"]
    path = tmp_path / "t.toml"
    path.write_text(converted.text, encoding="utf-8")
    template = load_template(path)
    assert template.template.id == "my-gates"
    source = EventSource(
        fcs, resolve_panel(template.channel, fcs.channels, tube="t"), template.channel, spillover=fcs.spillover
    )
    result = apply_template(source, template)
    evaluation = evaluate(one, fcs)
    for place, name in converted.names.items():
        assert np.array_equal(result.memberships.mask(name), evaluation.memberships.mask(place)), name


def test_what_a_template_cannot_hold_is_listed_with_what_depends_on_it(fcs: FcsFile) -> None:
    one = strategy({"/r": ("", Rectangle(markers=("R",), low=(0.0,), high=(1.0,))), "/r/c": ("/r", box(0.2, 0.8))})
    ratio = Dimension(key="R", channel="FL1-A", ratio=("FL1-A", "FL2-A", 1.0, 0.0, 0.0))
    one = ForeignStrategy(
        source="a\nb",
        kind="test",
        dimensions={**one.dimensions, "R": ratio},
        scales=one.scales,
        matrices={},
        gates=one.gates,
    )
    converted = to_template(one, template_id="t", fcs=fcs)
    assert not converted.complete
    assert not converted.names
    assert [finding.message for finding in converted.findings] == [
        "Gate r is left out: a template has no dimension that is the ratio of two channels.",
        "Gate c is left out: it needs /r, which is left out.",
    ]
    assert all(line.startswith("#") for line in converted.text.partition("\n\n")[0].splitlines())
