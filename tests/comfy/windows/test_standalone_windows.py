"""The stand-alone models' windows over frames are those of ComfyUI's static schedule with pyramid weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mask_guided_video.video_models.sampling.context_windows import context_windows, pyramid_weights

pytestmark = pytest.mark.comfy


@pytest.mark.parametrize(("length", "overlap"), [(1, 0), (4, 0), (8, 4), (8, 7), (13, 5), (16, 4)])
def test_windows(length: int, overlap: int):
    from comfy.context_windows import create_windows_static_standard

    handler = SimpleNamespace(context_length=length, context_overlap=overlap)
    for frames in range(1, 70):
        ours = [list(window.index_list) for window in context_windows(frames, length, overlap)]
        assert ours == create_windows_static_standard(frames, handler, {})


@pytest.mark.parametrize("length", [1, 2, 5, 8, 61])
def test_weights(length: int):
    from comfy.context_windows import create_weights_pyramid

    assert pyramid_weights(length).tolist() == create_weights_pyramid(length)
