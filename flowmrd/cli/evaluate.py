"""`flowmrd evaluate`: score the pipeline on labelled files, a laboratory's own or simulated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmrd.cli import EXIT_NOTHING, EXIT_SOME_FAILED
from flowmrd.cli.options import Range, settings_from
from flowmrd.errors import SettingsError

if TYPE_CHECKING:
    from flowmrd.evaluation.batch import Done


class Levels(click.ParamType[tuple[float, ...]]):
    """Fractions above 0, up to 1, separated by commas."""

    name = "LEVEL,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read the levels in rising order."""
        if isinstance(value, tuple):
            return value
        try:
            levels = tuple(sorted({float(part) for part in str(value).split(",")}))
        except ValueError:
            self.fail(f"expected fractions separated by commas, got {value!r}", param, ctx)
        if not all(0 < level <= 1 for level in levels):
            self.fail(f"expected fractions above 0, up to 1, got {value!r}", param, ctx)
        return levels


@click.command(name="evaluate", short_help="Score the pipeline on labelled files.")
@click.argument("inputs", metavar="LABELLED...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--template", "-t", help="Template id or .toml file; by default the shipped one that fits the first file's markers."
)
@click.option(
    "--reference",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Reference of normal cells; by default the template's own.",
)
@click.option(
    "--labels",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Labels that do not lie beside their file: one for each file, in the same order.",
)
@click.option("--column", help="Column of the labels; by default the only one, or `blast`.")
@click.option(
    "--positive",
    multiple=True,
    metavar="VALUE",
    help="Label that means the disease (repeatable); by default 1, true or `blast`.",
)
@click.option(
    "--denominator",
    metavar="NAME",
    help="Column of 0 and 1: live intact single cells, which the true fraction refers to; by default `viable` or "
    "`intact` where there is one, else the truth document, else the gated denominator.",
)
@click.option("--analyte", default="MRD", show_default=True, help="Measurement that is scored.")
@click.option("--levels", type=Levels(), help="True fractions to pool files by, e.g. 1e-5,1e-4,1e-3.")
@click.option(
    "--groups",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with a column `file` (or `name`) and columns to show results by.",
)
@click.option(
    "--by",
    multiple=True,
    metavar="NAME",
    help="Column of --groups, or without it a key of the simulator's truth files such as parameters.batch; repeatable.",
)
@click.option(
    "--diagnoses",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with columns `file` and `diagnosis` (or the cases.csv of a simulated set): the subject's earlier file, "
    "for the route by the own phenotype (--analyte MRD-OWN scores it).",
)
@click.option("--baselines", is_flag=True, help="Score the comparison methods of the detector as well.")
@click.option("--compare", multiple=True, metavar="TEMPLATE", help="Score another template beside it; repeatable.")
@click.option("--jobs", "-j", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--matrix",
    default="file",
    show_default=True,
    help="Compensation: `file` ($SPILLOVER of each file), `none`, or a matrix file.",
)
@click.option(
    "--state",
    type=click.Choice(["raw", "compensated", "scaled"]),
    default="raw",
    show_default=True,
    help="What the values are; data already on a display scale must be declared `scaled`.",
)
@click.option("--scaled-range", type=Range(), help="Range of scaled data that spans the display, e.g. 0,10000.")
@click.option("--dataset", type=click.IntRange(1), help="Data set to read in files that hold several.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the run.")
@click.option(
    "--templates",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of templates that override the shipped ones.",
)
@click.option("--resume", is_flag=True, help="Score only what changed since the last evaluation in this folder.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write report.html.")
@click.option("--gates/--no-gates", default=True, show_default=True, help="Write a page of gates for each file.")
@click.option("--time/--no-time", "timed", default=True, show_default=True, help="Take the time of each file.")
def command(inputs: tuple[Path, ...], out: Path, template: str | None, reference: Path | None, **options: Any) -> None:
    """Gate LABELLED files (or all FCS files of a folder), compare with their labels, and write the scores.

    Labels lie beside each file as STEM.labels.parquet, .npy, .csv or .csv.gz: one row an event, in file order. Writes
    cases.csv, summary.csv, summary.json, summary.md, findings.csv, run.json and report.html. A file whose labels or
    values cannot be used becomes a finding; the others go on, and the exit code is 3. Apart from time (--no-time), the
    same inputs give the same bytes for any --jobs.
    """
    from flowmrd.evaluation.batch import (
        absent_finding,
        choose_template,
        evaluate,
        list_files,
        prepare,
        read_diagnoses,
        read_groups,
        with_diagnoses,
    )
    from flowmrd.evaluation.comparisons import baselines_of, comparison_templates
    from flowmrd.evaluation.defaults import load_defaults
    from flowmrd.evaluation.scores import ASSESSED, Plan
    from flowmrd.gating.template import find_template

    defaults = load_defaults()
    settings = settings_from({**options, "membership": False})
    folder = options["templates"]
    analyte: str = options["analyte"]
    files = list_files(inputs, options["labels"])
    if not files:
        click.echo("nothing to do: no FCS file in the folders named", err=True)
        sys.exit(EXIT_NOTHING)
    if template is None:
        template = choose_template(files, analyte=analyte, folder=folder, dataset=settings.dataset)
        click.echo(f"template: {template}, by the markers of the first file", err=True)
    chosen = find_template(template, folder)
    measured = [one for one in chosen.measurement if one.analyte == analyte]
    if not measured:
        known = ", ".join(one.analyte for one in chosen.measurement) or "nothing"
        raise SettingsError(f"template {chosen.template.id} measures {known}", where="--analyte")
    comparisons = baselines_of(chosen, measured[0].numerator) if options["baselines"] else ()
    if options["baselines"] and not comparisons:
        click.echo("warning: no comparison method fits this template; --baselines adds nothing", err=True)
    names = [one.name for one in comparisons]
    comparisons += comparison_templates(options["compare"], analyte=analyte, folder=folder, taken=names)
    if options["groups"] is not None and not options["by"]:
        raise SettingsError("needs --by NAME: which of its columns?", where="--groups")
    groups = None if options["groups"] is None else read_groups(options["groups"], options["by"], defaults)
    cases, reading, absent = prepare(
        files,
        defaults=defaults,
        column=options["column"],
        positive=options["positive"],
        denominator=options["denominator"],
        dataset=settings.dataset,
        by=options["by"],
        groups=groups,
    )
    if options["diagnoses"] is not None:
        cases = with_diagnoses(cases, read_diagnoses(options["diagnoses"]))
        linked = sum(bool(case.diagnosis) for case in cases)
        click.echo(f"a diagnosis is known for {linked} of {len(cases)} files", err=True)
    if absent:
        finding = absent_finding(absent)
        click.echo(f"{finding.level}: {finding.message}", err=True)
    plan = Plan(
        template=chosen,
        analyte=analyte,
        settings=settings,
        reading=reading,
        comparisons=comparisons,
        reference=reference,
        levels=options["levels"] or defaults.levels.fractions,
        timed=options["timed"],
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--out: {out} cannot be made: {error.strerror}") from None
    progress = _Progress(len(cases))
    done = evaluate(
        cases,
        plan,
        out,
        defaults=defaults,
        jobs=options["jobs"],
        gates=options["report"] and options["gates"],
        resume=options["resume"],
        absent=absent,
        on_done=progress.step,
    )
    assessed = sum(score.status == ASSESSED for score in done.scores)
    click.echo(f"{assessed} of {len(done.scores)} files assessed; results in {out}")
    if options["report"]:
        from flowmrd.evaluation.page import render_evaluation

        click.echo(f"report: {render_evaluation(done, out)}")
    if assessed < len(done.scores):
        sys.exit(EXIT_SOME_FAILED)


class _Progress:
    """A plain line a file, as each ends."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0

    def step(self, done: Done) -> None:
        """Say what became of one file."""
        self.count += 1
        score, outcome = done.score, done.score.outcome
        if outcome is None or outcome.status != "assessed":
            text = f"{score.status}: {score.reason}"
        else:
            scored = f", F1 {outcome.f1:.2f}" if outcome.f1 is not None else ""
            text = f"{outcome.call}, {score.truth_events:,} true, {outcome.called_events:,} called{scored}"
        kept = " (kept)" if done.reused else ""
        click.echo(f"[{self.count}/{self.total}] {done.name}: {text}{kept}", err=True)
