"""`flowmrd simulate`: labelled synthetic acquisitions, one file, a whole subject or a whole set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowmrd.errors import SettingsError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the files.")
@click.option(
    "--demo",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the demo subject, five marrows and a course of CAR-T tubes, with manifest and clinical tables, here.",
)
@click.option(
    "--subject",
    "subject_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Write the visits of this subject document (TOML), with a manifest, into --out.",
)
@click.option(
    "--course",
    type=click.Choice(["responder", "non-responder", "cd19-positive-relapse", "cd19-negative-relapse"]),
    help="Write the CAR-T tubes of one subject over a year, with controls and a manifest, into --out.",
)
@click.option(
    "--cohort",
    type=click.IntRange(1),
    metavar="N",
    help="Write a trial of N patients into --out: clinical tables, their truth, marrows, CAR-T tubes, a manifest.",
)
@click.option(
    "--files/--no-files", default=True, show_default=True, help="With --cohort: FCS files, or only the tables."
)
@click.option(
    "--reuse",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --demo or --subject: refer to equal files that this folder holds instead of making them again.",
)
@click.option(
    "--cases",
    "cases_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Write one file for each row of this CSV table into --out; columns are options, an empty cell = the option.",
)
@click.option(
    "--negatives", type=int, help="Write a labelled set into --out: cases without leukemia, half regenerating."
)
@click.option("--positives", type=int, help="Cases of the set with leukemia, spread evenly over --levels.")
@click.option("--levels", help="Levels of the set's positives [default: 1e-5,3e-5,1e-4,1e-3,1e-2,1e-1].")
@click.option("--diagnoses", is_flag=True, help="Each positive of the set gets a file at diagnosis, too.")
@click.option("--laboratories", type=int, help="Spread the set over that many laboratories.")
@click.option(
    "--jobs", "-j", type=click.IntRange(1), default=1, show_default=True, help="Worker processes; same bytes."
)
@click.option("--name", help="File name without ending (default: tube, scenario and seed).")
@click.option(
    "--tube",
    default="ball-mrd-10c",
    show_default=True,
    help="Tube: id of a shipped template, such as cart-persistence.",
)
@click.option("--events", type=int, default=100_000, show_default=True, help="Events in the file.")
@click.option(
    "--blasts",
    type=float,
    help="Blasts as a fraction of nucleated live singlets [default: 0; with --scenario diagnosis drawn, 0.30 to 0.92].",
)
@click.option(
    "--scenario",
    default="normal",
    show_default=True,
    help="Composition: normal, induction, regenerating, aplasia, recovery, hemodilute, diagnosis; blood tubes differ.",
)
@click.option(
    "--phenotype",
    default="random",
    show_default=True,
    help="Of the blasts: random, hard, plain (not hard), or a TOML/JSON file; a truth file is one.",
)
@click.option(
    "--left-out",
    multiple=True,
    metavar="MARKER [up|down]",
    help="Kind of aberration that no drawn immunophenotype has, such as CD58 or 'CD10 up'; may be repeated.",
)
@click.option(
    "--drift", type=float, default=0.0, show_default=True, help="Change of the blasts since diagnosis, log10 sd."
)
@click.option(
    "--cd19",
    type=click.Choice(["positive", "dim", "negative", "mixed"]),
    default="positive",
    show_default=True,
    help="CD19 of the blasts after CD19-directed therapy.",
)
@click.option("--batch", type=float, default=1.0, show_default=True, help="Batch strength: 1 good, 2.5 a bad day.")
@click.option("--lab", default="", help="Laboratory id: one constant shift in all its files.")
@click.option("--car", type=float, default=0.0, show_default=True, help="CAR+ fraction of T cells.")
@click.option("--fmo", is_flag=True, help="Leave the CAR reagent out.")
@click.option("--beads/--no-beads", default=None, help="Counting beads (default: as the tube's profile says).")
@click.option(
    "--channels",
    type=click.Choice(["full", "compact"]),
    default="full",
    show_default=True,
    help="Scatter measures: all, or FSC-A FSC-H SSC-A only.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed; same seed and options, same bytes.")
@click.option("--patient-seed", type=int, help="Fixes the patient's constants over visits (default: the seed).")
@click.option("--datatype", type=click.Choice(["float", "int"]), default="float", show_default=True)
@click.option("--byte-order", type=click.Choice(["little", "big"]), default="little", show_default=True)
@click.option(
    "--profile",
    "profile_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TOML file with numbers that replace the tube's own.",
)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Make labelled synthetic acquisitions: one file, a subject with --subject, --course or --demo, a trial with
    --cohort, a set with --negatives and --positives or --cases.

    Writes NAME.fcs, with its truth beside it in NAME.labels.parquet and NAME.truth.json. Synthetic data for development
    and training; nothing that is measured on them is a claim about patients.
    """
    out: Path | None = given["out"]
    demo, subject_file, reuse = given["demo"], given["subject_file"], given["reuse"]
    is_set = any(given[name] is not None for name in ("cases_file", "negatives", "positives"))
    if demo is not None or subject_file is not None:
        if demo is not None and (subject_file is not None or out is not None):
            raise SettingsError("stands alone, without --subject and --out", where="--demo")
        _refuse(
            ctx,
            allowed={"out", "demo", "subject_file", "reuse", "jobs"},
            message="cannot be combined with --subject or --demo",
            hint="write it into the subject document",
        )
        folder = demo or out
        if folder is None:
            raise SettingsError("missing option", where="--out", hint="--subject FILE --out DIR")
        _subject(subject_file, folder, reuse=reuse, jobs=given["jobs"])
        return
    if given["course"] is not None:
        _refuse(
            ctx,
            allowed={"out", "course", "seed", "events", "lab", "reuse", "jobs"},
            message="cannot be combined with --course",
            hint="the course decides this itself",
        )
        if out is None:
            raise SettingsError("missing option", where="--out", hint="--course KIND --out DIR")
        events = given["events"] if _is_given(ctx, "events") else None
        _course(given["course"], given["seed"], out, events=events, lab=given["lab"], reuse=reuse, jobs=given["jobs"])
        return
    if given["cohort"] is not None:
        _refuse(
            ctx,
            allowed={"out", "cohort", "files", "seed", "events", "lab", "jobs"},
            message="cannot be combined with --cohort",
            hint="the cohort decides this itself",
        )
        if out is None:
            raise SettingsError("missing option", where="--out", hint="--cohort N --out DIR")
        events = given["events"] if _is_given(ctx, "events") else None
        _cohort(given["cohort"], given["seed"], out, events, lab=given["lab"], files=given["files"], jobs=given["jobs"])
        return
    if not given["files"]:
        raise SettingsError("needs --cohort", where="--no-files")
    if reuse is not None:
        raise SettingsError("needs --subject, --demo or --course", where="--reuse")
    if out is None:
        raise SettingsError("missing option", where="--out", hint="--out DIR says where the files go")
    if is_set:
        _set(ctx, given, out)
        return
    for name in ("levels", "diagnoses", "laboratories"):
        if given[name]:
            raise SettingsError("needs --negatives and --positives", where=f"--{name}")
    _one(given, out)


def _subject(document: Path | None, folder: Path, *, reuse: Path | None, jobs: int) -> None:
    from flowmrd.simulation import demo_subject, load_subject, write_subject
    from flowmrd.simulation.subject import write_demo_tables

    subject = load_subject(document) if document is not None else demo_subject()
    click.echo(write_subject(subject, folder, reuse=reuse, jobs=jobs, report=click.echo))
    if document is None:
        click.echo(write_demo_tables(folder))


def _course(kind: str, seed: int, folder: Path, *, events: int | None, lab: str, reuse: Path | None, jobs: int) -> None:
    from flowmrd.simulation import write_subject
    from flowmrd.simulation.courses import course_document

    document = course_document(kind, seed, events=events, lab=lab)
    click.echo(write_subject(document, folder, reuse=reuse, jobs=jobs, report=click.echo))


def _cohort(patients: int, seed: int, folder: Path, events: int | None, *, lab: str, files: bool, jobs: int) -> None:
    from flowmrd.simulation.cohort import plan_cohort, write_cohort

    cohort = plan_cohort(patients, seed, events=events, lab=lab)
    click.echo(write_cohort(cohort, folder, with_files=files, seed=seed, jobs=jobs, report=click.echo))


def _set(ctx: click.Context, given: dict[str, Any], out: Path) -> None:
    from flowmrd.simulation import SetPlan, load_cases, parse_levels, plan_set, write_set

    by_table = given["cases_file"] is not None
    own = ["negatives", "positives", "levels", "diagnoses", "laboratories"]
    refused = {"name", "patient_seed", *(own if by_table else ["blasts", "scenario", "car", "fmo", "beads"])}
    _refuse(
        ctx,
        allowed={parameter.name or "" for parameter in ctx.command.params} - refused,
        message=f"cannot be combined with {'--cases' if by_table else '--negatives and --positives'}",
        hint="a column of the table says it" if by_table else "a table for --cases can say it",
    )
    common = _parameters(given) | {"datatype": given["datatype"], "byte_order": given["byte_order"]}
    if by_table:
        document = load_cases(given["cases_file"], common=common, seed=given["seed"])
    else:
        for key in ("blasts", "scenario"):
            common.pop(key, None)
        if not _is_given(ctx, "cd19"):
            common.pop("cd19")
        document = plan_set(
            SetPlan(
                negatives=given["negatives"] or 0,
                positives=given["positives"] or 0,
                levels=parse_levels(given["levels"] or ""),
                diagnoses=given["diagnoses"],
                laboratories=given["laboratories"] or 0,
                seed=given["seed"],
                common=common,
            )
        )
    click.echo(write_set(document, out, jobs=given["jobs"], report=click.echo))


def _one(given: dict[str, Any], out: Path) -> None:
    from flowmrd.simulation import ByteOrder, DataType, Parameters, simulate, write_simulated

    seed = given["seed"]
    parameters = Parameters(**_parameters(given), patient_seed=given["patient_seed"])
    files = write_simulated(
        simulate(parameters, seed),
        out,
        given["name"] or f"{parameters.tube}-{parameters.scenario}-{seed}",
        datatype=DataType(given["datatype"]),
        byte_order=ByteOrder(given["byte_order"]),
    )
    click.echo(files.fcs)


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    """Options as fields of `Parameters`."""
    from flowmrd.simulation import ChannelSet, PhenotypeDraw, TargetStatus, load_immunophenotype, load_profile

    phenotype = given["phenotype"]
    if phenotype in set(PhenotypeDraw):
        drawn: object = PhenotypeDraw(phenotype)
    elif Path(phenotype).is_file():
        profile = load_profile(given["tube"], override=given["profile_file"]).profile
        drawn = load_immunophenotype(Path(phenotype), profile)
    else:
        words = ", ".join(PhenotypeDraw)
        raise SettingsError(f"no file {phenotype!r}", where="--phenotype", hint=f"{words}, or a TOML/JSON file")
    same = ("tube", "events", "blasts", "scenario", "left_out", "drift", "batch", "lab", "car", "beads", "fmo")
    return {
        **{key: given[key] for key in same},
        "phenotype": drawn,
        "cd19": TargetStatus(given["cd19"]),
        "channels": ChannelSet(given["channels"]),
        "profile": given["profile_file"],
    }


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _refuse(ctx: click.Context, *, allowed: set[str], message: str, hint: str) -> None:
    """Refuse options that would silently be overridden."""
    for parameter in ctx.command.params:
        if parameter.name not in allowed and _is_given(ctx, parameter.name or ""):
            raise SettingsError(message, where=parameter.opts[0], hint=hint)
