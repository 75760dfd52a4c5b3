"""Keep the surroundings of an object as they were: a lock on latents, applied after every sampling step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class BackgroundLock:
    """Latents that the clip keeps wherever the mask is 0.

    After every step to noise level t the sampler sets ``x <- M * x + (1 - M) * noised(latents, t)``.

    Attributes:
        latents: clean latents of the clip to keep, [1 or B, C, T, h, w].
        mask: M in 0..1, [1 or B, 1, T or 1, h, w]; 1 = free to change, 0 = locked.

    Raises:
        ValueError: shapes that do not fit each other, or values that are not finite or not within 0..1.
    """

    latents: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or self.mask.ndim != 5 or self.mask.shape[1] != 1:
            raise ValueError(
                f"background lock has latents {tuple(self.latents.shape)} and mask {tuple(self.mask.shape)}; give "
                "[B, C, T, h, w] and [B, 1, T, h, w]."
            )
        for axis, name in ((0, "batch"), (2, "frames"), (3, "height"), (4, "width")):
            have, want = self.mask.shape[axis], self.latents.shape[axis]
            if have != want and not (have == 1 and axis in (0, 2)):
                raise ValueError(
                    f"the lock's mask has {name} {have} and its latents {want}; make the mask on the latent grid."
                )
        # NaN fails the comparison too.
        if not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise ValueError("the lock's mask has values outside 0..1 (or NaN); clamp it before.")

    def blend(self, latents: Tensor, noised: Tensor) -> Tensor:
        """Return ``M * latents + (1 - M) * noised``.

        Args:
            latents: the sampler's latents after a step, [B, C, T, h, w].
            noised: ``self.latents`` at the noise level of that step, same shape or batch 1.
        """
        mask = self.mask.to(device=latents.device, dtype=latents.dtype)
        return noised.to(latents) * (1 - mask) + latents * mask


def lock_mask(masks: Tensor, height: int, width: int, dilate: int = 1, blur: int = 1) -> Tensor:
    """Make the mask of a lock: every cell that an object touches, widened and blurred.

    Args:
        masks: union of the objects in pixels, [T, H, W] in 0..1, T latent frames.
        height: of the latent grid.
        width: of the latent grid.
        dilate: cells by which the free region grows on every side, 0 or more.
        blur: cells over which it fades out beyond that, 0 or more; the fade leaves the free region free.

    Returns:
        float32 [1, 1, T, h, w] in 0..1, 1 = free to change.

    Raises:
        ValueError: masks of another rank, or a negative size.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks have shape {tuple(masks.shape)}; give [frames, height, width].")
    if dilate < 0 or blur < 0:
        raise ValueError(f"dilate is {dilate} and blur {blur}; both are numbers of cells, 0 or more.")
    touched = functional.adaptive_max_pool2d((masks.float() > 0.5).float()[:, None], (height, width))
    if dilate:
        touched = functional.max_pool2d(touched, 2 * dilate + 1, stride=1, padding=dilate)
    if blur:
        # Blurred from a region widened by the kernel's reach, so that the fade lies outside of what must be free.
        wide = functional.max_pool2d(touched, 2 * blur + 1, stride=1, padding=blur)
        padded = functional.pad(wide, (blur,) * 4, mode="replicate")
        touched = functional.avg_pool2d(padded, 2 * blur + 1, stride=1)
    return torch.clamp(touched, 0.0, 1.0).permute(1, 0, 2, 3)[None]
