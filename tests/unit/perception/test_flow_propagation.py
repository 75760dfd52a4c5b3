"""Optical flow, colours, and masks carried by both, on drawn clips."""

import numpy as np
import pytest
import torch

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.optical_flow import flow_between
from mask_guided_video.perception.prompts import ObjectPrompt
from mask_guided_video.perception.propagation import Sighting
from mask_guided_video.perception.tracking.appearance import colour_places, histogram, likeness
from mask_guided_video.perception.tracking.flow_propagation import FlowModel
from mask_guided_video.perception.tracking.mask_areas import (
    first_largest,
    grown,
    inside_box,
    large_patches,
    window_around,
)
from mask_guided_video.perception.tracking.tracker import ObjectTracker
from mask_guided_video.toybox import crossings, world


def as_bytes(frames):
    return (frames * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def clip():
    """A red ball goes right, in front of nothing."""
    walker = crossings.Walker("red", "ball", 9.0, ((0.0, 15.0, 30.0), (1.0, 45.0, 34.0)))
    return world.render(world.Scene("grass", (walker,)), 12)


def overlap(first, second):
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (90, 40), (300, 700), (9, 33)])
def test_a_moved_picture_is_found_again_at_every_size(height, width):
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.random((1, 3, height // 4 + 2, width // 4 + 2))).float()
    large = torch.nn.functional.interpolate(coarse, (height + 4, width + 4), mode="bicubic")[0].clamp(0, 1)
    picture = as_bytes(large.permute(1, 2, 0).numpy())
    flow = flow_between(picture[2:-2, 2:-2], picture[1:-3, :-4])
    assert flow.shift.shape == (height, width, 2) and flow.known.shape == (height, width)
    if min(height, width) >= 40:
        middle = flow.shift[height // 4 : -height // 4, width // 4 : -width // 4]
        assert middle[..., 0].median() == pytest.approx(-2.0, abs=0.3)
        assert middle[..., 1].median() == pytest.approx(-1.0, abs=0.3)


def test_masks_are_carried_and_uncovered_ground_is_not_known(clip):
    frames = as_bytes(clip.frames)
    flow = flow_between(frames[4], frames[5])
    before, after = (torch.from_numpy(clip.masks[0, frame]) for frame in (4, 5))
    assert overlap(flow.carry(before[None].float())[0] > 0.5, after) > 0.9
    assert flow.known[after].float().mean() > 0.7 and flow.known.float().mean() > 0.9


def test_colours_that_differ_only_in_tone_still_move():
    """Red and green of one brightness: a grey picture would be empty."""
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[..., 0] = 120
    moved = picture.copy()
    for image, left in ((picture, 20), (moved, 23)):
        image[20:40, left : left + 20] = (0, 61, 0)
    flow = flow_between(picture, moved)
    assert flow.shift[25:35, 28:38, 0].median() == pytest.approx(-3.0, abs=0.7)


def test_histograms_know_colours_and_their_neighbours():
    picture = np.zeros((4, 8, 3), dtype=np.uint8)
    picture[:, :4], picture[:, 4:] = (200, 20, 20), (20, 20, 200)
    places = colour_places(picture)
    left = torch.zeros(4, 8, dtype=torch.bool)
    left[:, :4] = True
    red, blue = histogram(places, left), histogram(places, ~left)
    assert red.sum() == pytest.approx(1.0, abs=1e-5) and (red > 0).all()
    assert likeness(red, red) == pytest.approx(1.0, abs=1e-5) and likeness(red, blue) < 0.2
    shifted = colour_places(np.clip(picture.astype(int) + 12, 0, 255).astype(np.uint8))
    assert likeness(red, histogram(shifted, left)) > 0.5
    assert histogram(places, torch.zeros(4, 8, dtype=torch.bool)) is None and likeness(None, red) == 0.0


def test_areas_around_masks():
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[4:8, 4:8] = True
    assert grown(mask, 1).sum() == 36 and window_around(mask, 2).sum() == 64
    assert not window_around(torch.zeros_like(mask), 2).any()
    assert inside_box(Box(4, 4, 4, 4), (12, 12)).sum() == 36
    mask[0, 0] = True
    assert large_patches(mask)[0, 0] == 0 and large_patches(mask)[4:8, 4:8].all()


class ColourSegmenter:
    """Draws what in a box is of none of the colours of the background: exact on drawn clips."""

    def __init__(self, background):
        self.model = torch.nn.Identity()
        self.ground = torch.from_numpy(world.background_image(background))

    def open(self, film):
        return ColourFilm(film, self.ground)


class ColourFilm:
    def __init__(self, film, ground):
        self.film, self.ground = film, ground

    def segment(self, frame, prompts, guesses=()):
        different = (self.film.read([frame])[0] - self.ground).abs().sum(-1) > 0.5
        return [Sighting((different & inside_box(p.box, (64, 64)).bool()).byte() * 255, 0.9) for p in prompts]


def follow(crossing, **prompted):
    clip = crossings.render(crossing)
    tracker = ObjectTracker(FlowModel(ColourSegmenter(crossing.background)))
    prompts = [
        ObjectPrompt(0, number + 1, box=Box.from_corners(*clip.boxes[number, 0].tolist()))
        for number in range(len(crossing.walkers))
    ]
    return clip, tracker.track(torch.from_numpy(clip.frames), prompts=prompts)


def path(*places):
    return tuple(places)


def test_an_object_behind_another_shrinks_to_nothing_and_comes_back():
    behind = crossings.Walker("green", "ball", 9.0, path((0.0, 11.0, 32.0), (1.0, 58.0, 32.0)))
    front = crossings.Walker("blue", "square", 14.0, path((0.0, 36.0, 32.0), (1.0, 36.0, 32.0)))
    clip, tracks = follow(crossings.Crossing("hide", "colour", "grass", (behind, front), (), 24))
    areas = clip.masks.sum((2, 3))
    assert tracks.ids == (1, 2) and (areas[0] == 0).any()
    for frame in range(24):
        first, second = (tracks.masks[place, frame] > 127 for place in (0, 1))
        assert not (first & second).any()
        assert overlap(second, torch.from_numpy(clip.masks[1, frame])) > 0.8
        if areas[0, frame] == 0:
            assert first.sum() < 25
        elif areas[0, frame] > 120:
            assert overlap(first, torch.from_numpy(clip.masks[0, frame])) > 0.7, frame
    assert not tracks.misses[0, -1] and tracks.scores[0][tracks.misses[0]].sum() == 0


def test_an_object_that_leaves_comes_back_under_its_number():
    leaver = crossings.Walker(
        "yellow", "ball", 9.0, path((0.0, 30.0, 20.0), (0.4, -14.0, 20.0), (0.6, -14.0, 26.0), (1.0, 34.0, 26.0))
    )
    other = crossings.Walker("purple", "square", 9.0, path((0.0, 40.0, 50.0), (1.0, 20.0, 50.0)))
    clip, tracks = follow(crossings.Crossing("exit", "colour", "sea", (leaver, other), (), 24))
    gone = clip.masks[0].sum((1, 2)) == 0
    assert gone.sum() > 3 and tracks.ids == (1, 2)
    assert tracks.misses[0][torch.from_numpy(gone)].all()
    for frame in (0, 4, 22, 23):
        assert overlap(tracks.masks[0, frame] > 127, torch.from_numpy(clip.masks[0, frame])) > 0.8


def test_an_object_in_one_colour_film_is_carried_alone(clip):
    """Without the model's consent flow goes on by itself, and says that it is less sure."""

    class Silent(ColourFilm):
        def segment(self, frame, prompts, guesses=()):
            return [Sighting(torch.zeros(64, 64, dtype=torch.uint8), 0.0) for _ in prompts]

    class SilentSegmenter(ColourSegmenter):
        def open(self, film):
            return Silent(film, self.ground)

    tracker = ObjectTracker(FlowModel(SilentSegmenter("grass")))
    prompt = ObjectPrompt(0, 5, mask=torch.from_numpy(clip.masks[0, 0]))
    tracks = tracker.track(torch.from_numpy(clip.frames), prompts=[prompt])
    assert overlap(tracks.masks[0, -1] > 127, torch.from_numpy(clip.masks[0, -1])) > 0.8
    assert tracks.scores[0, 0] == 1.0 and tracks.scores[0, -1] == 0.5


def test_the_first_of_the_largest_maps_is_found():
    values = torch.randint(0, 3, (4, 9, 7)).float()
    assert torch.equal(first_largest(values), values.argmax(0))
    assert torch.equal(first_largest(torch.zeros(1, 2, 2)), torch.zeros(2, 2, dtype=torch.int64))
