"""Template documents: what is refused, with which words; and what the shipped ones promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmrd.errors import TemplateError
from flowmrd.gating.template import (
    ROOT,
    find_template,
    load_template,
    requires_marker,
    template_folder,
    template_paths,
)

SMALL = """
[template]
id = "small"
version = "1.0.0"
title = "A small tube"
specimens = ["BM"]
purpose = "For tests."

[[channel]]
marker = "CD19"
transform = { kind = "logicle", T = "range", W = 1.0, M = 4.5, A = 0.0 }

[[channel]]
marker = "CD10"
transform = { kind = "logicle", T = "range", W = 1.0, M = 4.5, A = 0.0 }

[[population]]
name = "cd19"
parent = "root"
channels = ["CD19"]
method = "valley"
params = { keep = "above", search = [0.3, 0.6] }
purpose = "B cells."
[[population.otherwise]]
channels = ["CD19"]
method = "interval"
params = { low = 0.42 }

[[population]]
name = "precursors"
parent = "cd19"
channels = ["CD10"]
method = "interval"
params = { low = "cd19.cut" }
purpose = "CD10+ B cells."

[[population]]
name = "either"
parent = "root"
method = "boolean"
params = { operator = "or", populations = ["cd19", "!precursors"] }
purpose = "A union."

[[measurement]]
analyte = "MRD"
numerator = "precursors"
denominator = "cd19"
"""


def faults(tmp_path: Path, text: str) -> list[str]:
    """Load a document that must be refused; return every message in full."""
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_template(path)
    assert all(isinstance(one, TemplateError) for one in caught.value.exceptions)
    return [str(one) for one in caught.value.exceptions]


def test_the_small_template_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    template = load_template(path)
    assert template.path("precursors") == "/cd19/precursors"
    assert template.target == "precursors"
    assert len(template.digest) == 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            'method = "valley"',
            'method = "vally"',
            "small.toml, population[0] (cd19).method: no gate method 'vally' (did you mean 'valley'?)",
            id="typo in a method",
        ),
        pytest.param(
            'channels = ["CD10"]',
            'channels = ["CD10a"]',
            "small.toml, population[1] (precursors).channels: no channel for marker 'CD10a' (did you mean 'CD10'?)",
            id="unknown marker",
        ),
        pytest.param(
            'parent = "cd19"',
            'parent = "cd199"',
            "small.toml, population[1] (precursors).parent: no population 'cd199' (did you mean 'cd19'?)",
            id="unknown parent",
        ),
        pytest.param(
            'low = "cd19.cut"',
            'low = "cd18.cut"',
            "small.toml, population[1] (precursors).params: no population 'cd18' (did you mean 'cd19'?)",
            id="cut borrowed from nobody",
        ),
        pytest.param(
            '"!precursors"',
            '"!precursor"',
            "small.toml, population[2] (either).params: no population 'precursor' (did you mean 'precursors'?)",
            id="unknown operand",
        ),
        pytest.param(
            "search = [0.3, 0.6]",
            "search = [0.3, true]",
            "small.toml, population[0] (cd19).params.search[1]: Input should be a valid number or: Input should be a "
            "valid string, got True",
            id="wrong type",
        ),
        pytest.param(
            'keep = "above", ',
            "",
            "small.toml, population[0] (cd19).params.keep: Field required",
            id="missing parameter",
        ),
        pytest.param(
            'keep = "above", ',
            'keep = "above", bandwith = 0.1, ',
            "small.toml, population[0] (cd19).params.bandwith: unknown key",
            id="unknown parameter",
        ),
        pytest.param(
            "params = { low = 0.42 }",
            "params = { low = [0.42] }",
            "small.toml, population[0] (cd19).otherwise[0].params.low: Input should be a valid number or: Input should "
            "be a valid string, got (0.42,)",
            id="wrong type in an alternative",
        ),
        pytest.param(
            'numerator = "precursors"',
            'numerator = "blasts"',
            "small.toml, measurement[0] (MRD).numerator: no population 'blasts' (known: cd19, either, precursors)",
            id="unknown numerator",
        ),
        pytest.param(
            'version = "1.0.0"',
            'version = "1"',
            r"small.toml, template.version: String should match pattern '^\d+\.\d+\.\d+$', got '1'",
            id="not a version",
        ),
        pytest.param(
            'purpose = "B cells."',
            'purpose = "B cells."\ncolour = "red"',
            "small.toml, population[0] (cd19).colour: unknown key",
            id="unknown key of a row",
        ),
        pytest.param(
            'name = "either"',
            'name = "cd19"',
            "small.toml, population: cd19 is given twice",
            id="a name twice",
        ),
    ],
)
def test_a_fault_is_told_with_its_place_and_what_to_do(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    assert message in faults(tmp_path, SMALL.replace(old, new, 1))


def test_populations_that_need_one_another_in_a_circle_are_named(tmp_path: Path) -> None:
    text = SMALL.replace('method = "valley"', 'method = "interval"').replace(
        'params = { keep = "above", search = [0.3, 0.6] }', 'params = { low = "precursors.cut" }'
    )
    assert faults(tmp_path, text) == [
        "small.toml, population: populations need one another in a circle: cd19 → precursors → cd19"
    ]


def test_all_faults_of_a_document_are_told_at_once(tmp_path: Path) -> None:
    text = SMALL.replace('method = "valley"', 'method = "vally"').replace('channels = ["CD10"]', 'channels = ["CD1O"]')
    assert len(faults(tmp_path, text)) == 2


def test_what_is_not_toml_says_where_it_stops(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text("[template\n", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"^small\.toml: not valid TOML: .*line 1"):
        load_template(path)


def test_an_unknown_template_names_the_nearest() -> None:
    with pytest.raises(TemplateError) as caught:
        find_template("ball-mrd-10")
    assert str(caught.value) == "no template 'ball-mrd-10' (did you mean 'ball-mrd-10c'?)"
    with pytest.raises(TemplateError, match=r"^nowhere\.toml: no such template file$"):
        find_template("nowhere.toml")


def test_a_lab_folder_overrides_a_shipped_template_and_adds_its_own(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    (tmp_path / "tbnk.toml").write_text(SMALL.replace('id = "small"', 'id = "tbnk"'), encoding="utf-8")
    assert find_template("small", tmp_path).template.title == "A small tube"
    assert find_template("tbnk", tmp_path).template.title == "A small tube"
    assert find_template("ball-mrd-10c", tmp_path).template.id == "ball-mrd-10c"
    (tmp_path / "other.toml").write_text(SMALL, encoding="utf-8")
    with pytest.raises(TemplateError) as caught:
        find_template("other", tmp_path)
    assert str(caught.value) == "other.toml, template.id: the file is named other.toml but its id is 'small'"


# ----------------------------------------------------------------------------------------------- whether CD19 is needed


def needs_cd19(tmp_path: Path, rows: str, population: str = "x") -> bool:
    path = tmp_path / "small.toml"
    path.write_text(SMALL + rows, encoding="utf-8")
    return requires_marker(load_template(path), population, "CD19")


ROW = '\n[[population]]\nname = "{name}"\nparent = "{parent}"\n{gate}\npurpose = "."\n'


@pytest.mark.parametrize(
    ("parent", "gate", "expected"),
    [
        ("root", 'channels = ["CD10"]\nmethod = "interval"\nparams = { low = 0.4 }', False),
        ("root", 'channels = ["CD19"]\nmethod = "interval"\nparams = { low = 0.4 }', True),
        ("root", 'channels = ["CD19"]\nmethod = "interval"\nparams = { high = 0.4 }', False),
        ("root", 'channels = ["CD19", "CD10"]\nmethod = "rectangle"\nparams = { low = { CD10 = 0.4 } }', False),
        ("root", 'channels = ["CD19", "CD10"]\nmethod = "rectangle"\nparams = { low = { CD19 = 0.4 } }', True),
        ("root", 'channels = ["CD19"]\nmethod = "quantile"\nparams = { keep = "below", quantile = 0.5 }', False),
        ("root", 'channels = ["CD10", "CD19"]\nmethod = "time_stable"', False),
        ("cd19", 'channels = ["CD10"]\nmethod = "interval"\nparams = { low = 0.4 }', True),
        ("root", 'method = "boolean"\nparams = { operator = "or", populations = ["cd19", "precursors"] }', True),
        ("root", 'method = "boolean"\nparams = { operator = "and", populations = ["!cd19", "!precursors"] }', False),
        (
            "root",
            (
                'channels = ["CD10"]\nmethod = "interval"\nparams = { low = 0.4 }\n'
                '[[population.otherwise]]\nchannels = ["CD19"]\nmethod = "interval"\nparams = { low = 0.4 }\n#'
            ),
            True,
        ),
    ],
)
def test_a_marker_is_required_where_a_way_gates_positively_on_it(
    tmp_path: Path, parent: str, gate: str, *, expected: bool
) -> None:
    row = ROW.format(name="x", parent=parent, gate="")
    row = row.replace("\n\npurpose", f'\npurpose = "."\n{gate}\n#purpose')
    assert needs_cd19(tmp_path, row) is expected


def test_a_union_needs_a_marker_only_where_all_its_parts_do(tmp_path: Path) -> None:
    free = ROW.format(
        name="cd10", parent="root", gate='channels = ["CD10"]\nmethod = "interval"\nparams = { low = 0.4 }'
    )
    union = ROW.format(
        name="x", parent="root", gate='method = "boolean"\nparams = { operator = "or", populations = ["cd19", "cd10"] }'
    )
    both = union.replace('"or"', '"and"')
    assert not needs_cd19(tmp_path, free + union)
    assert needs_cd19(tmp_path, free + both)


# ---------------------------------------------------------------------------------------------------- shipped templates

MRD = ("singlets", "viable", "cd19", "b_lineage", "mature_b", "hematogones", "plasma_cells", "blasts")
T_CELL = {
    "tbnk": ("lymphocytes", "cd3", "cd4", "cd8", "b_cells", "nk", "monocytes", "beads"),
    "cart-persistence": ("lymphocytes", "cd3", "cd4", "cd8", "car", "b_cells", "nk", "monocytes", "beads"),
}
SHIPPED = (
    "aieop-bfm-syto",
    "ball-mrd-10c",
    "ball-mrd-post-cd19",
    "cart-persistence",
    "euroflow-bcp-mrd-1",
    "euroflow-bcp-mrd-2",
    "tbnk",
)
LEUKEMIA = tuple(name for name in SHIPPED if name not in T_CELL)


def test_the_shipped_templates_are_these() -> None:
    assert set(SHIPPED) <= set(template_paths())
    assert all(path.parent == template_folder() for path in template_paths().values())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_loads_and_says_why_it_does_what_it_does(name: str) -> None:
    template = find_template(name)
    assert template.template.id == name
    assert template.template.purpose.strip()
    assert template.template.sources
    assert all(row.purpose.strip() for row in template.population)
    assert all(choice.because or choice.method for row in template.population for choice in row.otherwise)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_has_the_common_population_names(name: str) -> None:
    names = {row.name for row in find_template(name).population}
    assert set(T_CELL.get(name, MRD)) <= names


@pytest.mark.parametrize("name", LEUKEMIA)
def test_blasts_are_reached_without_cd19_in_every_leukemia_tube(name: str) -> None:
    template = find_template(name)
    assert not requires_marker(template, "blasts", "CD19")
    assert requires_marker(template, "cd19", "CD19")


@pytest.mark.parametrize("name", LEUKEMIA)
def test_the_mrd_of_a_leukemia_tube_is_blasts_of_viable_cells(name: str) -> None:
    template = find_template(name)
    one = [measurement for measurement in template.measurement if measurement.analyte == "MRD"]
    assert [(m.numerator, m.denominator) for m in one] == [("blasts", "viable")]
    markers = {spec.marker for spec in template.channel}
    for route in one[0].routes:
        assert set(route.markers) <= markers
        assert "CD19" not in route.markers
    # The tubes without CD22, CD24 and CD79a have only the wide gate, which proves nothing about CD19-negative disease.
    assert bool(one[0].routes) == bool(markers & {"CD22", "CD24", "CD79a"})


@pytest.mark.parametrize("name", LEUKEMIA)
def test_numerator_and_denominator_share_every_clean_up_gate(name: str) -> None:
    template = find_template(name)
    shared = set(template.path("viable").split("/"))
    above = template.path("blasts").strip("/").split("/")
    assert "viable" in above
    below = above[above.index("viable") + 1 :]
    assert all(template.row(one).kind != "clean_up" for one in below if one != ROOT)
    assert {row.name for row in template.population if row.kind == "clean_up"} <= shared
