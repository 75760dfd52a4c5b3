"""Train the Toybox VAE: 64 x 64 pictures to 16 x 16 x 4 latents (diffusers ``AutoencoderKL``).

Run it with ``python cli.py train vae``. First encoder and decoder together; then the encoder is frozen and written
out, so that ``train text_to_video`` can start on its latents, and the decoder alone goes on. Both stages resume.
With ``--start-from`` only the decoder of an earlier VAE is trained: models of its latents go on working.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..recipes.given.paths import given_path
from ..toybox import world
from .command_line import begin, training_parser
from .loop import LoopSettings, train

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
    "force_upcast": False,
    # Measured after the first stage.
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}


def random_pictures(generator: np.random.Generator, count: int, detail_share: float = 0.0) -> Tensor:
    """Single frames of random scenes, in -1..1: float [count, 3, 64, 64]; see ``world.random_scene`` for the share."""
    pictures = []
    for _ in range(count):
        scene = world.random_scene(generator, "any", detail_share=detail_share)
        pictures.append(world.render(scene, 1).frames[0])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + 2 MSE + half an L1 of the picture gradients, which keeps edges straight and corners sharp."""
    loss = functional.l1_loss(output, target) + 2 * functional.mse_loss(output, target)
    for axis in (-1, -2):
        loss = loss + 0.5 * functional.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss


class PictureLoss:
    """Loss of one step; the pictures depend on the step alone, so a resumed run sees what an unbroken one would."""

    def __init__(self, vae: AutoencoderKL, options: argparse.Namespace, stage: int) -> None:
        self.vae = vae
        self.options = options
        self.stage = stage
        generator = np.random.default_rng(10_000 + options.seed)
        self.held_out = random_pictures(generator, 256).to(options.device)
        self.detailed = random_pictures(generator, 256, 1.0).to(options.device) if options.detail_share else None

    def __call__(self, step: int) -> Tensor:
        generator = np.random.default_rng([self.options.seed, self.stage, step])
        pictures = random_pictures(generator, self.options.batch, self.options.detail_share).to(self.options.device)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pictures).latent_dist
        loss = reconstruction_loss(self.vae.decode(posterior.sample()).sample, pictures)
        return loss + 2e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean PSNR in dB on held-out pictures, also on those of details; mean and spread of the latents."""
        latents = self.vae.encode(self.held_out).latent_dist.mode()
        figures = {"psnr": self._psnr(self.held_out)}
        if self.detailed is not None:
            figures["psnr_details"] = self._psnr(self.detailed)
        return {**figures, "latent_mean": latents.mean().item(), "latent_std": latents.std().item()}

    def _psnr(self, pictures: Tensor) -> float:
        output = self.vae.decode(self.vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
        error = ((output - pictures) / 2).square().mean(dim=(1, 2, 3))
        return (-10 * error.log10()).mean().item()


def export(vae: AutoencoderKL, out: Path) -> None:
    """Write the VAE as fp16 without changing the one in training."""
    copy = type(vae).from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    copy.half().save_pretrained(out)


def _train_both(options: argparse.Namespace) -> AutoencoderKL:
    """The first stage: encoder and decoder together, then the scale of the latents is measured."""
    from diffusers import AutoencoderKL

    # Channels last: two thirds of the time on a CPU.
    vae = AutoencoderKL.from_config(CONFIG).to(options.device, memory_format=torch.channels_last)
    loss = PictureLoss(vae, options, stage=1)
    settings = LoopSettings(options.run / "both", options.steps, options.learning_rate, average=0.995)
    train(vae, loss, loss.evaluate, settings)
    figures = loss.evaluate()
    vae.register_to_config(scaling_factor=1 / figures["latent_std"], shift_factor=figures["latent_mean"])
    export(vae, options.out)
    return vae


def main(arguments: list[str]) -> None:
    from diffusers import AutoencoderKL

    parser = training_parser("vae", __doc__, Path("toybox/text_to_video/vae"), steps=1600, batch=16, learning_rate=2e-3)
    parser.add_argument("--decoder-steps", type=int, default=1100, help="of the decoder alone, after them")
    parser.add_argument("--start-from", type=given_path, help="folder of a VAE whose decoder alone is trained on")
    parser.add_argument("--detail-share", type=float, default=0.0, help="share of objects with a texture, or small")
    options = begin(parser, arguments)
    if options.start_from:
        vae = AutoencoderKL.from_pretrained(options.start_from, local_files_only=True, low_cpu_mem_usage=False).float()
        vae = vae.to(options.device, memory_format=torch.channels_last)
    else:
        vae = _train_both(options)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    loss = PictureLoss(vae, options, stage=2)
    settings = LoopSettings(options.run / "decoder", options.decoder_steps, options.learning_rate / 2, average=0.998)
    train(vae, loss, loss.evaluate, settings)
    export(vae, options.out)
