"""Blasts among wide candidates, found against a reference of normals; the result is a list of events.

The search itself is `flowmrd.gating.detection`. Here the template's parameters and the sample's columns become its
input, and the groups that it found become the population: `seed_and_grow` lists what was accepted, `search_rest` what
the same search left for a person to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from flowmrd.errors import GatingError, PanelMismatchError
from flowmrd.gating.detection.align import Control, on_features
from flowmrd.gating.detection.grow import Group, Search, abundant, regrow, search, settle
from flowmrd.gating.detection.own import OwnPhenotype, OwnSearch, search_own
from flowmrd.gating.detection.storage import Reference
from flowmrd.gating.gates import Gate
from flowmrd.gating.methods import Found, GateMethod, NotFound, Params, Sample
from flowmrd.gating.methods.geometric import Values

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What the search may know besides the sample: the reference, the seed of its draws, the subject's own blasts.

    `targets` are markers that a therapy may have taken from the subject's blasts.
    """

    reference: Reference | None
    seed: int = 0
    own: OwnPhenotype | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Collected:
    """What the search would have seen: columns of the candidates, medians of the controls, size of the denominator."""

    columns: Mapping[str, F32]
    controls: Mapping[tuple[str, str], Control]
    nucleated: int


class Collecting:
    """Instead of a reference: keeps what the search would have seen, for one to be built from."""

    __slots__ = ("collected",)

    def __init__(self) -> None:
        self.collected: Collected | None = None


class SeedAndGrowParams(Params):
    """Search for groups of blasts among the parent's events.

    `optional` are markers that are looked at where the file has them. `scatter` markers are taken relative to the
    median of `ruler`. `align` says which internal control tells how a marker was stained; `controls` which medians are
    compared with the reference's range. `denominator` is the population whose size makes abundances comparable.
    `control_limit` is how far (scaled units) a control may lie from the reference's median, at least; `shift_limit`
    how far the candidates may have to be moved. `least` is the fewest events of a group that is put before a person,
    `accept` the least probability of a group that is accepted, whatever the reference says.
    Kinds of cells that nobody called, are not plainly normal and `abundant_times` as abundant as in all normals but one
    are put before a person where they are `abundant_share` of the denominator together: marrows two weeks into therapy
    hold up to 8 % of such cells without leukemia (patients' models).
    Events of an accepted group inside all ranges of `not_blasts` (aligned display units) have the phenotype of a mature
    cell: they are put before a person, and with them the whole group where they are most of it. `stages` name normal
    cells by ranges of markers, first match first; `directions`
    say where blasts are known to go.
    `own_least` is the fewest accepted blasts that a subject's own phenotype is learnt from; `own_drift` by how much a
    marker of it may move until a later sample (standard deviation, scaled units). `own_moved` is the shift from which
    on a marker has changed, `own_lost` the share of events from which on a therapy's target is lost.
    """

    denominator: str
    ruler: str
    scatter: tuple[str, ...] = Field(default=())
    optional: tuple[str, ...] = Field(default=())
    align: dict[str, str] = Field(default_factory=dict)
    controls: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    min_control: int = Field(default=200, ge=20)
    control_limit: float = Field(default=0.09, gt=0)
    shift_limit: float = Field(default=0.12, gt=0)
    least: int = Field(default=10, ge=5)
    accept: float = Field(default=0.75, ge=0.5, lt=1.0)
    abundant_share: float = Field(default=0.10, gt=0, le=1)
    abundant_times: float = Field(default=6.0, gt=1)
    own_least: int = Field(default=50, ge=20)
    own_drift: float = Field(default=0.03, gt=0)
    own_moved: float = Field(default=0.06, gt=0)
    own_lost: float = Field(default=0.2, gt=0, le=1)
    not_blasts: dict[str, tuple[float, float]] = Field(default_factory=dict)
    stages: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    directions: dict[str, Literal["over", "under", "both"]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_ruler(self) -> SeedAndGrowParams:
        if not self.scatter and not self.align:
            raise ValueError("name markers in scatter or align: without a control no sample can be compared")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlCheck:
    """An internal control against the reference: its aligned median, the reference's, the limit, its events."""

    population: str
    marker: str
    median: float
    expected: float
    limit: float
    events: int

    @property
    def ok(self) -> bool:
        """Whether the control lies within the limit."""
        return abs(self.median - self.expected) <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundGroup:
    """A group, what was decided on it, and its place in the sample's own scaled units.

    `status` is accepted, review or rejected; `probability` the judge's; `middle` and `spread` (d,) the median and
    robust standard deviation of its events on the search's features (aligned).
    """

    status: str
    probability: float
    group: Group
    middle: F64
    spread: F64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detection:
    """What a search found: groups, the events of each answer, and what it rests on.

    `x` (n, d) are the aligned candidates, `ratio` (n,) their log density ratio, `accepted` and `review` (n,) which are
    called; `offsets` what was taken off each feature; `doubts` say where the sample does not fit the reference;
    `unexplained` that cells which are no finding by their looks are too many for a normal marrow, and more than half as
    many as the accepted ones; `own` is the route by the subject's own phenotype, where one is known.
    """

    reference: Reference
    features: tuple[str, ...]
    x: F32
    ratio: F64
    probability: F64
    accepted: NDArray[np.bool_]
    review: NDArray[np.bool_]
    pattern: tuple[int, ...]
    params: SeedAndGrowParams
    rulers: Mapping[str, float]
    groups: tuple[FoundGroup, ...]
    controls: tuple[ControlCheck, ...]
    offsets: Mapping[str, float]
    doubts: tuple[str, ...]
    seed: int
    unexplained: tuple[str, ...] = ()
    own: OwnSearch | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return why no answer of this search stands without a person."""
        return (*self.doubts, *self.unexplained)


def _references(params: SeedAndGrowParams) -> tuple[str, ...]:
    return tuple(dict.fromkeys((params.ruler, *params.align.values(), *params.controls, params.denominator)))


def _columns(params: SeedAndGrowParams) -> tuple[tuple[str, str], ...]:
    pairs = [(params.ruler, marker) for marker in params.scatter]
    pairs += [(population, marker) for marker, population in params.align.items()]
    pairs += [(population, marker) for population, markers in params.controls.items() for marker in markers]
    # One column of the denominator tells its size.
    pairs.append((params.denominator, (*params.scatter, *params.align)[0]))
    return tuple(dict.fromkeys(pairs))


def controls_of(sample: Sample, params: SeedAndGrowParams) -> dict[tuple[str, str], Control]:
    """Return the medians of all controls that the sample has enough events of."""
    out = {}
    for population, marker in _columns(params):
        values = sample.references[population].get(marker)
        fewest = 30 if population == params.ruler else params.min_control
        if values is not None and len(values) >= fewest:
            out[population, marker] = Control(
                population=population, marker=marker, median=float(np.median(values)), events=len(values)
            )
    return out


def aligned(
    sample: Sample,
    params: SeedAndGrowParams,
    features: tuple[str, ...],
    expected: Mapping[tuple[str, str], float],
) -> tuple[F32, dict[str, float]]:
    """Return the parent's events over the features, aligned by controls, and what was taken off each marker."""
    controls = controls_of(sample, params)
    scatter = {}
    for marker in params.scatter:
        ruler = controls.get((params.ruler, marker))
        if ruler is None:
            raise NotFound(f"{params.ruler} has too few events to measure {marker} by")
        scatter[marker] = ruler.median
    offsets = {}
    for marker, population in params.align.items():
        seen = controls.get((population, marker))
        if seen is not None and (population, marker) in expected:
            offsets[marker] = seen.median - expected[population, marker]
    columns = {marker: sample.events[marker] for marker in features if marker in sample.events}
    return on_features(columns, features=features, scatter=scatter, offsets=offsets), offsets


def nucleated_of(sample: Sample, params: SeedAndGrowParams) -> int:
    """Return the size of the denominator."""
    return len(next(iter(sample.references[params.denominator].values())))


def _check_reference(reference: Reference, sample: Sample, params: SeedAndGrowParams) -> tuple[str, ...]:
    """Return the features that sample and reference share.

    Raises
    ------
    PanelMismatchError
        The reference was made for another set of markers.
    """
    known = set(reference.features)
    mine = set(sample.markers)
    required = {marker for marker in known if marker not in reference.optional}
    lacking = sorted(required - mine)
    foreign = sorted(set(sample.markers) - set(params.optional) - known)
    if lacking or foreign:
        parts = []
        if lacking:
            parts.append(f"it needs {', '.join(lacking)}, which this tube lacks")
        if foreign:
            parts.append(f"it does not know {', '.join(foreign)}")
        raise PanelMismatchError(
            f"the reference {reference.name} is of another panel: {'; '.join(parts)}. "
            f"Build one for this tube with `flowmrd reference build`"
        )
    return tuple(marker for marker in reference.features if marker in mine)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """Candidates on the reference's scale.

    `x` (n, d) are the parent's events over the features of `pattern` (indices among the reference's features), `full`
    over all of them; `shift` (d,) is what settling took off besides the controls, `offsets` everything taken off.
    """

    reference: Reference
    seed: int
    pattern: tuple[int, ...]
    full: F32
    shift: F64
    offsets: Mapping[str, float]
    nucleated: int

    @property
    def x(self) -> F32:
        """Return the candidates over the features that sample and reference share."""
        return self.full[:, list(self.pattern)]


def prepare(sample: Sample, params: SeedAndGrowParams) -> Prepared:
    """Bring the parent's events onto the scale of the reference: by internal controls, then by the events themselves.

    Raises
    ------
    NotFound
        No reference, or it was never shown these markers.
    PanelMismatchError
        The reference is of another panel.
    """
    knowledge = sample.knowledge
    if isinstance(knowledge, Collecting):
        controls = controls_of(sample, params)
        if all((params.ruler, marker) in controls for marker in params.scatter):
            knowledge.collected = Collected(
                columns=sample.events, controls=controls, nucleated=nucleated_of(sample, params)
            )
        raise NotFound("no reference: one is being built")
    if not isinstance(knowledge, Knowledge) or knowledge.reference is None:
        raise NotFound("no reference of normals")
    reference = knowledge.reference
    shared = _check_reference(reference, sample, params)
    expected = {(one.population, one.marker): one.median for one in reference.controls}
    x, offsets = aligned(sample, params, reference.features, expected)
    index = {marker: j for j, marker in enumerate(reference.features)}
    mine = {index[marker] for marker in shared}
    usable = [p for p in reference.learnt.calibrations if set(p) <= mine]
    if not usable:
        raise NotFound("the reference was never shown this set of markers")
    pattern = max(usable, key=lambda p: (len(p), tuple(-i for i in p)))
    shift = settle(
        x,
        model=reference.learnt.model,
        calibration=reference.learnt.calibrations[pattern],
        features=pattern,
        seed=knowledge.seed,
    )
    x[:, list(pattern)] -= shift.astype(np.float32)
    for j, moved in zip(pattern, shift, strict=True):
        marker = reference.features[j]
        offsets[marker] = offsets.get(marker, 0.0) + float(moved)
    return Prepared(
        reference=reference,
        seed=knowledge.seed,
        pattern=pattern,
        full=x,
        shift=shift,
        offsets=offsets,
        nucleated=nucleated_of(sample, params),
    )


def _find(sample: Sample, params: SeedAndGrowParams) -> Found:
    prepared = prepare(sample, params)
    reference, pattern, x = prepared.reference, prepared.pattern, prepared.full
    found = search(
        x,
        model=reference.learnt.model,
        calibration=reference.learnt.calibrations[pattern],
        features=pattern,
        nucleated=prepared.nucleated,
        seed=prepared.seed,
    )
    groups = []
    accepted, review = np.zeros(len(x), np.bool_), np.zeros(len(x), np.bool_)
    for group, probability in _judged(found, prepared, params):
        status = "accepted" if probability >= _accept(reference, params) else "rejected"
        mature = _mature(x[group.members], reference.features, params)
        if status == "accepted" and _is_mature(x[group.members], reference.features, params):
            status = "review" if len(group.members) >= params.least else "rejected"
        if status == "rejected" and probability >= reference.learnt.judge.review and len(group.members) >= params.least:
            status = "review"
        if status == "accepted":
            accepted[group.members[~mature]] = True
            review[group.members[mature]] = True
        elif status == "review":
            review[group.members] = True
        groups.append(_found_group(group, status, probability, x))
    abundant_groups = abundant(
        x,
        found,
        ~(accepted | review | _mature(x, reference.features, params)),
        model=reference.learnt.model,
        features=pattern,
        nucleated=prepared.nucleated,
        seed=prepared.seed,
        least_share=params.abundant_share,
        times=params.abundant_times,
    )
    for group in abundant_groups:
        review[group.members] = True
        groups.append(_found_group(group, "review", reference.learnt.judge.probability(group.features), x))
    checks = _control_checks(sample, params, reference, prepared.offsets)
    doubts = [
        f"{c.marker} of {c.population} stays {c.median - c.expected:+.2f} display units from the reference's"
        for c in checks
        if not c.ok
    ]
    doubts += [
        f"{reference.features[j]} of the candidates had to be moved by {moved:+.2f} display units"
        for j, moved in zip(pattern, prepared.shift, strict=True)
        if abs(moved) > params.shift_limit
    ]
    many = sum(len(group.members) for group in abundant_groups)
    unexplained = (
        f"{many:,} candidates ({many / prepared.nucleated:.1%} of {params.denominator}) look almost normal, but no "
        f"normal of the reference has so many of them"
    )
    order = sorted(range(len(groups)), key=lambda i: -len(groups[i].group.members))
    detection = Detection(
        reference=reference,
        features=tuple(reference.features[j] for j in pattern),
        x=prepared.x,
        ratio=found.ratio,
        probability=found.probability,
        accepted=accepted,
        review=review,
        pattern=pattern,
        params=params,
        rulers={
            marker: control.median
            for (population, marker), control in controls_of(sample, params).items()
            if population == params.ruler and marker in params.scatter
        },
        groups=tuple(groups[i] for i in order),
        controls=checks,
        offsets=prepared.offsets,
        doubts=tuple(doubts),
        # Beside many accepted blasts a few that were not called leave the number as it is.
        unexplained=(unexplained,) if many > 0.5 * np.count_nonzero(accepted) else (),
        seed=prepared.seed,
        own=_own(sample.knowledge, prepared, found, tuple(groups[i].group.members for i in order), params),
    )
    kept = sum(1 for g in groups if g.status == "accepted")
    return Found(
        values={"groups": float(kept), "events": float(np.count_nonzero(accepted))},
        extra=detection,
        note=f"reference {reference.name} ({reference.digest[:12]}), {kept} of {len(groups)} groups accepted",
    )


def _found_group(group: Group, status: str, probability: float, x: F32) -> FoundGroup:
    events = x[group.members]
    middle = np.median(events, axis=0)
    return FoundGroup(
        status=status,
        probability=probability,
        group=group,
        middle=middle.astype(np.float64),
        spread=1.4826 * np.median(np.abs(events - middle), axis=0).astype(np.float64),
    )


def _accept(reference: Reference, params: SeedAndGrowParams) -> float:
    return max(reference.learnt.judge.accept, params.accept)


def _judged(found: Search, prepared: Prepared, params: SeedAndGrowParams) -> list[tuple[Group, float]]:
    """Judge each group; an accepted one grows by this sample's own density, where it is still accepted after that.

    What it had is kept: growing may add the paler members of a group, the first search was sure of the others. An event
    that two groups reach for belongs to the one that the sample's density gives it to.
    """
    reference = prepared.reference
    judge, accept = reference.learnt.judge, _accept(reference, params)
    judged = [(group, judge.probability(group.features)) for group in found.groups]
    starts = [i for i, (_, probability) in enumerate(judged) if probability >= accept]
    grown = regrow(
        prepared.full,
        found,
        [judged[i][0] for i in starts],
        model=reference.learnt.model,
        features=prepared.pattern,
        nucleated=prepared.nucleated,
        seed=prepared.seed,
    )
    taken = np.full(len(prepared.full), -1)
    for i, (group, _) in enumerate(judged):
        taken[group.members] = i
    for i, larger in zip(starts, grown, strict=True):
        if larger is None:
            continue
        probability = judge.probability(larger.features)
        if probability >= accept:
            free = (taken[larger.members] < 0) | ~np.isin(taken[larger.members], starts)
            taken[larger.members[free]] = i
            judged[i] = (larger, probability)
    out = []
    for i, (group, probability) in enumerate(judged):
        members = np.flatnonzero(taken == i)
        if members.size:
            out.append((replace(group, members=members), probability))
    return out


def _own(
    knowledge: object,
    prepared: Prepared,
    found: Search,
    groups: tuple[NDArray[np.intp], ...],
    params: SeedAndGrowParams,
) -> OwnSearch | None:
    """Look for the subject's own blasts, where they are known and were aligned by the same reference."""
    if not isinstance(knowledge, Knowledge) or knowledge.own is None:
        return None
    reference = prepared.reference
    if knowledge.own.reference != reference.digest:
        return None
    return search_own(
        prepared.x,
        found.ratio,
        tuple(reference.features[j] for j in prepared.pattern),
        knowledge.own,
        reference.learnt.model.densities[prepared.pattern],
        targets=knowledge.targets,
        drift=params.own_drift,
        seed=prepared.seed,
        groups=groups,
    )


def _is_mature(events: F32, features: tuple[str, ...], params: SeedAndGrowParams) -> bool:
    """Say whether a group as a whole, by its medians, lies in all ranges of a mature cell."""
    return bool(_mature(np.median(events, axis=0)[None], features, params)[0])


def _mature(events: F32, features: tuple[str, ...], params: SeedAndGrowParams) -> NDArray[np.bool_]:
    """Say which events lie in all ranges of a mature cell; a marker that is not there says nothing."""
    inside = np.full(len(events), bool(params.not_blasts))
    for marker, (low, high) in params.not_blasts.items():
        if marker in features:
            values = events[:, features.index(marker)]
            inside &= ((values >= low) & (values < high)) | np.isnan(values)
    return inside


def _control_checks(
    sample: Sample, params: SeedAndGrowParams, reference: Reference, offsets: Mapping[str, float]
) -> tuple[ControlCheck, ...]:
    """Compare the controls with the reference's after the alignment: what it brought over is no doubt any more."""
    seen = controls_of(sample, params)
    checks = []
    for one in reference.controls:
        control = seen.get((one.population, one.marker))
        if control is None or one.marker in params.scatter:
            continue
        checks.append(
            ControlCheck(
                population=one.population,
                marker=one.marker,
                median=control.median - offsets.get(one.marker, 0.0),
                expected=one.median,
                limit=max(params.control_limit, 4.0 * one.sd),
                events=control.events,
            )
        )
    return tuple(checks)


class SearchRestParams(Params):
    """What the search of another population of the same parent left for a person to judge."""

    population: str
    status: Literal["review"] = "review"


def _no_shape(_markers: tuple[str, ...], _params: object, _found: Found, _values: Values) -> Gate:
    raise GatingError("this method lists events; it has no shape")


def _accepted(_params: object, found: Found) -> NDArray[np.bool_]:
    assert isinstance(found.extra, Detection)
    return found.extra.accepted


def _review(_params: object, found: Found) -> NDArray[np.bool_]:
    assert isinstance(found.extra, Detection)
    return found.extra.review


METHODS = (
    GateMethod(
        name="seed_and_grow",
        params=SeedAndGrowParams,
        find=_find,
        build=_no_shape,
        references=_references,
        optional=lambda params: params.optional,
        columns=_columns,
        lists=_accepted,
    ),
    GateMethod(
        name="search_rest",
        params=SearchRestParams,
        build=_no_shape,
        borrows=lambda params: (params.population,),
        lists=_review,
        shares=lambda params: params.population,
    ),
)
