"""`flowmrd run`: the main job, from a manifest to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowmrd.cli.options import execute, settings_from, settings_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flowmrd.assessment import Request
    from flowmrd.cart_tube import Control, Reagent, Specimen
    from flowmrd.documents.manifest import ControlKind, Manifest, ManifestRow
    from flowmrd.errors import InputError
    from flowmrd.gating.template import GatingTemplate
    from flowmrd.pipeline import Acquisition
    from flowmrd.trial import Inputs


@click.command(name="run", short_help="Run a manifest: gate, measure, report.")
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Run folder to write."
)
@click.option(
    "--clinical",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Clinical table (CSV, as of `flowmrd respond`): class the response at each visit, with the run's own MRD.",
)
@click.option("--criteria", "-c", help="With --clinical: criteria id or TOML file.  [default: mbcart19]")
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --clinical: dose, lymphodepletion, burden (CSV).  [default: baseline.csv beside it]",
)
@click.option(
    "--adverse-events",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --clinical: adverse events (CSV).  [default: adverse_events.csv beside it]",
)
@click.option("--dry-run", is_flag=True, help="Check the manifest and templates, say what would be done, and stop.")
@settings_options
def command(
    manifest: Path,
    out: Path,
    clinical: Path | None,
    criteria: str | None,
    baseline: Path | None,
    adverse_events: Path | None,
    dry_run: bool,
    **options: object,
) -> None:
    """Gate every acquisition of MANIFEST (CSV or JSON, one row an acquisition), measure, and write a report.

    The manifest, all templates and clinical tables are checked before the first file is opened. A file that cannot be
    trusted becomes a finding; the others go on, and the exit code is 3.

    With --clinical the run folder also holds the response at each visit with its rule and evidence, and the report a
    page for each patient and one for the cohort. `patient_id` is the manifest's `patient_pseudonym`.
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
    tables = _tables(clinical, criteria, baseline, adverse_events)
    if dry_run:
        for one in acquisitions:
            own = "" if one.gate_set is None else f", gate set {one.gate_set.gate_set.id}"
            click.echo(f"{one.name}: {one.subject} {one.visit}, {one.tube}, {Path(one.path).name}{own}")
        return
    execute(acquisitions, out, settings, options, manifest_sha256=read.digest, clinical=tables)


def _tables(
    clinical: Path | None, criteria: str | None, baseline: Path | None, adverse_events: Path | None
) -> Inputs | None:
    """Read and check the clinical tables, if there are any."""
    from flowmrd.cli.options import beside
    from flowmrd.clinical.rules import load_criteria
    from flowmrd.trial import BESIDE, load_inputs

    named = {"baseline": baseline, "adverse_events": adverse_events}
    if clinical is None:
        for name, value in {"criteria": criteria, **named}.items():
            if value is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} needs --clinical")
        return None
    return load_inputs(clinical, load_criteria(criteria), **beside(clinical, named, BESIDE))


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
        specimen=_specimen(row, manifest),
        request=_request(row),
        controls=_controls(row, manifest),
        findings=manifest.warnings.get(row.acquisition, ()),
    )


def _request(row: ManifestRow) -> Request:
    """Gather what the row says of therapies and handling; the columns prior_anti_* name the targets."""
    from flowmrd.assessment import Request
    from flowmrd.documents.manifest import Answer

    words = {Answer.YES: "given", Answer.NO: "not_given"}
    therapies = {
        name.removeprefix("prior_anti_").upper(): words.get(getattr(row, name), "not_stated")
        for name in type(row).model_fields
        if name.startswith("prior_anti_")
    }
    if row.after_cd19_therapy:
        therapies["CD19"] = "given"  # the infusion itself
    hours = None
    if row.collected_at is not None and row.stained_at is not None:
        hours = (row.stained_at - row.collected_at).total_seconds() / 3600
    return Request(therapies=tuple(therapies.items()), age_hours=hours, pull_number=row.pull_number)


def _specimen(row: ManifestRow, manifest: Manifest) -> Specimen:
    """Gather what the row says for absolute counts and courses; what only is a control belongs to no course."""
    from flowmrd.cart_tube import Specimen
    from flowmrd.documents.manifest import ControlKind, SpecimenType

    only_control = any(
        name == row.acquisition and kind is not ControlKind.PRE_INFUSION
        for other in manifest.rows
        for name, kind in _named_controls(other)
    )
    return Specimen(
        course=row.course or 1,
        in_course=row.specimen_type is SpecimenType.PB and not only_control,
        collected_at=row.collected_at,
        reagent=_reagent(row),
        beads_lot=row.beads_lot,
        beads_added=row.beads_added,
        blood_volume_ul=row.blood_volume_ul,
        dilution_factor=row.dilution_factor,
        wbc_1e9_l=row.wbc_1e9_l,
        wbc_at=row.wbc_at,
        lymph_pct=row.lymph_pct,
        copies_per_ug=row.copies_per_ug,
    )


def _named_controls(row: ManifestRow) -> list[tuple[str, ControlKind]]:
    """Pair each control of a row with its kind; one kind stands for all, none for a sample before the infusion."""
    from flowmrd.documents.manifest import ControlKind

    kinds = row.control_kind or (ControlKind.PRE_INFUSION,)
    kinds = kinds * len(row.control_acquisition) if len(kinds) == 1 else kinds
    return list(zip(row.control_acquisition, kinds, strict=True))


def _reagent(row: ManifestRow) -> Reagent:
    from flowmrd.cart_tube import Reagent

    return Reagent(name=row.car_reagent, clone=row.car_clone, lot=row.car_lot)


def _controls(row: ManifestRow, manifest: Manifest) -> tuple[Control, ...]:
    from flowmrd.cart_tube import POSITIVE_KIND, Control
    from flowmrd.documents.manifest import ControlKind, SpecimenType

    by_name = {one.acquisition: one for one in manifest.rows}
    found = []
    for name, kind in _named_controls(row):
        one = by_name[name]
        # The product itself holds the cells; only its untransduced T cells are a negative control.
        product = one.specimen_type is SpecimenType.PRODUCT and kind is not ControlKind.UNTRANSDUCED
        found.append(
            Control(
                name=name,
                path=str(one.fcs_path),
                kind=POSITIVE_KIND if product else str(kind),
                tube=one.tube,
                matrix=None if one.matrix == "file" else str(one.matrix_path) if one.matrix_path else one.matrix,
                sha256=one.fcs_sha256,
                reagent=_reagent(one),
            )
        )
    return tuple(found)
