"""A detector's answer in pixels and scores, on numbers that can be checked by hand."""

import pytest
import torch

from mask_guided_video.perception.detection.grounding import Pictures, grounding_of

PICTURES = Pictures(torch.zeros(1, 3, 8, 8), 320, 512)


def test_boxes_become_corners_in_pixels():
    boxes = torch.tensor([[[0.5, 0.5, 0.25, 0.5], [0.0, 0.0, 0.5, 0.5]]])
    found = grounding_of(torch.zeros(1, 2, 4), boxes, [[1]], PICTURES)
    assert found.boxes.tolist() == [[[192.0, 80.0, 320.0, 240.0], [-128.0, -80.0, 128.0, 80.0]]]


def test_a_phrase_has_the_score_of_its_best_word():
    logits = torch.tensor([[[9.0, -1.0, 2.0, 0.0]]])
    found = grounding_of(logits, torch.zeros(1, 1, 4), [[1, 2], [3]], PICTURES)
    torch.testing.assert_close(found.scores, torch.tensor([[[2.0, 0.0]]]).sigmoid())


def test_broken_answers_are_refused():
    with pytest.raises(RuntimeError, match="NaN"):
        grounding_of(torch.full((1, 1, 4), float("nan")), torch.zeros(1, 1, 4), [[1]], PICTURES)


def test_infinite_answers_are_refused_and_places_without_words_are_not_looked_at():
    logits = torch.tensor([[[1.0, float("inf"), -float("inf"), 0.0]]])
    with pytest.raises(RuntimeError, match="infinite"):
        grounding_of(logits, torch.zeros(1, 1, 4), [[0], [1]], PICTURES)
    assert grounding_of(logits, torch.zeros(1, 1, 4), [[0], [3]], PICTURES).scores.isfinite().all()
