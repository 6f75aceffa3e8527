"""TOML → `GatingTemplate`: a tube's panel, scales, populations, measurements and plots, checked as a whole once.

A template is a controlled document: text, versioned, hashed. Everything biological a run uses stands in it.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowmrd.cytometry.events import MarkerSpec
from flowmrd.errors import GatingError, TemplateError
from flowmrd.gating.evidence import Antigen, InternalControl, Phenotype, evidence_faults
from flowmrd.gating.gates import gate_from_json, gate_markers
from flowmrd.gating.methods import GateMethod, Params, methods
from flowmrd.registry import nearest

ROOT = "root"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Head(_Document):
    """Identity of a template."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    title: str
    specimens: tuple[str, ...] = Field(strict=False)
    purpose: str
    sources: tuple[str, ...] = Field(default=())
    approved_by: str = ""
    notes: str = ""


class Choice(_Document):
    """One way of placing a population's gate."""

    method: str
    channels: tuple[str, ...] = Field(default=())
    params: dict[str, Any] = Field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)
    on_bound: Literal["clamp", "next"] = "clamp"
    min_events: int | None = Field(default=None, ge=0)
    because: str = ""


class Population(Choice):
    """One row of the gating strategy.

    `otherwise` are tried in order when the row's own channels are missing, its parent has fewer than `min_events`
    events, or its method finds nothing; `last` says what stands when none of them does. `title` is what people call it
    where that is no name of a template: a document of another program says `CD4+ T`.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str = ""
    parent: str
    purpose: str
    kind: Literal["clean_up", "population", "control", "target"] = "population"
    otherwise: tuple[Choice, ...] = Field(default=())
    last: Literal["whole", "nothing"] | None = None
    plot: tuple[str, str] | None = Field(default=None)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All ways in order; the row itself is the first."""
        return (self, *self.otherwise)

    @property
    def last_resort(self) -> Literal["whole", "nothing"]:
        """What stands when nothing could be placed: a clean-up step removes nothing, a population holds nothing."""
        return self.last or ("whole" if self.kind == "clean_up" else "nothing")


class Route(_Document):
    """A way to the B lineage that does not need the therapy's target: the markers it takes."""

    name: str
    markers: tuple[str, ...] = Field(min_length=1)


class Measurement(_Document):
    """What is reported: numerator and denominator populations and the event rule.

    `kind` is `mrd` (judged against `target_fraction`, with `mrd_neg_1e4`), `own` (the same by
    the subject's own earlier phenotype; no row where none is known), `fraction` (a share with its limits), or one
    of an engineered-cell tube: `car` (a share with the background of controls subtracted), `car_detected`,
    `car_absolute` (per µl of blood) and `aplasia` (B cells). Of a `car` measurement, `channel` is the marker of the
    detection reagent and `strata` are the populations by which a control is weighed to the sample's composition.

    `therapy_target` is the antigen whose loss under therapy would hide the numerator from a gate on it; `routes` are
    the ways to the lineage that do without it. With a target and no route in the file, a negative
    result proves nothing.
    """

    analyte: str
    kind: Literal["mrd", "own", "fraction", "car", "car_detected", "car_absolute", "aplasia"] = "mrd"
    numerator: str
    denominator: str
    rules: str = "iccs_20_50"
    target_fraction: float = Field(default=1e-4, gt=0, lt=1)
    lod_events: int | None = Field(default=None, gt=0)
    lloq_events: int | None = Field(default=None, gt=0)
    channel: str = ""
    strata: tuple[str, ...] = Field(default=(), max_length=4)
    assay_lob: float | None = Field(default=None, gt=0, lt=1)
    assay_lod: float | None = Field(default=None, gt=0, lt=1)
    assay_lloq: float | None = Field(default=None, gt=0, lt=1)
    unit: str = "%"
    therapy_target: str = ""
    routes: tuple[Route, ...] = Field(default=())


class Plot(_Document):
    """An extra view of a population, without a gate of its own."""

    parent: str
    x: str
    y: str
    purpose: str = ""


class Override(_Document):
    """A gate of one subject that stands in for the template's: who drew it, and on which file.

    `gate` is the JSON form of `flowmrd.gating.gates` (kind, markers, vertices …), in scaled units.
    """

    subject: str = Field(min_length=1)
    population: str
    gate: dict[str, Any]
    by: str = Field(min_length=1)
    source: str = ""


class Quality(_Document):
    """Names of the populations whose counts the acquisition checks need, and its target for events.

    `internal` are the normal lymphocytes of which a marrow must show one kind at least; `negatives` are the internal
    negatives, `lacking` the markers that neither they nor anything that passes for them has; `marrow` maps a cell type
    of the hemodilution rules to its population; `blood` are the cells that are mostly in blood (mature T cells);
    `normal` are the normal cells of the lineage. `phenotypes` are what no clean-up step may take away in number.
    `singlets_of` is the population that singlets are a share of, where it is not all events: counting beads are no
    cells.
    """

    singlets: str | None = None
    singlets_of: str | None = None
    viable: str | None = None
    denominator: str | None = None
    gating_markers: tuple[str, ...] = Field(default=())
    internal: tuple[str, ...] = Field(default=())
    negatives: str | None = None
    lacking: tuple[str, ...] = Field(default=())
    marrow: dict[str, str] = Field(default_factory=dict)
    blood: str | None = None
    normal: tuple[str, ...] = Field(default=())
    phenotypes: tuple[Phenotype, ...] = Field(default=())

    @property
    def named(self) -> tuple[str, ...]:
        """Return all populations named here."""
        single = (self.singlets, self.viable, self.denominator, self.negatives, self.blood)
        return (*(name for name in single if name is not None), *self.internal, *self.normal, *self.marrow.values())


class Counts(_Document):
    """Names of the populations that absolute counts and a course over time need; those that the tube has.

    `beads` are counting beads, `whole` the events that a recorded volume belongs to, `lymphocytes` those that an
    analyser's lymphocytes are. `t_with_b` are events with the markers of both, `car_blasts` cells with the receptor
    that may be blasts. `ratio` are two populations of engineered cells (CD4 and CD8), `memory` names subsets.
    """

    beads: str | None = None
    whole: str | None = None
    lymphocytes: str | None = None
    t_cells: str | None = None
    car: str | None = None
    b_cells: str | None = None
    t_with_b: str | None = None
    car_blasts: str | None = None
    ratio: tuple[str, str] | None = Field(default=None)
    memory: dict[str, str] = Field(default_factory=dict)

    @property
    def named(self) -> tuple[str, ...]:
        """All populations named here."""
        single = (
            self.beads,
            self.whole,
            self.lymphocytes,
            self.t_cells,
            self.car,
            self.b_cells,
            self.t_with_b,
            self.car_blasts,
        )
        return (*(name for name in single if name is not None), *(self.ratio or ()), *self.memory.values())


class GatingTemplate(_Document):
    """A tube's whole recipe. `digest` is the SHA-256 of the document's bytes."""

    template: Head
    channel: tuple[MarkerSpec, ...] = Field(min_length=1)
    population: tuple[Population, ...] = Field(min_length=1)
    measurement: tuple[Measurement, ...] = Field(default=())
    plot: tuple[Plot, ...] = Field(default=())
    override: tuple[Override, ...] = Field(default=())
    quality: Quality = Quality()
    antigen: tuple[Antigen, ...] = Field(default=())
    internal_control: tuple[InternalControl, ...] = Field(default=())
    counts: Counts = Counts()
    digest: str = ""

    def row(self, name: str) -> Population:
        """Return the row of a population."""
        return next(row for row in self.population if row.name == name)

    def path(self, name: str) -> str:
        """Return `/…/name`: all ancestors below the root, as in documents of other programs."""
        parts = [name]
        while (parent := self.row(parts[0]).parent) != ROOT:
            parts.insert(0, parent)
        return "/" + "/".join(parts)

    @property
    def target(self) -> str:
        """Return the population that is back-gated: the first `target`, else the first numerator, else nothing."""
        for row in self.population:
            if row.kind == "target":
                return row.name
        return self.measurement[0].numerator if self.measurement else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedChoice:
    """A choice with its method and validated parameters."""

    choice: Choice
    method: GateMethod
    params: Params


def typed(choice: Choice) -> TypedChoice:
    """Return the method and its parameters as checked at load."""
    method = methods()[choice.method]
    return TypedChoice(choice=choice, method=method, params=method.params.model_validate(choice.params))


def depends_on(choice: Choice) -> tuple[str, ...]:
    """Return the populations a choice needs besides its parent: references, lenders of cuts, operands."""
    one = typed(choice)
    names = {*one.method.references(one.params), *one.method.borrows(one.params), *operands(choice)}
    return tuple(sorted(names))


def operands(choice: Choice) -> tuple[str, ...]:
    """Return the populations of a boolean choice."""
    if choice.method != "boolean":
        return ()
    return tuple(str(name).removeprefix("!") for name in choice.params.get("populations", ()))


def load_template(path: Path) -> GatingTemplate:
    """Read and check one template.

    Raises
    ------
    ExceptionGroup
        Of `TemplateError`, one per fault, each with its key path.
    """
    data = path.read_bytes()
    try:
        document = _frozen(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TemplateError(f"not valid TOML: {error}", source=path.name) from None
    try:
        template = GatingTemplate.model_validate({**document, "digest": hashlib.sha256(data).hexdigest()})
    except ValidationError as error:
        raise ExceptionGroup("invalid template", _located(error, path.name, document)) from None
    faults = list(_cross_check(template, path.name))
    if faults:
        raise ExceptionGroup("invalid template", faults)
    return template


def _frozen(node: Any) -> Any:
    """Turn arrays into tuples, which is what the strict models hold."""
    if isinstance(node, dict):
        return {key: _frozen(value) for key, value in node.items()}
    return tuple(_frozen(value) for value in node) if isinstance(node, list) else node


def _located(error: ValidationError, source: str, document: Any, prefix: str = "") -> list[TemplateError]:
    """Turn each fault into a message with its key path; a value that may be of several types is one fault."""
    messages: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for fault in error.errors():
        where = _key_path(fault["loc"], document, prefix)
        text = "unknown key" if fault["type"] == "extra_forbidden" else str(fault["msg"])
        messages.setdefault(where, []).append(text)
        if fault["type"] not in {"extra_forbidden", "missing"} and not isinstance(fault["input"], dict):
            values[where] = f", got {fault['input']!r}"
    return [
        TemplateError(" or: ".join(texts) + values.get(where, ""), source=source, where=where)
        for where, texts in messages.items()
    ]


def _key_path(location: Sequence[int | str], document: Any, prefix: str) -> str:
    where, node = prefix, document
    for key in location:
        if isinstance(key, int) and isinstance(node, tuple):
            where, node = f"{where}[{key}]", node[key]
            name = (
                next((node[k] for k in ("name", "marker", "analyte") if k in node), "")
                if isinstance(node, dict)
                else ""
            )
            where += f" ({name})" if name else ""
        elif isinstance(node, dict):
            where, node = f"{where}.{key}" if where else str(key), node.get(key)
        # What is left names one of the types that a value may have; it is no key of the document.
    return where


def _cross_check(template: GatingTemplate, source: str) -> Iterable[TemplateError]:
    def fault(where: str, message: str, hint: str = "") -> TemplateError:
        return TemplateError(message, source=source, where=where, hint=hint)

    markers = tuple(spec.marker for spec in template.channel)
    names = tuple(row.name for row in template.population)
    for kind, items in (("channel", markers), ("population", names)):
        for item in sorted({item for item in items if items.count(item) > 1}):
            yield fault(kind, f"{item} is given twice")
    usable: dict[str, set[str]] = {}
    for number, row in enumerate(template.population):
        key = f"population[{number}] ({row.name})"
        if row.parent != ROOT and row.parent not in names:
            yield fault(f"{key}.parent", f"no population {row.parent!r}", nearest(row.parent, names))
        for step, choice in enumerate(row.choices):
            place = key if step == 0 else f"{key}.otherwise[{step - 1}]"
            if choice.method not in methods():
                yield fault(f"{place}.method", f"no gate method {choice.method!r}", nearest(choice.method, methods()))
                continue
            for marker in choice.channels:
                if marker not in markers:
                    yield fault(f"{place}.channels", f"no channel for marker {marker!r}", nearest(marker, markers))
            try:
                dependencies = depends_on(choice)
            except ValidationError as error:
                yield from _located(error, source, choice.params, f"{place}.params")
                continue
            for other in dependencies:
                if other not in names:
                    yield fault(f"{place}.params", f"no population {other!r}", nearest(other, names))
                else:
                    usable.setdefault(row.name, set()).add(other)
        for marker in row.plot or ():
            if marker not in markers:
                yield fault(f"{key}.plot", f"no channel for marker {marker!r}", nearest(marker, markers))
    if not any(True for row in template.population if row.parent == ROOT):
        yield fault("population", "no population has root as its parent")
    cycle = _cycle({row.name: {row.parent, *usable.get(row.name, ())} - {ROOT} for row in template.population})
    if cycle:
        yield fault("population", f"populations need one another in a circle: {' → '.join(cycle)}")
    for number, measurement in enumerate(template.measurement):
        for field in ("numerator", "denominator"):
            name = getattr(measurement, field)
            if name not in names:
                yield fault(
                    f"measurement[{number}] ({measurement.analyte}).{field}",
                    f"no population {name!r}",
                    nearest(name, names),
                )
        place = f"measurement[{number}] ({measurement.analyte})"
        if measurement.kind == "car" and measurement.channel not in markers:
            hint = nearest(measurement.channel, markers)
            yield fault(f"{place}.channel", f"no channel for marker {measurement.channel!r}", hint)
        for name in measurement.strata:
            if name not in names:
                yield fault(f"{place}.strata", f"no population {name!r}", nearest(name, names))
    for name in template.quality.named:
        if name not in names:
            yield fault("quality", f"no population {name!r}", nearest(name, names))
    yield from evidence_faults(template, markers=markers, populations=names, fault=fault)
    for name in template.counts.named:
        if name not in names:
            yield fault("counts", f"no population {name!r}", nearest(name, names))
    for number, override in enumerate(template.override):
        key = f"override[{number}] ({override.subject})"
        if override.population not in names:
            yield fault(
                f"{key}.population", f"no population {override.population!r}", nearest(override.population, names)
            )
        try:
            gate = gate_from_json(override.gate)
        except (GatingError, KeyError, TypeError, ValueError, AssertionError) as error:
            yield fault(f"{key}.gate", f"not a gate: {error!s}" if str(error) else "not a gate")
            continue
        for marker in gate_markers(gate):
            if marker not in markers:
                yield fault(f"{key}.gate", f"no channel for marker {marker!r}", nearest(marker, markers))
    for number, plot in enumerate(template.plot):
        if plot.parent != ROOT and plot.parent not in names:
            yield fault(f"plot[{number}].parent", f"no population {plot.parent!r}", nearest(plot.parent, names))
        for marker in (plot.x, plot.y):
            if marker not in markers:
                yield fault(f"plot[{number}]", f"no channel for marker {marker!r}", nearest(marker, markers))


def _cycle(needs: Mapping[str, set[str]]) -> list[str]:
    """Return one circle of names, or nothing."""
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> list[str]:
        if state.get(name) == 2 or name not in needs:
            return []
        if state.get(name) == 1:
            return [*trail[trail.index(name) :], name]
        state[name] = 1
        for other in sorted(needs[name]):
            found = visit(other, [*trail, name])
            if found:
                return found
        state[name] = 2
        return []

    for name in needs:
        found = visit(name, [])
        if found:
            return found
    return []


def requires_marker(template: GatingTemplate, population: str, marker: str) -> bool:
    """Say whether every way from root to `population` gates positively on `marker`.

    An `or` needs the marker only where all its operands do; an `and` where any does; complemented operands never do.
    Which of a population's choices a file gets is not known here, so one choice that needs the marker is enough.
    """
    # Populations are reached on many ways: each is asked once.
    return _requires(template, population, marker, {ROOT: False})


def _requires(template: GatingTemplate, population: str, marker: str, known: dict[str, bool]) -> bool:
    if population not in known:
        row = template.row(population)
        known[population] = _requires(template, row.parent, marker, known) or any(
            _choice_requires(template, choice, marker, known) for choice in row.choices
        )
    return known[population]


def _choice_requires(template: GatingTemplate, choice: Choice, marker: str, known: dict[str, bool]) -> bool:
    if choice.method == "boolean":
        kept = [str(name) for name in choice.params["populations"] if not str(name).startswith("!")]
        needs = [_requires(template, name, marker, known) for name in kept]
        if not needs:
            return False
        return all(needs) if choice.params["operator"] == "or" else any(needs)
    one = typed(choice)
    # A search looks at all its markers together and needs none of them to be there.
    if one.method.lists is not None or marker not in one.method.selects(choice.channels):
        return False
    if getattr(one.params, "keep", "above") == "below":
        return False
    low = getattr(one.params, "low", 0.0)
    if isinstance(low, dict):
        return marker in low
    return low is not None


def template_folder() -> Path:
    """Return the folder of the shipped templates (in the wheel, or beside the package in a checkout)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "gating_templates"
    return inside if inside.is_dir() else package.parent / "gating_templates"


def template_paths(folder: Path | None = None) -> Mapping[str, Path]:
    """Return template id → file of the shipped templates, overridden by those in `folder`."""
    found = {path.stem: path for path in sorted(template_folder().glob("*.toml"))}
    if folder is not None:
        found.update({path.stem: path for path in sorted(folder.glob("*.toml"))})
    return found


def find_template(name: str, folder: Path | None = None) -> GatingTemplate:
    """Load a template by id or by path.

    Raises
    ------
    TemplateError
        There is no such template; the message names the nearest.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise TemplateError("no such template file", source=name)
        return load_template(path)
    known = template_paths(folder)
    if name not in known:
        raise TemplateError(f"no template {name!r}", hint=nearest(name, tuple(known)))
    template = load_template(known[name])
    if template.template.id != name:
        raise TemplateError(
            f"the file is named {known[name].name} but its id is {template.template.id!r}",
            source=known[name].name,
            where="template.id",
        )
    return template
