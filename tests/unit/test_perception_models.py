"""Real transformers and segment-anything classes at tiny sizes."""

import warnings

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.detector import (
    GroundingDinoDetector,
    load_grounding_dino,
    match_phrase,
    post_process,
    split_phrases,
)
from mask_guided_video.perception.sam_format import (
    config_of_original,
    detect_layout,
    original_sam,
    sam_model_from_file,
    to_original,
    to_transformers,
)
from mask_guided_video.perception.tracker import SamTracker, TrackSettings, load_sam
from mask_guided_video.training.perception_models import (
    build_detector,
    build_detector_processor,
    build_segmenter,
    build_segmenter_processor,
)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return GroundingDinoDetector(build_detector((8, 16, 24), (1, 1, 1)).eval(), build_detector_processor())


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    model = build_segmenter().eval()
    with torch.no_grad():
        # Untrained logits are almost zero; larger ones make differences visible.
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@pytest.fixture(scope="module")
def tracker(segmenter):
    return SamTracker(segmenter, build_segmenter_processor())


def test_phrases_are_split_and_cleaned():
    assert split_phrases("Red ball,  blue SQUARE.\nred ball;") == ["red ball", "blue square"]
    assert split_phrases(" . ") == []


def test_labels_go_to_the_phrase_with_most_words():
    phrases = ["red ball", "blue square"]
    assert match_phrase("red ball", phrases) == "red ball"
    assert match_phrase("square", phrases) == "blue square"
    assert match_phrase("red blue square", phrases) == "blue square"
    assert match_phrase("", phrases) is None
    assert match_phrase(".", phrases) is None
    assert match_phrase("ba", ["ball"]) == "ball"


def test_every_query_is_kept_at_threshold_zero_and_none_at_one(detector):
    frames = torch.rand(3, 40, 56, 3)
    calls = []
    found = detector.detect(frames, ["red ball", "A ball."], 0.0, 0.0, 1.0, progress=lambda *call: calls.append(call))
    queries = detector.model.config.num_queries
    assert [0 < len(boxes) <= 2 * queries for boxes in found] == [True] * 3
    assert calls[-1] == (6, 6)
    for box in found[0]:
        assert box.label in ("red ball", "a ball") and box.corners[2] <= 56 and box.corners[3] <= 40
    assert [box.score for box in found[0]] == sorted((box.score for box in found[0]), reverse=True)
    assert detector.detect(frames, ["red ball"], 1.0) == [[], [], []]


def test_joint_caption_labels_boxes_with_its_phrases(detector):
    found = detector.detect(torch.rand(1, 64, 64, 3), ["red ball", "blue square"], 0.0, 0.0, 1.0, joint=True)
    assert found[0] and {box.label for box in found[0]} <= {"red ball", "blue square"}


def test_frames_answer_alike_alone_and_in_a_batch(detector):
    frames = torch.rand(5, 64, 64, 3)
    together = detector.detect(frames, ["red ball"], 0.0, 0.0)
    alone = detector.detect(frames[4], ["red ball"], 0.0, 0.0)[0]
    assert [box.x for box in together[4]] == pytest.approx([box.x for box in alone], abs=1e-3)


def test_progress_can_cancel(detector):
    def cancel(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.detect(torch.rand(2, 64, 64, 3), ["red ball"], progress=cancel)


@pytest.mark.parametrize(
    ("phrases", "settings", "message"),
    [
        ([], {}, "no phrases"),
        ([" "], {}, "empty"),
        (["a. b"], {}, "full stop"),
        (["ball"], {"box_threshold": 1.5}, "box_threshold is 1.5"),
        (["red " * 60], {}, "tokens"),
    ],
)
def test_bad_questions_are_refused(detector, phrases, settings, message):
    with pytest.raises(ValueError, match=message):
        detector.detect(torch.rand(1, 64, 64, 3), phrases, **settings)


def test_post_processing_of_both_signatures():
    """Older versions name the threshold differently and have no text labels; only the signature is imitated."""
    answer = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": ["red ball"]}

    class Older:
        def post_process_grounded_object_detection(
            self, outputs, input_ids, box_threshold=0.25, text_threshold=0.25, target_sizes=None
        ):
            assert (box_threshold, text_threshold, target_sizes) == (0.4, 0.3, [(4, 5)])
            return [answer]

    class Newer:
        def post_process_grounded_object_detection(
            self, outputs, input_ids=None, threshold=0.25, text_threshold=0.25, target_sizes=None, text_labels=None
        ):
            assert (threshold, text_threshold, target_sizes) == (0.4, 0.3, [(4, 5)])
            return [{**answer, "text_labels": ["ball"], "labels": [0]}]

    assert post_process(Older(), None, None, 0.4, 0.3, [(4, 5)])[0]["text_labels"] == ["red ball"]
    assert post_process(Newer(), None, None, 0.4, 0.3, [(4, 5)])[0]["text_labels"] == ["ball"]


def test_saved_folder_loads_as_float32_and_broken_ones_say_what_to_do(detector, tmp_path):
    folder = tmp_path / "detector"
    detector.model.half().save_pretrained(folder)
    detector.model.float()
    with pytest.raises(RuntimeError, match="processor files"):
        load_grounding_dino(folder)
    detector.processor.save_pretrained(folder)
    loaded = load_grounding_dino(folder)
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(RuntimeError, match="copy the folder again"):
        load_grounding_dino(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_grounding_dino(folder)
    with pytest.raises(ValueError, match="'grounding-dino'; choose a folder of type 'sam'"):
        load_sam(folder)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_grounding_dino(tmp_path / "nowhere")


def test_missing_tensors_are_noticed(detector, tmp_path):
    from safetensors.torch import load_file, save_file

    detector.model.save_pretrained(tmp_path)
    detector.processor.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in state if "encoder" in name)
    save_file({name: value for name, value in state.items() if name != dropped}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="missing"):
        load_grounding_dino(tmp_path)


def test_renaming_there_and_back_is_lossless(segmenter):
    state = segmenter.state_dict()
    assert detect_layout(state) == "transformers"
    original = to_original(state)
    assert detect_layout(original) == "original"
    back = to_transformers(original)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="no SAM weights"):
        detect_layout({"conv.weight": torch.zeros(1)})


@torch.no_grad()
def test_original_package_gives_the_same_logits(segmenter):
    pytest.importorskip("segment_anything")
    sam = original_sam(segmenter.config).eval()
    sam.load_state_dict(to_original(segmenter.state_dict()))
    pixels, box = torch.randn(1, 3, 64, 64), torch.tensor([[[10.0, 12.0, 40.0, 44.0]]])
    ours = segmenter(pixel_values=pixels, input_boxes=box, multimask_output=True)
    sparse, dense = sam.prompt_encoder(points=None, boxes=box[0], masks=None)
    logits, scores = sam.mask_decoder(
        image_embeddings=sam.image_encoder(pixels),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    assert ours.pred_masks.std() > 0.01
    torch.testing.assert_close(logits, ours.pred_masks[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, ours.iou_scores[0], atol=1e-4, rtol=1e-4)


def test_single_files_of_both_layouts_are_read(segmenter, tmp_path):
    from safetensors.torch import save_file

    original = {name: value.clone() for name, value in to_original(segmenter.state_dict()).items()}
    torch.save(original, tmp_path / "sam.pth")
    save_file(original, tmp_path / "sam.safetensors")
    shape = config_of_original(original, decoder_heads=4)
    assert shape.vision_config.global_attn_indexes == segmenter.config.vision_config.global_attn_indexes
    for name in ("sam.pth", "sam.safetensors"):
        model, processor = sam_model_from_file(tmp_path / name, decoder_heads=4)
        assert all(torch.equal(value, segmenter.state_dict()[key]) for key, value in model.state_dict().items())
        assert processor.image_processor.size["longest_edge"] == 64
    (tmp_path / "broken.pth").write_bytes((tmp_path / "sam.pth").read_bytes()[:3000])
    with pytest.raises(RuntimeError, match="broken or cut short"):
        load_sam(tmp_path / "broken.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no SAM weights"):
        load_sam(tmp_path / "other.pth")


def test_masks_come_for_every_frame_also_without_boxes(tracker):
    frames = torch.rand(5, 33, 47, 3)
    tracks = tracker.track(frames, [[] for _ in range(5)])
    assert tracks.masks.shape == (0, 5, 33, 47) and tracks.union().shape == (5, 33, 47)
    single = tracker.track(frames[:1], [[Box(5, 5, 20, 20, "ball", 0.9)]])
    assert single.masks.shape == (1, 1, 33, 47) and single.labels == ("ball",)


def test_misses_are_reported_and_progress_reaches_the_end(tracker):
    frames = torch.rand(6, 64, 64, 3)
    box = Box(10, 10, 30, 30, "ball", 0.9)
    calls = []
    tracks = tracker.track(
        frames, [[box], [box], [], [box], [], []], TrackSettings(extend=1), lambda *call: calls.append(call)
    )
    assert tracks.ids == (1,)
    assert tracks.misses.tolist() == [[False, False, True, False, True, True]]
    assert tracks.scores[0, 2] == 0.0 and not tracks.masks[0, 5].any()
    assert calls[-1][0] == calls[-1][1]


def test_wrong_number_of_detections_is_refused(tracker):
    with pytest.raises(ValueError, match="detections for 1 frames and 2 frames"):
        tracker.track(torch.rand(2, 64, 64, 3), [[]])
    with pytest.raises(ValueError, match="max_gap is -1"):
        TrackSettings(max_gap=-1)
    with pytest.raises(ValueError, match="0 points"):
        tracker.mask_at_points(torch.rand(64, 64, 3), [], [])


def test_points_and_boxes_give_masks_of_frame_size(tracker):
    frame = torch.rand(50, 70, 3)
    assert tracker.mask_at_points(frame, [(20.0, 20.0), (60.0, 10.0)], [True, False]).shape == (50, 70)
    assert tracker.masks_at_boxes(frame, [Box(1, 2, 30, 30), Box(40, 20, 10, 10)], soft=True).shape == (2, 50, 70)
    assert tracker.masks_at_boxes(frame, []).shape == (0, 50, 70)


def test_no_warning_of_deprecation_reaches_the_user(detector):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        detector.detect(torch.rand(1, 64, 64, 3), ["red ball"])
