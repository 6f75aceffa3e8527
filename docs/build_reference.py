# ruff: noqa: INP001 - a script, not a package
"""Write the generated reference pages; with --check, say which differ from what the code says.

    python docs/build_reference.py            writes docs/reference/{cli,templates,template-format}.md
    python docs/build_reference.py --check    exits with 1 where a page is out of date

The pages come from the command line's help texts, the shipped templates and the models that check a template. What each
template key means stands here, and a key without a meaning stops the script.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = REPOSITORY / "docs" / "reference"
NOTICE = "<!-- Written by docs/build_reference.py (`make docs`); do not edit. -->"
HELP_WIDTH = 100

# ------------------------------------------------------------------------------------------------------ command line

EXIT_CODES = {
    "0": ("", "done; findings may still ask for a look"),
    "1": ("EXIT_INTERNAL", "an error inside flowmrd: please report it"),
    "2": ("EXIT_USAGE", "wrong option, or a manifest or template that is not valid; nothing was analysed"),
    "3": ("EXIT_SOME_FAILED", "at least one file could not be read or assessed; the others were"),
    "4": ("EXIT_QC", "at least one acquisition fails QC, and `--fail-on-qc` was given"),
    "5": ("EXIT_NOTHING", "nothing to do: no acquisition was listed"),
    "130": ("EXIT_INTERRUPTED", "interrupted from the keyboard; with `--resume` the next run keeps what was done"),
}


def _commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield (full name, help text) of a command and those below it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _commands(below, click.Context(below, info_name=name, parent=context, terminal_width=HELP_WIDTH))


def cli_page() -> str:
    """Return the help text of every command, and the exit codes."""
    cli = importlib.import_module("flowmrd.cli")
    declared = {name: value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    described = {name: int(code) for code, (name, _) in EXIT_CODES.items() if name}
    if declared != described:
        raise SystemExit(f"exit codes of flowmrd.cli are {declared}; EXIT_CODES describes {described}")
    lines = [NOTICE, "", "# Command line", ""]
    lines += ["`flowmrd` never opens a network connection. Help for each command: `flowmrd COMMAND --help`.", ""]
    context = click.Context(cli.cli, info_name="flowmrd", terminal_width=HELP_WIDTH, **cli.cli.context_settings)
    for path, text in _commands(cli.cli, context):
        lines += [f"## {path}", "", "```text", *(line.rstrip() for line in text.splitlines()), "```", ""]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, (_, meaning) in EXIT_CODES.items()]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------- template format

MEANING: Mapping[str, Mapping[str, str]] = {
    "Head": {
        "id": "name of the template and of its file; the manifest's `tube`",
        "version": "raise it with every change that can move a number",
        "title": "one line for lists and reports",
        "specimens": "specimen types the tube is meant for",
        "purpose": "what the tube is for, and the idea of its gating",
        "sources": "where the order of gates and the numbers come from",
        "approved_by": "who approved this version; goes into `run.json`",
        "notes": "limits a reader must know",
    },
    "MarkerSpec": {
        "marker": "name used in the whole template",
        "aliases": "labels under which files carry it; dyes beside a label do not matter (`CD19 PE-Cy7`)",
        "role": "what it measures; only `fluor` is compensated",
        "required": "if false, a file without it still runs, and what needs it falls back",
        "transform": "display scale, see [scales](#scales)",
    },
    "Population": {
        "name": "unique in the template",
        "title": "what people call it, where that is no such name: `CD4+ T` of another program's document",
        "parent": "population it is taken from, or `root` for all events",
        "purpose": "one sentence for the report: what it is and why",
        "kind": "`clean_up` removes what is no cell of interest, `control` serves other gates, `target` is the result",
        "otherwise": "further ways, tried in order where the way before is not possible",
        "last": "what stands when no way is possible: the whole parent or nothing; by default whole for `clean_up`",
        "plot": "two markers to draw it on, where its own channels are not two",
        "method": "gate method, see [methods](#gate-methods)",
        "channels": "markers the method looks at, in its order",
        "params": "parameters of the method",
        "bounds": "validated range of a value that the method finds: `{ cut = [low, high] }`",
        "on_bound": "a value outside its bounds is set to the bound, or the next way is tried",
        "min_events": "fewest events of the parent for this way",
        "because": "why this way stands in, for readers of the template",
    },
    "Measurement": {
        "analyte": "what is reported, such as `MRD`",
        "kind": "`mrd`: judged against the decision line, with `mrd_neg_1e4`; `fraction`: a share with its limits; "
        "`own`: by the subject's own phenotype; `car`, `car_detected`, `car_absolute`, `aplasia`: of the CAR-T tube",
        "numerator": "population counted",
        "denominator": "population it is divided by; always named in results",
        "rules": "event rules for LOD and LLOQ (`flowmrd/quantification/rules/mrd.toml`)",
        "target_fraction": "decision line, as a fraction",
        "lod_events": "events for detection, where the laboratory's validation differs from the rules",
        "lloq_events": "events for a number, likewise",
        "channel": "marker of the CAR detection reagent, for the kinds about CAR",
        "strata": "populations by which a control is weighed to the sample's composition",
        "assay_lob": "limit of blank of the assay from its validation, as a fraction",
        "assay_lod": "limit of detection of the assay as a fraction; the reported LOD is never below it",
        "assay_lloq": "limit of quantitation of the assay, likewise",
        "unit": "unit of `value`",
        "therapy_target": "antigen whose loss under therapy would hide the numerator",
        "routes": "ways to the lineage that do without that antigen",
    },
    "Route": {
        "name": "for people",
        "markers": "markers the way takes; it counts where the file has all of them",
    },
    "Plot": {
        "parent": "population drawn",
        "x": "marker",
        "y": "marker",
        "purpose": "one sentence for the report",
    },
    "Override": {
        "subject": "`patient_pseudonym` of the manifest",
        "population": "whose gate is replaced",
        "gate": "the gate, as in `result.json`: `kind`, `markers`, numbers in scaled units",
        "by": "who drew it",
        "source": "on which file",
    },
    "Quality": {
        "singlets": "population judged as singlets of all events",
        "singlets_of": "population that singlets are a share of; all events without it",
        "viable": "population judged as viable of singlets",
        "denominator": "population whose size is judged",
        "gating_markers": "markers whose channels can fail the margin and drift checks",
        "internal": "normal lymphocytes; a sample that shows none of these populations goes to review",
        "negatives": "internal negatives (T cells): what lies far below them is over-compensated",
        "lacking": "markers that neither the negatives nor anything that passes for them has",
        "marrow": "cell type of the hemodilution rules (`erythroid`, `progenitors`, `plasma_cells`) → its population",
        "blood": "cells that are mostly in blood (mature T cells), compared with blood of the same day",
        "normal": "normal cells of the lineage, whose presence every report states",
        "phenotypes": "boxes of events that no clean-up step may take away in number, see below",
    },
    "Antigen": {
        "marker": "target of a therapy, followed from visit to visit",
        "population": "whose antigen it is: the blasts",
        "negative": "internal negatives (T cells); their 99th percentile is the threshold",
        "normal": "cells that carry the antigen in health: half of their median is the border of dim",
    },
    "InternalControl": {
        "population": "normal cells that every sample of the tube should hold",
        "against": "population whose median the limits count from; without it they are values of the scale",
        "share": "a limit is broken when more than this share of the population lies beyond it; 0.5 is the median",
        "min_events": "fewer events of the population prove nothing",
        "low": "marker → value that the cells should not lie below",
        "high": "marker → value that the cells should not lie above",
        "above": "marker → marker that must be dimmer on at least 1 - `share` of the cells",
        "together": "only all limits broken at once break the control",
        "needs": "population → events that it must have, or the control proves nothing",
        "beside": "markers without which the control is not needed",
        "without": "population whose events do not count: the blasts, where they lie where the control's cells do",
        "without_from": "share of the denominator from which on `without` is left out; fewer are judged with the rest",
        "purpose": "one sentence for the report: what is expected, and why",
    },
    "Phenotype": {
        "name": "for people, such as `CD34+`",
        "low": "marker → least value",
        "high": "marker → value it must stay below",
    },
}
# Types that their annotation does not say well.
WRITTEN = {("MarkerSpec", "transform"): "table"}
TABLES = {
    "Head": ("[template]", "Identity of the document. One a file."),
    "MarkerSpec": ("[[channel]]", "The panel: one entry a marker."),
    "Population": ("[[population]]", "The gating strategy: one row a population, parents anywhere."),
    "Measurement": ("[[measurement]]", "What is reported."),
    "Route": ("routes of a measurement", "`routes = [{ name = …, markers = […] }]`"),
    "Plot": ("[[plot]]", "An extra view without a gate of its own."),
    "Override": ("[[override]]", "One subject's own gate, in place of the template's."),
    "Quality": ("[quality]", "What the acquisition checks look at."),
    "Antigen": ("[[antigen]]", "A target whose presence on the blasts is followed."),
    "InternalControl": ("[[internal_control]]", "What normal cells must look like; else the result goes to review."),
    "Phenotype": ("phenotypes of [quality]", "`phenotypes = [{ name = …, low = { … }, high = { … } }]`"),
}
METHOD_ORDER = ("geometric", "density", "mixture", "scatter", "time")


def _type(annotation: Any) -> str:
    """Write a type for people who write TOML."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    plain = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "", Any: "any"}
    if annotation in plain:
        return plain[annotation]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if origin in {typing.Union, types.UnionType}:
        if set(args) >= {float, str}:
            rest = [one for one in args if one not in {float, str, type(None)}]
            return " or ".join(["number or `population.value`", *map(_type, rest)])
        return " or ".join(text for text in map(_type, args) if text)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return (
                "list of tables"
                if isinstance(args[0], type) and issubclass(args[0], BaseModel)
                else f"list of {_type(args[0])}"
            )
        return f"[{', '.join(map(_type, args))}]"
    if origin is dict:
        return f"table of {_type(args[1])}" if args[1] is not Any else "table"
    raise SystemExit(f"no words for the type {annotation!r}")


def _constraint(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least"}
    parts = []
    for item in field.metadata:
        for name, sign in signs.items():
            value = getattr(item, name, None)
            if value is not None:
                parts.append(f"{sign} {value:g}")
        pattern = getattr(item, "pattern", None)
        if pattern:
            parts.append(f"matches `{pattern}`")
    return ", ".join(parts)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ("", (), {}) or isinstance(value, BaseModel):
        return "–"
    if isinstance(value, enum.Enum):
        return f"`{value.value}`"
    if isinstance(value, tuple):
        return f"[{', '.join(f'{one:g}' if isinstance(one, float) else str(one) for one in value)}]"
    return (
        f"{value:g}"
        if isinstance(value, float) and math.isfinite(value)
        else f"`{value}`"
        if isinstance(value, str)
        else str(value)
    )


def _rows(model: type[BaseModel], meanings: Mapping[str, str] | None) -> list[str]:
    if meanings is not None and set(meanings) != set(model.model_fields):
        odd = sorted(set(meanings) ^ set(model.model_fields))
        raise SystemExit(f"{model.__name__}: keys and their meanings differ: {', '.join(odd)}")
    last = "" if meanings is None else " meaning |"
    lines = [f"| key | type | default |{last}", "|---|---|---|" + ("" if meanings is None else "---|")]
    # Meanings stand in the order in which people write the keys.
    for name in meanings or model.model_fields:
        field = model.model_fields[name]
        kind = WRITTEN.get((model.__name__, name)) or ", ".join(
            filter(None, (_type(field.annotation), _constraint(field)))
        )
        lines.append(
            f"| `{name}` | {kind} | {_default(field)} |" + ("" if meanings is None else f" {meanings[name]} |")
        )
    return lines


def _document(item: object) -> list[str]:
    return inspect.cleandoc(item.__doc__ or "").splitlines()


def template_format_page() -> str:
    """Return every key of a template and every gate method with its parameters."""
    template = importlib.import_module("flowmrd.gating.template")
    events = importlib.import_module("flowmrd.cytometry.events")
    transforms = importlib.import_module("flowmrd.cytometry.transforms")
    methods = importlib.import_module("flowmrd.gating.methods").methods()
    lines = [
        NOTICE,
        "",
        "# Template format",
        "",
        "A template is a TOML file named `ID.toml`. Unknown keys are errors; `flowmrd template check FILE` lists every",
        "fault with its place. Coordinates are scaled units: 0 to 1 spans a marker's display scale. How gates work:",
        "[gating](../concepts/gating.md). By example: [write a template](../tutorials/write-a-template.md).",
        "",
    ]
    for name, (heading, words) in TABLES.items():
        model = getattr(template, name, None) or getattr(events, name)
        lines += [f"## {heading}", "", words, "", *_rows(model, MEANING[name]), ""]
        if name == "Population":
            keys = ", ".join(f"`{key}`" for key in template.Choice.model_fields)
            lines += [f"`[[population.otherwise]]` takes {keys}.", ""]
    lines += ["## Scales", ""]
    lines += [
        '`transform = { kind = …, … }`. `T = "range"` takes the channel\'s own `$PnR`, so one template serves',
        "analysers of 18 and 20 bits.",
        "",
    ]
    for kind in transforms.__dict__["_KINDS"]:
        factory = transforms.__dict__["_KINDS"][kind]
        text = _document(factory)
        body = text[: next((i for i, line in enumerate(text) if line.startswith("Parameters")), len(text))]
        lines += [f"### {kind}", "", *_trimmed(body), ""]
        lines += ["| parameter | meaning |", "|---|---|", *_parameters(text), ""]
    lines += ["## Gate methods", ""]
    lines += ['A `number or population.value` may borrow what another gate found on the same file: `"cd19.cut"`.', ""]
    by_module: dict[str, list[str]] = {}
    for name, method in methods.items():
        by_module.setdefault(method.params.__module__.rsplit(".", 1)[1], []).append(name)
    for module in sorted(
        by_module, key=lambda one: (METHOD_ORDER.index(one) if one in METHOD_ORDER else len(METHOD_ORDER), one)
    ):
        for name in by_module[module]:
            method = methods[name]
            found = "finds its place in the data" if method.find else "given by numbers"
            lines += [f"### {name}", "", f"*{found}*", "", *_document(method.params), ""]
            lines += [*_rows(method.params, None), ""] if method.params.model_fields else []
    return "\n".join(lines).rstrip() + "\n"


def _trimmed(lines: Sequence[str]) -> list[str]:
    return "\n".join(lines).strip().splitlines()


def _parameters(text: Sequence[str]) -> list[str]:
    """Turn a numpydoc parameter list, `name : words`, into table rows."""
    start = text.index("Parameters") + 2
    rows = []
    for line in text[start:]:
        if not line.strip():
            break
        name, _, words = line.partition(" : ")
        rows.append(f"| `{name}` | {words} |")
    return rows


# -------------------------------------------------------------------------------------------------- shipped templates


def _listed(items: Sequence[str]) -> str:
    return ", ".join(f"`{item}`" for item in items) or "–"


def templates_page() -> str:
    """Return the shipped templates: panel, populations, measurements, routes, sources."""
    module = importlib.import_module("flowmrd.gating.template")
    templates = [module.find_template(name) for name in module.template_paths()]
    lines = [NOTICE, "", "# Shipped templates", ""]
    lines += [
        "`flowmrd template show ID` prints the same with scales and digest. The files lie in `gating_templates/`.",
        "",
    ]
    lines += ["| id | version | title | specimens |", "|---|---|---|---|"]
    for one in templates:
        head = one.template
        lines.append(f"| [`{head.id}`](#{head.id}) | {head.version} | {head.title} | {', '.join(head.specimens)} |")
    for one in templates:
        lines += ["", *_one_template(one, module)]
    return "\n".join(lines) + "\n"


def _one_template(one: Any, module: types.ModuleType) -> Iterator[str]:
    head = one.template
    yield from (f"## {head.id}", "", f"{head.title}, version {head.version}.", "", " ".join(head.purpose.split()), "")
    yield f"* Required markers: {_listed([spec.marker for spec in one.channel if spec.required])}"
    yield f"* Optional markers: {_listed([spec.marker for spec in one.channel if not spec.required])}"
    for measured in one.measurement:
        counts = f"`{measured.numerator}` / `{measured.denominator}`"
        yield (
            f"* Reports {measured.analyte}: {counts}, rules `{measured.rules}`, line at {measured.target_fraction:g}"
        )
        if measured.therapy_target or measured.routes:
            target = measured.therapy_target or "the therapy's target"
            routes = "; ".join(f"{route.name} ({', '.join(route.markers)})" for route in measured.routes)
            yield f"* Ways to the lineage without {target}: {routes or 'none in this tube'}"
    yield from ("", "| population | parent | found by | purpose |", "|---|---|---|---|")

    def tree(parent: str) -> Iterator[str]:
        for row in one.population:
            if row.parent == parent:
                ways = ", else ".join(
                    f"{way.method} ({', '.join(way.channels)})" if way.channels else way.method for way in row.choices
                )
                kind = "" if row.kind == "population" else f" *{row.kind.replace('_', '-')}*"
                yield f"| `{row.name}`{kind} | `{parent}` | {ways} | {' '.join(row.purpose.split())} |"
                yield from tree(row.name)

    yield from tree(module.ROOT)
    if head.notes:
        yield from ("", " ".join(head.notes.split()))
    if head.sources:
        yield from ("", f"Sources: {'; '.join(head.sources)}.")


# ---------------------------------------------------------------------------------------------------------------- main

GENERATED = {"cli.md": cli_page, "template-format.md": template_format_page, "templates.md": templates_page}


def stale_pages(folder: Path = PAGES) -> list[str]:
    """Return the names of the pages that differ from what the code says."""
    stale = []
    for name, build in GENERATED.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != build():
            stale.append(name)
    return stale


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 where a page is out of date")
    if parser.parse_args().check:
        stale = stale_pages()
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")
        return
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, build in GENERATED.items():
        (PAGES / name).write_text(build(), encoding="utf-8")
        sys.stdout.write(f"{PAGES / name}\n")


if __name__ == "__main__":
    main()
