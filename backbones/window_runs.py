"""What a run in the host's context windows needs of us, whichever node has set them.

At the start of a run the frames that its windows keep are written down for its calls, and noise that is rescheduled
already is not shuffled a second time. At a call, what the host's windows cannot do with a model is said in a sentence.

Source: Comfy-Org/ComfyUI, comfy/context_windows.py.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..video_models.sampling.noise import is_rescheduled
from ..video_models.sampling.window_frames import KEPT_FRAMES_KEY, KeptFrames, anchor_frame
from .nested_latents import SHAPES_KEY, is_pack

logger = logging.getLogger(__name__)

# Where ComfyUI's sampling looks for what cuts the clip.
CONTEXT_KEY = "context_handler"


def prepare_windows(model_options: dict[str, Any], noise: Tensor) -> None:
    """Make the options of one run ready for its context windows, where it has any.

    Args:
        model_options: of the run only; changed in place.
        noise: that the run starts from.
    """
    handler = model_options.get(CONTEXT_KEY)
    if handler is None:
        return
    options = model_options.setdefault("transformer_options", {})
    options[KEPT_FRAMES_KEY] = KeptFrames(
        tuple(getattr(handler, "latent_retain_index_list", None) or ()),
        tuple(getattr(handler, "cond_retain_index_list", None) or ()),
    )
    shuffle_once(model_options, noise)


def shuffle_once(model_options: dict[str, Any], noise: Tensor) -> None:
    """Turn the FreeNoise of context windows off for noise that is rescheduled already; others stay as they are."""
    handler = model_options.get(CONTEXT_KEY)
    if handler is not None and getattr(handler, "freenoise", False) and is_rescheduled(noise):
        handler = copy.copy(handler)
        handler.freenoise = False
        model_options[CONTEXT_KEY] = handler
        logger.info("The noise is FreeNoise already, so that the context windows do not shuffle it once more.")


def pictures_beside(frames: int, concatenated: Tensor | None, extras: Mapping[str, Any]) -> bool:
    """Say whether pictures or control videos stand beside the latents of a call, one for each frame.

    Args:
        frames: of the call.
        concatenated: what the model puts beside its latents as further channels.
        extras: its further inputs. Masks, which have one channel, are not pictures.
    """
    tensors = [value for value in (concatenated, *extras.values()) if isinstance(value, Tensor)]
    return any(value.ndim >= 5 and value.shape[-3] == frames and value.shape[-4] > 1 for value in tensors)


def kept_pictures_note(options: Mapping[str, Any]) -> str | None:
    """What the user must know where the picture of one frame is put beside the latents of another one.

    Args:
        options: ``transformer_options`` of a call with pictures beside its latents.
    """
    window, kept = options.get("context_window"), options.get(KEPT_FRAMES_KEY)
    if window is None or kept is None:
        return None
    anchor = anchor_frame(window)
    names = [*anchor, *window.index_list]
    for index in kept.conditions:
        # What is made of an anchor is dropped.
        seen = 0 <= index < len(names) and not (anchor and index == 0)
        if seen and index not in kept.latents and names[index] != index:
            return (
                f"the context windows put the condition of frame {index} beside other frames of the video, so masks "
                f"and words of frame {index} hold there; take it out of cond_retain_index_list if that is not meant."
            )
    return None


def check_window_call(
    model: Any, latents: Tensor, chunks: int, options: Mapping[str, Any], extras: Mapping[str, Any]
) -> None:
    """Compare what the host has cut to a window with what it has not.

    Args:
        model: ComfyUI's ``BaseModel``.
        latents: of the call.
        chunks: conditional and unconditional parts of its batch.
        options, extras: of the call: ``transformer_options`` and the model's further inputs.

    Raises:
        ValueError: the host's context windows leave this model with parts of another length.
    """
    if options.get("context_window") is None:
        return
    shapes = extras.get(SHAPES_KEY)
    if shapes is not None and is_pack(shapes) and latents.shape[2] != sum(math.prod(shape[1:]) for shape in shapes):
        raise ValueError(
            "this ComfyUI's context windows do not cut latents with sound; update ComfyUI, or sample without context "
            "windows."
        )
    counted = extras.get("num_video_frames")
    if counted is not None and counted * chunks != latents.shape[0]:
        raise ValueError(
            f"context windows give this model {latents.shape[0] // chunks} frames but say {counted}; turn "
            "causal_window_fix off in Context Windows (Manual), or use FreeLong in Context Windows."
        )
    guides = extras.get("keyframe_idxs")
    if guides is not None and guides.shape[2] and not _cuts_guides(model, latents, guides):
        raise ValueError(
            "ComfyUI does not cut this model's guide pictures to its context windows; take the guides out, or sample "
            "without context windows."
        )


def _cuts_guides(model: Any, latents: Tensor, guides: Tensor) -> bool:
    """Whether the host's model makes the places of guide pictures anew for a window."""
    from comfy.conds import CONDRegular

    nothing = SimpleNamespace(dim=2, index_list=[], guide_kf_local_positions=[], guide_frames_indices=[])
    name = "keyframe_idxs"
    return model.resize_cond_for_context_window(name, CONDRegular(guides), nothing, latents, None) is not None
