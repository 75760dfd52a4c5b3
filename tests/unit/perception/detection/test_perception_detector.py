"""Real transformers GroundingDINO and MM-GroundingDINO classes at tiny sizes, from folders."""

import json
import warnings

import pytest
import torch

from mask_guided_video.perception.detection.detector import ObjectDetector, no_strips
from mask_guided_video.perception.detection.grounding_dino import (
    TransformersGroundingDino,
    load_folder,
    safe_dtype,
)
from mask_guided_video.perception.open_models import open_detector
from mask_guided_video.training.perception.models import build_detector_processor

KINDS = ("grounding-dino", "mm-grounding-dino")


def build(kind):
    """A few thousand parameters with a Swin backbone, as the published models have."""
    import transformers

    prefix = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}[kind]
    if not hasattr(transformers, f"{prefix}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {prefix}")
    backbone = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1],
        num_heads=[1, 2, 2],
        window_size=4,
        out_indices=[2, 3],
    )
    text = transformers.BertConfig(
        vocab_size=1088, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config = getattr(transformers, f"{prefix}Config")(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        num_queries=12,
        num_feature_levels=2,
        max_text_len=32,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp(kind)
    build(kind).half().save_pretrained(path)
    build_detector_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def detector(folder):
    return open_detector(folder)


def test_a_folder_of_half_precision_loads_as_float32(detector):
    assert {value.dtype for value in detector.model.parameters()} == {torch.float32}
    assert not detector.model.training and detector.grounding.token_limit == 32


def test_every_query_is_kept_at_threshold_zero_and_none_at_one(detector):
    frames = torch.rand(3, 41, 57, 4)
    calls = []
    found = detector.detect(frames, ["red ball", "A ball."], 0.0, 0.0, 1.0, progress=lambda *call: calls.append(call))
    assert [0 < len(boxes) <= 24 for boxes in found] == [True] * 3
    assert calls[-1] == (6, 6)
    assert {box.label for box in found[0]} == {"red ball", "a ball"}
    assert all(box.corners[2] <= 57.001 and box.corners[3] <= 41.001 for box in found[0])
    assert [box.score for box in found[0]] == sorted((box.score for box in found[0]), reverse=True)
    assert detector.detect(frames, ["red ball"], 1.0) == [[], [], []]


@torch.no_grad()
def test_scores_are_read_where_each_phrase_stands(detector):
    """The reference is the library's own answer for the caption, token by token."""
    grounding = detector.grounding
    frames = torch.rand(2, 64, 64, 3)
    pictures = grounding.prepare(frames)
    images = [(frame * 255).round().to(torch.uint8).numpy() for frame in frames]
    inputs = grounding.processor(images=images, text=["red ball. a blue square."] * 2, return_tensors="pt")
    answer = grounding.model(**inputs)
    seen = grounding.ground(pictures, ["red ball", "a blue square"])
    probabilities = answer.logits.sigmoid()
    # [CLS] red ball . a blue square . [SEP]
    torch.testing.assert_close(seen.scores[..., 0], probabilities[..., 1:3].amax(-1))
    torch.testing.assert_close(seen.scores[..., 1], probabilities[..., 4:7].amax(-1))
    results = grounding.processor.post_process_grounded_object_detection(
        answer, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[(64, 64)] * 2
    )
    torch.testing.assert_close(seen.boxes[1], results[1]["boxes"])


def test_joint_captions_of_many_phrases_are_split_at_the_token_limit(detector):
    words = ["red", "blue", "green", "yellow"]
    phrases = [f"{first} {second} {third}" for first in words for second in words for third in words]
    calls = []
    detector.detect(torch.rand(1, 64, 64, 3), phrases, joint=True, progress=lambda *call: calls.append(call))
    # Four tokens a phrase, 30 in a caption.
    assert calls[-1] == (10, 10)
    with pytest.raises(ValueError, match="makes 41 tokens and this detector reads 30"):
        detector.detect(torch.rand(1, 64, 64, 3), ["red " * 40])
    with pytest.raises(ValueError, match="no word"):
        detector.detect(torch.rand(1, 64, 64, 3), ["?"])


def test_frames_answer_alike_alone_and_in_a_batch(detector):
    frames = torch.rand(5, 64, 64, 3)
    together = detector.detect(frames, ["red ball"], 0.0, 0.0)
    alone = detector.detect(frames[4], ["red ball"], 0.0, 0.0)[0]
    assert [box.x for box in together[4]] == pytest.approx([box.x for box in alone], abs=1e-3)


def test_pictures_are_encoded_once_for_all_phrases(detector):
    frames = torch.rand(2, 64, 64, 3)
    runs = []
    handle = detector.grounding.picture_encoder.conv_encoder.register_forward_hook(lambda *_: runs.append(1))
    phrases = ["red ball", "blue square", "dog"]
    found = detector.detect(frames, phrases, 0.0, 0.0, 1.0)
    handle.remove()
    assert len(runs) == 1
    alone = [box for phrase in phrases for box in detector.detect(frames, [phrase], 0.0, 0.0, 1.0)[1]]
    assert sorted(found[1], key=repr) == sorted(alone, key=repr)


def test_half_precision_is_used_where_it_works(folder):
    import transformers

    assert safe_dtype(torch.bfloat16) == safe_dtype(torch.float32) == torch.float32
    expected = torch.float16 if int(transformers.__version__.split(".")[0]) >= 5 else torch.float32
    assert safe_dtype(torch.float16) == expected
    grounding = load_folder(folder, torch.float16)
    assert next(grounding.model.parameters()).dtype == expected
    # Random weights rank queries by chance, so only that it runs is looked at here.
    found = ObjectDetector(grounding).detect(torch.rand(1, 64, 64, 3), ["red ball"], 0.0, 0.0, 1.0)
    assert 0 < len(found[0]) <= 12


def test_no_warning_reaches_the_user(detector):
    detector.detect(torch.rand(1, 64, 64, 3), ["red ball"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.detect(torch.rand(1, 64, 64, 3), ["red ball"])


def test_broken_folders_say_what_to_do(folder, tmp_path, kind):
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / "detector"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    state = load_file(weights)
    dropped = next(name for name in state if "encoder" in name)
    whole = weights.read_bytes()
    save_file({name: value for name, value in state.items() if name != dropped}, weights, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="missing"):
        open_detector(copy)
    weights.write_bytes(whole[:5000])
    with pytest.raises(RuntimeError, match="copy the folder again"):
        open_detector(copy)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        open_detector(copy)
    weights.write_bytes(whole)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(RuntimeError, match="processor files"):
        open_detector(copy)
    (copy / "config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(ValueError, match="'sam'; choose a folder of type 'grounding-dino' or 'mm-grounding-dino'"):
        open_detector(copy)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        open_detector(tmp_path / "nowhere")


def test_another_tokenizer_is_noticed(detector):
    class Other:
        tokenizer = type("Tokenizer", (), {"convert_tokens_to_ids": staticmethod(lambda token: 5)})

    with pytest.raises(RuntimeError, match="full stop the number 5"):
        TransformersGroundingDino(detector.model, Other)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 4), (1, 64), (3, 64), (4, 1000), (1, 1000), (1000, 8), (3, 5)])
def test_strips_and_pictures_of_a_pixel_are_looked_at(detector, size, caplog):
    found = detector.detect(torch.rand(2, *size, 3), ["red ball"], 0.0, 0.0, 1.0)
    assert len(found) == 2
    assert all(0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0] for x0, y0, x1, y1 in corners(found))
    assert "ambiguous" not in caplog.text


def corners(found):
    return [box.corners for boxes in found for box in boxes]


def test_only_strips_are_padded():
    frames = torch.rand(1, 8, 64, 3)
    assert no_strips(frames) is frames
    padded = no_strips(frames[:, :3])
    assert padded.shape == (1, 8, 64, 3) and torch.equal(padded[:, :3], frames[:, :3])
    assert bool((padded[:, 3:] == 0.5).all()) and no_strips(frames.transpose(1, 2)[:, :, :3]).shape == (1, 64, 8, 3)
