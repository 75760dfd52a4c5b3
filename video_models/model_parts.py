"""The parts of every model of the LaVie family in stand-alone use."""

from __future__ import annotations

import torch
from torch import nn

from .frame_coding import FrameCoder
from .text_encoding import PromptEncoder


class ModelParts:
    """A U-Net with the text encoder and the VAE that go with it, on one device.

    Args:
        unet: of the LaVie family, with ``config`` and ``dtype``.
        text: encodes its prompts.
        coder: makes its latents of frames and frames of its latents.
        device: where to compute; the CPU when left out.
    """

    def __init__(
        self, unet: nn.Module, text: PromptEncoder, coder: FrameCoder, device: torch.device | str | None = None
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.text = text
        self.coder = coder
        self.device = torch.device(device or "cpu")

    def release(self) -> None:
        """Move the weights off the device; the next call brings back what it needs."""
        for module in (self.unet, self.coder.vae, self.text.encoder):
            module.to("cpu")
