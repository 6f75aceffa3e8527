"""Gating-ML 2.0 as the standard defines it: each expectation is computed here from the formula of the named section."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.cytometry.transforms import Hyperlog, Logicle, make_transform
from flowmrd.errors import InputError
from flowmrd.fcs import Channel, FcsFile, Spillover, read_fcs, write_fcs
from flowmrd.gating.engine import apply_template
from flowmrd.gating.interop.as_template import to_template
from flowmrd.gating.interop.document import Evaluation, column_names, evaluate
from flowmrd.gating.interop.export import write_gatingml
from flowmrd.gating.interop.gatingml import read_gatingml
from flowmrd.gating.template import load_template

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

NAMES = ("FSC-A", "FL1-A", "FL2-A", "FL3-A")
SPILL = np.array([[1.0, 0.2, 0.05], [0.1, 1.0, 0.3], [0.0, 0.05, 1.0]])


@pytest.fixture(scope="module")
def values() -> Floats:
    """Four channels of 3,000 events, many of them negative, and each integer from -20 to 20 on the first colours."""
    rng = np.random.default_rng(7)
    table = rng.normal(300.0, 400.0, (4, 3000))
    table[:, :41] = np.arange(-20.0, 21.0)
    return np.asarray(table, np.float64)


@pytest.fixture(scope="module")
def fcs(values: Floats, tmp_path_factory: pytest.TempPathFactory) -> FcsFile:
    path = tmp_path_factory.mktemp("gml") / "events.fcs"
    channels = [Channel(index=i, pnn=name, pns=f"Label {i}", range=10000.0) for i, name in enumerate(NAMES)]
    spillover = Spillover(channels=NAMES[1:], matrix=SPILL, source="$SPILLOVER")
    write_fcs(path, values, channels, spillover=spillover, datatype="D")
    return read_fcs(path)


def document(body: str) -> bytes:
    space = "http://www.isac-net.org/std/Gating-ML/v2.0/"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><g:Gating-ML xmlns:g="{space}gating" xmlns:t="{space}transformations" '
        f'xmlns:d="{space}datatypes">{body}</g:Gating-ML>'
    ).encode()


def dimension(
    channel: str, *, comp: str = "uncompensated", scale: str = "", low: object = "", high: object = ""
) -> str:
    parts = [f'g:compensation-ref="{comp}"'] if comp else []
    parts += [f'g:{key}="{value}"' for key, value in (("min", low), ("max", high)) if value != ""]
    parts += [f'g:transformation-ref="{scale}"'] if scale else []
    inner = (
        f'<d:new-dimension d:transformation-ref="{channel[1:]}"/>'
        if channel.startswith("@")
        else f'<d:fcs-dimension d:name="{channel}"/>'
    )
    return f"<g:dimension {' '.join(parts)}>{inner}</g:dimension>"


def rectangle(name: str, *dimensions: str, parent: str = "") -> str:
    above = f' g:parent_id="{parent}"' if parent else ""
    return f'<g:RectangleGate g:id="{name}"{above}>{"".join(dimensions)}</g:RectangleGate>'


def scale(name: str, body: str, bounds: str = "") -> str:
    return f'<t:transformation t:id="{name}" {bounds}>{body}</t:transformation>'


def matrix(
    name: str,
    dyes: tuple[str, ...],
    detectors: tuple[str, ...],
    rows: ArrayLike,
    extra: str = "",
) -> str:
    lists = [
        f"<t:{part}>{''.join(f'<d:fcs-dimension d:name={chr(34)}{one}{chr(34)}/>' for one in names)}</t:{part}>"
        for part, names in (("fluorochromes", dyes), ("detectors", detectors))
    ]
    spectra = "".join(
        "<t:spectrum>" + "".join(f'<t:coefficient t:value="{float(v)!r}"/>' for v in row) + "</t:spectrum>"
        for row in np.asarray(rows).tolist()
    )
    return f'<t:spectrumMatrix t:id="{name}" {extra}>{"".join(lists)}{spectra}</t:spectrumMatrix>'


def run(body: str, fcs: FcsFile) -> tuple[dict[str, Mask], Evaluation]:
    strategy = read_gatingml(document(body), "test.xml")
    evaluation = evaluate(strategy, fcs)
    names = column_names(strategy.gates)
    return {names[path]: evaluation.memberships.mask(path) for path in evaluation.counts}, evaluation


def reasons(evaluation: Evaluation) -> list[str]:
    return [one.message for one in evaluation.findings if one.level == "warning"]


def test_a_range_holds_its_lower_end_and_not_its_upper_section_4_1(values: Floats, fcs: FcsFile) -> None:
    masks, _ = run(
        rectangle("both", dimension("FL1-A", low=-5, high=7))
        + rectangle("low", dimension("FL1-A", low=7))
        + rectangle("high", dimension("FL1-A", high="-5"))
        + rectangle("open", dimension("FL1-A")),
        fcs,
    )
    x = values[1]
    assert np.array_equal(masks["both"], (x >= -5) & (x < 7))
    assert np.array_equal(masks["low"], x >= 7)
    assert np.array_equal(masks["high"], x < -5)
    assert masks["open"].all()


def test_a_polygon_holds_its_edge_and_crosses_itself_by_the_even_odd_rule_section_4_2(
    values: Floats, fcs: FcsFile
) -> None:
    # A pentagram: the middle is wound twice, so it is outside.
    angle = np.pi / 2 + 4 * np.pi / 5 * np.arange(5)
    star = np.stack([300 + 500 * np.cos(angle), 300 + 500 * np.sin(angle)], axis=1)
    vertices = "".join(
        f'<g:vertex><g:coordinate d:value="{x!r}"/><g:coordinate d:value="{y!r}"/></g:vertex>' for x, y in star.tolist()
    )
    square = "".join(
        f'<g:vertex><g:coordinate d:value="{x}"/><g:coordinate d:value="{y}"/></g:vertex>'
        for x, y in ((-5, -5), (5, -5), (5, 5), (-5, 5))
    )
    axes = dimension("FL1-A") + dimension("FL2-A")
    masks, _ = run(
        f'<g:PolygonGate g:id="star">{axes}{vertices}</g:PolygonGate>'
        f'<g:PolygonGate g:id="square">{axes}{square}</g:PolygonGate>',
        fcs,
    )
    x, y = values[1], values[2]
    assert np.array_equal(masks["square"], (np.abs(x) <= 5) & (np.abs(y) <= 5))
    assert masks["square"][25]  # (5, 5), its last corner
    crossings = np.zeros(x.size, int)
    for (x0, y0), (x1, y1) in zip(star, np.roll(star, -1, axis=0), strict=True):
        spans = (y0 <= y) != (y1 <= y)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossings += spans & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    assert np.array_equal(masks["star"], crossings % 2 == 1)
    middle = np.hypot(x - 300, y - 300) < 150
    assert middle.any()
    assert not (masks["star"] & middle).any()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_an_ellipsoid_of_any_dimension_holds_its_surface_section_4_3(values: Floats, fcs: FcsFile, size: int) -> None:
    rng = np.random.default_rng(size)
    root = rng.normal(size=(size, size)) * 150
    covariance = root @ root.T + np.eye(size) * 1e4
    mean = np.full(size, 250.0)
    body = (
        '<g:EllipsoidGate g:id="e">'
        + "".join(dimension(name) for name in NAMES[:size])
        + f"<g:mean>{''.join(f'<g:coordinate d:value={chr(34)}{v!r}{chr(34)}/>' for v in mean.tolist())}</g:mean>"
        + "<g:covarianceMatrix>"
        + "".join(
            f"<g:row>{''.join(f'<g:entry d:value={chr(34)}{v!r}{chr(34)}/>' for v in row)}</g:row>"
            for row in covariance.tolist()
        )
        + '</g:covarianceMatrix><g:distanceSquare d:value="2.5"/></g:EllipsoidGate>'
    )
    masks, _ = run(body, fcs)
    centred = values[:size].T - mean
    distance = np.sum(centred @ np.linalg.inv(covariance) * centred, axis=1)
    assert 0 < masks["e"].sum() < masks["e"].size
    assert np.array_equal(masks["e"], distance <= 2.5)


def test_an_ellipsoid_may_join_axes_of_very_different_units_section_4_3(values: Floats, fcs: FcsFile) -> None:
    """0 … 1 beside 0 … 10^9: the matrix looks singular in numbers, and its ellipsoid is an ordinary one."""
    covariance = [[1e-10, 3e3], [3e3, 1e17]]
    rows = "".join(
        f"<g:row>{''.join(f'<g:entry d:value={chr(34)}{v!r}{chr(34)}/>' for v in row)}</g:row>" for row in covariance
    )
    masks, evaluation = run(
        scale("small", '<t:flin t:T="1e8" t:A="0"/>')
        + scale("large", '<t:flin t:T="1e-6" t:A="0"/>')
        + f'<g:EllipsoidGate g:id="e">{dimension("FL1-A", scale="small")}{dimension("FL2-A", scale="large")}'
        '<g:mean><g:coordinate d:value="3e-6"/><g:coordinate d:value="3e8"/></g:mean>'
        f'<g:covarianceMatrix>{rows}</g:covarianceMatrix><g:distanceSquare d:value="1.5"/></g:EllipsoidGate>',
        fcs,
    )
    # In units of its own standard deviations: 1e-5 and 10^8.5, correlation 3e3 / (1e-5 * 10^8.5).
    u, v = (values[1] / 1e8 - 3e-6) / 1e-5, (values[2] / 1e-6 - 3e8) / math.sqrt(1e17)
    r = 3e3 / (1e-5 * math.sqrt(1e17))
    distance = (u * u - 2 * r * u * v + v * v) / (1 - r * r)
    assert not reasons(evaluation)
    assert 0 < masks["e"].sum() < masks["e"].size
    assert np.array_equal(masks["e"], distance <= 1.5)


def test_an_event_on_the_surface_of_an_ellipsoid_is_inside_section_4_3(values: Floats, fcs: FcsFile) -> None:
    masks, _ = run(
        f'<g:EllipsoidGate g:id="circle">{dimension("FL1-A")}{dimension("FL2-A")}'
        '<g:mean><g:coordinate d:value="0"/><g:coordinate d:value="0"/></g:mean>'
        '<g:covarianceMatrix><g:row><g:entry d:value="1"/><g:entry d:value="0"/></g:row>'
        '<g:row><g:entry d:value="0"/><g:entry d:value="1"/></g:row></g:covarianceMatrix>'
        '<g:distanceSquare d:value="32"/></g:EllipsoidGate>',
        fcs,
    )
    assert masks["circle"][24]  # (4, 4)
    assert not masks["circle"][25]  # (5, 5)


def quadrants(*positions: tuple[str, tuple[tuple[str, float], ...]]) -> str:
    dividers = (
        '<g:divider g:id="a" g:compensation-ref="uncompensated"><d:fcs-dimension d:name="FL1-A"/>'
        "<g:value>400</g:value><g:value>-5</g:value></g:divider>"
        '<g:divider g:id="b" g:compensation-ref="uncompensated"><d:fcs-dimension d:name="FL2-A"/>'
        "<g:value>7</g:value></g:divider>"
        '<g:divider g:id="c" g:compensation-ref="uncompensated"><d:fcs-dimension d:name="FL3-A"/>'
        "<g:value>100</g:value></g:divider>"
    )
    parts = "".join(
        f'<g:Quadrant g:id="{name}">'
        + "".join(f'<g:position g:divider_ref="{ref}" g:location="{at}"/>' for ref, at in places)
        + "</g:Quadrant>"
        for name, places in positions
    )
    return f'<g:QuadrantGate g:id="Q">{dividers}{parts}</g:QuadrantGate>'


def test_a_quadrant_is_where_its_positions_lie_between_divider_values_section_4_4(values: Floats, fcs: FcsFile) -> None:
    masks, _ = run(
        quadrants(
            ("low", (("a", -6), ("b", 7), ("c", 100))),
            ("middle", (("a", -5), ("b", 6.9), ("c", 99))),
            ("high", (("a", 400), ("c", 5))),
            ("one", (("b", 100),)),
        )
        + rectangle("child", dimension("FL3-A", low=0), parent="middle"),
        fcs,
    )
    x, y, z = values[1:]
    assert np.array_equal(masks["low"], (x < -5) & (y >= 7) & (z >= 100))
    assert np.array_equal(masks["middle"], (x >= -5) & (x < 400) & (y < 7) & (z < 100))
    assert np.array_equal(masks["high"], (x >= 400) & (z < 100))
    assert np.array_equal(masks["one"], y >= 7)
    assert np.array_equal(masks["child"], masks["middle"] & (z >= 0))


def test_boolean_gates_join_complement_and_nest_section_4_5(values: Floats, fcs: FcsFile) -> None:
    def boolean(name: str, operator: str, *refs: str, parent: str = "") -> str:
        above = f' g:parent_id="{parent}"' if parent else ""
        flags = {True: ' g:use-as-complement="true"', False: ""}
        inner = "".join(f'<g:gateReference g:ref="{r.lstrip("!")}"{flags[r[0] == "!"]}/>' for r in refs)
        return f'<g:BooleanGate g:id="{name}"{above}><g:{operator}>{inner}</g:{operator}></g:BooleanGate>'

    masks, _ = run(
        # References may point forward.
        boolean("nor", "not", "or")
        + boolean("or", "or", "A", "B", "C")
        + boolean("mixed", "and", "A", "!B", "!C")
        + boolean("double", "not", "!A")
        + boolean("inside", "and", "A", "B", parent="C")
        + rectangle("A", dimension("FL1-A", low=0))
        + rectangle("B", dimension("FL2-A", low=100))
        + rectangle("C", dimension("FL3-A", low=200)),
        fcs,
    )
    a, b, c = values[1] >= 0, values[2] >= 100, values[3] >= 200
    assert np.array_equal(masks["or"], a | b | c)
    assert np.array_equal(masks["nor"], ~(a | b | c))
    assert np.array_equal(masks["mixed"], a & ~b & ~c)
    assert np.array_equal(masks["double"], a)
    assert np.array_equal(masks["inside"], a & b & c)


def flin(x: Floats) -> Floats:
    return (x + 500) / (10000 + 500)


def fasinh(x: Floats) -> Floats:
    ten = math.log(10)
    return np.asarray((np.arcsinh(x * math.sinh(4 * ten) / 10000) + 1 * ten) / ((4 + 1) * ten))


def flog(x: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x > 0, np.log10(np.where(x > 0, x, 1) / 10000) / 5 + 1, -np.inf)


def solved(inverse: Callable[[Floats], Floats], x: Floats) -> Floats:
    """Invert a rising function by bisection: slow, and from the definition alone."""
    low, high = np.full(x.shape, -3.0), np.full(x.shape, 3.0)
    for _ in range(200):
        middle = (low + high) / 2
        below = inverse(middle) < x
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)


def hyperlog(x: Floats, T: float = 10000, W: float = 1, M: float = 4.5, A: float = 0) -> Floats:
    w, x2 = W / (M + A), A / (M + A)
    x1, x0, b = x2 + w, x2 + 2 * w, (M + A) * math.log(10)
    c0 = math.exp(b * x0) / w
    f0 = math.exp(b * x1) + c0 * x1
    a = T / (math.exp(b) + c0 - f0)

    def value(y: Floats) -> Floats:
        z = np.where(y < x1, 2 * x1 - y, y)
        eh = a * np.exp(b * z) + c0 * a * z - f0 * a
        return np.where(y < x1, -eh, eh)

    return solved(value, x)


def logicle(x: Floats) -> Floats:
    return solved(Logicle(T=10000, W=1, M=4, A=0.5).inverse, x)


SCALES = {
    "flin": ('<t:flin t:T="10000" t:A="500"/>', flin),
    "fasinh": ('<t:fasinh t:T="10000" t:M="4" t:A="1"/>', fasinh),
    "flog": ('<t:flog t:T="10000" t:M="5"/>', flog),
    "hyperlog": ('<t:hyperlog t:T="10000" t:W="1" t:M="4.5" t:A="0"/>', hyperlog),
    "logicle": ('<t:logicle t:T="10000" t:W="1" t:M="4" t:A="0.5"/>', logicle),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_and_its_bounds_follow_section_6(name: str, values: Floats, fcs: FcsFile) -> None:
    body, formula = SCALES[name]
    y = formula(values[1])
    low, high = (float(v) for v in np.quantile(y[np.isfinite(y)], (0.3, 0.7)))
    edges = dimension("FL1-A", scale="{}", low=low, high=high)
    masks, _ = run(
        scale("open", body)
        + scale("floor", body, f't:boundMin="{(low + high) / 2!r}"')
        + scale("ceiling", body, f't:boundMax="{(low + high) / 2!r}"')
        + scale("closed", body, f't:boundMin="{low!r}" t:boundMax="{high!r}"')
        + "".join(rectangle(f"in_{one}", edges.format(one)) for one in ("open", "floor", "ceiling", "closed")),
        fcs,
    )
    assert np.array_equal(masks["in_open"], (y >= low) & (y < high))
    # Below the bound everything lies on the bound, which is inside.
    assert np.array_equal(masks["in_floor"], y < high)
    assert np.array_equal(masks["in_ceiling"], y >= low)
    # What lies on boundMax = the gate's upper end is outside.
    assert np.array_equal(masks["in_closed"], y < high)


@pytest.mark.parametrize(
    ("T", "W", "M", "A"), [(10000, 1, 4.5, 0), (262144, 0.5, 4.5, 1), (1000, 2, 4.5, -1), (1, 0.1, 3, 0)]
)
def test_hyperlog_is_the_formula_of_section_6_5_and_of_flowutils(T: float, W: float, M: float, A: float) -> None:
    from flowutils.transforms import _hyperlog

    x = np.concatenate([np.linspace(-T, 2 * T, 500), [0.0, T, 1e-9, 1e6 * T]])
    got = Hyperlog(T=T, W=W, M=M, A=A).forward(x)
    assert np.allclose(got[:-1], hyperlog(x[:-1], T, W, M, A), atol=1e-12)
    assert np.allclose(got, _hyperlog(x.copy(), T, M, W, A), atol=1e-12)
    assert got[-3] == pytest.approx(1.0, abs=1e-14)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["linear", "log", "arcsinh", "logicle", "hyperlog"]),
    st.floats(-1e5, 1e6),
    st.floats(-0.5, 1.5),
    st.floats(-0.5, 1.5),
)
def test_a_bound_is_max_of_min_section_6(kind: str, x: float, low: float, high: float) -> None:
    own: dict[str, float | str] = {"kind": kind, "T": 1e4}
    own |= {"M": 4.5} if kind != "linear" else {}
    own |= {"W": 0.5} if kind in {"logicle", "hyperlog"} else {}
    y = make_transform(own).forward(np.array([x]))[0]
    bounded = make_transform({**own, "boundMin": low, "boundMax": high})
    assert bounded.forward(np.array([x]))[0] == max(min(y, high), low)
    assert make_transform(bounded.params()) == bounded


def test_a_ratio_is_a_dimension_with_bounds_a_scale_and_compensation_section_6_6(values: Floats, fcs: FcsFile) -> None:
    channels = '<d:fcs-dimension d:name="FL1-A"/><d:fcs-dimension d:name="FL2-A"/>'
    ratio = f'<t:fratio t:A="2.7" t:B="-100" t:C="-300.5">{channels}</t:fratio>'
    masks, _ = run(
        scale("R", ratio)
        + scale("RB", ratio, 't:boundMin="0.5" t:boundMax="4"')
        + scale("lin", '<t:flin t:T="10" t:A="0"/>')
        + rectangle("plain", dimension("@R", low=1, high=3))
        + rectangle("bounded", dimension("@RB", low=0.5, high=4))
        + rectangle("scaled", dimension("@RB", scale="lin", low=0.4))
        + rectangle("compensated", dimension("@R", comp="FCS", low=1, high=3)),
        fcs,
    )
    r = 2.7 * (values[1] + 100) / (values[2] + 300.5)
    assert np.array_equal(masks["plain"], (r >= 1) & (r < 3))
    assert np.array_equal(masks["bounded"], r < 4)
    assert np.array_equal(masks["scaled"], np.clip(r, 0.5, 4) / 10 >= 0.4)
    x, y, _ = np.linalg.solve(SPILL.T, values[1:])
    r = 2.7 * (x + 100) / (y + 300.5)
    assert np.array_equal(masks["compensated"], (r >= 1) & (r < 3))
    assert not np.array_equal(masks["plain"], masks["compensated"])


def test_one_document_mixes_compensations_even_in_one_gate_section_7(values: Floats, fcs: FcsFile) -> None:
    other = np.array([[1.0, 0.5], [0.25, 1.0]])
    dyes = ("FITC", "PE")
    body = matrix("M", dyes, NAMES[1:3], other)
    body += matrix("I", dyes, NAMES[1:3], np.linalg.inv(other), 't:matrix-inverted-already="true"')
    body += rectangle(
        "mixed",
        dimension("FITC", comp="M", low=100),
        dimension("FL1-A", comp="FCS", low=50),
        dimension("FL1-A", low=150),
        dimension("FSC-A", comp="M", low=0),
    )
    body += "".join(rectangle(f"by_{one}", dimension("PE", comp=one, low=100, high=600)) for one in "MI")
    body += rectangle("detector", dimension("FL2-A", comp="M", low=100, high=600))
    masks, _ = run(body, fcs)
    fitc, pe = np.linalg.solve(other.T, values[1:3])
    own = np.linalg.solve(SPILL.T, values[1:])
    assert np.array_equal(masks["mixed"], (fitc >= 100) & (own[0] >= 50) & (values[1] >= 150) & (values[0] >= 0))
    assert np.array_equal(masks["by_M"], (pe >= 100) & (pe < 600))
    assert np.array_equal(masks["by_I"], masks["by_M"])
    # A square matrix pairs detectors and fluorochromes; naming the detector means its compensated value.
    assert np.array_equal(masks["detector"], masks["by_M"])


def test_more_detectors_than_fluorochromes_are_unmixed_by_least_squares_section_7_1(
    values: Floats, fcs: FcsFile
) -> None:
    spectra = np.array([[1.0, 0.4, 0.1], [0.05, 0.7, 1.0]])
    inverse = np.linalg.pinv(spectra)
    body = matrix("S", ("A", "B"), NAMES[1:], spectra)
    body += matrix("SI", ("A", "B"), NAMES[1:], inverse, 't:matrix-inverted-already="true"')
    body += "".join(rectangle(f"{dye}{m}", dimension(dye, comp=m, low=100)) for dye in "AB" for m in ("S", "SI"))
    body += rectangle("raw", dimension("FL1-A", comp="S", low=100))
    masks, evaluation = run(body, fcs)
    amounts = np.linalg.lstsq(spectra.T, values[1:], rcond=None)[0]
    for row, dye in zip(amounts, "AB", strict=True):
        assert np.array_equal(masks[f"{dye}S"], row >= 100)
        assert np.array_equal(masks[f"{dye}SI"], row >= 100)
    assert reasons(evaluation) == ["Gate raw is left out: 'FL1-A' is a detector of 'S', which gives A, B."]


def test_ids_that_repeat_in_branches_keep_their_own_parents(values: Floats, fcs: FcsFile) -> None:
    masks, evaluation = run(
        rectangle("P", dimension("FL1-A", low=0))
        + rectangle("cells", dimension("FL2-A", low=0), parent="P")
        + rectangle("bright", dimension("FL3-A", low=300), parent="cells")
        + rectangle("N", dimension("FL1-A", high=0))
        + rectangle("cells", dimension("FL2-A", low=100), parent="N")
        + rectangle("bright", dimension("FL3-A", low=300), parent="cells"),
        fcs,
    )
    x, y, z = values[1:]
    assert set(masks) == {"P", "cells", "bright", "N", "/N/cells", "/N/cells/bright"}
    assert np.array_equal(masks["bright"], (x >= 0) & (y >= 0) & (z >= 300))
    assert np.array_equal(masks["/N/cells/bright"], (x < 0) & (y >= 100) & (z >= 300))
    assert not reasons(evaluation)


def test_custom_information_and_unknown_wrappers_do_not_disturb(values: Floats, fcs: FcsFile) -> None:
    masks, _ = run(
        "<d:custom_info><g:RectangleGate g:id='ghost'/></d:custom_info><sample>"
        + rectangle("A", "<d:custom_info>any <b>thing</b></d:custom_info>", dimension("FL1-A", low=0))
        + "</sample>",
        fcs,
    )
    assert set(masks) == {"A"}
    assert np.array_equal(masks["A"], values[1] >= 0)


NARROW = "transform logicle: expected 0 <= W <= M / 2; got 3."
FLAT = '<g:row><g:entry d:value="1"/><g:entry d:value="1"/></g:row>'
FLAT_SHAPE = (
    '<g:mean><g:coordinate d:value="0"/><g:coordinate d:value="0"/></g:mean>'
    f'<g:covarianceMatrix>{FLAT}{FLAT}</g:covarianceMatrix><g:distanceSquare d:value="1"/>'
)
NOT_A = '<g:BooleanGate g:id="B"><g:not><g:gateReference g:ref="A"/></g:not></g:BooleanGate>'
NOT_B = '<g:BooleanGate g:id="A"><g:not><g:gateReference g:ref="B"/></g:not></g:BooleanGate>'

LEFT_OUT = {
    "a missing channel": (
        rectangle("X", dimension("FL9-A", low=0)),
        "Gate X is left out: the file has no channel 'FL9-A'; it has FSC-A, FL1-A, FL2-A, FL3-A.",
    ),
    "a vertex that is no number": (
        f'<g:PolygonGate g:id="X">{dimension("FL1-A")}{dimension("FL2-A")}'
        + "".join(
            f'<g:vertex><g:coordinate d:value="{x}"/><g:coordinate d:value="1"/></g:vertex>' for x in (0, "NaN", 5)
        )
        + "</g:PolygonGate>",
        "Gate X is left out: value is not a number: 'NaN'.",
    ),
    "an infinite vertex": (
        f'<g:PolygonGate g:id="X">{dimension("FL1-A")}{dimension("FL2-A")}'
        + "".join(
            f'<g:vertex><g:coordinate d:value="{x}"/><g:coordinate d:value="1"/></g:vertex>' for x in (0, "INF", 5)
        )
        + "</g:PolygonGate>",
        "Gate X is left out: vertex 2 is not finite: 'INF'.",
    ),
    "a parent that is not there": (
        rectangle("X", dimension("FL1-A", low=0), parent="Y"),
        "Gate X is left out: its parent 'Y' is not in the document.",
    ),
    "an unknown transformation": (
        rectangle("X", dimension("FL1-A", scale="T", low=0)),
        "Gate X is left out: the document defines no transformation 'T'.",
    ),
    "a transformation outside its range": (
        scale("T", '<t:logicle t:T="1000" t:W="3" t:M="4" t:A="0"/>')
        + rectangle("X", dimension("FL1-A", scale="T", low=0)),
        "Gate X is left out: its transformation 'T' cannot be read: " + NARROW,
    ),
    "an unknown matrix": (
        rectangle("X", dimension("FL1-A", comp="S", low=0)),
        "Gate X is left out: the document defines no matrix 'S'.",
    ),
    "a matrix that cannot be inverted": (
        matrix("S", ("A", "B"), NAMES[1:3], [[1, 2], [2, 4]]) + rectangle("X", dimension("A", comp="S", low=0)),
        "Gate X is left out: matrix 'S' cannot be inverted: its spectra depend on one another.",
    ),
    "a covariance that cannot be inverted": (
        f'<g:EllipsoidGate g:id="X">{dimension("FL1-A")}{dimension("FL2-A")}{FLAT_SHAPE}</g:EllipsoidGate>',
        "Gate X is left out: its covarianceMatrix cannot be inverted.",
    ),
    "a divider that is not there": (
        quadrants(("X", (("nothing", 1.0),))),
        "Gate X is left out: it refers to divider 'nothing', which its quadrant gate does not have.",
    ),
}


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_a_gate_that_cannot_be_evaluated_is_one_finding_and_the_rest_is_gated(
    fault: str, values: Floats, fcs: FcsFile
) -> None:
    body, message = LEFT_OUT[fault]
    masks, evaluation = run(body + rectangle("good", dimension("FL1-A", low=0)), fcs)
    assert reasons(evaluation) == [message]
    assert set(masks) == {"good"}
    assert np.array_equal(masks["good"], values[1] >= 0)


def test_what_depends_on_a_gate_that_is_left_out_is_left_out_with_its_reason(fcs: FcsFile) -> None:
    _, evaluation = run(
        rectangle("X", dimension("FL9-A", low=0)) + rectangle("child", dimension("FL1-A", low=0), parent="X"), fcs
    )
    assert reasons(evaluation)[1] == "Gate child is left out: it needs X, which is left out."


@pytest.mark.parametrize(
    "body",
    [
        rectangle("A", dimension("FL1-A"), parent="B") + rectangle("B", dimension("FL1-A"), parent="A"),
        NOT_B + NOT_A,
    ],
)
def test_a_circle_of_references_is_one_clear_finding(body: str, fcs: FcsFile) -> None:
    masks, evaluation = run(body + rectangle("good", dimension("FL1-A")), fcs)
    assert reasons(evaluation) == ["Gates refer to one another in a circle and are left out: A → B → A."]
    assert set(masks) == {"good"}


def test_a_gate_that_is_its_own_parent_is_a_circle_of_one(fcs: FcsFile) -> None:
    masks, evaluation = run(rectangle("P", dimension("FL1-A"), parent="P") + rectangle("good", dimension("FL1-A")), fcs)
    assert reasons(evaluation) == ["Gates refer to one another in a circle and are left out: P → P."]
    assert set(masks) == {"good"}


def test_a_gate_on_an_empty_parent_counts_nothing(fcs: FcsFile) -> None:
    masks, evaluation = run(
        rectangle("none", dimension("FL1-A", low=5, high=5))
        + rectangle("child", dimension("FL2-A", low=0), parent="none"),
        fcs,
    )
    assert not masks["none"].any()
    assert not masks["child"].any()
    assert not reasons(evaluation)


def test_a_document_of_another_version_or_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"not a Gating-ML 2\.0 document"):
        read_gatingml(b"<Workspace/>", "w.wsp")


def test_what_is_written_reads_back_with_the_same_members_and_the_same_bytes(values: Floats, fcs: FcsFile) -> None:
    body = (
        matrix("M", ("FITC", "PE"), NAMES[1:3], [[1.0, 0.5], [0.25, 1.0]])
        + matrix(
            "I",
            ("A", "B"),
            NAMES[1:],
            np.linalg.pinv([[1.0, 0.4, 0.1], [0.05, 0.7, 1.0]]),
            't:matrix-inverted-already="1"',
        )
        + "".join(scale(name, text, 't:boundMin="0.2"') for name, (text, _) in SCALES.items())
        + scale(
            "R",
            '<t:fratio t:A="1" t:B="0" t:C="-1"><d:fcs-dimension d:name="FL1-A"/>'
            '<d:fcs-dimension d:name="FL2-A"/></t:fratio>',
            't:boundMax="3"',
        )
        + "".join(rectangle(f"on_{name}", dimension("FL1-A", scale=name, low=0.2, high=0.6)) for name in SCALES)
        + rectangle("ratio", dimension("@R", low=0.1))
        + rectangle("dye", dimension("PE", comp="M", low=10), dimension("A", comp="I", low=0))
        + quadrants(("one", (("a", -5), ("a", 0), ("b", 3))), ("two", (("c", 100),)))
        + rectangle("1 odd/name+", dimension("FL3-A", low=0), parent="one")
        + rectangle("P", dimension("FL1-A", low=0))
        + rectangle("twice", dimension("FL2-A", low=0), parent="P")
        + rectangle("twice", dimension("FL3-A", low=0))
        + '<g:BooleanGate g:id="not"><g:not><g:gateReference g:ref="ratio"/></g:not></g:BooleanGate>'
    )
    strategy = read_gatingml(document(body), "in.xml")
    data = write_gatingml(strategy)
    assert data == write_gatingml(strategy)
    again = read_gatingml(data, "out.xml")
    assert write_gatingml(again) == data
    first, second = evaluate(strategy, fcs), evaluate(again, fcs)
    before, after = column_names(strategy.gates), column_names(again.gates)
    assert [one.name for one in again.gates] == [one.name for one in strategy.gates]
    assert len(first.counts) == len(strategy.gates)
    for (path, name), (other, same) in zip(before.items(), after.items(), strict=True):
        assert np.array_equal(first.memberships.mask(path), second.memberships.mask(other)), (name, same)


def test_a_written_document_is_valid_by_the_schema_of_the_standard(fcs: FcsFile, tmp_path: Path) -> None:
    etree = pytest.importorskip("lxml.etree")
    flowkit = pytest.importorskip("flowkit")
    folder = Path(flowkit.__file__).parent / "_resources"
    body = (
        rectangle("9 lives", dimension("FL1-A", low=0))
        + '<g:BooleanGate g:id="n"><g:not><g:gateReference g:ref="9 lives"/></g:not></g:BooleanGate>'
    )
    data = write_gatingml(read_gatingml(document(body), "in.xml"))
    schema = etree.XMLSchema(etree.parse(str(folder / "Gating-ML.v2.0.xsd")))
    assert schema.validate(etree.fromstring(data)), schema.error_log


def kinds(evaluation: Evaluation) -> Mapping[str, int]:
    return {one.code: 1 for one in evaluation.findings}


def test_a_reference_to_a_file_matrix_that_is_not_there_is_said(values: Floats, tmp_path: Path) -> None:
    path = tmp_path / "plain.fcs"
    write_fcs(path, values, [Channel(index=i, pnn=name, range=1e4) for i, name in enumerate(NAMES)], datatype="D")
    masks, evaluation = run(rectangle("A", dimension("FL1-A", comp="FCS", low=0)), read_fcs(path))
    assert np.array_equal(masks["A"], values[1] >= 0)
    assert "UNCOMPENSATED" in kinds(evaluation)


# ------------------------------------------------------------------------ scale values: from channel to scale (4.2)


@pytest.fixture(scope="module")
def calibur(tmp_path_factory: pytest.TempPathFactory) -> tuple[NDArray[np.int64], FcsFile]:
    """Integers as an analogue instrument stores them: a gain, a log amplifier, and a clock with step and gain."""
    stored = np.random.default_rng(2).integers(0, 1024, (3, 4000))
    stored[2] = np.arange(4000) // 5
    path = tmp_path_factory.mktemp("calibur") / "integers.fcs"
    channels = [
        Channel(index=0, pnn="SSC-H", range=1024, gain=8.0, bits=16),
        Channel(index=1, pnn="FL1-H", range=1024, bits=16, log_decades=4.0, log_offset=1.0),
        Channel(index=2, pnn="Time", range=1024, bits=16, gain=4.0),
    ]
    write_fcs(path, stored, channels, keywords={"$TIMESTEP": "0.01"}, datatype="I")
    return stored, read_fcs(path)


def test_a_gain_and_a_log_amplifier_are_undone_before_the_gate_section_4_2(
    calibur: tuple[NDArray[np.int64], FcsFile],
) -> None:
    stored, fcs = calibur
    masks, _ = run(
        rectangle("gain", dimension("SSC-H", low=20, high=80))
        # 431 is the standard's own example: 10 ** (4 * 431 / 1024) = 48.26071.
        + rectangle("log", dimension("FL1-H", low=48.2607, high=48.2608))
        + rectangle("zero", dimension("FL1-H", high=1.0000001))
        + scale("S", '<t:flog t:T="10000" t:M="4"/>')
        + rectangle("scaled", dimension("FL1-H", scale="S", low=0.25, high=0.75)),
        fcs,
    )
    assert np.array_equal(masks["gain"], (stored[0] >= 160) & (stored[0] < 640))
    assert np.array_equal(masks["log"], stored[1] == 431)
    assert np.array_equal(masks["zero"], stored[1] == 0)
    assert np.array_equal(masks["scaled"], (stored[1] >= 256) & (stored[1] < 768))


def test_time_is_gated_in_ticks_over_gain_section_4_2(calibur: tuple[NDArray[np.int64], FcsFile]) -> None:
    """`$TIMESTEP` is no part of the way from channel to scale, which knows `$PnE` and `$PnG`."""
    stored, fcs = calibur
    ratio = '<t:fratio t:A="1" t:B="0" t:C="-1"><d:fcs-dimension d:name="Time"/><d:fcs-dimension d:name="SSC-H"/>'
    triangle = "".join(
        f'<g:vertex><g:coordinate d:value="{x}"/><g:coordinate d:value="{y}"/></g:vertex>'
        for x, y in ((0, 0), (200, 0), (200, 128))
    )
    masks, _ = run(
        scale("L", '<t:flin t:T="100" t:A="0"/>')
        + scale("R", ratio + "</t:fratio>")
        + rectangle("early", dimension("Time", low=7.25, high=20))
        + rectangle("scaled", dimension("Time", scale="L", low=1.5))
        + rectangle("both", dimension("Time", low=100), dimension("SSC-H", low=20))
        + rectangle("ratio", dimension("@R", low=10))
        + rectangle("FlowJo, in seconds", dimension("Time", comp="", low=1.5))
        + f'<g:PolygonGate g:id="triangle">{dimension("Time")}{dimension("SSC-H")}{triangle}</g:PolygonGate>',
        fcs,
    )
    ticks, side = stored[2] / 4.0, stored[0] / 8.0
    assert fcs.column(2)[-1] == pytest.approx(7.99)
    assert np.array_equal(masks["early"], (ticks >= 7.25) & (ticks < 20))
    assert np.array_equal(masks["scaled"], ticks >= 150)
    assert np.array_equal(masks["both"], (ticks >= 100) & (side >= 20))
    assert np.array_equal(masks["ratio"], ticks / (side + 1) >= 10)
    assert np.array_equal(masks["FlowJo, in seconds"], stored[2] >= 150)
    assert np.array_equal(masks["triangle"], (ticks <= 200) & (side <= 0.64 * ticks))


def test_times_that_we_write_in_seconds_say_so_and_ticks_become_seconds_in_a_template(
    calibur: tuple[NDArray[np.int64], FcsFile], tmp_path: Path
) -> None:
    stored, fcs = calibur
    early = rectangle("early", dimension("Time", low=7.25, high=20)) + rectangle("side", dimension("SSC-H", low=20))
    ticks = read_gatingml(document(early), "ticks.xml")
    again = read_gatingml(write_gatingml(ticks), "again.xml")
    expected = (stored[2] >= 29) & (stored[2] < 80)
    assert np.array_equal(evaluate(ticks, fcs).memberships.mask("/early"), expected)
    assert np.array_equal(evaluate(again, fcs).memberships.mask("/early"), expected)
    seconds = replace(ticks, dimensions={key: replace(one, ticks=False) for key, one in ticks.dimensions.items()})
    data = write_gatingml(seconds)
    assert data.count(b'time="seconds"') == 1
    mask = evaluate(read_gatingml(data, "seconds.xml"), fcs).memberships.mask("/early")
    assert np.array_equal(mask, (fcs.column(2) >= 7.25) & (fcs.column(2) < 20))
    path = tmp_path / "t.toml"
    path.write_text(to_template(ticks, template_id="t", fcs=fcs).text, encoding="utf-8")
    template = load_template(path)
    source = EventSource(fcs, resolve_panel(template.channel, fcs.channels, tube="t"), template.channel, spillover=None)
    assert np.array_equal(apply_template(source, template).memberships.mask("early"), expected)
    unsure = to_template(ticks, template_id="t")
    assert not unsure.complete
    assert "TIME_IN_TICKS" in [one.code for one in unsure.findings]


# ------------------------------------------------------------------------------------------------ ends of the real line


def test_flog_of_zero_and_below_is_its_limit_minus_infinity_section_6_2(values: Floats, fcs: FcsFile) -> None:
    """The standard defines flog above zero, with the limit -Inf at zero; a bound then lifts it (6.1)."""
    body = '<t:flog t:T="10000" t:M="5"/>'
    masks, _ = run(
        scale("S", body)
        + scale("B", body, 't:boundMin="0.1"')
        + rectangle("below", dimension("FL1-A", scale="S", high=0.5))
        + rectangle("above", dimension("FL1-A", scale="S", low=-50))
        + rectangle("infinite", dimension("FL1-A", scale="S", low="-INF", high="INF"))
        + rectangle("at the bound", dimension("FL1-A", scale="B", low=0.1, high=0.21)),
        fcs,
    )
    x = values[1]
    assert (x <= 0).any()
    assert np.array_equal(masks["below"], x < 10000 * 10 ** (-2.5))
    assert np.array_equal(masks["above"], x > 0)
    assert masks["infinite"].all()
    assert np.array_equal(masks["at the bound"], x < 10000 * 10 ** (-3.95))


def test_a_dimension_without_a_transformation_is_gated_on_scale_values(values: Floats, fcs: FcsFile) -> None:
    masks, _ = run(rectangle("raw", dimension("FL1-A", low="1e2", high="+2.5E2")), fcs)
    assert np.array_equal(masks["raw"], (values[1] >= 100) & (values[1] < 250))


@pytest.mark.parametrize(("W", "M", "A"), [(0.8, 4.1, 2.5), (0.7, 4.4, 3.0), (0.1, 4.5, 4.3), (2.05, 4.1, 0.0)])
@pytest.mark.parametrize("kind", ["logicle", "hyperlog"])
def test_the_largest_a_that_section_6_4_allows_is_read_as_decimals(
    kind: str, W: float, M: float, A: float, values: Floats, fcs: FcsFile
) -> None:
    """In binary fractions 4.1 - 2 * 0.8 is less than 2.5."""
    body = f'<t:{kind} t:T="10000" t:W="{W}" t:M="{M}" t:A="{A}"/>'
    zero = (A + W) / (M + A) + 1e-9
    masks, evaluation = run(scale("S", body) + rectangle("positive", dimension("FL1-A", scale="S", low=zero)), fcs)
    assert not reasons(evaluation)
    assert np.array_equal(masks["positive"], values[1] > 0)


# ---------------------------------------------------------------------------------------------- references (5.1)


def nested(parent: str, ref: str) -> str:
    inner = (
        '<g:divider g:id="d" g:compensation-ref="FCS"><d:fcs-dimension d:name="FL3-A"/><g:value>100</g:value>'
        '</g:divider><g:Quadrant g:id="in"><g:position g:divider_ref="d" g:location="100"/></g:Quadrant>'
        '<g:Quadrant g:id="out"><g:position g:divider_ref="d" g:location="99.9"/></g:Quadrant>'
    )
    return (
        f'<g:QuadrantGate g:id="N" g:parent_id="{parent}">{inner}</g:QuadrantGate>'
        f'<g:BooleanGate g:id="but"><g:and><g:gateReference g:ref="one"/><g:gateReference g:ref="{ref}" '
        'g:use-as-complement="1"/></g:and></g:BooleanGate>'
    )


def test_a_quadrant_is_a_parent_of_a_quadrant_gate_and_an_operand_section_5_1_4(values: Floats, fcs: FcsFile) -> None:
    masks, evaluation = run(nested("middle", "in") + quadrants(("middle", (("a", -5),)), ("one", (("b", 100),))), fcs)
    assert not reasons(evaluation)
    x, y, _ = values[1:]
    z = np.linalg.solve(SPILL.T, values[1:])[2]
    middle = (x >= -5) & (x < 400)
    assert np.array_equal(masks["in"], middle & (z >= 100))
    assert np.array_equal(masks["out"], middle & (z < 100))
    assert np.array_equal(masks["but"], (y >= 7) & ~(middle & (z >= 100)))


def test_a_whole_quadrant_gate_is_no_population_so_nothing_can_refer_to_it_section_5_1_4(fcs: FcsFile) -> None:
    masks, evaluation = run(quadrants(("middle", (("a", -5),)), ("one", (("b", 100),))) + nested("Q", "Q"), fcs)
    assert set(masks) == {"middle", "one"}
    whole = (
        "'Q' is a whole quadrant gate, which is several populations; Gating-ML 2.0 refers to one of its quadrants: "
        "middle, one."
    )
    assert reasons(evaluation) == [
        f"Gate in is left out: its parent {whole}",
        f"Gate out is left out: its parent {whole}",
        f"Gate but is left out: the gate that it refers to, {whole}",
    ]


def test_a_repeated_channel_name_is_not_guessed_at(values: Floats, tmp_path: Path) -> None:
    path = tmp_path / "twice.fcs"
    write_fcs(path, values, [Channel(index=i, pnn=name, range=1e4) for i, name in enumerate(NAMES)], datatype="D")
    fcs = read_fcs(path)
    twice = replace(fcs, channels=(*fcs.channels[:3], replace(fcs.channels[3], pnn="FL1-A")))
    masks, evaluation = run(
        rectangle("X", dimension("FL1-A", low=0)) + rectangle("Y", dimension("FL2-A", low=0)), twice
    )
    assert set(masks) == {"Y"}
    assert reasons(evaluation) == ["Gate X is left out: 2 channels of the file are named 'FL1-A'."]


@pytest.mark.parametrize("kind", ["not symmetric", "indefinite"])
def test_a_matrix_that_is_no_covariance_is_evaluated_as_the_formula_says_and_told_section_5_1_3(
    kind: str, values: Floats, fcs: FcsFile
) -> None:
    covariance = {"not symmetric": [[4e4, 3e4], [1e4, 5e4]], "indefinite": [[1e4, 3e4], [3e4, 1e4]]}[kind]
    rows = "".join(
        f"<g:row>{''.join(f'<g:entry d:value={chr(34)}{v}{chr(34)}/>' for v in row)}</g:row>" for row in covariance
    )
    masks, evaluation = run(
        f'<g:EllipsoidGate g:id="e">{dimension("FL1-A")}{dimension("FL2-A")}<g:mean><g:coordinate d:value="300"/>'
        f'<g:coordinate d:value="250"/></g:mean><g:covarianceMatrix>{rows}</g:covarianceMatrix>'
        '<g:distanceSquare d:value="1.5"/></g:EllipsoidGate>',
        fcs,
    )
    centred = values[1:3].T - [300, 250]
    distance = np.sum(centred @ np.linalg.inv(np.array(covariance)) * centred, axis=1)
    assert 0 < masks["e"].sum() < masks["e"].size
    assert np.array_equal(masks["e"], distance <= 1.5)
    assert "COVARIANCE_NOT_POSITIVE" in kinds(evaluation)
