"""Masks that a user brings."""

import numpy as np
import pytest
import torch

from mask_guided_video.recipes.films.files import write_film
from mask_guided_video.recipes.given.masks import fit_masks, read_masks


def test_one_mask_serves_all_frames():
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    tracks = fit_masks(mask, ["ball"], 5, 8, 8)
    assert tracks.object_masks().shape == (1, 5, 8, 8)
    assert tracks.labels == ("ball",)
    assert torch.equal(tracks.union(), mask.expand(5, 8, 8))


def test_other_sizes_are_resized_by_area():
    mask = torch.zeros(1, 2, 4, 4)
    mask[..., :2, :2] = 1
    mask[..., 0, 2] = 1
    tracks = fit_masks(mask, ["ball"], 2, 2, 2)
    expected = torch.tensor([[1.0, 0.25], [0.0, 0.0]]).expand(2, 2, 2)
    assert torch.allclose(tracks.union(), expected, atol=1 / 255)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(3, 8, 8), "3 masks and the video has 5 frames"),
        (torch.zeros(2, 5, 8, 8), "2 objects and 1 phrases"),
        (torch.full((1, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 8, 8), 3.0), "from 3 to 3"),
        (torch.zeros(0, 8, 8), "none of them 0"),
        (torch.zeros(8), "give"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    with pytest.raises(ValueError, match=message):
        fit_masks(masks, ["ball"], 5, 8, 8)


def test_input_is_left_alone():
    mask = torch.rand(1, 4, 4)
    before = mask.clone()
    fit_masks(mask, ["ball"], 3, 8, 8)
    assert torch.equal(mask, before)


@pytest.mark.parametrize(
    "values", [np.eye(4, dtype=bool), np.eye(4, dtype=np.uint8) * 255, np.eye(4, dtype=np.uint8), np.eye(4)]
)
def test_arrays_in_any_number_type(tmp_path, values):
    np.save(tmp_path / "mask.npy", values)
    assert torch.equal(read_masks(tmp_path / "mask.npy"), torch.eye(4)[None])


def test_pictures_and_films(tmp_path):
    from PIL import Image

    picture = np.zeros((16, 16), dtype=np.uint8)
    picture[4:12, 4:12] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    expected = torch.from_numpy(picture)[None].float() / 255
    assert torch.equal(read_masks(tmp_path / "mask.png"), expected)
    write_film(tmp_path / "mask.mp4", expected[..., None].expand(3, 16, 16, 3))
    film = read_masks(tmp_path / "mask.mp4")
    assert film.shape == (3, 16, 16)
    assert torch.equal(film > 0.5, (expected > 0.5).expand(3, 16, 16))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mask.npy", b"broken", "cannot be read"),
        ("mask.png", b"broken", "cannot be read"),
        ("mask.mp4", b"broken", "cannot be read"),
        ("mask.txt", b"1 0", "of the kind '.txt'"),
        (None, b"", "no mask file"),
    ],
)
def test_files_that_hold_no_masks(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_masks(tmp_path / (name or "none.npy"))


def test_array_with_objects_in_it_is_refused(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        read_masks(tmp_path / "mask.npy")
