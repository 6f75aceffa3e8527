"""`flowmrd gate`: gate files by a template, without clinical context."""

from __future__ import annotations

from pathlib import Path

import click

from flowmrd.cli.options import execute, settings_from, settings_options


@click.command(name="gate", short_help="Gate FCS files by a template, without clinical context.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--template", "-t", required=True, help="Template id (see `flowmrd template list`) or a .toml file.")
@click.option("--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@settings_options
def command(files: tuple[Path, ...], template: str, out: Path, **options: object) -> None:
    """Gate FILES by one template: populations, measurement, findings and a report, without subject or visit."""
    from flowmrd.pipeline import Acquisition

    stems: dict[str, Path] = {}
    for path in files:
        if path.stem in stems:
            raise click.UsageError(
                f"two files have the name {path.stem!r}: {stems[path.stem]} and {path}; "
                "their results would overwrite each other"
            )
        stems[path.stem] = path
    acquisitions = [Acquisition(name=path.stem, path=str(path), tube=template) for path in files]
    execute(acquisitions, out, settings_from(options), options)
