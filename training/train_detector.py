"""Train the Toybox detector, a small GroundingDINO, from scratch on drawn scenes.

Run it with ``python cli.py train detector``. It resumes from ``--run`` when that folder holds a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..toybox import world
from .command_line import begin, training_parser
from .loop import LoopSettings, train
from .perception.calibration import lower_scores
from .perception.data import MAX_OBJECTS, SMALLEST_AREA, Pictures, boxes_of_masks, draw_pictures, spoil
from .perception.detector_loss import Targets, corners, detector_loss, predict
from .perception.models import (
    SPECIAL_TOKENS,
    build_detector,
    build_detector_processor,
    normalize,
    save_model_folder,
)
from .perception.phrases import Phrase, Words, absent_phrase, caption_phrases

# Share of pictures left exactly as drawn.
CLEAN_SHARE = 0.2


class AttributeHead(nn.Module):
    """Names colour and shape of each object from the picture features alone; used in training only.

    Scores of phrases teach the difference between a square and a ball slowly, since a near miss is right in every
    other way. Naming shapes directly makes the picture encoder see them early.

    Args:
        detector: whose fine feature map (stride 8) is read.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.classify = nn.Linear(detector.config.d_model, len(world.COLOURS) + len(world.SHAPES))
        self._features: Tensor | None = None
        detector.model.input_proj_vision[0].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._features = output

    def loss(self, masks: Tensor, words: Sequence[Sequence[Words]]) -> Tensor:
        """Cross-entropy of both names over visible objects, after a forward pass. ``masks``: bool [B, 2, H, W]."""
        features = self._features
        weights = functional.adaptive_avg_pool2d(masks.float().to(features.device), features.shape[-2:])
        pooled = torch.einsum("bchw,bnhw->bnc", features, weights) / weights.sum((-1, -2))[..., None].clamp(min=1e-3)
        rows = [
            (row, number, list(world.COLOURS).index(colour), world.SHAPES.index(shape))
            for row, objects in enumerate(words)
            for number, (colour, shape) in enumerate(objects)
            if masks[row, number].sum() >= SMALLEST_AREA
        ]
        if not rows:
            return features.sum() * 0
        picture, number, colour, shape = torch.tensor(rows, device=features.device).T
        logits = self.classify(pooled[picture, number])
        colours = len(world.COLOURS)
        return functional.cross_entropy(logits[:, :colours], colour) + functional.cross_entropy(
            logits[:, colours:], shape
        )


class Batches:
    """Training batches, each a pure function of the step.

    Args:
        pictures: the pool to draw from.
        vocabulary: word -> token id.
        size: pictures per batch.
        seed: of all random numbers.
    """

    def __init__(self, pictures: Pictures, vocabulary: dict[str, int], size: int, seed: int) -> None:
        self.pictures = pictures
        self.vocabulary = vocabulary
        self.size = size
        self.seed = seed

    def at(self, step: int) -> tuple[Tensor, dict[str, Tensor], Targets, Tensor, list[tuple[Words, ...]]]:
        """Pixels float [B, 3, 64, 64] (normalised), tokens of one caption per picture, what to find, masks, words."""
        generator = np.random.default_rng([self.seed, step])
        chosen = generator.integers(len(self.pictures.words), size=self.size)
        images = self.pictures.images[chosen].float() / 255
        masks = self.pictures.masks[chosen]
        noise = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        spoiled, bent = spoil(images, masks, noise)
        clean = torch.from_numpy(generator.random(self.size) < CLEAN_SHARE)
        images = torch.where(clean[:, None, None, None], images, spoiled)
        masks = torch.where(clean[:, None, None, None], masks, bent)
        words = [self.pictures.words[index] for index in chosen]
        captions = [caption_phrases(generator, item) for item in words]
        tokens, spans = encode_captions(captions, self.vocabulary)
        targets = make_targets(masks, words, captions, spans, tokens["input_ids"].shape[1])
        return normalize(images), tokens, targets, masks, words


def encode_captions(
    captions: Sequence[Sequence[Phrase]], vocabulary: dict[str, int]
) -> tuple[dict[str, Tensor], list[list[tuple[int, int]]]]:
    """Token ids as the tokenizer makes them, and where each phrase lies (start, end)."""
    rows, spans = [], []
    for phrases in captions:
        row, places = [SPECIAL_TOKENS["[CLS]"]], []
        for phrase in phrases:
            start = len(row)
            row.extend(vocabulary.get(word, SPECIAL_TOKENS["[UNK]"]) for word in phrase.text.split())
            places.append((start, len(row)))
            row.append(SPECIAL_TOKENS["."])
        rows.append([*row, SPECIAL_TOKENS["[SEP]"]])
        spans.append(places)
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}, spans


def make_targets(
    masks: Tensor,
    words: Sequence[Sequence[Words]],
    captions: Sequence[Sequence[Phrase]],
    spans: Sequence[Sequence[tuple[int, int]]],
    length: int,
) -> Targets:
    """Boxes and token labels of all objects that some phrase of the caption fits."""
    found = boxes_of_masks(masks) / world.SIZE
    centre, size = (found[..., :2] + found[..., 2:]) / 2, found[..., 2:] - found[..., :2]
    tokens = torch.zeros(len(words), MAX_OBJECTS, length)
    visible = masks.sum((-1, -2)) >= SMALLEST_AREA
    for row, (objects, phrases, places) in enumerate(zip(words, captions, spans, strict=True)):
        for number, item in enumerate(objects):
            for phrase, (start, end) in zip(phrases, places, strict=True):
                if visible[row, number] and phrase.fits(item):
                    tokens[row, number, start:end] = 1
    return Targets(torch.cat([centre, size], dim=-1), tokens, tokens.any(-1))


def quick_figures(model: nn.Module, pictures: Pictures, vocabulary: dict[str, int], spoiled: bool) -> dict:
    """Recall of present phrases and false alarms on absent ones at a score of 0.35, raw, without merging."""
    generator = np.random.default_rng(5)
    images, masks = pictures.images.float() / 255, pictures.masks
    if spoiled:
        images, masks = spoil(images, masks, torch.Generator().manual_seed(5))
    boxes = boxes_of_masks(masks)
    captions, rows, truth = [], [], []
    for row, words in enumerate(pictures.words):
        # The first object by both words, and one near miss.
        if words and masks[row, 0].sum() >= SMALLEST_AREA:
            captions.append([Phrase(" ".join(words[0]), *words[0])])
            rows.append(row)
            truth.append([number for number, item in enumerate(words) if item == words[0]])
        captions.append([absent_phrase(generator, words)])
        rows.append(row)
        truth.append([])
    tokens, _ = encode_captions(captions, vocabulary)
    hits, present, alarms, absent = 0, 0, 0, 0
    for start in range(0, len(rows), 64):
        part = slice(start, start + 64)
        output = model(pixel_values=normalize(images[rows[part]]), **{k: v[part] for k, v in tokens.items()})
        scores = output.logits.sigmoid().amax(-1)
        best = scores.argmax(1)
        found = corners(output.pred_boxes)[torch.arange(len(best)), best] * world.SIZE
        for index, numbers in enumerate(truth[part]):
            score = float(scores[index, best[index]])
            if numbers:
                present += 1
                wanted = boxes[rows[part][index], numbers]
                hits += score > 0.35 and float(_iou(found[index], wanted).max()) >= 0.5
            else:
                absent += 1
                alarms += score > 0.35
    name = "spoiled" if spoiled else "clean"
    return {f"{name} recall": hits / max(present, 1), f"{name} alarms": alarms / max(absent, 1)}


def _iou(box: Tensor, others: Tensor) -> Tensor:
    overlap = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0).prod(-1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1)
    return overlap / (area - overlap)


def main(arguments: list[str]) -> None:
    """Train, then write ``toybox/detector`` as a transformers folder in fp16."""
    parser = training_parser("detector", __doc__, Path("toybox/detector"), steps=3000, batch=32, learning_rate=8e-4)
    parser.add_argument("--pool", type=int, default=12000, help="pictures drawn before training starts")
    parser.add_argument(
        "--lower-scores",
        type=float,
        default=0.35,
        help="logits to take off all scores at the end, so that a box threshold of 0.35 keeps false alarms rare",
    )
    options = begin(parser, arguments)
    model = build_detector().to(options.device).train()
    processor = build_detector_processor()
    vocabulary = processor.tokenizer.get_vocab()
    pool = draw_pictures(np.random.default_rng(options.seed), options.pool, "train", pairs=0.6)
    held_out = draw_pictures(np.random.default_rng(10_000 + options.seed), 128, "held_out")
    batches = Batches(pool, vocabulary, options.batch, options.seed)

    settings = LoopSettings(options.run, options.steps, options.learning_rate)
    attributes = AttributeHead(model).to(options.device)
    trained = nn.ModuleDict({"detector": model, "attributes": attributes})

    def loss_at_step(step: int) -> Tensor:
        pixels, tokens, targets, masks, words = batches.at(step)
        tokens = {name: value.to(options.device) for name, value in tokens.items()}
        moved = Targets(*(value.to(options.device) for value in (targets.boxes, targets.tokens, targets.present)))
        predictions = predict(model, pixels.to(options.device), tokens)
        # A high weight of hits finds everything early; a lower one at the end makes near misses score low.
        alpha = 0.6 if step < settings.decay_start else 0.35
        loss = detector_loss(predictions, moved, tokens["attention_mask"].bool(), alpha)
        return loss + attributes.loss(masks, words)

    def evaluate() -> dict[str, float]:
        model.cpu()
        figures = quick_figures(model, held_out, vocabulary, False) | quick_figures(model, held_out, vocabulary, True)
        model.to(options.device)
        return figures

    train(trained, loss_at_step, evaluate, settings)
    lower_scores(model.cpu(), options.lower_scores)
    save_model_folder(model, processor, options.out)
