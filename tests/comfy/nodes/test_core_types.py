"""What core's own nodes give is taken by ours, and what ours give by core's: run with core's own code."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

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


@pytest.mark.parametrize("size", [(48, 80), (37, 51), (130, 66)])
def test_objects_are_where_core_says(size):
    from mask_guided_video.nodes.object_masks import SplitTracks

    track_data = tracked(*size)
    masks, labels, ids, boxes = SplitTracks.execute(track_data).args
    assert (labels, ids, len(boxes)) == (["", ""], [1, 2], 3)
    for number, mask in enumerate(masks):
        wanted = masks_of_core(track_data, str(number)) >= 0.5
        assert wanted.any() and torch.equal(mask > 0.5, wanted)
    assert [[round(box["score"], 3) for box in frame] for frame in boxes] == [[0.9], [0.9, 0.6], [0.9, 0.6]]


def test_one_wire_to_a_guide():
    from mask_guided_video.nodes.guidance import MaskToAttentionBias

    track_data = tracked()
    guide, report = MaskToAttentionBias.execute(phrases="red ball, cat", tracks=track_data, **GUIDE_SETTINGS).args
    assert guide.phrases == ("red ball", "cat") and guide.masks.shape == (2, 3, 48, 80)
    assert torch.equal(guide.masks[1] > 0.5, masks_of_core(track_data, "1") >= 0.5)
    assert "red ball: in 3 of 3 frames" in report and "cat: in 2 of 3 frames" in report
    # One phrase for all that the tracker found for it.
    guide, _ = MaskToAttentionBias.execute(phrases="ball", tracks=track_data, **GUIDE_SETTINGS).args
    assert guide.masks.shape == (1, 3, 48, 80)
    guide, report = MaskToAttentionBias.execute(phrases="", tracks=nothing_found(), **GUIDE_SETTINGS).args
    assert not guide.is_active and report == "no object in any frame: the video runs unguided."


def test_every_input_for_tracks_takes_both_forms():
    from mask_guided_video import NODE_CLASS_MAPPINGS

    taking = {
        (name, entry.id): entry.get_io_type().split(",")
        for name, node in NODE_CLASS_MAPPINGS.items()
        for entry in node.define_schema().inputs
        if "MGV_TRACKS" in entry.get_io_type().split(",")
    }
    assert len(taking) >= 14
    assert not [place for place, kinds in taking.items() if "SAM3_TRACK_DATA" not in kinds]


def test_nodes_work_on_it_as_on_their_own():
    from mask_guided_video.nodes.box_converters import ToSEGS
    from mask_guided_video.nodes.first_frame import SharedNoise
    from mask_guided_video.nodes.mask_metrics import MaskMetrics
    from mask_guided_video.nodes.mask_sequences import MaskSequence
    from mask_guided_video.nodes.object_masks import MaskToTracks
    from mask_guided_video.nodes.objects import PreviewTracks, SelectObjects
    from mask_guided_video.nodes.refinement import RefineMasks
    from mask_guided_video.nodes.support.object_inputs import given_mask, given_objects

    track_data = tracked()
    own, film = given_objects(track_data), torch.rand(3, 48, 80, 3)

    def alike(node, pick, *values, **named):
        mine, cores = (node.execute(*values, tracks=tracks, **named).args[pick] for tracks in (own, track_data))
        assert torch.equal(*(one if isinstance(one, torch.Tensor) else one.masks.tensor() for one in (mine, cores)))

    alike(RefineMasks, 1, grow=2)
    chosen = {"labels": "", "ids": "2", "keep": "all", "count": 1, "minimum_score": 0.0, "minimum_area": 0.0}
    alike(SelectObjects, 1, **chosen, minimum_frames=0, invert=False)
    alike(PreviewTracks, 0, film, opacity=0.3, outline=True, labels=True, count=2)
    sequence = {"frames": 6, "timing": "hold", "start": 0, "dilate": 0, "feather": 0.0, "width": 0, "height": 0}
    alike(MaskSequence, 1, "", **sequence, placing="fit")
    alike(MaskToTracks, 0, torch.ones(3, 48, 80), "sky")
    settings = {"phrases": "", "prompt": "", "clip_model": "none", "box_threshold": 0.3}
    assert MaskMetrics.execute(film, tracks=track_data, found=own, **settings).args[0] == 1.0
    assert MaskMetrics.execute(film, tracks=own, found=track_data, **settings).args[0] == 1.0
    assert len(ToSEGS.execute(1, 3.0, tracks=track_data).args[0][1]) == 2
    latent = {"samples": torch.zeros(1, 4, 3, 6, 10)}
    shared = [SharedNoise.execute(_Noise(), "freetraj", 0.2, 0.25, 0.1, tracks=each) for each in (own, track_data)]
    assert torch.equal(*(noise.args[0].generate_noise(latent) for noise in shared))
    assert torch.equal(given_mask(track_data) > 0.5, masks_of_core(track_data) >= 0.5)
    assert given_mask(None) is None


class _Noise:
    seed = 0

    def generate_noise(self, latent):
        return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(0))


def test_what_is_no_track_data_is_named():
    from mask_guided_video.nodes.object_masks import SplitTracks
    from mask_guided_video.nodes.objects import PreviewTracks

    with pytest.raises(ValueError, match="needs packed_masks and orig_size"):
        SplitTracks.execute({"track_path": torch.zeros(1, 1, 2)})
    with pytest.raises(ValueError, match="the tracks have 3 frames and the video 5"):
        PreviewTracks.execute(torch.rand(5, 48, 80, 3), tracked(), 0.3, True, True, 2)
