"""Masks of a guide against what is in the film; background; CLIP's judgement."""

import math

import pytest
import torch
from tiny_stable_diffusion import VOCABULARY, write_tokenizer

from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.recipes.mask_metrics.clip import ClipScorer, load_clip
from mask_guided_video.recipes.mask_metrics.recipe import (
    find_objects,
    mean_of,
    measure_background,
    measure_masks,
)
from mask_guided_video.recipes.model_sets import load_finders
from mask_guided_video.toybox import world


def square(frames, size=8, left=0, top=0, side=4, seen=None):
    masks = torch.zeros(frames, size, size)
    for frame in range(frames) if seen is None else seen:
        masks[frame, top : top + side, left : left + side] = 1
    return masks


def tracks(*masks, labels=None):
    return Tracks.from_masks(torch.stack(masks), labels)


def film(frames=2, size=8, value=0.5):
    return Film(torch.full((frames, size, size, 3), value))


class TestMasks:
    def test_by_hand(self):
        """Two columns apart: 8 of 24 pixels shared; middles two pixels apart on a diagonal of 8 times root two."""
        report = measure_masks(film(), tracks(square(2), labels=("ball",)), tracks(square(2, left=2), labels=("ball",)))
        (entry,) = report["objects"]
        assert entry["iou"] == pytest.approx(8 / 24) and entry["iou_per_frame"] == pytest.approx([1 / 3, 1 / 3])
        assert entry["centroid_error_pixels"] == pytest.approx(2)
        assert entry["centroid_error"] == pytest.approx(2 / (8 * math.sqrt(2)))
        assert (entry["frames_wanted"], entry["frames_found"], entry["found_id"]) == (2, 2, 1)
        assert report["iou"] == entry["iou"] and report["others_found"] == 0

    def test_frames_without_the_object(self):
        """Wanted in 0 and 1, found in 1 and 2: overlap 0, 1, 0; frame 3 is empty in both and counts for nothing."""
        wanted, found = square(4, seen=[0, 1]), square(4, seen=[1, 2])
        (entry,) = measure_masks(film(4), tracks(wanted), tracks(found))["objects"]
        assert entry["iou_per_frame"] == [0, 1, 0, None] and entry["iou"] == pytest.approx(1 / 3)
        assert entry["centroid_error"] == 0 and (entry["frames_wanted"], entry["frames_found"]) == (2, 2)

    def test_nothing_found_and_nothing_wanted(self):
        report = measure_masks(film(), tracks(square(2), labels=("ball",)), Tracks.empty(2, 8, 8))
        assert report["iou"] == 0 and report["centroid_error"] is None and report["objects"][0]["found_id"] is None
        report = measure_masks(film(), Tracks.empty(2, 8, 8), tracks(square(2), labels=("ball",)))
        assert report["iou"] is None and report["objects"] == []
        report = measure_masks(film(), tracks(square(2, seen=[])), Tracks.empty(2, 8, 8))
        assert report["iou"] is None

    def test_objects_pair_by_phrase_then_overlap_then_nearness(self):
        wanted = tracks(
            square(2, 16), square(2, 16, left=12), square(2, 16, top=12), labels=("Red Ball", "red ball", "square")
        )
        found = tracks(
            square(2, 16, left=11),
            square(2, 16, top=12),
            square(2, 16, left=5),
            square(2, 16, top=12, left=12),
            square(2, 16, top=10, left=6),
            labels=("red ball", "red ball", "red ball", "square", "star"),
        )
        report = measure_masks(film(2, 16), wanted, found)
        # The first one overlaps none; the ball at left 5 is nearer than the one below it.
        assert [entry["found_id"] for entry in report["objects"]] == [3, 1, 4]
        assert report["others_found"] == 1

    def test_without_labels_any_object_may_be_it(self):
        report = measure_masks(film(), tracks(square(2)), tracks(square(2, left=4), square(2), labels=("a", "b")))
        assert report["objects"][0]["found_id"] == 2 and report["iou"] == 1

    def test_masks_of_another_size_and_one_mask_for_all(self):
        report = measure_masks(film(3, 16), tracks(square(1, 8)), tracks(square(3, 16, side=8)))
        assert report["iou"] == 1

    def test_lengths_that_do_not_fit(self):
        with pytest.raises(ValueError, match="wanted masks for 3 frames and the video has 2"):
            measure_masks(film(), tracks(square(3)), tracks(square(2)))
        with pytest.raises(ValueError, match="found masks for 5 frames and the video has 2"):
            measure_masks(film(), tracks(square(2)), tracks(square(5)))


class TestBackground:
    def test_only_what_lies_outside_counts(self):
        first, second = torch.zeros(2, 16, 16, 3), torch.zeros(2, 16, 16, 3)
        masks = square(2, 16, side=4)
        second[:, :6, :6] = 1
        assert measure_background(Film(first), Film(second), [tracks(masks)]) == 0
        second[0, 15, 15] = 1
        expected = (1 / (256 - 36) + 0) / 2
        assert measure_background(Film(first), Film(second), [tracks(masks)]) == pytest.approx(expected)

    def test_objects_of_both_films_count(self):
        first, second = torch.zeros(1, 16, 16, 3), torch.zeros(1, 16, 16, 3)
        first[:, :4, :4], second[:, 12:, 12:] = 1, 1
        places = [tracks(square(1, 16)), tracks(square(1, 16, left=12, top=12))]
        assert measure_background(Film(first), Film(second), places) == 0
        assert measure_background(Film(first), Film(second), places[:1]) > 0

    def test_nothing_left_outside(self):
        assert measure_background(film(), film(value=0.1), [tracks(square(2, side=8))]) is None
        assert measure_background(film(), film(value=0.1), []) == pytest.approx(0.4)

    @pytest.mark.parametrize(("other", "words"), [((3, 8), "2 frames and the reference 3"), ((2, 9), "8 pixels")])
    def test_films_that_do_not_fit(self, other, words):
        with pytest.raises(ValueError, match=words):
            measure_background(film(), film(*other), [])


class TestFinding:
    class Detector:
        def __init__(self):
            self.asked = []

        def detect(self, frames, phrases, *thresholds, every, progress):
            self.asked.append((tuple(phrases), thresholds[:2], every))
            return [[] for _ in range(len(frames))]

    class Tracker:
        def track(self, frames, detections, settings, progress):
            return Tracks.empty(len(frames), frames.height, frames.width)

    def test_phrases_are_asked_for_once(self):
        detector = self.Detector()
        found = find_objects(film(), ["ball", "square", "ball"], detector, self.Tracker())
        assert found.masks.shape == (0, 2, 8, 8)
        assert detector.asked == [(("ball", "square"), (0.35, 0.25), 1)]

    @pytest.mark.parametrize("phrases", [[], ["ball", " "]])
    def test_without_a_phrase(self, phrases):
        with pytest.raises(ValueError, match="phrase"):
            find_objects(film(), phrases, self.Detector(), self.Tracker())

    def test_bundled_models_find_a_drawn_ball(self):
        """Everything real: a drawn clip, the Toybox detector and segmenter, the world's own masks as the guide."""
        ball = world.SceneObject("red", "ball", "right", 12.0, (18.0, 30.0), 26.0)
        clip = world.render(world.Scene("grass", (ball,)))
        pictures = Film(torch.from_numpy(clip.frames))
        wanted = Tracks.from_masks(torch.from_numpy(clip.masks).float(), ("red ball",))
        found = find_objects(pictures, wanted.labels, *load_finders())
        report = measure_masks(pictures, wanted, found)
        assert report["iou"] > 0.9 and report["objects"][0]["centroid_error_pixels"] < 1
        standing = wanted.with_masks(wanted.object_masks()[:, :1].expand(-1, 8, -1, -1))
        assert measure_masks(pictures, standing, found)["iou"] < 0.5


def test_means_leave_out_what_was_not_measured():
    assert mean_of([1.0, None, 2.0]) == 1.5 and mean_of([None]) is None and mean_of([]) is None


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = write_tokenizer(tmp_path_factory.mktemp("clip") / "tiny-clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": VOCABULARY, "projection_dim": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


class TestClip:
    def film(self, frames=3):
        return Film(torch.rand(frames, 24, 40, 3, generator=torch.Generator().manual_seed(1)))

    def test_dense_formula(self, clip_folder):
        """Against cosines written out, from the model's own features before they are normalised."""
        scorer = load_clip(clip_folder)
        clip = self.film(18)
        done = []
        scores = scorer.score(clip, "red ball on red", lambda *counts: done.append(counts))
        assert done == [(16, 18), (18, 18)]
        pictures = scorer.processor([clip.picture(frame) for frame in range(18)], return_tensors="pt")["pixel_values"]
        tokens = scorer.tokenizer(["red ball on red"], return_tensors="pt")
        with torch.no_grad():
            seen = scorer.model.visual_projection(scorer.model.vision_model(pictures).pooler_output)
            read = scorer.model.text_projection(scorer.model.text_model(**tokens).pooler_output)
            scale = scorer.model.logit_scale.exp().item()
        cosine = torch.nn.functional.cosine_similarity
        alignment = sum(cosine(picture, read[0], dim=0).item() for picture in seen) / 18
        pairs = [cosine(seen[a], seen[b], dim=0).item() for a in range(18) for b in range(a + 1, 18)]
        assert scores["text_alignment"] == pytest.approx(scale * alignment, abs=1e-3)
        assert scores["frame_consistency"] == pytest.approx(scale * sum(pairs) / len(pairs), abs=1e-3)

    def test_a_still_film_is_fully_consistent(self, clip_folder):
        scorer = load_clip(clip_folder)
        still = Film(self.film(1).frames.expand(4, -1, -1, -1))
        scale = scorer.model.logit_scale.exp().item()
        assert scorer.score(still, "")["frame_consistency"] == pytest.approx(scale, rel=1e-5)

    def test_what_cannot_be_measured_is_none(self, clip_folder):
        scores = load_clip(clip_folder).score(self.film(1), " ")
        assert scores == {"text_alignment": None, "frame_consistency": None}

    def test_long_prompts_are_cut(self, clip_folder):
        assert load_clip(clip_folder).score(self.film(2), "red ball " * 200)["text_alignment"] is not None

    def test_bad_folders_are_named(self, clip_folder, tmp_path):
        with pytest.raises(ValueError, match="not a folder of a CLIP model"):
            load_clip(tmp_path / "missing")
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match="kind 'bert'"):
            load_clip(tmp_path)
        (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
        with pytest.raises(ValueError, match="no CLIP model can be loaded"):
            load_clip(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match="no CLIP model can be loaded"):
            load_clip(tmp_path)

    def test_it_is_a_scorer(self, clip_folder):
        assert isinstance(load_clip(clip_folder), ClipScorer)

    def test_broken_weights_are_an_error(self, clip_folder):
        scorer = load_clip(clip_folder)
        with torch.no_grad():
            scorer.model.visual_projection.weight.fill_(float("nan"))
        with pytest.raises(RuntimeError, match="the CLIP model answers with NaN"):
            scorer.score(self.film(), "red ball")
