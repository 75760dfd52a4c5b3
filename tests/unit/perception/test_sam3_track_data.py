"""Core's SAM 3 track data: bits, sizes, objects that are not there, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.perception.sam3_track_data import track_data_of, tracks_of_track_data
from mask_guided_video.perception.tracks import Tracks


def data(rows, **values):
    """One object in one frame, given as the bytes of its rows."""
    packed = torch.tensor([[rows]], dtype=torch.uint8)
    size = (len(rows), 8 * len(rows[0]))
    return {"packed_masks": packed, "n_frames": 1, "scores": [0.75], "orig_size": size, **values}


def test_the_lowest_bit_is_the_leftmost_pixel():
    tracks = tracks_of_track_data(data([[0b00000001, 0b10000000], [0b00001110, 0]]))
    assert tracks.masks[0, 0].tolist() == [
        [255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255],
        [0, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert (tracks.ids, tracks.labels, tracks.size) == ((1,), ("",), (2, 16))
    assert tracks.scores.tolist() == [[0.75]] and tracks.misses.tolist() == [[False]]


def test_axes_are_frames_then_objects():
    packed = torch.zeros(3, 2, 1, 1, dtype=torch.uint8)
    packed[0, 1], packed[2, 0] = 0b11, 0b100
    tracks = tracks_of_track_data({"packed_masks": packed, "n_frames": 3, "scores": [0.5, 0.25], "orig_size": (1, 8)})
    assert tracks.misses.tolist() == [[True, True, False], [False, True, True]]
    assert tracks.scores.tolist() == [[0.0, 0.0, 0.5], [0.25, 0.0, 0.0]]
    assert tracks.masks[0, 2].tolist() == [[0, 0, 255, 0, 0, 0, 0, 0]]
    assert tracks.masks[1, 0].tolist() == [[255, 255, 0, 0, 0, 0, 0, 0]]


def test_masks_are_stretched_to_the_video():
    """Twice as high, half as wide: the left half of the tracker's picture is the left half of the video's."""
    tracks = tracks_of_track_data(data([[0b00001111], [0]], orig_size=(4, 4)))
    assert tracks.masks[0, 0].tolist() == [[255, 255, 0, 0], [255, 255, 0, 0], [0] * 4, [0] * 4]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 20])
def test_back_and_forth_is_the_same_at_every_width(width):
    masks = (torch.rand(3, 4, 5, width, generator=torch.Generator().manual_seed(width)) > 0.5).float()
    masks[1, 2] = 0.0
    tracks = Tracks.from_masks(masks, ("a", "", "c"))
    written = track_data_of(tracks)
    assert written["packed_masks"].dtype == torch.uint8 and written["packed_masks"].shape[:3] == (4, 3, 5)
    assert (written["n_frames"], written["orig_size"], len(written["scores"])) == (4, (5, width), 3)
    again = tracks_of_track_data(written)
    assert torch.equal(again.masks.tensor(), tracks.masks.tensor()) and torch.equal(again.misses, tracks.misses)


def test_a_width_of_whole_bytes_is_written_pixel_by_pixel():
    masks = torch.zeros(1, 1, 1, 16)
    masks[..., 0] = masks[..., 9] = 1.0
    assert track_data_of(Tracks.from_masks(masks))["packed_masks"].tolist() == [[[[1, 2]]]]


def test_scores_are_means_over_seen_frames_and_soft_masks_are_cut():
    masks = torch.zeros(2, 3, 1, 8)
    masks[0, :2, 0, 3], masks[0, :2, 0, 4] = 0.6, 0.4
    tracks = Tracks.from_masks(masks)
    scores = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    tracks = Tracks(tracks.masks, tracks.ids, tracks.labels, scores, torch.tensor([[False, False, True], [True] * 3]))
    written = track_data_of(tracks)
    assert written["scores"] == [0.75, 0.0]
    assert written["packed_masks"][:, :, 0, 0].tolist() == [[8, 0], [8, 0], [0, 0]]


def test_nothing_found_is_a_normal_answer():
    nothing = {"packed_masks": None, "n_frames": 5, "scores": [], "orig_size": (6, 9)}
    tracks = tracks_of_track_data(nothing)
    assert tracks.masks.shape == (0, 5, 6, 9) and tracks.scores.shape == (0, 5)
    assert track_data_of(tracks) == nothing
    bare = torch.zeros(5, 0, 4, 1, dtype=torch.uint8)
    assert tracks_of_track_data({**nothing, "packed_masks": bare}).masks.shape == (0, 5, 6, 9)


def test_an_object_that_is_nowhere_stays_an_object():
    tracks = tracks_of_track_data(data([[0], [0]]))
    assert tracks.ids == (1,) and tracks.misses.tolist() == [[True]] and tracks.scores.tolist() == [[0.0]]


@pytest.mark.parametrize("scores", [None, [], "missing"])
def test_without_scores_all_are_one(scores):
    given = data([[1]], scores=scores)
    if scores == "missing":
        del given["scores"]
    assert tracks_of_track_data(given).scores.tolist() == [[1.0]]


@pytest.mark.parametrize(
    "value,message",
    [
        (None, "but this is None; connect the track_data"),
        ({"orig_size": (1, 8)}, "has the keys orig_size; connect"),
        (data([[1]], orig_size=(0, 8)), r"orig_size of SAM3 track data is \(0, 8\)"),
        (data([[1]], orig_size="18"), "orig_size of SAM3 track data is '18'"),
        (data([[1]], n_frames=2), "says n_frames 2 but has masks for 1 frames"),
        (data([[1]], packed_masks=None, n_frames=None), "n_frames of SAM3 track data is None"),
        (data([[1]], packed_masks=torch.zeros(1, 1, 1, 8)), r"are torch.float32 \[1, 1, 1, 8\]; give uint8"),
        (data([[1]], packed_masks=torch.zeros(0, 1, 1, 1, dtype=torch.uint8)), "at least one frame"),
        (data([[1]], scores=[0.5, 0.5]), "2 for 1 objects; give one number per object"),
        (data([[1]], scores=[1.5]), "a score of SAM3 track data is 1.5"),
        (data([[1]], scores=[float("nan")]), "is nan; give numbers in 0..1"),
    ],
)
def test_what_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        tracks_of_track_data(value)
