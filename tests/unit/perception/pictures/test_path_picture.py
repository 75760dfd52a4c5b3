"""Drawn paths in one picture."""

import pytest
import torch

from mask_guided_video.perception.masks.mask_paths import ObjectPath
from mask_guided_video.perception.pictures.drawing import colour_of
from mask_guided_video.perception.pictures.path_picture import path_picture

STILL = ObjectPath(((0, (0.25, 0.5, 0.25, 0.5)),), "ball", "ellipse")


def near(picture, colour):
    """Where a picture [h, w, 3] has that colour: bool [h, w]."""
    return (picture - torch.tensor(colour) / 255).abs().amax(-1) < 0.1


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((64, 64), (512, 512)), ((480, 832), (480, 832)), ((1080, 1920), (576, 1024)), ((1, 8), (64, 512))],
)
def test_size_keeps_proportions(size, drawn):
    assert path_picture([STILL], 3, *size).shape == (1, *drawn, 3)


def test_outline_and_middle_have_the_objects_colour():
    picture = path_picture([STILL], 8, 64, 64)[0]
    inked = near(picture, colour_of(1))
    assert inked[256, 128] and inked[256, 60:68].any() and inked[124:132, 128].any()
    # The corners of the ellipse's box and the other half of the picture hold nothing of it.
    assert not inked[130:140, 66:72].any() and not inked[:, 300:].any()


def test_the_line_breaks_where_an_object_is_hidden():
    path = ObjectPath(((0, (0.1, 0.5, 0.05, 0.05)), (9, (0.9, 0.5, 0.05, 0.05))), hidden=((4, 5),))
    inked = near(path_picture([path], 10, 64, 64)[0], colour_of(1))
    assert inked[256, 120:130].all() and not inked[256, 240:270].any() and inked[256, 380:390].all()


def test_each_object_has_a_colour_of_its_own():
    other = ObjectPath(((0, (0.75, 0.5, 0.25, 0.5)),))
    picture = path_picture([STILL, other], 2, 64, 64)[0]
    assert near(picture, colour_of(2))[256, 384] and near(picture, colour_of(1))[256, 128]


def test_background_is_the_films_first_frame_darkened():
    film = torch.stack([torch.full((6, 9, 3), 0.8), torch.zeros(6, 9, 3)])
    assert path_picture([], 2, 64, 96, film).mean().item() == pytest.approx(0.4, abs=0.01)


def test_objects_outside_and_no_objects_draw_nothing():
    outside = ObjectPath(((0, (5.0, 5.0, 0.2, 0.2)),))
    assert torch.equal(path_picture([], 2, 64, 64)[:, :, :256], path_picture([outside], 2, 64, 64)[:, :, :256])
