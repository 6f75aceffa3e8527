"""Make the score tables of the development sets: `flowmrd evaluate` on simulated, drawn and real labelled marrows.

    python tests/validation/development.py                       all sets → docs/validation/evaluate-<set>.{md,csv}
    python tests/validation/development.py simulated real        some of them
    python tests/validation/development.py --files patients      only make the files, to build a reference from
    python tests/validation/development.py patients --reference patients=FILE

Files and scores are kept under `--work` (default `build/validation`), so an interrupted run goes on where it was. Every
figure of the pages is computed by the command; none is typed in. The patients of the mixture models are split: a
reference or a threshold may be made from `<work>/patients/train`, and only `<work>/patients/test` is scored.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
PAGES = REPOSITORY / "docs" / "validation"
WORK = REPOSITORY / "build" / "validation"
# A page lists its files where they are few enough to be read.
LISTED_FILES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How large the sets are, and where everything lies."""

    shared: Path
    work: Path
    events: int
    negatives: int
    positives: int
    patients: int | None
    drawn_events: int
    test_centre: str | None
    jobs: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A development set: what its page is called and says, its template, its files, and how they are evaluated."""

    name: str
    title: str
    words: str
    template: str
    make: Callable[[Options], list[Path]]
    options: Callable[[Options], list[str]]
    needs_reference: bool = False


# ---------------------------------------------------------------------------------------------------------- simulated


def _simulated(options: Options, *, folder: str, batch: float, seed: int) -> list[Path]:
    out = options.work / folder
    plan = {
        "--negatives": options.negatives,
        "--positives": options.positives,
        "--events": options.events,
        "--batch": batch,
        "--laboratories": 4,
        "--seed": seed,
    }
    if not is_made(out, plan):
        arguments = [str(part) for pair in plan.items() for part in pair]
        _flowmrd("simulate", "--out", str(out), "--jobs", str(options.jobs), *arguments)
        _is_asked(out, plan)
    return sorted(path for path in out.glob("case-*.fcs") if not path.stem.endswith("-diagnosis"))


def is_made(folder: Path, plan: Mapping[str, object]) -> bool:
    """Return whether a folder holds what was planned.

    Raises
    ------
    SystemExit
        It holds files of another plan, which must not be mixed with these.
    """
    asked = folder / "asked.json"
    if not asked.is_file():
        return False
    if json.loads(asked.read_text(encoding="utf-8")) != dict(plan):
        raise SystemExit(f"{folder} holds files of another size or seed: remove it, or name another folder with --work")
    return True


def _is_asked(folder: Path, plan: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked.json").write_text(json.dumps(dict(plan), indent=1) + "\n", encoding="utf-8")


def simulated_good(options: Options) -> list[Path]:
    """Return marrows of well-run days."""
    return _simulated(options, folder="simulated", batch=1.0, seed=options.seed)


def simulated_bad(options: Options) -> list[Path]:
    """Return marrows of bad days."""
    return _simulated(options, folder="simulated-bad-day", batch=2.5, seed=options.seed + 1)


# Aberrations that no diagnosis of the reference for the set "simulated-left-out" has.
LEFT_OUT = ("CD58", "CD66c+CD123")


def left_out_options(options: Options) -> list[str]:
    """Write whose blasts have an aberration that was left out of training, and return the options to group by."""
    table = options.work / "left-out.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "aberration"])
        for path in simulated_good(options):
            truth = json.loads(path.with_name(f"{path.stem}.truth.json").read_text(encoding="utf-8"))
            shifts = (truth.get("immunophenotype") or {}).get("shifts", {})
            known = [marker for marker in shifts if marker not in LEFT_OUT]
            unseen = [marker for marker in shifts if marker in LEFT_OUT]
            kind = "only known ones" if not unseen else "one left out" if known else "only left out ones"
            writer.writerow([path.stem, kind if shifts else "no blasts"])
    return ["--groups", str(table), "--by", "aberration"]


# ----------------------------------------------------------------------------------------------------------- patients


def patient_of(sample: str) -> str:
    """Return the patient of a sample of the mixture models."""
    return sample.rsplit("-", 1)[0]


def split_patients(samples: Sequence[dict[str, str]], looked_at: frozenset[str], centre: str | None) -> dict[str, str]:
    """Say of each sample whether it is for training or for testing; a patient is never in both.

    Without `centre`, every other patient of each centre is for testing, and nobody whose marrow was looked at while a
    template was written. With it, all patients of that centre are for testing and the others for training.
    """
    half: dict[str, str] = {}
    for one in sorted({row["center"] for row in samples}):
        patients = sorted({patient_of(row["id"]) for row in samples if row["center"] == one})
        if centre is not None:
            half |= dict.fromkeys(patients, "test" if one == centre else "train")
            continue
        half |= dict.fromkeys((name for name in patients if name in looked_at), "train")
        half |= {name: "test" if i % 2 else "train" for i, name in enumerate(p for p in patients if p not in looked_at)}
    return {row["id"]: half[patient_of(row["id"])] for row in samples}


def _samples(options: Options) -> list[dict[str, str]]:
    with (options.shared / "fcs" / "ball_gmm" / "samples.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _patients_folder(options: Options) -> Path:
    return options.work / (f"patients-{options.test_centre}" if options.test_centre else "patients")


def patients(options: Options) -> list[Path]:
    """Draw the marrows of all patients and return those for testing."""
    samples = _samples(options)
    half = split_patients(samples, importlib.import_module("aieop").DEVELOPMENT, options.test_centre)
    folder = _patients_folder(options)
    tool = [sys.executable, str(options.shared / "tools" / "marrow_from_model.py")]
    tool.append(str(options.shared / "fcs" / "ball_gmm" / "gmm_models.jsonl.gz"))
    plan = {"events": options.drawn_events, "seed": options.seed, "patients": options.patients}
    is_made(folder, plan)
    _is_asked(folder, plan)
    drawn: list[Path] = []
    for part in ("train", "test"):
        names = [row["id"] for row in samples if half[row["id"]] == part]
        if options.patients is not None:
            names = names[:: max(1, len(names) // options.patients)][: options.patients]
        for kind, healthy in (("normals", True), ("diagnoses", False)):
            mine = [name for name in names if _is_healthy(samples, name) == healthy]
            place = folder / part / kind
            missing = [name for name in mine if not (place / f"{name}.labels.npy").is_file()]
            if missing:
                print(f"drawing {len(missing)} marrows into {place}", file=sys.stderr)
                size = ["--out", str(place), "--events", str(options.drawn_events), "--seed", str(options.seed)]
                subprocess.run([*tool, *size, "--id", *missing], check=True, stdout=subprocess.DEVNULL)
            drawn += [place / f"{name}.fcs" for name in mine if part == "test"]
    with (folder / "centres.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["name", "centre"], *([row["id"], row["center"]] for row in samples)])
    return drawn


def _is_healthy(samples: Sequence[dict[str, str]], name: str) -> bool:
    return float(next(row["n_blast"] for row in samples if row["id"] == name)) == 0


# --------------------------------------------------------------------------------------------------------------- real


def real(options: Options) -> list[Path]:
    """Return the two day-15 marrows and the four dilutions of the second."""
    fcs = options.shared / "fcs"
    marrows = [fcs / "ball_mrd_real" / name for name in ("47333tubeB10001.fcs", "123991.fcs")]
    return [*marrows, *sorted((fcs / "ball_mrd_dilution").glob("*.fcs"))]


def real_labels(options: Options) -> list[str]:
    """Return the clinic's gates of each real file, in the order of `real`."""
    folder = options.shared / "fcs" / "ball_mrd_real"
    labels = [folder / "47333.gate_labels.csv.gz", folder / "494.gate_labels.csv.gz"]
    labels += [path.with_name(f"{path.stem}.labels.csv.gz") for path in real(options)[2:]]
    return [part for path in labels for part in ("--labels", str(path))] + ["--column", "blast"]


_BY_CASE = ["--by", "immunophenotype.hard", "--by", "parameters.cd19", "--by", "parameters.scenario"]
SETS = (
    Set(
        name="simulated",
        title="Simulated marrows",
        words="Marrows of `flowmrd simulate` from four laboratories on well-run days (batch strength 1), seeds that no "
        "template was made with. From simulation follow correctness of counting, the order of methods and limits set "
        "by counting; nothing follows for patients.",
        template="ball-mrd-10c",
        make=simulated_good,
        options=lambda _options: list(_BY_CASE),
    ),
    Set(
        name="simulated-bad-day",
        title="Simulated marrows of bad days",
        words="The same kind of marrows with staining and instrument shifted two and a half times as far (batch "
        "strength 2.5). A method that is not sure of such a sample should ask for review.",
        template="ball-mrd-10c",
        make=simulated_bad,
        options=lambda _options: list(_BY_CASE),
    ),
    Set(
        name="simulated-left-out",
        title="Simulated marrows whose aberrations were not learnt",
        words="The marrows of the set `simulated` again, with a reference made from diagnoses of which none has an "
        f"aberration of {' or '.join(LEFT_OUT)} (`default_references.py --left-out`): what the search makes of "
        "kinds of leukemia that it has not seen.",
        template="ball-mrd-10c",
        make=simulated_good,
        options=left_out_options,
        needs_reference=True,
    ),
    Set(
        name="patients",
        title="Marrows drawn from patients' models",
        words="Marrows drawn from published mixture models of follow-up samples of five cohorts, patients split: none "
        "of the patients scored here was looked at while a template was written, or is in a reference. A model has no "
        "tails, no debris, no doublets and no drift: expect less of a real file.",
        template="aieop-bfm-syto",
        make=patients,
        options=lambda options: [
            "--positive", "2", "--groups", str(_patients_folder(options) / "centres.csv"), "--by", "centre",
        ],
    ),
    Set(
        name="real",
        title="Real marrows",
        words="Two day-15 marrows with the clinic's own gates, and the second one's other events with 5, 0.5, 0.05 "
        "and 0 % of its blasts. The clinic's gates are one expert's polygons, not the truth; in the dilutions some "
        "immature B cells at the edges of those gates stayed in.",
        template="aieop-bfm-syto",
        make=real,
        options=real_labels,
    ),
)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the pages


def _flowmrd(*arguments: str) -> int:
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flowmrd", *arguments]
    ended = subprocess.run(
        command, cwd=REPOSITORY, check=False, env={**os.environ, **one_thread}, stdout=subprocess.DEVNULL
    )
    # 3: some files have no result; the page names them.
    if ended.returncode not in {0, 3}:
        raise SystemExit(f"flowmrd {arguments[0]} ended with {ended.returncode}")
    return ended.returncode


def label(one: Set, options: Options) -> str:
    """Return the name of a set's scores and page."""
    return f"{one.name}-{options.test_centre}" if options.test_centre and one.name == "patients" else one.name


def evaluate(one: Set, options: Options, reference: Path | None, *, baselines: bool) -> Path:
    """Score a set and return the folder of its scores."""
    out = options.work / "scores" / label(one, options)
    files = [str(path) for path in one.make(options)]
    arguments = ["--template", one.template, "--out", str(out), "--jobs", str(options.jobs), "--resume"]
    arguments += ["--reference", str(reference)] if reference else []
    arguments += ["--baselines"] if baselines else []
    arguments += ["--no-gates"] if len(files) > LISTED_FILES else []
    _flowmrd("evaluate", *files, *arguments, *one.options(options))
    return out


def page(one: Set, out: Path) -> str:
    """Return the page of a set: what it is, then the tables that the command wrote."""
    summary = (out / "summary.md").read_text(encoding="utf-8").split("\n", 1)[1]
    made = (
        f"Written by `make validation` (`tests/validation/development.py {one.name}`); do not edit. Every figure comes "
        "from `flowmrd evaluate`; how each is computed: [scores on labelled files](../reference/evaluate.md)."
    )
    lines = [f"# {one.title}", "", *wrapped(made), "", *wrapped(one.words), *wrapped(summary), ""]
    with (out / "cases.csv").open(encoding="utf-8") as stream:
        cases = list(csv.DictReader(stream))
    if len(cases) <= LISTED_FILES:
        lines += ["## Files", "", *case_table(cases), ""]
    return "\n".join(lines).rstrip() + "\n"


def case_table(cases: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield a table of the files."""
    yield "| file | true | called | of these true | F1 | result by truth | interval covers | call |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in cases:
        ratio = f"{10 ** float(row['log10_error']):.2f}" if row["log10_error"] else "–"
        f1 = f"{float(row['f1']):.2f}" if row["f1"] else "–"
        counts = [
            f"{int(row[name]):,}" if row[name] else "–" for name in ("truth_events", "called_events", "hit_events")
        ]
        covered = {"true": "yes", "false": "no", "": "–"}[row["covered"]]
        yield f"| {row['case']} | {' | '.join(counts)} | {f1} | {ratio} | {covered} | {row['call'] or row['status']} |"


def wrapped(text: str) -> list[str]:
    """Break the lines of paragraphs and list items at 120 characters; tables and headings stay."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(("|", "#")):
            lines.append(line)
            continue
        indent = "  " if line.startswith("* ") else ""
        lines += textwrap.wrap(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [
            ""
        ]
    return lines


def _references(pairs: Sequence[str], known: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in known or not Path(path).is_file():
            raise SystemExit(f"--reference: expected SET=FILE with a set of {', '.join(known)}; got {pair}")
        found[name] = Path(path).resolve()
    return found


def main() -> None:
    """Make the files, evaluate them, write the pages."""
    names = [one.name for one in SETS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*names, []], help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of the reference files")
    parser.add_argument("--work", type=Path, default=WORK, help="where files and scores are kept")
    parser.add_argument("--out", type=Path, default=PAGES, help="folder of the pages")
    parser.add_argument("--reference", action="append", default=[], metavar="SET=FILE", help="for one set")
    parser.add_argument("--baselines", action="store_true", help="score the comparison methods as well")
    parser.add_argument("--files", action="store_true", help="only make the files")
    parser.add_argument("--events", type=int, default=1_000_000, help="events of a simulated marrow")
    parser.add_argument("--negatives", type=int, default=50)
    parser.add_argument("--positives", type=int, default=84)
    parser.add_argument("--drawn-events", type=int, default=100_000, help="events of a drawn marrow")
    parser.add_argument("--patients", type=int, help="draw only so many samples of each half")
    parser.add_argument("--test-centre", help="score this centre's patients only; the others are for training")
    parser.add_argument(
        "--seed", type=int, default=20_001, help="of all sets; fresh ones after a change of the detector"
    )
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if not (args.shared / "fcs").is_dir():
        parser.error("the reference files (shared/fcs) are not beside the repository; name them with --shared")
    options = Options(
        shared=args.shared.resolve(),
        work=args.work.resolve(),
        events=args.events,
        negatives=args.negatives,
        positives=args.positives,
        patients=args.patients,
        drawn_events=args.drawn_events,
        test_centre=args.test_centre,
        jobs=args.jobs,
        seed=args.seed,
    )
    references = _references(args.reference, names)
    options.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for one in SETS:
        if args.sets and one.name not in args.sets:
            continue
        if args.files:
            print(f"{one.name}: {len(one.make(options))} files")
            continue
        if one.needs_reference and one.name not in references:
            print(f"{one.name}: left out, since no --reference {one.name}=FILE is given", file=sys.stderr)
            continue
        out = evaluate(one, options, references.get(one.name), baselines=args.baselines)
        place = args.out / f"evaluate-{label(one, options)}.md"
        place.write_text(page(one, out), encoding="utf-8")
        place.with_suffix(".csv").write_bytes((out / "summary.csv").read_bytes())
        print(place)


if __name__ == "__main__":
    main()
