"""Mask Refine end to end, on a tiny random video model."""

import dataclasses
import json
import math

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.recipes.mask_refine.recipe import mask_refine
from mask_guided_video.recipes.mask_refine.settings import MaskRefineSettings

PROMPT = "a red ball moves left on sand"
FAST = MaskRefineSettings(PROMPT, ("red ball",), steps=3, seed=5)


class WindowDetector:
    """Sees every phrase in a window of its own, in all frames or in none."""

    def __init__(self, seen=("red ball", "blue square")):
        self.seen = seen
        self.released = 0

    def detect(
        self, frames, phrases, box_threshold=0.35, text_threshold=0.25, nms_threshold=0.7, joint=False, progress=None
    ):
        boxes = {"red ball": Box(2, 2, 6, 6, "red ball", 0.9), "blue square": Box(9, 9, 6, 6, "blue square", 0.8)}
        return [[boxes[phrase] for phrase in phrases if phrase in self.seen] for _ in frames]

    def release(self):
        self.released += 1


class BoxTracker:
    """Takes boxes for masks."""

    def track(self, frames, detections, settings=None, progress=None):
        labels = tuple(box.label for box in detections[0])
        masks = torch.zeros(len(labels), *frames.shape[:3], dtype=torch.uint8)
        for frame, boxes in enumerate(detections):
            for number, box in enumerate(boxes):
                x0, y0, x1, y1 = (int(value) for value in box.corners)
                masks[number, frame, y0:y1, x0:x1] = 255
            if progress is not None:
                progress(frame + 1, len(frames))
        seen = torch.ones(len(labels), len(frames))
        return Tracks(masks, tuple(range(1, len(labels) + 1)), labels, seen, seen < 0.5)


def run(model, settings=FAST, detector=None, **options):
    return mask_refine(model, detector or WindowDetector(), BoxTracker(), settings, **options)


def test_guidance_changes_the_second_film_and_the_report_says_so(tiny_video_model):
    result = run(tiny_video_model)
    assert result.first.shape == result.second.shape == (4, 16, 16, 3)
    assert not torch.equal(result.first, result.second)
    assert result.report["guided"] is True and result.report["notes"] == []
    assert result.report["films"]["first"]["sha256"] != result.report["films"]["second"]["sha256"]
    assert result.report["films"]["second"]["object_iou"] == 1.0
    assert result.report["change_anywhere"] > 0
    assert set(result.report["timings"]) >= {"first film", "detecting", "tracking", "second film", "total"}
    assert result.tracks.labels == ("red ball",) and len(result.detections) == 4
    json.dumps(result.report, allow_nan=False)


def test_same_seed_gives_the_same_pixels(tiny_video_model):
    one, two = run(tiny_video_model), run(tiny_video_model)
    assert torch.equal(one.first, two.first) and torch.equal(one.second, two.second)
    other = run(tiny_video_model, dataclasses.replace(FAST, seed=6))
    assert not torch.equal(one.first, other.first)


@pytest.mark.parametrize("mode", ["focus", "focus_fg", "separate", "cross_text"])
def test_every_mode_runs_and_strength_zero_is_bit_identical(tiny_video_model, mode):
    settings = dataclasses.replace(FAST, mode=mode, steps=2)
    guided = run(tiny_video_model, settings)
    assert not torch.equal(guided.first, guided.second)
    unguided = run(tiny_video_model, dataclasses.replace(settings, strength=0.0))
    assert torch.equal(unguided.first, unguided.second)
    assert not unguided.report["guided"] and "strength is 0" in unguided.report["notes"][0]


def test_nothing_found_goes_on_unguided_and_says_so(tiny_video_model):
    result = run(tiny_video_model, detector=WindowDetector(seen=()))
    assert torch.equal(result.first, result.second)
    assert result.report["guided"] is False
    assert "no object ('red ball') was found" in result.report["notes"][0]
    assert result.report["films"]["first"]["object_iou"] is None


def test_several_phrases_and_one_that_is_not_seen(tiny_video_model):
    settings = dataclasses.replace(
        FAST, prompt="a red ball moves left and a blue square moves right on sand", phrases=("red ball", "blue square")
    )
    both = run(tiny_video_model, settings)
    assert both.tracks.labels == ("red ball", "blue square")
    assert [entry["iou_second"] for entry in both.report["masks"]["objects"]] == [1.0, 1.0]
    one = run(tiny_video_model, settings, WindowDetector(seen=("blue square",)))
    assert one.tracks.labels == ("blue square",) and one.report["guided"]
    assert "no 'red ball' was found" in one.report["notes"][0]


def test_given_masks_replace_detection(tiny_video_model):
    masks = torch.zeros(1, 32, 32)
    masks[:, 16:, 16:] = 1
    result = mask_refine(tiny_video_model, None, None, FAST, masks)
    assert result.report["masks"]["source"] == "given" and result.report["guided"]
    assert result.report["films"]["second"]["object_iou"] is None
    assert result.detections == [[], [], [], []]
    assert result.tracks.union()[:, 8:, 8:].min() == 1 and result.tracks.union()[:, :8].max() == 0
    measured = run(tiny_video_model, masks=masks)
    assert torch.equal(measured.second, result.second)
    assert measured.report["films"]["first"]["object_iou"] == 0.0


def test_empty_given_masks_are_no_guidance(tiny_video_model):
    result = run(tiny_video_model, masks=torch.zeros(4, 16, 16))
    assert torch.equal(result.first, result.second)
    assert "masks are empty" in result.report["notes"][0]


def test_regeneration_modes(tiny_video_model):
    films = {}
    for mode in ("same_noise", "fresh", "refine"):
        settings = dataclasses.replace(FAST, regenerate=mode, strength=0.0)
        films[mode] = run(tiny_video_model, settings)
        assert torch.equal(films[mode].first, films["same_noise"].first)
    assert torch.equal(films["same_noise"].second, films["same_noise"].first)
    assert not torch.equal(films["fresh"].second, films["fresh"].first)
    assert not torch.equal(films["refine"].second, films["refine"].first)
    assert any("has its own noise" in note for note in films["fresh"].report["notes"])
    still = run(tiny_video_model, dataclasses.replace(FAST, regenerate="refine", refine_strength=0.0))
    assert torch.equal(still.first, still.second)


def test_background_lock_keeps_latents_outside(tiny_video_model):
    kept = {}
    original = tiny_video_model.decode

    def decode(latents):
        kept.setdefault("latents", []).append(latents)
        return original(latents)

    tiny_video_model.decode = decode
    try:
        result = run(tiny_video_model, dataclasses.replace(FAST, regenerate="fresh", background_lock=True))
    finally:
        del tiny_video_model.decode
    first, second = kept["latents"]
    assert torch.equal(first[..., 7, 7], second[..., 7, 7])
    assert not torch.equal(first[..., 2, 2], second[..., 2, 2])
    assert result.report["settings"]["background_lock"] is True


def test_progress_reports_stages_and_may_cancel(tiny_video_model):
    calls = []
    run(tiny_video_model, progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[0] == "first film"] == [("first film", step, 3) for step in (1, 2, 3)]
    assert list(dict.fromkeys(call[0] for call in calls)) == ["first film", "tracking", "second film", "measuring"]

    def cancel(stage, done, total):
        if stage == "second film":
            raise KeyboardInterrupt

    before = run(tiny_video_model).second
    with pytest.raises(KeyboardInterrupt):
        run(tiny_video_model, progress=cancel)
    assert torch.equal(run(tiny_video_model).second, before)


def test_stages_release_their_models(tiny_video_model):
    detector = WindowDetector()
    run(tiny_video_model, detector=detector)
    assert detector.released == 2


def test_wrong_input_ends_before_the_first_film(tiny_video_model):
    started = []
    cases = [
        (dataclasses.replace(FAST, phrases=("blue square",)), None, "'blue square' does not occur"),
        (FAST, torch.zeros(3, 16, 16), "3 masks and the video has 4 frames"),
        (dataclasses.replace(FAST, height=17), None, "height is 17, not a multiple of 2 as this model needs; take 16"),
    ]
    for settings, masks, message in cases:
        with pytest.raises(ValueError, match=message):
            run(tiny_video_model, settings, masks=masks, progress=lambda *call: started.append(call))
    with pytest.raises(ValueError, match="neither a detector"):
        mask_refine(tiny_video_model, None, None, FAST)
    assert started == []


def test_one_frame_and_odd_latent_sizes(tiny_video_model):
    result = run(tiny_video_model, dataclasses.replace(FAST, frames=1, height=20, width=28))
    assert result.second.shape == (1, 20, 28, 3)
    assert not torch.equal(result.first, result.second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"phrases": ()}, "at least one object"),
        ({"phrases": ("",)}, "at least one object"),
        ({"phrases": ("ball", "ball")}, "each object once"),
        ({"phrases": "ball"}, "is the string"),
        ({"frames": 0}, "frames is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"cfg": math.nan}, "cfg is nan"),
        ({"mode": "blur"}, "mode is 'blur'"),
        ({"regenerate": "again"}, "regenerate is 'again'"),
        ({"sampler": "magic"}, "sampler is 'magic'"),
        ({"strength": -1.0}, "strength is -1"),
        ({"strength": math.inf}, "strength is inf"),
        ({"refine_strength": 1.5}, "refine_strength is 1.5"),
        ({"end_percent": 2.0}, "end_percent 2"),
        ({"box_threshold": 2.0}, "box_threshold is 2.0"),
        ({"lock_dilate": -1}, "lock_dilate is -1"),
    ],
)
def test_settings_are_checked_when_made(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FAST, **changes)


def test_settings_fit_geometries(tiny_video_model):
    geometry = tiny_video_model.geometry
    assert FAST.film_size(geometry) == (4, 16, 16)
    causal = dataclasses.replace(geometry, temporal_factor=4)
    with pytest.raises(ValueError, match=r"4 \* n \+ 1: take 5"):
        dataclasses.replace(FAST, frames=7).film_size(causal)
    assert dataclasses.replace(FAST, frames=9).film_size(causal)[0] == 9


def test_an_object_lost_and_found_again_is_one_region(tiny_video_model):
    class Splitting(BoxTracker):
        """Gives the object a new number half-way."""

        def track(self, frames, detections, settings=None, progress=None):
            whole = super().track(frames, detections)
            masks = whole.masks.tensor().repeat(2, 1, 1, 1)
            masks[0, 2:], masks[1, :2] = 0, 0
            seen = (masks > 0).flatten(2).any(-1)
            return Tracks(masks, (1, 2), whole.labels * 2, seen.float(), ~seen)

    settings = dataclasses.replace(FAST, mode="separate")
    split = mask_refine(tiny_video_model, WindowDetector(), Splitting(), settings)
    assert split.tracks.ids == (1, 2)
    assert torch.equal(split.second, run(tiny_video_model, settings).second)
