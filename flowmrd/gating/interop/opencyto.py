"""openCyto gating templates (CSV): rows of data-driven gates, turned into a flowmrd template.

The CSV holds no coordinates but methods, so it becomes a template rather than a strategy. `gating_args` is R code in a
string; a small grammar reads the calls that occur in practice, and nothing is ever evaluated. A row that cannot be
mapped stays in the tree as a population that counts nothing, and is listed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.fcs import FcsFile
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
# The scales that the CSV does not state; the logicle's are the usual defaults (Parks et al. 2006).
_LOGICLE = {"kind": "logicle", "T": "range", "W": 0.5, "M": 4.5, "A": 0.0}
_LINEAR = {"kind": "linear", "T": "range", "A": 0.0}
_SCATTER = re.compile(r"^(?:[A-Z]*[-_ ]?)?(?:FSC|SSC|FS|SS)(?:$|[^A-Z])|^(?:FS|SS) ", re.IGNORECASE)
_TIME = re.compile(r"^time$", re.IGNORECASE)
# flowClust fits Student-t components with four degrees of freedom unless told otherwise.
_FLOWCLUST_DEGREES = 4.0


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
    grouped: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Population:
    """One row of the template to be written."""

    name: str
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


def convert(data: bytes, name: str) -> tuple[str, tuple[QcFinding, ...]]:
    """Turn an openCyto CSV into the text of a flowmrd template.

    Parameters
    ----------
    data : the CSV's bytes
    name : its file name, for messages and the template's id

    Returns
    -------
    text : a template that `flowmrd template check` accepts
    findings : what was assumed, and every row that could not be mapped (those count nothing)

    Raises
    ------
    InputError
        It is not an openCyto template.
    """
    rows = _rows(data, name)
    building = _Building(name=name)
    for row in rows:
        _add(building, row)
    if any(not _linear(marker) for marker in building.channels.values()):
        building.note(
            Level.INFO,
            "OPENCYTO_SCALE",
            "openCyto templates do not state scales; fluorescence got logicle with W = 0.5, M = 4.5: check it.",
            "channel",
        )
    return _toml(building), tuple(building.findings)


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
                grouped=given.get("collapseDataForGating", "").upper() in {"TRUE", "T"} or bool(given.get("groupBy")),
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
    if row.grouped:
        building.note(
            Level.WARNING,
            "OPENCYTO_NOT_CARRIED",
            f"{row.alias} was gated on several samples together (collapseDataForGating, groupBy); here each by itself.",
            where,
        )
    for column in row.ignored:
        building.note(
            Level.WARNING, "OPENCYTO_NOT_CARRIED", f"{column} of {row.alias} has no counterpart and is left out.", where
        )
    parent = _resolve(building, row.parent)
    made: list[str] = []
    try:
        if parent is None:
            raise _Unmapped(f"its parent {row.parent} is not there")  # noqa: TRY301
        made = _place(building, row, parent)
    except (_Unmapped, ValueError) as error:
        building.note(
            Level.WARNING,
            "OPENCYTO_NOT_MAPPED",
            f"{row.alias} ({row.method}) could not be mapped and counts nothing: {error}.",
            where,
        )
        for label in _labels(row):
            if _path(row.parent, label) not in building.paths:
                made.append(_nothing(building, row, parent or _ROOT, label, str(error)))


def _nothing(building: _Building, row: _Row, parent: str, label: str, why: str) -> str:
    """Keep a row that cannot be mapped: a range of the parent's first axis that no event reaches."""
    marker = _marker(building, row.dims[0]) if row.dims else _any_marker(building)
    return _emit(
        building,
        label,
        row.parent,
        _Population(
            name="",
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
    building.populations.append(
        _Population(
            name=name,
            parent=one.parent,
            method=one.method,
            channels=one.channels,
            params=one.params,
            purpose=one.purpose,
            clean_up=one.clean_up,
        )
    )
    parent = next((path for path, known in building.paths.items() if known == one.parent), "")
    building.paths.setdefault(_path(parent if one.parent != _ROOT else "", label), name)
    if parent_path.strip("/") not in {"", _ROOT}:
        building.paths.setdefault(_path(parent_path, label), name)
    return name


def _signs(pop: str) -> tuple[str, ...]:
    """Return `+`, `-` or `+/-` for each axis of a `pop` pattern; names between the signs are ignored."""
    signs = re.findall(r"\+/-|[+-](?=$|[^\w\s]|[A-Za-z]|\s)", pop)
    return tuple(signs) or ("+",)


def _labels(row: _Row) -> list[str]:
    """Return the names of the populations that a row makes."""
    aliases = [alias.strip() for alias in row.alias.split(",")]
    sides = _sides(row)
    if len(aliases) == len(sides) and row.alias != "*":
        return aliases
    if len(sides) == 1 and row.alias != "*":
        return [row.alias]
    names = row.dims if len(row.dims) == len(sides[0]) else (row.dims[:1] or (row.alias,))
    return ["".join(f"{dim}{sign}" for dim, sign in zip(names, side, strict=False)) for side in sides]


def _sides(row: _Row) -> list[tuple[str, ...]]:
    sides: list[tuple[str, ...]] = [()]
    for sign in _signs(row.pop):
        sides = [(*side, one) for side in sides for one in (("+", "-") if sign == "+/-" else (sign,))]
    return sides


_ONE_D = {"mindensity", "mindensity2", "tailgate", "quantileGate", "flowClust", "flowClust.1d"}


def _place(building: _Building, row: _Row, parent: str) -> list[str]:
    method = row.method.removeprefix("gate_").removeprefix(".")
    method = {"quantile": "quantileGate", "singlet": "singletGate", "flowClust_1d": "flowClust.1d"}.get(method, method)
    method = {"flowClust_2d": "flowClust.2d", "flowclust": "flowClust", "tail": "tailgate"}.get(method, method)
    sides = _sides(row)
    if method == "boolGate":
        return [_boolean(building, row, parent)]
    if method == "refGate":
        return _reference(building, row, parent)
    args = parse_args(row.args)
    if method in {"dummy_gate", "dummy"}:
        return [_one(building, row, parent, "whole", (), {})]
    if not row.dims:
        raise _Unmapped("it names no dims")
    dims = tuple(_marker(building, dim) for dim in row.dims)
    if len(dims) == 1 and method in _ONE_D:
        cut = _cut(building, row, method, args, dims[0])
        made = []
        for label, side in zip(_labels(row), sides, strict=True):
            keep = "above" if side[0] == "+" else "below"
            made.append(_emit_cut(building, row, parent, label, dims[0], cut, keep))
        return made
    if len(dims) == 2 and method in _ONE_D - {"flowClust"} and method != "flowClust.2d":
        return _quadrants(building, row, parent, dims, method, args)
    if len(dims) == 2 and method == "flowClust" and len(sides[0]) == 2:
        return _quadrants(building, row, parent, dims, "flowClust.1d", args)
    if len(dims) == 2 and method == "singletGate":
        _unused(building, row, args, ())
        return _two_d(building, row, parent, "singlet_band", dims, {}, clean_up=True)
    if len(dims) == 2 and method in {"flowClust", "flowClust.2d"}:
        return _two_d(building, row, parent, "mixture_2d", dims, _component(building, row, args, dims))
    if method == "boundary":
        return _two_d(building, row, parent, "rectangle", dims, _box(building, row, args, dims))
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
            parent=parent,
            method=method,
            channels=channels,
            params=params,
            purpose=f"From openCyto's {row.method}, row {row.number}.",
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
) -> list[str]:
    made = []
    inside = ""
    for label, side in zip(_labels(row), _sides(row), strict=True):
        if len(side) != 1:
            raise _Unmapped(f"pop {row.pop} asks for quadrants of a gate that has none")
        if side[0] == "+":
            inside = _one(building, row, parent, method, dims, params, label=label, clean_up=clean_up)
            made.append(inside)
            continue
        inside = inside or _one(building, row, parent, method, dims, params, label=f"{label} gate", clean_up=clean_up)
        made.append(
            _one(
                building,
                row,
                parent,
                "boolean",
                (),
                {"operator": "and", "populations": (f"!{inside}",)},
                label=label,
            )
        )
    return made


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
) -> list[str]:
    """Two cuts on the parent, and the quadrants that `pop` asks for."""
    sides = _sides(row)
    if any(len(side) != 2 for side in sides):
        raise _Unmapped(f"pop {row.pop} names {len(sides[0])} sides for two dims")
    lenders = []
    for dim in dims:
        found = building.paths.get(_path(row.parent, f"{dim}+"))
        if found is None or not any(one.name == found and "keep" in one.params for one in building.populations):
            cut = _cut(building, row, method, args, dim)
            found = _emit_cut(building, row, parent, f"{dim}+", dim, cut, "above")
        lenders.append(found)
    return [
        _one(
            building,
            row,
            parent,
            "quadrant",
            dims,
            {"x": f"{lenders[0]}.cut", "y": f"{lenders[1]}.cut", "quadrant": "".join(side)},
            label=label,
        )
        for label, side in zip(_labels(row), sides, strict=True)
    ]


def _cut(
    building: _Building, row: _Row, method: str, args: Mapping[str, Value], dim: str
) -> tuple[str, Mapping[str, Param]]:
    """Return our method for one axis and its parameters, without the side to keep."""
    match method:
        case "mindensity" | "mindensity2":
            _unused(building, row, args, ("gate_range", "min", "max"))
            search = _range(building, row, args, dim)
            return "valley", {} if search is None else {"search": search}
        case "tailgate":
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
        case "quantileGate":
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
    _unused(building, row, args, ("K", "target", "quantile", "nu"))
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
    elif components == 1:
        params["target"] = (0.5, 0.5)
    else:
        raise _Unmapped("it gives no target, so which component is meant depends on the sample")
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


def _reference(building: _Building, row: _Row, parent: str) -> list[str]:
    """Borrow the cuts of other populations: `refGate` with one path, or two joined by a colon."""
    dims = tuple(_marker(building, dim) for dim in row.dims)
    references = [part.strip() for part in row.args.strip("\"' ").split(":") if part.strip()]
    found = []
    for reference in references:
        name = _resolve(building, reference)
        one = next((p for p in building.populations if p.name == name), None)
        if one is None:
            raise _Unmapped(f"it refers to {reference}, which is not there")
        while one.method == "interval" and isinstance(lent := (one.params.get("low") or one.params.get("high")), str):
            one = next(p for p in building.populations if p.name == lent.partition(".")[0])
        if len(one.channels) != 1 or "keep" not in one.params:
            raise _Unmapped(f"{reference} is not a cut on one axis, so it has no value to borrow")
        found.append(one)
    sides = _sides(row)
    if len(dims) == 1 and len(found) == 1:
        return [
            _one(
                building,
                row,
                parent,
                "interval",
                dims,
                {"low" if side[0] == "+" else "high": f"{found[0].name}.cut"},
                label=label,
            )
            for label, side in zip(_labels(row), sides, strict=True)
        ]
    if len(dims) == 2 and len(found) == 2 and all(len(side) == 2 for side in sides):
        by_dim = {one.channels[0]: one for one in found}
        x, y = (by_dim.get(dim, one) for dim, one in zip(dims, found, strict=True))
        return [
            _one(
                building,
                row,
                parent,
                "quadrant",
                dims,
                {"x": f"{x.name}.cut", "y": f"{y.name}.cut", "quadrant": "".join(side)},
                label=label,
            )
            for label, side in zip(_labels(row), sides, strict=True)
        ]
    raise _Unmapped(f"{len(found)} references for {len(dims)} dims")


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


def _toml(building: _Building) -> str:
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
        scale = _LINEAR if _linear(marker) else _LOGICLE
        lines += ["[[channel]]", f"marker = {_literal(marker)}", f'role = "{role}"', f"aliases = [{_literal(marker)}]"]
        lines += ["transform = { " + ", ".join(f"{key} = {_literal(value)}" for key, value in scale.items()) + " }", ""]
    for one in building.populations:
        lines += ["[[population]]", f"name = {_literal(one.name)}", f"parent = {_literal(one.parent)}"]
        lines += [f"method = {_literal(one.method)}"]
        if one.channels:
            lines.append(f"channels = {_literal(one.channels)}")
        if one.params:
            lines.append(f"params = {_literal(dict(one.params))}")
        if one.clean_up:
            lines.append('kind = "clean_up"')
        lines += [f"purpose = {_literal(one.purpose)}", ""]
    return "\n".join(lines)
