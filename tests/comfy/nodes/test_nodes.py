"""Nodes called directly: what they return, and what they say about bad input."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.perception.tracks import Tracks

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


def square(frames=4, size=32, left=4):
    mask = torch.zeros(frames, size, size)
    mask[:, 8:24, left : left + 12] = 1.0
    return mask


def two_tracks(labels=("red ball", "blue square")):
    return Tracks.from_masks(torch.stack([square(left=2), square(left=18)]), labels)


def bias(**values):
    from mask_guided_video.nodes.guidance import MaskToAttentionBias

    settings = {
        "phrases": "",
        "mode": "focus_fg",
        "strength": 1.0,
        "start_percent": 0.0,
        "end_percent": 0.52,
        "blocks": "all",
        "rows": "both",
        "hard": False,
    }
    return MaskToAttentionBias.execute(**{**settings, **values}).args


class TestVideoNoise:
    def make(self, vae=None, **values):
        from mask_guided_video.nodes.video import VideoNoise

        settings = {
            "seed": 1,
            "frames": 8,
            "width": 64,
            "height": 64,
            "mode": "plain",
            "window": 16,
            "stride": 4,
            "shared": 0.2,
            "batch_size": 1,
        }
        return VideoNoise.execute(**{**settings, **values}, vae=vae).args

    def test_plain_is_what_core_draws(self):
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        noise, latent = self.make()
        assert latent["samples"].shape == (1, 4, 8, 8, 8)
        assert torch.equal(noise.generate_noise(latent), Noise_RandomNoise(1).generate_noise(latent))

    def test_batch_index_picks_films(self):
        noise, latent = self.make(batch_size=3)
        whole = noise.generate_noise(latent)
        picked = noise.generate_noise({"samples": latent["samples"][:1], "batch_index": [2]})
        assert torch.equal(picked, whole[2:])

    @pytest.mark.parametrize("mode", ["freenoise", "specmix", "shared"])
    def test_long_and_short_clips(self, mode):
        for frames in (1, 18, 33):
            noise, latent = self.make(mode=mode, frames=frames)
            assert noise.generate_noise(latent).shape == latent["samples"].shape

    def test_sizes_that_no_vae_makes_are_named(self):
        with pytest.raises(ValueError, match="width is 70, not a multiple of 8; use 64 or 72"):
            self.make(width=70)
        with pytest.raises(ValueError, match="stride 8 is larger than window 4"):
            self.make(mode="freenoise", window=4, stride=8)


class TestMaskToAttentionBias:
    def test_one_region_per_label(self):
        guide, report = bias(tracks=two_tracks())
        assert guide.masks.shape == (2, 4, 32, 32) and guide.phrases == ("red ball", "blue square")
        assert "red ball: in 4 of 4 frames" in report

    def test_same_labels_become_one_region(self):
        guide, _ = bias(tracks=two_tracks(("red ball", "red ball")))
        assert guide.phrases == ("red ball",)
        assert torch.equal(guide.masks[0], torch.maximum(square(left=2), square(left=18)))

    def test_phrases_choose_and_rename(self):
        assert bias(tracks=two_tracks(), phrases="Blue square")[0].phrases == ("Blue square",)
        assert bias(tracks=two_tracks(("", "")), phrases="a cat, a dog")[0].phrases == ("a cat", "a dog")
        with pytest.raises(ValueError, match="'cat' names no tracked object"):
            bias(tracks=Tracks.from_masks(torch.stack([square()] * 3), ("a", "b", "c")), phrases="a, cat")

    @pytest.mark.parametrize(
        ("phrases", "lefts"),
        [
            ("blue square, red ball", [18, 2]),
            ("blue square, ball", [18, 2]),
            ("(Red  Ball:1.2)\nsquare", [2, 18]),
        ],
    )
    def test_a_label_stays_with_its_object(self, phrases, lefts):
        guide, _ = bias(tracks=two_tracks(), phrases=phrases, mode="cross_text")
        assert [int(mask[0].nonzero()[:, 1].min()) for mask in guide.masks] == lefts

    @pytest.mark.parametrize("phrases", ["square, ball", "ball"])
    def test_words_of_another_object_are_refused(self, phrases):
        with pytest.raises(ValueError, match="names no tracked object .labels: red ball, blue square"):
            bias(tracks=two_tracks(), phrases=phrases)

    def test_the_report_says_who_got_a_phrase_and_who_none(self):
        assert "toys is object 1 red ball, 2 blue square." in bias(tracks=two_tracks(), phrases="toys")[1]
        assert "no phrase names object 1 red ball: not guided." in bias(tracks=two_tracks(), phrases="blue square")[1]
        assert "object" not in bias(tracks=two_tracks(), phrases="red ball, blue square")[1]

    @pytest.mark.parametrize("mode", ["focus", "focus_fg", "separate"])
    def test_an_object_without_label_is_guided_too(self, mode):
        guide, report = bias(tracks=two_tracks(("red ball", "")), mode=mode)
        assert guide.phrases == ("red ball", "") and guide.masks[1, :, 8:24, 18:30].min() == 1
        assert ("region 2 has no label, so no words are steered in it." in report) == (mode == "separate")

    def test_text_that_names_nothing_is_refused(self):
        with pytest.raises(ValueError, match="phrases is ',', which names nothing"):
            bias(tracks=two_tracks(), phrases=",")

    def test_strength_is_relative_to_the_mode(self):
        guide, _ = bias(mask=square(), mode="separate", strength=0.5)
        assert guide.own_strength == guide.mode.gap == 4.0 and guide.strength == 1.0
        assert bias(mask=square(), mode="separate", strength=0.0)[0].strength == 0.0

    def test_with_a_share_strength_is_a_factor_on_what_is_found(self):
        guide, _ = bias(mask=square(), mode="separate", strength=0.5, share=0.8)
        assert guide.goal.share == 0.8 and guide.strength == 0.5 and guide.mode.gap == 8.0
        assert bias(mask=square(), share=0.0)[0].goal is None
        assert not bias(mask=square(), strength=0.0, share=0.8)[0].is_active
        with pytest.raises(ValueError, match="share is 1.5; give a value from 0 .no guidance. to 0.99"):
            bias(mask=square(), share=1.5)

    @pytest.mark.parametrize("mask", [torch.zeros(4, 32, 32), torch.zeros(1, 64, 64)])
    def test_empty_mask_goes_on_unguided_and_says_so(self, mask):
        guide, report = bias(mask=mask)
        assert guide.masks.shape[0] == 0 and "unguided" in report

    def test_no_object_goes_on_unguided_and_says_so(self):
        guide, report = bias(tracks=Tracks.empty(4, 32, 32))
        assert guide.masks.shape == (0, 4, 32, 32) and "unguided" in report

    def test_mask_shapes(self):
        for mask in (square()[0], square()[:, None]):
            assert bias(mask=mask)[0].masks.ndim == 4

    def test_bad_input_is_named(self):
        broken = square()
        broken[0, 0, 0] = float("nan")
        for message, values in {
            "the mask holds NaN": {"mask": broken},
            "neither of tracks and mask": {},
            "both of tracks and mask": {"mask": square(), "tracks": two_tracks()},
            "mode is 'magic'": {"mask": square(), "mode": "magic"},
            "strength is -1": {"mask": square(), "strength": -1.0},
            "start_percent 0.8 and end_percent 0.2": {"mask": square(), "start_percent": 0.8, "end_percent": 0.2},
            "blocks is ''": {"mask": square(), "blocks": ""},
            "one region but there are 2 phrases": {"mask": square(), "phrases": "a, b"},
        }.items():
            with pytest.raises(ValueError, match=message):
                bias(**values)


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

    def test_defaults_change_nothing_and_input_stays(self):
        tracks = two_tracks()
        before = tracks.masks.tensor()
        refined, mask = self.refine(tracks=tracks)
        assert torch.equal(refined.masks.tensor(), before)
        self.refine(tracks=tracks, grow=3, feather=2.0)
        assert torch.equal(tracks.masks.tensor(), before)
        assert mask.shape == (4, 32, 32)

    def test_mask_alone_and_growing(self):
        tracks, mask = self.refine(mask=square(), grow=2)
        assert len(tracks.ids) == 1 and mask.sum() > square().sum()

    def test_no_object_stays_none(self):
        tracks, mask = self.refine(tracks=Tracks.empty(4, 32, 32), grow=2)
        assert tracks.ids == () and mask.shape == (4, 32, 32) and not mask.any()

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="median_frames is 4"):
            self.refine(mask=square(), median_frames=4)
        with pytest.raises(ValueError, match="neither of tracks and mask"):
            self.refine()


class TestPreviewGuide:
    def test_every_level_and_frame(self, native):
        from mask_guided_video.nodes.guidance import PreviewGuide

        model = native[0]
        latent = {"samples": torch.zeros(1, 4, 4, 8, 8)}
        guide, _ = bias(tracks=two_tracks())
        pictures = PreviewGuide.execute(guide, model, latent, 64).args[0]
        # Two square levels and the gap between them.
        assert pictures.shape == (4, 64, 64 + 2 + 64, 3)
        assert 0 <= pictures.min() and pictures.max() <= 1
        nothing = PreviewGuide.execute(bias(tracks=Tracks.empty(4, 32, 32))[0], model, latent, 64).args[0]
        assert nothing.shape == pictures.shape and not torch.equal(nothing, pictures)

    def test_shares_of_the_last_run(self, native):
        import comfy.sample

        from mask_guided_video.nodes.guidance import NO_SHARES, PatchAttention, PreviewGuide

        latent = {"samples": torch.zeros(1, 4, 4, 8, 8)}
        guide, report = bias(tracks=two_tracks(), mode="cross_text", end_percent=1.0, share=0.7)
        assert "what each head needs to give 70 % of its attention" in report
        patched = PatchAttention.execute(native[0], guide, "a red ball and a blue square", native[1]).args[0]
        _, empty, told = PreviewGuide.execute(guide, patched, latent, 64).args
        assert told == NO_SHARES and empty.ndim == 4
        prompts = [native[1].encode_from_tokens_scheduled(native[1].tokenize(text)) for text in ("a red ball", "")]
        noise = comfy.sample.prepare_noise(latent["samples"], 0)
        comfy.sample.sample(patched, noise, 1, 3.0, "euler", "normal", *prompts, latent["samples"])
        _, chart, told = PreviewGuide.execute(guide, patched, latent, 64).args
        assert not torch.equal(chart, empty) and 0 <= chart.min() and chart.max() <= 1
        first, second = told.splitlines()
        assert (
            first.startswith("red ball, share of attention on its own words: ")
            and "70 % wanted, 70.0 % reached" in first
        )
        assert second.startswith("blue square, ")
        # Another guide's shares are not shown.
        other, _ = bias(tracks=two_tracks(), mode="cross_text", end_percent=1.0, share=0.5)
        assert PreviewGuide.execute(other, patched, latent, 64).args[2] == NO_SHARES


class TestPatchAttention:
    def patch(self, native, guide, prompt="a red ball and a blue square", clip=True):
        from mask_guided_video.nodes.guidance import PatchAttention

        return PatchAttention.execute(native[0], guide, prompt, native[1] if clip else None).args[0]

    def override(self, model):
        return model.model_options["transformer_options"].get("optimized_attention_override")

    def test_guides_are_bound(self, native):
        for mode in ("focus", "focus_fg", "separate", "cross_text"):
            assert self.override(self.patch(native, bias(tracks=two_tracks(), mode=mode)[0])) is not None
        assert self.override(native[0]) is None

    def test_nothing_to_do_gives_a_plain_clone(self, native):
        for guide in (bias(tracks=two_tracks(), strength=0.0)[0], bias(tracks=Tracks.empty(4, 32, 32))[0]):
            assert self.override(self.patch(native, guide)) is None

    def test_separate_works_without_text(self, native):
        assert self.override(self.patch(native, bias(tracks=two_tracks(), mode="separate")[0], "", clip=False))

    def test_bad_input_is_named(self, native):
        words = bias(tracks=two_tracks(), mode="cross_text")[0]
        with pytest.raises(ValueError, match="'blue square' does not occur in the prompt 'a red ball'"):
            self.patch(native, words, "a red ball")
        with pytest.raises(ValueError, match="prompt is empty"):
            self.patch(native, words, " ")
        with pytest.raises(ValueError, match="clip is not connected"):
            self.patch(native, words, clip=False)
        with pytest.raises(ValueError, match="'dwon.1', which fits no block of this model .down.0.0, "):
            self.patch(native, bias(tracks=two_tracks(), blocks="mid, dwon.1")[0])
        with pytest.raises(ValueError, match="cross_text has no phrases"):
            self.patch(native, bias(mask=square(), mode="cross_text")[0])


class TestRegenerate:
    def run(self, native, latent, noise, **values):
        from mask_guided_video.nodes.regeneration import Regenerate

        model, clip, _ = native
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("a red ball"))
        settings = {
            "mode": "same_noise",
            "seed": 0,
            "steps": 3,
            "cfg": 4.0,
            "sampler_name": "ddim",
            "scheduler": "ddim_uniform",
            "strength": 0.6,
            "background_lock": False,
            "lock_grow": 0,
            "lock_blur": 0,
        }
        return Regenerate.execute(model, positive, positive, noise, latent, **{**settings, **values}).args[0]

    @pytest.fixture
    def first(self, native):
        from mask_guided_video.nodes.video import SeededVideoNoise

        noise = SeededVideoNoise(3, "plain", 16, 4, 0.0)
        empty = {"samples": torch.zeros(1, 4, 4, 8, 8), "extra": "kept"}
        return self.run(native, empty, noise), noise

    def test_same_noise_and_no_guidance_is_the_first_film(self, native, first):
        film, noise = first
        before = film["samples"].clone()
        again = self.run(native, film, noise)
        assert torch.equal(again["samples"], before) and again["extra"] == "kept"
        assert torch.equal(film["samples"], before)

    def test_modes(self, native, first):
        film, noise = first
        assert not torch.equal(self.run(native, film, noise, mode="fresh")["samples"], film["samples"])
        refined = self.run(native, film, noise, mode="refine", strength=0.5)["samples"]
        assert not torch.equal(refined, film["samples"])
        kept = self.run(native, film, noise, mode="refine", strength=0.0)["samples"]
        torch.testing.assert_close(kept, film["samples"])

    def test_lock_keeps_the_background(self, native, first):
        film, noise = first
        locked = self.run(native, film, noise, mode="fresh", seed=9, background_lock=True, mask=square())
        assert "noise_mask" not in locked
        outside = torch.nn.functional.adaptive_max_pool2d(square()[:, None], (8, 8))[:, 0] == 0
        difference = (locked["samples"] - film["samples"]).abs()[0].amax(0)
        assert difference[outside].max() < 1e-4 < difference[~outside].max()

    def test_bad_input_is_named(self, native, first):
        film, noise = first
        broken = {"samples": film["samples"] * float("nan")}
        for message, latent, values in (
            ("mode is 'again'", film, {"mode": "again"}),
            ("no mask is connected", film, {"background_lock": True}),
            ("the mask is empty", film, {"background_lock": True, "mask": torch.zeros(4, 32, 32)}),
            ("would be distorted", film, {"background_lock": True, "mask": torch.ones(4, 32, 64)}),
            ("3 mask frames do not fit a clip of 4 frames", film, {"background_lock": True, "mask": square(3)}),
            ("latent holds NaN", broken, {}),
            ("connect video latents", {"samples": torch.zeros(1, 4, 8, 8)}, {}),
        ):
            with pytest.raises(ValueError, match=message):
                self.run(native, latent, noise, **values)


@pytest.fixture(scope="module")
def clip(root):
    """A rendered film of a red ball on grass, and the truth about it."""
    from mask_guided_video.toybox import world

    if not all((root / "toybox" / name / "model.safetensors").is_file() for name in ("detector", "segmenter")):
        pytest.skip("this checkout has no Toybox weights")
    item = world.SceneObject("red", "ball", "right", 12.0, (20.0, 32.0), 24.0)
    return world.render(world.Scene("grass", (item,)))


class TestPerception:
    """Detection and tracking with the bundled models on a rendered film."""

    @pytest.fixture
    def frames(self, clip):
        return torch.from_numpy(clip.frames)

    def detect(self, frames, **values):
        from mask_guided_video.nodes.detection import DetectObjects, LoadGroundingDINO

        settings = {
            "phrases": "red ball",
            "box_threshold": 0.35,
            "text_threshold": 0.25,
            "nms_threshold": 0.7,
            "max_objects": 1,
        }
        model = LoadGroundingDINO.execute("Toybox").args[0]
        return DetectObjects.execute(model, frames, **{**settings, **values}).args

    def track(self, frames, **values):
        from mask_guided_video.nodes.segmentation_models import LoadSAM
        from mask_guided_video.nodes.tracking import TrackMasks

        settings = {
            "points": "",
            "prompt_frame": 0,
            "max_gap": 8,
            "extend": 2,
            "minimum_seen": 2,
            "max_objects": 0,
            "soft": False,
        }
        model = LoadSAM.execute("Toybox").args[0]
        return TrackMasks.execute(model, frames, **{**settings, **values}).args

    def quality(self, mask, clip):
        found, truth = mask > 0.5, torch.from_numpy(clip.masks[0])
        return ((found & truth).sum() / (found | truth).sum()).item()

    def test_from_words_to_masks(self, frames, clip):
        boxes, preview, report = self.detect(frames)
        assert len(boxes) == len(preview) == 8 and "found in" in report
        assert all(len(found) <= 1 for found in boxes)
        tracks, mask, picture, summary = self.track(frames, boxes=boxes)
        assert mask.shape == (8, 64, 64) and len(picture) == 8 and tracks.labels == ("red ball",)
        assert self.quality(mask, clip) > 0.7 and "red ball" in summary

    def test_points_on_one_frame_are_followed(self, frames, clip):
        tracks, mask, _, _ = self.track(frames, points='[{"x": 20, "y": 32}]')
        assert len(tracks.ids) == 1 and mask.shape == (8, 64, 64)
        assert mask[0].sum() > 0

    def test_rough_masks(self, frames, clip):
        rough = torch.from_numpy(clip.masks[0]).float()
        assert self.quality(self.track(frames, mask=rough)[1], clip) > 0.7
        assert self.track(frames, mask=rough[:1])[1][0].sum() > 0

    def test_nothing_found_goes_on(self, frames):
        boxes, preview, report = self.detect(frames, box_threshold=1.0)
        assert boxes == [[]] * 8 and "not found in any of 8 frames" in report and len(preview) == 8
        tracks, mask, picture, summary = self.track(frames, boxes=boxes)
        assert tracks.ids == () and not mask.any() and len(mask) == len(picture) == 8
        assert "no object" in summary

    def test_one_frame_and_odd_sizes(self, frames):
        odd = frames[:1, :61, :47]
        boxes, _, _ = self.detect(odd)
        assert self.track(odd, boxes=boxes)[1].shape == (1, 61, 47)

    def test_bad_input_is_named(self, frames):
        with pytest.raises(ValueError, match="0 frames"):
            self.detect(frames[:0])
        with pytest.raises(ValueError, match="phrases is ' , '"):
            self.detect(frames, phrases=" , ")
        for message, values in {
            "there are no boxes, mask, points, prompts or phrases": {},
            "prompt_frame is 8": {"points": "[]", "prompt_frame": 8},
            "bounding boxes for 3 frames and the clip has 8": {"boxes": [[]] * 3},
            "the mask is empty": {"mask": torch.zeros(8, 64, 64)},
            "there are 5 masks for 8 frames": {"mask": torch.ones(5, 64, 64)},
        }.items():
            with pytest.raises(ValueError, match=message):
                self.track(frames, **values)


class TestInputs:
    def test_frames(self):
        from mask_guided_video.nodes.support.inputs import frames_of

        assert frames_of(torch.rand(2, 8, 8, 4)).shape == (2, 8, 8, 3)
        with pytest.raises(ValueError, match="0 frames; at least 1"):
            frames_of(torch.rand(0, 8, 8, 3))
        with pytest.raises(ValueError, match="NaN"):
            frames_of(torch.full((1, 2, 2, 3), float("nan")))

    def test_phrases(self):
        from mask_guided_video.nodes.support.inputs import phrase_list

        assert phrase_list("red ball, blue  square.\nred ball;") == ["red ball", "blue square"]
