"""openCyto templates: every method and shorthand, and nothing that is R gets run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmrd.errors import InputError
from flowmrd.gating.interop import opencyto
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
    'x,+,root,"CD3,CD4",flowClust,K=3,,,,',
    "x,+,root,,boolGate,a & (b,,,,",
    "x,+,root,,boolGate,a & unknown,,,,",
    "x,+,root,CD3,refGate,unknown,,,,",
    "x,+,root,CD3,flowClust,K=900,,,,",
    "x,+,root,,polyFunctions,a:b,,,,",
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
