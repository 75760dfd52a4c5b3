"""Boxes from words, by GroundingDINO (transformers classes; Liu et al., arXiv 2303.05499)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .boxes import Box, Detections, Progress, clamp_box, suppress
from .frames import as_bytes, check_frames
from .loading import load_model_folder, load_processor


def split_phrases(text: str) -> list[str]:
    """Phrases of one text field: separated by full stops, commas, semicolons or new lines, in lower case, once each.

    Example:
        >>> split_phrases("Red ball, blue square.")
        ['red ball', 'blue square']
    """
    parts = (" ".join(part.lower().split()) for part in re.split(r"[.,;\n]", text))
    return list(dict.fromkeys(part for part in parts if part))


class GroundingDinoDetector:
    """Finds what phrases name in each frame of a clip.

    Args:
        model: transformers ``GroundingDinoForObjectDetection``. It may be moved between calls; every call runs where
            its parameters are.
        processor: the matching ``GroundingDinoProcessor``.
        device: where to move the model now; None leaves it.
        batch_size: frames per forward pass, at least 1.
    """

    def __init__(
        self, model: nn.Module, processor: Any, device: torch.device | str | None = None, batch_size: int = 4
    ) -> None:
        self.model = model if device is None else model.to(device)
        self.processor = processor
        self.batch_size = batch_size

    def detect(
        self,
        frames: Tensor,
        phrases: Sequence[str],
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
        nms_threshold: float = 0.7,
        joint: bool = False,
        progress: Progress | None = None,
    ) -> Detections:
        """Find objects.

        Args:
            frames: float [T, H, W, 3], 0..1.
            phrases: what to look for, ``["red ball", "blue square"]``.
            box_threshold: 0..1, a box needs a better score; the score is that of its best word.
            text_threshold: 0..1, a box needs a word of the phrase with a better score than this.
            nms_threshold: 0..1, of boxes that overlap more (IoU), whatever their phrase, the best stays; 1 keeps all.
            joint: ask for all phrases in one caption. One pass instead of one per phrase, but phrases then mix.
            progress: called with (done, total) counted in frames times captions.

        Returns:
            One list per frame, best score first, clamped to the frame; empty where nothing was found. Labels are the
            phrases.

        Raises:
            ValueError: for bad frames, phrases or thresholds.
        """
        frames = check_frames(frames)
        for name, value in (
            ("box_threshold", box_threshold),
            ("text_threshold", text_threshold),
            ("nms_threshold", nms_threshold),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}; choose a number from 0 to 1.")
        wanted = self._check_phrases(phrases)
        captions = [wanted] if joint else [[phrase] for phrase in wanted]
        total = len(frames) * len(captions)
        found: Detections = [[] for _ in frames]
        done = 0
        for caption in captions:
            for start in range(0, len(frames), self.batch_size):
                part = frames[start : start + self.batch_size]
                for offset, boxes in enumerate(self._detect_batch(part, caption, box_threshold, text_threshold)):
                    found[start + offset].extend(boxes)
                done += len(part)
                if progress is not None:
                    progress(done, total)
        return [suppress(boxes, nms_threshold) for boxes in found]

    def _check_phrases(self, phrases: Sequence[str]) -> list[str]:
        if isinstance(phrases, str):
            phrases = split_phrases(phrases)
        wanted = []
        for phrase in phrases:
            text = " ".join(phrase.lower().split()).rstrip(".").strip()
            if not text:
                raise ValueError(f"phrase {phrase!r} is empty; name an object, for example 'red ball'.")
            if "." in text:
                raise ValueError(f"phrase {phrase!r} holds a full stop; give the parts as separate phrases.")
            wanted.append(text)
        if not wanted:
            raise ValueError("there are no phrases; name at least one object, for example 'red ball'.")
        return list(dict.fromkeys(wanted))

    @torch.no_grad()
    def _detect_batch(
        self, frames: Tensor, phrases: Sequence[str], box_threshold: float, text_threshold: float
    ) -> Detections:
        """Boxes of a few frames for one caption."""
        caption = " ".join(f"{phrase}." for phrase in phrases)
        parameter = next(self.model.parameters())
        inputs = self.processor(images=as_bytes(frames), text=[caption] * len(frames), return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        limit = self.model.config.max_text_len
        if length > limit:
            raise ValueError(
                f"phrases make {length} tokens and this detector reads {limit}; shorten them or ask one by one."
            )
        inputs = {name: value.to(parameter.device) for name, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(parameter.dtype)
        outputs = self.model(**inputs)
        # Half precision boxes would be off by a pixel in wide frames.
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        height, width = frames.shape[1:3]
        results = post_process(
            self.processor, outputs, inputs["input_ids"], box_threshold, text_threshold, [(height, width)] * len(frames)
        )
        return [_boxes_of_result(result, phrases, height, width) for result in results]


def post_process(
    processor: Any,
    outputs: Any,
    input_ids: Tensor,
    box_threshold: float,
    text_threshold: float,
    sizes: Sequence[tuple[int, int]],
) -> list[dict[str, Any]]:
    """Call the processor's post-processing under whichever argument names this transformers version has.

    Returns:
        One dictionary per frame with ``boxes`` (x0, y0, x1, y1 in pixels), ``scores`` and ``text_labels``.
    """
    function = processor.post_process_grounded_object_detection
    name = "threshold" if "threshold" in inspect.signature(function).parameters else "box_threshold"
    results = function(
        outputs, input_ids, text_threshold=text_threshold, target_sizes=list(sizes), **{name: box_threshold}
    )
    # Reading "labels" warns in versions that have both.
    return [
        {
            "boxes": result["boxes"],
            "scores": result["scores"],
            "text_labels": result["text_labels"] if "text_labels" in result else result["labels"],
        }
        for result in results
    ]


def _boxes_of_result(result: dict[str, Any], phrases: Sequence[str], height: int, width: int) -> list[Box]:
    boxes = []
    # Without any box, transformers 5 still decodes one empty label.
    rows = zip(result["boxes"].tolist(), result["scores"].tolist(), result["text_labels"], strict=False)
    for (x0, y0, x1, y1), score, text in rows:
        label = match_phrase(text, phrases)
        if label is None or x1 <= x0 or y1 <= y0:
            continue
        box = clamp_box(Box.from_corners(x0, y0, x1, y1, label, score), height, width)
        if box is not None:
            boxes.append(box)
    return boxes


def match_phrase(text: str, phrases: Sequence[str]) -> str | None:
    """The phrase that the words of a label belong to: the largest share of its words, then the earliest.

    Args:
        text: words that scored above the text threshold, perhaps of several phrases, perhaps part of a word.
        phrases: that were asked for.

    Returns:
        One of ``phrases``, or None when the label has no word of any.
    """
    letters = text.replace(" ", "").replace("#", "").replace(".", "")
    if not letters:
        return None
    if len(phrases) == 1:
        return phrases[0]
    words = set(text.split())
    shares = [len(words & set(phrase.split())) / len(phrase.split()) for phrase in phrases]
    best = max(range(len(phrases)), key=lambda index: shares[index])
    if shares[best] > 0:
        return phrases[best]
    # Only pieces of words were found.
    inside = [phrase for phrase in phrases if letters in phrase.replace(" ", "")]
    return inside[0] if inside else None


def load_grounding_dino(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> GroundingDinoDetector:
    """Open a GroundingDINO folder in the transformers layout.

    Args:
        folder: with config.json, weights, tokenizer and image processor files.
        dtype: of the weights in memory.
        device: where to move the model; None leaves it on the CPU.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when a file is broken.
    """
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    model = load_model_folder(GroundingDinoForObjectDetection, folder, "grounding-dino", dtype)
    return GroundingDinoDetector(model, load_processor(GroundingDinoProcessor, folder), device)
