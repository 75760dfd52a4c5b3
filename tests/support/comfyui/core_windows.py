"""The core's context windows around tiny models, and what a model predicts in each of them."""

from __future__ import annotations

from typing import Any

from dense_reference import CALLS
from native_models import TinyModel, sample, tiny
from torch import Tensor

# ComfyUI does not make the places of these guide pictures anew for a window, and does not cut MiniMax H3's sound to it.
NOT_CUT_BY_THE_HOST = {"ltx_guided", "ltx_weak_guide", "ltx_masked_guide"}
# Windows of these hold a part of the sound too; ``test_ltx_av`` looks at them.
WITH_SOUND = {"ltxav", "ltxav_23", "ltxav_25", "ltxav_weak_guide", "ltxav_masked_guide"}
NOT_CUT_BY_THE_HOST |= {name for name in CALLS if name.startswith("minimax")}
# ComfyUI gives these models an anchor frame more than it tells them of.
NO_ANCHOR = {"svd"}


def film_frames(name: str) -> int:
    """Latent frames of a film of three windows that share one frame each."""
    return 3 * CALLS[name].latents - 2


def windowed(patcher: Any, name: str, schedule: str, loops: bool = False, **settings: Any) -> Any:
    """The model with core's context windows, each as long as the tiny model's film."""
    import comfy.context_windows as windows

    patcher = patcher.clone()
    patcher.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(schedule),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=CALLS[name].latents,
        context_overlap=1,
        context_stride=1,
        closed_loop=loops,
        dim=tiny(name).window_axis,
        **{"causal_window_fix": name not in NO_ANCHOR, **settings},
    )
    return patcher


def predictions_by_window(
    model: TinyModel, patcher: Any, noise: Tensor, **settings: Any
) -> dict[tuple[int, ...], dict[str, Tensor]]:
    """What the model predicts in the first step in each of core's windows, with the anchor that is in front of them."""
    found: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def keep(apply_model: Any, args: dict[str, Any]) -> Tensor:
        out = apply_model(args["input"], args["timestep"], **args["c"])
        given = args["c"]["transformer_options"]["context_window"]
        anchor = getattr(given, "causal_anchor_index", None)
        window = tuple(given.index_list) if anchor is None else (anchor, *given.index_list)
        for chunk, part in zip(args["cond_or_uncond"], out.chunk(len(args["cond_or_uncond"])), strict=True):
            found.setdefault(window, {})[("positive", "negative")[chunk]] = part.clone()
        return out

    patcher = patcher.clone()
    patcher.set_model_unet_function_wrapper(keep)
    sample(model, patcher, steps=1, noise=noise, **settings)
    return found
