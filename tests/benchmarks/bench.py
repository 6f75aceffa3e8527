"""`make bench`: speed and memory of flowmrd against its peers and its goals, in one interleaved run.

Each case runs in a fresh process (bench_cases.py), the cases take turns over the rounds, imports and set-up are outside
the timed part. CPU seconds decide, the best of the rounds, because wall time depends on what else the machine does. The
peak of memory is that of the whole process. The children have one BLAS thread, numpy without huge pages (their faults
cost a varying time that has nothing to do with the code), and neither OPENBLAS_CORETYPE nor OPENBLAS_L2_SIZE, so that
OpenBLAS takes the kernel made for this processor. Bytecode is kept in build/, as an installation keeps it.

This process imports nothing heavy: a child inherits the peak memory of its parent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build"
EVENTS = 5_000_000
SHORT = (
    "read_ours_le", "read_numpy_le", "read_flowkit_le", "read_ours_be", "read_numpy_be", "read_flowkit_be",
    "gate_ours", "gate_ours_be", "gate_template", "report", "logicle_ours", "logicle_flowutils", "valley", "time_qc",
    "help",
)  # fmt: skip
LONG = ("gate_flowkit", "command")
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one run of one case took; `user_s` is the part of `cpu_s` outside the kernel (page faults, reading)."""

    cpu_s: float
    user_s: float
    wall_s: float
    peak_mb: float
    base_mb: float
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One line of the last table: ours against the peer or a limit."""

    name: str
    ours: str
    peer: str
    ratio: float | None
    goal: str
    met: bool | None


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in UNSET}
    return kept | {
        "OPENBLAS_NUM_THREADS": "1",
        "NUMPY_MADVISE_HUGEPAGE": "0",
        # Bytecode is kept from one child to the next, as an installation does.
        "PYTHONPYCACHEPREFIX": str(BUILD / "bench" / "bytecode"),
    }


def take(case: str, folder: Path) -> Taken:
    """Run one case in a fresh process."""
    if case == "help":
        return take_whole([command(), "--help"])
    if case == "command":
        out = folder / "gated"
        template = str(HERE / "twelve-gates.toml")
        return take_whole([command(), "gate", str(folder / "little.fcs"), "--template", template, "--out", str(out)])
    text = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_cases", case, str(folder)],
        cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    return Taken(**json.loads(text.splitlines()[-1]))


def take_whole(words: Sequence[str]) -> Taken:
    """Run a command and measure the whole process, start-up included."""
    start = time.perf_counter()
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    # 3 and 4 would be a file that was refused; the benchmark's file is sound.
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, list(words))
    peak = used.ru_maxrss * 1024 / 1e6
    total = used.ru_utime + used.ru_stime
    return Taken(cpu_s=total, user_s=used.ru_utime, wall_s=wall, peak_mb=peak, base_mb=0.0, answer={})


def command() -> str:
    return str(Path(sys.executable).with_name("flowmrd"))


def prepare(events: int) -> Path:
    """Make the files once; they stay for the next run."""
    folder = BUILD / "bench" / str(events)
    if not all((folder / name).is_file() for name in ("little.fcs", "big.fcs")):
        print(f"making two files of {events:,} events × 16 channels in {folder.relative_to(ROOT)} …", flush=True)
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_events", str(folder), str(events)],
            cwd=ROOT,
            env=environment(),
            check=True,
        )
    return folder


def run(folder: Path, rounds: int) -> dict[str, list[Taken]]:
    """Let the cases take turns, each round starting with another; the short ones twice.

    What runs before a case changes its time (which memory the kernel has at hand), so no case keeps its neighbour.
    """
    taken: dict[str, list[Taken]] = {case: [] for case in (*SHORT, *LONG)}
    seldom = {0, rounds // 2, rounds - 1} if rounds > 3 else set(range(rounds))
    for number in range(rounds):
        shift = number * len(SHORT) // rounds
        turn = SHORT[shift:] + SHORT[:shift]
        for case in (*turn, *(LONG if number in seldom else ()), *reversed(turn)):
            taken[case].append(take(case, folder))
            last = taken[case][-1]
            print(
                f"round {number + 1}/{rounds}  {case:18s} {last.cpu_s:8.3f} CPU s {last.wall_s:8.3f} s "
                f"{last.peak_mb:8.0f} MB  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    return taken


def cpu(taken: Mapping[str, Sequence[Taken]], case: str) -> float:
    return min(one.cpu_s for one in taken[case])


def peak(taken: Mapping[str, Sequence[Taken]], case: str) -> float:
    return max(one.peak_mb for one in taken[case])


def measures(taken: Mapping[str, Sequence[Taken]], events: int) -> list[Measure]:
    """Compare with peers and goals. Goals are stated for five million events; with fewer nothing is judged."""
    full = events >= EVENTS
    lines: list[Measure] = []

    def add(name: str, ours: str, peer: str, ratio: float | None, goal: str, *, met: bool | None) -> None:
        lines.append(Measure(name=name, ours=ours, peer=peer, ratio=ratio, goal=goal, met=met if full else None))

    def faster(name: str, mine: str, theirs: str, label: str, least: float | None) -> None:
        a, b = cpu(taken, mine), cpu(taken, theirs)
        goal = "" if least is None else f"≥ {least:g}× faster"
        met = None if least is None else b / a >= least
        add(name, f"{a:.3f} s", f"{b:.3f} s {label}", b / a, goal, met=met)

    def within(name: str, mine: str, theirs: str, label: str, most: float) -> None:
        a, b = cpu(taken, mine), cpu(taken, theirs)
        add(name, f"{a:.3f} s", f"{b:.3f} s {label}", a / b, f"≤ {most:g}×", met=a / b <= most)

    for order, word in (("le", "little endian"), ("be", "big endian")):
        faster(f"read, {word}", f"read_ours_{order}", f"read_flowkit_{order}", "flowkit.Sample", 3.0)
        within(f"read, {word}", f"read_ours_{order}", f"read_numpy_{order}", "np.fromfile", 1.5)
    data = events * 64 / 1e6
    for order, word in (("le", "little endian"), ("be", "big endian")):
        added = max(one.peak_mb - one.base_mb for one in taken[f"read_ours_{order}"])
        add(
            f"memory of reading, {word}",
            f"{added:.0f} MB",
            f"{data:.0f} MB of data",
            added / data,
            "≤ 1.1×",
            met=added <= 1.1 * data,
        )
    faster("12 gates end to end", "gate_ours", "gate_flowkit", "FlowKit, cached", 8.0)
    faster("the same, big endian", "gate_ours_be", "gate_flowkit", "FlowKit, cached (little)", 8.0)
    faster("the same, as a template", "gate_template", "gate_flowkit", "FlowKit, cached", 8.0)
    a, b = (min(one.user_s for one in taken[case]) for case in ("gate_ours", "gate_flowkit"))
    add("the same, outside the kernel", f"{a:.3f} s", f"{b:.3f} s FlowKit, cached", b / a, "", met=None)
    a, b = peak(taken, "gate_ours"), peak(taken, "gate_flowkit")
    add("peak memory end to end", f"{a:.0f} MB", f"{b:.0f} MB FlowKit", a / b, "≤ 1/8", met=a <= b / 8)
    equal = same_counts(taken)
    add("counts of all 12 gates", "equal" if equal else "DIFFERENT", "FlowKit", None, "identical", met=equal)
    a = cpu(taken, "report")
    panels = taken["report"][0].answer["panels"]
    add(f"report of {panels} panels, all events", f"{a:.3f} s", "", None, "≤ 1 s", met=a <= 1.0)
    size = taken["report"][0].answer["html_bytes"] / 1e6
    add("the same, without plotly.js", f"{size:.2f} MB", "", None, "≤ 2.5 MB", met=size <= 2.5)
    a = cpu(taken, "help")
    add("flowmrd --help", f"{a:.3f} s", "", None, "≤ 0.3 s", met=a <= 0.3)
    faster("logicle, 4 million values", "logicle_ours", "logicle_flowutils", "flowutils", 8.0)
    error = abs(taken["logicle_ours"][0].answer["mean"] - taken["logicle_flowutils"][0].answer["mean"])
    add("the same, difference of means", f"{error:.1e}", "", None, "≤ 1e-9", met=error <= 1e-9)
    a = cpu(taken, "valley")
    add("density valley, 5 million values", f"{a:.3f} s", "", None, "≤ 0.05 s", met=a <= 0.05)
    a = cpu(taken, "time_qc")
    add("time QC, 1 million × 10", f"{a:.3f} s", "", None, "≤ 0.1 s", met=a <= 0.1)
    faster("whole `flowmrd gate` with report", "command", "gate_flowkit", "FlowKit, 12 gates only", None)
    a = peak(taken, "command")
    add(
        "the same, peak memory",
        f"{a:.0f} MB",
        f"{peak(taken, 'gate_flowkit'):.0f} MB FlowKit",
        a / peak(taken, "gate_flowkit"),
        "",
        met=None,
    )
    return lines


def same_counts(taken: Mapping[str, Sequence[Taken]]) -> bool:
    """Say whether every run of every engine, on both byte orders, counted the same events in each gate."""
    seen = [
        one.answer["counts"]
        for case in ("gate_ours", "gate_ours_be", "gate_template", "gate_flowkit")
        for one in taken[case]
    ]
    return all(counts == seen[0] for counts in seen)


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def print_tables(taken: Mapping[str, Sequence[Taken]], lines: Sequence[Measure]) -> None:
    cases = [
        ("case", "runs", "CPU min", "CPU median", "user min", "wall min", "wall median", "peak MB", "of it before")
    ]
    for case, runs in taken.items():
        cpus, walls = [one.cpu_s for one in runs], [one.wall_s for one in runs]
        cases.append(
            (
                case, str(len(runs)), f"{min(cpus):.3f}", f"{statistics.median(cpus):.3f}",
                f"{min(one.user_s for one in runs):.3f}", f"{min(walls):.3f}", f"{statistics.median(walls):.3f}",
                f"{max(one.peak_mb for one in runs):.0f}", f"{max(one.base_mb for one in runs):.0f}",
            )
        )  # fmt: skip
    print("\n" + table(cases) + "\n")
    said = {True: "yes", False: "NO", None: ""}
    rows = [("measure", "ours", "peer", "ratio", "goal", "met")]
    rows += [
        (one.name, one.ours, one.peer, "" if one.ratio is None else f"{one.ratio:.2f}", one.goal, said[one.met])
        for one in lines
    ]
    print(table(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of flowmrd against its peers and its goals.")
    parser.add_argument(
        "--events", type=int, default=EVENTS, help="events of the files (goals are judged at 5,000,000)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds; each runs the short cases twice, three of them FlowKit"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 when a goal is missed, not only when counts differ"
    )
    options = parser.parse_args()
    folder = prepare(options.events)
    started = os.getloadavg()
    print(
        "children: OPENBLAS_NUM_THREADS=1, NUMPY_MADVISE_HUGEPAGE=0; OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE unset",
        flush=True,
    )
    taken = run(folder, options.rounds)
    lines = measures(taken, options.events)
    print_tables(taken, lines)
    record = {
        "events": options.events,
        "rounds": options.rounds,
        "machine": {
            "cpus": os.cpu_count(),
            "processor": processor(),
            "python": platform.python_version(),
            "load": [started, os.getloadavg()],
        },
        "cases": {case: [asdict(one) for one in runs] for case, runs in taken.items()},
        "measures": [asdict(one) for one in lines],
    }
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nall figures: build/bench.json; the files stay in {folder.relative_to(ROOT)} for the next run")
    if not same_counts(taken):
        print("the counts differ", file=sys.stderr)
        return 1
    return int(options.strict and any(one.met is False for one in lines))


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
