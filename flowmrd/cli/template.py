"""`flowmrd template`: list, show and check gating templates."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flowmrd.cli import EXIT_USAGE


@click.group(name="template", short_help="List, show and check gating templates.")
def command() -> None:
    """Gating templates: the controlled documents that say how a tube is gated."""


@command.command(name="list")
@click.option("--templates", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another folder.")
def list_(templates: Path | None) -> None:
    """List id, version and title of every template."""
    from flowmrd.gating.template import find_template, template_paths

    for name in template_paths(templates):
        head = find_template(name, templates).template
        click.echo(f"{head.id:24} {head.version:8} {head.title}")


@command.command()
@click.argument("name")
@click.option("--templates", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another folder.")
def show(name: str, templates: Path | None) -> None:
    """Show one template (id or .toml file): panel, gating tree, measurements."""
    from flowmrd.gating.template import ROOT, find_template

    template = find_template(name, templates)
    head = template.template
    click.echo(f"{head.id} {head.version}  {head.title}\nsha256 {template.digest}\n\n{head.purpose.strip()}\n\npanel")
    for spec in template.channel:
        scale = ", ".join(f"{key} {value}" for key, value in spec.transform.items() if key != "kind")
        need = "" if spec.required else " (optional)"
        click.echo(f"  {spec.marker}{need}: {spec.transform['kind']} ({scale}); also {', '.join(spec.aliases) or '-'}")
    click.echo("\ngating")

    def tree(parent: str, depth: int) -> None:
        for row in template.population:
            if row.parent != parent:
                continue
            ways = " | ".join(f"{one.method}({', '.join(one.channels)})" for one in row.choices)
            click.echo(f"{'  ' * depth}{row.name}: {ways}\n{'  ' * depth}    {' '.join(row.purpose.split())}")
            tree(row.name, depth + 1)

    tree(ROOT, 1)
    click.echo("\nmeasurements")
    for one in template.measurement:
        click.echo(f"  {one.analyte} = {one.numerator} / {one.denominator}, rule {one.rules}")


@command.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--templates", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another folder.")
def check(names: tuple[str, ...], templates: Path | None) -> None:
    """Check templates (ids or .toml files); every fault is listed with its place."""
    from flowmrd.errors import TemplateError
    from flowmrd.gating.template import find_template

    bad = False
    for name in names:
        try:
            template = find_template(name, templates)
        except TemplateError as error:
            bad = True
            click.echo(f"error: {error}", err=True)
        except ExceptionGroup as group:
            bad = True
            for fault in group.exceptions:
                click.echo(f"error: {fault}", err=True)
        else:
            click.echo(
                f"{template.template.id} {template.template.version}: ok, {len(template.population)} populations"
            )
    if bad:
        sys.exit(EXIT_USAGE)
