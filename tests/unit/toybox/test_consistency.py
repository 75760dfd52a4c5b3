"""Consistency over time of drawn Toybox films, where every answer is known."""

import numpy as np
import pytest

from mask_guided_video.toybox import world
from mask_guided_video.toybox.consistency import background_flicker, film_consistency, mean_jerk


def scene(motion="still", colour="red", travel=0.0):
    item = world.SceneObject(colour, "ball", motion, 10.0, (32.0, 32.0) if motion == "still" else (15.0, 32.0), travel)
    return world.Scene("sand", (item,))


def film(frames=16, **words):
    return world.render(scene(**words), frames).frames


def test_a_still_film_is_perfectly_consistent():
    found = film_consistency(film(), "sand", "red")
    assert found.presence == 1.0 and found.colour_right == 1.0
    assert found.colour_drift == pytest.approx(0.0, abs=1e-6) and found.size_drift == pytest.approx(0.0, abs=1e-6)
    assert found.flicker == 0.0 and found.jerk == pytest.approx(0.0, abs=1e-6) and found.travel == 0.0


def test_even_motion_has_travel_and_no_jerk():
    found = film_consistency(film(motion="right", travel=34.0), "sand", "red")
    assert found.travel == pytest.approx(34.0, abs=1.0)
    assert found.jerk < 0.4 and found.flicker == 0.0


def test_jumps_are_jerk():
    frames = film(motion="right", travel=34.0)
    mixed = frames[np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])]
    assert film_consistency(mixed, "sand", "red").jerk > 10.0


def test_another_colour_is_drift_and_not_a_loss():
    frames = np.concatenate([film(8), film(8, colour="blue")])
    found = film_consistency(frames, "sand", "red")
    assert found.presence == 1.0 and found.colour_right == 0.5
    distance = np.linalg.norm(np.subtract(world.COLOURS["red"], world.COLOURS["blue"]))
    assert found.colour_drift == pytest.approx(distance / 2, rel=0.1)


def test_a_growing_object_is_size_drift():
    small, large = scene(), world.Scene("sand", (world.SceneObject("red", "ball", "still", 14.0, (32.0, 32.0), 0.0),))
    frames = np.concatenate([world.render(small, 8).frames, world.render(large, 8).frames])
    # Diameters 10 and 14: mean 12, deviation 2.
    assert film_consistency(frames, "sand", "red").size_drift == pytest.approx(1 / 6, rel=0.1)


def test_a_second_piece_is_a_split():
    frames = film(8)
    frames[:2, 2:8, 2:8] = world.COLOURS["red"]
    frames[2, 2:5, 2:5] = world.COLOURS["red"]
    assert film_consistency(frames, "sand", "red").split == 0.25


def test_flicker_counts_background_only():
    frames = film(8)
    frames[::2] += 0.01
    found = film_consistency(frames, "sand", "red")
    assert found.flicker == pytest.approx(0.01, rel=0.05)
    everything = np.ones(frames.shape[:3], dtype=bool)
    assert background_flicker(frames, everything) == 0.0


def test_films_without_an_object_and_of_one_frame():
    empty = np.repeat(world.background_image("sand")[None], 8, axis=0)
    found = film_consistency(empty, "sand", "red")
    assert found.presence == 0.0 and found.colour_drift is None and found.travel is None
    with pytest.raises(ValueError, match="at least 2"):
        film_consistency(empty[:1], "sand", "red")


def test_missing_frames_are_left_out_of_jerk():
    path = np.array([[0.0, 0.0], [1.0, 0.0], [np.nan, np.nan], [3.0, 0.0], [4.0, 0.0], [7.0, 4.0]])
    assert mean_jerk(path) == pytest.approx(np.hypot(2.0, 4.0))
    assert mean_jerk(path[:3]) is None
