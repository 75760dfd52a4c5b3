"""Where the frames of one call of a model stand in the whole clip, when the host gives it a window of the clip.

Source: Comfy-Org/ComfyUI, comfy/context_windows.py; AnimateDiff-Evolved names the frames of a call in ``ad_params``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Under these names of ``transformer_options`` a run says which frames its windows keep, and a call where its frames
# stand.
KEPT_FRAMES_KEY = "mask_guided_video_kept_frames"
CALL_FRAMES_KEY = "call_frames"


@dataclass(frozen=True)
class KeptFrames:
    """Frames of the clip that stand at the same place of every window, as set in the host's handler.

    Attributes:
        latents: frame i of the clip is frame i of every window, in the latents.
        conditions: the same of pictures and control videos beside the latents.
    """

    latents: tuple[int, ...] = ()
    conditions: tuple[int, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptFrames:
        return self


def window_frames(options: Mapping[str, Any], frames: int, has_pictures: bool = False) -> tuple[int, ...]:
    """Where the frames of a call stand in the whole clip.

    A window has an anchor in front (the frame before its first one) if the host wants that, then the window's frames,
    then guide pictures that are not frames of the clip. Kept frames take the places that they have in the clip.

    Args:
        options: ``transformer_options``: ComfyUI's ``context_window``, or AnimateDiff-Evolved's ``ad_params``.
        frames: of the clip in this call; guide pictures may be counted.
        has_pictures: whether pictures or control videos stand beside the latents, one per frame: a kept one decides
            what is seen at its place.

    Raises:
        ValueError: the window has fewer frames than the model is given.
    """
    window = options.get("context_window")
    indices = getattr(window, "index_list", None)
    if indices is None:
        indices = (options.get("ad_params") or {}).get("sub_idxs")
    if indices is None:
        return tuple(range(frames))
    names = [*anchor_frame(window), *(int(index) for index in indices)]
    guides = len(getattr(window, "guide_frames_indices", ()))
    if len(names) + guides < frames:
        raise ValueError(
            f"the context window names {len(names)} frames but the model is given {frames}; another node changes the "
            "number of frames inside of windows, so remove it."
        )
    kept = options.get(KEPT_FRAMES_KEY) or KeptFrames()
    _keep(names, [*(kept.conditions if has_pictures else ()), *kept.latents], getattr(window, "total_frames", 0))
    return tuple(names[:frames])


def anchor_frame(window: Any) -> tuple[int, ...]:
    """The frame of the clip that a host's window has before its frames, or nothing."""
    anchor = getattr(window, "causal_anchor_index", None)
    return () if anchor is None or anchor < 0 else (int(anchor),)


def _keep(names: list[int], kept: Sequence[int], clip_frames: int) -> None:
    """Write kept frames to their places; negative ones count from the end, as the host's indices do."""
    for index in kept:
        if -len(names) <= index < len(names):
            names[index] = index if index >= 0 else clip_frames + index
