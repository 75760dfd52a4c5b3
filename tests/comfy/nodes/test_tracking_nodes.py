"""Nodes that mark, follow, choose and show objects: called directly, then in a real ComfyUI."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.prompts import Point
from mask_guided_video.perception.tracks import Tracks

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


def rectangle(frames=4, size=32, left=4, width=12, seen=None):
    mask = torch.zeros(frames, size, size)
    for frame in range(frames) if seen is None else seen:
        mask[frame, 8:24, left : left + width] = 1.0
    return mask


def three_tracks():
    """A large ball seen throughout, a small square seen in two frames of four, a ball without a mask."""
    masks = torch.stack([rectangle(left=2), rectangle(left=20, width=3, seen=[1, 2]), rectangle(seen=[])])
    tracks = Tracks.from_masks(masks, ("red ball", "blue square", "red ball"))
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.9, 0.9, 0.0], [0.0] * 4])
    return Tracks(tracks.masks, (1, 2, 5), tracks.labels, scores, tracks.misses)


def film(frames=4, size=32, channels=3):
    return torch.rand(frames, size, size, channels, generator=torch.Generator().manual_seed(0))


def mark(**values):
    from mask_guided_video.nodes.prompts import TrackPrompt

    settings = {"frame": 0, "object": 0, "label": "", "points": "", "negative_points": ""}
    return TrackPrompt.execute(**{**settings, **values}).args


class TestTrackPrompt:
    def test_points_of_both_widgets(self):
        (prompt,), _ = mark(
            frame=2,
            label=" red  ball",
            points='[{"x": 4, "y": 5.5}, {"x": 6, "y": 7, "label": 0}]',
            negative_points='[{"x": 1, "y": 2}]',
        )
        assert prompt.points == (Point(4.0, 5.5), Point(6.0, 7.0, False), Point(1.0, 2.0, False))
        assert (prompt.frame, prompt.identity, prompt.label) == (2, 1, "red ball")

    def test_chained_prompts_are_objects_of_their_own(self):
        first, _ = mark(points='[{"x": 4, "y": 5}]')
        second, _ = mark(points='[{"x": 9, "y": 5}]', prompts=first)
        again, _ = mark(points='[{"x": 5, "y": 5}]', prompts=second, frame=3, object=1)
        assert [(prompt.identity, prompt.frame) for prompt in again] == [(1, 0), (2, 0), (1, 3)]
        assert len(first) == 1

    def test_two_of_one_object_in_one_frame_become_one(self):
        box = {"x": 2.0, "y": 3.0, "width": 9.0, "height": 8.0}
        first, _ = mark(boxes=box, label="ball")
        (prompt,), _ = mark(points='[{"x": 4, "y": 5}]', prompts=first, object=1)
        assert prompt.box == Box(2.0, 3.0, 9.0, 8.0) and prompt.points == (Point(4.0, 5.0),) and prompt.label == "ball"

    def test_boxes_and_masks_of_the_frame(self):
        good, poor = Box(1, 2, 9, 9, "a", 0.9).to_dict(), Box(5, 5, 4, 4, "b", 0.2).to_dict()
        (prompt,), _ = mark(frame=1, boxes=[[], [poor, good], []])
        assert prompt.box.x == 1
        (prompt,), _ = mark(frame=1, mask=torch.stack([rectangle(1)[0], rectangle(1, left=10)[0]]))
        assert torch.equal(prompt.mask, rectangle(1, left=10)[0])
        (prompt,), _ = mark(frame=7, mask=rectangle(1))
        assert torch.equal(prompt.mask, rectangle(1)[0])

    def test_preview_is_the_frame_with_the_prompt(self):
        image = film(channels=4)
        _, preview = mark(frame=2, image=image, points='[{"x": 16, "y": 16}]', boxes=Box(4, 4, 20, 20).to_dict())
        assert preview.shape == (1, 256, 256, 3) and 0 <= preview.min() and preview.max() <= 1
        plain = image[2, ..., :3].repeat_interleave(8, 0).repeat_interleave(8, 1)
        changed = (preview[0] - plain).abs().amax(-1) > 0.01
        assert changed[128, 128] and not changed[-1, -1] and not changed[100, 100]
        _, masked = mark(image=image[:1], mask=rectangle(1))
        assert not torch.equal(masked[0, 120, 80], plain[120, 80])

    def test_preview_without_a_film(self):
        assert mark(points='[{"x": 600, "y": 20}]')[1].shape == (1, 256, 616, 3)
        assert mark(points='[{"x": 1e30, "y": 20}]')[1].shape == (1, 256, 4096, 3)
        assert mark(mask=rectangle(1, size=300))[1].shape == (1, 300, 300, 3)

    @pytest.mark.parametrize(
        "values,message",
        [
            ({}, "frame 0 has no point on the object, no box and no mask"),
            ({"negative_points": '[{"x": 1, "y": 1}]'}, "no point on the object"),
            ({"boxes": [[]] * 4}, "no point on the object"),
            ({"points": "[]"}, "no point on the object"),
            ({"points": "1, 2"}, "points is not JSON"),
            ({"points": '{"x": 1}'}, "points must be a list of at most 256 points"),
            ({"points": "[" * 5000}, "points is not JSON"),
            ({"points": '[{"x": 1, "y": 1}]' + " " * 70000}, "70018 characters; write at most 65536"),
            ({"points": f"[{','.join(['1'] * 257)}]"}, "at most 256 points"),
            ({"points": '[{"x": 1}]'}, "no numbers x and y"),
            ({"points": '[{"x": true, "y": 1}]'}, "no numbers x and y"),
            ({"points": '[{"x": "1", "y": 1}]'}, "no numbers x and y"),
            ({"points": '[{"x": NaN, "y": 1}]'}, "outside every picture"),
            ({"points": f'[{{"x": {"9" * 400}, "y": 1}}]'}, "outside every picture"),
            ({"points": '[{"x": -1, "y": 1}]'}, "point -1, 1 in points lies outside every picture"),
            ({"points": '[{"x": 1, "y": 1, "label": 7}]'}, "the label '7.0'; write 1"),
            ({"points": '[{"x": 40, "y": 1}]', "image": film()}, "outside the picture of 32 x 32"),
            ({"points": '[{"x": 4, "y": 1}]', "image": film(), "frame": 4}, "the video has 4 frames; use 0 to 3"),
            ({"boxes": Box(90, 90, 5, 5).to_dict(), "image": film()}, "empty or outside the picture of 32 x 32"),
            ({"boxes": [[]] * 3, "frame": 3}, "boxes for 3 frames and frame is 3"),
            ({"boxes": "box"}, "bounding boxes are a str"),
            ({"mask": rectangle(3), "frame": 3}, "there are 3 masks and frame is 3"),
            ({"mask": torch.full((1, 8, 8), float("nan"))}, "the mask holds NaN"),
        ],
    )
    def test_bad_input_is_named(self, values, message):
        with pytest.raises(ValueError, match=message):
            mark(**values)


@pytest.fixture(scope="module")
def clip(root):
    from mask_guided_video.toybox import world

    if not (root / "toybox" / "segmenter" / "model.safetensors").is_file():
        pytest.skip("this checkout has no Toybox weights")
    ball = world.SceneObject("red", "ball", "right", 12.0, (20.0, 18.0), 20.0)
    square = world.SceneObject("blue", "square", "left", 12.0, (44.0, 46.0), 20.0)
    return world.render(world.Scene("grass", (ball, square)))


@pytest.fixture(scope="module")
def model(clip):
    from mask_guided_video.nodes.segmentation_models import LoadSAM

    with torch.inference_mode():
        return LoadSAM.execute("Toybox").args[0]


class TestTrackMasks:
    """Following with the bundled model on a rendered film of two objects."""

    @pytest.fixture
    def frames(self, clip):
        return torch.from_numpy(clip.frames)

    def track(self, model, frames, **values):
        from mask_guided_video.nodes.tracking import TrackMasks

        settings = {
            "points": "",
            "prompt_frame": 0,
            "max_gap": -1,
            "extend": -1,
            "minimum_seen": 2,
            "max_objects": 0,
            "soft": False,
        }
        return TrackMasks.execute(model, frames, **{**settings, **values}).args

    def boxes(self, clip, every=1):
        from mask_guided_video.perception.mask_shapes import box_of_mask

        found = [[] for _ in clip.frames]
        for frame in range(0, len(found), every):
            for masks, label in zip(clip.masks, ("red ball", "blue square"), strict=True):
                box = box_of_mask(torch.from_numpy(masks[frame]).float(), label)
                found[frame].append(box.to_dict())
        return found

    def quality(self, mask, truth):
        found, truth = mask > 0.5, torch.from_numpy(truth)
        return ((found & truth).sum() / (found | truth).sum()).item()

    def test_boxes_in_some_frames_are_enough(self, model, frames, clip):
        tracks, mask, preview, report = self.track(model, frames, boxes=self.boxes(clip, every=4))
        assert tracks.labels == ("red ball", "blue square") and mask.shape == (8, 64, 64) and len(preview) == 8
        for number in range(2):
            assert self.quality(tracks.object_masks()[number], clip.masks[number]) > 0.7
        assert "1 red ball" in report and torch.equal(mask, tracks.union())

    def test_prompts_of_two_objects_in_a_middle_frame(self, model, frames, clip):
        places = [clip.masks[number][4].nonzero() for number in range(2)]
        (y, x), (other_y, other_x) = [(rows.mean(), columns.mean()) for rows, columns in places]
        first, _ = mark(frame=4, label="ball", points=f'[{{"x": {x}, "y": {y}}}]', image=frames)
        both, _ = mark(frame=4, object=7, label="box", points=f'[{{"x": {other_x}, "y": {other_y}}}]', prompts=first)
        tracks, *_ = self.track(model, frames, prompts=both, extend=0, minimum_seen=5)
        assert tracks.ids == (1, 7) and tracks.labels == ("ball", "box")
        for number in range(2):
            assert self.quality(tracks.object_masks()[number], clip.masks[number]) > 0.7

    def test_direction(self, model, frames):
        prompt, _ = mark(frame=4, points='[{"x": 26, "y": 18}]')
        for direction, empty in (("forward", slice(0, 4)), ("backward", slice(5, 8))):
            mask = self.track(model, frames, prompts=prompt, direction=direction)[1]
            assert len(mask) == 8 and not mask[empty].any() and mask[4].any()

    def test_points_and_mask_are_one_object(self, model, frames, clip):
        rough = torch.from_numpy(clip.masks[0][:1]).float()
        tracks, *_ = self.track(model, frames, mask=rough, points='[{"x": 20, "y": 18}]')
        assert len(tracks.ids) == 1 and self.quality(tracks.union(), clip.masks[0]) > 0.7
        off, *_ = self.track(model, frames, mask=rough, points='[{"x": 35, "y": 18, "label": 0}]')
        assert len(off.ids) == 1 and self.quality(off.union(), clip.masks[0]) > 0.7

    def test_masks_on_disk_are_the_same_masks(self, model, frames, clip, monkeypatch, tmp_path):
        import folder_paths

        monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
        here = self.track(model, frames, boxes=self.boxes(clip))[0]
        there = self.track(model, frames, boxes=self.boxes(clip), keep_on_disk=True)[0]
        assert there.masks.folder == tmp_path and torch.equal(here.masks.tensor(), there.masks.tensor())

    def test_graphs_from_before_the_new_inputs(self, model, frames, clip):
        tracks, *_ = self.track(model, frames, boxes=self.boxes(clip), max_gap=8, extend=2, soft=True)
        assert len(tracks.ids) == 2 and tracks.masks.depth == "byte"

    @pytest.mark.parametrize("shape", [(1, 61, 47, 3), (3, 33, 50, 4), (2, 8, 8, 3)])
    def test_frames_in_are_masks_out(self, model, shape):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        box = {"x": 1.0, "y": 1.0, "width": 6.0, "height": 6.0}
        for boxes in (box, [[]] * shape[0], {**box, "x": 900.0}):
            tracks, mask, preview, _ = self.track(model, image, boxes=boxes, minimum_seen=1)
            assert mask.shape == shape[:3] and len(preview) == shape[0] and tracks.frames == shape[0]

    def test_prompts_outside_are_left_out_and_named(self, model, frames):
        outside, _ = mark(boxes={"x": 90.0, "y": 90.0, "width": 5.0, "height": 5.0}, label="cat")
        tracks, mask, _, report = self.track(model, frames, prompts=outside)
        assert tracks.ids == () and len(mask) == 8 and not mask.any()
        assert "The prompt for 1 cat in frame 0 is empty or outside the picture: left out." in report

    def test_cancel_in_the_middle(self, model, frames, clip, monkeypatch):
        import comfy.model_management as management

        from mask_guided_video.nodes.support import host

        steps = []

        class Bar:
            def __init__(self, total):
                pass

            def update_absolute(self, done, total):
                steps.append(done)
                management.interrupt_current_processing(len(steps) == 3)

        monkeypatch.setattr(host.comfy.utils, "ProgressBar", Bar)
        with pytest.raises(management.InterruptProcessingException):
            self.track(model, frames, boxes=self.boxes(clip))
        assert len(steps) == 3
        monkeypatch.undo()
        assert len(self.track(model, frames, boxes=self.boxes(clip))[0].ids) == 2

    def test_bad_input_is_named(self, model, frames):
        late, _ = mark(frame=9, points='[{"x": 4, "y": 5}]')
        wide, _ = mark(points='[{"x": 70, "y": 5}]')
        broken = frames.clone()
        broken[3] = float("nan")
        for message, values in {
            "there are no boxes, mask, points, prompts or phrases": {},
            "a prompt is for frame 9 but the video has 8 frames": {"prompts": late},
            "lies outside the picture of 64 x 64": {"prompts": wide},
            "prompt_frame is 8 but the video has 8 frames": {"points": '[{"x": 1, "y": 1}]', "prompt_frame": 8},
            "point .70, 5. in frame 0 lies outside": {"points": '[{"x": 70, "y": 5}]'},
            "points has no point on the object": {"points": "[]"},
            "points is not JSON": {"points": "left"},
            "there are 5 masks for 8 frames": {"mask": torch.ones(5, 64, 64)},
            "the mask is empty in every frame": {"mask": torch.zeros(8, 64, 64)},
            "bounding boxes for 3 frames and the clip has 8": {"boxes": [[]] * 3},
            "Toybox does not understand words, but phrases is 'cat'": {"phrases": "cat"},
            "max_gap is -2": {"boxes": [], "max_gap": -2},
        }.items():
            with pytest.raises(ValueError, match=message):
                self.track(model, frames, **values)
        with pytest.raises(ValueError, match="frame 3 holds NaN"):
            self.track(model, broken, points='[{"x": 20, "y": 18}]')
        with pytest.raises(ValueError, match="at least one frame"):
            self.track(model, frames[:0], boxes=[])


class TestRefineMasks:
    def refine(self, **values):
        from mask_guided_video.nodes.refinement import RefineMasks

        settings = {
            "fill_gaps": 0,
            "median_frames": 1,
            "hysteresis_low": 0.0,
            "hysteresis_high": 0.0,
            "grow": 0,
            "feather": 0.0,
        }
        return RefineMasks.execute(**{**settings, **values}).args

    def test_parts_holes_and_boxes(self):
        mask = rectangle(1)
        mask[0, 0, 0] = 1.0
        mask[0, 12, 8] = 0.0
        assert torch.equal(self.refine(mask=mask, component_share=1.0, fill_holes=-1)[1], rectangle(1))
        boxed = self.refine(mask=mask, component_share=1.0, box=True, box_padding=2)[1]
        assert boxed[0, 6:26, 2:18].all() and boxed.sum() == 20 * 16

    def test_gaps_are_filled_with_the_film(self):
        image = torch.full((5, 32, 32, 3), 0.2)
        masks = torch.stack([rectangle(1, left=2 + 2 * frame)[0] for frame in range(5)])
        image[..., 0] = torch.maximum(image[..., 0], masks)
        gap = masks.clone()
        gap[2] = 0.0
        filled, mask = self.refine(mask=gap, fill_gaps=2, image=image)
        truth = masks[2] > 0.5
        assert ((mask[2] > 0.5) & truth).sum() / ((mask[2] > 0.5) | truth).sum() > 0.8
        assert filled.misses.tolist() == [[False, False, True, False, False]]

    def test_masks_on_disk(self, monkeypatch, tmp_path):
        import folder_paths

        monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
        tracks, mask = self.refine(tracks=three_tracks(), grow=1, keep_on_disk=True)
        assert tracks.masks.folder == tmp_path
        assert torch.equal(mask, self.refine(tracks=three_tracks(), grow=1)[1])

    def test_bad_input_is_named(self):
        for message, values in {
            "there are 3 frames and masks for 4": {"image": film(3)},
            "component_share is 2": {"component_share": 2.0},
            "fill_holes is -2": {"fill_holes": -2},
            "box_padding is -1": {"box_padding": -1},
        }.items():
            with pytest.raises(ValueError, match=message):
                self.refine(mask=rectangle(), **values)


class TestSelectObjects:
    def select(self, tracks=None, **values):
        from mask_guided_video.nodes.objects import SelectObjects

        settings = {
            "labels": "",
            "ids": "",
            "keep": "all",
            "count": 1,
            "minimum_score": 0.0,
            "minimum_area": 0.0,
            "minimum_frames": 0,
            "invert": False,
        }
        return SelectObjects.execute(three_tracks() if tracks is None else tracks, **{**settings, **values}).args

    @pytest.mark.parametrize(
        "values,ids",
        [
            ({}, (1, 2, 5)),
            ({"labels": "Red Ball"}, (1, 5)),
            ({"labels": "red *; blue square"}, (1, 2, 5)),
            ({"ids": "2"}, (2,)),
            ({"ids": " 1, 5 - 3 "}, (1, 5)),
            ({"ids": "1-2", "labels": "red ball"}, (1,)),
            ({"keep": "largest"}, (1,)),
            ({"keep": "longest"}, (1,)),
            ({"keep": "surest"}, (2,)),
            ({"keep": "surest", "count": 2}, (1, 2)),
            ({"keep": "largest", "count": 9}, (1, 2, 5)),
            ({"keep": "surest", "labels": "red ball"}, (1,)),
            ({"minimum_score": 0.6}, (2,)),
            ({"minimum_area": 10.0}, (1,)),
            ({"minimum_frames": 2}, (1, 2)),
            ({"minimum_frames": 2, "invert": True}, (5,)),
            ({"keep": "surest", "invert": True}, (1, 5)),
            ({"labels": "cat"}, ()),
            ({"ids": "7"}, ()),
            ({"invert": True}, ()),
        ],
    )
    def test_conditions(self, values, ids):
        tracks, mask, report = self.select(**values)
        assert tracks.ids == ids and mask.shape == (4, 32, 32)
        assert f"Kept {len(ids)} of 3 objects" in report
        assert torch.equal(mask, tracks.union())

    def test_nothing_chosen_and_nothing_there_go_on(self):
        tracks, mask, report = self.select(labels="cat")
        assert tracks.frames == 4 and not mask.any() and "the masks are empty" in report
        assert "left out 2 blue square: another label" in report
        tracks, mask, report = self.select(Tracks.empty(4, 32, 32), keep="largest")
        assert tracks.ids == () and mask.shape == (4, 32, 32) and "no object to choose from" in report

    def test_report_gives_the_facts(self):
        report = self.select(ids="1-2")[2]
        assert "1 red ball: seen in 4 frames, mean score 0.50, mean area 19 %" in report
        assert "2 blue square: seen in 2 frames, mean score 0.90, mean area 4.7 %" in report
        assert "left out 5 red ball: another number" in report

    @pytest.mark.parametrize("ids", ["a", "1,b", "1-", "-1", "1-2-3", "9" * 12])
    def test_bad_numbers_are_named(self, ids):
        with pytest.raises(ValueError, match="which is neither a number nor a range"):
            self.select(ids=ids)


class TestSplitTracks:
    def split(self, tracks):
        from mask_guided_video.nodes.object_masks import SplitTracks

        return SplitTracks.execute(tracks).args

    def test_one_batch_for_every_object(self):
        masks, labels, ids, boxes = self.split(three_tracks())
        assert labels == ["red ball", "blue square", "red ball"] and ids == [1, 2, 5]
        expected = [rectangle(left=2), rectangle(left=20, width=3, seen=[1, 2]), rectangle(seen=[])]
        assert all(torch.equal(mask, truth) for mask, truth in zip(masks, expected, strict=True))
        assert [len(found) for found in boxes] == [1, 2, 2, 1]
        ball = {"x": 2.0, "y": 8.0, "width": 12.0, "height": 16.0, "label": "red ball", "score": 0.5}
        assert boxes[0] == [ball] and boxes[1][1] == ball
        assert boxes[1][0]["label"] == "blue square"

    def test_no_object_gives_black_masks(self):
        masks, labels, ids, boxes = self.split(Tracks.empty(4, 32, 32))
        assert labels == [""] and ids == [0] and boxes == [[]] * 4
        assert len(masks) == 1 and torch.equal(masks[0], torch.zeros(4, 32, 32))

    def test_large_masks_lie_in_a_file(self, monkeypatch, tmp_path):
        import tempfile

        import folder_paths

        from mask_guided_video.nodes.support import mask_output

        made = []

        def temporary_file(**options):
            made.append(options)
            return tempfile.NamedTemporaryFile(**options)

        monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "new"))
        monkeypatch.setattr(mask_output, "TemporaryFile", temporary_file)
        assert torch.equal(self.split(three_tracks())[0][0], rectangle(left=2)) and not made
        monkeypatch.setattr(mask_output, "LARGEST_IN_MEMORY", 1000)
        masks = self.split(three_tracks())[0]
        assert torch.equal(masks[0], rectangle(left=2)) and torch.equal(masks[2], torch.zeros(4, 32, 32))
        assert [options["dir"] for options in made] == [tmp_path / "new"] * 3
        assert list((tmp_path / "new").iterdir()) == []


class TestMaskToTracks:
    def join(self, mask, label="", tracks=None):
        from mask_guided_video.nodes.object_masks import MaskToTracks

        return MaskToTracks.execute(mask, label, tracks).args[0]

    def test_a_mask_is_an_object(self):
        tracks = self.join(rectangle(seen=[0, 2]), " red  ball")
        assert tracks.ids == (1,) and tracks.labels == ("red ball",)
        assert tracks.misses.tolist() == [[False, True, False, True]]
        assert torch.equal(tracks.union(), rectangle(seen=[0, 2]))

    def test_objects_are_added(self):
        soft = rectangle(left=1) * 0.6
        before = three_tracks()
        tracks = self.join(soft, "cat", before)
        assert tracks.ids == (1, 2, 5, 6) and tracks.labels[-1] == "cat" and before.ids == (1, 2, 5)
        assert torch.equal(tracks.object_masks()[:3], before.object_masks())
        torch.testing.assert_close(tracks.object_masks()[3], soft)
        assert self.join(rectangle(), "cat", Tracks.empty(4, 32, 32)).ids == (1,)

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="the mask has 3 frames of 32 x 32 pixels and the tracks 4 of 32 x 32"):
            self.join(rectangle(3), tracks=three_tracks())
        for message, mask in {
            "NaN": torch.full((1, 8, 8), float("nan")),
            "mask has shape .0, 8, 8.": torch.zeros(0, 8, 8),
            "mask has shape .2, 3, 8, 8.": torch.zeros(2, 3, 8, 8),
        }.items():
            with pytest.raises(ValueError, match=message):
                self.join(mask)

    def test_mask_shapes(self):
        for mask in (rectangle(1)[0], rectangle(1), rectangle(1)[:, None]):
            assert torch.equal(self.join(mask).union(), rectangle(1))


class TestPreviewTracks:
    def show(self, image, tracks, **values):
        from mask_guided_video.nodes.objects import PreviewTracks

        settings = {"opacity": 0.3, "outline": True, "labels": True, "count": 3}
        return PreviewTracks.execute(image, tracks, **{**settings, **values})

    @pytest.fixture(autouse=True)
    def temporary_pictures(self, monkeypatch, tmp_path):
        import folder_paths

        monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))

    def test_film_and_strip(self, tmp_path):
        shown = self.show(film(channels=4), three_tracks())
        drawn, strip = shown.args
        assert drawn.shape == (4, 256, 256, 3) and strip.shape[0] == 1 and strip.shape[-1] == 3
        (entry,) = shown.ui.as_dict()["images"]
        assert entry["type"] == "temp" and (tmp_path / entry["filename"]).stat().st_size > 1000

    def test_options(self):
        plain = film()
        bare = self.show(plain, three_tracks(), opacity=0.0, outline=False, labels=False).args[0]
        expected = (plain * 255).round() / 255
        torch.testing.assert_close(bare, expected.repeat_interleave(8, 1).repeat_interleave(8, 2))
        assert not torch.equal(bare, self.show(plain, three_tracks(), opacity=0.5, outline=False, labels=False).args[0])
        narrow, wide = (self.show(plain, three_tracks(), count=count).args[1] for count in (1, 4))
        assert wide.shape[2] > narrow.shape[2]

    def test_no_object_one_frame_and_another_size(self):
        assert self.show(film(), Tracks.empty(4, 32, 32)).args[0].shape == (4, 256, 256, 3)
        assert self.show(film(1, 33), Tracks.empty(1, 32, 32)).args[0].shape[0] == 1
        assert self.show(film(4, 64), three_tracks()).args[0].shape == (4, 256, 256, 3)

    def test_long_films_are_drawn_smaller(self, monkeypatch):
        from mask_guided_video.nodes import objects

        monkeypatch.setattr(objects, "DRAWN_FILM_BYTES", 4 * 16 * 16 * 12)
        assert self.show(film(), three_tracks()).args[0].shape == (4, 16, 16, 3)

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="the tracks have 4 frames and the video 3"):
            self.show(film(3), three_tracks())
        with pytest.raises(ValueError, match="frames have shape"):
            self.show(torch.rand(4, 32), Tracks.empty(4, 32, 32))
