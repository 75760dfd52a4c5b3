"""What core's own nodes give is taken by ours, and what ours give by core's: run with core's own code."""

from __future__ import annotations

import pytest
import torch
from core_values import GUIDE_SETTINGS, masks_of_core, nothing_found, tracked, two_objects

from mask_guided_video.perception.tracks import Tracks

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


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


def to_core(tracks, points=1):
    from mask_guided_video.nodes.core_types import TracksToCore

    return TracksToCore.execute(tracks, points).args


class TestTracksToCore:
    @pytest.mark.parametrize("size", [(36, 52), (36, 48), (35, 51), (40, 50)])
    def test_core_makes_the_same_masks_of_them(self, size):
        tracks = two_objects(*size)
        track_data = to_core(tracks)[0]
        for number in range(2):
            found = masks_of_core(track_data, str(number))
            assert torch.equal(found, tracks.masks[number].float() / 255)
        assert torch.equal(masks_of_core(track_data), tracks.union())

    def test_core_colours_them(self):
        scail = pytest.importorskip("comfy_extras.nodes_scail", reason="this ComfyUI has no SCAIL-2")
        tracks = two_objects()
        pictures = scail._render_colored_masks(to_core(tracks)[0]).float()
        assert pictures.shape == (4, 36, 52, 3)
        assert torch.equal(pictures.amax(-1), tracks.union())
        # Two objects, two colours.
        first, second = pictures[3][tracks.masks[0, 3] > 0], pictures[3][tracks.masks[1, 3] > 0]
        assert (first == first[0]).all() and (second == second[0]).all() and not torch.equal(first[0], second[0])

    def test_core_draws_a_preview_of_them(self, tmp_path, monkeypatch):
        import folder_paths
        from comfy_extras.nodes_sam3 import SAM3_TrackPreview

        monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
        for tracks in (two_objects(), Tracks.empty(4, 36, 52)):
            SAM3_TrackPreview.execute(to_core(tracks)[0])
        assert len(list(tmp_path.glob("*.mp4"))) == 2

    def test_core_draws_and_crops_the_boxes(self):
        from comfy_extras.nodes_rtdetr import DrawBBoxes
        from comfy_extras.nodes_sdpose import CropByBBoxes

        tracks, film = two_objects(), torch.rand(4, 36, 52, 3)
        boxes = to_core(tracks)[3]
        assert [len(found) for found in boxes] == [1, 1, 2, 2]
        assert DrawBBoxes.execute(boxes, film).args[0].shape == film.shape
        crops = CropByBBoxes.execute(film, boxes, 64, 64, 0).args[0]
        corner = film[0, 8:20, 4:16].amin(), film[0, 8:20, 4:16].amax()
        assert crops.shape == (4, 64, 64, 3) and corner[0] <= crops[0].min() and crops[0].max() <= corner[1]

    def test_wan_move_sees_the_points(self):
        from comfy_extras.nodes_wanmove import create_pos_embeddings

        points, length = to_core(two_objects())[1:3]
        assert length == 4 and points["track_visibility"].tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
        torch.manual_seed(0)
        order = torch.randperm(2)
        torch.manual_seed(0)
        cells = create_pos_embeddings(points["track_path"], points["track_visibility"], [1, 4, 4], 36, 52)
        ball, cat = cells[order.argsort()].tolist()
        # Rows and columns of cells of 4 pixels: the ball's middle is at y 14, x 10, 16, 22, 28.
        assert ball == [[3, 2], [3, 4], [3, 5], [3, 7]]
        assert cat == [[-1, -1], [-1, -1], [7, 10], [7, 10]]

    def test_wan_move_takes_them_through_its_nodes(self):
        from comfy_extras.nodes_wanmove import WanMoveConcatTrack, WanMoveTrackToVideo, WanMoveVisualizeTracks

        points = to_core(two_objects(32, 64), 3)[1]
        joined = WanMoveConcatTrack.execute(points, points).args[0]
        assert joined["track_path"].shape == (4, 12, 2)
        film = torch.zeros(4, 32, 64, 3)
        drawn = WanMoveVisualizeTracks.execute(film, 24, 4, 0.75, 4, points).args[0]
        assert drawn.shape == film.shape and drawn[3].max() > 0.2

        class Vae:
            def encode(self, pictures):
                return torch.zeros(1, 16, 2, 4, 8)

        positive = [[torch.zeros(1, 1, 1), {}]]
        for tracks in (points, to_core(Tracks.empty(4, 32, 64))[1]):
            made = WanMoveTrackToVideo.execute(
                positive, positive, Vae(), 64, 32, 5, 1, 1.0, tracks=tracks, start_image=torch.rand(1, 32, 64, 3)
            )
            assert made.args[2]["samples"].shape == (1, 16, 2, 4, 8)

    def test_back_in_one_wire(self):
        from mask_guided_video.nodes.objects import SelectObjects

        chosen = {"labels": "", "ids": "2", "keep": "all", "count": 1, "minimum_score": 0.0, "minimum_area": 0.0}
        tracks = two_objects()
        _, mask, _ = SelectObjects.execute(to_core(tracks)[0], **chosen, minimum_frames=0, invert=False).args
        assert torch.equal(mask, tracks.masks[1].float() / 255)


class TestPointsOfCore:
    def path_masks(self, **values):
        from mask_guided_video.nodes.mask_sequences import PathMasks

        return PathMasks.execute(**{"paths": "", "frames": 9, "width": 64, "height": 32, **values}).args

    def generated(self, count=1, **values):
        from comfy_extras.nodes_wanmove import GenerateTracks

        way = {"start_x": 0.25, "start_y": 0.5, "end_x": 0.75, "end_y": 0.5, "mid_x": 0.5, "mid_y": 0.0}
        more = {"num_frames": 9, "num_tracks": count, "track_spread": 0.125, "interpolation": "linear"}
        return GenerateTracks.execute(64, 32, **{**way, **more, **values}).args

    def test_an_object_goes_where_the_points_go(self):
        points, length = self.generated()
        tracks, mask, _, report = self.path_masks(points=points, frames=length, point_size=8.0, point_labels="red ball")
        assert tracks.labels == ("red ball",) and tracks.misses.sum() == 0 and "red ball: in 9 of 9 frames" in report
        for frame in range(9):
            rows, columns = mask[frame].any(1).nonzero().flatten(), mask[frame].any(0).nonzero().flatten()
            assert (int(rows[0]), int(rows[-1])) == (12, 19)
            assert (int(columns[0]), int(columns[-1])) == (16 + 4 * frame - 4, 16 + 4 * frame + 3)

    def test_points_and_drawn_paths_and_boxes_go_together(self):
        points, _ = self.generated(3, bezier=True)
        drawn = '[{"label": "cat", "keyframes": [{"frame": 0, "x": 0.5, "y": 0.5, "width": 0.2, "height": 0.2}]}]'
        box = {"x": 0, "y": 0, "width": 8, "height": 8, "label": "box"}
        values = {"point_objects": "object_per_point", "point_size": 4.0, "point_labels": "a, b, c"}
        tracks, _, picture, _ = self.path_masks(paths=drawn, boxes=box, points=points, **values)
        assert tracks.labels == ("cat", "box", "a", "b", "c") and picture.ndim == 4

    def test_a_mask_of_visible_frames(self):
        seen = torch.zeros(9, 4, 4)
        seen[2:5] = 1.0
        points, _ = self.generated(2, track_mask=seen)
        tracks = self.path_masks(points=points, point_size=4.0)[0]
        assert tracks.misses.tolist() == [[True, True, False, False, False, True, True, True, True]]

    def test_coordinates_of_an_editor(self):
        from comfy_extras.nodes_wanmove import WanMoveTracksFromCoords

        text = '[[{"x": 10, "y": 6}, {"x": 20, "y": 16}], [{"x": 14, "y": 10}, {"x": 24, "y": 20}]]'
        points, length = WanMoveTracksFromCoords.execute(text).args
        mask = self.path_masks(points=points, frames=length)[1]
        assert [(frame.nonzero().amin(0).tolist(), frame.nonzero().amax(0).tolist()) for frame in mask] == [
            ([6, 10], [9, 13]),
            ([16, 20], [19, 23]),
        ]

    def test_masks_move_along_the_points(self):
        from mask_guided_video.nodes.mask_sequences import MaskSequence

        points, _ = self.generated()
        mask = torch.zeros(1, 32, 64)
        mask[0, 2:8, 3:9] = 1.0
        settings = {"frames": 9, "timing": "interpolate", "start": 0, "dilate": 0, "feather": 0.0, "width": 0}
        settings |= {"height": 0, "mask": mask, "points": points}
        made = MaskSequence.execute("", **settings, placing="keep").args[1]
        for frame in range(9):
            places = made[frame].nonzero().double() + 0.5
            assert places.mean(0).tolist() == pytest.approx([16, 16 + 4 * frame], abs=0.51) and len(places) == 36
        larger = MaskSequence.execute("", **settings, placing="fit", point_size=12.0).args[1]
        assert larger[0].sum() == 144
        with pytest.raises(ValueError, match="placing is fit but point_size is 0"):
            MaskSequence.execute("", **settings, placing="fit")
        drawn = '[{"keyframes": [{"frame": 0, "x": 0.5, "y": 0.5, "width": 0.2, "height": 0.2}]}]'
        with pytest.raises(ValueError, match="both paths and points"):
            MaskSequence.execute(drawn, **settings, placing="keep")

    def test_what_does_not_fit_is_named(self):
        points, _ = self.generated()
        with pytest.raises(ValueError, match="TRACKS has 9 frames and the masks 8; set frames to 9"):
            self.path_masks(points=points, frames=8)
        with pytest.raises(ValueError, match="TRACKS need a tensor track_path"):
            self.path_masks(points=tracked())


class TestBoxesOfCore:
    def drawn(self, *boxes):
        """What core's canvas gives on its wire, from what was drawn."""
        canvas = pytest.importorskip("comfy_extras.nodes_bounding_boxes", reason="this ComfyUI has no canvas for boxes")
        return canvas.CreateBoundingBoxes.execute(64, 64, editor_state=list(boxes)).args[1]

    def path_masks(self, boxes):
        from mask_guided_video.nodes.mask_sequences import PathMasks

        return PathMasks.execute("", 3, 64, 64, boxes=boxes).args

    def test_each_drawn_box_is_an_object(self):
        left = {"x": 4, "y": 8, "width": 16, "height": 12, "metadata": {"type": "obj", "desc": "red ball"}}
        right = {"x": 40, "y": 8, "width": 8, "height": 8, "metadata": {"type": "obj", "desc": ""}}
        tracks, mask, _, _ = self.path_masks(self.drawn(left, right))
        assert len(tracks.ids) == 2 and mask.sum((1, 2)).tolist() == [16 * 12 + 64] * 3
        assert len(self.path_masks(self.drawn())[0].ids) == 0
        # With their descriptions, as the canvas itself keeps them.
        assert self.path_masks([left, right])[0].labels == ("red ball", "")

    def test_every_input_for_boxes_takes_both_forms(self):
        from mask_guided_video import NODE_CLASS_MAPPINGS

        taking = {
            (name, entry.id): entry.get_io_type()
            for name, node in NODE_CLASS_MAPPINGS.items()
            for entry in node.define_schema().inputs
            if "BOUNDING_BOX" in entry.get_io_type().split(",")
        }
        assert len(taking) == 5 and set(taking.values()) == {"BOUNDING_BOX,BOUNDING_BOXES"}
