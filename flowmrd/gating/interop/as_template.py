"""A foreign strategy as a flowmrd template: fixed geometry rows over markers, which the lab then owns and edits.

A template compensates every channel with one matrix and knows markers, not detectors. The matrix that most gates use is
taken; gates on another one, ratios, and what depends on them are listed at the head of the document and not dropped
silently.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import MarkerSpec, Role, resolve_panel
from flowmrd.errors import GatingError, Level, PanelMismatchError, QcFinding
from flowmrd.fcs import Channel, ChannelKind, FcsFile
from flowmrd.fcs.fcsfile import channel_kind
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
    gate_markers,
    in_standard_deviations,
)
from flowmrd.gating.interop.display import as_displayed
from flowmrd.gating.interop.document import (
    FROM_FILE,
    UNCOMPENSATED,
    Dimension,
    DimensionSource,
    ForeignGate,
    ForeignStrategy,
    Matrix,
    Scale,
)
from flowmrd.gating.interop.export import native_scale, portable
from flowmrd.gating.template import ROOT

_LINEAR: Mapping[str, float | str] = {"kind": "linear", "T": 1.0, "A": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvertedTemplate:
    """A template's text, what it could not hold, and the matrix that it must be run with.

    `compensation` is `file`, `none`, or `matrix`: the values of `--matrix`, the last with `matrix` (channels, values).
    `names` is path → population of the template; `complete` is false where a gate is left out or only approximated.
    """

    text: str
    findings: tuple[QcFinding, ...]
    compensation: str
    matrix: tuple[tuple[str, ...], NDArray[np.float64]] | None
    names: Mapping[str, str]
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marker:
    name: str
    channel: str
    aliases: tuple[str, ...]
    role: str
    transform: Mapping[str, float | str]


def to_template(strategy: ForeignStrategy, *, template_id: str, fcs: FcsFile | None = None) -> ConvertedTemplate:
    """Turn a strategy into a template.

    Parameters
    ----------
    strategy : of any reader
    template_id : id of the new template; made legal
    fcs : the file it was read for: markers are then named by its labels, and channels that its matrix leaves alone are
        known

    Returns
    -------
    The template's text is accepted by `flowmrd template check`, and gates the same file to the same members.
    """
    carried, notes = portable(as_displayed(_in_seconds(strategy, fcs)), known=native_scale)
    if fcs is None:
        notes = (*notes, *_unsure_of_time(carried))
    findings = [*(one for one in strategy.findings if one.level is not Level.INFO), *notes]
    compensation = _chosen(carried, fcs)
    lost: dict[str, str] = dict.fromkeys(carried.unread, "it is left out")
    for one in carried.gates:
        reason = _unfit(one.gate, carried, compensation, fcs)
        if reason:
            lost[one.path] = reason
    _spread(lost, carried.gates, findings)
    kept = _parents_first([one for one in carried.gates if one.path not in lost])
    used = [carried.dimensions[key] for key in dict.fromkeys(k for one in kept for k in gate_markers(one.gate))]
    markers = _markers(used, carried, fcs, compensation)
    names = _names(kept)
    matrix = _square(carried.matrices[compensation]) if compensation in carried.matrices else None
    how = {FROM_FILE: "file", UNCOMPENSATED: "none"}.get(compensation, "matrix")
    text = _document(carried, template_id, kept, names, markers, findings, how)
    complete = len(names) == len(strategy.gates) and not strategy.unread and not notes
    return ConvertedTemplate(
        text=text, findings=tuple(findings), compensation=how, matrix=matrix, names=names, complete=complete
    )


# ----------------------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfTicks:
    """A scale of ticks over gain, as a scale of seconds."""

    scale: Scale | None
    step: float
    gain: float

    def forward(self, x: NDArray[np.float64], out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Scale seconds; a millionth of a tick is rounding."""
        ticks = np.round(np.asarray(x, np.float64) / self.step, 6) / self.gain
        if self.scale is not None:
            ticks = np.asarray(self.scale.forward(ticks))
        if out is None:
            return ticks
        out[:] = ticks
        return out


def _unsure_of_time(strategy: ForeignStrategy) -> Iterable[QcFinding]:
    """Say of each gate on time in ticks that no file tells how long a tick is."""
    for one in strategy.gates:
        dimensions = [strategy.dimensions[key] for key in gate_markers(one.gate)]
        if any(each.ticks and channel_kind(each.channel) is ChannelKind.TIME for each in dimensions):
            yield QcFinding(
                level=Level.WARNING,
                code="TIME_IN_TICKS",
                message=f"Gate {one.name} is in ticks of the clock and templates gate on seconds: convert with --fcs.",
                where=one.path,
            )


def _in_seconds(strategy: ForeignStrategy, fcs: FcsFile | None) -> ForeignStrategy:
    """Return a strategy whose times are seconds, which is what templates gate on."""
    if fcs is None:
        return strategy
    step = fcs.time_step or 1.0
    dimensions, scales = dict(strategy.dimensions), dict(strategy.scales)
    for key, one in strategy.dimensions.items():
        channel = _channel(one.channel, fcs)
        if not one.ticks or one.ratio is not None or channel is None or channel.kind is not ChannelKind.TIME:
            continue
        name = f"{one.scale or 'linear'} of ticks"
        scale = None if one.scale is None else strategy.scales[one.scale]
        scales[name] = _OfTicks(scale=scale, step=step, gain=channel.gain)
        dimensions[key] = replace(one, scale=name, ticks=False)
    return replace(strategy, dimensions=dimensions, scales=scales)


# --------------------------------------------------------------------------------------------------------- what fits in


def _needs_matrix(dimension: Dimension, strategy: ForeignStrategy, fcs: FcsFile | None) -> bool:
    """Say whether the dimension's values would differ without compensation, or with it."""
    named = {name for matrix in strategy.matrices.values() for name in (*matrix.detectors, *matrix.fluorochromes)}
    if fcs is None:
        return dimension.channel in named or channel_kind(dimension.channel) is ChannelKind.FLUOR
    if dimension.compensation == FROM_FILE and fcs.spillover is None:
        return False
    if fcs.spillover is not None:
        named.update(fcs.spillover.channels)
    return dimension.channel in named or _pnn(dimension.channel, fcs) in named


def _pnn(name: str, fcs: FcsFile) -> str:
    found = _channel(name, fcs)
    return name if found is None else found.pnn


def _channel(name: str, fcs: FcsFile) -> Channel | None:
    for attribute in ("pnn", "pns"):
        hits = [channel for channel in fcs.channels if getattr(channel, attribute) == name]
        if len(hits) == 1:
            return hits[0]
    return None


def _chosen(strategy: ForeignStrategy, fcs: FcsFile | None) -> str:
    """Return the compensation that most gates need; the file's own where none needs any."""
    votes: Counter[str] = Counter()
    for one in strategy.gates:
        wanted = {
            dimension.compensation
            for key in gate_markers(one.gate)
            if _needs_matrix(dimension := strategy.dimensions[key], strategy, fcs)
        }
        votes.update(wanted)
    usable = {
        name: count
        for name, count in votes.items()
        if name not in strategy.matrices or _square(strategy.matrices[name]) is not None
    }
    if not usable:
        return FROM_FILE if fcs is None or fcs.spillover is None else UNCOMPENSATED
    return max(sorted(usable), key=lambda name: usable[name])


def _square(matrix: Matrix) -> tuple[tuple[str, ...], NDArray[np.float64]] | None:
    """Return a matrix as a spillover over its detectors, or nothing where it is none."""
    if len(matrix.detectors) != len(matrix.fluorochromes):
        return None
    if not matrix.inverted:
        return matrix.detectors, matrix.values
    if np.linalg.matrix_rank(matrix.values) < matrix.values.shape[0]:
        return None
    return matrix.detectors, np.asarray(np.linalg.inv(matrix.values), np.float64)


def _unfit(gate: Gate, strategy: ForeignStrategy, compensation: str, fcs: FcsFile | None) -> str:
    """Say why a template cannot hold a gate; empty where it can."""
    for key in gate_markers(gate):
        dimension = strategy.dimensions[key]
        if dimension.ratio is not None:
            return "a template has no dimension that is the ratio of two channels"
        if dimension.compensation != compensation and _needs_matrix(dimension, strategy, fcs):
            return f"it is compensated by {dimension.compensation}, the template by {compensation}"
        if fcs is not None:
            why = DimensionSource(fcs, replace(strategy, dimensions={key: dimension})).why_not(key)
            if why:
                return why
    match gate:
        case Ellipsoid(covariance=covariance):
            matrix = in_standard_deviations(np.asarray(covariance))
            if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix).min() <= 0:
                return "its covariance matrix is not symmetric and positive definite"
            if gate.distance_square <= 0:
                return "an ellipse without extent"
        case Intervals(ranges=ranges) if len(ranges) > 1:
            return "a template has no gate of several stretches"
        case _:
            pass
    return ""


def _spread(lost: dict[str, str], gates: Sequence[ForeignGate], findings: list[QcFinding]) -> None:
    """Leave out what needs a gate that is left out, and say so of each."""
    findings.extend(_finding(one, lost[one.path]) for one in gates if one.path in lost)
    known = {one.path for one in gates}
    moved = True
    while moved:
        moved = False
        for one in gates:
            if one.path in lost:
                continue
            lacking = [path for path in _needs(one) if path and (path in lost or path not in known)]
            if lacking:
                lost[one.path] = f"it needs {', '.join(lacking)}, which is left out"
                findings.append(_finding(one, lost[one.path]))
                moved = True


def _finding(one: ForeignGate, reason: str) -> QcFinding:
    return QcFinding(
        level=Level.WARNING, code="GATE_NOT_EXPORTED", message=f"Gate {one.name} is left out: {reason}.", where=one.path
    )


def _needs(one: ForeignGate) -> tuple[str, ...]:
    operands = tuple(name for name, _ in one.gate.operands) if isinstance(one.gate, Boolean) else ()
    return (one.parent, *operands)


def _parents_first(gates: Sequence[ForeignGate]) -> list[ForeignGate]:
    placed: list[ForeignGate] = []
    known = {""}
    waiting = list(gates)
    while waiting:
        ready = [one for one in waiting if all(path in known for path in _needs(one))]
        if not ready:
            break
        placed.extend(ready)
        known.update(one.path for one in ready)
        waiting = [one for one in waiting if one.path not in known]
    return placed


# ---------------------------------------------------------------------------------------------------- names and markers


def _names(gates: Iterable[ForeignGate]) -> dict[str, str]:
    """Return path → a legal, unique population name near the document's."""
    names: dict[str, str] = {}
    taken = {ROOT}
    for one in gates:
        plain = re.sub(r"\+", " pos ", one.name)
        plain = re.sub(r"(?<=[A-Za-z0-9])[-−](?=$|[\s,;/])", " neg ", plain)
        slug = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_") or "gate"
        slug = slug if slug[0].isalpha() else f"g_{slug}"
        wish, number = slug, 2
        while wish in taken:
            wish = f"{slug}_{number}"
            number += 1
        taken.add(wish)
        names[one.path] = wish
    return names


def _markers(
    used: Sequence[Dimension], strategy: ForeignStrategy, fcs: FcsFile | None, compensation: str
) -> dict[str, _Marker]:
    """Return dimension key → marker; a channel with several scales is a marker each."""
    matrix = strategy.matrices.get(compensation)
    markers: dict[str, _Marker] = {}
    taken: dict[str, _Marker] = {}
    for dimension in used:
        channel = dimension.channel
        if (
            matrix is not None
            and channel in matrix.fluorochromes
            and len(matrix.detectors) == len(matrix.fluorochromes)
        ):
            channel = matrix.detectors[matrix.fluorochromes.index(channel)]
        found = None if fcs is None else _channel(channel, fcs)
        kind = channel_kind(channel) if found is None else found.kind
        role = {ChannelKind.SCATTER: Role.SCATTER, ChannelKind.TIME: Role.TIME}.get(kind, Role.FLUOR)
        label = channel
        aliases: tuple[str, ...] = (channel,)
        if found is not None:
            label = found.pns.strip() if found.pns.strip() and role is Role.FLUOR else found.pnn
            aliases = tuple(dict.fromkeys(filter(None, (found.pns.strip() if role is Role.FLUOR else "", found.pnn))))
        params = dict(_LINEAR)
        if dimension.scale is not None:
            params = dict(strategy.scales[dimension.scale].params())  # type: ignore[attr-defined]
        marker = _Marker(name=label, channel=channel, aliases=aliases, role=str(role), transform=params)
        number = 2
        while marker.name in taken and taken[marker.name] != marker:
            scale = str(params["kind"]) if number == 2 else f"{params['kind']} {number - 1}"
            marker = replace(marker, name=f"{label} ({scale})")
            number += 1
        taken[marker.name] = marker
        markers[dimension.key] = marker
    return markers if fcs is None else _resolved(markers, fcs)


def _resolved(markers: dict[str, _Marker], fcs: FcsFile) -> dict[str, _Marker]:
    """Make sure that each marker finds its channel; where labels mislead, only the exact detector name is accepted."""
    answer = {}
    for key, marker in markers.items():
        spec = MarkerSpec(
            marker=marker.name, aliases=marker.aliases, role=Role(marker.role), transform=dict(marker.transform)
        )
        wanted = _channel(marker.channel, fcs)
        try:
            got = resolve_panel([spec], fcs.channels, tube="new").channels.get(marker.name)
        except PanelMismatchError:
            got = None
        if wanted is not None and (got is None or got.index != wanted.index):
            exact = replace(marker, aliases=(wanted.pnn,), role=str(Role.SCATTER))
            # The marker's own name counts as an alias too.
            marker = replace(exact, name=f"{wanted.pnn} [{marker.name}]" if marker.name != wanted.pnn else marker.name)
        answer[key] = marker
    return answer


# ------------------------------------------------------------------------------------------------------------- the text


def _document(
    strategy: ForeignStrategy,
    template_id: str,
    gates: Sequence[ForeignGate],
    names: Mapping[str, str],
    markers: Mapping[str, _Marker],
    findings: Sequence[QcFinding],
    how: str,
) -> str:
    legal = re.sub(r"[^a-z0-9]+", "-", template_id.lower()).strip("-") or "imported"
    use = {
        "file": "compensated by the file's own matrix: run with --matrix file, which is the default",
        "none": "not compensated: run with --matrix none",
        "matrix": "compensated by a matrix of the document: run with --matrix and the file written beside this one",
    }[how]
    lines = [
        f"# Made from {_plain(strategy.source)} ({strategy.kind}); gates are fixed, as they were drawn there.",
        f"# Values are {use}.",
    ]
    if findings:
        lines += [
            "#",
            "# What the document says that this template does not, or not exactly:",
            *(f"# - {_plain(one.message)}" for one in findings),
        ]
    lines += [
        "",
        "[template]",
        f"id = {_string(legal)}",
        'version = "1.0.0"',
        f"title = {_string(f'Gates of {strategy.source}')}",
        "specimens = []",
        f"purpose = {_string(f'Gates drawn in {strategy.kind}; values are {use}.')}",
        f"sources = [{_string(strategy.source)}]",
    ]
    written: dict[str, _Marker] = {}
    for marker in markers.values():
        if marker.name in written:
            continue
        written[marker.name] = marker
        lines += [
            "",
            "[[channel]]",
            f"marker = {_string(marker.name)}",
            f"aliases = [{', '.join(_string(one) for one in marker.aliases)}]",
            f"role = {_string(marker.role)}",
            f"transform = {{ {', '.join(f'{key} = {_value(value)}' for key, value in marker.transform.items())} }}",
        ]
    if not written:
        lines += ["", "[[channel]]", 'marker = "Time"', 'role = "time"', "required = false"]
        lines.append('transform = { kind = "linear", T = 1.0, A = 0.0 }')
    for one in gates:
        method, channels, params = _row(one.gate, markers, names)
        lines += [
            "",
            "[[population]]",
            f"name = {_string(names[one.path])}",
            *([] if one.name == names[one.path] else [f"title = {_string(one.name)}"]),
            f"parent = {_string(names[one.parent] if one.parent else ROOT)}",
            f"channels = [{', '.join(_string(name) for name in channels)}]",
            f"method = {_string(method)}",
            f"params = {_value(params)}",
            f"purpose = {_string(f'{one.path}, as drawn in {strategy.source}')}",
        ]
    return "\n".join(lines) + "\n"


def _row(
    gate: Gate, markers: Mapping[str, _Marker], names: Mapping[str, str]
) -> tuple[str, tuple[str, ...], dict[str, object]]:
    """Return method, channels and parameters of a gate."""
    match gate:
        case Whole():
            return "whole", (), {}
        case Rectangle(markers=keys, low=low, high=high):
            return _sides([(markers[key].name, lo, hi) for key, lo, hi in zip(keys, low, high, strict=True)])
        case Intervals(marker=key, ranges=ranges):
            lo, hi = ranges[0] if ranges else (math.inf, -math.inf)
            return _sides([(markers[key].name, lo, hi)])
        case Polygon(markers=keys, vertices=vertices):
            shape: dict[str, object] = {"vertices": [list(v) for v in vertices]}
            return (
                "polygon",
                tuple(markers[key].name for key in keys),
                shape | ({"closed": True} if gate.closed else {}),
            )
        case Ellipsoid(markers=keys, mean=mean, covariance=covariance, distance_square=limit):
            params: dict[str, object] = {
                "mean": list(mean),
                "covariance": [list(row) for row in covariance],
                "distance_square": limit,
            }
            return "ellipse", tuple(markers[key].name for key in keys), params
        case Boolean(operator=operator, operands=operands):
            flip = operator == "not"
            populations = [f"{'!' if flag ^ flip else ''}{names[path]}" for path, flag in operands]
            return "boolean", (), {"operator": "or" if operator == "or" else "and", "populations": populations}
        case Nothing():
            first = next(iter(markers.values())).name if markers else "Time"
            return "interval", (first,), {"low": 0.0, "high": 0.0}
        case MemberList():
            raise GatingError("a list of events has no place in a template")


def _sides(sides: Iterable[tuple[str, float, float]]) -> tuple[str, tuple[str, ...], dict[str, object]]:
    ends: dict[str, tuple[float, float]] = {}
    for name, low, high in sides:
        before = ends.get(name, (-math.inf, math.inf))
        ends[name] = (max(low, before[0]), min(high, before[1]))
    for name, (low, high) in ends.items():
        if low == math.inf or high == -math.inf:
            ends[name] = (0.0, 0.0)  # no value is there
    lows = {name: low for name, (low, _) in ends.items() if low > -math.inf}
    highs = {name: high for name, (_, high) in ends.items() if high < math.inf}
    if not lows and not highs:
        return "whole", (), {}
    if len(ends) == 1:
        found = {key: next(iter(side.values())) for key, side in (("low", lows), ("high", highs)) if side}
        return "interval", tuple(ends), dict(found)
    return "rectangle", tuple(ends), {"low": lows, "high": highs}


def _plain(text: str) -> str:
    """Return text that cannot leave a comment line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _string(text: str) -> str:
    # JSON strings are TOML basic strings, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_string(str(key))} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    assert isinstance(value, int | float)
    return repr(float(value))
