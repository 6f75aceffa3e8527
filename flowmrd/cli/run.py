"""`flowmrd run`: the main job, from a manifest to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowmrd.cli.options import execute, settings_from, settings_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flowmrd.documents.manifest import Manifest, ManifestRow
    from flowmrd.errors import InputError
    from flowmrd.gating.template import GatingTemplate
    from flowmrd.pipeline import Acquisition


@click.command(name="run", short_help="Run a manifest: gate, measure, report.")
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Run folder to write."
)
@click.option("--dry-run", is_flag=True, help="Check the manifest and templates, say what would be done, and stop.")
@settings_options
def command(manifest: Path, out: Path, dry_run: bool, **options: object) -> None:
    """Gate every acquisition of MANIFEST (CSV or JSON, one row an acquisition), measure, and write a report.

    The manifest and all templates are checked before the first file is opened. A file that cannot be trusted becomes a
    finding; the others go on, and the exit code is 3.
    """
    from flowmrd.documents.loader import raise_faults
    from flowmrd.documents.manifest import load_manifest
    from flowmrd.gating.template import find_template, template_paths

    if manifest.read_bytes()[:3] == b"FCS":
        raise click.UsageError(f"{manifest.name} is an FCS file, not a manifest; use `flowmrd gate` for single files")
    settings = settings_from(options)
    folder = None if settings.templates is None else Path(settings.templates)
    read = load_manifest(manifest, known_tubes=tuple(template_paths(folder)))
    templates = {tube: find_template(tube, folder) for tube in sorted({row.tube for row in read.rows})}
    raise_faults(_gate_set_faults(read, templates), source=manifest.name)
    acquisitions = [_acquisition(row, read) for row in read.rows]
    if dry_run:
        for one in acquisitions:
            own = "" if one.gate_set is None else f", gate set {one.gate_set.gate_set.id}"
            click.echo(f"{one.name}: {one.subject} {one.visit}, {one.tube}, {Path(one.path).name}{own}")
        return
    execute(acquisitions, out, settings, options, manifest_sha256=read.digest)


def _gate_set_faults(manifest: Manifest, templates: Mapping[str, GatingTemplate]) -> Iterator[InputError]:
    """Check each gate set against its tube's template; faults name the row and column that brought it in."""
    from flowmrd.errors import ManifestError
    from flowmrd.gating.gate_set import gate_set_faults

    for (_, tube), named in manifest.gate_sets.items():
        for fault in gate_set_faults(named.gate_set, templates[tube], error=ManifestError):
            where = f"row {named.row}, column gate_set"
            yield ManifestError(str(fault), source=manifest.path.name, where=where)


def _acquisition(row: ManifestRow, manifest: Manifest) -> Acquisition:
    """Turn a manifest row into a line of work; the row's matrix comes before the command line's."""
    from flowmrd.documents.manifest import Answer
    from flowmrd.pipeline import Acquisition

    # Neither infused yet nor a therapy on record, and the request does not say "no": not stated.
    after = True if row.after_cd19_therapy else False if row.prior_anti_cd19 is Answer.NO else None
    matrix = None if row.matrix == "file" else str(row.matrix_path) if row.matrix_path else row.matrix
    return Acquisition(
        name=row.acquisition,
        path=str(row.fcs_path),
        tube=row.tube,
        subject=row.patient_pseudonym,
        visit=row.visit,
        study_day=row.study_day,
        specimen_type=str(row.specimen_type),
        after_cd19_therapy=after,
        matrix=matrix,
        expected_sha256=row.fcs_sha256,
        gate_set=manifest.gate_set_of(row),
        findings=manifest.warnings.get(row.acquisition, ()),
    )
