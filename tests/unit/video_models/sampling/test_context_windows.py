"""Windows over the frames of a clip, in literal numbers."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.video_models.sampling.context_windows import (
    blend_windows,
    context_windows,
    pyramid_weights,
)


def spans(frames: int, length: int, overlap: int) -> list[tuple[int, int]]:
    windows = context_windows(frames, length, overlap)
    assert all(window.total_frames == frames for window in windows)
    assert all(list(w.index_list) == list(range(w.index_list[0], w.index_list[-1] + 1)) for w in windows)
    return [(window.index_list[0], window.index_list[-1]) for window in windows]


def test_windows_literal() -> None:
    assert spans(16, 8, 4) == [(0, 7), (4, 11), (8, 15)]
    # The last window is moved back, not cut short.
    assert spans(17, 8, 4) == [(0, 7), (4, 11), (8, 15), (9, 16)]
    assert spans(125, 61, 13) == [(0, 60), (48, 108), (64, 124)]
    assert spans(9, 8, 0) == [(0, 7), (1, 8)]
    assert spans(8, 8, 4) == [(0, 7)] and spans(1, 8, 4) == [(0, 0)]


@pytest.mark.parametrize("length", range(1, 9))
def test_every_frame_is_covered(length: int) -> None:
    for frames in range(1, 30):
        for overlap in range(length):
            covered = {frame for first, last in spans(frames, length, overlap) for frame in range(first, last + 1)}
            assert covered == set(range(frames))


def test_weights_literal() -> None:
    assert pyramid_weights(8).tolist() == [1, 2, 3, 4, 4, 3, 2, 1]
    assert pyramid_weights(5).tolist() == [1, 2, 3, 2, 1]
    assert pyramid_weights(1).tolist() == [1]


def test_blending_literal() -> None:
    """Windows 0-3 and 2-5 of six frames: where they meet, weights 2 and 1 against 1 and 2."""
    values = {0: 0.0, 2: 3.0}
    made = blend_windows(
        context_windows(6, 4, 2), lambda window: torch.full((1, 1, 4, 1, 1), values[window.index_list[0]])
    )
    torch.testing.assert_close(made.flatten(), torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 3.0]))


def test_what_all_windows_agree_on_stays() -> None:
    clip = torch.randn(2, 3, 23, 2, 2)
    made = blend_windows(context_windows(23, 8, 5), lambda w: clip[:, :, w.index_list[0] : w.index_list[-1] + 1])
    torch.testing.assert_close(made, clip)
    whole = blend_windows(context_windows(23, 23, 0), lambda _: clip)
    assert whole is clip


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0, 8, 4), "0 frames"), ((9, 8, 8), "overlap is 8.*0 to 7"), ((9, 8, -1), "overlap is -1")],
)
def test_bad_numbers_are_named(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        context_windows(*numbers)
