"""Laws of the simulator: for any legal parameters the file, the labels and the truth agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.simulation import (
    ChannelSet,
    Parameters,
    PhenotypeDraw,
    TargetStatus,
    labels_frame,
    load_profile,
    simulate,
    tube_ids,
)

SEEDS = st.integers(0, 2**63)


@st.composite
def cases(draw: st.DrawFn) -> Parameters:
    tube = draw(st.sampled_from(tube_ids()))
    profile = load_profile(tube).profile
    return Parameters(
        tube=tube,
        events=draw(st.integers(1, 400)),
        scenario=draw(st.sampled_from(sorted(profile.scenario))),
        blasts=draw(st.none() | st.floats(0, 1)) if profile.leukemia else draw(st.sampled_from([None, 0.0])),
        phenotype=draw(st.sampled_from(PhenotypeDraw)),
        left_out=draw(st.sampled_from([(), ("CD38",), ("CD10 up", "CD34 down")])) if profile.leukemia else (),
        drift=draw(st.floats(0, 0.5)),
        cd19=draw(st.sampled_from(TargetStatus)),
        batch=draw(st.floats(0, 4)),
        lab=draw(st.text(max_size=4)),
        car=draw(st.floats(0, 1)) if profile.car else 0.0,
        beads=draw(st.sampled_from([None, True, False])) if profile.beads else None,
        fmo=draw(st.booleans()) if profile.car else False,
        channels=draw(st.sampled_from(ChannelSet)),
        patient_seed=draw(st.none() | SEEDS),
    )


@given(parameters=cases(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_file_labels_and_truth_agree(parameters: Parameters, seed: int) -> None:
    case = simulate(parameters, seed)
    assert case.values.shape == (len(case.channels), parameters.events)
    assert np.isfinite(case.values).all()
    assert case.values.min() >= -900
    assert (np.diff(case.channel("Time")) >= 0).all()
    frame = labels_frame(case.labels)
    assert frame.height == parameters.events
    assert (frame["event"].to_numpy() == np.arange(parameters.events)).all()
    on_course = frame["stage"] != ""
    assert (on_course == frame["maturation"].is_not_null()).all()
    assert frame["maturation"].drop_nulls().is_between(0, 1).all()
    assert frame.filter(on_course)["kind"].is_in(["cell"]).all()
    assert frame.filter("blast")["stage"].is_in(list(case.labels.stages)).all()
    assert not {kind.split()[0] for kind in parameters.left_out} & {
        marker
        for marker, shift in ((case.truth["immunophenotype"] or {}).get("shifts") or {}).items()
        if marker in parameters.left_out or f"{marker} {'up' if shift > 0 else 'down'}" in parameters.left_out
    }
    assert frame["blast"].sum() == case.truth["mrd"]["blasts"]
    assert (frame["kind"] == "cell").sum() == case.truth["mrd"]["denominator"]
    assert sum(case.truth["events"].values()) == parameters.events
    assert abs(sum(case.truth["composition"].values()) - 1) < 1e-9
    assert min(case.truth["composition"].values()) >= 0


@given(parameters=cases(), seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_equal_input_gives_equal_output(parameters: Parameters, seed: int) -> None:
    one, two = simulate(parameters, seed), simulate(parameters, seed)
    assert one.values.tobytes() == two.values.tobytes()
    assert one.truth == two.truth


@given(seed=SEEDS, events=st.integers(2, 300))
@settings(max_examples=15, deadline=None)
def test_the_number_of_events_changes_neither_patient_nor_instrument(seed: int, events: int) -> None:
    one = simulate(Parameters(events=events, blasts=0.5), seed)
    two = simulate(replace(Parameters(events=events, blasts=0.5), events=events * 3), seed)
    for key in ("immunophenotype", "composition", "detector_gain", "spillover_true", "marker_shift_log10", "clog"):
        assert one.truth[key] == two.truth[key]
    assert (one.spillover.matrix == two.spillover.matrix).all()
