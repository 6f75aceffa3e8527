"""openCyto gating templates (CSV): rows of data-driven gates, turned into a flowmrd template.

The CSV holds no coordinates but methods, so it becomes a template rather than a strategy. `gating_args` is R code in a
string; a small grammar reads the calls that occur in practice, and nothing is ever evaluated. A row that cannot be
mapped stays in the tree as a population that counts nothing, and is listed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource, MarkerSpec, Panel, resolve_panel
from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.fcs import Channel, FcsFile
from flowmrd.gating.interop.document import ForeignStrategy
from flowmrd.gating.interop.expressions import Term, parse_expression

KIND = "opencyto"
MAX_BYTES = 4 * 2**20
MAX_ROWS = 2000
_COLUMNS = ("alias", "pop", "parent", "dims", "gating_method")
_NOT_CARRIED = ("preprocessing_method", "preprocessing_args")
_ROOT = "root"

Value = float | str | bool | None | tuple["Value", ...]
Param = float | str | int | tuple[float, ...] | tuple[str, ...] | dict[str, float | str]

# What openCyto's own scales end at: scatter of 18 bits, flowCore's logicle, and FlowJo's biexponential channels.
_SCATTER_TOP, _LOGICLE_TOP, _CHANNEL_TOP = 262144.0, 4.5, 4096.0
# The scales that the CSV does not state. Its users estimate a logicle from a file, as is done here where one is given;
# otherwise the width is that of our own templates, wide enough that the negatives stay one peak.
_DECADES, _WIDTH, _WIDTHS = 4.5, 1.0, (0.5, 2.0)
_LINEAR: Mapping[str, str | float] = {"kind": "linear", "T": "range", "A": 0.0}
# The share of the negative values that the estimate leaves below the display.
_BELOW_DISPLAY = 0.05
_SCATTER = re.compile(r"^(?:[A-Z]*[-_ ]?)?(?:FSC|SSC|FS|SS)(?:$|[^A-Z])|^(?:FS|SS) ", re.IGNORECASE)
_TIME = re.compile(r"^time$", re.IGNORECASE)
# flowClust fits Student-t components with four degrees of freedom unless told otherwise.
_FLOWCLUST_DEGREES = 4.0
# Populations that polyFunctions combines: 32 combinations.
_MAX_FUNCTIONS = 5


class _Unmapped(Exception):  # noqa: N818 - becomes a finding, never leaves this module
    """A row that has no counterpart, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of the CSV."""

    number: int
    alias: str
    pop: str
    parent: str
    dims: tuple[str, ...]
    method: str
    args: str
    collapsed: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Population:
    """One row of the template to be written."""

    name: str
    title: str
    parent: str
    method: str
    channels: tuple[str, ...]
    params: Mapping[str, Param]
    purpose: str
    clean_up: bool = False


@dataclass(slots=True)
class _Building:
    """The template while it grows."""

    name: str
    channels: dict[str, str] = field(default_factory=dict)
    populations: list[_Population] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    # where a cut was placed → the population that lends it
    cuts: dict[str, str] = field(default_factory=dict)
    findings: list[QcFinding] = field(default_factory=list)

    def note(self, level: Level, code: str, message: str, where: str) -> None:
        self.findings.append(QcFinding(level=level, code=code, message=message, where=where))


def read_strategy(
    data: bytes,
    name: str,
    fcs: FcsFile,  # noqa: ARG001 - the signature of all readers
    *,
    tube: str | None = None,  # noqa: ARG001
) -> ForeignStrategy:
    """Refuse: an openCyto template places its gates on data, so it has to become a template first.

    Raises
    ------
    InputError
        Always, saying what to do.
    """
    _rows(data, name)
    raise InputError(
        "an openCyto template holds methods, not gates, so it cannot gate a file directly",
        source=name,
        hint="turn it into a template with `flowmrd gates convert … --to template`",
    )


def convert(data: bytes, name: str, fcs: FcsFile | None = None) -> tuple[str, tuple[QcFinding, ...]]:
    """Turn an openCyto CSV into the text of a flowmrd template.

    Parameters
    ----------
    data : the CSV's bytes
    name : its file name, for messages and the template's id
    fcs : a file to take the logicles' widths from

    Returns
    -------
    text : a template that `flowmrd template check` accepts
    findings : what was assumed, and every row that could not be mapped (those count nothing)

    Raises
    ------
    InputError
        It is not an openCyto template.
    PanelMismatchError
        The file does not have the channels that the rows name.
    """
    rows = _rows(data, name)
    building = _Building(name=name)
    for row in rows:
        _add(building, row)
    widths = {} if fcs is None else _widths([m for m in building.channels.values() if not _linear(m)], name, fcs)
    if any(not _linear(marker) for marker in building.channels.values()):
        own = ", ".join(f"{marker} {width:g}" for marker, width in widths.items())
        building.note(
            Level.INFO,
            "OPENCYTO_SCALE",
            "openCyto templates do not state scales; fluorescence got logicle with M = 4.5 and "
            + (f"W from the file's negative values ({own})" if own else f"W = {_WIDTH:g}")
            + ": check it.",
            "channel",
        )
    detectors = {} if fcs is None else _detectors(building.channels.values(), fcs)
    return _toml(building, widths, detectors), tuple(building.findings)


def panel_of(specs: Sequence[MarkerSpec], fcs: FcsFile, *, tube: str) -> Panel:
    """Find the channel of each axis: its name ($PnN) in full as openCyto takes it, else its stain as we do.

    Raises
    ------
    PanelMismatchError
        As `resolve_panel`, of the axes that are no channel's name.
    """
    named = _detectors([spec.marker for spec in specs], fcs)
    panel = resolve_panel([spec for spec in specs if spec.marker not in named], fcs.channels, tube=tube)
    channels = {**panel.channels, **named}
    return replace(panel, channels={one.marker: channels[one.marker] for one in specs if one.marker in channels})


def _detectors(markers: Iterable[str], fcs: FcsFile) -> dict[str, Channel]:
    """Return the channels that axes name by `$PnN`; flowWorkspace marks compensated ones as `<PE-A>` or `Comp-PE-A`."""
    found = {}
    for marker in markers:
        bare = marker[1:-1] if marker.startswith("<") and marker.endswith(">") else marker
        for name in (bare, bare.removeprefix("Comp-")):
            hits = [one for one in fcs.channels if one.pnn.casefold() == name.casefold()]
            if len(hits) == 1:
                found[marker] = hits[0]
                break
    return found


def _widths(markers: Sequence[str], name: str, fcs: FcsFile) -> dict[str, float]:
    """Estimate logicle widths as openCyto's users do: from a low quantile r of the compensated negative values.

    `W = (M - log10(T / |r|)) / 2` (Parks et al. 2006).
    """
    specs = [MarkerSpec(marker=marker, aliases=(marker,), transform=dict(_LINEAR)) for marker in markers]
    source = EventSource(fcs, panel_of(specs, fcs, tube=name), specs, spillover=fcs.spillover)
    negative: dict[str, list[NDArray[np.float64]]] = {marker: [] for marker in markers}
    for _, block in source.blocks(markers):
        for marker in markers:
            values = block.linear(marker)
            negative[marker].append(values[values < 0.0])
    found = {}
    for marker, parts in negative.items():
        values = np.concatenate(parts) if parts else np.empty(0)
        if values.size == 0:
            continue
        top = float(source.panel.channels[marker].range)
        width = (_DECADES - math.log10(top / -float(np.quantile(values, _BELOW_DISPLAY)))) / 2.0
        found[marker] = round(min(max(width, _WIDTHS[0]), _WIDTHS[1]), 2)
    return found


# -------------------------------------------------------------------------------------------------------------- the CSV


def _rows(data: bytes, name: str) -> list[_Row]:
    if len(data) > MAX_BYTES:
        raise InputError(
            f"the template has {len(data) / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} MB that are read",
            source=name,
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    try:
        table = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise InputError(f"not a readable CSV: {error}", source=name) from None
    heads = [head.strip() for head in table[0]] if table else []
    lacking = [column for column in _COLUMNS if column not in heads]
    if lacking:
        raise InputError(
            f"not an openCyto template: it lacks the columns {', '.join(lacking)}",
            source=name,
            where="row 1",
            hint=f"expected {', '.join(_COLUMNS)}, gating_args",
        )
    if len(table) - 1 > MAX_ROWS:
        raise InputError(f"the template has {len(table) - 1} rows, more than the {MAX_ROWS} allowed", source=name)
    rows = []
    for number, cells in enumerate(table[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        given = {head: ("" if cell.strip() == "NA" else cell.strip()) for head, cell in zip(heads, cells, strict=False)}
        if not given.get("alias") or not given.get("gating_method"):
            raise InputError("a row needs an alias and a gating_method", source=name, where=f"row {number}")
        rows.append(
            _Row(
                number=number,
                alias=given["alias"],
                pop=given.get("pop", "+") or "+",
                parent=given.get("parent", "") or _ROOT,
                dims=tuple(part.strip() for part in given.get("dims", "").split(",") if part.strip()),
                method=given["gating_method"],
                args=given.get("gating_args", ""),
                collapsed=given.get("collapseDataForGating", "").upper() in {"TRUE", "T"},
                ignored=tuple(column for column in _NOT_CARRIED if given.get(column)),
            )
        )
    if not rows:
        raise InputError("the template has no rows", source=name)
    return rows


# ------------------------------------------------------------------------------------------------------ the R arguments

_ARG = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?L?)|(?P<word>[A-Za-z_.][\w.]*)"
    r"|(?P<string>'[^']*'|\"[^\"]*\")|(?P<mark>[(),=]))"
)
_WORDS: Mapping[str, Value] = {
    "TRUE": True,
    "T": True,
    "FALSE": False,
    "F": False,
    "NULL": None,
    "NA": None,
    "Inf": math.inf,
}


def parse_args(text: str) -> dict[str, Value]:
    """Read `key = value, …` with numbers, strings, TRUE, NULL, `c(…)` and `list(…)`; nothing is evaluated.

    Raises
    ------
    ValueError
        It is anything else.
    """
    tokens: list[tuple[str, str]] = []
    at = 0
    body = text.strip()
    while at < len(body):
        match = _ARG.match(body, at)
        if match is None or match.end() == at:
            _refuse(f"cannot read {body[at : at + 20]!r}")
        tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
        at = match.end()
        while at < len(body) and body[at].isspace():
            at += 1
    found: dict[str, Value] = {}
    place = 0
    while place < len(tokens):
        if place + 1 < len(tokens) and tokens[place + 1] == ("mark", "=") and tokens[place][0] in {"word", "string"}:
            key = tokens[place][1].strip("'\"")
            place += 2
        else:
            key = str(len(found))
        value, place = _value(tokens, place, 0)
        found[key] = value
        if place < len(tokens):
            if tokens[place] != ("mark", ","):
                _refuse(f"expected a comma before {tokens[place][1]!r}")
            place += 1
    return found


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _value(tokens: Sequence[tuple[str, str]], place: int, depth: int) -> tuple[Value, int]:
    if place >= len(tokens):
        _refuse("a value is missing")
    kind, text = tokens[place]
    if kind == "number":
        return float(text.rstrip("L")), place + 1
    if kind == "string":
        return text[1:-1], place + 1
    if kind != "word":
        _refuse(f"expected a value, got {text!r}")
    if text in {"c", "list"} and place + 1 < len(tokens) and tokens[place + 1] == ("mark", "("):
        if depth > 4:
            _refuse("values are nested too deep")
        place += 2
        parts: list[Value] = []
        while place < len(tokens) and tokens[place] != ("mark", ")"):
            if place + 1 < len(tokens) and tokens[place + 1] == ("mark", "="):
                place += 2
            part, place = _value(tokens, place, depth + 1)
            parts.append(part)
            if place < len(tokens) and tokens[place] == ("mark", ","):
                place += 1
        if place >= len(tokens):
            _refuse("a parenthesis is not closed")
        return tuple(parts), place + 1
    if text in _WORDS:
        return _WORDS[text], place + 1
    _refuse(f"{text!r} is R code, which is never evaluated")


# ----------------------------------------------------------------------------------------------------------------- rows


def _add(building: _Building, row: _Row) -> None:
    where = f"row {row.number} ({row.alias})"
    if row.collapsed:
        building.note(
            Level.WARNING,
            "OPENCYTO_NOT_CARRIED",
            f"{row.alias} was gated on several samples together (collapseDataForGating); here on each by itself.",
            where,
        )
    for column in row.ignored:
        building.note(
            Level.WARNING, "OPENCYTO_NOT_CARRIED", f"{column} of {row.alias} has no counterpart and is left out.", where
        )
    # A row may name several parents and stands under each of them.
    for one in (replace(row, parent=name) for name in _listed(row.parent) or (_ROOT,)):
        parent = _resolve(building, one.parent)
        try:
            if parent is None:
                raise _Unmapped(f"its parent {one.parent} is not there")  # noqa: TRY301
            _place(building, one, parent)
        except (_Unmapped, ValueError) as error:
            building.note(
                Level.WARNING,
                "OPENCYTO_NOT_MAPPED",
                f"{row.alias} ({row.method}) could not be mapped and counts nothing: {error}.",
                where,
            )
            for label in _labels(one):
                if _path(one.parent, label) not in building.paths:
                    _nothing(building, one, parent or _ROOT, label, str(error))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for piece in text.split(",") if (part := piece.strip(" '\"")))


def _nothing(building: _Building, row: _Row, parent: str, label: str, why: str) -> str:
    """Keep a row that cannot be mapped: a range of the parent's first axis that no event reaches."""
    marker = _marker(building, row.dims[0]) if row.dims else _any_marker(building)
    return _emit(
        building,
        label,
        row.parent,
        _Population(
            name="",
            title="",
            parent=parent,
            method="interval",
            channels=(marker,),
            params={"low": 1e9},
            purpose=f"NOT MAPPED from openCyto's {row.method}: {why}.",
        ),
    )


def _any_marker(building: _Building) -> str:
    return next(iter(building.channels.values()), None) or _marker(building, "FSC-A")


def _path(parent: str, label: str) -> str:
    return "/" + "/".join(part for part in (*parent.strip("/").split("/"), label) if part and part != _ROOT)


def _resolve(building: _Building, reference: str) -> str | None:
    """Return the population of a path or of the end of one; the latest where several fit."""
    wanted = _path(reference, "").rstrip("/")
    if not wanted:
        return _ROOT
    if wanted in building.paths:
        return building.paths[wanted]
    fits = [name for path, name in building.paths.items() if path.endswith(wanted)]
    return fits[-1] if fits else None


def _marker(building: _Building, dim: str) -> str:
    return building.channels.setdefault(dim.casefold(), dim)


def _slug(label: str) -> str:
    text = re.sub(r"(?<=[\w)])\+", " pos ", label)
    text = re.sub(r"(?<=[\w)])-(?=$|[\s/&,]|[A-Za-z]{2,}\d)", " neg ", text)
    slug = re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")
    return slug if slug[:1].isalpha() else f"p_{slug}".rstrip("_")


def _emit(building: _Building, label: str, parent_path: str, one: _Population) -> str:
    """Add a population under a name that is free, and remember its openCyto path."""
    taken = {other.name for other in building.populations} | {_ROOT}
    name = base = one.name or _slug(label)
    number = 2
    while name in taken:
        name = f"{base}_{number}"
        number += 1
    building.populations.append(replace(one, name=name, title=label))
    # openCyto's own path: helpers that stand between a population and the parent of its row are not part of it.
    parent = _resolve(building, parent_path)
    above = next((path for path, known in building.paths.items() if known == parent), "")
    building.paths.setdefault(_path(above, label), name)
    if parent_path.strip("/") not in {"", _ROOT}:
        building.paths.setdefault(_path(parent_path, label), name)
    return name


def _signs(row: _Row) -> tuple[str, ...]:
    """Return `+`, `-` or `+/-` for each axis of a `pop` pattern; names between the signs are ignored."""
    pop = row.pop
    # Older templates repeat the names; those with a dash (HLA-DR) must not be taken for signs.
    for dim in row.dims:
        pop = re.sub(re.escape(dim), " ", pop, flags=re.IGNORECASE)
    signs = re.findall(r"\+/-|[+-](?=$|[^\w\s]|[A-Za-z]|\s)", pop)
    return tuple(signs) or ("+",)


def _labels(row: _Row) -> list[str]:
    """Return the names of the populations that a row makes."""
    aliases = _listed(row.alias)
    sides = _sides(row)
    # All four quadrants of two cuts are named after their axes, whatever the alias says; openCyto does so too.
    four = len(sides) > 1 and len(sides[0]) > 1 and row.pop != "*"
    if len(aliases) == len(sides) and row.alias != "*" and not four:
        return list(aliases)
    if len(sides) == 1 and row.alias != "*":
        return [row.alias]
    names = row.dims if len(row.dims) == len(sides[0]) else (row.dims[:1] or (row.alias,))
    return ["".join(f"{dim}{sign}" for dim, sign in zip(names, side, strict=False)) for side in sides]


def _sides(row: _Row) -> list[tuple[str, ...]]:
    if row.pop == "*":
        # Every gate that the method yields: of quadrants clockwise from the upper left.
        return [("-", "+"), ("+", "+"), ("+", "-"), ("-", "-")] if len(row.dims) == 2 else [("+",)]
    sides: list[tuple[str, ...]] = [()]
    for sign in _signs(row):
        sides = [(*side, one) for side in sides for one in (("+", "-") if sign == "+/-" else (sign,))]
    return sides


_ONE_D = {"mindensity", "mindensity2", "rangegate", "tailgate", "cytokine", "quantilegate", "flowclust", "flowclust.1d"}
# The names since openCyto 2.0 (less `gate_`), and how each was called before.
_RENAMED: Mapping[str, str] = {
    "quantile": "quantilegate",
    "singlet": "singletgate",
    "tail": "tailgate",
    "flowclust_1d": "flowclust.1d",
    "flowclust_2d": "flowclust.2d",
    "quad_sequential": "quadgate.seq",
    "dummy": "dummy_gate",
}


def _method(name: str) -> str:
    plain = name.casefold().removeprefix("gate_").removeprefix(".")
    return _RENAMED.get(plain, plain)


def _place(building: _Building, row: _Row, parent: str) -> None:
    method = _method(row.method)
    if method == "boolgate":
        _boolean(building, row, parent)
        return
    if method == "refgate":
        _reference(building, row, parent)
        return
    if method == "polyfunctions":
        _polyfunctions(building, row, parent)
        return
    args = parse_args(row.args)
    if method == "dummy_gate":
        _one(building, row, parent, "whole", (), {})
        return
    if not row.dims:
        raise _Unmapped("it names no dims")
    dims = tuple(_marker(building, dim) for dim in row.dims)
    two = len(dims) == 2
    if row.pop == "*" and not (two and method in _ONE_D | {"quadgate.seq", "quadrantgate"}):
        raise _Unmapped("how many populations it yields (pop *) depends on the sample")
    match method:
        case "quadgate.seq" if two:
            _sequential(building, row, parent, dims, args)
        case "quadrantgate" if two:
            _quadrants(building, row, parent, dims, "rangegate", args)
        case _ if len(dims) == 1 and method in _ONE_D:
            cut = _cut(building, row, method, args, dims[0])
            for label, side in zip(_labels(row), _sides(row), strict=True):
                _emit_cut(building, row, parent, label, dims[0], cut, "above" if side[0] == "+" else "below")
        case "flowclust" | "flowclust.2d" if two and len(_sides(row)[0]) == 1:
            _two_d(building, row, parent, "mixture_2d", dims, _component(building, row, args, dims))
        case "flowclust" if two:
            _quadrants(building, row, parent, dims, "flowclust.1d", args)
        case _ if two and method in _ONE_D:
            _quadrants(building, row, parent, dims, method, args)
        case "singletgate" if two:
            _unused(building, row, args, ())
            _two_d(building, row, parent, "singlet_band", dims, {}, clean_up=True)
        case "boundary":
            _two_d(building, row, parent, "rectangle", dims, _box(building, row, args, dims))
        case _:
            raise _Unmapped(f"there is no counterpart of {row.method} on {len(dims)} dims")


def _one(
    building: _Building,
    row: _Row,
    parent: str,
    method: str,
    channels: tuple[str, ...],
    params: Mapping[str, Param],
    *,
    label: str = "",
    clean_up: bool = False,
) -> str:
    return _emit(
        building,
        label or row.alias,
        row.parent,
        _Population(
            name="",
            title="",
            parent=parent,
            method=method,
            channels=channels,
            params=params,
            purpose=f"{label or row.alias}: from openCyto's {row.method}, row {row.number}.",
            clean_up=clean_up,
        ),
    )


def _two_d(
    building: _Building,
    row: _Row,
    parent: str,
    method: str,
    dims: tuple[str, ...],
    params: Mapping[str, Param],
    *,
    clean_up: bool = False,
) -> None:
    inside = ""
    for label, side in zip(_labels(row), _sides(row), strict=True):
        if len(side) != 1:
            raise _Unmapped(f"pop {row.pop} asks for quadrants of a gate that has none")
        if side[0] == "+":
            inside = _one(building, row, parent, method, dims, params, label=label, clean_up=clean_up)
            continue
        inside = inside or _one(building, row, parent, method, dims, params, label=f"{label} gate", clean_up=clean_up)
        _outside(building, row, parent, inside, label)


def _outside(building: _Building, row: _Row, parent: str, inside: str, label: str) -> str:
    params: Mapping[str, Param] = {"operator": "and", "populations": (f"!{inside}",)}
    return _one(building, row, parent, "boolean", (), params, label=label)


def _emit_cut(
    building: _Building, row: _Row, parent: str, label: str, dim: str, cut: tuple[str, Mapping[str, Param]], keep: str
) -> str:
    method, params = cut
    lender = building.cuts.get(f"{parent} {dim} {row.number}")
    if lender is not None:
        # The other side of a cut that is already there: borrow it, so that the two are complementary.
        bound: dict[str, Param] = {"low" if keep == "above" else "high": f"{lender}.cut"}
        return _one(building, row, parent, "interval", (dim,), bound, label=label)
    name = _one(building, row, parent, method, (dim,), {"keep": keep, **params}, label=label)
    building.cuts[f"{parent} {dim} {row.number}"] = name
    return name


def _quadrants(
    building: _Building,
    row: _Row,
    parent: str,
    dims: tuple[str, ...],
    method: str,
    args: Mapping[str, Value],
) -> None:
    """Two cuts on the parent, and the quadrants that `pop` asks for."""
    _two_signs(row)
    lenders = []
    for dim, spelled in zip(dims, row.dims, strict=True):
        found = building.paths.get(_path(row.parent, f"{spelled}+"))
        if found is None or not any(
            one.name == found and one.channels == (dim,) and "keep" in one.params for one in building.populations
        ):
            cut = _cut(building, row, method, args, dim)
            found = _emit_cut(building, row, parent, f"{spelled}+", dim, cut, "above")
        lenders.append(found)
    _cross(building, row, parent, dims, (f"{lenders[0]}.cut", f"{lenders[1]}.cut"))


def _two_signs(row: _Row) -> None:
    sides = _sides(row)
    if any(len(side) != 2 for side in sides):
        raise _Unmapped(f"pop {row.pop} names {len(sides[0])} sides for two dims")


def _cross(building: _Building, row: _Row, parent: str, dims: tuple[str, ...], cuts: tuple[str, str]) -> None:
    for label, side in zip(_labels(row), _sides(row), strict=True):
        params: Mapping[str, Param] = {"x": cuts[0], "y": cuts[1], "quadrant": "".join(side)}
        _one(building, row, parent, "quadrant", dims, params, label=label)


def _sequential(building: _Building, row: _Row, parent: str, dims: tuple[str, ...], args: Mapping[str, Value]) -> None:
    """One axis is cut on the parent, the other in each half by itself."""
    _two_signs(row)
    within = args.get("gFunc", args.get("gfunc"))
    method = _method(within) if isinstance(within, str) else ""
    if method not in _ONE_D:
        raise _Unmapped(f"its gFunc {within!r} is no cut on one axis that is known here")
    building.note(
        Level.WARNING,
        "OPENCYTO_ASSUMED",
        f"{row.alias} leaves to the sample which axis is cut first; {row.dims[0]} is.",
        f"row {row.number} ({row.alias})",
    )
    rest = {key: value for key, value in args.items() if key not in {"gFunc", "gfunc"}}
    first = _cut(building, row, method, rest, dims[0])
    second = _cut(building, row, method, rest, dims[1])
    halves: dict[str, str] = {}
    for label, (x, y) in zip(_labels(row), _sides(row), strict=True):
        if x not in halves:
            keep = "above" if x == "+" else "below"
            halves[x] = _emit_cut(building, row, parent, f"{row.dims[0]}{x}", dims[0], first, keep)
        _emit_cut(building, row, halves[x], label, dims[1], second, "above" if y == "+" else "below")


def _cut(
    building: _Building, row: _Row, method: str, args: Mapping[str, Value], dim: str
) -> tuple[str, Mapping[str, Param]]:
    """Return our method for one axis and its parameters, without the side to keep."""
    match method:
        case "mindensity" | "mindensity2" | "rangegate":
            _unused(building, row, args, ("gate_range", "min", "max"))
            search = _range(building, row, args, dim)
            return "valley", {} if search is None else {"search": search}
        case "tailgate" | "cytokine":
            _unused(building, row, args, ("gate_range", "tol", "side", "min", "max"))
            tolerance = _number(args, "tol", 0.01)
            if not 0 < tolerance < 1:
                raise _Unmapped("tol must lie between 0 and 1")
            side = args.get("side", "right")
            if side not in {"right", "left"}:
                raise _Unmapped(f"side {side!r} is neither left nor right")
            # Where a Gaussian peak has fallen to `tol` of its height.
            distance = round(math.sqrt(-2.0 * math.log(tolerance)), 4)
            search = _range(building, row, args, dim)
            return "tail", {
                "side": "upper" if side == "right" else "lower",
                "distance": distance,
                **({} if search is None else {"search": search}),
            }
        case "quantilegate":
            _unused(building, row, args, ("probs", "0"))
            quantile = _number(args, "probs", _number(args, "0", 0.999))
            if not 0 <= quantile <= 1:
                raise _Unmapped("probs must lie between 0 and 1")
            return "quantile", {"quantile": quantile}
        case _:
            _unused(building, row, args, ("K", "neg_cluster", "nu", "min", "max", "gate_range"))
            components = _components(building, row, args, 2)
            if components < 2:
                raise _Unmapped("one component has no cut")
            between = int(_number(args, "neg_cluster", 1)) - 1
            if not 0 <= between < components - 1:
                raise _Unmapped(f"neg_cluster {between + 1} has no neighbour among {components}")
            search = _range(building, row, args, dim)
            return "mixture_cut", {
                "components": components,
                "between": between,
                "tail_degrees": _number(args, "nu", _FLOWCLUST_DEGREES),
                **({} if search is None else {"search": search}),
            }


def _components(building: _Building, row: _Row, args: Mapping[str, Value], missing: int) -> int:
    if "K" not in args:
        building.note(
            Level.WARNING,
            "OPENCYTO_ASSUMED",
            f"{row.alias} leaves the number of components to flowClust; {missing} are used.",
            f"row {row.number} ({row.alias})",
        )
    components = _number(args, "K", missing)
    if components != int(components) or not 1 <= components <= 8:
        raise _Unmapped(f"K = {components:g} components are outside 1 … 8")
    return int(components)


def _component(building: _Building, row: _Row, args: Mapping[str, Value], dims: tuple[str, ...]) -> Mapping[str, Param]:
    _unused(building, row, args, ("K", "target", "quantile", "nu", "transitional"))
    if args.get("transitional") is True:
        raise _Unmapped("a transitional gate has no counterpart")
    components = _components(building, row, args, 2)
    content = _number(args, "quantile", 0.9)
    if not 0 < content < 1:
        raise _Unmapped("quantile must lie between 0 and 1")
    params: dict[str, Param] = {
        "components": components,
        "content": content,
        "tail_degrees": _number(args, "nu", _FLOWCLUST_DEGREES),
        "max_distance": 10.0,
    }
    target = args.get("target")
    if isinstance(target, tuple) and len(target) == 2:
        params["target"] = tuple(
            _scaled(building, row, value, dim, "target") for value, dim in zip(target, dims, strict=True)
        )
    elif target is not None:
        raise _Unmapped("its target is not a pair of numbers")
    # Without a target the component of most events is meant, there and here.
    return params


def _box(building: _Building, row: _Row, args: Mapping[str, Value], dims: tuple[str, ...]) -> Mapping[str, Param]:
    _unused(building, row, args, ("min", "max"))
    sides: dict[str, Param] = {}
    for ours, theirs in (("low", "min"), ("high", "max")):
        given = args.get(theirs)
        values = given if isinstance(given, tuple) else () if given is None else (given,)
        bounds: dict[str, float | str] = {
            dim: _scaled(building, row, value, dim, theirs)
            for value, dim in zip(values, dims, strict=False)
            if isinstance(value, float) and math.isfinite(value)
        }
        if bounds:
            sides[ours] = bounds
    if not sides:
        raise _Unmapped("it gives no finite min or max")
    return sides


def _unused(building: _Building, row: _Row, args: Mapping[str, Value], used: Sequence[str]) -> None:
    left = [key for key, value in args.items() if key not in used and value is not None]
    if left:
        building.note(
            Level.INFO,
            "OPENCYTO_NOT_CARRIED",
            f"{', '.join(left)} of {row.alias} ({row.method}) have no counterpart and are left out.",
            f"row {row.number} ({row.alias})",
        )


def _number(args: Mapping[str, Value], key: str, missing: float) -> float:
    value = args.get(key)
    if value is None:
        return missing
    if isinstance(value, bool) or not isinstance(value, float) or not math.isfinite(value):
        raise _Unmapped(f"{key} is not a number")
    return value


def _range(building: _Building, row: _Row, args: Mapping[str, Value], dim: str) -> tuple[float, float] | None:
    given = args.get("gate_range")
    low, high = given if isinstance(given, tuple) and len(given) == 2 else (args.get("min"), args.get("max"))
    ends = [
        _scaled(building, row, value, dim, "the range")
        if isinstance(value, float) and math.isfinite(value)
        else missing
        for value, missing in ((low, 0.0), (high, 1.0))
    ]
    if (low is None and high is None) or ends[0] >= ends[1]:
        return None
    return ends[0], ends[1]


def _linear(marker: str) -> bool:
    return bool(_SCATTER.match(marker) or _TIME.match(marker))


def _scaled(building: _Building, row: _Row, value: Value, dim: str, what: str) -> float:
    """Turn a number on openCyto's scale into ours, telling the scale by its size."""
    if isinstance(value, bool) or not isinstance(value, float) or not math.isfinite(value):
        raise _Unmapped(f"{what} is not a finite number")
    if _linear(dim):
        top, scale = _SCATTER_TOP, "a linear scale up to 262144"
    elif abs(value) <= _LOGICLE_TOP + 0.5:
        top, scale = _LOGICLE_TOP, "a logicle of 4.5 decades"
    else:
        top, scale = _CHANNEL_TOP, "4096 display channels"
    building.note(
        Level.INFO,
        "OPENCYTO_ASSUMED",
        f"{what} {value:g} of {row.alias} on {dim} is taken to be on {scale}: {value / top:.4f} here.",
        f"row {row.number} ({row.alias})",
    )
    return round(value / top, 6)


def _reference(building: _Building, row: _Row, parent: str) -> None:
    """Borrow the gates of other populations: `refGate` with one path, or two joined by a colon."""
    dims = tuple(_marker(building, dim) for dim in row.dims)
    references = [part.strip() for part in row.args.strip("\"' ").split(":") if part.strip()]
    named = []
    for reference in references:
        name = _resolve(building, reference)
        one = next((p for p in building.populations if p.name == name), None)
        if one is None:
            raise _Unmapped(f"it refers to {reference}, which is not there")
        named.append(one)
    sides = _sides(row)
    cuts = [_lender(building, one) for one in named]
    if len(dims) == 1 and len(cuts) == 1 and cuts[0] is not None:
        for label, side in zip(_labels(row), sides, strict=True):
            bound: dict[str, Param] = {"low" if side[0] == "+" else "high": f"{cuts[0].name}.cut"}
            _one(building, row, parent, "interval", dims, bound, label=label)
    elif len(dims) == 2 and len(cuts) == 2 and all(len(side) == 2 for side in sides) and None not in cuts:
        found = [one for one in cuts if one is not None]
        by_dim = {one.channels[0]: one for one in found}
        x, y = (by_dim.get(dim, one) for dim, one in zip(dims, found, strict=True))
        _cross(building, row, parent, dims, (f"{x.name}.cut", f"{y.name}.cut"))
    elif len(named) == 1 and all(len(side) == 1 for side in sides):
        _same_gate(building, row, parent, named[0])
    else:
        lacking = next((reference for reference, cut in zip(references, cuts, strict=True) if cut is None), None)
        if lacking is not None:
            raise _Unmapped(f"{lacking} is not a cut on one axis, so it has no value to borrow")
        raise _Unmapped(f"{len(named)} references for {len(dims)} dims")


def _lender(building: _Building, one: _Population) -> _Population | None:
    """Return the population that found the cut which this one uses, if it is a cut on one axis."""
    while one.method == "interval" and isinstance(lent := (one.params.get("low") or one.params.get("high")), str):
        one = next(p for p in building.populations if p.name == lent.partition(".")[0])
    return one if len(one.channels) == 1 and "keep" in one.params else None


def _same_gate(building: _Building, row: _Row, parent: str, one: _Population) -> None:
    """Apply another population's gate again: a quadrant by its cuts, another outline where its parent holds ours."""
    up = {other.name: other.parent for other in building.populations}
    above = parent
    while above not in {one.parent, _ROOT}:
        above = up[above]
    if one.method != "quadrant" and above != one.parent:
        raise _Unmapped(f"the outline of {one.title} cannot be used outside the population that it was found in")
    for label, side in zip(_labels(row), _sides(row), strict=True):
        if one.method == "quadrant":
            inside = _one(
                building,
                row,
                parent,
                "quadrant",
                one.channels,
                one.params,
                label=label if side[0] == "+" else f"{label} gate",
            )
            if side[0] == "-":
                _outside(building, row, parent, inside, label)
        elif side[0] == "+":
            _one(building, row, parent, "boolean", (), {"operator": "and", "populations": (one.name,)}, label=label)
        else:
            _outside(building, row, parent, one.name, label)


def _polyfunctions(building: _Building, row: _Row, parent: str) -> None:
    """Every combination of being in some populations and out of the others."""
    references = [part.strip() for part in row.args.strip("\"' ").split(":") if part.strip()]
    if not 1 <= len(references) <= _MAX_FUNCTIONS:
        raise _Unmapped(f"{len(references)} populations are combined, 1 … {_MAX_FUNCTIONS} can be")
    names = []
    for reference in references:
        name = _resolve(building, reference)
        if name is None or name == _ROOT:
            raise _Unmapped(f"it refers to {reference}, which is not there")
        names.append(name)
    for signs in itertools.product("+-", repeat=len(names)):
        label = "".join(
            f"{reference.rpartition('/')[2].rstrip('+')}{sign}"
            for reference, sign in zip(references, signs, strict=True)
        )
        params: Mapping[str, Param] = {
            "operator": "and",
            "populations": tuple(name if sign == "+" else f"!{name}" for name, sign in zip(names, signs, strict=True)),
        }
        _one(building, row, parent, "boolean", (), params, label=label)


def _boolean(building: _Building, row: _Row, parent: str) -> str:
    """Read `A & !B | (C & D)`; what is nested becomes a population of its own."""
    term = parse_expression(row.args.strip("\"' "))

    def operand(one: Term) -> str:
        if one.operator == "name":
            name = _resolve(building, one.name)
            if name is None or name == _ROOT:
                raise _Unmapped(f"it refers to {one.name}, which is not there")
            return name
        if one.operator == "not":
            inner = operand(one.parts[0])
            return inner.removeprefix("!") if inner.startswith("!") else f"!{inner}"
        params: dict[str, Param] = {"operator": one.operator, "populations": tuple(operand(part) for part in one.parts)}
        return _one(building, row, parent, "boolean", (), params, label=f"{row.alias} part")

    operator, parts = (term.operator, term.parts) if term.operator in {"and", "or"} else ("and", (term,))
    names = tuple(operand(part) for part in parts)
    return _one(building, row, parent, "boolean", (), {"operator": operator, "populations": names})


# ----------------------------------------------------------------------------------------------------------------- TOML


def _literal(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_literal(item)}" for key, item in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON strings are TOML strings, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _toml(building: _Building, widths: Mapping[str, float], detectors: Mapping[str, Channel]) -> str:
    stem = building.name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or building.name
    identity = re.sub(r"[^a-z0-9]+", "-", stem.casefold()).strip("-") or "opencyto"
    lines = [
        "[template]",
        f"id = {_literal(identity)}",
        'version = "0.1.0"',
        f"title = {_literal(f'From the openCyto template {stem}')}",
        'specimens = ["any"]',
        'purpose = "Converted; check scales, ranges and every finding of the conversion before use."',
        "",
    ]
    for marker in building.channels.values():
        role = "time" if _TIME.match(marker) else "scatter" if _linear(marker) else "fluor"
        scale = (
            _LINEAR
            if _linear(marker)
            else {"kind": "logicle", "T": "range", "W": widths.get(marker, _WIDTH), "M": _DECADES, "A": 0.0}
        )
        # Templates know fluorescence by its stain, where the channel has one.
        label = "" if marker not in detectors else (detectors[marker].pns.strip() or detectors[marker].pnn)
        aliases = tuple(dict.fromkeys(filter(None, (marker, label))))
        lines += ["[[channel]]", f"marker = {_literal(marker)}", f'role = "{role}"', f"aliases = {_literal(aliases)}"]
        lines += ["transform = { " + ", ".join(f"{key} = {_literal(value)}" for key, value in scale.items()) + " }", ""]
    for one in building.populations:
        lines += ["[[population]]", f"name = {_literal(one.name)}"]
        if one.title != one.name:
            lines.append(f"title = {_literal(one.title)}")
        lines.append(f"parent = {_literal(one.parent)}")
        lines += [f"method = {_literal(one.method)}"]
        if one.channels:
            lines.append(f"channels = {_literal(one.channels)}")
        if one.params:
            lines.append(f"params = {_literal(dict(one.params))}")
        if one.clean_up:
            lines.append('kind = "clean_up"')
        lines += [f"purpose = {_literal(one.purpose)}", ""]
    return "\n".join(lines)
