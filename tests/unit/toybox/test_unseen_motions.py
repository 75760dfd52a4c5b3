"""Motions that no Toybox model saw: exact paths, and how a film is compared with them."""

import numpy as np
import pytest

from mask_guided_video.toybox import unseen_motions, world


def test_paths_literally():
    circle = unseen_motions.path("circle", 5) / unseen_motions.REACH
    np.testing.assert_allclose(circle, [[0, -1], [1, 0], [0, 1], [-1, 0], [0, -1]], atol=1e-12)
    zigzag = unseen_motions.path("zigzag", 5) / unseen_motions.REACH
    np.testing.assert_allclose(zigzag, [[-1, -1], [-0.5, 1], [0, -1], [0.5, 1], [1, -1]], atol=1e-12)
    assert unseen_motions.path("circle", 1).shape == (1, 2)
    with pytest.raises(ValueError, match="motion is 'spiral'; choose one of circle, zigzag"):
        unseen_motions.path("spiral", 3)


@pytest.mark.parametrize("motion", list(unseen_motions.UNSEEN_MOTIONS))
@pytest.mark.parametrize("shape", world.SHAPES)
def test_objects_stay_inside_and_are_found_on_their_path(motion, shape):
    for seed in range(5):
        scene = unseen_motions.unseen_scene(motion, "red", shape, "sea", np.random.default_rng(seed))
        clip = world.render(scene)
        assert not clip.masks[:, :, [0, -1]].any() and not clip.masks[:, :, :, [0, -1]].any()
        assert unseen_motions.unseen_prompt(scene) == f"a red {shape} moves on the sea"
        centres = unseen_motions.film_centres(clip.frames, "sea")
        assert unseen_motions.motion_error(centres, unseen_motions.path(motion, 8)) < 0.5
        # Where it is does not count, only how it moves.
        assert unseen_motions.motion_error(centres + 7.0, unseen_motions.path(motion, 8)) < 0.5


def test_errors_of_other_films():
    wanted = unseen_motions.path("circle", 8)
    still = np.zeros((8, 2))
    # The mean of a closed circle's 8 points is not its middle, since the first comes twice.
    assert unseen_motions.motion_error(still, wanted) == pytest.approx(unseen_motions.REACH, rel=0.03)
    lost = wanted.copy()
    lost[:3] = np.nan
    assert unseen_motions.motion_error(lost, wanted) == float("inf")
    lost[0] = wanted[0]
    assert unseen_motions.motion_error(lost, wanted) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(unseen_motions.film_centres(np.zeros((2, 64, 64, 3)) + 0.1, "night")).all()
