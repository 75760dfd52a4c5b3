"""How models count time, on numbers small enough to write down."""

import pytest

from mask_guided_video.attention_patches.latent_time import PICTURES, LatentTime, causal, latent_frame_groups

# Five latent frames of 1, 4, 4, 4, 4 pixel frames, over and over.
CYCLE = LatentTime((), (1, 4, 4, 4, 4))
# A token covers two latent frames.
PAIRS = causal(4, span=2)


def groups(masks: int, clip: int, time: LatentTime | None = None) -> list[list[int]]:
    return [list(group) for group in latent_frame_groups(masks, clip, time)]


def test_frame_groups() -> None:
    assert groups(3, 3) == [[0], [1], [2]]
    assert groups(1, 3) == [[0], [0], [0]]
    assert groups(9, 3) == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert groups(17, 3) == [[0], list(range(1, 9)), list(range(9, 17))]
    assert latent_frame_groups(81, 21)[-1] == range(77, 81)


@pytest.mark.parametrize(("masks", "clip"), [(8, 16), (16, 8), (80, 21), (16, 4), (5, 1), (2, 3)])
def test_frames_that_do_not_fit_are_an_error_with_both_numbers(masks: int, clip: int) -> None:
    with pytest.raises(ValueError, match=rf"{masks} mask frames do not fit a clip of {clip} frames; give 1 or {clip} "):
        latent_frame_groups(masks, clip)


def test_time_that_repeats() -> None:
    assert CYCLE.covered(7) == [1, 4, 4, 4, 4, 1, 4]
    # 17 n + 5 frames of a video are 5 n + 2 latent frames.
    assert [CYCLE.pixel_frames(count) for count in (2, 7, 37)] == [5, 22, 124]
    assert groups(22, 7, CYCLE)[4:] == [[13, 14, 15, 16], [17], [18, 19, 20, 21]]
    assert CYCLE.rule(7) == "17 * n + 5"
    with pytest.raises(ValueError, match=r"21 mask frames do not fit .* \(22 frames of film, always 17 \* n \+ 5\)"):
        latent_frame_groups(21, 7, CYCLE)


def test_tokens_of_two_latent_frames_cover_the_frames_of_both() -> None:
    # Tokens may begin with any latent frame, for a context window may; the last one of an odd clip is alone.
    assert groups(9, 3, PAIRS) == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], [5, 6, 7, 8]]
    assert groups(3, 3, PAIRS) == [[0, 1], [1, 2], [2]]
    assert groups(1, 3, PAIRS) == [[0], [0], [0]]
    assert [PAIRS.token_frames(count) for count in (1, 2, 3, 4)] == [1, 1, 2, 2]


def test_tokens_that_context_windows_tear() -> None:
    # Frames 3, 4 and 0 of a clip that loops: the last token is frame 0 alone.
    time = PAIRS.of_call((3, 4, 0), 5)
    assert time.torn == ((0,),)
    assert groups(5, 5, time)[0] == [0]
    assert PAIRS.of_call((4, 0, 1), 5).torn == ((4, 0), (1,))
    assert groups(5, 5, PAIRS.of_call((4, 0, 1), 5)) == [[0, 1], [1], [2, 3], [3, 4], [4, 0]]
    # A clip as a whole tears nothing, though its last token covers one frame.
    assert PAIRS.of_call(range(5), 5) == PAIRS


def test_what_compresses_time() -> None:
    assert not PICTURES.compresses
    assert causal(4).compresses
    assert CYCLE.compresses
    assert (PICTURES.pixel_frames(7), causal(8).pixel_frames(3)) == (7, 17)
