"""`flowmrd kinetics`: cellular kinetics of a table of counts, without any FCS file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flowmrd.documents.counts import CountRow
    from flowmrd.quantification.kinetics import Course


@click.command(name="kinetics", short_help="Cellular kinetics from a table of counts.")
@click.argument("counts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write the timeline (HTML).")
def command(counts: Path, out: Path, *, report: bool) -> None:
    """Peak, exposure, decline, persistence and B-cell aplasia of COUNTS (CSV, one row a subject, course and day).

    Columns: subject, day, car_per_ul, lod_per_ul; course, ci_low, ci_high, cd19_per_ul, copies_per_ug, lod_pct_cd3,
    b_pct_lymph, cd4_cd8_ratio, terminal, visit as far as known. Writes OUT/kinetics.csv, one row a subject and course,
    OUT/kinetics_samples.csv, OUT/kinetics_findings.csv and OUT/timeline.html.
    """
    from flowmrd.documents.counts import load_counts
    from flowmrd.records import write_kinetics

    table = load_counts(counts)
    courses = courses_of(table.rows)
    # Messages name no subject; the row where a course starts leads to it.
    first: dict[tuple[str, int], int] = {}
    for row in table.rows:
        first.setdefault((row.subject, row.course), row.row)
    try:
        write_kinetics(courses, out)
    except OSError as error:
        raise click.UsageError(f"--out: {out} cannot be written: {error.strerror}") from None
    for one in courses:
        for finding in one.findings:
            if finding.level != "info":
                place = f"{finding.where} of the subject in row {first[one.kinetics.subject, one.kinetics.course]}"
                click.echo(f"{finding.level}: {finding.code}: {finding.message} ({place})", err=True)
    click.echo(f"{len(courses)} course{'s' if len(courses) != 1 else ''}; results in {out}")
    if report:
        from flowmrd.reporting.timeline import course_timeline, render_timeline

        page = render_timeline([course_timeline(one) for one in courses], out / "timeline.html")
        click.echo(f"timeline: {page}")


def courses_of(rows: Sequence[CountRow]) -> tuple[Course, ...]:
    """Compute every subject's courses, in the order in which they first occur."""
    from flowmrd.quantification.kinetics import Sample, subject_courses

    return subject_courses(
        (
            row.subject,
            row.course,
            Sample(
                day=row.day,
                car_per_ul=row.car_per_ul,
                lod_per_ul=row.lod_per_ul,
                ci_low=row.ci_low,
                ci_high=row.ci_high,
                lod_fraction=row.lod_fraction,
                cd19_per_ul=row.cd19_per_ul,
                b_fraction=row.b_fraction,
                copies_per_ug=row.copies_per_ug,
                cd4_cd8_ratio=row.cd4_cd8_ratio,
                terminal=row.terminal,
                label=row.visit,
            ),
        )
        for row in rows
    )
