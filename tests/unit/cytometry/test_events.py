"""From channels to markers: alias resolution; from raw to scaled values, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.cytometry.events import DataState, EventSource, MarkerSpec, Panel, Role, resolve_panel, scale_of
from flowmrd.cytometry.transforms import Linear, Logicle
from flowmrd.errors import PanelMismatchError
from flowmrd.fcs import Channel, ChannelKind, FcsFile, Spillover, open_fcs, read_fcs, write_fcs

LOGICLE: dict[str, float | str] = {"kind": "logicle", "T": "range", "W": 1.0, "M": 4.5, "A": 0.0}
LINEAR: dict[str, float | str] = {"kind": "linear", "T": "range", "A": 0.0}


def fluor(marker: str, *aliases: str, required: bool = True) -> MarkerSpec:
    return MarkerSpec(marker=marker, aliases=aliases, required=required, transform=LOGICLE)


def scatter(marker: str, *aliases: str, required: bool = True) -> MarkerSpec:
    return MarkerSpec(marker=marker, aliases=aliases, role=Role.SCATTER, required=required, transform=LINEAR)


def channels(*labels: tuple[str, str]) -> tuple[Channel, ...]:
    return tuple(Channel(index=i, pnn=pnn, pns=pns) for i, (pnn, pns) in enumerate(labels))


def resolved(spec: MarkerSpec, *labels: tuple[str, str]) -> Panel:
    return resolve_panel([spec], channels(*labels), tube="tube")


# ------------------------------------------------------------------------------------------------------------- aliases

CD19 = fluor("CD19")
SYTO = fluor("SYTO", "Syto 41", "SYTO41", "SY41", "Syto 16", "SYTO16")
FSC = scatter("FSC-A", "FS-A", "FS INT", "FS INT LIN")
DUMP = fluor("CD14+CD16+CD56", "CD14/16/56", required=False)
NK = fluor("CD16+CD56", "CD16+56", required=False)


@pytest.mark.parametrize(
    ("spec", "pnn", "pns"),
    [
        (CD19, "PE-Cy7-A", "CD19"),
        (CD19, "PE-Cy7-A", "CD19 PE-Cy7"),
        (CD19, "FL4 INT", "CD19-PC7"),
        (CD19, "FL4-A", "FL4 CD19"),
        (CD19, "FL4 INT LIN", "cd19 pc5.5"),
        (CD19, "CD19 PE-A", ""),
        (CD19, "BV421-A", "CD19 Brilliant Violet 421"),
        (CD19, "R718-A", "APC-R700 CD19"),
        (SYTO, "V450-A", "Syto 41"),
        (SYTO, "V450-A", "SYTO41"),
        (SYTO, "V450-A", "SY41"),
        (SYTO, "FL9 INT", "SYTO 16 FITC"),
        (FSC, "FSC-A", ""),
        (FSC, "FS INT", ""),
        (FSC, "FS INT LIN", "FS"),
        (FSC, "FS-A", "FS-A"),
        (NK, "PE-A", "CD16+56"),
        (NK, "PE-A", "CD16+CD56 PE"),
        (DUMP, "APC-R700-A", "CD14/16/56"),
        (fluor("CD66c+CD123", "CD123+CD66c"), "PE-A", "CD123+CD66c PE"),
    ],
)
def test_a_label_in_any_usual_spelling_finds_its_marker(spec: MarkerSpec, pnn: str, pns: str) -> None:
    panel = resolved(spec, ("SSC-H", ""), ("FL99-A", "HLA-DR"), (pnn, pns))
    assert panel.channels[spec.marker].index == 2
    assert panel.findings == ()


@pytest.mark.parametrize(("marker", "label"), [("CD3", "CD38"), ("CD3", "CD38 APC"), ("CD1", "CD19"), ("CD5", "CD58")])
def test_a_marker_is_not_found_in_a_longer_number(marker: str, label: str) -> None:
    with pytest.raises(PanelMismatchError, match=f"no channel for {marker}"):
        resolved(fluor(marker), ("APC-A", label))


def test_cd3_and_cd38_side_by_side_go_to_their_own_channels() -> None:
    panel = resolve_panel(
        [fluor("CD3"), fluor("CD38")], channels(("APC-A", "CD38 APC"), ("FITC-A", "CD3 FITC")), tube="tube"
    )
    assert {marker: channel.pnn for marker, channel in panel.channels.items()} == {"CD3": "FITC-A", "CD38": "APC-A"}


def test_the_stain_counts_before_a_detector_name_that_reads_like_the_marker() -> None:
    panel = resolved(CD19, ("CD19-A", "HLA-DR"), ("PE-A", "CD19"))
    assert panel.channels["CD19"].pnn == "PE-A"


def test_the_height_of_a_scatter_channel_is_not_its_area() -> None:
    panel = resolve_panel(
        [FSC, scatter("FSC-H", required=False)], channels(("FSC-H", ""), ("FSC-A", ""), ("FSC-W", "")), tube="tube"
    )
    assert {marker: channel.pnn for marker, channel in panel.channels.items()} == {"FSC-A": "FSC-A", "FSC-H": "FSC-H"}


def test_two_channels_for_one_marker_stop_with_both_named() -> None:
    with pytest.raises(PanelMismatchError) as caught:
        resolved(CD19, ("PE-A", "CD19"), ("APC-A", "CD19"))
    assert str(caught.value) == (
        "the file does not fit the tube tube: 2 channels for CD19: PE-A (CD19), APC-A (CD19). The file has PE-A "
        "(CD19), APC-A (CD19). Add an alias to the template or choose the tube that was stained."
    )


def test_all_missing_and_doubtful_markers_stand_in_one_message() -> None:
    with pytest.raises(PanelMismatchError) as caught:
        resolve_panel(
            [CD19, fluor("CD10"), FSC],
            channels(("FITC-A", "CD20"), ("PE-A", "CD10 PE"), ("APC-A", "CD10 APC")),
            tube="my-tube",
        )
    assert str(caught.value) == (
        "the file does not fit the tube my-tube: no channel for CD19; 2 channels for CD10: PE-A (CD10 PE), APC-A (CD10 "
        "APC); no channel for FSC-A. The file has FITC-A (CD20), PE-A (CD10 PE), APC-A (CD10 APC). Add an alias to the "
        "template or choose the tube that was stained."
    )


def test_an_optional_marker_that_is_absent_is_a_finding_not_a_fault() -> None:
    panel = resolve_panel([CD19, fluor("CD99", required=False)], channels(("PE-A", "CD19")), tube="tube")
    assert panel.missing == ("CD99",)
    assert [(f.level, f.code, f.message) for f in panel.findings] == [
        ("info", "MARKERS_ABSENT", "Optional markers of the tube that this file lacks: CD99.")
    ]


def test_one_antibody_of_a_mixture_is_taken_and_said_to_be_shared() -> None:
    panel = resolved(fluor("CD123"), ("PE-A", "CD66c+CD123"))
    assert panel.channels["CD123"].pnn == "PE-A"
    assert [(f.code, f.where) for f in panel.findings] == [("CHANNEL_SHARED", "PE-A")]
    assert "CD123 is read from PE-A (CD66c+CD123)" in panel.findings[0].message


def test_a_channel_that_names_a_mixture_in_full_is_not_lent_to_its_parts() -> None:
    panel = resolve_panel(
        [DUMP, fluor("CD14", required=False), NK],
        channels(("APC-R700-A", "CD14+CD16+CD56"), ("PE-A", "CD4")),
        tube="tube",
    )
    assert set(panel.channels) == {"CD14+CD16+CD56"}
    assert set(panel.missing) == {"CD14", "CD16+CD56"}


# -------------------------------------------------------------------------------------------------------------- scales


def test_the_top_of_a_scale_follows_the_channel() -> None:
    channel = Channel(index=0, pnn="PE-A", pns="CD19", range=1048576.0)
    scale = scale_of(CD19, channel, state=DataState.RAW, scaled_range=None)
    assert scale == Logicle(T=1048576.0, W=1.0, M=4.5, A=0.0)


def test_values_that_are_scaled_already_are_only_stretched_to_the_unit_range() -> None:
    channel = Channel(index=0, pnn="PE-A", pns="CD19", range=262144.0)
    scale = scale_of(CD19, channel, state=DataState.SCALED, scaled_range=(-0.5, 4.5))
    assert scale == Linear(T=4.5, A=0.5)
    np.testing.assert_allclose(scale.forward(np.array([-0.5, 2.0, 4.5])), [0.0, 0.5, 1.0])


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.fixture(scope="module")
def stained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    columns = rng.lognormal(6.0, 1.5, (4, 10_000)).astype(np.float32)
    path = tmp_path_factory.mktemp("events") / "stained.fcs"
    names = channels(("FSC-A", ""), ("FITC-A", "CD20"), ("PE-A", "CD19"), ("APC-A", "CD10"))
    names = (Channel(index=0, pnn="FSC-A", kind=ChannelKind.SCATTER), *names[1:])
    matrix = np.array([[1.0, 0.2, 0.0], [0.05, 1.0, 0.1], [0.0, 0.03, 1.0]])
    spillover = Spillover(channels=("FITC-A", "PE-A", "APC-A"), matrix=matrix, source="$SPILLOVER")
    write_fcs(path, list(columns), names, spillover=spillover)
    return path


SPECS = [FSC, fluor("CD20"), CD19, fluor("CD10")]


def source_of(fcs: FcsFile, *, state: DataState = DataState.RAW, compensated: bool = True) -> EventSource:
    panel = resolve_panel(SPECS, fcs.channels, tube="tube")
    return EventSource(fcs, panel, SPECS, spillover=fcs.spillover if compensated else None, state=state)


def column(source: EventSource, marker: str, *, block_events: int, scaled: bool) -> NDArray[np.float64]:
    parts = []
    for _, block in source.blocks([marker], block_events=block_events):
        parts.append((block.scaled(marker) if scaled else block.linear(marker)).copy())
    return np.concatenate(parts)


@pytest.mark.parametrize("block_events", [8, 1000, 4096, 65536])
def test_streamed_and_in_memory_values_are_identical_for_any_block_size(stained: Path, block_events: int) -> None:
    streamed, held = source_of(open_fcs(stained)), source_of(read_fcs(stained))
    for marker in ("FSC-A", "CD20", "CD19", "CD10"):
        one = column(streamed, marker, block_events=block_events, scaled=True)
        np.testing.assert_array_equal(one, column(held, marker, block_events=10_000, scaled=True))


def test_compensation_is_the_inverse_of_the_matrix_and_leaves_scatter_alone(stained: Path) -> None:
    fcs = read_fcs(stained)
    assert fcs.spillover is not None
    raw = np.concatenate([values.copy() for _, values in fcs.blocks()], axis=1)
    expected = raw[1:].T @ np.linalg.inv(fcs.spillover.matrix)
    source = source_of(fcs)
    for i, marker in enumerate(("CD20", "CD19", "CD10")):
        np.testing.assert_allclose(column(source, marker, block_events=999, scaled=False), expected[:, i], rtol=1e-9)
    np.testing.assert_array_equal(column(source, "FSC-A", block_events=999, scaled=False), raw[0])


@pytest.mark.parametrize("state", [DataState.COMPENSATED, DataState.SCALED])
def test_compensated_and_scaled_values_are_not_compensated_again(stained: Path, state: DataState) -> None:
    fcs = read_fcs(stained)
    source = source_of(fcs, state=state)
    assert source.spillover is None
    raw = np.concatenate([values.copy() for _, values in fcs.blocks([2])], axis=1)[0]
    np.testing.assert_array_equal(column(source, "CD19", block_events=4096, scaled=False), raw)


def test_values_of_some_rows_are_those_of_the_whole_block(stained: Path) -> None:
    rows = np.array([3, 17, 18, 900], np.intp)
    for _, block in source_of(open_fcs(stained)).blocks(["CD19", "CD10"], block_events=1000):
        some = block.scaled("CD19", rows).copy()
        np.testing.assert_array_equal(some, block.scaled("CD19")[rows])
        np.testing.assert_array_equal(block.linear("CD10", rows), block.linear("CD10")[rows])


def test_asking_for_no_marker_still_walks_over_all_events(stained: Path) -> None:
    sizes = [block.size for _, block in source_of(open_fcs(stained)).blocks([], block_events=4096)]
    assert sizes == [4096, 4096, 1808]
