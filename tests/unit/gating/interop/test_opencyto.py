"""openCyto templates: every method and shorthand, and nothing that is R gets run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.errors import InputError
from flowmrd.fcs import Channel, FcsFile, Spillover, read_fcs, write_fcs
from flowmrd.gating.engine import apply_template
from flowmrd.gating.interop import opencyto
from flowmrd.gating.interop.document import evaluate
from flowmrd.gating.interop.load import load_strategy
from flowmrd.gating.template import GatingTemplate, load_template

HEAD = (
    "alias,pop,parent,dims,gating_method,gating_args,"
    "collapseDataForGating,groupBy,preprocessing_method,preprocessing_args"
)


def converted(tmp_path: Path, *rows: str) -> tuple[GatingTemplate, dict[str, list[str]]]:
    text, findings = opencyto.convert("\n".join((HEAD, *rows)).encode(), "t cell.csv")
    path = tmp_path / "t-cell.toml"
    path.write_text(text, encoding="utf-8")
    told: dict[str, list[str]] = {}
    for finding in findings:
        told.setdefault(finding.code, []).append(finding.message)
    return load_template(path), told


METHODS = [
    ('p,+,root,CD3,mindensity,"gate_range=c(1,3)",,,,', "valley", {"keep": "above", "search": (0.222222, 0.666667)}),
    ("p,-,root,CD3,gate_mindensity,,,,,", "valley", {"keep": "below"}),
    ("p,+,root,CD3,tailgate,tol=1e-2,,,,", "tail", {"keep": "above", "side": "upper", "distance": 3.0349}),
    ("p,-,root,CD3,quantileGate,probs=0.05,,,,", "quantile", {"keep": "below", "quantile": 0.05}),
    (
        "p,+,root,CD3,flowClust,K=3,,,,",
        "mixture_cut",
        {"keep": "above", "components": 3, "between": 0, "tail_degrees": 4.0},
    ),
    ('p,+,root,"FSC-A,FSC-H",singletGate,,,,,', "singlet_band", {}),
    (
        'p,+,root,"FSC-A,SSC-A",flowClust,"K=2,target=c(131072,65536),quantile=0.95",,,,',
        "mixture_2d",
        {"components": 2, "content": 0.95, "tail_degrees": 4.0, "max_distance": 10.0, "target": (0.5, 0.25)},
    ),
    ('p,+,root,FSC-A,boundary,"min=26214.4,max=Inf",,,,', "rectangle", {"low": {"FSC-A": 0.1}}),
    ("p,+,root,,dummy_gate,,,,,", "whole", {}),
    # The names since openCyto 2.0, and methods of its first versions.
    ("p,+,root,CD3,gate_tail,tol=1e-2,,,,", "tail", {"keep": "above", "side": "upper", "distance": 3.0349}),
    ("p,+,root,CD3,cytokine,tol=1e-2,,,,", "tail", {"keep": "above", "side": "upper", "distance": 3.0349}),
    ("p,+,root,CD3,gate_quantile,probs=0.5,,,,", "quantile", {"keep": "above", "quantile": 0.5}),
    ("p,+,root,CD3,rangeGate,,,,,", "valley", {"keep": "above"}),
    (
        "p,-,root,CD3,gate_flowclust_1d,K=2,,,,",
        "mixture_cut",
        {"keep": "below", "components": 2, "between": 0, "tail_degrees": 4.0},
    ),
    # Without a target openCyto takes the cluster of most events.
    (
        'p,+,root,"FSC-A,SSC-A",gate_flowclust_2d,K=3,,,,',
        "mixture_2d",
        {"components": 3, "content": 0.9, "tail_degrees": 4.0, "max_distance": 10.0},
    ),
]


@pytest.mark.parametrize(("row", "method", "params"), METHODS)
def test_each_method_has_its_counterpart(tmp_path: Path, row: str, method: str, params: dict[str, object]) -> None:
    template, _ = converted(tmp_path, "first,+,root,CD99,mindensity,,,,,", row)
    found = template.row("p")
    assert (found.method, found.params) == (method, params)


def test_both_sides_of_a_cut_share_it(tmp_path: Path) -> None:
    template, _ = converted(tmp_path, "*,+/-,root,CD4,mindensity,,,,,")
    assert [(row.name, row.method) for row in template.population] == [("cd4_pos", "valley"), ("cd4_neg", "interval")]
    assert template.row("cd4_neg").params == {"high": "cd4_pos.cut"}


def test_two_signs_are_two_cuts_and_a_quadrant(tmp_path: Path) -> None:
    template, _ = converted(tmp_path, "cd3,+,root,CD3,mindensity,,,,,", 'T helper,+-,cd3,"cd4,cd8",mindensity,,,,,')
    assert [row.name for row in template.population] == ["cd3", "cd4_pos", "cd8_pos", "t_helper"]
    assert template.row("t_helper").params == {"x": "cd4_pos.cut", "y": "cd8_pos.cut", "quadrant": "+-"}
    assert template.row("t_helper").parent == "cd3"


def test_four_quadrants_come_of_one_row_and_are_found_by_their_names(tmp_path: Path) -> None:
    template, _ = converted(
        tmp_path,
        '*,cd4+/-cd8+/-,root,"cd4,cd8",mindensity,,,,,',
        "memory,-,cd4+cd8-,CD45RA,mindensity,,,,,",
    )
    quadrants = [row.params["quadrant"] for row in template.population if row.method == "quadrant"]
    assert quadrants == ["++", "+-", "-+", "--"]
    assert template.row("memory").parent == "cd4_pos_cd8_neg"


def test_boolean_and_reference_gates_point_at_populations(tmp_path: Path) -> None:
    template, _ = converted(
        tmp_path,
        "a,+,root,CD3,mindensity,,,,,",
        "b,+,root,CD4,mindensity,,,,,",
        "c,+,root,,boolGate,a & !b,,,,",
        "d,+,root,,boolGate,a&(b|!c),,,,",
        "e,-,a,CD4,refGate,root/b,,,,",
        'f,++,a,"CD3,CD4",refGate,a:b,,,,',
    )
    assert template.row("c").params == {"operator": "and", "populations": ("a", "!b")}
    assert template.row("d_part").params == {"operator": "or", "populations": ("b", "!c")}
    assert template.row("d").params == {"operator": "and", "populations": ("a", "d_part")}
    assert template.row("e").params == {"high": "b.cut"}
    assert template.row("f").params == {"x": "a.cut", "y": "b.cut", "quadrant": "++"}


UNMAPPED = [
    "x,+,root,CD3,flowDensity,,,,,",
    "x,+,root,CD3,mindensity,\"system('true')\",,,,",
    'x,+,root,CD3,mindensity,"adjust=function(x) x",,,,',
    "x,+,nowhere,CD3,mindensity,,,,,",
    'x,+,root,"CD3,CD4",flowClust,"K=3,target=5",,,,',
    'x,+,root,"CD3,CD4",flowClust,"K=3,transitional=TRUE",,,,',
    "x,*,root,CD3,mindensity,,,,,",
    'x,++,root,"CD3,CD4",gate_quad_sequential,gFunc=flowDensity,,,,',
    'x,++,root,"CD3,CD4",gate_quad_sequential,,,,,',
    "x,+,root,,boolGate,a & (b,,,,",
    "x,+,root,,boolGate,a & unknown,,,,",
    "x,+,root,CD3,refGate,unknown,,,,",
    "x,+,root,CD3,flowClust,K=900,,,,",
]


@pytest.mark.parametrize("row", UNMAPPED)
def test_what_has_no_counterpart_is_listed_counts_nothing_and_keeps_its_children(tmp_path: Path, row: str) -> None:
    template, told = converted(
        tmp_path, "a,+,root,CD3,mindensity,,,,,", "b,+,root,CD4,mindensity,,,,,", row, "child,+,x,CD4,mindensity,,,,,"
    )
    assert len(told["OPENCYTO_NOT_MAPPED"]) == 1
    assert template.row("x").params == {"low": 1e9}
    assert template.row("x").purpose.startswith("NOT MAPPED")
    assert template.row("child").parent == "x"


def test_columns_and_arguments_without_counterpart_are_listed(tmp_path: Path) -> None:
    _, told = converted(tmp_path, 'p,+,root,CD3,mindensity,"adjust=2,num_peaks=3L",TRUE,4,prior_flowClust,K=2')
    assert len(told["OPENCYTO_NOT_CARRIED"]) == 4
    assert any("adjust, num_peaks" in message for message in told["OPENCYTO_NOT_CARRIED"])


def test_groups_alone_do_not_change_a_gate(tmp_path: Path) -> None:
    _, told = converted(tmp_path, "p,+,root,CD3,mindensity,,FALSE,4,,")
    assert "OPENCYTO_NOT_CARRIED" not in told


def test_arguments_are_read_and_never_run() -> None:
    assert opencyto.parse_args("K = 2L, target=c(1e5, -5.5), quantile=.9, plot=FALSE, id='a,b', x=NULL") == {
        "K": 2.0,
        "target": (1e5, -5.5),
        "quantile": 0.9,
        "plot": False,
        "id": "a,b",
        "x": None,
    }
    for text in ("f(1)", "K=2+", "c(1", "K=c(c(c(c(c(c(1))))))", "a b", "K=,"):
        with pytest.raises(ValueError, match=r"."):
            opencyto.parse_args(text)


def test_a_file_that_is_no_template_is_refused() -> None:
    with pytest.raises(InputError, match="lacks the columns pop, parent, dims, gating_method"):
        opencyto.convert(b"alias,x\na,b\n", "t.csv")
    with pytest.raises(InputError, match="has no rows"):
        opencyto.convert(HEAD.encode(), "t.csv")
    with pytest.raises(InputError, match="needs an alias"):
        opencyto.convert(f"{HEAD}\n,+,root,CD3,mindensity,,,,,\n".encode(), "t.csv")
    with pytest.raises(InputError, match="more than the 2000 allowed"):
        opencyto.convert((HEAD + "\np,+,root,CD3,mindensity,,,,," * 2001).encode(), "t.csv")


def titles(template: GatingTemplate) -> list[str]:
    return [row.title or row.name for row in template.population]


def test_names_of_the_table_stay_as_titles(tmp_path: Path) -> None:
    template, _ = converted(
        tmp_path,
        "nonDebris,+,root,FSC-A,mindensity,,,,,",
        "CD4+ T,+,nonDebris,CD4,mindensity,,,,,",
        "Th1/17,+,CD4+ T,CD3,mindensity,,,,,",
    )
    assert titles(template) == ["nonDebris", "CD4+ T", "Th1/17"]
    assert [row.name for row in template.population] == ["nondebris", "cd4_pos_t", "th1_17"]
    assert template.row("cd4_pos_t").purpose == "CD4+ T: from openCyto's mindensity, row 3."


def test_a_dash_in_an_axis_name_is_no_sign(tmp_path: Path) -> None:
    template, _ = converted(
        tmp_path, "p,HLA-DR+,root,HLA-DR,mindensity,,,,,", 'q,HLA-DR-CD38+,root,"HLA-DR,CD38",mindensity,,,,,'
    )
    assert template.row("p").params == {"keep": "above"}
    assert template.row("q").params == {"x": "hla_dr_pos.cut", "y": "cd38_pos.cut", "quadrant": "-+"}


def test_a_row_of_several_parents_stands_under_each(tmp_path: Path) -> None:
    template, _ = converted(
        tmp_path,
        "*,+/-,root,CD4,mindensity,,,,,",
        'act,+,"CD4+,CD4-",CD38,mindensity,,,,,',
        "both,+,root,,boolGate,CD4+/act|CD4-/act,,,,",
    )
    assert [(row.name, row.parent, row.title) for row in template.population][2:4] == [
        ("act", "cd4_pos", ""),
        ("act_2", "cd4_neg", "act"),
    ]
    assert template.row("both").params == {"operator": "or", "populations": ("act", "act_2")}


def test_quadrants_in_turn_cut_the_second_axis_in_each_half(tmp_path: Path) -> None:
    template, told = converted(tmp_path, '"A,B,C,D",*,root,"X,Y",quadGate.seq,"gFunc=\'mindensity\'",,,,')
    assert [(row.title, row.parent, row.method, row.params) for row in template.population] == [
        ("X-", "root", "valley", {"keep": "below"}),
        ("A", "x_neg", "valley", {"keep": "above"}),
        ("X+", "root", "interval", {"low": "x_neg.cut"}),
        ("B", "x_pos", "valley", {"keep": "above"}),
        ("C", "x_pos", "interval", {"high": "b.cut"}),
        ("D", "x_neg", "interval", {"high": "a.cut"}),
    ]
    assert "X is" in told["OPENCYTO_ASSUMED"][0]


def test_four_quadrants_are_named_after_their_axes_and_by_alias_clockwise_from_the_upper_left(tmp_path: Path) -> None:
    template, _ = converted(tmp_path, '"A,B,C,D",+/-+/-,root,"X,Y",mindensity,,,,,')
    assert titles(template) == ["X+", "Y+", "X+Y+", "X+Y-", "X-Y+", "X-Y-"]
    template, _ = converted(tmp_path, '"A,B,C,D",*,root,"X,Y",mindensity,,,,,')
    assert [row.params.get("quadrant") for row in template.population][2:] == ["-+", "++", "+-", "--"]
    assert titles(template)[2:] == ["A", "B", "C", "D"]


def test_an_outline_is_used_again_where_it_means_the_same(tmp_path: Path) -> None:
    rows = ('lymph,+,root,"FSC-A,SSC-A",boundary,"min=c(1,1)",,,,', "cd3,+,root,CD3,mindensity,,,,,")
    template, told = converted(
        tmp_path, *rows, 'again,+,cd3,"FSC-A,SSC-A",refGate,lymph,,,,', 'out,-,cd3,"FSC-A,SSC-A",refGate,lymph,,,,'
    )
    assert template.row("again").params == {"operator": "and", "populations": ("lymph",)}
    assert template.row("out").params == {"operator": "and", "populations": ("!lymph",)}
    assert "OPENCYTO_NOT_MAPPED" not in told
    # Found within CD3+, wanted among all: the outline itself would be needed.
    below = ("cd3,+,root,CD3,mindensity,,,,,", 'lymph,+,cd3,"FSC-A,SSC-A",boundary,"min=c(1,1)",,,,')
    _, told = converted(tmp_path, *below, 'again,+,root,"FSC-A,SSC-A",refGate,lymph,,,,')
    assert "cannot be used outside the population" in told["OPENCYTO_NOT_MAPPED"][0]


def test_all_combinations_of_functions(tmp_path: Path) -> None:
    rows = ("a+,+,root,A,mindensity,,,,,", "b,+,root,B,mindensity,,,,,")
    template, _ = converted(tmp_path, *rows, "*,*,root,,polyFunctions,a+:b,,,,")
    assert titles(template)[2:] == ["a+b+", "a+b-", "a-b+", "a-b-"]
    assert template.population[3].params == {"operator": "and", "populations": ("a_pos", "!b")}
    _, told = converted(tmp_path, *rows, "p,*,root,,polyFunctions,a+:b:a+:b:a+:b,,,,")
    assert "6 populations are combined" in told["OPENCYTO_NOT_MAPPED"][0]


# ------------------------------------------------------------------------------------------ whole templates, on a file

FOLDER = Path(__file__).parent / "opencyto"
LYMPH, MONO, DEBRIS = (1.0e5, 5.0e4), (1.4e5, 1.3e5), (1.2e4, 1.0e4)
# kind → events, mean scatter, markers that it bears
BLOOD: dict[str, tuple[int, tuple[float, float], str]] = {
    "debris": (4000, DEBRIS, ""),
    "monocyte": (5000, MONO, "HLA-DR"),
    "dead": (1500, LYMPH, "Viability CD3 CD4"),
    "b": (3000, LYMPH, "HLA-DR"),
    "cd4 naive": (6000, LYMPH, "CD3 CD4 CCR7 CD45RA"),
    "cd4 cm": (4000, LYMPH, "CD3 CD4 CCR7"),
    "cd4 em": (3000, LYMPH, "CD3 CD4"),
    "cd4 active": (600, LYMPH, "CD3 CD4 CD38 HLA-DR"),
    "cd8 naive": (3000, LYMPH, "CD3 CD8 CCR7 CD45RA"),
    "cd8 em": (2000, LYMPH, "CD3 CD8"),
    "cd8 temra": (2000, LYMPH, "CD3 CD8 CD45RA"),
    "cd8 cm": (500, LYMPH, "CD3 CD8 CCR7"),
    "cd8 active": (500, LYMPH, "CD3 CD8 CD38 HLA-DR"),
    "dn": (700, LYMPH, "CD3"),
    "dp": (200, LYMPH, "CD3 CD4 CD8"),
}
SPLEEN: dict[str, tuple[int, tuple[float, float], str]] = {
    "debris": (4000, DEBRIS, ""),
    "monocyte": (5000, MONO, ""),
    "t": (15000, LYMPH, "CD3"),
    "naive": (5000, LYMPH, "CD19 CD20 IgD"),
    "transitional": (800, LYMPH, "CD19 CD20 IgD CD24 CD38"),
    "unswitched": (1500, LYMPH, "CD19 CD20 IgD CD27 CD24"),
    "switched": (2500, LYMPH, "CD19 CD20 CD27"),
    "switched cd24": (500, LYMPH, "CD19 CD20 CD27 CD24"),
    "dn": (700, LYMPH, "CD19 CD20"),
    "plasmablast": (300, LYMPH, "CD19 CD27 CD38"),
    "cd20 low": (500, LYMPH, "CD19"),
}
PANELS = {
    "tcell": (BLOOD, ("Viability", "CD3", "CD4", "CD8", "CD38", "HLA-DR", "CCR7", "CD45RA")),
    "bcell": (SPLEEN, ("CD3", "CD19", "CD20", "CD27", "CD38", "CD24", "IgD")),
}


def simulated(folder: Path, name: str) -> tuple[FcsFile, NDArray[np.str_]]:
    """Draw cells of known kinds: positive at 10,000, negative around 0, 4 % of each dye seen by its neighbour."""
    kinds, markers = PANELS[name]
    rng = np.random.default_rng(7)
    parts = []
    for events, (forward, side), borne in kinds.values():
        area = rng.normal(forward, 0.08 * forward, events)
        columns = [area, 0.8 * area * rng.normal(1.0, 0.015, events), rng.normal(side, 0.12 * side, events)]
        has = borne.split()
        columns += [
            10 ** rng.normal(4.0, 0.12, events) if marker in has else rng.normal(0.0, 150.0, events)
            for marker in markers
        ]
        parts.append(np.column_stack(columns))
    order = rng.permutation(sum(len(part) for part in parts))
    truth = np.concatenate([np.full(one[0], kind) for kind, one in kinds.items()])[order]
    values = np.vstack(parts)[order]
    matrix = np.eye(len(markers)) + 0.04 * np.eye(len(markers), k=1)
    values[:, 3:] = values[:, 3:] @ matrix
    dyes = tuple(f"FL{i + 1}-A" for i in range(len(markers)))
    channels = [
        Channel(index=i, pnn=pnn, pns=pns, range=262144.0)
        for i, (pnn, pns) in enumerate(zip(("FSC-A", "FSC-H", "SSC-A", *dyes), ("", "", "", *markers), strict=True))
    ]
    spillover = Spillover(channels=dyes, matrix=matrix, source="$SPILLOVER")
    path = folder / f"{name}.fcs"
    write_fcs(path, [column.astype(np.float32) for column in values.T], channels, spillover=spillover)
    return read_fcs(path), truth


# population → the kinds of cells it should hold
HELD: dict[str, dict[str, str]] = {
    "tcell": {
        "nonDebris": "* -debris",
        "singlets": "* -debris",
        "lymph": "* -debris -monocyte",
        "live": "* -debris -monocyte -dead",
        "CD4+CD8-": "cd4 naive|cd4 cm|cd4 em|cd4 active",
        "CD4-CD8+": "cd8 naive|cd8 em|cd8 temra|cd8 cm|cd8 active",
        "CD4+CD8+": "dp",
        "CD4-CD8-": "dn",
        "CD4+CD8-/CCR7+CD45RA+": "cd4 naive",
        "CD4+CD8-/CCR7+CD45RA-": "cd4 cm",
        "CD4+CD8-/CCR7-CD45RA-": "cd4 em|cd4 active",
        "CD4-CD8+/CCR7-CD45RA+": "cd8 temra",
        "CD4-CD8+/CCR7+CD45RA-": "cd8 cm",
        "activated cd4": "cd4 active",
        "activated cd8": "cd8 active",
        "dn or dp": "dn|dp",
        "resting": "cd4 naive|cd4 cm|cd4 em|cd8 naive|cd8 em|cd8 temra|cd8 cm",
        "CD38+HLA-DR+": "cd4 active",
    },
    "bcell": {
        "boundary": "* -debris",
        "lymph": "* -debris -monocyte",
        "not in lymph": "monocyte",
        "B cells": "* -debris -monocyte -t",
        "CD20-": "plasmablast|cd20 low",
        "plasmablasts": "plasmablast",
        "naive": "naive|transitional",
        "unswitched": "unswitched",
        "switched": "switched|switched cd24",
        "double negative": "dn",
        "transitional": "transitional",
        "not transitional": "naive",
        "CD24+ switched": "switched cd24",
    },
}


def wanted(name: str, truth: NDArray[np.str_], kinds: str) -> NDArray[np.bool_]:
    if kinds.startswith("*"):
        return ~np.isin(truth, [one.strip() for one in kinds.split("-")[1:]])
    return np.isin(truth, kinds.split("|"))


@pytest.mark.parametrize("name", PANELS)
def test_a_whole_template_finds_the_cells_that_are_there(tmp_path: Path, name: str) -> None:
    fcs, truth = simulated(tmp_path, name)
    document = FOLDER / f"{name}.csv"
    strategy = load_strategy(document, fcs, tube=None)
    evaluation = evaluate(strategy, fcs)
    for population, kinds in HELD[name].items():
        path = next(path for path in evaluation.counts if path.endswith(f"/{population}"))
        found = evaluation.memberships.mask(path, 0, truth.size)
        expected = wanted(name, truth, kinds)
        missed, wrong = np.count_nonzero(expected & ~found), np.count_nonzero(found & ~expected)
        assert missed + wrong <= 2 + 0.01 * np.count_nonzero(expected), (population, missed, wrong)
    # As a template: the same populations, with the widths of this file's negatives the same events.
    for given, tolerance in ((fcs, 0), (None, 30)):
        text, _ = opencyto.convert(document.read_bytes(), document.name, given)
        (tmp_path / "t.toml").write_text(text, encoding="utf-8")
        template = load_template(tmp_path / "t.toml")
        panel = resolve_panel(template.channel, fcs.channels, tube="t")
        counts = apply_template(EventSource(fcs, panel, template.channel, spillover=fcs.spillover), template).counts
        assert len(counts) == len(strategy.gates)
        for row, one in zip(template.population, strategy.gates, strict=True):
            assert (row.title or row.name) == one.name
            assert counts[row.name] == pytest.approx(evaluation.counts[one.path], abs=tolerance)


def test_logicle_widths_come_from_the_files_compensated_negatives(tmp_path: Path) -> None:
    fcs, _ = simulated(tmp_path, "bcell")
    rows = f"{HEAD}\np,+,root,CD20,mindensity,,,,,\ns,+,root,FSC-A,mindensity,,,,,"
    text, findings = opencyto.convert(rows.encode(), "t.csv", fcs)
    # Of the negative half of a normal distribution of SD 150, 5 % lie below -294; (4.5 - log10(262144 / 294)) / 2.
    assert "W = 0.78" in text
    assert "W from the file's negative values (CD20 0.78)" in findings[-1].message
    text, _ = opencyto.convert(rows.encode(), "t.csv")
    assert "W = 1.0" in text


@pytest.fixture
def two_dyes(tmp_path: Path) -> FcsFile:
    """Three thousand events, a third of them bright in PE; only the detectors' names are short."""
    rng = np.random.default_rng(4)
    bright = np.where(np.arange(3000) % 3 == 0, 20000.0, 0.0)
    table = [rng.normal(1e5, 1e4, 3000), bright + rng.normal(0, 200, 3000), rng.normal(0, 200, 3000)]
    channels = [
        Channel(index=0, pnn="FSC-A", range=262144.0),
        Channel(index=1, pnn="PE-A", pns="CD19", range=262144.0),
        Channel(index=2, pnn="APC-A", pns="CD3", range=262144.0),
    ]
    write_fcs(tmp_path / "two.fcs", table, channels)
    return read_fcs(tmp_path / "two.fcs")


@pytest.mark.parametrize("name", ["CD19", "PE-A", "<PE-A>", "Comp-PE-A"])
def test_an_axis_is_a_stain_or_the_name_of_a_channel(tmp_path: Path, two_dyes: FcsFile, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{HEAD}\nbright,+,root,{name},mindensity,,,,,\n", encoding="utf-8")
    assert dict(evaluate(load_strategy(path, two_dyes), two_dyes).counts) == {"/bright": 1000}
    # As a template the stain stands beside it, by which our templates know fluorescence.
    text, _ = opencyto.convert(path.read_bytes(), path.name, two_dyes)
    (tmp_path / "t.toml").write_text(text, encoding="utf-8")
    template = load_template(tmp_path / "t.toml")
    panel = resolve_panel(template.channel, two_dyes.channels, tube="t")
    assert panel.channels[template.channel[0].marker].pnn == "PE-A"


def test_a_method_that_finds_nothing_on_this_file_is_left_out_with_what_needs_it(
    tmp_path: Path, two_dyes: FcsFile
) -> None:
    path = tmp_path / "t.csv"
    rows = ("dim,+,root,CD3,mindensity", "child,+,dim,CD19,mindensity", "grandchild,+,child,FSC-A,mindensity")
    path.write_text("\n".join((HEAD, *(f"{row},,,,," for row in rows), "bright,+,root,CD19,mindensity,,,,,")))
    strategy = load_strategy(path, two_dyes)
    evaluation = evaluate(strategy, two_dyes)
    assert dict(evaluation.counts) == {"/bright": 1000}
    assert strategy.unread == {"/dim"}
    told = [one.message for one in evaluation.findings if one.level == "warning"]
    assert told[0].startswith("dim could not be evaluated and counts nothing: valley: no density valley of CD3")
    assert told[1:] == [
        "Gate child is left out: it needs /dim, which is left out.",
        "Gate grandchild is left out: it needs child, which is left out.",
    ]
