"""Tracks in core's form and in ours, for tests of what goes over the wires between them."""

from __future__ import annotations

import torch

from mask_guided_video.perception.tracks import Tracks

GUIDE_SETTINGS = {
    **{"mode": "separate", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    **{"blocks": "all", "rows": "both", "hard": True},
}


def tracked(height=48, width=80, side=64):
    """Two discs in three frames as core's tracker packs them, the second not in the first frame."""
    from comfy.ldm.sam3.tracker import pack_masks

    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    logits = torch.full((3, 2, side, side), -1.0)
    for frame in range(3):
        logits[frame, 0][(x - 12 - 8 * frame) ** 2 + (y - 20) ** 2 < 90] = 1.0
        if frame:
            logits[frame, 1][(x - 44) ** 2 + (y - 44) ** 2 < 60] = 1.0
    return {"packed_masks": pack_masks(logits), "n_frames": 3, "scores": [0.9, 0.6], "orig_size": (height, width)}


def nothing_found():
    return {"packed_masks": None, "n_frames": 3, "scores": [], "orig_size": (48, 80)}


def masks_of_core(track_data, indices=""):
    from comfy_extras.nodes_sam3 import SAM3_TrackToMask

    return SAM3_TrackToMask.execute(track_data, indices).args[0]


def two_objects(height=36, width=52):
    """A rectangle that goes right in four frames, and one that is in the last two."""
    masks = torch.zeros(2, 4, height, width)
    for frame in range(4):
        masks[0, frame, 8:20, 4 + 6 * frame : 16 + 6 * frame] = 1.0
        if frame > 1:
            masks[1, frame, 24:34, 30:50] = 1.0
    return Tracks.from_masks(masks, ("red ball", "cat"))
