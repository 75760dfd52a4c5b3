"""What the detector does around any model: phrases, captions, thresholds, overlaps, batches, frames to look at."""

import pytest
import torch
from torch import nn

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.detection import detector as module
from mask_guided_video.perception.detection.detector import ObjectDetector, best_boxes, looked_at
from mask_guided_video.perception.detection.grounding import (
    Grounding,
    Pictures,
    computed_once,
    grounding_of,
)
from mask_guided_video.perception.detection.phrases import check_phrases, share_out


class Known:
    """A grounding model that knows where things are: per phrase corners and score; it counts what it is asked."""

    token_limit = 12

    def __init__(self, things, memory=None):
        self.model = self.picture_encoder = nn.Linear(1, 1)
        self.things = things
        self.memory = memory
        self.passes = []

    def count_tokens(self, phrase):
        return len(phrase.split()) + 1

    def prepare(self, frames):
        return Pictures(frames.movedim(-1, 1), *frames.shape[1:3])

    def ground(self, pictures, phrases):
        count = len(pictures.pixels)
        if self.memory is not None and count > self.memory:
            raise torch.cuda.OutOfMemoryError("out of memory")
        self.passes.append((count, tuple(phrases)))
        corners = [corners for corners, _ in self.things.values()]
        scores = torch.zeros(len(self.things), len(phrases))
        for query, (name, (_, score)) in enumerate(self.things.items()):
            if name in phrases:
                scores[query, phrases.index(name)] = score
        boxes = torch.tensor(corners, dtype=torch.float32)
        return Grounding(boxes.expand(count, -1, -1), scores.expand(count, -1, -1))


DOG = ((10.0, 10.0, 30.0, 30.0), 0.9)
PET = ((10.0, 10.0, 30.0, 31.0), 0.8)
CAR = ((-5.0, 40.0, 20.0, 70.0), 0.5)
THINGS = {"dog": DOG, "pet": PET, "car": CAR}
FRAMES = torch.zeros(3, 64, 64, 3)


def names(boxes):
    return [box.label for box in boxes]


@pytest.mark.parametrize("joint", [False, True])
def test_the_same_thing_under_two_phrases_is_found_once_unless_asked_otherwise(joint):
    detector = ObjectDetector(Known(THINGS))
    found = detector.detect(FRAMES, ["car", "pet", "dog"], joint=joint)
    assert [names(boxes) for boxes in found] == [["dog", "car"]] * 3
    assert found[0][1] == Box(0, 40, 20, 24, "car", 0.5)
    found = detector.detect(FRAMES, ["car", "pet", "dog"], joint=joint, per_class=True)
    assert names(found[0]) == ["dog", "pet", "car"]
    assert names(detector.detect(FRAMES, ["car", "pet", "dog"], nms_threshold=1.0)[0]) == ["dog", "pet", "car"]


def test_both_thresholds_are_asked_of_the_best_word():
    detector = ObjectDetector(Known(THINGS))
    assert names(detector.detect(FRAMES, ["dog", "car"], 0.6)[0]) == ["dog"]
    assert names(detector.detect(FRAMES, ["dog", "car"], 0.1, 0.6)[0]) == ["dog"]
    assert detector.detect(FRAMES, ["dog"], 1.0) == [[], [], []]


def test_the_best_of_each_phrase_and_of_all_are_kept():
    boxes = [Box(0, 0, 1, 1, name) for name in "aabcb"]
    assert names(best_boxes(boxes, 1, None)) == ["a", "b", "c"]
    assert names(best_boxes(boxes, 1, 2)) == ["a", "b"]
    assert best_boxes(boxes, None, None) == boxes
    things = {"dog": DOG, "pet": CAR}
    assert names(ObjectDetector(Known(things)).detect(FRAMES, ["dog", "pet"], max_boxes=1)[0]) == ["dog"]


def test_phrases_share_captions_only_when_asked_to_and_as_many_as_fit():
    phrases = [f"thing {number}" for number in range(200)]
    model = Known({"thing 7": DOG, "thing 199": CAR})
    assert names(ObjectDetector(model).detect(FRAMES[:1], phrases)[0]) == ["thing 7", "thing 199"]
    assert len(model.passes) == 200
    model.passes.clear()
    assert names(ObjectDetector(model).detect(FRAMES[:1], phrases, joint=True)[0]) == ["thing 7", "thing 199"]
    assert [len(phrases) for _, phrases in model.passes] == [3] * 66 + [2]
    assert share_out(["a", "b", "c"], [4, 6, 1], 12, True) == [["a", "b"], ["c"]]
    assert share_out(["a", "b"], [1, 1], 12, False) == [["a"], ["b"]]
    with pytest.raises(ValueError, match="makes 11 tokens and this detector reads 10"):
        share_out(["a", "b"], [1, 11], 12, True)


def test_frames_in_between_are_skipped_but_never_the_first_and_last():
    assert looked_at(1, 5) == [0]
    assert looked_at(9, 4) == [0, 4, 8]
    assert looked_at(10, 4) == [0, 4, 8, 9]
    assert looked_at(3, 1) == [0, 1, 2]
    with pytest.raises(ValueError, match="every is 0"):
        looked_at(3, 0)
    found = ObjectDetector(Known(THINGS)).detect(torch.zeros(8, 64, 64, 3), ["dog"], every=5)
    assert [len(boxes) for boxes in found] == [1, 0, 0, 0, 0, 1, 0, 1]


def test_progress_comes_after_each_pass_and_can_cancel():
    calls = []
    detector = ObjectDetector(Known(THINGS), batch_size=2)
    detector.detect(FRAMES, ["dog", "car"], progress=lambda *call: calls.append(call))
    assert calls == [(2, 6), (4, 6), (5, 6), (6, 6)]

    def cancel(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        detector.detect(FRAMES, ["dog"], progress=cancel)


def test_running_out_of_memory_halves_the_batch_once():
    model = Known(THINGS, memory=3)
    found = ObjectDetector(model, batch_size=6).detect(torch.zeros(7, 64, 64, 3), ["dog"])
    assert [count for count, _ in model.passes] == [3, 3, 1] and [len(boxes) for boxes in found] == [1] * 7
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ObjectDetector(Known(THINGS, memory=2), batch_size=6).detect(torch.zeros(7, 64, 64, 3), ["dog"])
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ObjectDetector(Known(THINGS, memory=0), batch_size=1).detect(FRAMES, ["dog"])


def test_batches_fit_the_memory(monkeypatch):
    model = Known(THINGS)
    monkeypatch.setattr(module, "BUDGET", module.BYTES_PER_PIXEL * 64 * 64 * 2)
    ObjectDetector(model).detect(torch.zeros(5, 64, 64, 3), ["dog"])
    assert [count for count, _ in model.passes] == [2, 2, 1]
    monkeypatch.setattr(module, "BUDGET", 1)
    model.passes.clear()
    ObjectDetector(model).detect(FRAMES, ["dog"])
    assert [count for count, _ in model.passes] == [1, 1, 1]


def test_a_long_film_is_read_a_batch_at_a_time(monkeypatch):
    sizes = []
    read = module.Film.read
    monkeypatch.setattr(module.Film, "read", lambda film, rows: sizes.append(len(rows)) or read(film, rows))
    film = torch.zeros(1, 8, 8, 3, dtype=torch.uint8).expand(1000, -1, -1, -1)
    assert len(ObjectDetector(Known(THINGS)).detect(film, ["cat"])) == 1000
    assert max(sizes) <= module.LARGEST_BATCH and sum(sizes) <= 1001


def test_a_frame_that_is_not_finite_is_named():
    frames = FRAMES.clone()
    frames[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="frame 2 holds NaN"):
        ObjectDetector(Known(THINGS)).detect(frames, ["dog"])


def test_an_answer_of_nan_is_no_empty_answer():
    pictures = Pictures(torch.zeros(1, 3, 8, 8), 8, 8)
    with pytest.raises(RuntimeError, match="float32"):
        grounding_of(torch.full((1, 2, 4), torch.nan), torch.rand(1, 2, 4), [[1]], pictures)
    seen = grounding_of(
        torch.tensor([[[-torch.inf, 0.0, 2.0, -torch.inf]]]), torch.full((1, 1, 4), 0.5), [[1, 2]], pictures
    )
    assert seen.scores.item() == pytest.approx(0.8808, abs=1e-4)
    assert seen.boxes.tolist() == [[[2.0, 2.0, 6.0, 6.0]]]


@pytest.mark.parametrize(
    ("phrases", "settings", "message"),
    [
        ([], {}, "no phrases"),
        (" . ", {}, "no phrases"),
        ([" "], {}, "empty"),
        (["a. b"], {}, "full stop"),
        ([3], {}, "is a int"),
        (["ball"], {"box_threshold": 1.5}, r"box_threshold is 1\.5"),
        (["ball"], {"nms_threshold": -1}, "nms_threshold is -1"),
        (["ball"], {"max_per_phrase": 0}, "max_per_phrase is 0"),
        (["ball"], {"max_boxes": -2}, "max_boxes is -2"),
        (["ball"], {"every": 0}, "every is 0"),
        (["red " * 60], {}, "tokens"),
    ],
)
def test_bad_questions_are_refused(phrases, settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectDetector(Known(THINGS)).detect(FRAMES, phrases, **settings)


def test_a_batch_of_no_frames_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        ObjectDetector(Known(THINGS), batch_size=0)


def test_phrases_are_split_and_cleaned():
    assert check_phrases("Red ball,  blue SQUARE.\nred ball;") == ["red ball", "blue square"]
    assert check_phrases("Dog. cat, Dog") == ["dog", "cat"]
    assert check_phrases(["A  dog.", "a dog", "Cat"]) == ["a dog", "cat"]


def test_a_picture_encoder_runs_once_and_its_lists_are_not_shared():
    class Encoder(nn.Module):
        calls = 0

        def forward(self, pixels):
            self.calls += 1
            return [pixels + self.calls], (self.calls,)

    encoder = Encoder()
    with pytest.raises(InterruptedError), computed_once(encoder):
        first, _ = encoder(torch.zeros(1))
        first.append(None)
        again, number = encoder(torch.ones(1))
        assert len(again) == 1 and again[0].item() == 1.0 and number == (1,)
        raise InterruptedError
    assert encoder(torch.zeros(1))[1] == (2,) and "forward" not in vars(encoder)
    encoder.forward = kept = lambda pixels: pixels
    with computed_once(encoder):
        assert encoder.forward is not kept
    assert encoder.forward is kept
