"""Nodes that draw, bring to length and measure masks: called directly."""

from __future__ import annotations

import json

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.tracks import Tracks

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


def path_masks(**values):
    from mask_guided_video.nodes.mask_sequences import PathMasks, example_text

    settings = {"paths": example_text(), "frames": 8, "width": 64, "height": 64}
    return PathMasks.execute(**{**settings, **values})


def mask_sequence(**values):
    from mask_guided_video.nodes.mask_sequences import MaskSequence

    settings = {"frames": 0, "timing": "interpolate", "start": 0, "dilate": 0, "feather": 0.0, "width": 0, "height": 0}
    return MaskSequence.execute(**{**settings, "paths": "", "placing": "fit", **values}).args


def metrics(**values):
    from mask_guided_video.nodes.mask_metrics import MaskMetrics

    settings = {"phrases": "", "prompt": "", "clip_model": "none", "box_threshold": 0.35}
    return MaskMetrics.execute(**{**settings, **values}).args


class TestPathMasks:
    def test_the_example_is_a_ball_that_rises_and_falls(self):
        output = path_masks()
        tracks, mask, preview, report = output.args
        assert tracks.labels == ("red ball",) and mask.shape == (8, 64, 64) and not tracks.misses.any()
        rows = [mask[frame].nonzero().float().mean(0) for frame in range(8)]
        assert rows[0][0] > rows[4][0] < rows[7][0] and rows[0][1] < rows[4][1] < rows[7][1]
        assert preview.shape == (1, 512, 512, 3) and float(preview.max()) <= 1
        assert report.startswith("8 frames, 64 x 64 pixels, 1 objects.\n1 red ball: in 8 of 8 frames, 9.")
        assert output.ui.as_dict()["images"]

    def test_boxes_of_one_label_are_one_object(self):
        boxes = [[] for _ in range(5)]
        boxes[0] = [Box(0, 0, 8, 8, "cat").to_dict()]
        boxes[4] = [Box(16, 8, 8, 8, "cat").to_dict()]
        tracks, mask, _, report = path_masks(paths="", frames=5, width=32, height=16, boxes=boxes).args
        assert tracks.labels == ("cat",) and "1 cat: in 5 of 5 frames" in report
        assert mask[2].nonzero()[0].tolist() == [4, 8] and mask[2].sum() == 64
        round_one = path_masks(paths="", frames=5, width=32, height=16, boxes=boxes, box_shape="ellipse").args[1]
        assert 0 < round_one[2].sum() < 64

    def test_drawn_and_given_objects_stand_side_by_side(self):
        tracks = path_masks(boxes=Box(4, 4, 8, 8, "cat").to_dict()).args[0]
        assert tracks.labels == ("red ball", "cat") and tracks.ids == (1, 2)

    def test_nothing_drawn_is_no_object(self):
        tracks, mask, preview, report = path_masks(paths="").args
        assert tracks.masks.shape == (0, 8, 64, 64) and not mask.any() and "0 objects" in report
        assert preview.shape == (1, 512, 512, 3)

    def test_the_picture_behind_the_path(self):
        plain = path_masks(paths="", width=96, height=48).args[2]
        with_film = path_masks(paths="", width=96, height=48, image=torch.ones(3, 30, 40, 4)).args[2]
        assert plain.shape == with_film.shape == (1, 256, 512, 3)
        assert float(with_film.mean()) == pytest.approx(0.5, abs=0.01) and float(plain.mean()) < 0.2

    def test_out_of_the_picture_is_said(self):
        path = {"label": "bird", "keyframes": [
            {"frame": 0, "x": 0.5, "y": 0.5, "width": 0.2, "height": 0.2}, {"frame": 4, "x": 2.5, "y": 0.5},
        ]}  # fmt: skip
        _, mask, _, report = path_masks(paths=json.dumps(path), frames=5).args
        assert mask[0].any() and not mask[2:].any() and "not in 2-4" in report

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"paths": "["}, "not JSON"),
            ({"boxes": [[]] * 3}, "3 frames and the clip has 8"),
            ({"paths": "[1]"}, "is 1"),
        ],
    )
    def test_bad_input_is_named(self, values, message):
        with pytest.raises(ValueError, match=message):
            path_masks(**values)


class TestMaskSequence:
    def test_a_mask_for_a_whole_film(self):
        mask = torch.zeros(1, 16, 16)
        mask[0, 4:8, 4:8] = 1
        tracks, together, report = mask_sequence(mask=mask, frames=5, width=32, height=32, dilate=1)
        assert tracks.masks.shape == (1, 5, 32, 32) and together.shape == (5, 32, 32)
        assert torch.equal(together[0], together[4]) and together[0, 12].sum() == 10
        assert report.startswith("5 frames, 32 x 32 pixels, 1 objects.")

    def test_defaults_change_nothing(self):
        tracks = path_masks().args[0]
        made, mask, _ = mask_sequence(tracks=tracks)
        assert made is tracks and torch.equal(mask, tracks.union())

    def test_a_drawn_mask_follows_a_path(self):
        from mask_guided_video.nodes.mask_sequences import example_text

        mask = torch.zeros(64, 64)
        mask[:10, :6] = 1
        tracks, _, _ = mask_sequence(mask=mask, frames=8, paths=example_text(), placing="keep")
        middles = [tracks.masks[0, frame].nonzero().float().mean(0) + 0.5 for frame in (0, 4, 7)]
        expected = torch.tensor([[0.7, 0.25], [0.3, 0.5], [0.7, 0.75]]) * 64
        assert (torch.stack(middles) - expected).abs().max() < 1.01

    def test_exactly_one_of_tracks_and_mask(self):
        with pytest.raises(ValueError, match="neither of tracks and mask"):
            mask_sequence()
        with pytest.raises(ValueError, match="both of tracks and mask"):
            mask_sequence(mask=torch.ones(1, 4, 4), tracks=Tracks.empty(1, 4, 4))

    def test_lengths_that_do_not_fit(self):
        with pytest.raises(ValueError, match="3 masks .* 8 frames are wanted"):
            mask_sequence(mask=torch.ones(3, 4, 4), frames=8, timing="exact")
        with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5\)"):
            mask_sequence(mask=torch.ones(2, 3, 4, 5))


class TestMaskMetrics:
    def film(self):
        return torch.full((8, 64, 64, 3), 0.5)

    def test_found_tracks(self):
        tracks = path_masks().args[0]
        iou, words, numbers, preview = metrics(image=self.film(), tracks=tracks, found=tracks)
        assert iou == 1.0 and words.startswith("red ball: IoU 1.000")
        assert json.loads(numbers)["objects"][0]["iou_per_frame"] == [1.0] * 8
        assert preview.shape == (8, 256, 256, 3) and float((preview - 0.5).abs().amax()) > 0.2

    def test_a_mask_and_a_reference(self):
        tracks, mask = path_masks().args[:2]
        film = self.film()
        film[:, :2] = 1
        iou, words, numbers, _ = metrics(image=film, mask=mask, found=tracks, reference=self.film())
        assert iou == 1.0 and json.loads(numbers)["background_change"] > 0 and words.startswith("object: IoU")

    def test_bundled_models_look_for_the_labels(self):
        from mask_guided_video.nodes.detection import LoadGroundingDINO
        from mask_guided_video.nodes.segmentation_models import LoadSAM
        from mask_guided_video.toybox import world

        ball = world.SceneObject("red", "ball", "right", 12.0, (18.0, 30.0), 26.0)
        clip = world.render(world.Scene("grass", (ball,)))
        models = {
            "detector": LoadGroundingDINO.execute("Toybox").args[0],
            "segmenter": LoadSAM.execute("Toybox").args[0],
        }
        film, masks = torch.from_numpy(clip.frames), torch.from_numpy(clip.masks[0]).float()
        iou, _, numbers, _ = metrics(image=film, mask=masks, phrases="red ball", **models)
        assert iou > 0.9 and json.loads(numbers)["objects"][0]["phrase"] == "red ball"
        with pytest.raises(ValueError, match="no label to look for"):
            metrics(image=film, mask=masks, **models)

    def test_phrases_choose_objects_by_their_labels(self):
        """In another order than the labels: the ball is still judged by the ball, and alone when it alone is named."""
        masks = torch.zeros(2, 8, 64, 64)
        masks[0, :, :, :20] = masks[1, :, :, 40:] = 1
        tracks = Tracks.from_masks(masks, ("red ball", "blue square"))
        for phrases in ("blue square, Red ball", "red ball"):
            numbers = json.loads(metrics(image=self.film(), tracks=tracks, found=tracks, phrases=phrases)[2])
            assert numbers["iou"] == 1.0 and len(numbers["objects"]) == len(phrases.split(","))

    def test_clip_models_are_folders_of_clip_vision(self, tmp_path, monkeypatch):
        import folder_paths

        from mask_guided_video.nodes.mask_metrics import clip_folders

        for name in ("tiny/model.safetensors", "alone.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(tmp_path)], {".safetensors"}))
        folder_paths.filename_list_cache.pop("clip_vision", None)
        assert clip_folders() == ["tiny"]
        tracks = path_masks().args[0]
        with pytest.raises(ValueError, match="not a folder of a CLIP model"):
            metrics(image=self.film(), tracks=tracks, found=tracks, clip_model="tiny")

    def test_peekaboo_by_found_tracks(self):
        """Found in four of eight frames: without the option the report is as it was."""
        tracks = path_masks().args[0]
        masks = tracks.object_masks()
        masks[:, 4:] = 0
        found = Tracks.from_masks(masks, tracks.labels)
        plain = metrics(image=self.film(), tracks=tracks, found=found)
        _, words, numbers, _ = metrics(image=self.film(), tracks=tracks, found=found, protocol="peekaboo")
        assert words.startswith(plain[1]) and "Peekaboo protocol" not in plain[1]
        values = json.loads(numbers)
        report = values.pop("peekaboo")
        assert values == json.loads(plain[2])
        (clip,) = report["clips"]
        assert (clip["frames"], clip["frames_detected"], clip["corrected"]["centroid_distance"]) == (8, 4, 0)
        assert report["summary"]["published"]["centroid_distance"] > 0.01
        assert "coverage: 0.000 | 0.000" in words and "4 of 8 frames have no detection" in words

    def test_peekaboo_by_a_detector(self):
        """Its best box in every frame, not the tracks; a picture of a ball and a path of the same place."""
        from mask_guided_video.nodes.mask_metrics import by_peekaboo
        from mask_guided_video.nodes.support.host import wrap_helper
        from mask_guided_video.perception.frames import Film
        from mask_guided_video.perception.open_models import open_detector
        from mask_guided_video.recipes.model_sets import TOYBOX, load_models
        from mask_guided_video.toybox import world

        ball = world.SceneObject("red", "ball", "right", 11.0, (18.0, 32.0), 28.0)
        scene = world.render(world.Scene("sand", (ball,)))
        detector = load_models(open_detector, TOYBOX / "detector")
        wanted = Tracks.from_masks(torch.from_numpy(scene.masks).float(), ("red ball",))
        helper = wrap_helper(detector, detector.model, "detector")
        film = Film(torch.from_numpy(scene.frames))
        report = by_peekaboo(film, wanted, Tracks.empty(8, 64, 64), helper, 0.35)
        assert report["clips"][0]["frames_detected"] == 8
        # A disc fills pi / 4 of its box.
        assert report["summary"]["corrected"]["miou"] == pytest.approx(0.785, abs=0.08)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"tracks": None}, "neither of tracks and mask"),
            ({"found": None}, "nothing says where the objects are"),
            ({"phrases": "a, b"}, "2 phrases .* and 1 objects"),
            ({"image": torch.ones(8, 64, 128, 3)}, "64 x 64 pixels but the film 128 x 64: they would be distorted"),
            ({"image": torch.ones(5, 64, 64, 3)}, "8 frames and the video has 5"),
            ({"reference": torch.ones(5, 64, 64, 3)}, "8 frames and the reference 5"),
            ({"reference": torch.ones(8, 32, 64, 3)}, "64 pixels in height and the reference 32"),
            ({"tracks": Tracks.from_masks(torch.zeros(1, 8, 64, 64)), "found": Tracks.empty(8, 64, 64)}, "no mask to"),
        ],
    )
    def test_bad_input_is_named(self, values, message):
        tracks = path_masks().args[0]
        with pytest.raises(ValueError, match=message):
            metrics(**{"image": self.film(), "tracks": tracks, "found": tracks, **values})
