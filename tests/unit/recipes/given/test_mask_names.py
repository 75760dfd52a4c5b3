"""Names of the objects in a file of masks, from the command that writes them to all that read them."""

import json

import numpy as np
import pytest
import torch

from mask_guided_video.recipes.films.files import write_film
from mask_guided_video.recipes.given.mask_names import names_path, read_names, write_names
from mask_guided_video.recipes.given.masks import fit_masks
from mask_guided_video.recipes.mask_metrics.files import read_found, read_tracks
from mask_guided_video.training.motion.data import find_clips, load_clips
from mask_guided_video.training.motion.settings import MotionSettings

NAMES = ("blue square", "red ball")


@pytest.fixture
def masks(tmp_path):
    """The square is the left half, the ball the right one."""
    drawn = np.zeros((2, 4, 16, 16), dtype=bool)
    drawn[0, :, :, :8] = drawn[1, :, :, 8:] = True
    np.save(tmp_path / "masks.npy", drawn)
    write_names(tmp_path / "masks.npy", NAMES)
    return tmp_path / "masks.npy"


def left_edges(tracks):
    return {
        label: int((mask[0] > 127).nonzero()[:, 1].min())
        for label, mask in zip(tracks.labels, tracks.masks.tensor(), strict=True)
    }


def test_names_are_read_as_written(masks):
    assert read_names(masks, 2) == NAMES and read_names(masks) == NAMES
    assert json.loads((masks.parent / "masks.names.json").read_text(encoding="utf-8")) == list(NAMES)
    assert read_names(masks.with_name("other.npy"), 3) == ("", "", "")
    assert read_names(masks.with_suffix(".png"), 1) == ("",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
        ('{"a": 1}', "does not hold a list of texts"),
        ("[1, 2]", "does not hold a list of texts"),
        ('["a"]', "masks.names.json names 1 objects and masks.npy holds 2"),
    ],
)
def test_broken_names_are_told(masks, text, message):
    names_path(masks).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_names(masks, 2)


def test_phrases_find_their_masks_in_any_order(masks):
    given = torch.from_numpy(np.load(masks)).float()
    for phrases in (("red ball", "blue square"), ("Blue square", "red ball")):
        fitted = fit_masks(given, phrases, 4, 16, 16, NAMES)
        assert fitted.labels == phrases
        assert {label.lower(): edge for label, edge in left_edges(fitted).items()} == {"blue square": 0, "red ball": 8}
    assert left_edges(fit_masks(given, ("red ball",), 4, 16, 16, NAMES)) == {"red ball": 8}
    assert fit_masks(given, (), 4, 16, 16, NAMES).labels == NAMES
    # Without names they are in the order of the phrases, as ever.
    assert left_edges(fit_masks(given, ("red ball", "blue square"), 4, 16, 16)) == {"red ball": 0, "blue square": 8}


def test_metrics_take_the_names(masks):
    assert left_edges(read_tracks(masks, ("red ball", "blue square"), 4, 16, 16)) == {"red ball": 8, "blue square": 0}
    assert read_tracks(masks, (), 4, 16, 16).labels == NAMES
    assert read_found(masks, ("red ball", "blue square"), 4, 16, 16).labels == NAMES
    # Names that are none of the phrases say nothing, and overlap decides.
    assert read_found(masks, ("red ball",), 4, 16, 16).labels == ("", "")


class Encoder:
    """Latents that are the pictures."""

    class geometry:  # noqa: N801
        spatial_factor, temporal_factor, native_frames, height, width = 1, 1, 4, 16, 16

    def encode(self, frames):
        return frames.movedim(-1, 0)[None]


def clips(tmp_path, masks, **words):
    videos, folder = tmp_path / "videos", tmp_path / "drawn"
    videos.mkdir(), folder.mkdir()
    for name in ("a", "b"):
        write_film(videos / f"{name}.mp4", torch.rand(4, 16, 16, 3))
        (folder / f"{name}.npy").write_bytes(masks.read_bytes())
        write_names(folder / f"{name}.npy", NAMES)
    settings = MotionSettings(prompt="a red ball and a blue square", **words)
    return load_clips(find_clips(videos, folder, settings), Encoder(), settings)


def test_training_takes_the_names(tmp_path, masks):
    clip = clips(tmp_path, masks, phrases=("red ball", "blue square"))[0]
    assert clip.words.phrases == ("red ball", "blue square")
    assert clip.masks[0, 0, 0].tolist() == [0] * 8 + [255] * 8


def test_training_without_phrases_takes_the_names_for_them(tmp_path, masks):
    assert clips(tmp_path, masks)[0].words.phrases == NAMES


def test_training_refuses_masks_of_another_shape(tmp_path, masks):
    np.save(masks, np.load(masks)[..., :8, :].repeat(2, -1))
    with pytest.raises(ValueError, match="masks of the clip 'a' are 32 x 8 pixels but the film 16 x 16: .* distorted"):
        clips(tmp_path, masks, phrases=("red ball", "blue square"))
