"""ComfyUI's context windows for every family: the host cuts a long clip into overlapping ones at each step.

The host's handler is used as it is, but for three things: batches of several clips, conditions that only seem to have
the clip's frames because one of their axes is as long, and the anchor frame that it lays in front of windows, which a
window that overlaps its neighbours does not need.

Source: Comfy-Org/ComfyUI, comfy/context_windows.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from ...attention_patches.errors import ModelNotSupported
from ...backbones.window_runs import CONTEXT_KEY

# Under this key the host limits its estimate of memory to one window.
ESTIMATE_KEY = "ContextWindows_prepare_sampling"
# What a model of the host has that can cut its sound to a window of its video.
SOUND_WINDOWS = "map_context_window_to_modalities"
# Conditions that have frames, but not those of the clip: subjects beside it, and the clip before it.
OTHER_FRAMES = ("time_dim_concat", "reference_motion")


@dataclass(frozen=True)
class ContextWindows:
    """How a clip is cut.

    Attributes:
        length: latent frames of a window.
        overlap: latent frames that neighbouring windows share, less than ``length``.
        schedule: ComfyUI's name of where the windows lie, such as ``standard_static``.
        fuse_method: ComfyUI's name of how results are joined, such as ``pyramid``.

    Raises:
        ValueError: lengths that do not fit each other.
    """

    length: int
    overlap: int
    schedule: str = "standard_static"
    fuse_method: str = "pyramid"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.length:
            raise ValueError(
                f"context windows of {self.length} latent frames cannot overlap by {self.overlap}; make the overlap "
                "less than the length."
            )
        if self.overlap == 0 and self.fuse_method == "overlap-linear":
            raise ValueError("overlap-linear fades over the overlap, but the overlap is 0 frames; choose flat instead.")

    @classmethod
    def in_native_lengths(
        cls, native_frames: int, length: float, overlap: float, schedule: str, fuse_method: str
    ) -> ContextWindows:
        """Build from lengths that are given in native lengths of the model, rounded to latent frames."""
        if overlap >= length:
            raise ValueError(
                f"context_overlap is {overlap:g} and context_length {length:g}, in native lengths; make the overlap "
                "less."
            )
        return cls(round(native_frames * length), round(native_frames * overlap), schedule, fuse_method)


def install_context_windows(model: Any, frame_axis: int, windows: ContextWindows) -> Any:
    """Return a clone of a model whose clips ComfyUI cuts into windows, in place of windows that were set before.

    Args:
        model: ComfyUI ``ModelPatcher``; it is not changed.
        frame_axis: of its latents, see ``Family``.
        windows: how to cut. Clips that are no longer than one window are not cut.
    """
    import comfy.context_windows as host
    from comfy.patcher_extension import WrappersMP

    windowed = model.clone()
    known = inspect.signature(host.IndexListContextHandler).parameters
    windowed.model_options[CONTEXT_KEY] = window_handler()(
        context_schedule=host.get_matching_context_schedule(windows.schedule),
        fuse_method=host.get_matching_fuse_method(windows.fuse_method),
        context_length=windows.length,
        context_overlap=windows.overlap,
        dim=frame_axis,
        **({"causal_window_fix": False} if "causal_window_fix" in known else {}),
    )
    windowed.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, ESTIMATE_KEY)
    host.create_prepare_sampling_wrapper(windowed)
    return windowed


@cache
def window_handler() -> type:
    """The host's handler, specialised; made on first use, since ComfyUI may be absent."""
    import comfy.context_windows as host
    from comfy.patcher_extension import add_callback_with_key

    class VideoWindows(host.IndexListContextHandler):
        """Takes batches, and cuts only what has the frames of the clip."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            resize = host.IndexListCallbacks.RESIZE_COND_ITEM
            add_callback_with_key(resize, CONTEXT_KEY, self._resized, self.callbacks)

        def execute(
            self,
            calc_cond_batch: Callable[..., list[Tensor]],
            model: Any,
            conds: list[Any],
            x_in: Tensor,
            timestep: Tensor,
            model_options: dict[str, Any],
        ) -> list[Tensor]:
            def of_window(model: Any, conds: list[Any], x: Tensor, timestep: Tensor, options: Any) -> list[Tensor]:
                return calc_cond_batch(model, conds, x, timestep.expand(x.shape[0]), options)

            try:
                # The host looks for one noise level and cuts along frames what has one entry per clip of the batch.
                return super().execute(of_window, model, conds, x_in, timestep[:1], model_options)
            except NotImplementedError as error:
                if hasattr(model, SOUND_WINDOWS):
                    raise
                raise ModelNotSupported(
                    f"ComfyUI does not cut the sound of a {type(model).__name__} model to context windows; take them "
                    "out, and for a long clip take FreeLong, which needs none."
                ) from error

        def get_resized_cond(self, cond_in: Any, x_in: Tensor, window: Any, device: Any = None) -> Any:
            resized = super().get_resized_cond(cond_in, x_in, window, device)
            if resized is not None and self.dim:
                for given, cond in zip(cond_in, resized, strict=True):
                    if "mask" in given:
                        cond["mask"] = _cut_mask(given["mask"], x_in, window, device)
            return resized

        def _resized(self, name: str, value: Any, window: Any, x: Tensor, device: Any, conditions: Any) -> Any:
            """A condition cut as its model says, or whole where its axis is as long as the clip by chance, or None."""
            own = self._model.resize_cond_for_context_window(name, value, window, x, device)
            if own is not None:
                return own
            tensor = getattr(value, "cond", value)
            # The host itself knows that the sound of a video has its frames elsewhere.
            if not isinstance(tensor, Tensor) or not self.dim or name == "audio_embed":
                return None
            return value if tensor.ndim < x.ndim or name in OTHER_FRAMES else None

    return VideoWindows


def _cut_mask(mask: Tensor, latents: Tensor, window: Any, device: Any) -> Tensor:
    """Cut where a prompt holds, [B, 1 or T, h, w], to the frames of a window."""
    own = mask.shape[1] == latents.shape[window.dim] and mask.ndim == latents.ndim - 1
    return window.get_tensor(mask, device, dim=1) if own else mask.to(device)
