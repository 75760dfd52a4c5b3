"""Boxes from words, by any GroundingDINO (Liu et al., arXiv 2303.05499): phrases, thresholds, batches, overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..boxes import Box, Detections, Progress, clamp_box, suppress
from ..frames import Film
from .grounding import GroundingModel, Pictures, computed_once
from .phrases import check_phrases, share_out

# Memory that a pass takes for one pixel of the prepared picture, in float32: measured with a full-size Swin-T.
BYTES_PER_PIXEL = 3000
# Part of the free memory that a batch may fill, and what it may fill where the free memory is unknown.
SHARE_OF_FREE = 0.6
BUDGET = 1 << 30
LARGEST_BATCH = 16
# Length over breadth of a picture at most.
LONGEST_STRIP = 8


class ObjectDetector:
    """Finds what phrases name in each frame of a video.

    Args:
        grounding: the model. Its module may be moved between calls; every call runs where its parameters are.
        batch_size: frames per forward pass, at least 1; None takes as many as fit in the free memory.

    Attributes:
        model: the torch module.
    """

    def __init__(self, grounding: GroundingModel, batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; choose 1 or more, or None to fit the memory.")
        self.grounding = grounding
        self.model = grounding.model
        self.batch_size = batch_size

    def detect(
        self,
        frames: Tensor | Film,
        phrases: Sequence[str],
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
        nms_threshold: float = 0.7,
        *,
        joint: bool = False,
        per_class: bool = False,
        max_per_phrase: int | None = None,
        max_boxes: int | None = None,
        every: int = 1,
        progress: Progress | None = None,
    ) -> Detections:
        """Find objects.

        Args:
            frames: [T, H, W, 3], float 0..1 or uint8; read a few at a time, never copied as a whole.
            phrases: what to look for, ``["red ball", "blue square"]``, any number.
            box_threshold: 0..1, a box needs a better score; the score is that of the phrase's best word.
            text_threshold: 0..1, a box needs a word of the phrase with a better score than this too.
            nms_threshold: 0..1, of boxes that overlap more (IoU) the best stays, whatever their phrase: a thing that
                two phrases name is found once; 1 keeps all.
            joint: ask for as many phrases at once as fit in a caption. Fewer passes than one per phrase, but the
                phrases then influence each other.
            per_class: only boxes of the same phrase compete, so that one thing may be found under two phrases.
            max_per_phrase: how many boxes of each phrase to keep in a frame, best first; None keeps all.
            max_boxes: how many boxes to keep in a frame, best first; None keeps all.
            every: look at every n-th frame only, see :func:`looked_at`; the lists of the others are empty.
            progress: called after each pass with (done, total), counted in frames times captions; it may raise to
                cancel.

        Returns:
            One list per frame, best score first, clamped to the frame; empty where nothing was found. Labels are the
            phrases.

        Raises:
            ValueError: for bad frames, phrases, thresholds or counts.
            BrokenAnswerError: when the model answers with NaN.
            RuntimeError: running out of memory halves the batch once, then is raised.
        """
        _check_options(box_threshold, text_threshold, nms_threshold, max_per_phrase, max_boxes)
        film = Film(frames)
        wanted = check_phrases(phrases)
        tokens = [self.grounding.count_tokens(phrase) for phrase in wanted]
        captions = share_out(wanted, tokens, self.grounding.token_limit, joint)
        rows = looked_at(len(film), every)
        size = self.batch_size or (self._fitting_batch(film) if len(rows) > 1 else 1)
        may_halve = size > 1
        least = max(box_threshold, text_threshold)
        found: Detections = [[] for _ in range(len(film))]
        done = 0
        while done < len(rows):
            batch = rows[done : done + size]
            tick = _Ticks(progress, done * len(captions), len(batch), len(rows) * len(captions))
            try:
                pictures = self.grounding.prepare(no_strips(film.read(batch)))
                candidates = self._look(pictures, (film.height, film.width), captions, least, tick)
            except torch.cuda.OutOfMemoryError:
                if not may_halve:
                    raise
                size, may_halve = max(1, min(size, len(batch)) // 2), False
                continue
            for row, boxes in zip(batch, candidates, strict=True):
                found[row] = best_boxes(suppress(boxes, nms_threshold, per_class), max_per_phrase, max_boxes)
            done += len(batch)
        return found

    @torch.no_grad()
    def _look(
        self,
        pictures: Pictures,
        size: tuple[int, int],
        captions: Sequence[Sequence[str]],
        least: float,
        tick: _Ticks,
    ) -> Detections:
        """Boxes with a better score than ``least``, for each picture and all captions."""
        found: Detections = [[] for _ in range(len(pictures.pixels))]
        with computed_once(self.grounding.picture_encoder):
            for caption in captions:
                seen = self.grounding.ground(pictures, caption)
                numbers, queries, places = (seen.scores > least).nonzero(as_tuple=True)
                corners = seen.boxes[numbers, queries].tolist()
                scores = seen.scores[numbers, queries, places].tolist()
                hits = zip(numbers.tolist(), places.tolist(), corners, scores, strict=True)
                for number, place, (x0, y0, x1, y1), score in hits:
                    if x1 <= x0 or y1 <= y0:
                        continue
                    box = Box.from_corners(x0, y0, x1, y1, caption[place], score)
                    box = clamp_box(box, *size)
                    if box is not None:
                        found[number].append(box)
                tick()
        return found

    def _fitting_batch(self, film: Film) -> int:
        """How many frames a pass may take, by the free memory and the size of a prepared picture."""
        height, width = self.grounding.prepare(no_strips(film.read([0]))).pixels.shape[-2:]
        room = BUDGET
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            # What torch holds but does not use is free for it.
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            room = int(free * SHARE_OF_FREE)
        return max(1, min(LARGEST_BATCH, room // (height * width * BYTES_PER_PIXEL)))


def no_strips(frames: Tensor) -> Tensor:
    """Frames of more than 8 to 1 with grey below or beside them, so that a model's grid has a cell in both directions.

    Their scale stays: detectors bring the longer side to a length, and a strip's other side may become a pixel.

    Args:
        frames: float [B, H, W, 3]; of other shapes they come back as they are.
    """
    height, width = frames.shape[1:3]
    below, beside = max(0, -(-width // LONGEST_STRIP) - height), max(0, -(-height // LONGEST_STRIP) - width)
    return functional.pad(frames, (0, 0, 0, beside, 0, below), value=0.5) if below or beside else frames


class _Ticks:
    """Reports progress of one batch, caption after caption."""

    def __init__(self, progress: Progress | None, done: int, step: int, total: int) -> None:
        self.progress, self.done, self.step, self.total = progress, done, step, total

    def __call__(self) -> None:
        self.done += self.step
        if self.progress is not None:
            self.progress(self.done, self.total)


def looked_at(frames: int, every: int) -> list[int]:
    """The frames of a video in which objects are looked for: the first, every n-th after it, and the last.

    The last is among them so that an object that comes late is not missed, and a tracker can work back from it.

    Args:
        frames: of the video, at least 1.
        every: at least 1, which means all.

    Raises:
        ValueError: when ``every`` is below 1.

    Example:
        >>> looked_at(10, 4)
        [0, 4, 8, 9]
    """
    if every < 1:
        raise ValueError(f"every is {every}; choose 1 to look at all frames, or more.")
    return sorted({*range(0, frames, every), frames - 1})


def best_boxes(boxes: Sequence[Box], max_per_phrase: int | None, max_boxes: int | None) -> list[Box]:
    """The first boxes of each label and of all, in the given order; None sets no limit."""
    kept: list[Box] = []
    counts: dict[str, int] = {}
    for box in boxes:
        count = counts.get(box.label, 0)
        if max_per_phrase is None or count < max_per_phrase:
            counts[box.label] = count + 1
            kept.append(box)
    return kept[:max_boxes]


def _check_options(box: float, text: float, nms: float, max_per_phrase: int | None, max_boxes: int | None) -> None:
    for name, value in (("box_threshold", box), ("text_threshold", text), ("nms_threshold", nms)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}; choose a number from 0 to 1.")
    for name, count in (("max_per_phrase", max_per_phrase), ("max_boxes", max_boxes)):
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; choose 1 or more, or None for all.")
