"""The orchestration of tracking: over a propagator that knows the drawn truth, and over a real tiny SAM."""

import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.prompts import ObjectPrompt, Point
from mask_guided_video.perception.propagation import Sighting
from mask_guided_video.perception.segmentation.sam import SamSegmenter
from mask_guided_video.perception.tracking.flow_propagation import FlowModel
from mask_guided_video.perception.tracking.track_settings import TrackSettings
from mask_guided_video.perception.tracking.tracker import ObjectTracker
from mask_guided_video.training.perception.models import build_segmenter, build_segmenter_processor

FRAMES, SIDE = 12, 32
COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]])
LABELS = ("red square", "blue square")


def squares():
    """Truth [2, T, H, W]: a red square that is hidden in frames 5 to 7, a blue one that comes in at frame 3."""
    truth = torch.zeros(2, FRAMES, SIDE, SIDE, dtype=torch.bool)
    for frame in range(FRAMES):
        if frame not in (5, 6, 7):
            truth[0, frame, 2:10, 2 * frame : 2 * frame + 8] = True
        if frame >= 3:
            truth[1, frame, 20:28, 30 - 2 * frame : 38 - 2 * frame] = True
    return truth


@pytest.fixture
def truth():
    return squares()


@pytest.fixture
def frames(truth):
    film = torch.full((FRAMES, SIDE, SIDE, 3), 0.5)
    for number in range(2):
        film[truth[number]] = COLOURS[number]
    return film


def box_in(truth, number, frame, **values):
    rows, columns = truth[number, frame].any(1).nonzero().flatten(), truth[number, frame].any(0).nonzero().flatten()
    values = {"label": LABELS[number], "score": 0.9, **values}
    return Box.from_corners(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1, **values)


class KnowingModel:
    """Follows what it is prompted with by looking it up; ``finds`` says whether it sees by itself what comes back."""

    def __init__(self, truth, corrected_by_boxes=True, finds=True):
        self.truth, self.corrected_by_boxes, self.finds = truth, corrected_by_boxes, finds
        self.model = torch.nn.Identity()
        self.visited, self.prompted = [], []

    def follow(self, film, reverse=False):
        return KnowingPropagator(self, reverse)


class KnowingPropagator:
    def __init__(self, model, reverse):
        self.model, self.reverse, self.objects, self.blind = model, reverse, {}, set()

    def step(self, frame):
        self.model.visited.append((frame, self.reverse))
        return {identity: self.look(identity, number, frame) for identity, number in self.objects.items()}

    def look(self, identity, number, frame):
        mask = self.model.truth[number, frame]
        if not mask.any() and not self.model.finds:
            self.blind.add(identity)
        if identity in self.blind:
            mask = torch.zeros_like(mask)
        return Sighting(mask.to(torch.uint8) * 255, float(mask.any()))

    def prompt(self, frame, prompts):
        found = {}
        for identity, prompt in prompts.items():
            self.model.prompted.append((frame, identity, self.reverse))
            area = torch.zeros(SIDE, SIDE, dtype=torch.bool) if prompt.mask is None else prompt.mask
            if prompt.box is not None:
                x0, y0, x1, y1 = (round(value) for value in prompt.box.corners)
                area[y0:y1, x0:x1] = True
            for point in prompt.points:
                area[int(point.y), int(point.x)] = True
            shares = [(area & mask[frame]).sum() for mask in self.model.truth]
            if max(shares) == 0:
                found[identity] = Sighting(torch.zeros(SIDE, SIDE, dtype=torch.uint8), 0.0)
                continue
            self.objects[identity] = max(range(len(shares)), key=shares.__getitem__)
            self.blind.discard(identity)
            found[identity] = self.look(identity, self.objects[identity], frame)
        return found

    def forget(self, identity):
        self.objects.pop(identity, None)


def same(tracks, place, truth):
    return torch.equal(tracks.masks[place] > 127, truth)


@pytest.mark.parametrize("corrected_by_boxes", [True, False])
@pytest.mark.parametrize("finds", [True, False])
@pytest.mark.parametrize("step", [1, 3])
def test_sparse_and_dense_boxes_give_every_frame_its_mask(truth, frames, corrected_by_boxes, finds, step):
    detections = [
        [box_in(truth, number, frame) for number in range(2) if truth[number, frame].any() and frame % step == 0]
        for frame in range(FRAMES)
    ]
    tracks = ObjectTracker(KnowingModel(truth, corrected_by_boxes, finds)).track(frames, detections)
    assert tracks.ids == (1, 2) and tracks.labels == LABELS
    assert same(tracks, 0, truth[0]) and same(tracks, 1, truth[1])
    assert torch.equal(tracks.misses, ~truth.flatten(2).any(2))
    assert torch.equal(tracks.scores > 0, truth.flatten(2).any(2))


def test_one_box_in_the_middle_goes_both_ways(truth, frames):
    detections = [[] for _ in range(FRAMES)]
    detections[9] = [box_in(truth, 0, 9)]
    whole, forward, backward = (
        ObjectTracker(KnowingModel(truth)).track(frames, detections, TrackSettings(direction=direction))
        for direction in ("both", "forward", "backward")
    )
    assert same(whole, 0, truth[0])
    assert forward.misses[0].tolist() == [True] * 9 + [False] * 3
    assert backward.misses[0].tolist() == [False] * 5 + [True] * 3 + [False] * 2 + [True] * 2


def test_extend_and_max_gap_bound_how_far_an_object_is_followed(truth, frames):
    detections = [[] for _ in range(FRAMES)]
    detections[3] = [box_in(truth, 0, 3)]
    tracks = ObjectTracker(KnowingModel(truth)).track(frames, detections, TrackSettings(extend=1))
    assert tracks.misses[0].tolist() == [True] * 2 + [False] * 3 + [True] * 7
    detections[10] = [box_in(truth, 0, 10)]
    kept, renamed = (
        ObjectTracker(KnowingModel(truth, finds=False)).track(frames, detections, TrackSettings(max_gap=gap))
        for gap in (5, 2)
    )
    assert kept.ids == (1,) and same(kept, 0, truth[0])
    assert renamed.ids == (1, 2) and not renamed.masks[0, 8:].any() and renamed.masks[1, 8:].any()


def test_only_frames_in_which_something_is_followed_are_visited(truth, frames):
    model, detections = KnowingModel(truth), [[] for _ in range(FRAMES)]
    detections[8] = [box_in(truth, 1, 8)]
    calls = []
    ObjectTracker(model).track(frames, detections, TrackSettings(extend=2), lambda *call: calls.append(call))
    assert model.visited == [(9, False), (10, False), (7, True), (6, True)]
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_models_with_memory_are_told_of_boxes_only_where_they_disagree(truth, frames):
    detections = [[box_in(truth, 1, frame)] if frame >= 3 else [] for frame in range(FRAMES)]
    memory, pictures = KnowingModel(truth, corrected_by_boxes=False), KnowingModel(truth)
    ObjectTracker(memory).track(frames, detections, TrackSettings(direction="forward"))
    ObjectTracker(pictures).track(frames, detections, TrackSettings(direction="forward"))
    assert len(memory.prompted) == 1 and len(pictures.prompted) == FRAMES - 3


def test_prompts_name_objects_and_boxes_join_them(truth, frames):
    prompts = [
        ObjectPrompt(4, 7, points=(Point(10.0, 5.0),), label="mine"),
        ObjectPrompt(6, 3, mask=truth[1, 6]),
    ]
    detections = [
        [box_in(truth, number, frame) for number in range(2)] if frame == 8 else [] for frame in range(FRAMES)
    ]
    tracks = ObjectTracker(KnowingModel(truth)).track(frames, detections, prompts=prompts)
    assert sorted(tracks.ids) == [3, 7]
    assert same(tracks, tracks.ids.index(7), truth[0]) and same(tracks, tracks.ids.index(3), truth[1])


def test_an_object_that_was_found_first_takes_the_number_of_its_prompt(truth, frames):
    detections = [[box_in(truth, 0, frame)] if frame in (0, 1, 3) else [] for frame in range(FRAMES)]
    prompts = [ObjectPrompt(4, 9, box=box_in(truth, 0, 4))]
    tracks = ObjectTracker(KnowingModel(truth)).track(frames, detections, prompts=prompts)
    assert tracks.ids == (9,) and tracks.labels == ("red square",) and same(tracks, 0, truth[0])


def test_two_phrases_for_one_thing_are_one_object(truth, frames):
    def both(frame):
        return [box_in(truth, 0, frame, score=0.6), box_in(truth, 0, frame, label="brick", score=0.8)]

    detections = [both(frame) if truth[0, frame].any() else [] for frame in range(FRAMES)]
    tracks = ObjectTracker(KnowingModel(truth)).track(frames, detections)
    assert tracks.ids == (1,) and tracks.labels == ("brick",)
    kept = ObjectTracker(KnowingModel(truth)).track(frames, detections, TrackSettings(duplicate_iou=1.0))
    assert sorted(kept.labels) == ["brick", "red square"] and same(kept, 0, truth[0]) and same(kept, 1, truth[0])


def test_fleeting_and_surplus_objects_are_dropped(truth, frames):
    detections = [[box_in(truth, 1, frame)] if frame >= 3 else [] for frame in range(FRAMES)]
    detections[4].append(box_in(truth, 0, 4, score=0.4))
    tracker = ObjectTracker(KnowingModel(truth))
    assert tracker.track(frames, detections).labels == ("blue square",)
    assert len(tracker.track(frames, detections, TrackSettings(minimum_seen=1)).ids) == 2
    settings = TrackSettings(minimum_seen=1, max_objects=1)
    assert tracker.track(frames, detections, settings).labels == ("blue square",)


def test_a_cancel_comes_within_a_frame(truth, frames):
    model, calls = KnowingModel(truth), []

    def cancel(done, total):
        calls.append(done)
        if done == 4:
            raise KeyboardInterrupt

    detections = [[box_in(truth, 0, 0)] if frame == 0 else [] for frame in range(FRAMES)]
    with pytest.raises(KeyboardInterrupt):
        ObjectTracker(model).track(frames, detections, progress=cancel)
    assert calls == [1, 2, 3, 4] and len(model.visited) == 3


def test_a_model_that_takes_text_finds_and_others_say_what_to_do(truth, frames):
    class Reader(KnowingModel):
        takes_text = True

        def find(self, film, frame, phrases):
            boxes = [box_in(truth, number, frame) for number in range(2) if truth[number, frame].any()]
            return [ObjectPrompt(frame, box=box, label=box.label, score=box.score) for box in boxes]

    tracks = ObjectTracker(Reader(truth)).track(frames, phrases=["square"], settings=TrackSettings(find_every=3))
    assert tracks.labels == LABELS and same(tracks, 0, truth[0]) and same(tracks, 1, truth[1])
    with pytest.raises(ValueError, match="takes no text"):
        ObjectTracker(KnowingModel(truth)).track(frames, phrases=["square"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_gap": -1}, "max_gap is -1"),
        ({"extend": -2}, "extend is -2"),
        ({"minimum_seen": 0}, "minimum_seen is 0"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"find_every": 0}, "find_every is 0"),
        ({"duplicate_iou": 1.5}, "duplicate_iou is 1.5"),
        ({"direction": "sideways"}, "direction is 'sideways'"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrackSettings(**values)


@pytest.fixture(scope="module")
def sam_tracker():
    torch.manual_seed(0)
    model = build_segmenter().eval()
    with torch.no_grad():
        # Untrained logits are almost zero; larger ones make differences visible.
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return ObjectTracker(FlowModel(SamSegmenter(model, build_segmenter_processor())))


def test_masks_come_for_every_frame_whatever_is_found(sam_tracker):
    frames = torch.rand(5, 33, 47, 4)
    nothing = sam_tracker.track(frames, [[] for _ in range(5)])
    assert nothing.masks.shape == (0, 5, 33, 47) and nothing.union().shape == (5, 33, 47)
    assert sam_tracker.track(frames).masks.shape == (0, 5, 33, 47)
    prompts = [ObjectPrompt(2, 1, box=Box(5, 5, 20, 20)), ObjectPrompt(2, 2, box=Box(500, 5, 20, 20))]
    assert sam_tracker.track(frames, prompts=prompts).masks.shape == (1, 5, 33, 47)
    single = sam_tracker.track((frames[:1] * 255).byte(), [[Box(5, 5, 20, 20, "ball", 0.9)]])
    assert single.masks.shape[1:] == (1, 33, 47)


def test_wrong_input_is_refused(sam_tracker):
    frames = torch.rand(2, 64, 64, 3)
    with pytest.raises(ValueError, match="detections for 1 frames and 2 frames"):
        sam_tracker.track(frames, [[]])
    with pytest.raises(ValueError, match="frame 5 but the video has 2"):
        sam_tracker.track(frames, prompts=[ObjectPrompt(5, box=Box(1, 1, 5, 5))])
    frames[1, 3, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="frame 1 holds NaN"):
        sam_tracker.track(frames, [[Box(5, 5, 20, 20)], []])


def test_points_and_boxes_give_masks_of_frame_size(sam_tracker):
    frame = torch.rand(50, 70, 3)
    marks = ObjectPrompt(0, points=(Point(20.0, 20.0), Point(60.0, 10.0, inside=False)))
    assert sam_tracker.masks_of_prompts(frame, [marks]).shape == (1, 50, 70)
    assert sam_tracker.masks_at_boxes(frame, [Box(1, 2, 30, 30), Box(40, 20, 10, 10)], soft=True).shape == (2, 50, 70)
    assert sam_tracker.masks_at_boxes(frame, []).shape == (0, 50, 70)
