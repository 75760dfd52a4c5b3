import numpy as np
import pytest
import torch

from mask_guided_video.training.evaluate_perception import average_precision
from mask_guided_video.training.perception.calibration import lower_scores
from mask_guided_video.training.perception.data import boxes_of_masks, draw_pictures, spoil
from mask_guided_video.training.perception.detector_loss import Targets, generalized_iou, match
from mask_guided_video.training.perception.models import build_detector, build_detector_processor
from mask_guided_video.training.perception.phrases import Phrase, absent_phrase, caption, caption_phrases
from mask_guided_video.training.train_detector import encode_captions, make_targets


@torch.no_grad()
def test_lowering_scores_moves_every_logit_alike_and_nothing_else():
    torch.manual_seed(0)
    model = build_detector((8, 16, 24), (1, 1, 1))
    norm, enhanced = model.model.decoder.layer_norm, model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
    norm.bias.add_(0.1)
    queries, words = norm(torch.randn(5, 64)), torch.randn(7, 64)
    attention = model.model.decoder.layers[0].encoder_attn_text
    before = enhanced.bias.clone()
    scores, keys, values = queries @ words.T, attention.key(words), attention.value(words)
    lower_scores(model, 0.35)
    moved = words + enhanced.bias - before
    torch.testing.assert_close(queries @ moved.T, scores - 0.35, atol=1e-4, rtol=0)
    torch.testing.assert_close(attention.key(moved), keys, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention.value(moved), values, atol=1e-5, rtol=0)


def test_matching_pairs_each_object_with_another_query():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    wanted = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2]]])
    targets = Targets(wanted, torch.ones(1, 2, 1), torch.tensor([[True, True]]))
    chosen = match(torch.zeros(1, 3, 1), boxes, targets, torch.ones(1, 1, 1, dtype=torch.bool))
    assert sorted(chosen[0].tolist()) == [0, 1]
    assert generalized_iou(wanted[0, 0], wanted[0, 0]).item() == pytest.approx(1.0)


def test_average_precision_by_hand():
    assert average_precision([0.9, 0.8, 0.7], [True, False, True], 2) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision([], [], 3) == 0.0


def test_phrases_fit_what_they_name_and_absent_ones_never_do():
    assert Phrase("red ball", "red", "ball").fits(("red", "ball"))
    assert not Phrase("red ball", "red", "ball").fits(("red", "square"))
    assert Phrase("ball", None, "ball").fits(("blue", "ball")) and not Phrase("sand", nothing=True).fits(
        ("red", "ball")
    )
    generator, words = np.random.default_rng(0), [("red", "ball"), ("blue", "square")]
    assert not any(absent_phrase(generator, words).fits(item) for _ in range(200) for item in words)


def test_captions_are_encoded_as_the_tokenizer_does():
    tokenizer = build_detector_processor().tokenizer
    generator = np.random.default_rng(1)
    for _ in range(20):
        phrases = caption_phrases(generator, [("red", "ball")])
        tokens, _ = encode_captions([phrases], tokenizer.get_vocab())
        assert tokens["input_ids"][0].tolist() == tokenizer(caption(phrases))["input_ids"]


def test_targets_mark_the_words_of_fitting_phrases_only():
    masks = torch.zeros(1, 2, 64, 64, dtype=torch.bool)
    masks[0, 0, 16:32, 0:32] = True
    asked = [[Phrase("a red ball", "red", "ball"), Phrase("blue thing", "blue")]]
    tokens, spans = encode_captions(asked, {"a": 1, "red": 2, "ball": 3, "blue": 4, "thing": 5})
    targets = make_targets(masks, [(("red", "ball"),)], asked, spans, tokens["input_ids"].shape[1])
    assert targets.tokens[0, 0].tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert targets.boxes[0, 0].tolist() == [0.25, 0.375, 0.5, 0.25] and targets.present.tolist() == [[True, False]]


def test_pictures_repeat_with_the_seed_and_stay_in_range_when_spoiled():
    first, second = (draw_pictures(np.random.default_rng(3), 6, "train") for _ in range(2))
    assert torch.equal(first.images, second.images) and first.words == second.words
    images, masks = spoil(first.images.float() / 255, first.masks, torch.Generator().manual_seed(0))
    assert images.shape == (6, 3, 64, 64) and images.min() >= 0 and images.max() <= 1 and masks.dtype == torch.bool
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 2:5, 3:7] = True
    assert boxes_of_masks(mask).tolist() == [[3.0, 2.0, 7.0, 5.0], [0.0, 0.0, 0.0, 0.0]]
