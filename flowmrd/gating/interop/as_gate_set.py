"""A foreign document's gates as a gate set of one subject: which of them stand in for which gates of a template."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flowmrd.errors import GatingError
from flowmrd.gating.gates import Boolean
from flowmrd.gating.interop.document import ForeignGate, ForeignStrategy, column_names
from flowmrd.gating.interop.onto_template import find_gate
from flowmrd.gating.template import GatingTemplate
from flowmrd.registry import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Population → the document's gate for it, and what was left out and why."""

    gates: Mapping[str, ForeignGate]
    left_out: tuple[str, ...]


def match_gates(strategy: ForeignStrategy, template: GatingTemplate, pairs: Mapping[str, str] | None = None) -> Matched:
    """Pair a document's gates with the populations of a template.

    Parameters
    ----------
    strategy : the document
    template : whose gates are to be replaced
    pairs : population → name or path of a gate; by default gates whose name is a population's, but for case and signs

    Raises
    ------
    GatingError
        A pair names no population, or no gate that can be taken.
    """
    names = tuple(row.name for row in template.population)
    if pairs:
        for population in pairs:
            if population not in names:
                hint = nearest(population, names)
                raise GatingError(
                    f"template {template.template.id} has no population {population!r}" + (f" ({hint})" if hint else "")
                )
        chosen = {population: find_gate(strategy, name) for population, name in pairs.items()}
        for one in chosen.values():
            if isinstance(one.gate, Boolean):
                raise GatingError(f"gate {one.name!r} is boolean; only a geometric gate can be taken")
        return Matched(gates=chosen, left_out=())
    gates: dict[str, ForeignGate] = {}
    left_out = []
    for one in strategy.gates:
        population = _slug(one.name)
        if population not in names:
            left_out.append(f"{one.path}: the template has no population of that name")
        elif isinstance(one.gate, Boolean):
            left_out.append(f"{one.path}: it is boolean, not geometric")
        elif population in gates:
            left_out.append(f"{one.path}: {gates[population].path} is taken for {population}")
        else:
            gates[population] = one
    return Matched(gates=gates, left_out=tuple(left_out))


def _slug(name: str) -> str:
    """Return a gate's name as populations are written, with `as_template`'s rule for signs."""
    plain = re.sub(r"\+", " pos ", name)
    plain = re.sub(r"(?<=[A-Za-z0-9])[-−](?=$|[\s,;/])", " neg ", plain)
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")


def gate_set_text(
    matched: Matched,
    strategy: ForeignStrategy,
    template: GatingTemplate,
    *,
    set_id: str,
    subject: str,
    author: str,
    date: dt.date,
    source: str,
    reason: str,
    document: str,
    sha256: str,
    tube: str | None = None,
) -> str:
    """Write a gate set that takes its gates from a document by name.

    Parameters
    ----------
    matched : the gates to take
    strategy : the document
    template : their template; versions up to the next major one are accepted
    set_id : id of the set; made legal
    subject, author, date, source, reason : whose, by whom, when, from what, why
    document : the document's path relative to the set's folder
    sha256 : its digest
    tube : which tube or sample of the document
    """
    head = template.template
    major = int(head.version.partition(".")[0])
    legal = re.sub(r"[^A-Za-z0-9._-]+", "-", set_id).strip("-._")[:64] or "gate-set"
    lines = [
        "[gate_set]",
        f"id = {_string(legal)}",
        f"subject = {_string(subject)}",
        f"template = {_string(head.id)}",
        f'template_versions = ">={head.version}, <{major + 1}.0.0"',
        f"author = {_string(author)}",
        f"date = {date.isoformat()}",
        f"source = {_string(source)}",
        f"reason = {_string(reason)}",
    ]
    names = column_names(strategy.gates)
    repeated = [one.name for one in strategy.gates]
    for population, one in matched.gates.items():
        name = names[one.path] if repeated.count(one.name) == 1 else one.path
        lines += [
            "",
            "[[override]]",
            f"population = {_string(population)}",
            f"document = {_string(document)}",
            f"sha256 = {_string(sha256)}",
            f"gate = {_string(name)}",
        ]
        if tube is not None:
            lines.append(f"tube = {_string(tube)}")
    return "\n".join(lines) + "\n"


def _string(text: str) -> str:
    # JSON strings are TOML basic strings, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
