"""What a template says about its own trustworthiness is checked with the rest of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmrd.gating.evidence import limits_of
from flowmrd.gating.template import find_template, load_template, template_paths


def faults(addition: str, folder: Path) -> list[str]:
    path = folder / "ball-mrd-10c.toml"
    path.write_text(template_paths()["ball-mrd-10c"].read_text(encoding="utf-8") + addition, encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_template(path)
    return [str(error) for error in caught.value.exceptions]


def test_a_control_that_names_what_the_tube_lacks_is_told(tmp_path: Path) -> None:
    told = faults(
        """
[[internal_control]]
population = "t_cels"
against = "matur_b"
low = { CD99 = 0.3 }
high = { CD45 = "cd19" }
needs = { nobody = 5 }
above = { CD38 = "CD93" }
beside = ["CD98"]
purpose = "x"
[[internal_control]]
population = "t_like"
purpose = "no limit at all"
[[antigen]]
marker = "CD91"
population = "blasts"
negative = "t_lik"
""",
        tmp_path,
    )
    text = "\n".join(told)
    for said in (
        "no population 't_cels'",
        "no population 'matur_b'",
        "no channel for marker 'CD99'",
        "expected a number or population.value; got 'cd19'",
        "no population 'nobody'",
        "expected a limit in low, high or above; got none",
        "no channel for marker 'CD93'",
        "no channel for marker 'CD98'",
        "no channel for marker 'CD91'",
        "no population 't_lik'",
    ):
        assert said in text, said
    assert "internal_control" in text
    assert "antigen" in text


def test_borrowed_limits_are_known_only_where_the_gate_found_them() -> None:
    found = {"cd19": {"cut": 0.4}}
    assert limits_of({"CD19": "cd19.cut", "CD10": 0.5}, found) == {"CD19": 0.4, "CD10": 0.5}
    assert limits_of({"CD19": "cd22.cut"}, found) is None


@pytest.mark.parametrize("tube", ["aieop-bfm-syto", "ball-mrd-10c", "ball-mrd-post-cd19"])
def test_shipped_mrd_templates_follow_the_targets_and_hold_controls(tube: str) -> None:
    template = find_template(tube)
    targets = {one.therapy_target for one in template.measurement if one.therapy_target}
    assert targets <= {one.marker for one in template.antigen}
    assert template.quality.internal
    assert template.quality.negatives in template.quality.internal
    assert template.quality.phenotypes
    assert any(one.against for one in template.internal_control), "limits that hold on every instrument"
    # Cells that are found without a marker vouch for it, or an exchange hides itself.
    assert template.quality.lacking
    assert any(one.above for one in template.internal_control)
