"""Our placed gates as Gating-ML 2.0: identical members for us and for FlowKit; foreign scales made straight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.cytometry.transforms import Biex, Bounded, Logicle
from flowmrd.errors import ExportError
from flowmrd.fcs import Channel, FcsFile, Spillover, read_fcs, write_fcs
from flowmrd.gating.engine import GatingResult, apply_template
from flowmrd.gating.gates import (
    Boolean,
    Ellipsoid,
    Gate,
    Intervals,
    MemberList,
    Nothing,
    Polygon,
    Rectangle,
    Whole,
    member_list,
)
from flowmrd.gating.interop.as_template import ConvertedTemplate, to_template
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
from flowmrd.gating.interop.vendor_scales import (
    Clipped,
    FlowJoLinear,
    FlowJoLog,
    diva_biexponential,
    diva_linear,
    diva_log,
    flowjo_biex,
)
from flowmrd.gating.template import find_template, load_template, template_paths

Make = Callable[..., Path]


@pytest.mark.parametrize("name", sorted(template_paths()))
def test_every_shipped_template_as_placed_reads_back_with_identical_members(
    name: str, make_tube: Make, tmp_path: Path
) -> None:
    round_trip(make_tube(name, events=20_000), name, tmp_path)


def test_a_list_of_events_and_what_needs_it_are_left_out_with_their_reason(make_tube: Make) -> None:
    fcs = read_fcs(make_tube("ball-mrd-10c", events=2_000))
    template = find_template("ball-mrd-10c")
    panel = resolve_panel(template.channel, fcs.channels, tube="t")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    result = apply_template(source, template)
    row = next(row for row in template.population if any(other.parent == row.name for other in template.population))
    chosen = member_list(np.arange(fcs.event_count) % 7 == 0)
    listed = replace(result.placed[row.name], gate=chosen)
    result = replace(result, placed={**result.placed, row.name: listed})
    placed = strategy_of(result, source, fcs)
    _, findings = export_gatingml(placed)
    told = {one.where.rpartition("/")[2]: one.message for one in (*placed.findings, *findings)}
    assert told[row.name] == f"{row.name} is left out: it lists {chosen.count:,} events that no outline holds."
    child = next(other.name for other in template.population if other.parent == row.name)
    assert told[child] == f"Gate {child} is left out: it needs /{row.name}."
    with pytest.raises(ExportError, match=r"that no outline holds\.; Gate"):
        write_gatingml(placed)


def test_a_template_placed_on_a_real_marrow_reads_back_with_identical_members(shared_fcs: Path, tmp_path: Path) -> None:
    round_trip(shared_fcs / "ball_mrd_real" / "47333tubeB10001.fcs", "aieop-bfm-syto", tmp_path)


def round_trip(path: Path, name: str, folder: Path) -> None:
    """Export a template's placed gates and compare the members event by event, read by us and by FlowKit."""
    flowkit = pytest.importorskip("flowkit")
    fcs = read_fcs(path)
    template = find_template(name)
    source = EventSource(
        fcs, resolve_panel(template.channel, fcs.channels, tube=name), template.channel, spillover=fcs.spillover
    )
    result = apply_template(source, template)
    # Members that agree because there are none would prove nothing.
    assert sum(count > 0 for count in result.counts.values()) > 0.6 * len(result.counts)
    placed = strategy_of(result, source, fcs)
    data, findings = export_gatingml(placed)
    assert data == export_gatingml(strategy_of(result, source, fcs))[0]
    again = read_gatingml(data, "export.xml")
    evaluation = evaluate(again, fcs)
    ours = {one.name: evaluation.memberships.mask(one.path) for one in again.gates}
    for population in ours:
        assert np.array_equal(ours[population], result.memberships.mask(population)), population
    # Only lists of events, and what is made of them, have no place there; each is said.
    lacking = set(result.counts) - set(ours)
    assert {one.where.rpartition("/")[2] for one in (*placed.findings, *findings)} == lacking
    lists = {row for row, one in result.placed.items() if isinstance(one.gate, MemberList)}
    assert lists <= lacking
    assert bool(lists) == bool(lacking)
    document = folder / "export.xml"
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
        flowjo_biex(top=262144.0, positive=4.5, negative=0.5, width=-100.0),
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
    one = strategy({"/e": ("", ELLIPSE)}, {"a": flowjo_biex(top=262144.0, positive=4.5, negative=0.0, width=-10.0)})
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


def made_into_a_template(one: ForeignStrategy, fcs: FcsFile, folder: Path) -> tuple[ConvertedTemplate, GatingResult]:
    converted = to_template(one, template_id="t", fcs=fcs)
    path = folder / "t.toml"
    path.write_text(converted.text, encoding="utf-8")
    template = load_template(path)
    panel = resolve_panel(template.channel, fcs.channels, tube="t")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    return converted, apply_template(source, template)


VENDOR_SCALES: dict[str, Scale] = {
    "FlowJo biex": flowjo_biex(top=262144.0, positive=4.5, negative=0.5, width=-100.0),
    "FlowJo log": FlowJoLog(offset=2.5, decades=4.7),
    "FlowJo linear": FlowJoLinear(low=-2000.0, high=250000.0),
    "Diva biexponential": diva_biexponential(300.0),
    "Diva log": diva_log(),
    "Diva linear": diva_linear(),
}


@pytest.mark.parametrize("name", VENDOR_SCALES)
def test_gates_of_another_program_become_a_small_template_on_their_own_scale(
    name: str, fcs: FcsFile, tmp_path: Path
) -> None:
    gates: dict[str, tuple[str, Gate]] = {
        "/low": ("", box(0.0, 0.4)),
        "/diamond": ("", DIAMOND),
        "/diamond/ellipse": ("/diamond", ELLIPSE),
        # Drawn to the border of the plot, where a clamped scale piles up what lies beyond.
        "/corner": ("", Polygon(markers=("FL1", "FL2"), vertices=((0, 0), (0.7, 0), (0.5, 0.6), (0, 1)), closed=True)),
    }
    one = strategy(gates, {"a": VENDOR_SCALES[name]})
    converted, result = made_into_a_template(one, fcs, tmp_path)
    assert converted.complete
    assert not converted.findings
    assert len(converted.text) < 3000
    assert 'method = "ellipse"' in converted.text
    evaluation = evaluate(one, fcs)
    for place, population in converted.names.items():
        assert np.array_equal(result.memberships.mask(population), evaluation.memberships.mask(place)), population
        assert 0 < result.counts[population] < fcs.event_count


def test_ranges_of_linear_values_are_put_on_the_scale_that_their_channel_is_drawn_on(
    fcs: FcsFile, tmp_path: Path
) -> None:
    """FlowJo stores ranges in linear values; a marker of a template has one scale."""
    one = strategy({"/p": ("", DIAMOND)}, {"a": VENDOR_SCALES["FlowJo biex"]})
    linear = replace(one.dimensions["FL1"], key="FL1 linear", scale=None, display="a")
    ranges = ((-300.0, 2500.0), (-np.inf, 100.0), (5.0, np.inf), (-9e9, 100.0), (100.0, 9e9))
    one = replace(
        one,
        dimensions={**one.dimensions, linear.key: linear},
        gates=(
            *one.gates,
            *(
                ForeignGate(
                    name=f"r{i}",
                    path=f"/r{i}",
                    parent="",
                    gate=Rectangle(markers=(linear.key,), low=(low,), high=(high,)),
                )
                for i, (low, high) in enumerate(ranges)
            ),
        ),
    )
    converted, result = made_into_a_template(one, fcs, tmp_path)
    evaluation = evaluate(one, fcs)
    for place, population in converted.names.items():
        assert np.array_equal(result.memberships.mask(population), evaluation.memberships.mask(place)), population
    # Sides beyond the ends of the scale stay linear values.
    lines = converted.text.split("[[population]]")
    assert ['channels = ["FL1-A (linear)"]' in line for line in lines[2:]] == [False, False, False, True, True]
    assert 'channels = ["FL1-A"]' in lines[2]


def test_a_polygon_that_reaches_beyond_an_open_scale_is_straightened_there_too(fcs: FcsFile) -> None:
    reach = Polygon(markers=("FL1", "FL2"), vertices=((-0.3, 0.2), (0.6, -0.4), (1.4, 0.5), (0.4, 1.3)))
    for scale in (Biex(T=262144.0, pos=4.5, neg=0.5, width=-100.0), Bounded(scale=Biex(T=9e4, pos=4.5), low=0.2)):
        one = strategy({"/reach": ("", reach)}, {"a": scale})
        data, findings = export_gatingml(one)
        assert not findings
        assert_same(one, read_gatingml(data, "x"), fcs)
