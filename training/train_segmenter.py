"""Train the Toybox segmenter, a small SAM, from scratch on drawn scenes.

Run it with ``python cli.py train segmenter``. It resumes from ``--run`` when that folder holds a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..toybox import world
from .command_line import begin, training_parser
from .loop import LoopSettings, train
from .perception.data import SMALLEST_AREA, Pictures, boxes_of_masks, draw_pictures, spoil
from .perception.models import (
    build_segmenter,
    build_segmenter_processor,
    freeze_positions,
    normalize,
    save_model_folder,
)

CLEAN_SHARE = 0.2
# Corners of a prompt box are off by up to this share of its size.
BOX_JITTER = 0.12


def jitter_boxes(boxes: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Move each corner by up to ``amount`` of the box's size, within the picture: float [..., 4] pixels."""
    size = boxes[..., 2:] - boxes[..., :2]
    noise = (torch.rand(boxes.shape, generator=generator) * 2 - 1) * amount
    moved = boxes + noise * torch.cat([size, size], dim=-1)
    return moved.clamp(0, world.SIZE)


def points_inside(masks: Tensor, generator: torch.Generator) -> Tensor:
    """A random pixel of each mask: float [B, 2] (x, y) of its centre. ``masks``: bool [B, H, W]."""
    weights = masks.flatten(1).float() * torch.rand(masks[0].numel(), generator=generator) + 1e-9
    index = weights.argmax(1)
    return torch.stack([index % masks.shape[2], index // masks.shape[2]], dim=1).float() + 0.5


def mask_loss(logits: Tensor, scores: Tensor, truth: Tensor) -> Tensor:
    """5 cross-entropy + dice of the best candidate (a fifth of the others') + squared error of the predicted IoU.

    Args:
        logits: float [B, M, H, W], M candidate masks.
        scores: float [B, M], predicted IoU.
        truth: float [B, H, W].
    """
    wanted = truth[:, None].expand_as(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((-1, -2))
    share = logits.sigmoid()
    dice = 1 - (2 * (share * wanted).sum((-1, -2)) + 1) / (share.sum((-1, -2)) + wanted.sum((-1, -2)) + 1)
    each = 5 * entropy + dice
    masks = logits > 0
    overlap = (masks & (wanted > 0.5)).sum((-1, -2)).float()
    union = (masks | (wanted > 0.5)).sum((-1, -2)).clamp(min=1)
    error = (scores - overlap / union).square()
    return each.min(1).values.mean() + 0.2 * each.mean() + error.mean()


def full_size(logits: Tensor) -> Tensor:
    """Mask logits [B, M, 32, 32] at picture size, as SAM's post-processing enlarges them."""
    return functional.interpolate(logits, (world.SIZE, world.SIZE), mode="bilinear", align_corners=False)


def visible_rows(masks: Tensor) -> Tensor:
    """(picture, object) index pairs of the objects large enough to search for: long [K, 2]."""
    return (masks.sum((-1, -2)) >= SMALLEST_AREA).nonzero()


def quick_figures(model: torch.nn.Module, pictures: Pictures, spoiled: bool) -> dict[str, float]:
    """Mean IoU from jittered boxes, candidate chosen by predicted IoU."""
    images, masks = pictures.images.float() / 255, pictures.masks
    if spoiled:
        images, masks = spoil(images, masks, torch.Generator().manual_seed(5))
    rows = visible_rows(masks)
    truth = masks[rows[:, 0], rows[:, 1]]
    boxes = jitter_boxes(boxes_of_masks(truth), 0.06, torch.Generator().manual_seed(6))
    values = []
    for start in range(0, len(rows), 32):
        part = slice(start, start + 32)
        output = model(pixel_values=normalize(images[rows[part, 0]]), input_boxes=boxes[part, None])
        best = output.iou_scores[:, 0].argmax(1)
        found = full_size(output.pred_masks[:, 0])[torch.arange(len(best)), best] > 0
        values.append((found & truth[part]).sum((1, 2)) / (found | truth[part]).sum((1, 2)))
    iou = torch.cat(values)
    name = "spoiled" if spoiled else "clean"
    return {f"{name} IoU": float(iou.mean()), f"{name} 5th percentile": float(iou.quantile(0.05))}


def main(arguments: list[str]) -> None:
    """Train, then write ``toybox/segmenter`` as a transformers folder in fp16."""
    parser = training_parser(
        "segmenter", __doc__, Path("toybox/segmenter"), steps=2000, batch=16, learning_rate=1e-3, seed=2
    )
    parser.add_argument("--pool", type=int, default=12000, help="pictures drawn before training starts")
    options = begin(parser, arguments)
    model = build_segmenter().to(options.device).train()
    freeze_positions(model)
    pool = draw_pictures(np.random.default_rng(options.seed), options.pool, "train", pairs=0.8)
    rows = visible_rows(pool.masks)
    held_out = draw_pictures(np.random.default_rng(10_000 + options.seed), 96, "held_out")

    def loss_at_step(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        chosen = rows[torch.randint(len(rows), (options.batch,), generator=generator)]
        images, masks = pool.images[chosen[:, 0]].float() / 255, pool.masks[chosen[:, 0]]
        spoiled, bent = spoil(images, masks, generator)
        truth = bent[torch.arange(len(chosen)), chosen[:, 1]]
        whole = masks[torch.arange(len(chosen)), chosen[:, 1]]
        # An object bent out of the picture is prompted as it was drawn.
        clean = (torch.rand(len(chosen), generator=generator) < CLEAN_SHARE) | (truth.sum((1, 2)) < SMALLEST_AREA)
        images = torch.where(clean[:, None, None, None], images, spoiled)
        truth = torch.where(clean[:, None, None], whole, truth)
        prompt: dict[str, Tensor] = {}
        if step % 6 == 5:
            prompt["input_points"] = points_inside(truth, generator)[:, None, None].to(options.device)
        else:
            boxes = jitter_boxes(boxes_of_masks(truth), BOX_JITTER, generator)
            prompt["input_boxes"] = boxes[:, None].to(options.device)
        output = model(pixel_values=normalize(images).to(options.device), multimask_output=step % 4 != 3, **prompt)
        return mask_loss(full_size(output.pred_masks[:, 0]), output.iou_scores[:, 0], truth.float().to(options.device))

    def evaluate() -> dict[str, float]:
        model.cpu()
        figures = quick_figures(model, held_out, False) | quick_figures(model, held_out, True)
        model.to(options.device)
        return figures

    train(model, loss_at_step, evaluate, LoopSettings(options.run, options.steps, options.learning_rate))
    save_model_folder(model, build_segmenter_processor(), options.out)
