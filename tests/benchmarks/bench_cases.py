"""One benchmark case in a process of its own: prepare, run once, print seconds, memory and the answer as JSON.

usage: python -m tests.benchmarks.bench_cases CASE FOLDER, in the repository's root

Imports and set-up come before the clock starts. `peak_mb` is the peak of the whole process, imports included; `base_mb`
what it was when the clock started.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Answer = Mapping[str, Any]
Run = Callable[[], Answer]
TEMPLATE = Path(__file__).with_name("twelve-gates.toml")
ORDERS = {"le": "little.fcs", "be": "big.fcs"}


# -------------------------------------------------------------------------------------------------------------- reading


def read_ours(folder: Path, order: str) -> Run:
    from flowmrd.fcs import read_fcs

    def run() -> Answer:
        fcs = read_fcs(folder / ORDERS[order])
        assert fcs.stored is not None
        return {"events": fcs.event_count, "sum": float(fcs.stored[0][:100].sum(dtype="f8"))}

    return run


def read_numpy(folder: Path, order: str) -> Run:
    import numpy as np

    from flowmrd.fcs import open_fcs

    fcs = open_fcs(folder / ORDERS[order])
    begin, events, k = fcs.layout.begin, fcs.event_count, len(fcs.channels)

    def run() -> Answer:
        values = np.fromfile(folder / ORDERS[order], "<f4" if order == "le" else ">f4", events * k, offset=begin)
        table = values.reshape(events, k)
        return {"events": len(table), "sum": float(table[:100, 0].sum(dtype="f8"))}

    return run


def read_flowkit(folder: Path, order: str) -> Run:
    import flowkit

    def run() -> Answer:
        sample = flowkit.Sample(str(folder / ORDERS[order]))
        values = sample.get_events(source="raw")
        return {"events": sample.event_count, "sum": float(values[:100, 0].sum())}

    return run


# ----------------------------------------------------------------------------------------------------------- end to end


def gate_ours(folder: Path, order: str) -> Run:
    """The twelve gates as known geometry."""
    from flowmrd.cytometry.events import EventSource, resolve_panel
    from flowmrd.fcs import open_fcs
    from flowmrd.gating.engine import apply_gates
    from flowmrd.gating.template import load_template

    template = load_template(TEMPLATE)
    gates = _gates()

    def run() -> Answer:
        fcs = open_fcs(folder / ORDERS[order])
        panel = resolve_panel(template.channel, fcs.channels, tube=template.template.id)
        source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
        counts, _ = apply_gates(source, gates)
        return {"counts": dict(counts)}

    return run


def gate_template(folder: Path, order: str) -> Run:
    """The same through `apply_template`, which also states how every gate came to be."""
    from flowmrd.cytometry.events import EventSource, resolve_panel
    from flowmrd.fcs import open_fcs
    from flowmrd.gating.engine import apply_template
    from flowmrd.gating.template import load_template

    template = load_template(TEMPLATE)
    _gates()  # imports the methods

    def run() -> Answer:
        fcs = open_fcs(folder / ORDERS[order])
        panel = resolve_panel(template.channel, fcs.channels, tube=template.template.id)
        source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
        return {"counts": dict(apply_template(source, template).counts)}

    return run


def gate_flowkit(folder: Path, order: str, *, cache: bool = True) -> Run:
    import flowkit

    from flowmrd.gating.template import load_template

    strategy = _flowkit_strategy()
    names = [row.name for row in load_template(TEMPLATE).population]

    def run() -> Answer:
        sample = flowkit.Sample(str(folder / ORDERS[order]))
        result = strategy.gate_sample(sample, cache_events=cache)
        return {"counts": {name: int(result.get_gate_count(name)) for name in names}}

    return run


def _gates() -> list[tuple[str, str, Any]]:
    """The template's rows as (name, parent, gate)."""
    from flowmrd.gating.methods import Found
    from flowmrd.gating.template import load_template, typed

    rows = load_template(TEMPLATE).population
    checked = [typed(row) for row in rows]
    nothing = Found(values={})
    return [
        (row.name, row.parent, one.method.build(row.channels, one.params, nothing, {}))
        for row, one in zip(rows, checked, strict=True)
    ]


def _flowkit_strategy() -> Any:
    """The same gates for FlowKit: scatter and time in channel values, stains compensated by the file and on logicle."""
    import flowkit as fk

    from flowmrd.gating.gates import Boolean, Ellipsoid, Polygon, Rectangle
    from flowmrd.gating.template import load_template
    from tests.benchmarks.bench_events import STAINS

    template = load_template(TEMPLATE)
    specs = {spec.marker: spec for spec in template.channel}
    detector = {marker: pnn for pnn, marker in STAINS.items()}
    strategy = fk.GatingStrategy()
    scale = next(spec.transform for spec in template.channel if spec.transform["kind"] == "logicle")
    strategy.add_transform("logicle", fk.transforms.LogicleTransform(*(float(scale[key]) for key in "TWMA")))

    def factor(marker: str) -> float:
        return 1.0 if marker in detector else float(specs[marker].transform["T"])

    def dimension(marker: str, low: float | None = None, high: float | None = None) -> Any:
        ends = {"range_min": low, "range_max": high}
        ends = {key: value * factor(marker) for key, value in ends.items() if value is not None and abs(value) < 1e300}
        if marker in detector:
            return fk.Dimension(detector[marker], compensation_ref="FCS", transformation_ref="logicle", **ends)
        return fk.Dimension(marker, compensation_ref="uncompensated", **ends)

    paths: dict[str, tuple[str, ...]] = {"root": ("root",)}
    for name, parent, gate in _gates():
        path = paths[parent]
        paths[name] = (*path, name)
        match gate:
            case Rectangle(markers=markers, low=low, high=high):
                sides = [dimension(*side) for side in zip(markers, low, high, strict=True)]
                theirs = fk.gates.RectangleGate(name, sides)
            case Polygon(markers=markers, vertices=vertices):
                corners = [(x * factor(markers[0]), y * factor(markers[1])) for x, y in vertices]
                theirs = fk.gates.PolygonGate(name, [dimension(marker) for marker in markers], corners)
            case Ellipsoid(markers=markers):
                sides = [dimension(marker) for marker in markers]
                theirs = fk.gates.EllipsoidGate(name, sides, gate.mean, gate.covariance, gate.distance_square)
            case Boolean(operator=operator, operands=operands):
                refs = [{"ref": ref, "path": paths[ref][:-1], "complement": flag} for ref, flag in operands]
                theirs = fk.gates.BooleanGate(name, operator, refs)
        strategy.add_gate(theirs, path)
    return strategy


# --------------------------------------------------------------------------------------------------------------- report


def report(folder: Path, order: str) -> Run:
    """From a finished gating to HTML: bin every event for twenty panels, then write the report."""
    import shutil

    import jinja2  # noqa: F401 - imported by the first page; not part of the figure

    from flowmrd.cytometry.events import EventSource, resolve_panel
    from flowmrd.fcs import open_fcs
    from flowmrd.gating.engine import apply_template
    from flowmrd.gating.template import load_template
    from flowmrd.panels import build_panels
    from flowmrd.records import AcquisitionResult
    from flowmrd.reporting.report import render_report

    template = load_template(TEMPLATE)
    fcs = open_fcs(folder / ORDERS[order])
    panel = resolve_panel(template.channel, fcs.channels, tube=template.template.id)
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    gating = apply_template(source, template)
    out = folder / "report"
    shutil.rmtree(out, ignore_errors=True)

    def run() -> Answer:
        start = time.process_time()
        panels = build_panels(source, gating)
        binned = time.process_time()
        result = AcquisitionResult(
            acquisition="bench",
            subject="",
            visit="",
            study_day=None,
            specimen_type="BM",
            tube=template.template.id,
            template_version=template.template.version,
            template_digest=template.digest,
            file_name=Path(fcs.path).name,
            file_sha256="",
            events=fcs.event_count,
            qc="PASS",
            compensation="file",
            populations=(),
            gates=(),
            measurements=(),
            wording=(),
            findings=(),
            panels=panels,
            time=None,
            margins=(),
            markers={marker: channel.pnn for marker, channel in source.panel.channels.items()},
        )
        render_report([result], {}, out)
        done = time.process_time()
        pages = [path for path in out.rglob("*") if path.is_file() and path.name != "plotly.min.js"]
        return {
            "panels": len(panels),
            "drawn_events": int(panels[0].density.sum()),
            "html_bytes": sum(path.stat().st_size for path in pages),
            "binning_cpu_s": binned - start,
            "html_cpu_s": done - binned,
        }

    return run


# --------------------------------------------------------------------------------------------------------- single steps


def logicle_ours(_folder: Path, _order: str) -> Run:
    from flowmrd.cytometry.transforms import Logicle

    values, scale = _logicle_values(), Logicle(T=262144.0, W=0.8, M=4.5, A=0.0)
    return lambda: {"mean": float(scale.forward(values).mean())}


def logicle_flowutils(_folder: Path, _order: str) -> Run:
    import numpy as np
    from flowutils.transforms import logicle

    values = _logicle_values().reshape(-1, 1)

    def run() -> Answer:
        return {"mean": float(np.mean(logicle(values, [0], t=262144, m=4.5, w=0.8, a=0)))}

    return run


def _logicle_values() -> Any:
    import numpy as np

    rng = np.random.default_rng(3)
    count = 4_000_000
    return rng.choice([-1.0, 1.0], count, p=[0.2, 0.8]) * 10 ** rng.uniform(0, 5.4, count)


def valley(_folder: Path, _order: str) -> Run:
    """Density valley of five million scaled values."""
    import numpy as np
    import scipy.ndimage
    import scipy.signal  # noqa: F401 - imported by the first call

    from flowmrd.gating.methods import Sample, methods

    rng = np.random.default_rng(3)
    count = 5_000_000
    values = np.where(rng.random(count) < 0.6, rng.normal(0.25, 0.06, count), rng.normal(0.7, 0.08, count))
    sample = Sample(markers=("x",), events={"x": values.astype(np.float32)}, references={}, found={}, count=count)
    method = methods()["valley"]
    params = method.params.model_validate({"keep": "above", "search": (0.2, 0.7)})
    assert method.find is not None
    find = method.find
    return lambda: {"cut": find(sample, params).values["cut"]}


def time_qc(_folder: Path, _order: str) -> Run:
    """Time, rate and signal checks of a million events on ten stains, already scaled."""
    import numpy as np

    from flowmrd.cytometry.quality import time_quality
    from flowmrd.cytometry.transforms import Logicle
    from tests.benchmarks.bench_events import STAINS, draw_events

    columns = draw_events(1_000_000)
    scale = Logicle(T=262144.0, W=0.8, M=4.5, A=0.0)
    scaled = scale.forward(np.ascontiguousarray(columns[5:15]))
    seconds = columns[15] * np.float32(0.01)
    step = 65536

    def run() -> Answer:
        blocks = ((start, scaled[:, start : start + step]) for start in range(0, scaled.shape[1], step))
        found = time_quality(
            seconds,
            blocks,
            event_count=scaled.shape[1],
            scales=dict.fromkeys(STAINS.values(), scale),
            in_seconds=True,
        )
        return {"kept": float(np.mean(found.kept))}

    return run


CASES: Mapping[str, tuple[Callable[[Path, str], Run], str]] = {
    "read_ours_le": (read_ours, "le"),
    "read_numpy_le": (read_numpy, "le"),
    "read_flowkit_le": (read_flowkit, "le"),
    "read_ours_be": (read_ours, "be"),
    "read_numpy_be": (read_numpy, "be"),
    "read_flowkit_be": (read_flowkit, "be"),
    "gate_ours": (gate_ours, "le"),
    "gate_ours_be": (gate_ours, "be"),
    "gate_template": (gate_template, "le"),
    "gate_flowkit": (gate_flowkit, "le"),
    "report": (report, "le"),
    "logicle_ours": (logicle_ours, "le"),
    "logicle_flowutils": (logicle_flowutils, "le"),
    "valley": (valley, "le"),
    "time_qc": (time_qc, "le"),
}


def peak_mb() -> float:
    """Peak resident set of this process, MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(case: str, folder: Path) -> None:
    prepare, order = CASES[case]
    run = prepare(folder, order)
    base = peak_mb()
    user = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    wall, cpu = time.perf_counter(), time.process_time()
    answer = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    user = resource.getrusage(resource.RUSAGE_SELF).ru_utime - user
    taken = {"cpu_s": cpu, "user_s": user, "wall_s": wall, "base_mb": base, "peak_mb": peak_mb(), "answer": answer}
    print(json.dumps(taken))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
