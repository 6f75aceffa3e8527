"""What an acquisition says besides its counts: targets on the blasts, internal controls, clean-up, dilution, adequacy.

One more pass over the file gathers what is needed (`gather`); nothing here places a gate or changes a count. Where the
cells contradict what their tube says, no number may stand: `Assessment.withheld` names why, and the call is review.

What only a subject's other acquisitions can tell (the baseline, blood of the same day) is added afterwards
(`flowmrd.followup`), so that it does not depend on the order in which files are analysed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import DataState, EventSource, Role
from flowmrd.cytometry.plausibility import (
    Residual,
    check_age,
    check_leaks,
    check_over_compensation,
    clean_up_verdict,
    leaks,
    over_compensation,
    share_far_below,
)
from flowmrd.cytometry.quality import QualityLimits, load_limits
from flowmrd.errors import Level, QcFinding
from flowmrd.gating.containment import Members, prepare
from flowmrd.gating.engine import GatingResult
from flowmrd.gating.evidence import Antigen, InternalControl, limits_of
from flowmrd.gating.gates import Rectangle
from flowmrd.gating.template import ROOT, GatingTemplate, requires_marker
from flowmrd.quantification.antigen import AntigenIndex, AntigenRules, Presence, antigen_index, load_antigen_rules
from flowmrd.quantification.rare_events import (
    Call,
    Category,
    Hemodilution,
    Negativity,
    classify_hemodilution,
    failed_marrow_checks,
)
from flowmrd.records import AntigenRow, CleanupRow, ControlRow, MeasurementRow

# Of a normal population no more events are kept than medians and percentiles need.
SAMPLE_EVENTS = 100_000
# Between a population and the one whose events it is gathered without; no name holds a tab.
_WITHOUT = "\t"
# So many events have a median that others can be counted from.
_FEWEST_AGAINST = 100
# Marrow dilution is a question to marrow, and where the specimen is not stated.
_MARROW = {"", "BM"}
_NEITHER = {"given", "not_given"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the worklist says of therapy and handling.

    `therapies` holds (target, given | not_given | not_stated) for each target that the worklist knows; empty where
    there is no worklist. `age_hours` is the time from collection to staining.
    """

    therapies: tuple[tuple[str, str], ...] = ()
    age_hours: float | None = None
    pull_number: int | None = None

    def therapy(self, target: str) -> str:
        """Say whether therapy directed at a target was given."""
        return dict(self.therapies).get(target, "not_stated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Which acquisition the rows belong to."""

    subject: str
    visit: str
    acquisition: str
    specimen_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What was found. `withheld` holds the reasons, in words, why no result may stand; empty where there is none."""

    antigens: tuple[AntigenRow, ...]
    cleanup: tuple[CleanupRow, ...]
    internal_controls: tuple[ControlRow, ...]
    hemodilution: str
    findings: tuple[QcFinding, ...]
    withheld: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gathered:
    """Linear values of populations (population → marker → (n,)), and what each clean-up gate took of each phenotype.

    `removed` maps (gate, phenotype) to (events before the gate, of them removed).
    """

    values: Mapping[str, Mapping[str, NDArray[np.float32]]]
    removed: Mapping[tuple[str, str], tuple[int, int]]


def assess(
    key: Key,
    request: Request,
    template: GatingTemplate,
    gating: GatingResult,
    source: EventSource,
    *,
    limits: QualityLimits | None = None,
) -> Assessment:
    """Look at the cells of a gated file and say what speaks for and against its result.

    Parameters
    ----------
    key, request : the acquisition, and what the worklist says of it
    template, gating, source : the strategy, its populations on this file, and the file's events
    limits : by default the shipped ones
    """
    limits = limits or load_limits()
    gathered = gather(source, gating, template)
    wanted = [*_adequacy(template, gating, limits)]
    controls, control_findings = _internal_controls(template, gating, source, gathered)
    cleanup, cleanup_findings = _clean_up(template, gating, gathered, limits)
    antigens, antigen_findings = _antigens(key, request, template, source, gathered)
    hemodilution, dilution_findings = _dilution(key, template, gating, request)
    findings = (
        *wanted,
        *control_findings,
        *_compensation(template, source, gathered, limits),
        *cleanup_findings,
        *check_age(request.age_hours, _viable_share(template, gating), limits=limits.adequacy),
        *dilution_findings,
        *antigen_findings,
        *_limits_of_the_lineage(template, gating, request),
    )
    return Assessment(
        antigens=antigens,
        cleanup=cleanup,
        internal_controls=controls,
        hemodilution=hemodilution,
        findings=findings,
        withheld=_withheld(findings) if is_mrd(template) else (),
    )


def is_mrd(template: GatingTemplate) -> bool:
    """Say whether a template looks for residual disease."""
    return any(one.kind == "mrd" for one in template.measurement)


# -------------------------------------------------------------------------------------------------------- one more pass


def gather(source: EventSource, gating: GatingResult, template: GatingTemplate) -> Gathered:
    """Read the values that the checks need, in one pass over the file.

    Populations whose antigen is measured are read whole, others evenly thinned to `SAMPLE_EVENTS`.
    """
    wanted, whole = _wanted(source, template, gating)
    strides = {name: 1 if name in whole else -(-_count(gating, name) // SAMPLE_EVENTS) or 1 for name in wanted}
    seen = dict.fromkeys(wanted, 0)
    parts: dict[tuple[str, str], list[NDArray[np.float32]]] = {(n, m): [] for n, ms in wanted.items() for m in ms}
    boxes = _boxes(source, gating, template)
    gates = [row for row in template.population if row.kind == "clean_up"] if boxes else []
    removed = {(row.name, name): [0, 0] for row in gates for name in boxes}
    markers = {marker for _, marker in parts} | {m for box in boxes.values() for m in box.markers}
    if not markers:
        return Gathered(values={}, removed={})
    ordered = tuple(marker for marker in source.markers if marker in markers)
    tests = {name: prepare(box, source.transforms, event_count=source.event_count) for name, box in boxes.items()}
    for start, block in source.blocks(ordered):
        mask = _Masks(gating, start, block.size)
        for name, members in wanted.items():
            rows = np.flatnonzero(mask.of(name))
            offset, seen[name] = seen[name], seen[name] + rows.size
            rows = rows[-offset % strides[name] :: strides[name]]
            if rows.size:
                for marker in members:
                    parts[name, marker].append(block.linear(marker, rows).astype(np.float32))
        if gates:
            everything = Members(mask.of(ROOT))
            found = {name: test(block, everything) for name, test in tests.items()}
            for row in gates:
                before, after = mask.of(row.parent), mask.of(row.name)
                for name, inside in found.items():
                    held = inside & before
                    pair = removed[row.name, name]
                    pair[0] += int(np.count_nonzero(held))
                    pair[1] += int(np.count_nonzero(held & ~after))
    values: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in wanted}
    for name, marker in list(parts):
        column = parts.pop((name, marker))
        values[name][marker] = np.concatenate(column) if column else np.empty(0, np.float32)
    return Gathered(values=values, removed={pair: (n, k) for pair, (n, k) in removed.items()})


class _Masks:
    """Memberships of one block, each unpacked once."""

    __slots__ = ("_gating", "_masks", "_size", "_start")

    def __init__(self, gating: GatingResult, start: int, size: int) -> None:
        self._gating, self._start, self._size = gating, start, size
        self._masks: dict[str, NDArray[np.bool_]] = {}

    def of(self, name: str) -> NDArray[np.bool_]:
        """Return the members of a population."""
        if name not in self._masks:
            population, _, without = name.partition(_WITHOUT)
            mask = self._gating.memberships.mask(population, self._start, self._size)
            self._masks[name] = mask & ~self.of(without) if without else mask
        return self._masks[name]


def _wanted(
    source: EventSource, template: GatingTemplate, gating: GatingResult
) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Return population → markers to read, and the populations to read whole."""
    wanted: dict[str, dict[str, None]] = {}
    whole: set[str] = set()
    for antigen in _followed(source, template):
        whole.add(antigen.population)
        for name in (antigen.population, antigen.negative, antigen.normal):
            if name is not None:
                wanted.setdefault(name, {})[antigen.marker] = None
    for control in template.internal_control:
        for name in filter(None, (_cells(control, template, gating), control.against)):
            wanted.setdefault(name, {}).update(dict.fromkeys(m for m in control.markers if m in source.markers))
    quality = template.quality
    if template.internal_control and quality.denominator:
        fluorescent = _fluorescent(source, template)
        wanted.setdefault(quality.denominator, {}).update(dict.fromkeys(fluorescent))
        if quality.negatives:
            wanted.setdefault(quality.negatives, {}).update(dict.fromkeys(fluorescent))
    return {name: tuple(markers) for name, markers in wanted.items()}, whole


def _cells(control: InternalControl, template: GatingTemplate, gating: GatingResult) -> str:
    """Return the name under which the events of a control are gathered."""
    name = template.quality.denominator
    if control.without is None or name is None:
        return control.population
    if gating.counts[control.without] < control.without_from * max(gating.counts[name], 1):
        return control.population
    return f"{control.population}{_WITHOUT}{control.without}"


def _count(gating: GatingResult, name: str) -> int:
    """Return the events of a population, or of one without another."""
    population, _, without = name.partition(_WITHOUT)
    if not without:
        return gating.memberships.root_count if population == ROOT else gating.counts[population]
    return int(np.count_nonzero(gating.memberships.mask(population) & ~gating.memberships.mask(without)))


def _followed(source: EventSource, template: GatingTemplate) -> tuple[Antigen, ...]:
    return tuple(one for one in template.antigen if one.marker in source.markers)


def _fluorescent(source: EventSource, template: GatingTemplate) -> tuple[str, ...]:
    return tuple(spec.marker for spec in template.channel if spec.role is Role.FLUOR and spec.marker in source.markers)


def _negative_markers(template: GatingTemplate, source: EventSource) -> tuple[str, ...]:
    """Return the markers that the template expects to be negative on its internal negatives."""
    return tuple(
        dict.fromkeys(
            marker
            for control in template.internal_control
            if control.population == template.quality.negatives
            for marker in control.high
            if marker in source.markers and marker not in control.low
        )
    )


def _boxes(source: EventSource, gating: GatingResult, template: GatingTemplate) -> dict[str, Rectangle]:
    """Return the phenotypes as gates; one whose marker or borrowed cut this file lacks is left out."""
    found = {name: placed.found for name, placed in gating.placed.items()}
    boxes = {}
    for one in template.quality.phenotypes:
        low, high = limits_of(one.low, found), limits_of(one.high, found)
        if low is None or high is None or not set(one.markers) <= set(source.markers):
            continue
        boxes[one.name] = Rectangle(
            markers=one.markers,
            low=tuple(low.get(marker, -np.inf) for marker in one.markers),
            high=tuple(high.get(marker, np.inf) for marker in one.markers),
        )
    return boxes


# ------------------------------------------------------------------------------------------------------------- adequacy


def _adequacy(template: GatingTemplate, gating: GatingResult, limits: QualityLimits) -> list[QcFinding]:
    """Say where there is nothing to judge: no cells, no living ones, no normal lymphocyte."""
    quality, least = template.quality, limits.adequacy
    findings: list[QcFinding] = []
    if not is_mrd(template):
        return findings
    name = quality.denominator or quality.viable
    if name is not None and gating.counts[name] < least.viable_events_least:
        text = f"{gating.counts[name]:,} events in {name}; expected at least {least.viable_events_least:,}."
        findings.append(QcFinding(level=Level.VIOLATION, code="TOO_FEW_EVENTS", message=text, where=name))
    share = _viable_share(template, gating)
    if share is not None and share < least.viable_share_least:
        text = (
            f"{100 * share:.1f} % of single events are viable; below {100 * least.viable_share_least:g} % the sample "
            "is dead."
        )
        findings.append(QcFinding(level=Level.VIOLATION, code="SAMPLE_DEAD", message=text, where=quality.viable or ""))
    if quality.internal and all(gating.counts[one] < least.internal_events_least for one in quality.internal):
        counted = ", ".join(f"{gating.counts[one]:,} {one}" for one in quality.internal)
        text = (
            f"No normal lymphocytes to judge the staining by ({counted}); expected at least "
            f"{least.internal_events_least} of one kind."
        )
        findings.append(QcFinding(level=Level.VIOLATION, code="NO_INTERNAL_CONTROL", message=text, where=""))
    elif quality.negatives and gating.counts[quality.negatives] < least.negatives_least:
        text = (
            f"{gating.counts[quality.negatives]} events in {quality.negatives}; every marrow has some. Without them "
            "nothing says what is negative."
        )
        where = quality.negatives
        findings.append(QcFinding(level=Level.VIOLATION, code="NO_INTERNAL_CONTROL", message=text, where=where))
    return findings


def _viable_share(template: GatingTemplate, gating: GatingResult) -> float | None:
    viable, singlets = template.quality.viable, template.quality.singlets
    if viable is None or singlets is None or not gating.counts[singlets]:
        return None
    return gating.counts[viable] / gating.counts[singlets]


# ---------------------------------------------------------------------------------------------------- internal controls


def _internal_controls(
    template: GatingTemplate, gating: GatingResult, source: EventSource, gathered: Gathered
) -> tuple[tuple[ControlRow, ...], list[QcFinding]]:
    rows: list[ControlRow] = []
    findings: list[QcFinding] = []
    unseen: dict[str, None] = {}
    found = {name: placed.found for name, placed in gating.placed.items()}
    for control in template.internal_control:
        low, high = limits_of(control.low, found), limits_of(control.high, found)
        if low is None or high is None or not set(control.beside) <= set(source.markers):
            continue
        limited = dict.fromkeys((*control.low, *control.high))
        markers = [marker for marker in limited if marker in source.markers]
        pairs = [pair for pair in control.above.items() if set(pair) <= set(source.markers)]
        if not (markers or pairs) or (control.together and len(markers) < len(limited)):
            continue
        cells = _cells(control, template, gating)
        least = {cells: control.min_events, **control.needs}
        if control.against is not None:
            least.setdefault(control.against, min(control.min_events, _FEWEST_AGAINST))
        seen = all(_count(gating, name) >= events for name, events in least.items())
        judged = [_judged(control, cells, marker, low, high, source, gathered, seen=seen) for marker in markers]
        judged += [_ordered(control, cells, *pair, source, gathered, seen=seen) for pair in pairs]
        broken = [row for row in judged if row.verdict == "FAIL"]
        if control.together and len(broken) < len(judged):
            judged = [replace(row, verdict="PASS") if row.verdict == "FAIL" else row for row in judged]
            broken = []
        rows.extend(judged)
        if not seen:
            unseen[control.population] = None
        if broken:
            findings.append(_broken(control, broken))
    if unseen:
        text = (
            f"Too few events of {', '.join(unseen)}: what they would prove of the reagents must be shown by a control "
            "stained on the same day."
        )
        findings.append(QcFinding(level=Level.INFO, code="CONTROL_NOT_SEEN", message=text, where=""))
    return tuple(rows), findings


def _judged(
    control: InternalControl,
    cells: str,
    marker: str,
    low: Mapping[str, float],
    high: Mapping[str, float],
    source: EventSource,
    gathered: Gathered,
    *,
    seen: bool,
) -> ControlRow:
    least, most = low.get(marker), high.get(marker)
    scale = source.transforms[marker]
    values = scale.forward(gathered.values[cells][marker].astype(np.float64))
    if control.against is not None and seen:
        values = values - np.median(scale.forward(gathered.values[control.against][marker].astype(np.float64)))
    beyond: float | None = None
    if values.size:
        below = float(np.mean(values < least)) if least is not None else 0.0
        above = float(np.mean(values > most)) if most is not None else 0.0
        beyond = max(below, above)
    verdict = "UNSEEN" if not seen or beyond is None else "FAIL" if beyond > control.share else "PASS"
    return ControlRow(
        population=control.population,
        against=control.against or "",
        marker=marker,
        events=int(values.size),
        median=float(np.median(values)) if values.size else None,
        low=least,
        high=most,
        beyond=beyond,
        verdict=verdict,
        purpose=" ".join(control.purpose.split()),
    )


def _ordered(
    control: InternalControl,
    cells: str,
    marker: str,
    other: str,
    source: EventSource,
    gathered: Gathered,
    *,
    seen: bool,
) -> ControlRow:
    """Judge cell by cell whether a marker lies above another one; the row holds their difference."""
    values = gathered.values[cells]
    brighter, dimmer = (source.transforms[one].forward(values[one].astype(np.float64)) for one in (marker, other))
    difference = brighter - dimmer
    beyond = float(np.mean(difference <= 0.0)) if difference.size else None
    verdict = "UNSEEN" if not seen or beyond is None else "FAIL" if beyond > control.share else "PASS"
    return ControlRow(
        population=control.population,
        against="",
        marker=f"{marker} above {other}",
        events=int(difference.size),
        median=float(np.median(difference)) if difference.size else None,
        low=0.0,
        high=None,
        beyond=beyond,
        verdict=verdict,
        purpose=" ".join(control.purpose.split()),
    )


def _broken(control: InternalControl, rows: Sequence[ControlRow]) -> QcFinding:
    parts = []
    for row in rows:
        assert row.median is not None
        assert row.beyond is not None
        limit = " and ".join(
            text
            for text in (
                f"at least {row.low:.2f}" if row.low is not None else "",
                f"at most {row.high:.2f}" if row.high is not None else "",
            )
            if text
        )
        parts.append(
            f"{row.marker} has its median at {row.median:.2f} and {100 * row.beyond:.1f} % beyond; expected {limit}"
        )
    name = control.population if control.against is None else f"{control.population} against {control.against}"
    text = (
        f"{name}: {'; '.join(parts)}. {' '.join(control.purpose.split())} A reagent is missing or "
        "exchanged, a channel is named wrongly, the compensation is wrong, or the gate of these cells is misplaced."
    )
    return QcFinding(level=Level.VIOLATION, code="CONTROL_OUT_OF_RANGE", message=text, where=control.population)


def _compensation(
    template: GatingTemplate, source: EventSource, gathered: Gathered, limits: QualityLimits
) -> tuple[QcFinding, ...]:
    name = template.quality.denominator
    # Values that came on a display scale say nothing about linear residuals.
    if not template.internal_control or name is None or source.state is DataState.SCALED:
        return ()
    columns = {marker: gathered.values[name][marker] for marker in _fluorescent(source, template)}
    scaled = {
        marker: source.transforms[marker].forward(values.astype(np.float64)) for marker, values in columns.items()
    }
    negatives = template.quality.negatives
    far = {}
    for marker in _negative_markers(template, source) if negatives else ():
        share = share_far_below(
            columns[marker], gathered.values[negatives or ""][marker], rsd=limits.over_compensation.far_below_rsd
        )
        if share is not None:
            far[marker] = share
    residuals = over_compensation(columns, scaled, limits=limits.over_compensation)
    left: tuple[Residual, ...] = ()
    if negatives:
        cells = {marker: gathered.values[negatives][marker] for marker in columns}
        shown = {
            marker: source.transforms[marker].forward(values.astype(np.float64)) for marker, values in cells.items()
        }
        lacking = tuple(marker for marker in template.quality.lacking if marker in cells)
        left = leaks(cells, shown, lacking, limits=limits.leak)
    return (
        *check_over_compensation(residuals, far, limits=limits.over_compensation),
        *check_leaks(left, limits=limits.leak),
    )


# ------------------------------------------------------------------------------------------------------------- clean-up


def _clean_up(
    template: GatingTemplate, gating: GatingResult, gathered: Gathered, limits: QualityLimits
) -> tuple[tuple[CleanupRow, ...], list[QcFinding]]:
    counts = {ROOT: gating.memberships.root_count, **gating.counts}
    parents = {row.name: row.parent for row in template.population}
    rows: list[CleanupRow] = []
    findings: list[QcFinding] = []
    for (gate, phenotype), (events, removed) in gathered.removed.items():
        whole = counts[parents[gate]]
        gone = whole - counts[gate]
        verdict = clean_up_verdict(events, removed, whole, gone, limits=limits.clean_up)
        rows.append(
            CleanupRow(
                gate=gate,
                phenotype=phenotype,
                events=events,
                removed_events=removed,
                all_events=whole,
                removed_all_events=gone,
                verdict=verdict,
            )
        )
        if verdict != "PASS":
            most = limits.clean_up.fail if verdict == "FAIL" else limits.clean_up.warn
            text = (
                f"{gate} removed {removed:,} of {events:,} {phenotype} events ({100 * removed / events:.0f} %), but "
                f"{100 * gone / whole:.1f} % of all; expected at most {100 * most:.0f} %. Cells of interest may be "
                "among them: look at the gate."
            )
            level = Level.VIOLATION if verdict == "FAIL" else Level.WARNING
            findings.append(QcFinding(level=level, code="CLEANUP_REMOVED_PHENOTYPE", message=text, where=gate))
    return tuple(rows), findings


# ------------------------------------------------------------------------------------------------------------- dilution


def _dilution(
    key: Key, template: GatingTemplate, gating: GatingResult, request: Request
) -> tuple[str, tuple[QcFinding, ...]]:
    if key.specimen_type not in _MARROW:
        return "", ()
    unplaced = {name for name, placed in gating.placed.items() if placed.method == "nothing"}
    shares = marrow_shares(template, gating.counts, unplaced)
    if shares is None:
        return "", ()
    status, text = dilution(shares, bound=None)
    findings = [dilution_finding(status, text)]
    if request.pull_number is not None and request.pull_number > 1:
        text = f"The specimen is pull {request.pull_number} of the aspirate; MRD asks for the first."
        findings.append(QcFinding(level=Level.INFO, code="LATER_PULL", message=text, where="pull_number"))
    return str(status), tuple(findings)


def marrow_shares(
    template: GatingTemplate, counts: Mapping[str, int], unplaced: Collection[str]
) -> dict[str, float] | None:
    """Return the shares of the cell types that tell marrow from blood; `None` where the tube has none or no cells.

    Parameters
    ----------
    counts : events by population
    unplaced : populations that could not be evaluated: they are not rare but unknown
    """
    quality = template.quality
    if not is_mrd(template) or not quality.marrow or quality.denominator is None or not counts.get(quality.denominator):
        return None
    whole = counts[quality.denominator]
    return {kind: counts[name] / whole for kind, name in quality.marrow.items() if name not in unplaced}


def dilution(shares: Mapping[str, float], *, bound: float | None) -> tuple[Hemodilution, str]:
    """Judge dilution by blood (3.5) from cell types of the marrow, and say why.

    Parameters
    ----------
    shares : cell type of the hemodilution rules → share of nucleated cells
    bound : upper bound of the blood fraction from mature T cells, where blood of the same day was measured
    """
    failed = failed_marrow_checks(shares)
    status = classify_hemodilution(blood=None, bound=bound, failed_checks=len(failed))
    listed = ", ".join(f"{kind.replace('_', ' ')} {100 * share:.2g} %" for kind, share in shares.items())
    rare = ", ".join(kind.replace("_", " ") for kind in failed)
    text = f"Dilution by blood: {status}. Of nucleated cells {listed}"
    text = f"{text}; too rare for undiluted marrow: {rare}." if rare else f"{text}; none is too rare for marrow."
    if bound is not None:
        text = f"{text} By the T cells of the same day's blood at most {100 * bound:.0f} % come from blood."
    return status, text


def dilution_finding(status: Hemodilution, text: str) -> QcFinding:
    """Make a finding of `dilution`; a warning where it is suspected."""
    level = Level.WARNING if status is Hemodilution.SUSPECT else Level.INFO
    return QcFinding(level=level, code="HEMODILUTION", message=text, where="")


# ------------------------------------------------------------------------------------------------------------- antigens


def _antigens(
    key: Key,
    request: Request,
    template: GatingTemplate,
    source: EventSource,
    gathered: Gathered,
) -> tuple[tuple[AntigenRow, ...], list[QcFinding]]:
    rules = load_antigen_rules()
    rows: list[AntigenRow] = []
    findings: list[QcFinding] = []
    for one in _followed(source, template):
        index = antigen_index(
            gathered.values[one.population][one.marker],
            gathered.values[one.negative][one.marker],
            None if one.normal is None else gathered.values[one.normal][one.marker],
            rules=rules,
        )
        row = _antigen_row(key, request, one, index)
        rows.append(row)
        if index.threshold is None:
            text = (
                f"{one.marker}: {one.negative} has too few events for a threshold (at least "
                f"{rules.threshold.min_negatives}); the antigen is not judged."
            )
            findings.append(QcFinding(level=Level.INFO, code="ANTIGEN_NOT_JUDGED", message=text, where=one.population))
            continue
        if not index.events:
            continue
        findings.append(antigen_finding(row))
        findings.extend(_antigen_hints(row, template, rules))
    findings.extend(_switch_hint(rows, rules))
    return tuple(rows), findings


def _antigen_row(key: Key, request: Request, one: Antigen, index: AntigenIndex) -> AntigenRow:
    therapy = request.therapy(one.marker)
    hidden = therapy == "given" and (index.presence in {Presence.NEGATIVE, Presence.PARTIAL} or bool(index.dim))
    return AntigenRow(
        subject=key.subject,
        visit=key.visit,
        acquisition=key.acquisition,
        antigen=one.marker,
        population=one.population,
        events=index.events,
        positive_events=index.positive_events,
        share=index.share,
        ci_low=index.ci_low,
        ci_high=index.ci_high,
        status="" if index.presence is None else f"{one.marker}{index.presence}",
        strength="" if index.dim is None else "dim" if index.dim else "normal",
        indicative="Y" if index.indicative else "N",
        mfi=index.mfi,
        positive_mfi=index.positive_mfi,
        threshold=index.threshold,
        negative_mfi=index.negative_mfi,
        normal_mfi=index.normal_mfi,
        normal_from=key.acquisition if index.normal_mfi is not None else "",
        baseline="",
        baseline_mfi=None,
        ratio=None,
        therapy=therapy,
        masked="possible" if hidden else "",
    )


def antigen_finding(row: AntigenRow) -> QcFinding:
    """Say a row of `antigens` in one sentence."""
    assert row.share is not None
    assert row.ci_low is not None
    assert row.ci_high is not None
    first = (
        f"{row.status}: {100 * row.share:.0f} % ({100 * row.ci_low:.0f} to {100 * row.ci_high:.0f} %) of "
        f"{row.events:,} {row.population} events lie above {row.threshold:.0f}, the 99th percentile of the internal "
        f"negatives; median {row.mfi:.0f}"
    )
    parts = [first]
    if row.strength == "dim":
        parts.append(f"dim: the positive part has {row.positive_mfi:.0f}, normal cells {row.normal_mfi:.0f}")
    if row.ratio is not None:
        parts.append(f"{row.ratio:.2g} of the baseline ({row.baseline})")
    if row.indicative == "Y":
        parts.append("indicative, too few events for a firm status")
    text = f"{'; '.join(parts)}."
    return QcFinding(level=Level.INFO, code="ANTIGEN_STATUS", message=text, where=row.population)


def _antigen_hints(row: AntigenRow, template: GatingTemplate, rules: AntigenRules) -> list[QcFinding]:
    findings: list[QcFinding] = []

    def add(level: Level, code: str, text: str) -> None:
        findings.append(QcFinding(level=level, code=code, message=text, where=row.population))

    if row.masked:
        text = (
            f"Therapy directed at {row.antigen} was given: bound antibody or a receptor on the same cell can hide "
            f"{row.antigen}; a low signal alone does not prove its loss."
        )
        add(Level.INFO, "ANTIGEN_MASKED", text)
    elif row.therapy not in _NEITHER and row.status != f"{row.antigen}{Presence.POSITIVE}":
        text = f"Whether therapy directed at {row.antigen} was given is not stated: it can hide the antigen."
        add(Level.INFO, "THERAPY_NOT_STATED", text)
    targets = {one.therapy_target for one in template.measurement if one.therapy_target}
    lost = row.status == f"{row.antigen}{Presence.NEGATIVE}"
    if lost and row.antigen in targets and row.events >= rules.status.indicative_events:
        text = f"A call of {row.status} needs a second reader: laboratories differ most where the antigen is lost."
        add(Level.WARNING, "SECOND_READER", text)
    if requires_marker(template, row.population, row.antigen):
        text = f"{row.population} is reached by {row.antigen} only: events that lost it are not among them."
        add(Level.INFO, "ANTIGEN_GATED", text)
    return findings


def _switch_hint(rows: Sequence[AntigenRow], rules: AntigenRules) -> list[QcFinding]:
    """Hint at a lineage switch where many blasts have lost every target of the tube (2.1)."""
    lost = [
        row
        for row in rows
        if row.status == f"{row.antigen}{Presence.NEGATIVE}" and row.events >= rules.lineage_switch.min_events
    ]
    if len(rows) < 2 or len(lost) < len(rows):
        return []
    text = rules.wording.switch_possible.format(targets=" and ".join(row.antigen for row in lost))
    return [QcFinding(level=Level.WARNING, code="LINEAGE_SWITCH_POSSIBLE", message=text, where=lost[0].population)]


def _limits_of_the_lineage(template: GatingTemplate, gating: GatingResult, request: Request) -> list[QcFinding]:
    """State what a B-lineage gate cannot see, and the therapies as given on the request (2.5)."""
    targets = [one for one in template.measurement if one.kind == "mrd" and one.therapy_target]
    if not targets:
        return []
    findings = []
    quality = template.quality
    whole = gating.counts[quality.denominator] if quality.denominator else 0
    if quality.normal and whole:
        counts = [(name, gating.counts[name]) for name in quality.normal]
        listed = ", ".join(f"{events:,} {name} ({100 * events / whole:.2g} %)" for name, events in counts)
        text = f"Normal cells of the lineage: {listed} of {whole:,} {quality.denominator}."
        findings.append(QcFinding(level=Level.INFO, code="NORMAL_B_CELLS", message=text, where=""))
    if request.therapies:
        listed = ", ".join(f"{target} {state.replace('_', ' ')}" for target, state in request.therapies)
        text = f"Therapies by target, as on the request: {listed}."
        findings.append(QcFinding(level=Level.INFO, code="THERAPY_HISTORY", message=text, where=""))
    if request.therapy(targets[0].therapy_target) != "not_given":
        text = load_antigen_rules().wording.switch_not_excluded
        where = targets[0].numerator
        findings.append(QcFinding(level=Level.INFO, code="LINEAGE_SWITCH_NOT_EXCLUDED", message=text, where=where))
    return findings


# ------------------------------------------------------------------------------------------------------ what may stand

# Findings beside which no result stands, in words for the sentence.
_WITHHOLDING = {
    "TOO_FEW_EVENTS": "too few viable events",
    "SAMPLE_DEAD": "hardly any viable events",
    "NO_INTERNAL_CONTROL": "no normal lymphocytes to judge the staining by",
    "CONTROL_OUT_OF_RANGE": "internal controls are not as they must be",
    "OVER_COMPENSATED": "the compensation does not fit the sample",
    "COMPENSATION_RESIDUAL": "the compensation does not fit the sample",
    "CLEANUP_REMOVED_PHENOTYPE": "clean-up removed cells of interest",
}


def _withheld(findings: Sequence[QcFinding]) -> tuple[str, ...]:
    codes = {finding.code for finding in findings if finding.level is Level.VIOLATION}
    return tuple(dict.fromkeys(text for code, text in _WITHHOLDING.items() if code in codes))


def withhold(row: MeasurementRow, sentence: str, reasons: Sequence[str]) -> tuple[MeasurementRow, str]:
    """Take the call, the value and the proof of negativity from a result that no reader may take for one.

    Counts, fraction and interval stay for the reviewer. Without reasons the row is handed back as it is.
    """
    if not reasons or row.category == "NOT_DONE":
        return row, sentence
    category = row.category
    if category in {Category.UNDETECTED, Category.UNDETECTED_INSUFFICIENT}:
        category = str(Category.UNDETECTED_GATING_INADEQUATE)
    held = replace(
        row,
        category=category,
        mrd_neg_1e4=str(Negativity.NOT_EVALUABLE) if row.mrd_neg_1e4 else "",
        call=str(Call.REVIEW),
        value=None,
        status="needs_check",
    )
    return held, f"No {row.analyte} result without review: {'; '.join(reasons)}"


_DILUTED = "; hemodiluted sample suspected"


def with_dilution(sentence: str, hemodilution: str) -> str:
    """Add or take away the words that a suspected dilution demands beside a result (3.5)."""
    plain = sentence.removesuffix(_DILUTED)
    return f"{plain}{_DILUTED}" if hemodilution == Hemodilution.SUSPECT else plain
