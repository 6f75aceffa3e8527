"""The shipped templates on files of no, one and few events, and on simulated tubes whose truth is known.

The figures are loose: they guard against a broken gate. What a template achieves is measured on many files; see each
template's notes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource
from flowmrd.fcs import open_fcs, write_fcs
from flowmrd.gating.engine import GatingResult
from flowmrd.gating.gates import Whole
from flowmrd.gating.template import find_template
from flowmrd.simulation import ChannelSet, TargetStatus

Make = Callable[..., Path]
GateFile = Callable[..., tuple[EventSource, GatingResult]]

SIMULATED = (
    "aieop-bfm-syto",
    "ball-mrd-10c",
    "ball-mrd-post-cd19",
    "euroflow-bcp-mrd-1",
    "euroflow-bcp-mrd-2",
    "tbnk",
    "cart-persistence",
)
HEMATOGONES = ("hematogone_1", "hematogone_2", "hematogone_3")
MATURE_B = ("transitional_b", "naive_b", "memory_b", "atypical_b")


def first_events(path: Path, count: int, folder: Path) -> Path:
    """Write the first events of a file as a file of their own."""
    fcs = open_fcs(path)
    columns = [np.empty(0)] * len(fcs.channels)
    for _, values in fcs.blocks(block_events=max(count, 8)):
        columns = [column[:count].copy() for column in values]
        break
    channels = [replace(channel, gain=1.0) for channel in fcs.channels]
    target = folder / f"{path.stem}-{count}.fcs"
    write_fcs(target, [column.astype(np.float32) for column in columns], channels, spillover=fcs.spillover)
    return target


@pytest.mark.parametrize("count", [0, 1, 5, 60])
@pytest.mark.parametrize("name", SIMULATED)
def test_a_file_of_few_events_never_breaks_a_template(
    name: str, count: int, make_tube: Make, gate_file: GateFile, tmp_path: Path
) -> None:
    _, result = gate_file(first_events(make_tube(name), count, tmp_path), name)
    assert set(result.counts) == {row.name for row in result.template.population}
    assert all(0 <= events <= count for events in result.counts.values())


@pytest.mark.parametrize("name", SIMULATED)
def test_every_child_lies_inside_its_parent(name: str, make_tube: Make, gate_file: GateFile) -> None:
    _, result = gate_file(make_tube(name), name)
    for row in result.template.population:
        child, parent = result.memberships.mask(row.name), result.memberships.mask(row.parent)
        assert not (child & ~parent).any(), row.name
        assert result.counts[row.name] == child.sum()


# ---------------------------------------------------------------------------------------------------------------- truth


class Truth:
    """What each event of a simulated file is."""

    def __init__(self, path: Path) -> None:
        labels = pl.read_parquet(path.with_suffix(".labels.parquet"))
        self.population: NDArray[np.object_] = labels["population"].to_numpy()
        self.kind: NDArray[np.object_] = labels["kind"].to_numpy()
        self.cell = self.kind == "cell"
        self.blast = labels["blast"].to_numpy() & self.cell
        self.car = labels["car"].to_numpy() & self.cell

    def of(self, *names: str) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.isin(self.population, names) & self.cell
        return found


def recovery(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float((found & true).sum() / true.sum())


def purity(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float((found & true).sum() / found.sum())


MARROWS = ("ball-mrd-10c", "ball-mrd-post-cd19", "euroflow-bcp-mrd-1", "euroflow-bcp-mrd-2")


@pytest.mark.parametrize("scenario", ["normal", "regenerating", "aplasia", "hemodilute"])
@pytest.mark.parametrize("name", MARROWS)
def test_clean_up_keeps_the_live_single_cells_and_drops_the_rest(
    name: str, scenario: str, make_tube: Make, gate_file: GateFile
) -> None:
    path = make_tube(name, seed=3, scenario=scenario, blasts=0.0)
    _, result = gate_file(path, name)
    truth, kept = Truth(path), result.memberships.mask("time_stable")
    singlets, viable = result.memberships.mask("singlets"), result.memberships.mask("viable")
    assert recovery(singlets, truth.cell & kept) > 0.995
    assert recovery(viable, truth.cell & kept) > 0.99
    doublets = (truth.kind == "doublet") & kept
    assert recovery(singlets, doublets) < 0.3
    # Without a viability dye dead cells of full size cannot leave.
    dyed = "Viability" in {spec.marker for spec in result.template.channel}
    assert viable.sum() / (truth.cell & kept).sum() == pytest.approx(1.0, abs=0.03 if dyed else 0.07)


@pytest.mark.parametrize("name", MARROWS)
def test_normal_b_cells_go_to_their_stage_and_are_no_blasts(name: str, make_tube: Make, gate_file: GateFile) -> None:
    path = make_tube(name, seed=4, events=60_000, scenario="regenerating", blasts=0.0)
    _, result = gate_file(path, name)
    truth, kept = Truth(path), result.memberships.mask("time_stable")
    members = {one: result.memberships.mask(one) for one in ("hematogones", "mature_b", "plasma_cells", "blasts")}
    assert recovery(members["hematogones"], truth.of(*HEMATOGONES) & kept) > 0.85
    assert purity(members["hematogones"], truth.of(*HEMATOGONES, "early_pro_b")) > 0.85
    assert recovery(members["mature_b"], truth.of(*MATURE_B) & kept) > 0.9
    assert recovery(members["plasma_cells"], truth.of("plasma_cd19pos", "plasma_cd19neg") & kept) > 0.9
    dyed = "Viability" in {spec.marker for spec in result.template.channel}
    assert members["blasts"].sum() / result.counts["viable"] < (5e-4 if dyed else 2e-3)


MARKED = """
start = 0.12
spread = 0.02
[shifts]
CD58 = 0.6
CD38 = -0.9
CD10 = 0.4
"CD66c+CD123" = 1.4
"""


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Return an immunophenotype with four clear aberrancies."""
    from flowmrd.simulation import load_immunophenotype, load_profile

    path = tmp_path_factory.mktemp("phenotype") / "marked.toml"
    path.write_text(MARKED, encoding="utf-8")
    return load_immunophenotype(path, load_profile("ball-mrd-10c").profile)


@pytest.mark.parametrize("cd19", ["positive", "negative"])
@pytest.mark.parametrize("name", ["ball-mrd-10c", "ball-mrd-post-cd19", "euroflow-bcp-mrd-1"])
def test_blasts_with_clear_aberrancies_are_found_with_and_without_cd19(
    name: str, cd19: str, marked: object, make_tube: Make, gate_file: GateFile
) -> None:
    path = make_tube(name, seed=6, scenario="aplasia", phenotype=marked, cd19=TargetStatus(cd19))
    _, result = gate_file(path, name)
    truth, kept = Truth(path), result.memberships.mask("time_stable")
    blasts = result.memberships.mask("blasts")
    assert recovery(blasts, truth.blast & kept) > 0.9
    if cd19 == "negative":
        # Bright CD34 and CD10 widen the CD19 of negative cells, so some stand above 99 % of the T cells.
        assert recovery(result.memberships.mask("blasts_cd19_pos"), truth.blast & kept) < 0.5
    else:
        assert recovery(result.memberships.mask("blasts_cd19_pos"), truth.blast & kept) > 0.8


def test_a_tube_with_few_scatter_measures_and_no_viability_dye_runs_with_findings(
    make_tube: Make, gate_file: GateFile, tmp_path: Path
) -> None:
    path = make_tube("ball-mrd-10c", seed=7, channels=ChannelSet.COMPACT)
    fcs = open_fcs(path)
    columns = np.concatenate([values.copy() for _, values in fcs.blocks()], axis=1)
    kept = [i for i, channel in enumerate(fcs.channels) if channel.pns != "Viability" and channel.pnn != "FSC-H"]
    bare = tmp_path / "bare.fcs"
    write_fcs(bare, [columns[i].astype(np.float32) for i in kept], [replace(fcs.channels[i], index=0) for i in kept])
    _, result = gate_file(bare, "ball-mrd-10c")
    assert isinstance(result.placed["singlets"].gate, Whole)
    assert isinstance(result.placed["dye_low"].gate, Whole)
    codes = {(finding.code, finding.where) for finding in result.findings}
    assert {("GATE_SKIPPED", "singlets"), ("GATE_SKIPPED", "dye_low")} <= codes
    assert result.counts["viable"] > 0.8 * Truth(path).cell.sum()


def splits(result: GatingResult) -> bool:
    """Whether NK cells and monocytes of one channel were told apart; without a valley neither is reported."""
    placed = result.placed.get("dump_nk")
    return placed is None or placed.method != "nothing"


@pytest.mark.parametrize("scenario", ["normal", "aplasia", "lymphopenia"])
@pytest.mark.parametrize("name", ["tbnk", "cart-persistence"])
def test_lymphocyte_subsets_are_those_of_the_truth(
    name: str, scenario: str, make_tube: Make, gate_file: GateFile
) -> None:
    path = make_tube(name, seed=8, scenario=scenario)
    _, result = gate_file(path, name)
    truth, kept = Truth(path), result.memberships.mask("time_stable")
    t_cells = np.array([str(one).startswith(("cd4_", "cd8_", "dn_t", "dp_t", "nkt")) for one in truth.population])
    wanted = {"cd3": t_cells & truth.cell, "nk": truth.of("nk"), "monocytes": truth.of("monocyte")}
    if scenario == "normal":
        wanted["b_cells"] = truth.of("b_cell")
    for population, true in wanted.items():
        found = result.memberships.mask(population)
        if population in {"nk", "monocytes"} and not splits(result):
            assert not found.any(), population
            continue
        # One channel for CD14, CD16 and CD56: side scatter parts NK cells from monocytes, which are fifty to one here.
        shared = {"monocytes": 0.5, "nk": 0.85 if name == "cart-persistence" else 0.93}
        assert recovery(found, true & kept) > shared.get(population, 0.93), population
        assert purity(found, true) > 0.9, population
    beads = (truth.kind == "bead") & kept
    np.testing.assert_array_equal(result.memberships.mask("beads"), beads)
    if scenario != "normal":
        assert result.counts["b_cells"] < 0.005 * result.counts["lymphocytes"]


def test_car_t_cells_are_counted_among_t_cells_and_reagent_background_is_mostly_left_out(
    make_tube: Make, gate_file: GateFile
) -> None:
    path = make_tube("cart-persistence", seed=2, car=0.2)
    _, result = gate_file(path, "cart-persistence")
    truth = Truth(path)
    car = result.memberships.mask("car")
    assert recovery(car, truth.car & result.memberships.mask("cd3")) > 0.7
    assert (car & ~truth.car).sum() / result.counts["cd3"] < 0.005
    empty = make_tube("cart-persistence", seed=2, car=0.0)
    _, without = gate_file(empty, "cart-persistence")
    assert without.counts["car"] / without.counts["cd3"] < 0.005


def test_memory_subsets_split_the_car_t_cells_completely(make_tube: Make, gate_file: GateFile) -> None:
    _, result = gate_file(make_tube("cart-persistence", seed=2, car=0.2), "cart-persistence")
    subsets = ("car_naive", "car_central_memory", "car_effector_memory", "car_temra")
    assert sum(result.counts[one] for one in subsets) == result.counts["car"]
    assert result.counts["car_naive"] < 0.1 * result.counts["car"]


def test_every_gate_that_looks_for_a_reference_has_an_answer_when_there_is_none() -> None:
    # The SYTO tube's rulers and gates on optional markers are skipped with a finding instead.
    for name in sorted(set(SIMULATED) - {"aieop-bfm-syto"}):
        for row in find_template(name).population:
            if row.method in {"valley", "reference", "tail", "mixture_cut"} and row.kind != "clean_up":
                tail = row.choices[-1].method
                without = {"cd79a", "blasts_cd19_pos", "blasts_cd22_pos", "dump_nk", "dump_monocytes"}
                assert tail == "interval" or row.name in without, (name, row.name)
