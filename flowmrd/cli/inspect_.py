"""`flowmrd inspect`: what a file holds, and whether it can be trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

EXIT_SOME_FAILED = 3


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, readable=True))
@click.option("--dataset", type=click.IntRange(min=1), help="Data set to read where a file holds several, from 1.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a file.")
def command(files: tuple[str, ...], dataset: int | None, as_json: bool) -> None:
    """Say what FCS FILES hold and whether they can be trusted.

    Every file is read to its last byte. Exit code 0: all are readable; 3: at least one was refused.
    """
    from flowmrd.fcs import Verdict, inspect_fcs

    refused = False
    reports: list[dict[str, Any]] = []
    for name in files:
        try:
            report = inspect_fcs(name, dataset=dataset)
        except OSError as error:
            raise click.FileError(Path(name).name, hint=error.strerror or "cannot be read") from error
        refused = refused or report["verdict"] == Verdict.REFUSED
        reports.append(report)
        if not as_json:
            click.echo(_text(report))
    if as_json:
        click.echo(json.dumps(reports, indent=1))
    if refused:
        sys.exit(EXIT_SOME_FAILED)


def _text(report: dict[str, Any]) -> str:
    """One file for people: verdict first, then findings, then channels."""
    lines = [f"{_clean(Path(report['file']).name)}: {report['verdict']}"]
    if report["events"] is not None:
        which = f", data set {report['dataset']} of {report['datasets']}" if report["datasets"] > 1 else ""
        spillover = report["spillover"]
        matrix = f"spillover of {len(spillover['channels'])} channels" if spillover else "no spillover"
        counts = f"{report['events']:,} events, {len(report['channels'])} channels"
        lines.append(f"  FCS {report['version']}{which}, {counts}, {matrix}")
    lines.append(f"  sha256 {report['sha256']}")
    for finding in report["findings"]:
        where = f" [{_clean(finding['where'])}]" if finding["where"] else ""
        lines.append(f"  {finding['level']:9s} {finding['code']}: {_clean(finding['message'])}{where}")
    channels = report["channels"]
    if channels:
        names = [_clean(c["pnn"]) for c in channels]
        labels = [_clean(c["pns"]) for c in channels]
        name_width = max(len("$PnN"), *map(len, names))
        label_width = max(len("$PnS"), *map(len, labels))
        lines.append(f"  {'n':>4s}  {'$PnN':{name_width}s}  {'$PnS':{label_width}s}  kind")
        lines += [
            f"  {c['index'] + 1:4d}  {name:{name_width}s}  {label:{label_width}s}  {c['kind']}"
            for c, name, label in zip(channels, names, labels, strict=True)
        ]
    return "\n".join(lines) + "\n"


def _clean(text: str) -> str:
    """Text from a file without characters that would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
