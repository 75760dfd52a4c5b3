"""Real transformers and segment-anything classes at tiny sizes."""

import pytest
import torch

from mask_guided_video.perception.boxes import Box
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
    build_segmenter,
    build_segmenter_processor,
)


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
