"""Each way of placing a gate, on data made so that the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from flowmrd.errors import GatingError
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Intervals, Polygon, Rectangle, Whole, contains
from flowmrd.gating.methods import Found, NotFound, Sample, methods

RNG = np.random.default_rng
# Methods that list events; their tests are those of the search.
LISTS = tuple(name for name, one in methods().items() if one.find is not None and one.lists is not None)


def columns(**values: ArrayLike) -> dict[str, NDArray[np.float32]]:
    return {marker: np.asarray(column, np.float32) for marker, column in values.items()}


def place(
    method: str,
    params: Mapping[str, Any],
    *,
    markers: tuple[str, ...],
    events: Mapping[str, NDArray[np.float32]] | None = None,
    references: Mapping[str, Mapping[str, NDArray[np.float32]]] | None = None,
    found: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[Gate, Found]:
    """Find and build as the engine does."""
    one = methods()[method]
    typed = one.params.model_validate(params)
    known = found or {}
    value = Found(values={})
    if one.find is not None:
        assert events is not None
        size = next(iter(events.values())).size
        value = one.find(
            Sample(markers=markers, events=events, references=references or {}, found=known, count=size), typed
        )
    return one.build(markers, typed, value, known), value


def kept(gate: Gate, events: Mapping[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
    values = {marker: column.astype(np.float64) for marker, column in events.items()}
    return contains(gate, lambda marker: values[marker], next(iter(values.values())).size)


def two_peaks(
    low: float, high: float, *, share: float = 0.3, size: int = 20_000, sd: float = 0.03
) -> NDArray[np.float64]:
    rng = RNG(1)
    upper = rng.random(size) < share
    return np.where(upper, rng.normal(high, sd, size), rng.normal(low, sd, size))


# -------------------------------------------------------------------------------------------------------------- valley


def test_a_valley_cut_lies_between_the_two_peaks_and_keeps_the_asked_side() -> None:
    x = columns(CD19=two_peaks(0.25, 0.65))
    for keep in ("above", "below"):
        gate, found = place("valley", {"keep": keep, "search": (0.3, 0.6)}, markers=("CD19",), events=x)
        assert 0.38 < found.values["cut"] < 0.52
        assert kept(gate, x).mean() == pytest.approx(0.3 if keep == "above" else 0.7, abs=0.01)


def test_a_valley_at_equal_depth_everywhere_is_cut_in_its_middle() -> None:
    x = columns(CD19=np.r_[np.full(500, 0.2), np.full(500, 0.8)] + RNG(0).normal(0, 0.005, 1000))
    _, found = place("valley", {"keep": "above", "search": (0.3, 0.7)}, markers=("CD19",), events=x)
    assert found.values["cut"] == pytest.approx(0.5, abs=0.01)


def test_one_peak_has_no_valley() -> None:
    x = columns(CD19=RNG(2).normal(0.3, 0.05, 5000))
    with pytest.raises(NotFound, match=r"^no density valley of CD19 between 0\.4 and 0\.6 \(5000 events, \d+ peaks\)$"):
        place("valley", {"keep": "above", "search": (0.4, 0.6)}, markers=("CD19",), events=x)


def test_a_valley_too_shallow_or_a_side_too_small_is_none() -> None:
    x = columns(CD19=two_peaks(0.40, 0.50, share=0.5, sd=0.04))
    with pytest.raises(NotFound):
        place("valley", {"keep": "above", "search": (0.3, 0.6), "max_depth": 0.3}, markers=("CD19",), events=x)
    few = columns(CD19=two_peaks(0.25, 0.65, share=0.001))
    with pytest.raises(NotFound):
        place("valley", {"keep": "above", "search": (0.3, 0.6), "min_peak": 0.01}, markers=("CD19",), events=few)


@pytest.mark.parametrize(("prefer", "where"), [("lowest", 0.3), ("highest", 0.7)])
def test_of_several_valleys_the_preferred_one_is_taken(prefer: str, where: float) -> None:
    rng = RNG(3)
    x = columns(CD45=np.concatenate([rng.normal(mean, 0.03, 4000) for mean in (0.1, 0.5, 0.9)]))
    params = {"keep": "above", "search": (0.1, 0.9), "prefer": prefer, "bandwidth": 0.02}
    _, found = place("valley", params, markers=("CD45",), events=x)
    assert found.values["cut"] == pytest.approx(where, abs=0.06)


def test_a_searched_range_may_be_borrowed() -> None:
    x = columns(CD10=two_peaks(0.25, 0.65))
    params = {"keep": "above", "search": ("cd19.cut", 0.6)}
    assert methods()["valley"].borrows(methods()["valley"].params.model_validate(params)) == ("cd19",)
    _, found = place("valley", params, markers=("CD10",), events=x, found={"cd19": {"cut": 0.44}})
    assert found.values["cut"] >= 0.44


# ------------------------------------------------------------------------------------------------------ tail, quantile


def test_a_tail_cut_measures_the_spread_on_the_side_that_the_sought_cells_do_not_reach() -> None:
    rng = RNG(4)
    x = columns(CAR=np.r_[rng.normal(0.25, 0.04, 9000), rng.normal(0.55, 0.08, 3000)])
    params = {"keep": "above", "side": "upper", "distance": 4.0, "search": (0.1, 0.4)}
    gate, found = place("tail", params, markers=("CAR",), events=x)
    assert found.values["peak"] == pytest.approx(0.25, abs=0.01)
    assert found.values["spread"] == pytest.approx(0.04, rel=0.15)
    assert isinstance(gate, Rectangle)
    assert gate.low[0] == pytest.approx(0.25 + 4 * 0.04, abs=0.03)


def test_a_lower_tail_lies_below_its_peak() -> None:
    x = columns(CD45=np.r_[RNG(5).normal(0.75, 0.03, 9000), RNG(6).normal(0.45, 0.05, 4000)])
    params = {"keep": "above", "side": "lower", "distance": 2.0, "search": (0.6, 1.0)}
    _, found = place("tail", params, markers=("CD45",), events=x)
    assert found.values["cut"] == pytest.approx(0.69, abs=0.02)


OUTERMOST = {"keep": "above", "side": "lower", "distance": 2.0, "search": (0.3, 1.0), "peak": "outermost"}


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_the_outermost_peak_is_taken_though_another_is_larger(share: float) -> None:
    x = columns(CD45=two_peaks(0.45, 0.75, share=share))
    _, found = place("tail", OUTERMOST, markers=("CD45",), events=x)
    assert found.values["peak"] == pytest.approx(0.75, abs=0.02)
    assert found.values["cut"] == pytest.approx(0.69, abs=0.03)


def test_the_outermost_peak_can_lie_below_its_tail() -> None:
    x = columns(CD45=two_peaks(0.45, 0.75, share=0.8))
    _, found = place("tail", OUTERMOST | {"keep": "below", "side": "upper"}, markers=("CD45",), events=x)
    assert found.values["peak"] == pytest.approx(0.45, abs=0.02)


@pytest.mark.parametrize(("few", "depth"), [(0.001, 0.7), (0.02, 0.01)])
def test_ripples_and_single_events_beyond_the_tallest_peak_are_no_peak(few: float, depth: float) -> None:
    x = columns(CD45=two_peaks(0.55, 0.70, share=few))
    _, found = place("tail", OUTERMOST | {"max_depth": depth}, markers=("CD45",), events=x)
    assert found.values["peak"] == pytest.approx(0.55, abs=0.02)


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_one_peak_is_the_tallest_and_the_outermost(side: str) -> None:
    x = columns(CD45=RNG(7).normal(0.6, 0.04, 5000))
    cuts = [
        place("tail", OUTERMOST | {"side": side, "peak": peak, "bandwidth": 0.02}, markers=("CD45",), events=x)[1]
        for peak in ("outermost", "tallest")
    ]
    assert cuts[0] == cuts[1]


def test_a_tail_without_events_in_its_range_is_not_found() -> None:
    with pytest.raises(NotFound, match=r"^no events of CD45 in \(0\.6, 1\.0\)$"):
        place(
            "tail",
            {"keep": "above", "distance": 2.0, "search": (0.6, 1.0)},
            markers=("CD45",),
            events=columns(CD45=[0.1]),
        )


def test_a_quantile_cut_is_the_quantile_of_the_parent_moved_by_its_offset() -> None:
    x = columns(CD20=np.linspace(0, 1, 1001))
    gate, found = place("quantile", {"keep": "below", "quantile": 0.9, "offset": 0.05}, markers=("CD20",), events=x)
    assert found.values["cut"] == pytest.approx(0.95, abs=1e-6)
    assert gate == Rectangle(markers=("CD20",), low=(-math.inf,), high=(found.values["cut"],))


# ----------------------------------------------------------------------------------------------------------- reference


def test_a_reference_cut_comes_from_the_named_population_not_from_the_parent() -> None:
    t_cells = columns(CD19=RNG(7).normal(0.24, 0.02, 2000))
    params = {"keep": "above", "population": "t_like", "distance": 5.0}
    one = methods()["reference"]
    assert one.references(one.params.model_validate(params)) == ("t_like",)
    _, found = place(
        "reference", params, markers=("CD19",), events=columns(CD19=[0.9] * 10), references={"t_like": t_cells}
    )
    assert found.values["cut"] == pytest.approx(0.34, abs=0.01)
    assert found.note == "from 2000 events of t_like"


def test_of_quantile_and_distance_the_stricter_one_counts() -> None:
    t_cells = columns(CD19=np.r_[np.zeros(90), np.ones(10)])
    for keep, cut in (("above", 1.0), ("below", 0.0)):
        params = {"keep": keep, "population": "t_like", "distance": 3.0, "quantile": 0.99}
        _, found = place(
            "reference", params, markers=("CD19",), events=columns(CD19=[0.5]), references={"t_like": t_cells}
        )
        assert found.values["cut"] == pytest.approx(cut)


def test_a_factor_fits_linear_scatter_and_an_offset_a_log_scale() -> None:
    lymphocytes = columns(**{"SSC-A": np.full(100, 0.05)})
    params = {"keep": "below", "population": "lymphocytes", "quantile": 0.5, "factor": 3.0, "offset": 0.01}
    _, found = place(
        "reference",
        params,
        markers=("SSC-A",),
        events=columns(**{"SSC-A": [0.1]}),
        references={"lymphocytes": lymphocytes},
    )
    assert found.values["cut"] == pytest.approx(0.16)


def test_too_small_a_reference_is_not_used() -> None:
    with pytest.raises(NotFound, match=r"^reference t_like has 7 events, at least 50 needed$"):
        place(
            "reference",
            {"keep": "above", "population": "t_like", "distance": 3.0},
            markers=("CD19",),
            events=columns(CD19=[0.5]),
            references={"t_like": columns(CD19=np.zeros(7))},
        )


# ------------------------------------------------------------------------------------------------------------- scatter


def pulses(
    singles: int, doublets: int, *, width: bool, seed: int = 8
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Single cells of many sizes, and two cells in one pulse: the area of both, the height of the bigger."""
    rng = RNG(seed)
    single = 10 ** rng.normal(-0.75, 0.12, singles)
    pair = 10 ** rng.normal(-0.75, 0.12, (doublets, 2))
    area = np.r_[single, pair.sum(axis=1)]
    height = np.r_[single, pair.max(axis=1)] * 0.84 * np.exp(rng.normal(0, 0.02, area.size))
    second = area / height * 0.25 if width else height
    return columns(a=area, b=second), np.r_[np.zeros(singles, np.bool_), np.ones(doublets, np.bool_)]


@pytest.mark.parametrize("width", [False, True], ids=["height", "width"])
@pytest.mark.parametrize("doublets", [100, 600, 2000])
def test_the_singlet_band_drops_doublets_even_where_they_outnumber_large_single_cells(
    *, doublets: int, width: bool
) -> None:
    events, double = pulses(20_000, doublets, width=width)
    gate, found = place("singlet_band", {}, markers=("a", "b"), events=events)
    inside = kept(gate, events)
    assert inside[~double].mean() > 0.995
    assert inside[double].mean() < 0.35
    assert found.values["removed"] == pytest.approx((~inside).mean(), abs=0.003)


def test_the_singlet_band_removes_nothing_where_there_are_no_doublets() -> None:
    events, _ = pulses(20_000, 0, width=False)
    gate, _ = place("singlet_band", {}, markers=("a", "b"), events=events)
    assert kept(gate, events).mean() > 0.998


def test_a_singlet_band_that_would_remove_too_much_is_not_placed() -> None:
    rng = RNG(9)
    events = columns(a=rng.random(4000), b=np.where(rng.random(4000) < 0.55, 0.5, rng.random(4000)))
    with pytest.raises(NotFound, match=r"^a singlet band would remove \d+% of the events, more than the 40% allowed$"):
        place("singlet_band", {}, markers=("a", "b"), events=events)


def test_the_debris_line_scales_with_the_reference_cells_and_leans_with_side_scatter() -> None:
    events = columns(f=[0.05, 0.15, 0.15, 0.3], s=[0.0, 0.0, 0.5, 0.5])
    gate, found = place(
        "debris_line",
        {"population": "lymphocytes", "ratio": 0.5, "slope": 0.2},
        markers=("f", "s"),
        events=events,
        references={"lymphocytes": columns(f=np.full(100, 0.2), s=np.zeros(100))},
    )
    assert found.values == pytest.approx({"cut": 0.1, "reference_size": 0.2})
    assert isinstance(gate, Polygon)
    assert kept(gate, events).tolist() == [False, True, False, True]


# ------------------------------------------------------------------------------------------------------------ mixtures


def test_a_mixture_cut_lies_where_two_components_are_equally_likely() -> None:
    x = columns(CD34=two_peaks(0.30, 0.60, share=0.5, sd=0.05))
    _, found = place("mixture_cut", {"keep": "above"}, markers=("CD34",), events=x)
    assert found.values["cut"] == pytest.approx(0.45, abs=0.01)
    assert found.values["separation"] == pytest.approx(6.0, rel=0.05)
    assert found.values["lesser_share"] == pytest.approx(0.5, abs=0.02)


def test_components_that_do_not_separate_give_no_cut() -> None:
    x = columns(CD34=RNG(10).normal(0.4, 0.05, 20_000))
    with pytest.raises(NotFound, match=r"^components of CD34 do not separate: \d\.\d standard deviations apart"):
        place("mixture_cut", {"keep": "above", "min_separation": 3.0}, markers=("CD34",), events=x)


def test_outliers_do_not_widen_a_student_component() -> None:
    x = np.r_[two_peaks(0.30, 0.60, share=0.5, sd=0.04), RNG(11).random(1000)]
    _, found = place("mixture_cut", {"keep": "above", "tail_degrees": 4.0}, markers=("CD34",), events=columns(CD34=x))
    assert found.values["cut"] == pytest.approx(0.45, abs=0.015)


def clouds() -> tuple[dict[str, NDArray[np.float32]], NDArray[np.intp]]:
    rng = RNG(12)
    which = rng.choice(3, 15_000, p=[0.6, 0.3, 0.1])
    centre = np.array([[0.2, 0.2], [0.6, 0.3], [0.4, 0.8]])[which]
    points = centre + rng.normal(0, 0.04, (15_000, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    return columns(x=points[:, 0], y=points[:, 1]), which


def test_a_mixture_ellipse_holds_its_content_of_the_component_nearest_the_target() -> None:
    events, which = clouds()
    params = {"components": 3, "target": (0.42, 0.75), "content": 0.9}
    gate, found = place("mixture_2d", params, markers=("x", "y"), events=events)
    assert isinstance(gate, Ellipsoid)
    inside = kept(gate, events)
    assert inside[which == 2].mean() == pytest.approx(0.9, abs=0.03)
    assert inside[which != 2].mean() < 0.001
    assert found.values["share"] == pytest.approx(0.1, abs=0.01)


def test_without_a_target_the_largest_component_is_taken() -> None:
    events, which = clouds()
    gate, found = place("mixture_2d", {"components": 3, "content": 0.9}, markers=("x", "y"), events=events)
    inside = kept(gate, events)
    assert inside[which == 0].mean() == pytest.approx(0.9, abs=0.03)
    assert inside[which != 0].mean() < 0.001
    assert found.values["share"] == pytest.approx(0.6, abs=0.02)


def test_a_component_with_tails_holds_its_content_too() -> None:
    rng = RNG(21)
    degrees = 4.0
    stretch = np.sqrt(degrees / rng.chisquare(degrees, (20_000, 1)))
    points = 0.5 + 0.03 * rng.standard_normal((20_000, 2)) * stretch
    events = columns(x=points[:, 0], y=points[:, 1])
    params = {"components": 1, "content": 0.9, "tail_degrees": degrees}
    gate, _ = place("mixture_2d", params, markers=("x", "y"), events=events)
    assert kept(gate, events).mean() == pytest.approx(0.9, abs=0.01)


def test_a_component_too_far_from_the_target_is_not_taken() -> None:
    events, _ = clouds()
    with pytest.raises(NotFound, match=r"^no component within 0\.1 of \(0\.9, 0\.9\)$"):
        place("mixture_2d", {"target": (0.9, 0.9), "max_distance": 0.1}, markers=("x", "y"), events=events)


# ---------------------------------------------------------------------------------------------------------------- time


def run(size: int = 30_000, *, ticks: int = 3000, seed: int = 13) -> dict[str, NDArray[np.float32]]:
    rng = RNG(seed)
    time = np.sort(rng.integers(0, ticks, size)).astype(np.float64)
    return columns(Time=time, CD45=rng.normal(0.6, 0.1, size), SSC=rng.normal(0.3, 0.1, size))


def test_a_steady_run_is_kept_whole() -> None:
    events = run()
    gate, found = place("time_stable", {}, markers=("Time", "CD45", "SSC"), events=events)
    assert gate == Intervals(marker="Time", ranges=((-math.inf, math.inf),))
    assert found.values == {"removed": 0.0}


def test_a_disturbed_stretch_leaves_and_nothing_else() -> None:
    events = run()
    disturbed = (events["Time"] >= 1000) & (events["Time"] < 1200)
    events["SSC"][disturbed] += 0.2
    gate, found = place("time_stable", {}, markers=("Time", "CD45", "SSC"), events=events)
    inside = kept(gate, events)
    assert inside[disturbed].mean() < 0.05
    assert inside[~disturbed].mean() > 0.98
    assert found.values["removed"] == pytest.approx((~inside).mean(), abs=1e-9)
    assert "SSC" in found.note
    assert "CD45" not in found.note


def test_the_order_of_events_in_the_file_does_not_matter_to_the_time_gate() -> None:
    events = run(ticks=40)  # a coarse clock: many events a tick
    events["CD45"][(events["Time"] >= 10) & (events["Time"] < 13)] -= 0.3
    order = RNG(14).permutation(events["Time"].size)
    shuffled = {marker: column[order] for marker, column in events.items()}
    one = place("time_stable", {}, markers=("Time", "CD45"), events=events)
    assert place("time_stable", {}, markers=("Time", "CD45"), events=shuffled) == one
    assert one[1].values["removed"] > 0.05


def test_a_clock_drawn_at_random_drops_nothing() -> None:
    events = run()
    events["CD45"][:3000] += 0.3
    RNG(15).shuffle(events["Time"])
    _, found = place("time_stable", {}, markers=("Time", "CD45"), events=events)
    assert found.values == {"removed": 0.0}


@pytest.mark.parametrize(("size", "ticks"), [(0, 10), (1, 10), (200, 10), (5000, 1)])
def test_too_short_a_run_or_a_clock_that_stands_still_is_not_judged(size: int, ticks: int) -> None:
    with pytest.raises(NotFound, match=r"^\d+ events and \d+ stretches of Time: too few to judge$"):
        place("time_stable", {}, markers=("Time", "CD45"), events=run(size, ticks=ticks))


def test_a_run_that_is_disturbed_for_too_long_is_kept_with_the_reason() -> None:
    events = run()
    late = events["Time"] >= 1800
    events["CD45"][late] += np.where(events["Time"][late] % 100 < 50, 0.3, 0.4).astype(np.float32)
    with pytest.raises(NotFound, match=r"lie in shifted stretches, more than the 10% allowed$"):
        place("time_stable", {"max_removed": 0.1}, markers=("Time", "CD45"), events=events)


# ------------------------------------------------------------------------------------------------------------ geometry


def test_numbers_of_a_gate_may_be_borrowed_from_what_another_found() -> None:
    found = {"cd19": {"cut": 0.4}, "cd10": {"cut": 0.5}}
    params = {"low": {"CD19": "cd19.cut"}, "high": {"CD10": "cd10.cut"}}
    gate, _ = place("rectangle", params, markers=("CD19", "CD10"), found=found)
    assert gate == Rectangle(markers=("CD19", "CD10"), low=(0.4, -math.inf), high=(math.inf, 0.5))
    one = methods()["rectangle"]
    assert set(one.borrows(one.params.model_validate(params))) == {"cd19", "cd10"}


def test_a_number_that_was_not_found_says_so() -> None:
    with pytest.raises(GatingError, match=r"^cd19\.cut was not found on this file$"):
        place("interval", {"low": "cd19.cut"}, markers=("CD19",), found={"cd19": {}})


@pytest.mark.parametrize(
    ("quadrant", "low", "high"),
    [
        ("++", (0.3, 0.4), (math.inf, math.inf)),
        ("+-", (0.3, -math.inf), (math.inf, 0.4)),
        ("-+", (-math.inf, 0.4), (0.3, math.inf)),
        ("--", (-math.inf, -math.inf), (0.3, 0.4)),
    ],
)
def test_a_quadrant_keeps_its_corner(quadrant: str, low: tuple[float, float], high: tuple[float, float]) -> None:
    gate, _ = place(
        "quadrant", {"x": 0.3, "y": "cd4.cut", "quadrant": quadrant}, markers=("a", "b"), found={"cd4": {"cut": 0.4}}
    )
    assert gate == Rectangle(markers=("a", "b"), low=low, high=high)


def test_a_polygon_follows_the_value_it_is_shifted_by() -> None:
    params = {"vertices": ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5)), "shift": (0.0, "cd58_ruler.cut")}
    gate, _ = place("polygon", params, markers=("CD34", "CD58"), found={"cd58_ruler": {"cut": 0.25}})
    assert gate == Polygon(markers=("CD34", "CD58"), vertices=((0.0, 0.25), (1.0, 0.25), (1.0, 0.75)))


def test_a_leading_exclamation_mark_complements_an_operand() -> None:
    gate, _ = place("boolean", {"operator": "and", "populations": ("cd3", "!beads")}, markers=())
    assert gate == Boolean(operator="and", operands=(("cd3", False), ("beads", True)))


def test_whole_keeps_everything() -> None:
    assert place("whole", {}, markers=())[0] == Whole()


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("valley", {"keep": "above", "serach": (0.1, 0.2)}),
        ("valley", {"keep": "sideways"}),
        ("interval", {"low": True}),
        ("tail", {"keep": "above", "distance": -1.0}),
        ("polygon", {"vertices": ((0.0, 0.0), (1.0, 1.0))}),
        ("ellipse", {"mean": (0.0, 0.0), "covariance": ((1.0, 2.0), (2.0, 1.0)), "distance_square": 1.0}),
        ("boolean", {"operator": "xor", "populations": ("a",)}),
        ("quadrant", {"x": 0.1, "y": 0.1, "quadrant": "+"}),
        ("mixture_2d", {"target": (0.1, math.nan)}),
    ],
)
def test_parameters_are_typed_and_unknown_ones_refused(method: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        methods()[method].params.model_validate(params)


@pytest.mark.parametrize("method", sorted(name for name, one in methods().items() if one.find is not None))
def test_no_method_touches_the_events_it_looks_at(method: str) -> None:
    rng = RNG(16)
    events = columns(a=rng.random(3000), b=rng.random(3000))
    for column in events.values():
        column.flags.writeable = False
    params: dict[str, dict[str, Any]] = {
        "quantile": {"keep": "above", "quantile": 0.5},
        "reference": {"keep": "above", "population": "p", "distance": 1.0},
        "debris_line": {"population": "p", "ratio": 0.5},
        "tail": {"keep": "above", "distance": 1.0},
        "mixture_2d": {"target": (0.5, 0.5), "max_distance": 1.0},
        "singlet_band": {},
        "time_stable": {},
        **{name: {"denominator": "p", "ruler": "p", "scatter": ("a",)} for name in LISTS},
    }
    markers = ("a", "b") if method in {"singlet_band", "debris_line", "mixture_2d", "time_stable"} else ("a",)
    with suppress(NotFound):
        place(method, params.get(method, {"keep": "above"}), markers=markers, events=events, references={"p": events})
