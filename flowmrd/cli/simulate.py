"""`flowmrd simulate`: labelled synthetic acquisitions, one file or a whole subject."""

from __future__ import annotations

from pathlib import Path

import click

from flowmrd.errors import SettingsError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the files.")
@click.option(
    "--demo",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the five visits of the demo subject, with a manifest, into this folder.",
)
@click.option(
    "--subject",
    "subject_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Write the visits of this subject document (TOML), with a manifest, into --out.",
)
@click.option(
    "--reuse",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --demo or --subject: refer to equal files that this folder holds instead of making them again.",
)
@click.option("--name", help="File name without ending (default: tube, scenario and seed).")
@click.option("--tube", default="ball-mrd-10c", show_default=True, help="Tube: ball-mrd-10c, cart-persistence, tbnk.")
@click.option("--events", type=int, default=100_000, show_default=True, help="Events in the file.")
@click.option(
    "--blasts", type=float, default=0.0, show_default=True, help="Blasts as a fraction of nucleated live singlets."
)
@click.option("--scenario", default="normal", show_default=True, help="Composition, as of the tube's profile.")
@click.option("--phenotype", default="random", show_default=True, help="random, hard, or a TOML/JSON file.")
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
def command(
    ctx: click.Context,
    *,
    out: Path | None,
    demo: Path | None,
    subject_file: Path | None,
    reuse: Path | None,
    name: str | None,
    tube: str,
    events: int,
    blasts: float,
    scenario: str,
    phenotype: str,
    cd19: str,
    batch: float,
    lab: str,
    car: float,
    fmo: bool,
    beads: bool | None,
    channels: str,
    seed: int,
    patient_seed: int | None,
    datatype: str,
    byte_order: str,
    profile_file: Path | None,
) -> None:
    """Make labelled synthetic acquisitions: one file, or a whole subject with --subject or --demo.

    Writes NAME.fcs, with its truth beside it in NAME.labels.parquet and NAME.truth.json. Synthetic data for development
    and training; nothing that is measured on them is a claim about patients.
    """
    from flowmrd.simulation import (
        ByteOrder,
        ChannelSet,
        DataType,
        Immunophenotype,
        Parameters,
        PhenotypeDraw,
        TargetStatus,
        demo_subject,
        load_immunophenotype,
        load_profile,
        load_subject,
        simulate,
        write_simulated,
        write_subject,
    )

    if demo is not None or subject_file is not None:
        if demo is not None and (subject_file is not None or out is not None):
            raise SettingsError("stands alone, without --subject and --out", where="--demo")
        _refuse_single_options(ctx)
        folder = demo or out
        if folder is None:
            raise SettingsError("missing option", where="--out", hint="--subject FILE --out DIR")
        document = load_subject(subject_file) if subject_file is not None else demo_subject()
        click.echo(write_subject(document, folder, reuse=reuse, report=click.echo))
        return
    if reuse is not None:
        raise SettingsError("needs --subject or --demo", where="--reuse")
    if out is None:
        raise SettingsError("missing option", where="--out", hint="--out DIR says where the files go")
    drawn: Immunophenotype | PhenotypeDraw
    if phenotype in set(PhenotypeDraw):
        drawn = PhenotypeDraw(phenotype)
    else:
        if not Path(phenotype).is_file():
            raise SettingsError(f"no file {phenotype!r}", where="--phenotype", hint="random, hard, or a TOML/JSON file")
        drawn = load_immunophenotype(Path(phenotype), load_profile(tube, override=profile_file).profile)
    parameters = Parameters(
        tube=tube,
        events=events,
        blasts=blasts,
        scenario=scenario,
        phenotype=drawn,
        cd19=TargetStatus(cd19),
        batch=batch,
        lab=lab,
        car=car,
        beads=beads,
        fmo=fmo,
        channels=ChannelSet(channels),
        patient_seed=patient_seed,
        profile=profile_file,
    )
    files = write_simulated(
        simulate(parameters, seed),
        out,
        name or f"{tube}-{scenario}-{seed}",
        datatype=DataType(datatype),
        byte_order=ByteOrder(byte_order),
    )
    click.echo(files.fcs)


def _refuse_single_options(ctx: click.Context) -> None:
    """Refuse options that a subject document would silently override."""
    shared = {"out", "demo", "subject_file", "reuse"}
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in shared
        and ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise SettingsError(
            "cannot be combined with --subject or --demo", where=given[0], hint="write it into the subject document"
        )
