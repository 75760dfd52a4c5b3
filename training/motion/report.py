"""What a tuning run shows: the curve of its loss, and clips of the tuned model beside the training clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...recipes.films.files import shown_enlargement, write_film
from ...recipes.films.sheets import write_picture
from ...video_models.sampling.denoising import Conditions, sample_latents
from ...video_models.sampling.first_frame import FirstFrame
from ...video_models.text_encoding import TextEmbedding
from .data import TrainingClip
from .examples import ExampleMaker

if TYPE_CHECKING:
    from PIL import Image

WIDTH, HEIGHT, EDGE = 760, 400, 56
INK, FAINT, RAW, MEAN = (30, 30, 34), (205, 205, 210), (170, 190, 225), (30, 80, 180)
# Steps of the drawn running mean.
SMOOTHING = 25


def smoothed(losses: Sequence[float], width: int = SMOOTHING) -> np.ndarray:
    """Mean of each loss with the ``width - 1`` before it, fewer at the beginning: float64 [steps]."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(losses, dtype=np.float64))])
    ends = np.arange(1, len(sums))
    begins = np.maximum(ends - width, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def loss_curve(losses: Sequence[float]) -> Image.Image:
    """A picture of the loss over the steps, each one and their running mean.

    Raises:
        ValueError: no losses.
    """
    from PIL import Image, ImageDraw

    if not losses:
        raise ValueError("there are no losses to draw; tune for at least one step.")
    mean = smoothed(losses)
    top = float(np.quantile(losses, 0.98)) * 1.1 or 1.0
    picture = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    width, height = WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE

    def place(step: int, value: float) -> tuple[float, float]:
        across = step / max(len(losses) - 1, 1)
        return EDGE + width * across, EDGE + height * (1.0 - min(value / top, 1.0))

    for part in range(5):
        y = EDGE + height * part / 4
        draw.line([(EDGE, y), (WIDTH - EDGE, y)], fill=FAINT)
        draw.text((8, y - 6), f"{top * (1 - part / 4):.3f}", fill=INK)
        draw.text((EDGE + width * part / 4 - 12, HEIGHT - EDGE + 8), f"{1 + (len(losses) - 1) * part // 4}", fill=INK)
    for values, colour, thickness in ((losses, RAW, 1), (mean, MEAN, 3)):
        points = [place(step, float(value)) for step, value in enumerate(values)]
        draw.line(points if len(points) > 1 else points * 2, fill=colour, width=thickness)
    draw.text((EDGE, 14), f"loss over {len(losses)} steps, last mean {mean[-1]:.4f}", fill=INK)
    return picture


def write_loss_curve(path: Path, losses: Sequence[float]) -> None:
    """Save the curve as a PNG."""
    write_picture(path, loss_curve(losses))


def validation_film(
    model: Any, unet: nn.Module, examples: ExampleMaker, clip: TrainingClip, *, steps: int = 20, cfg: float = 4.0
) -> Tensor:
    """A clip, and beside it what the tuned U-Net makes of its first frame, prompt and masks: [T, H, 2 W, 3] in 0..1.

    Args:
        model: whose VAE decodes, with its ``device``.
        unet: the tuned one.
        examples: has the clip's prompt encoded.
        clip: to make again.
        steps: of sampling.
        cfg: classifier-free guidance.
    """
    frames = examples.frames
    latents = clip.latents[:1, :, :frames]
    masks = None if clip.masks is None else clip.masks[:, :frames].float() / 255.0
    conditions = Conditions(
        TextEmbedding(clip.words.prompt, examples.words[clip.words].context),
        TextEmbedding("", examples.empty),
        cfg,
        examples.patches(clip.words, masks),
    )
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(examples.settings.seed))
    sampled = sample_latents(
        unet, noise, conditions, model.device, steps=steps, first_frame=FirstFrame(latents[:, :, :1])
    )
    return torch.cat([model.decode(latents), model.decode(sampled)], dim=2)


def write_validation_film(path: Path, film: Tensor) -> None:
    """Save a validation clip, enlarged for viewing where it is small."""
    write_film(path, film, enlargement=shown_enlargement(film.shape[1], film.shape[1]))
