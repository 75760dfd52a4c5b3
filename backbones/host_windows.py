"""ComfyUI's context windows for every family: the host cuts a long clip into overlapping ones at each step.

The host's handler is used as it is, with what it leaves out: conditions that have frames of their own (pictures, control
films), batches of several clips, models whose frames are the batch, and samplers that call the model between steps.

Source: Comfy-Org/ComfyUI, comfy/context_windows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

# Where ComfyUI's sampling looks for what cuts the clip.
CONTEXT_KEY = "context_handler"
# Under this key the host limits its estimate of memory to one window.
ESTIMATE_KEY = "ContextWindows_prepare_sampling"
# Noise levels that differ by less than this part of them are the same.
SAME_LEVEL = 1e-4


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
                f"context_overlap is {overlap:g} and context_length {length:g}, in native lengths; make the overlap less."
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
    windowed.model_options[CONTEXT_KEY] = window_handler()(
        context_schedule=host.get_matching_context_schedule(windows.schedule),
        fuse_method=host.get_matching_fuse_method(windows.fuse_method),
        context_length=windows.length,
        context_overlap=windows.overlap,
        dim=frame_axis,
    )
    windowed.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, ESTIMATE_KEY)
    host.create_prepare_sampling_wrapper(windowed)
    return windowed


@cache
def window_handler() -> type:
    """The host's handler, specialised; made on first use, since ComfyUI may be absent."""
    import comfy.context_windows as host

    class VideoWindows(host.IndexListContextHandler):
        """Cuts conditions too, and takes batches."""

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

            # The host looks for one noise level and cuts along frames what has one entry per clip of the batch.
            return super().execute(of_window, model, conds, x_in, timestep[:1], model_options)

        def set_step(self, timestep: Tensor, model_options: dict[str, Any]) -> None:
            # Some samplers call the model between two steps too, which the host refuses.
            sigmas = model_options["transformer_options"]["sample_sigmas"]
            self._step = max(int((sigmas >= timestep * (1.0 - SAME_LEVEL)).sum()) - 1, 0)

        def get_resized_cond(self, cond_in: Any, x_in: Tensor, window: Any, device: Any = None) -> Any:
            resized = super().get_resized_cond(cond_in, x_in, window, device)
            if resized is None or self.dim == 0:
                return resized
            for cond in resized:
                cond["model_conds"] = {
                    name: _cut(value, x_in, window, device) for name, value in cond.get("model_conds", {}).items()
                }
            return resized

    return VideoWindows


def _cut(value: Any, latents: Tensor, window: Any, device: Any) -> Any:
    """Cut a condition [..., T, h, w] of the model to the frames of a window; others, and cut ones, stay."""
    tensor = getattr(value, "cond", None)
    if not isinstance(tensor, Tensor) or tensor.ndim < latents.ndim or tensor.shape[-3] != latents.shape[2]:
        return value
    return value._copy_with(window.get_tensor(tensor, device, dim=tensor.ndim - 3))
