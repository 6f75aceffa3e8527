"""Make the references that ship: normals and diagnoses from the simulator, through the shipped templates.

    python tests/validation/default_references.py [TUBE ...] [--keep FOLDER] [--jobs N]
    python tests/validation/default_references.py ball-mrd-10c --left-out CD58 --left-out CD66c+CD123 --out FILE

Half of the normals regenerate or recover, half were stained on other than good days, in five laboratories; the seeds
are not used anywhere else. The references are marked as simulated: a laboratory builds its own from its own normals.

The second form makes a reference for a test: its diagnoses have none of the aberrations named, so the search must find
in others what it has not seen.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUBES = ("ball-mrd-10c", "ball-mrd-post-cd19", "aieop-bfm-syto")
SCENARIOS = ("normal", "induction", "regenerating", "aplasia", "recovery", "hemodilute", "regenerating", "recovery")
STRENGTHS = (1.0, 1.0, 1.8, 2.5)
STATUSES = ("positive", "negative", "positive", "dim")
NORMALS, DIAGNOSES = 64, 80
FIRST_SEED = 7_100_000


def cases(tube: str, left_out: Sequence[str] = ()) -> str:
    """Return the table of cases of one tube."""
    lines = ["name,tube,seed,scenario,blasts,events,batch,lab,cd19" + (",left_out" if left_out else "")]
    unseen = f",{';'.join(left_out)}" if left_out else ""
    first = FIRST_SEED + 10_000 * TUBES.index(tube)
    for i in range(NORMALS):
        batch = STRENGTHS[(i // len(SCENARIOS)) % 4]
        lines.append(
            f"normal-{i:03d},{tube},{first + i},{SCENARIOS[i % 8]},0,300000,{batch},lab{i % 5},positive{unseen}"
        )
    for i in range(DIAGNOSES):
        status = STATUSES[i % 4]
        batch, seed = STRENGTHS[i // 4 % 4], first + 1000 + i
        lines.append(f"diagnosis-{i:03d},{tube},{seed},diagnosis,0.6,20000,{batch},lab{i % 5},{status}{unseen}")
    return "\n".join(lines) + "\n"


def build(tube: str, folder: Path, jobs: int, *, left_out: Sequence[str] = (), out: Path | None = None) -> Path:
    """Simulate one tube's marrows and learn from them."""
    work = folder / tube
    work.mkdir(parents=True, exist_ok=True)
    table, text = work / "cases.csv", cases(tube, left_out)
    if table.is_file() and table.read_text() != text:
        raise SystemExit(f"{work} holds marrows of another plan: remove it, or name another folder with --keep")
    table.write_text(text)
    flowmrd = [sys.executable, "-m", "flowmrd"]
    if not (work / "files" / "cases.csv").is_file():
        command = [*flowmrd, "simulate", "--cases", str(table), "--out", str(work / "files")]
        subprocess.run([*command, "--jobs", str(jobs)], check=True)
    out = out or ROOT / "gating_templates" / "references" / f"{tube}.reference"
    out.parent.mkdir(exist_ok=True)
    normals = sorted((work / "files").glob("normal-*.fcs"))
    diagnoses = sorted((work / "files").glob("diagnosis-*.fcs"))
    command = [*flowmrd, "reference", "build", *map(str, normals), "--diagnoses", *map(str, diagnoses)]
    command += ["--template", tube, "--seed", "1", "--simulated", "--name", f"{tube} (simulated)", "--out", str(out)]
    subprocess.run(command, check=True)
    return out


def main() -> None:
    """Build the tubes named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tubes", nargs="*", default=TUBES, metavar="TUBE")
    parser.add_argument("--keep", type=Path, help="folder for the simulated files (1.3 GB a tube); kept and reused")
    parser.add_argument(
        "--left-out", action="append", default=[], metavar="MARKER", help="aberration not to learn from"
    )
    parser.add_argument("--out", type=Path, help="one tube's reference, for a test; the shipped one stays")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if (args.left_out or args.out) and (not args.out or len(args.tubes) != 1):
        parser.error("--left-out and --out go together, with one tube")
    with tempfile.TemporaryDirectory() as temporary:
        for tube in args.tubes:
            print(build(tube, args.keep or Path(temporary), args.jobs, left_out=args.left_out, out=args.out))


if __name__ == "__main__":
    main()
