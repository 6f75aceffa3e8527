"""Acquisition results as the pipeline hands them over, made from Gaussian populations: input of the report's tests."""

# ruff: noqa: E501 -- the strategy is a table, one gate a line

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import Level, QcFinding
from flowmrd.gating.gates import gate_to_json, member_list
from flowmrd.records import (
    BINS,
    Aberration,
    AcquisitionResult,
    Axis,
    BlastGroup,
    DetectionRecord,
    GateShape,
    MarginCount,
    MeasurementRow,
    PlacedGate,
    PlotPanel,
    PopulationRow,
    TimeSeries,
)

Events = dict[str, NDArray[np.float64]]
Mask = NDArray[np.bool_]

LINEAR: Mapping[str, float | str] = {"kind": "linear", "T": 262144.0}
LOGICLE: Mapping[str, float | str] = {"kind": "logicle", "T": 262144.0, "W": 0.9, "M": 4.5, "A": 0.0}
AXES: Mapping[str, tuple[str, Mapping[str, float | str]]] = {
    "Time": ("Time", {"kind": "linear", "T": 620.0}),
    "FSC-A": ("FSC-A", LINEAR),
    "FSC-H": ("FSC-H", LINEAR),
    "SSC-A": ("SSC-A", LINEAR),
    "SYTO41": ("Pacific Blue-A", LOGICLE),
    "viability": ("BV605-A", LOGICLE),
    "CD19": ("PE-Cy7-A", LOGICLE),
    "CD45": ("APC-Cy7-A", LOGICLE),
    "CD10": ("APC-A", LOGICLE),
    "CD20": ("V500-A", LOGICLE),
    "CD34": ("PerCP-Cy5-5-A", LOGICLE),
    "CD38": ("Alexa Fluor 700-A", {"kind": "arcsinh", "T": 262144.0, "M": 4.5, "A": 1.0}),
    "CD58": ("FITC-A", LOGICLE),
    "CD66c+CD123": ("PE-A", {"kind": "log", "T": 262144.0, "M": 4.0}),
}
# mean of each population in scaled units: FSC-A SSC-A SYTO viab CD19 CD45 CD10 CD20 CD34 CD38 CD58 CD66c
_COLUMNS = (
    "FSC-A",
    "SSC-A",
    "SYTO41",
    "viability",
    "CD19",
    "CD45",
    "CD10",
    "CD20",
    "CD34",
    "CD38",
    "CD58",
    "CD66c+CD123",
)
_POPULATIONS: Mapping[str, tuple[tuple[float, ...], float, float]] = {
    "granulocyte": ((0.52, 0.62, 0.62, 0.22, 0.22, 0.66, 0.42, 0.24, 0.22, 0.45, 0.40, 0.62), 0.055, 0.46),
    "lymphocyte": ((0.30, 0.12, 0.60, 0.20, 0.22, 0.86, 0.24, 0.24, 0.22, 0.40, 0.42, 0.25), 0.045, 0.18),
    "monocyte": ((0.50, 0.30, 0.62, 0.24, 0.24, 0.78, 0.26, 0.26, 0.24, 0.58, 0.60, 0.45), 0.05, 0.08),
    "erythroid": ((0.20, 0.10, 0.66, 0.22, 0.20, 0.30, 0.22, 0.22, 0.22, 0.35, 0.30, 0.22), 0.05, 0.12),
    "mature_b": ((0.29, 0.11, 0.60, 0.20, 0.70, 0.85, 0.26, 0.78, 0.22, 0.40, 0.40, 0.25), 0.04, 0.07),
    "hematogone": ((0.32, 0.12, 0.61, 0.20, 0.62, 0.62, 0.66, 0.42, 0.34, 0.74, 0.38, 0.24), 0.06, 0.02),
    "plasma": ((0.45, 0.20, 0.62, 0.22, 0.55, 0.58, 0.26, 0.24, 0.22, 0.95, 0.62, 0.26), 0.03, 0.003),
    "debris": ((0.08, 0.08, 0.24, 0.45, 0.22, 0.25, 0.22, 0.22, 0.22, 0.25, 0.25, 0.22), 0.06, 0.067),
}
_BLAST = (0.36, 0.15, 0.62, 0.20, 0.60, 0.50, 0.84, 0.30, 0.62, 0.52, 0.70, 0.55)


def axis(marker: str, *, low: float = 0.0, high: float = 1.0) -> Axis:
    channel, transform = AXES[marker]
    return Axis(marker=marker, channel=channel, transform=transform, lo=low, hi=high)


def make_events(normal: int, blasts: int, *, seed: int = 7) -> tuple[Events, Mask]:
    """Draw events in scaled units, and say which are blasts."""
    rng = np.random.default_rng(seed)
    counts = [round(normal * share) for _, _, share in _POPULATIONS.values()]
    parts = [
        rng.normal(mean, spread, (count, len(_COLUMNS)))
        for (mean, spread, _), count in zip(_POPULATIONS.values(), counts, strict=True)
    ]
    parts.append(rng.normal(_BLAST, 0.035, (blasts, len(_COLUMNS))))
    values = np.concatenate(parts)
    size = values.shape[0]
    is_blast = np.zeros(size, np.bool_)
    is_blast[size - blasts :] = True
    order = rng.permutation(size)
    values, is_blast = values[order], is_blast[order]
    events = {name: values[:, i] for i, name in enumerate(_COLUMNS)}
    events["Time"] = np.sort(rng.uniform(0.01, 0.97, size))
    doublet = rng.random(size) < 0.05
    events["FSC-H"] = events["FSC-A"] * np.where(doublet, 0.62, 0.94) + rng.normal(0, 0.008, size)
    return events, is_blast


def density(events: Events, mask: Mask, x: Axis, y: Axis) -> NDArray[np.uint32]:
    ix = np.clip((events[x.marker][mask] - x.lo) / (x.hi - x.lo) * BINS, 0, BINS - 1).astype(np.int64)
    iy = np.clip((events[y.marker][mask] - y.lo) / (y.hi - y.lo) * BINS, 0, BINS - 1).astype(np.int64)
    return np.bincount(iy * BINS + ix, minlength=BINS * BINS).reshape(BINS, BINS).astype(np.uint32)


def ellipse(cx: float, cy: float, rx: float, ry: float, *, tilt: float = 0.0, points: int = 60) -> NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, points, endpoint=False)
    x, y = rx * np.cos(t), ry * np.sin(t)
    return np.array([cx + x * math.cos(tilt) - y * math.sin(tilt), cy + x * math.sin(tilt) + y * math.cos(tilt)])


def box(x0: float, x1: float, y0: float, y1: float) -> NDArray[np.float64]:
    return np.array([[x0, x1, x1, x0], [y0, y0, y1, y1]])


def inside(outline: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> Mask:
    result = np.zeros(x.shape, np.bool_)
    px, py = (np.where(np.isinf(row), np.sign(row) * 1e3, row) for row in outline)
    for i in range(px.size):
        j = (i + 1) % px.size
        if py[i] != py[j]:
            result ^= ((py[i] > y) != (py[j] > y)) & (x < (px[j] - px[i]) * (y - py[i]) / (py[j] - py[i]) + px[i])
    return result


# (parent, x, y, [(population, kind, outline, method, purpose)])
_INF = math.inf
STRATEGY: Sequence[tuple[str, str, str, Sequence[tuple[str, str, NDArray[np.float64], str, str]]]] = (
    ("root", "Time", "SSC-A", [("time_ok", "interval-x", box(0.03, 0.95, -_INF, _INF), "time_stability", "Keep stable flow.")]),
    ("time_ok", "FSC-A", "FSC-H",
     [("singlets", "polygon", np.array([[0.02, 0.98, 0.98, 0.02], [-0.02, 0.85, 0.98, 0.06]]), "singlet_band",
       "Drop coincident events before any density-based gate.")]),
    ("singlets", "SYTO41", "SSC-A", [("nucleated", "rectangle", box(0.42, _INF, -_INF, 0.95), "density_valley", "Nucleated cells.")]),
    ("nucleated", "FSC-A", "viability", [("viable", "interval-y", box(-_INF, _INF, -_INF, 0.38), "tail", "Live cells.")]),
    ("viable", "CD19", "SSC-A", [("cd19", "rectangle", box(0.42, _INF, -_INF, 0.36), "reference_gate", "B cells.")]),
    ("viable", "CD45", "SSC-A", [
        ("lymphocytes", "polygon", np.array([[0.72, 1.0, 1.0, 0.72], [0.0, 0.0, 0.22, 0.22]]), "mixture", "Lymphocytes."),
        ("monocytes", "ellipse", ellipse(0.78, 0.31, 0.11, 0.10, tilt=0.4), "mixture", "Monocytes."),
        ("granulocytes", "ellipse", ellipse(0.66, 0.62, 0.15, 0.16), "mixture", "Granulocytes."),
        ("cd45_low", "polygon", np.array([[0.36, 0.68, 0.68, 0.36], [0.02, 0.02, 0.27, 0.27]]), "polygon", "Candidate blasts."),
        ("nrbc", "rectangle", box(0.1, 0.345, 0.0, 0.26), "rectangle", "Erythroid precursors."),
    ]),
    ("viable", "CD10", "CD34", [
        ("cd10neg_cd34pos", "quadrant", box(-_INF, 0.48, 0.45, _INF), "quadrant", "Candidates without CD19."),
        ("cd10pos_cd34pos", "quadrant", box(0.48, _INF, 0.45, _INF), "quadrant", "Candidates without CD19."),
        ("cd10neg_cd34neg", "quadrant", box(-_INF, 0.48, -_INF, 0.45), "quadrant", "Candidates without CD19."),
        ("cd10pos_cd34neg", "quadrant", box(0.48, _INF, -_INF, 0.45), "quadrant", "Candidates without CD19."),
        ("b_lineage", "boolean", np.zeros((2, 0)), "boolean", "Either route."),
    ]),
    ("cd19", "CD20", "CD10", [
        ("mature_b", "polygon", np.array([[0.60, 0.99, 0.99, 0.66, 0.60], [0.05, 0.05, 0.42, 0.50, 0.40]]), "polygon", "Mature B."),
        ("hematogones", "ellipse", ellipse(0.42, 0.66, 0.19, 0.13, tilt=-0.3), "mixture", "Normal precursors."),
    ]),
    ("cd19", "CD38", "CD45", [("plasma_cells", "rectangle", box(0.86, _INF, 0.40, 0.80), "rectangle", "Plasma cells.")]),
    ("cd19", "CD58", "CD10", [("blasts", "ellipse", ellipse(0.70, 0.84, 0.12, 0.10), "mixture", "Aberrant precursors.")]),
    ("blasts", "CD66c+CD123", "CD38", []),
    ("blasts", "CD45", "CD34", []),
)  # fmt: skip


def make_result(
    name: str,
    *,
    blasts: int,
    normal: int = 60_000,
    subject: str = "PSN-0042",
    visit: str = "D28",
    category: str = "QUANTIFIABLE",
    qc: str = "PASS",
    findings: Sequence[QcFinding] = (),
    lost_cd19: bool = False,
) -> AcquisitionResult:
    """Gate drawn events by the strategy above and wrap everything up as the pipeline does."""
    events, is_blast = make_events(normal, blasts)
    if lost_cd19:
        events["CD19"][is_blast] -= 0.38
    masks: dict[str, Mask] = {"root": np.ones(is_blast.size, np.bool_)}
    paths = {"root": "root"}
    panels, populations = (
        [],
        [PopulationRow(population="root", path="root", parent="", events=is_blast.size, parent_events=is_blast.size)],
    )
    placed = []
    # The blast gate catches the drawn blasts only, so that a case has exactly the count it asks for.
    for parent, x_name, y_name, gates in STRATEGY:
        for population, _, outline, _, _ in gates:
            x, y = events[x_name], events[y_name]
            if population == "b_lineage":
                masks[population] = masks["cd10pos_cd34pos"] | masks["cd10pos_cd34neg"]
            elif population == "blasts":
                masks[population] = masks[parent] & is_blast
            else:
                masks[population] = masks[parent] & inside(outline, x, y)
            paths[population] = f"{paths[parent]}/{population}"
    target = masks["blasts"]
    for parent, x_name, y_name, gates in STRATEGY:
        x_axis, y_axis = axis(x_name), axis(y_name)
        shapes = []
        parent_events = int(masks[parent].sum())
        for population, kind, outline, method, purpose in gates:
            count = int(masks[population].sum())
            shapes.append(
                GateShape(
                    population=population, path=paths[population], kind=kind, outline=outline, events=count,
                    parent_events=parent_events, method=method, detail="",
                )
            )  # fmt: skip
            populations.append(
                PopulationRow(
                    population=population,
                    path=paths[population],
                    parent=parent,
                    events=count,
                    parent_events=parent_events,
                )
            )
            placed.append(
                _placed(population, paths[population], parent, kind, outline, method, purpose, (x_name, y_name))
            )
        keep = target & masks[parent]
        panels.append(
            PlotPanel(
                parent=parent, parent_path=paths[parent], parent_events=parent_events, x=x_axis, y=y_axis,
                density=density(events, masks[parent], x_axis, y_axis), gates=tuple(shapes),
                target=np.array([events[x_name][keep], events[y_name][keep]], np.float32), target_name="blasts",
                purpose=gates[0][4] if gates else "Look at the blasts.",
            )
        )  # fmt: skip
    measurement, sentence = _measurement(name, subject, visit, int(target.sum()), int(masks["viable"].sum()), category)
    return AcquisitionResult(
        acquisition=name, subject=subject, visit=visit, study_day=28, specimen_type="BM", tube="ball-mrd-10c",
        template_version="1.0.0", template_digest=hashlib.sha256(b"template").hexdigest(), file_name=f"{name}.fcs",
        file_sha256=hashlib.sha256(name.encode()).hexdigest(), events=is_blast.size, qc=qc,
        compensation="file: $SPILLOVER, 10 channels, condition number 1.9", populations=tuple(populations),
        gates=tuple(placed), measurements=(measurement,), wording=(sentence,), findings=tuple(findings),
        panels=tuple(panels), time=_time(events), margins=_margins(is_blast.size),
        markers={marker: channel for marker, (channel, _) in AXES.items()},
    )  # fmt: skip


def _placed(
    population: str, path: str, parent: str, kind: str, outline: NDArray[np.float64], method: str, purpose: str,
    markers: tuple[str, str],
) -> PlacedGate:  # fmt: skip
    gate: Mapping[str, object]
    if kind == "boolean":
        gate = {"kind": "boolean", "operator": "or", "operands": [{"population": "cd10pos_cd34pos", "complement": False},
                                                                  {"population": "cd10pos_cd34neg", "complement": False}]}  # fmt: skip
    elif kind in {"polygon", "ellipse"}:
        gate = {"kind": "polygon", "markers": list(markers), "vertices": outline.T.tolist()}
    else:
        low = [None if math.isinf(v) else v for v in outline.min(axis=1)]
        high = [None if math.isinf(v) else v for v in outline.max(axis=1)]
        gate = {"kind": "rectangle", "markers": list(markers), "low": low, "high": high}
    bound = "upper bound 0.38" if population == "viable" else ""
    fallback = "reference population too small; fixed cut" if population == "cd19" else ""
    return PlacedGate(
        population=population, path=path, parent=parent, method=method, purpose=purpose, channels=markers,
        parameters={"tolerance": 0.15, "bounds": [0.2, 0.6]}, gate=gate, found={"cut": 0.4231}, bound_hit=bound,
        fallback=fallback, reason="valley between two peaks" if method == "density_valley" else "",
    )  # fmt: skip


def _measurement(
    name: str, subject: str, visit: str, blasts: int, denominator: int, category: str
) -> tuple[MeasurementRow, str]:
    fraction = blasts / denominator
    lod, lloq = 20 / denominator, 50 / denominator
    half = 1.96 * math.sqrt(max(blasts, 1)) / denominator
    row = MeasurementRow(
        subject=subject, visit=visit, acquisition=name, analyte="MRD", numerator="blasts", numerator_events=blasts,
        denominator="viable", denominator_events=denominator, fraction=fraction, ci_low=max(0.0, fraction - half),
        ci_high=fraction + half, lod_fraction=lod, lloq_fraction=lloq, category=category,
        mrd_neg_1e4="N" if fraction >= 1e-4 else "NE", call="positive" if blasts >= 20 else "not_detected",
        value=100 * fraction if category == "QUANTIFIABLE" else None, unit="%", status="computed",
    )  # fmt: skip
    sentences = {
        "QUANTIFIABLE": f"MRD {100 * fraction:.2g}% of nucleated cells (95% CI {100 * (row.ci_low or 0):.2g}–{100 * (row.ci_high or 0):.2g}%)",
        "UNDETECTED_INSUFFICIENT": f"No abnormal population in {denominator} cells; sensitivity insufficient "
        f"(LOD {100 * lod:.2g}%), MRD below 0.01% not excluded",
        "DETECTED_BELOW_LLOQ": f"MRD detected, below LLOQ (< {100 * lloq:.2g}%)",
    }
    return row, sentences[category]


def _time(events: Events) -> TimeSeries:
    seconds = events["Time"] * 620.0
    edges = np.linspace(0, 620, 201)
    counts, _ = np.histogram(seconds, edges)
    rate = counts / np.diff(edges)
    rate[120:128] *= 0.25
    flagged = np.zeros(200, np.bool_)
    flagged[120:128] = True
    flagged[0:2] = True
    channels = tuple(channel for channel, _ in AXES.values() if channel != "Time")
    rng = np.random.default_rng(3)
    medians = rng.normal(0.2 + 0.05 * np.arange(len(channels)), 0.004, (200, len(channels)))
    medians[120:128, 4] += 0.12
    return TimeSeries(
        seconds=(edges[1:] + edges[:-1]) / 2, rate=rate, channels=channels, medians=medians, flagged=flagged,
        time_source="Time channel × $TIMESTEP",
    )  # fmt: skip


def _margins(events: int) -> tuple[MarginCount, ...]:
    return tuple(
        MarginCount(channel=channel, marker=marker, low_events=13 * i, high_events=i * i * 31, events=events)
        for i, (marker, (channel, _)) in enumerate(AXES.items())
        if marker != "Time"
    )


def failed_result(name: str) -> AcquisitionResult:
    """An acquisition whose file was refused: findings only."""
    return AcquisitionResult(
        acquisition=name, subject="PSN-0042", visit="M6", study_day=180, specimen_type="BM", tube="ball-mrd-10c",
        template_version="1.0.0", template_digest=hashlib.sha256(b"template").hexdigest(), file_name=f"{name}.fcs",
        file_sha256=hashlib.sha256(name.encode()).hexdigest(), events=0, qc="FAIL", compensation="none", populations=(),
        gates=(), measurements=(), wording=(),
        findings=(QcFinding(level=Level.VIOLATION, code="DATA_TRUNCATED", where="DATA",
                            message="DATA holds 90,000 events, $TOT says 120,000; nothing was computed"),),
        panels=(), time=None, margins=(), markers={},
    )  # fmt: skip


def make_results() -> tuple[AcquisitionResult, ...]:
    """Many target events, three, none, and a refused file."""
    findings = (
        QcFinding(
            level=Level.INFO,
            code="COMPENSATION_FROM_FILE",
            message="Compensated with the file's $SPILLOVER.",
            where="$SPILLOVER",
        ),
        QcFinding(
            level=Level.WARNING,
            code="MARGIN_EVENTS",
            message="1.9% of events at the upper end of CD58 (limit 1%).",
            where="FITC-A",
        ),
        QcFinding(
            level=Level.WARNING,
            code="GATE_BOUND_HIT",
            message="The cut of viable was held at its upper bound 0.38.",
            where="viable",
        ),
    )
    low = QcFinding(
        level=Level.VIOLATION,
        code="DENOMINATOR_TOO_SMALL",
        message="49,000 viable events; 200,000 are needed for 1e-4.",
        where="viable",
    )
    return (
        make_result("D0_relapse", blasts=34_000, visit="D0", findings=findings, qc="WARN"),
        make_result(
            "D28_post", blasts=3, visit="D28", category="UNDETECTED_INSUFFICIENT", findings=(*findings, low), qc="FAIL"
        ),
        make_result("M3 (tube 2) #1", blasts=0, visit="M3", category="UNDETECTED_INSUFFICIENT"),
        make_result("M12_lowpos", blasts=36, visit="M12", category="DETECTED_BELOW_LLOQ", subject="PSN-0007"),
        failed_result("M6_truncated"),
    )


# Groups of a search: status and events, by the answer that they make.
_SEARCHES: Mapping[str, Sequence[tuple[str, int]]] = {
    "positive": (("accepted", 300),),
    "not_detected": (),
    "review": (("rejected", 80), ("accepted", 40), ("review", 25)),
}
_FEATURES = ("SSC-A", "CD45", "CD10", "CD20", "CD34", "CD38")
_PATH = (
    (0.12, 0.55, 0.72, 0.30, 0.45, 0.75),
    (0.11, 0.70, 0.62, 0.45, 0.24, 0.72),
    (0.11, 0.85, 0.28, 0.78, 0.22, 0.42),
)
_GROUPS: Mapping[str, tuple[float, ...]] = {
    "accepted": (0.15, 0.50, 0.88, 0.30, 0.62, 0.48),
    "review": (0.14, 0.58, 0.80, 0.36, 0.50, 0.60),
    "rejected": (0.11, 0.72, 0.60, 0.48, 0.25, 0.70),
}


def make_detection(call: str, denominator: int) -> DetectionRecord:
    """What a search found that ends in an answer: groups over normals on the path."""
    rng = np.random.default_rng(11)
    spread = 0.03
    normals = np.concatenate([rng.normal(place, spread, (500, len(_FEATURES))) for place in _PATH])
    groups, events, owner = [], [], []
    for k, (status, count) in enumerate(_SEARCHES[call]):
        values = rng.normal(_GROUPS[status], spread, (count, len(_FEATURES)))
        events.append(values)
        owner.append(np.full(count, k))
        aberrations = (
            ("CD45", 0.0, 0.0, 0.0, False), ("CD10", 0.20, 0.90, 5.1, True), ("CD20", 0.002, 0.01, 0.04, False),
            ("CD34", -0.1, None, -2.6, False), ("CD38", -0.15, -0.66, -3.0, True),
        )  # fmt: skip
        groups.append(
            BlastGroup(
                name=f"group {k + 1}", status=status, events=count, fraction=count / denominator,
                probability={"accepted": 0.996, "review": 0.41, "rejected": 0.03}[status], stage="hematogone, CD20-",
                normals_most=1.2e-5, middle=dict(zip(_FEATURES, map(float, np.median(values, axis=0)), strict=True)),
                aberrations=tuple(
                    Aberration(
                        marker=marker, shift=shift, shift_log10=decades, deviations=deviations,
                        direction="over" if shift > 0 else "under", aberrant=aberrant,
                    )
                    for marker, shift, decades, deviations, aberrant in aberrations
                ),
            )
        )  # fmt: skip
    empty = np.empty((0, len(_FEATURES)))
    return DetectionRecord(
        reference="house", reference_sha256="ab" * 32, simulated=True, normal_marrows=24, diagnoses=9, seed=5,
        features=_FEATURES, groups=tuple(groups),
        doubts=("CD45 of t_like is +0.12 display units from the reference's",) if call == "review" else (),
        normals=normals.astype(np.float32), events=np.concatenate([empty, *events]).astype(np.float32),
        owner=np.concatenate([np.empty(0), *owner]).astype(np.int16),
    )  # fmt: skip


def make_searched(call: str) -> AcquisitionResult:
    """An acquisition whose blasts a search found: lists of events in place of outlines, on a plot of their own."""
    blasts = sum(count for status, count in _SEARCHES[call] if status == "accepted")
    waiting = sum(count for status, count in _SEARCHES[call] if status == "review")
    result = make_result(
        call, blasts=blasts, visit=call, category="QUANTIFIABLE" if blasts else "UNDETECTED_INSUFFICIENT"
    )
    # The gates before the blasts lose some of those drawn; the search found what it was asked to.
    first = result.measurements[0]
    row = replace(first, numerator_events=blasts, fraction=blasts / (first.denominator_events or 1))
    found = make_detection(call, row.denominator_events or 1)
    accepted = sum(group.status == "accepted" for group in found.groups)
    note = f"reference house (abababababab), {accepted} of {len(found.groups)} groups accepted"
    old = next(panel for panel in result.panels if any(gate.population == "blasts" for gate in panel.gates))
    blast_gate = next(gate for gate in old.gates if gate.population == "blasts")
    listed = replace(
        blast_gate, kind="members", outline=np.empty((2, 0)), events=blasts, method="seed_and_grow",
        detail=f"list of events found by seed_and_grow; {note}",
    )  # fmt: skip
    path = blast_gate.path.replace("blasts", "blast_candidates")
    rest = replace(
        listed, population="blast_candidates", path=path, events=waiting, method="search_rest",
        detail="list of events found by search_rest",
    )  # fmt: skip
    panels = tuple(
        replace(panel, gates=(listed, rest), x=axis("CD38")) if panel is old else panel for panel in result.panels
    )
    members = gate_to_json(member_list(np.arange(result.events) < blasts))
    others = gate_to_json(member_list(np.arange(result.events) < waiting))
    placed = next(gate for gate in result.gates if gate.population == "blasts")
    mine = replace(placed, method="seed_and_grow", gate=members, reason=note, bound_hit="", fallback="")
    theirs = replace(mine, population="blast_candidates", path=path, method="search_rest", gate=others, reason="")
    population = next(one for one in result.populations if one.population == "blasts")
    return replace(
        result,
        panels=panels,
        gates=(*(mine if gate is placed else gate for gate in result.gates), theirs),
        populations=(
            *result.populations,
            replace(population, population="blast_candidates", path=path, events=waiting),
        ),
        measurements=(replace(row, call=call, status="needs_check" if call == "review" else "computed"),),
        detection=found,
    )


RUN: Mapping[str, object] = {
    "software": {"flowmrd": "0.1.0", "numpy": "2.4.6", "python": "3.11.7"},
    "seed": 20260101,
    "settings": {"jobs": 2, "limits": "iccs_20_50"},
    "templates": {"ball-mrd-10c": {"version": "1.0.0", "sha256": hashlib.sha256(b"template").hexdigest()}},
    "inputs": [{"file": "D0_relapse.fcs", "sha256": hashlib.sha256(b"D0_relapse").hexdigest()}],
}
