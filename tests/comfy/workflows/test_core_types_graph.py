"""Core's own types over wires of a real ComfyUI: what its nodes give goes into ours, and back, and is let through."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.comfy

FRAMES, WIDTH, HEIGHT = 9, 64, 32
GUIDE = {
    **{"phrases": "", "mode": "separate", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    **{"blocks": "all", "rows": "both", "hard": True},
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def path_masks(**inputs):
    return node("MGV_PathMasks", paths="", width=WIDTH, height=HEIGHT, **inputs)


def graph():
    chosen = {"labels": "", "ids": "", "keep": "all", "count": 1, "minimum_score": 0.0, "minimum_area": 0.0}
    line = {"start_x": 0.25, "start_y": 0.5, "end_x": 0.75, "end_y": 0.5, "mid_x": 0.5, "mid_y": 0.5}
    way = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES, "num_tracks": 1, "track_spread": 0.0}
    curve = {"points": [[0.0, 1.0], [1.0, 0.0]], "interpolation": "linear"}
    return {
        "points": node("GenerateTracks", **line, **way, bezier=False, interpolation="linear"),
        "drawn": path_masks(points=["points", 0], frames=["points", 1], point_size=8.0),
        "core": node("MGV_TracksToCore", tracks=["drawn", 0], points_per_object=1),
        "core's masks": node("SAM3_TrackToMask", track_data=["core", 0], object_indices=""),
        "our masks": node("MGV_SelectObjects", tracks=["core", 0], **chosen, minimum_frames=0, invert=False),
        "again": path_masks(points=["core", 1], frames=["core", 2], point_size=8.0),
        "boxes": path_masks(boxes=["core", 3], frames=["core", 2]),
        "curve": node("CurveEditor", curve=curve),
        "guide": node("MGV_MaskToAttentionBias", tracks=["core", 0], strength_curve=["curve", 0], **GUIDE),
        "report": node("PreviewAny", source=["guide", 1]),
        **{
            f"{name} {step}": node(kind, **{place: source})
            for name, output in (("drawn", 1), ("core's masks", 0), ("our masks", 1), ("again", 1), ("boxes", 1))
            for step, kind, place, source in (
                ("picture", "MaskToImage", "mask", [name, output]),
                ("shown", "PreviewImage", "images", [f"{name} picture", 0]),
            )
        },
    }


def test_there_and_back(server):
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    run = server.run(graph())
    assert run.succeeded
    masks = {
        name: torch.stack([to_tensor(Image.open(server.path_of(entry)))[0] for entry in run.outputs[name]["images"]])
        for name in run.outputs
        if name.endswith(" shown")
    }
    drawn = masks.pop("drawn shown")
    assert drawn.shape == (FRAMES, HEIGHT, WIDTH) and len(masks) == 4
    for frame in range(FRAMES):
        middle = drawn[frame].nonzero().double().mean(0) + 0.5
        assert middle.tolist() == [16.0, 16.0 + 4.0 * frame]
    for name, found in masks.items():
        assert torch.equal(found, drawn), name
    (report,) = run.outputs["report"]["text"]
    assert "region 1: in 9 of 9 frames" in report and "1.00 at 0, 0.75 at 0.25" in report
