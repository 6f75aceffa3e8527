"""What `run` and `gate` share: settings, progress, exit codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from flowmrd.cli import EXIT_NOTHING, EXIT_QC, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from flowmrd.errors import QcFinding
    from flowmrd.execution import Done
    from flowmrd.pipeline import Acquisition
    from flowmrd.settings import Settings
    from flowmrd.trial import Inputs

_F = TypeVar("_F", bound=Callable[..., Any])


class Range(click.ParamType[tuple[float, float]]):
    """Two numbers, LOW,HIGH."""

    name = "LOW,HIGH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Read LOW,HIGH."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"expected two numbers LOW,HIGH, got {value!r}", param, ctx)
        if not low < high:
            self.fail(f"LOW must be below HIGH, got {value!r}", param, ctx)
        return low, high


def settings_options(command: _F) -> _F:
    """Add the options that both commands know."""
    for option in reversed(
        (
            click.option(
                "--jobs", "-j", type=click.IntRange(1), default=1, show_default=True, help="Worker processes."
            ),
            click.option(
                "--membership", is_flag=True, help="Write each event's membership (Parquet, one column a population)."
            ),
            click.option(
                "--matrix",
                default="file",
                show_default=True,
                help="Compensation: `file` ($SPILLOVER of each file), `none`, or a matrix file.",
            ),
            click.option(
                "--state",
                type=click.Choice(["raw", "compensated", "scaled"]),
                default="raw",
                show_default=True,
                help="What the values are; data already on a display scale must be declared `scaled`.",
            ),
            click.option(
                "--scaled-range", type=Range(), help="Range of scaled data that spans the display, e.g. 0,10000."
            ),
            click.option("--dataset", type=click.IntRange(1), help="Data set to read in files that hold several."),
            click.option(
                "--reference",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Reference of normal cells (`flowmrd reference build`); by default the template's shipped one.",
            ),
            click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the run."),
            click.option(
                "--templates",
                type=click.Path(exists=True, file_okay=False, path_type=Path),
                help="Folder of templates that override the shipped ones.",
            ),
            click.option("--resume", is_flag=True, help="Redo only what changed since the last run into this folder."),
            click.option("--report/--no-report", default=True, show_default=True, help="Write the HTML report."),
            click.option("--single-file", is_flag=True, help="Write the report as one HTML file."),
            click.option("--fail-on-qc", is_flag=True, help="Exit 4 when any acquisition fails QC."),
        )
    ):
        command = option(command)
    return command


def settings_from(options: dict[str, Any]) -> Settings:
    """Build the run's settings from the command line."""
    from flowmrd.cytometry.events import DataState
    from flowmrd.settings import Settings

    matrix = str(options["matrix"])
    if matrix not in {"file", "none"} and not Path(matrix).is_file():
        raise click.UsageError(f"--matrix: no file {matrix!r}; give `file`, `none` or the path of a matrix file")
    return Settings(
        seed=options["seed"],
        state=DataState(options["state"]),
        scaled_range=options["scaled_range"],
        matrix=matrix,
        dataset=options["dataset"],
        templates=None if options["templates"] is None else str(options["templates"]),
        reference=None if options.get("reference") is None else str(options["reference"]),
        membership=options["membership"],
    )


def execute(
    acquisitions: Sequence[Acquisition],
    out: Path,
    settings: Settings,
    options: dict[str, Any],
    *,
    manifest_sha256: str = "",
    clinical: Inputs | None = None,
) -> None:
    """Run, show progress, say where the report is, and leave with the exit code of docs/reference/cli.md."""
    from flowmrd.execution import run

    if not acquisitions:
        click.echo("nothing to do: no acquisition is listed", err=True)
        sys.exit(EXIT_NOTHING)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--out: {out} cannot be made: {error.strerror}") from None
    with _Progress(len(acquisitions)) as progress:
        outcome = run(
            acquisitions,
            out,
            settings=settings,
            jobs=options["jobs"],
            resume=options["resume"],
            manifest_sha256=manifest_sha256,
            clinical=clinical,
            on_done=progress.step,
        )
    if outcome.trial is not None:
        say_findings(outcome.trial.findings)
    page = None
    if options["report"]:
        from flowmrd.reporting.report import render_report

        page = render_report(
            outcome.results, outcome.record, out / "report", single_file=options["single_file"], trial=outcome.trial
        )
    failed = [done for done in outcome.done if done.failed]
    qc_failed = [done for done in outcome.done if done.qc == "FAIL"]
    click.echo(f"{len(outcome.done) - len(failed)} of {len(outcome.done)} acquisitions assessed; results in {out}")
    if outcome.trial is not None:
        calls, rules = outcome.trial.outcomes.calls, outcome.trial.inputs.criteria
        click.echo(f"{len(calls)} visits classed by {rules.id} {rules.version}")
    if page is not None:
        click.echo(f"report: {page}")
    if failed:
        sys.exit(EXIT_SOME_FAILED)
    if qc_failed and options["fail_on_qc"]:
        sys.exit(EXIT_QC)


def say_findings(findings: Iterable[QcFinding]) -> None:
    """Tell the findings of tables, one a line."""
    for finding in findings:
        place = f"{finding.where}: " if finding.where else ""
        click.echo(f"{finding.level}: {place}{finding.code}: {finding.message}", err=True)


def beside(table: Path, named: Mapping[str, Path | None], files: Mapping[str, str]) -> dict[str, Path | None]:
    """Take the tables that lie beside the clinical table where no option names another, and say so."""
    found: dict[str, Path | None] = {}
    for name, path in named.items():
        near = table.parent / files[name]
        if path is None and near.is_file() and near.resolve() != table.resolve():
            click.echo(f"{name.replace('_', ' ')}: {near.name}, found beside {table.name}", err=True)
            found[name] = near
        else:
            found[name] = path
    return found


class _Progress:
    """A bar with rate and remaining time on a terminal, a plain line an acquisition elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0
        self.started = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.bar.__enter__()
            self.task = self.bar.add_task("acquisitions", total=self.total, rate="")
        return self

    def __exit__(self, *details: object) -> None:
        if self.bar is not None:
            self.bar.__exit__(*details)

    def step(self, done: Done) -> None:
        self.count += 1
        seconds = max(time.monotonic() - self.started, 1e-6)
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=done.name, rate=f"{self.count / seconds * 60:.1f}/min")
            return
        state = "kept" if done.reused else "failed" if done.failed else done.qc
        click.echo(
            f"[{self.count}/{self.total}] {done.name}: {state}, {done.events:,} events; {done.summary}", err=True
        )
