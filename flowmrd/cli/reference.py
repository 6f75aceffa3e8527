"""`flowmrd reference`: build a reference of normals, and say what one rests on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from flowmrd.cli import EXIT_SOME_FAILED
from flowmrd.cli.options import Range, settings_from


class _ManyAfterOption(click.Command):
    """A command whose `--diagnoses` takes every path up to the next option, as a shell's `*` gives them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its paths."""
        out: list[str] = []
        taking = False
        for arg in args:
            if arg == "--diagnoses":
                taking = True
                continue
            if arg.startswith("-") and arg != "-":
                taking = False
            out += ["--diagnoses", arg] if taking else [arg]
        return super().parse_args(ctx, out)


@click.group(name="reference", short_help="Build and show references of normal cells.")
def command() -> None:
    """References of normals: what the search for blasts compares a sample with."""


@command.command(cls=_ManyAfterOption)
@click.argument("normals", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--diagnoses",
    multiple=True,
    metavar="FILE...",
    type=click.Path(exists=True, path_type=Path),
    help="Files with many blasts, labelled beside the file (<stem>.labels.…) or found by the template's static rule. "
    "Takes every path up to the next option.",
)
@click.option("--template", "-t", required=True, help="Template id or .toml file: the tube.")
@click.option("--out", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--name", help="Name of the reference; by default the file's stem.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of every draw.")
@click.option("--column", help="Column of the labels.")
@click.option("--positive", multiple=True, metavar="VALUE", help="Label that means a blast (repeatable).")
@click.option("--simulated", is_flag=True, help="Mark the reference as made from simulated marrows.")
@click.option("--matrix", default="file", show_default=True, help="Compensation: `file`, `none`, or a matrix file.")
@click.option("--state", type=click.Choice(["raw", "compensated", "scaled"]), default="raw", show_default=True)
@click.option("--scaled-range", type=Range(), help="Range of scaled data that spans the display.")
@click.option("--dataset", type=click.IntRange(1), help="Data set to read in files that hold several.")
@click.option("--templates", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of templates.")
def build(normals: tuple[Path, ...], diagnoses: tuple[Path, ...], template: str, out: Path, **options: Any) -> None:
    """Learn from NORMALS (FCS files or folders): marrows without leukemia, regenerating ones and bad days included.

    At least six normals, better thirty: what is unusual can only be known from many. The file written holds numbers
    only, no code and no patient's name; its SHA-256 goes into every result.
    """
    from threadpoolctl import threadpool_limits

    from flowmrd.errors import InputError
    from flowmrd.gating.detection.storage import to_bytes
    from flowmrd.gating.template import find_template
    from flowmrd.learning import FEW_NORMALS, build_reference

    settings = settings_from({**options, "membership": False, "reference": None})
    found = find_template(template, None if settings.templates is None else Path(settings.templates))
    many, few = _files(normals), _files(diagnoses)
    both = {path.resolve() for path in many} & {path.resolve() for path in few}
    if both:
        raise click.UsageError(f"{len(both)} files are given as normal and as diagnosis, e.g. {min(both).name}")
    try:
        # One thread: sums are then the same on every machine, and so is the file.
        with threadpool_limits(1):
            built = build_reference(
                many,
                few,
                found,
                settings,
                name=options["name"] or out.stem,
                column=options["column"],
                positive=options["positive"],
                simulated=options["simulated"],
                progress=lambda text: click.echo(text, err=True),
            )
    except InputError as error:
        raise click.ClickException(str(error)) from None
    data = to_bytes(built.reference)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    temporary.replace(out)
    for remark in built.remarks:
        click.echo(f"note: {remark}", err=True)
    for name, why in built.left_out:
        click.echo(f"left out: {name}: {why}", err=True)
    if built.reference.normals < FEW_NORMALS:
        click.echo(f"warning: {built.reference.normals} normals; results will be for review", err=True)
    _show(out)
    if built.left_out:
        sys.exit(EXIT_SOME_FAILED)


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def show(file: Path) -> None:
    """Say what a reference rests on."""
    _show(file)


def _show(file: Path) -> None:
    from flowmrd.gating.detection.storage import load_reference

    one = load_reference(file)
    judge = one.learnt.judge
    click.echo(f"{one.name}: reference for {one.template} {one.template_version}, SHA-256 {one.digest}")
    click.echo(
        f"  made from {'simulated ' if one.simulated else ''}marrows: {one.normals} normals, {one.diagnoses} diagnoses"
    )
    click.echo(f"  markers: {', '.join(one.features)}")
    if one.optional:
        click.echo(f"  a sample may lack: {', '.join(one.optional)}")
    click.echo(f"  seed {one.seed}, flowmrd {one.software}, {len(one.inputs)} different files")
    click.echo(
        f"  a group is accepted from {judge.accept:.2f}, reviewed from {judge.review:.2f}; "
        f"own error of a count {judge.relative_error:.1%}"
    )
    for key, value in sorted(one.trials.items()):
        click.echo(f"  held-out trials, {key.replace('_', ' ')}: {value:g}")
    for control in one.controls:
        click.echo(
            f"  control {control.marker} of {control.population}: {control.median:.3f} (sd {control.sd:.3f}, "
            f"{control.marrows} marrows)"
        )


def _files(paths: tuple[Path, ...]) -> list[Path]:
    """Return the files; of a folder all FCS files in it, by name."""
    out: list[Path] = []
    for path in paths:
        out += sorted(p for p in path.iterdir() if p.suffix.lower() in {".fcs", ".lmd"}) if path.is_dir() else [path]
    return out
