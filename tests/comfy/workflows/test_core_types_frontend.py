"""Wires between core's nodes and ours as one draws them in ComfyUI's own frontend."""

from __future__ import annotations

from pathlib import Path

import pytest
from frontend import frontend, use_nodes_2

# All wires of ours are looked at by test_frontend.
pytestmark = [pytest.mark.comfy, pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent.parent.parent
CONNECT = """([source, output, target, name]) => {
  const nodes = [source, target].map(kind => window.LiteGraph.createNode(kind));
  nodes.forEach(node => window.app.graph.add(node));
  const place = entry => entry.findInputSlot(name), [from, to] = nodes;
  const link = from.connect(from.outputs.findIndex(entry => entry.type === output), to, place(to));
  const held = link ? to.inputs[place(to)].link !== null : false;
  nodes.forEach(node => window.app.graph.remove(node));
  return held;
}"""
WIRES = (
    ("SAM3_VideoTrack", "SAM3_TRACK_DATA", "MGV_MaskToAttentionBias", "tracks"),
    ("SAM3_VideoTrack", "SAM3_TRACK_DATA", "MGV_RefineMasks", "tracks"),
    ("SAM3_VideoTrack", "SAM3_TRACK_DATA", "MGV_Regenerate", "mask"),
    ("MGV_TrackMasks", "MGV_TRACKS", "MGV_DynamicMaskGuidance", "tracks"),
    ("MGV_TrackMasks", "MGV_TRACKS", "MGV_Regenerate", "mask"),
    ("SolidMask", "MASK", "MGV_Regenerate", "mask"),
    ("GenerateTracks", "TRACKS", "MGV_PathMasks", "points"),
    ("GenerateTracks", "TRACKS", "MGV_MaskSequence", "points"),
    ("SAM3_Detect", "BOUNDING_BOX", "MGV_TrackMasks", "boxes"),
    ("MGV_DetectObjects", "BOUNDING_BOX", "MGV_PathMasks", "boxes"),
    ("CurveEditor", "CURVE", "MGV_MaskToAttentionBias", "strength_curve"),
    ("CurveEditor", "CURVE", "MGV_DynamicMaskGuidance", "frame_curve"),
    ("OpticalFlowLoader", "OPTICAL_FLOW", "MGV_TrackMasks", "optical_flow"),
    ("OpticalFlowLoader", "OPTICAL_FLOW", "MGV_RefineMasks", "optical_flow"),
    ("MGV_TracksToCore", "SAM3_TRACK_DATA", "SAM3_TrackToMask", "track_data"),
    ("MGV_TracksToCore", "TRACKS", "WanMoveTrackToVideo", "tracks"),
    ("MGV_TracksToCore", "BOUNDING_BOX", "SAM3_Detect", "bboxes"),
)
# Points have no shape: they are no tracks.
REFUSED = (
    ("GenerateTracks", "TRACKS", "MGV_MaskToAttentionBias", "tracks"),
    ("SolidMask", "MASK", "MGV_RefineMasks", "tracks"),
    ("SAM3_VideoTrack", "SAM3_TRACK_DATA", "MGV_PathMasks", "points"),
)


@pytest.fixture(scope="module")
def page(server, chromium_path):
    with frontend(server.url, chromium_path) as opened:
        yield opened


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])
def test_wires_hold(page, nodes_2):
    use_nodes_2(page, nodes_2)
    missing = [wire for wire in WIRES if not page.evaluate(CONNECT, list(wire))]
    assert not missing
    wrong = [wire for wire in REFUSED if page.evaluate(CONNECT, list(wire))]
    assert not wrong
