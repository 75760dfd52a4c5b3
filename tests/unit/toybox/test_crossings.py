"""Clips in which objects cross, what counts as following them, and the plain way that ours is compared with."""

import numpy as np
import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.tracks import Tracks
from mask_guided_video.toybox import crossings, world
from mask_guided_video.training import evaluate_tracking
from mask_guided_video.training.perception.box_association import associate, extrapolate


@pytest.mark.parametrize("event", crossings.EVENTS)
@pytest.mark.parametrize("look", crossings.LOOKS)
def test_clips_show_what_they_say(event, look):
    for seed in range(4):
        crossing = crossings.random_crossing(np.random.default_rng(seed), event, look)
        clip = crossings.render(crossing)
        assert clip.frames.shape == (crossing.frames, 64, 64, 3) and 16 <= crossing.frames <= 32
        assert clip.masks.shape == (2, crossing.frames, 64, 64) and clip.boxes.shape == (2, crossing.frames, 4)
        areas = clip.masks.sum(axis=(2, 3))
        shares = areas / crossings.full_areas(crossing)[:, None]
        assert not (clip.masks[0] & clip.masks[1]).any() and shares.max() < 1.15
        if event == "exit":
            gone = np.flatnonzero(areas[0] == 0)
            assert len(gone) and 0 < gone[0] and gone[-1] < crossing.frames - 1
        elif event == "enter":
            assert areas[0, 0] == 0 and areas[0, -1] > 0
        else:
            assert shares[:, 0].min() > 0.8 and shares[0].min() < (0.95 if event == "graze" else 0.35)


def test_chance_comes_from_the_seed_and_events_take_turns():
    first, again, other = (crossings.random_crossings(10, seed) for seed in (3, 3, 4))
    assert first == again and first != other
    assert [crossing.event for crossing in first[:5]] == list(crossings.EVENTS)
    twins = crossings.random_crossing(np.random.default_rng(0), "graze", "twins")
    assert len(twins.phrases) == 1
    walkers = crossings.random_crossing(np.random.default_rng(0), "graze", "shape").walkers
    assert walkers[0].colour == walkers[1].colour and walkers[0].shape != walkers[1].shape


def test_walkers_go_straight_between_their_places():
    walker = crossings.Walker("red", "ball", 9.0, ((0.0, 0.0, 8.0), (0.5, 20.0, 8.0), (1.0, 20.0, 28.0)))
    np.testing.assert_allclose(walker.centres(5), [[0, 8], [10, 8], [20, 8], [20, 18], [20, 28]])
    assert world.render(world.Scene("night", (walker,)), 1).masks.shape == (1, 1, 64, 64)


def squares():
    """Two objects of 6 x 6 pixels in 4 frames; the second one is gone in frame 2."""
    truth = np.zeros((2, 4, 16, 16), dtype=bool)
    truth[0, :, 1:7, 1:7] = True
    truth[1, [0, 1, 3], 9:15, 9:15] = True
    return truth


def tracks_of(masks):
    return Tracks.from_masks(torch.from_numpy(masks).float())


def test_perfect_tracks_score_one_and_swaps_are_counted():
    truth = squares()
    score = evaluate_tracking.score_clip(tracks_of(truth[::-1].copy()), truth)
    assert score.overlaps.tolist() == [[1.0] * 4] * 2 and score.switches == 0 and score.extra == 0
    swapped = truth.copy()
    swapped[:, 3] = truth[::-1, 3]
    assert evaluate_tracking.score_clip(tracks_of(swapped), truth).switches == 2
    split = np.concatenate([truth, truth[1:]])
    split[1, 3], split[2, :3] = False, False
    renamed = evaluate_tracking.score_clip(tracks_of(split), truth)
    assert renamed.switches == 1 and renamed.extra == 1 and renamed.overlaps[1].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_without_tracks_only_empty_frames_are_right():
    score = evaluate_tracking.score_clip(Tracks.empty(4, 16, 16), squares())
    assert score.overlaps.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]] and score.switches == 0
    summary = evaluate_tracking.Figures([score]).summary()
    assert summary["mean IoU"] == 0.125 and summary["mean IoU where visible"] == 0.0
    assert summary["clips without a switch"] == 1.0


def test_prompts_are_given_where_enough_is_seen_and_boxes_are_thinned():
    crossing = crossings.random_crossing(np.random.default_rng(1), "enter", "colour")
    clip = crossings.render(crossing)
    late, first = evaluate_tracking.first_prompts(crossing, clip)
    assert first.frame == 0 and late.frame > 0 and (late.identity, first.identity) == (1, 2)
    share = clip.masks[0, late.frame].sum() / crossings.full_areas(crossing)[0]
    assert share >= 0.5 > clip.masks[0, late.frame - 1].sum() / crossings.full_areas(crossing)[0]
    boxes = [[Box(0, 0, 1, 1)] for _ in range(5)]
    assert [len(found) for found in evaluate_tracking.every(boxes, 2)] == [1, 0, 1, 0, 1]
    assert not any(evaluate_tracking.every(boxes, 0))


def test_figures_are_kept_by_event_and_look():
    clips = [(crossing, crossings.render(crossing), []) for crossing in crossings.random_crossings(2, 5)]
    clips = [(crossing, clip, [[] for _ in clip.frames]) for crossing, clip, _ in clips]
    truths = iter([clip.masks for _, clip, _ in clips])
    whole, parts = evaluate_tracking.measure(clips, lambda *given: tracks_of(next(truths)), 1)
    assert whole.summary()["mean IoU"] == 1.0 and whole.summary()["clips"] == 2
    assert {crossings.EVENTS[0], crossings.EVENTS[1]} < set(parts)


def test_plain_matching_joins_boxes_by_place_and_phrase():
    assert extrapolate({2: Box(10, 0, 10, 10), 3: Box(14, 0, 10, 10)}, 5) == Box(22, 0, 10, 10)
    right = [Box(4 * frame, 0, 10, 10, "red ball") for frame in range(7)]
    left = [Box(24 - 4 * frame, 0, 10, 10, "blue ball") for frame in range(7)]
    tracks = associate([list(pair) for pair in zip(right, left, strict=True)], max_gap=2)
    assert len(tracks) == 2 and all(box.label == track.label for track in tracks for box in track.boxes.values())
    box = Box(0, 0, 10, 10, "ball")
    assert [sorted(track.boxes) for track in associate([[box], [], [], [], [box]], max_gap=2)] == [[0], [4]]
