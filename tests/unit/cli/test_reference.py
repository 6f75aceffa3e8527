"""`flowmrd reference` as a lab scientist meets it: files, folders, labels, messages, the same bytes again."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import polars as pl
import pytest

from flowmrd.cli import main
from flowmrd.errors import SettingsError
from flowmrd.gating.detection.storage import load_reference, to_bytes
from flowmrd.gating.template import find_template, load_template
from flowmrd.learning import Built, build_reference
from flowmrd.settings import Settings
from tests.conftest import SmallReference


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def flowmrd(*arguments: object) -> Done:
    """Run the command line in this process, which spares its imports."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["flowmrd", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    assert isinstance(code, int)
    return Done(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def test_folders_and_a_list_after_diagnoses_are_taken_as_files(small_reference: SmallReference) -> None:
    # The fixture gave a folder of normals, and a folder after --diagnoses with another option behind it.
    text = small_reference.printed
    assert all(f"normal-{i} read" in text for i in range(8))
    assert all(f"diagnosis-{i} read" in text for i in range(8))
    assert "8 normals, 8 diagnoses" in text
    assert "note: blasts of the diagnoses are labelled 1" in text
    assert "left out" not in text


def test_show_says_what_a_reference_rests_on(small_reference: SmallReference) -> None:
    done = flowmrd("reference", "show", small_reference.file)
    assert done.returncode == 0
    one = load_reference(small_reference.file)
    lines = done.stdout.splitlines()
    assert lines[0] == f"small: reference for small-tube {one.template_version}, SHA-256 {one.digest}"
    assert "  made from simulated marrows: 8 normals, 8 diagnoses" in lines
    assert "  a sample may lack: CD58" in lines
    assert any(line.startswith("  held-out trials, normals called: ") for line in lines)
    assert any(line.startswith("  control CD45 of t_like: 0.") for line in lines)
    assert done.stdout in small_reference.printed


def test_show_of_what_is_no_reference_is_a_message_that_names_the_file(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.reference"
    wrong.write_text("cells")
    done = flowmrd("reference", "show", wrong)
    assert done.returncode == 2
    assert "wrong.reference: not a reference of format 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_given_as_normal_and_as_diagnosis_is_refused(small_reference: SmallReference, tmp_path: Path) -> None:
    file = small_reference.normals / "normal-0.fcs"
    done = flowmrd(
        "reference", "build", small_reference.normals, "--diagnoses", file, "-t", "ball-mrd-10c", "-o", tmp_path / "r"
    )
    assert done.returncode == 2
    assert "1 files are given as normal and as diagnosis, e.g. normal-0.fcs" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_copy_of_a_normal_under_another_name_is_no_diagnosis(small_reference: SmallReference, tmp_path: Path) -> None:
    normal, copy = small_reference.normals / "normal-0.fcs", tmp_path / "other.fcs"
    shutil.copy(normal, copy)
    template = load_template(small_reference.template)
    with pytest.raises(SettingsError, match=r"other\.fcs is given as normal and as diagnosis \(normal-0\)"):
        build_reference([normal], [copy], template, Settings(), name="x")


def test_a_template_without_a_search_has_no_use_for_a_reference(
    small_reference: SmallReference, tmp_path: Path
) -> None:
    done = flowmrd("reference", "build", small_reference.normals, "-t", "tbnk", "-o", tmp_path / "r")
    assert done.returncode != 0
    assert "the template tbnk has no population with method 'seed_and_grow'" in done.stderr


def test_where_no_normal_can_be_used_the_reasons_are_given(tmp_path: Path) -> None:
    (tmp_path / "broken.fcs").write_bytes(b"FCS3.1 and nothing else")
    template = find_template("ball-mrd-10c")
    with pytest.raises(SettingsError, match=r"no normal could be used: broken\.fcs: "):
        build_reference([tmp_path / "broken.fcs"], [], template, Settings(), name="x")


# ------------------------------------------------------------------------------------------------- few and odd inputs


@pytest.fixture(scope="module")
def odd(small_reference: SmallReference, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Return two normals, one of them twice, and diagnoses whose labels say 1 for something else, or nothing at all."""
    folder = tmp_path_factory.mktemp("odd")
    normals = [small_reference.normals / f"normal-{i}.fcs" for i in range(2)]
    twice = folder / "again.fcs"
    shutil.copy(normals[1], twice)
    diagnoses = []
    for i in range(3):
        source = small_reference.diagnoses / f"diagnosis-{i}.fcs"
        path = folder / f"labelled-{i}.fcs"
        shutil.copy(source, path)
        blast = pl.read_parquet(source.with_suffix(".labels.parquet"))["blast"]
        words = pl.DataFrame({"cell": ["leukemic" if one else "other" for one in blast]})
        words.write_csv(path.with_suffix(".labels.csv"))
        diagnoses.append(path)
    lacking = folder / "unlabelled.fcs"
    shutil.copy(small_reference.diagnoses / "diagnosis-3.fcs", lacking)
    clear = folder / "clear.fcs"
    shutil.copy(small_reference.clear, clear)
    return [*normals, twice], [*diagnoses, lacking, clear, folder / "labelled-0.labels.csv"]


def build(inputs: tuple[list[Path], list[Path]], template: Path, **rest: object) -> Built:
    settings = Settings(seed=3)
    # Few trials: what is tested here is what goes in.
    return build_reference(
        inputs[0],
        inputs[1],
        load_template(template),
        settings,
        name="odd",
        positives=6,
        **rest,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def built(odd: tuple[list[Path], list[Path]], small_reference: SmallReference) -> Built:
    return build(odd, small_reference.template, positive=("leukemic",))


def test_words_may_name_the_blasts_and_files_without_labels_use_the_static_rule(built: Built) -> None:
    assert "blasts of the diagnoses are labelled leukemic" in built.remarks
    assert (built.reference.normals, built.reference.diagnoses) == (2, 4)


def test_a_normal_given_twice_counts_once(built: Built) -> None:
    assert "again.fcs is the same file as normal-1 and counts once" in built.remarks
    assert len(built.reference.inputs) == 6


def test_what_cannot_be_learnt_from_is_left_out_with_the_reason(built: Built) -> None:
    reasons = dict(built.left_out)
    assert reasons["clear.fcs"] == "fewer than 20 blasts among its candidates"
    assert "labelled-0.labels.csv" in reasons
    assert set(reasons) == {"clear.fcs", "labelled-0.labels.csv"}


def test_the_label_need_not_be_named_where_the_static_rule_tells_it(
    built: Built, odd: tuple[list[Path], list[Path]], small_reference: SmallReference
) -> None:
    again = build(odd, small_reference.template)
    assert any("label 'leukemic' agrees best with the template's static rule" in remark for remark in again.remarks)
    # The same blasts, files and seed: the same file, byte for byte.
    assert to_bytes(again.reference) == to_bytes(built.reference)


def test_a_value_that_no_label_has_is_an_error(
    odd: tuple[list[Path], list[Path]], small_reference: SmallReference
) -> None:
    with pytest.raises(SettingsError, match="no event of any diagnosis is labelled blsat; found: "):
        build(odd, small_reference.template, positive=("blsat",))
