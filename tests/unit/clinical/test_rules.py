"""Criteria documents: what the shipped ones say, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmrd.clinical.rules import FOLDER, Response, criteria_paths, load_criteria
from flowmrd.documents.manifest import load_visits
from flowmrd.errors import CriteriaError

DEFAULT = (FOLDER / "mbcart19.toml").read_text(encoding="utf-8")


def faults(folder: Path, text: str) -> list[str]:
    path = folder / "trial.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_criteria(path)
    assert all(isinstance(fault, CriteriaError) for fault in caught.value.exceptions)
    return [str(fault) for fault in caught.value.exceptions]


def changed(old: str, new: str) -> str:
    assert old in DEFAULT
    return DEFAULT.replace(old, new, 1)


def test_the_default_criteria_are_those_of_the_trial() -> None:
    criteria = load_criteria()
    assert (criteria.id, criteria.version) == ("mbcart19", "1.0.0")
    assert len(criteria.digest) == 64
    keys = criteria.keys
    assert (keys.count_boundary, keys.cri_rule, keys.allosct, keys.orr_denominator) == (
        "strict",
        "either",
        "censor",
        "infused",
    )
    assert keys.responder_classes == keys.mrdneg_cr_classes == [Response.CR, Response.CRH]
    assert (keys.mrd_rules, keys.mrd_target_fraction, keys.high_burden_logic) == ("iccs_20_50", 1e-4, "or")


def test_the_windows_are_those_of_the_manifest() -> None:
    manifest = [(one.name, one.first_day, one.last_day) for one in load_visits().windows]
    assert [(one.name, one.first_day, one.last_day) for one in load_criteria().visits] == manifest
    assert [one.target_day for one in load_criteria().visits] == [28, 91, 183, 365]


@pytest.mark.parametrize("name", list(criteria_paths()))
def test_each_shipped_document_is_valid_named_like_its_file_and_names_its_sources(name: str) -> None:
    criteria = load_criteria(name)
    assert criteria.id == name
    assert criteria.document.criteria.sources
    assert all(rule.sentence for rule in criteria.rules)
    assert criteria.rules[-1].response is Response.NE


def test_a_criteria_file_of_ones_own_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(changed('id = "mbcart19"', 'id = "mine"'), encoding="utf-8")
    assert load_criteria(path).id == load_criteria(str(path)).id == "mine"
    assert load_criteria(path).digest != load_criteria().digest


def test_unknown_criteria_are_told_what_there_is() -> None:
    with pytest.raises(CriteriaError) as caught:
        load_criteria("mbcart")
    assert str(caught.value) == (
        "expected one of eliana, eln2024, mbcart19, ponte-di-legno or a TOML file; got 'mbcart' (did you "
        "mean mbcart19?)"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'count_boundary = "strict"',
            'count_boundary = "lax"',
            "trial.toml, keys.count_boundary: Input should be 'strict' or 'inclusive'; got 'lax'",
        ),
        ('allosct = "censor"', "", "trial.toml, keys.allosct: expected this key; got nothing"),
        ('cri_rule = "either"', 'cri_rule = "either"\ncri_rulez = "x"', "trial.toml, keys.cri_rulez: unknown key"),
        (
            "target_day = 28\n",
            "target_day = 40\n",
            "trial.toml, visit[0]: expected target_day from 24 to 35; got 40",
        ),
        (
            "first_day = 77",
            "first_day = 30",
            (
                "trial.toml, visit[1].first_day: expected a window after that of D28, to day 35; got 30 "
                "(windows are in order and do not overlap)"
            ),
        ),
        (
            '{ field = "blast_percent", operator = "below", value = 5 }',
            '{ field = "blast_procent", operator = "below", value = 5 }',
            "trial.toml, fact[0].case[1].all[0].field: unknown field 'blast_procent' (did you mean blast_percent?)",
        ),
        (
            '{ field = "blast_percent", operator = "below", value = 5 }',
            '{ field = "blast_percent", operator = "is", value = 5 }',
            "trial.toml, fact[0].case[1].all[0].operator: `is` does not fit blast_percent, which is a number",
        ),
        (
            '{ field = "blast_percent", operator = "below", value = 5 }',
            '{ field = "blast_percent", operator = "below", value = "5" }',
            "trial.toml, fact[0].case[1].all[0].value: `below` takes a number; got '5'",
        ),
        (
            '{ field = "cns", operator = "is", value = "CNS3" }',
            '{ field = "cns", operator = "is", value = "CNS4" }',
            "trial.toml, fact[3].case[0].any[1].value: expected one of 'CNS1', 'CNS2', 'CNS3'; got 'CNS4'",
        ),
        (
            'id = "S6-REL-BM"\n',
            'id = "S6-REL-COMB"\n',
            "trial.toml, rule[8].id: expected a name of its own; 'S6-REL-COMB' is used twice",
        ),
        (
            'flags = ["NO_MARROW"]',
            'flags = ["NO_MAROW"]',
            "trial.toml, rule[13].flags[0]: Input should be",
        ),
        ('response = "MLFS"', 'response = "PR"', "trial.toml, rule[20].response: Input should be"),
        (
            'when = { cri_rule = "and_or" }',
            'when = { cri_rule = "never" }',
            "trial.toml, rule[19].when.cri_rule: the key never has the value 'never'",
        ),
        (
            'operator = "at_least_times", other = "baseline_blast_percent", value = 1.25',
            'operator = "at_least_times", value = 1.25',
            "trial.toml, rule[5].all[2].other: `at_least_times` needs a field to compare with",
        ),
        (
            'sentence = "No rule above applies."\nresponse = "NE"',
            'sentence = "No rule above applies."\nresponse = "CR"',
            (
                "trial.toml, rule[21].response: expected NE in the last rule; got CR (what no rule foresees is not "
                "evaluable)"
            ),
        ),
        (
            'sentence = "No rule above applies."\nresponse = "NE"',
            'sentence = "None."\nresponse = "NE"\nall = [{ field = "anc", operator = "known" }]',
            "trial.toml, rule[21]: expected a last rule without clauses, so that one always fires; got 1",
        ),
        (
            'all = [{ field = "marrow", operator = "is", value = "MS_NE" }]',
            "",
            "trial.toml, rule[13]: expected at least one clause; a rule without clauses hides those after it",
        ),
        (
            'name = "marrow_grade"',
            'name = "grade"',
            "trial.toml, fact: expected a fact 'marrow_grade', which is a column of the output; got none",
        ),
        (
            'mrd_rules = "iccs_20_50"',
            'mrd_rules = "iccs_2050"',
            (
                "trial.toml, keys.mrd_rules: expected one of iccs_20_50, euroflow_10_40; got 'iccs_2050' (did you mean "
                "iccs_20_50?)"
            ),
        ),
    ],
)
def test_a_wrong_document_is_told_what_where_and_what_to_do(old: str, new: str, expected: str, tmp_path: Path) -> None:
    found = faults(tmp_path, changed(old, new))
    assert found[0].startswith(expected), found


def test_several_faults_of_a_document_are_told_together(tmp_path: Path) -> None:
    text = changed("target_day = 28\n", "target_day = 40\n").replace('value = "CNS3"', 'value = "CNS4"', 1)
    assert len(faults(tmp_path, text)) == 2


def test_a_fact_may_only_use_what_stands_above_it(tmp_path: Path) -> None:
    text = changed(
        '{ field = "blood_blast_percent", operator = "at_least", value = 1 }',
        '{ field = "disease", operator = "is", value = "Y" }',
    )
    assert faults(tmp_path, text)[0].startswith("trial.toml, fact[4].case[0].all[0].field: unknown field 'disease'")


def test_a_contrast_changes_keys_and_says_so() -> None:
    criteria = load_criteria().with_keys(cri_rule="and_or")
    assert dict(criteria.changed) == {"cri_rule": "and_or"}
    assert [rule.id for rule in criteria.rules if rule.when] == ["S8-CRI-BOTH-LOW"]
    assert load_criteria().keys.cri_rule == "either"
