"""Masks from boxes, followed over time, by SAM (transformers classes; Kirillov et al., arXiv 2304.02643)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .association import BoxTrack, associate, fill_order, guess_box, keep_tracks, neighbours_of
from .boxes import Box, Detections, Progress, clamp_box
from .frames import as_bytes, check_frames
from .loading import load_model_folder, load_processor
from .mask_shapes import box_of_mask, enlarge, mask_iou, moved_shape
from .sam_format import sam_model_from_file
from .tracks import Tracks

# A mask made for an unseen frame is believed when SAM gives it at least this IoU and it looks like its neighbours.
FILL_SCORE = 0.6
FILL_LIKENESS = 0.5


@dataclass(frozen=True)
class TrackSettings:
    """How detections become tracks.

    Attributes:
        max_gap: frames, at least 0: an object unseen for no longer keeps its number, and the gap is filled.
        extend: frames, at least 0: how far an object is carried before its first and after its last sighting.
        minimum_seen: frames, at least 1: objects seen in fewer are dropped (in clips shorter than 4 frames none is).
        max_objects: at least 1, the most often and most surely seen ones are kept; None keeps all.
        soft: keep the soft edge of the masks instead of cutting at one half.
        duplicate_iou: 0..1: of two objects whose masks overlap more than this in most frames that they share, the surer
            one stays (two boxes or two phrases for one thing); 1 keeps both.
    """

    max_gap: int = 8
    extend: int = 2
    minimum_seen: int = 2
    max_objects: int | None = None
    soft: bool = False
    duplicate_iou: float = 0.75

    def __post_init__(self) -> None:
        for name, least in (("max_gap", 0), ("extend", 0), ("minimum_seen", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; choose {least} or more.")
        if not 0.0 <= self.duplicate_iou <= 1.0:
            raise ValueError(f"duplicate_iou is {self.duplicate_iou}; choose a number from 0 to 1.")
        if self.max_objects is not None and self.max_objects < 1:
            raise ValueError(f"max_objects is {self.max_objects}; choose 1 or more, or None for all.")


class SamTracker:
    """Turns boxes per frame into masks per object.

    Args:
        model: transformers ``SamModel``. It may be moved between calls; every call runs where its parameters are.
        processor: the matching ``SamProcessor``.
        device: where to move the model now; None leaves it.
        batch_size: frames per pass of the picture encoder, at least 1.
    """

    def __init__(
        self, model: nn.Module, processor: Any, device: torch.device | str | None = None, batch_size: int = 4
    ) -> None:
        self.model = model if device is None else model.to(device)
        self.processor = processor
        self.batch_size = batch_size

    def track(
        self,
        frames: Tensor,
        detections: Detections,
        settings: TrackSettings | None = None,
        progress: Progress | None = None,
    ) -> Tracks:
        """Segment every detected object in every frame and keep its number over time.

        Args:
            frames: float [T, H, W, 3], 0..1.
            detections: one list of boxes per frame; any of them, or all, may be empty.
            settings: see :class:`TrackSettings`.
            progress: called with (done, total) in frames; frames looked at again to fill gaps count anew.

        Returns:
            Masks for exactly the T frames given, N = 0 objects when there is no box at all.

        Raises:
            ValueError: for bad frames or another number of lists than frames.
        """
        settings = settings or TrackSettings()
        frames = check_frames(frames)
        count, height, width = frames.shape[:3]
        if len(detections) != count:
            raise ValueError(
                f"there are detections for {len(detections)} frames and {count} frames; give one list each."
            )
        inside = [[clamp_box(box, height, width) for box in boxes] for boxes in detections]
        clamped = [[box for box in boxes if box is not None] for boxes in inside]
        least = settings.minimum_seen if count >= 4 else 1
        tracks = keep_tracks(associate(clamped, settings.max_gap), least, settings.max_objects)
        if not tracks:
            return Tracks.empty(count, height, width)

        seen = _Requests()
        for number, track in enumerate(tracks):
            for frame, box in track.boxes.items():
                seen.add(frame, number, box)
        gaps = fill_order(tracks, count, settings.max_gap, settings.extend)
        counter = _Counter(progress, len(seen.frames()) + sum(len(steps) for steps in gaps))
        found = self._segment(frames, seen, settings.soft, counter)
        kept = distinct_objects(tracks, found, settings.duplicate_iou)
        canvas = _Canvas.blank(len(kept), count, height, width)
        for place, number in enumerate(kept):
            for frame, box in tracks[number].boxes.items():
                mask, score = found[frame, number]
                # A box in which SAM sees nothing is no sighting.
                if mask.any():
                    canvas.put(place, frame, mask, min(score, box.score), missed=False)
        tracks = [tracks[number] for number in kept]
        self._fill(frames, tracks, canvas, settings, counter)
        return Tracks(
            canvas.masks,
            tuple(range(1, len(tracks) + 1)),
            tuple(track.label for track in tracks),
            canvas.scores,
            canvas.misses,
        )

    def masks_at_boxes(self, frame: Tensor, boxes: Sequence[Box], soft: bool = False) -> Tensor:
        """Segment boxes in one frame.

        Args:
            frame: float [H, W, 3], 0..1.
            boxes: in pixels, inside the frame.
            soft: keep soft edges.

        Returns:
            float [N, H, W], 0..1, one mask per box.
        """
        frames = check_frames(frame)
        requests = _Requests()
        for number, box in enumerate(boxes):
            requests.add(0, number, box)
        found = self._segment(frames, requests, soft, _Counter(None, 1))
        if not found:
            return torch.zeros(0, *frames.shape[1:3])
        return torch.stack([found[0, number][0] for number in range(len(boxes))]).float() / 255

    @torch.no_grad()
    def mask_at_points(self, frame: Tensor, points: Sequence[tuple[float, float]], inside: Sequence[bool]) -> Tensor:
        """Segment what points mark in one frame.

        Args:
            frame: float [H, W, 3], 0..1.
            points: (x, y) in pixels, at least one.
            inside: per point, True on the object and False off it.

        Returns:
            float [H, W], 0 or 1.

        Raises:
            ValueError: when there is no point or the counts differ.
        """
        if not points or len(points) != len(inside):
            raise ValueError(f"there are {len(points)} points with {len(inside)} labels; give at least one of each.")
        frames = check_frames(frame)
        encoded = self._encode(frames)
        scale = encoded.scale()
        device = encoded.embeddings.device
        place = torch.tensor(points, dtype=torch.float32, device=device) * torch.tensor(scale, device=device)
        outputs = self.model(
            image_embeddings=encoded.embeddings,
            input_points=place[None, None].to(encoded.embeddings.dtype),
            input_labels=torch.tensor([int(value) for value in inside], device=device)[None, None],
            multimask_output=True,
        )
        logits, _ = self._best_masks(outputs, encoded, 0)
        return (logits[0] > 0).float()

    def _segment(
        self, frames: Tensor, requests: _Requests, soft: bool, counter: _Counter
    ) -> dict[tuple[int, int], tuple[Tensor, float]]:
        """Masks (uint8 [H, W]) and predicted IoU for all requested (frame, object) pairs."""
        found: dict[tuple[int, int], tuple[Tensor, float]] = {}
        order = requests.frames()
        for start in range(0, len(order), self.batch_size):
            chunk = order[start : start + self.batch_size]
            with torch.no_grad():
                encoded = self._encode(frames[chunk])
                for place, frame in enumerate(chunk):
                    numbers, boxes = requests.of_frame(frame)
                    logits, scores = self._prompt(encoded, place, boxes)
                    masks = logits.sigmoid() if soft else (logits > 0).float()
                    for number, mask, score in zip(numbers, masks, scores.tolist(), strict=True):
                        found[frame, number] = (mask * 255).round().to(torch.uint8), min(max(score, 0.0), 1.0)
            counter.step(len(chunk))
        return found

    def _encode(self, frames: Tensor) -> _Encoded:
        parameter = next(self.model.parameters())
        inputs = self.processor(images=as_bytes(frames), return_tensors="pt")
        pixels = inputs["pixel_values"].to(parameter.device, parameter.dtype)
        return _Encoded(
            self.model.get_image_embeddings(pixels),
            [tuple(int(side) for side in size) for size in inputs["original_sizes"]],
            [tuple(int(side) for side in size) for size in inputs["reshaped_input_sizes"]],
        )

    def _prompt(self, encoded: _Encoded, place: int, boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
        """Best of three candidates per box: logits float [N, H, W] at frame size, predicted IoU [N]."""
        embeddings = encoded.embeddings[place : place + 1]
        x_scale, y_scale = encoded.scale(place)
        corners = torch.tensor([box.scaled(x_scale, y_scale).corners for box in boxes])
        outputs = self.model(
            image_embeddings=embeddings,
            input_boxes=corners[None].to(embeddings.device, embeddings.dtype),
            multimask_output=True,
        )
        return self._best_masks(outputs, encoded, place)

    def _best_masks(self, outputs: Any, encoded: _Encoded, place: int) -> tuple[Tensor, Tensor]:
        scores = outputs.iou_scores[0].float()
        best = scores.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        low = outputs.pred_masks[0][rows, best].float()
        vision = self.model.config.vision_config
        logits = enlarge(low, vision.image_size, encoded.reshaped[place], encoded.original[place])
        return logits.cpu(), scores[rows, best].cpu()

    def _fill(
        self, frames: Tensor, tracks: Sequence[BoxTrack], canvas: _Canvas, settings: TrackSettings, counter: _Counter
    ) -> None:
        """Make masks for frames in which an object was not seen, nearest to a sighting first."""
        height, width = frames.shape[1:3]
        for number, (track, steps) in enumerate(
            zip(tracks, fill_order(tracks, len(frames), settings.max_gap, settings.extend), strict=True)
        ):
            known = dict(track.boxes)
            for frame in steps:
                guess = guess_box(known, frame)
                box = clamp_box(guess, height, width)
                if box is None:
                    counter.step(1)
                    continue
                neighbours = neighbours_of(frame, known)
                shape = moved_shape(
                    [canvas.masks[number, other] for other in neighbours],
                    [known[other] for other in neighbours],
                    [abs(frame - other) for other in neighbours],
                    guess,
                )
                request = _Requests()
                request.add(frame, number, box)
                mask, score = self._segment(frames, request, settings.soft, counter)[frame, number]
                if score < FILL_SCORE or mask_iou(mask, shape) < FILL_LIKENESS:
                    mask = shape
                canvas.put(number, frame, mask, 0.0, missed=True)
                # What was found there guides the next frame; an empty mask guides nowhere.
                known[frame] = box_of_mask(mask, track.label) or box


class _Requests:
    """Boxes to segment, by frame."""

    def __init__(self) -> None:
        self._by_frame: dict[int, list[tuple[int, Box]]] = {}

    def add(self, frame: int, number: int, box: Box) -> None:
        self._by_frame.setdefault(frame, []).append((number, box))

    def frames(self) -> list[int]:
        return sorted(self._by_frame)

    def of_frame(self, frame: int) -> tuple[list[int], list[Box]]:
        pairs = self._by_frame[frame]
        return [number for number, _ in pairs], [box for _, box in pairs]


class _Counter:
    """Counts frames for the caller's progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self, frames: int) -> None:
        self.done += frames
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


@dataclass(frozen=True)
class _Encoded:
    """Picture embeddings of a few frames and the sizes (height, width) before and after resizing."""

    embeddings: Tensor
    original: list[tuple[int, ...]]
    reshaped: list[tuple[int, ...]]

    def scale(self, place: int = 0) -> tuple[float, float]:
        """(x, y) factors from frame pixels to model pixels."""
        return (
            self.reshaped[place][1] / self.original[place][1],
            self.reshaped[place][0] / self.original[place][0],
        )


@dataclass
class _Canvas:
    """Results while they are made; starts empty with everything missed."""

    masks: Tensor
    scores: Tensor
    misses: Tensor

    @classmethod
    def blank(cls, objects: int, frames: int, height: int, width: int) -> _Canvas:
        return cls(
            torch.zeros(objects, frames, height, width, dtype=torch.uint8),
            torch.zeros(objects, frames),
            torch.ones(objects, frames, dtype=torch.bool),
        )

    def put(self, number: int, frame: int, mask: Tensor, score: float, missed: bool) -> None:
        self.masks[number, frame] = mask
        self.scores[number, frame] = score
        self.misses[number, frame] = missed


def distinct_objects(
    tracks: Sequence[BoxTrack], found: dict[tuple[int, int], tuple[Tensor, float]], threshold: float
) -> list[int]:
    """Positions of the tracks that remain when every thing is kept once, in their order.

    Args:
        tracks: in order.
        found: mask (uint8 [H, W]) and score by (frame, position of the track).
        threshold: see ``TrackSettings.duplicate_iou``.
    """
    sureness = [sum(box.score for box in track.boxes.values()) for track in tracks]
    kept: list[int] = []
    for number in sorted(range(len(tracks)), key=lambda index: -sureness[index]):
        frames = tracks[number].boxes.keys()
        for other in kept:
            shared = frames & tracks[other].boxes.keys()
            alike = [mask_iou(found[frame, number][0], found[frame, other][0]) > threshold for frame in shared]
            if alike and 2 * sum(alike) > len(alike):
                break
        else:
            kept.append(number)
    return sorted(kept)


def load_sam(
    path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> SamTracker:
    """Open SAM weights.

    Args:
        path: a folder in the transformers layout, or a file in the original segment-anything layout.
        dtype: of the weights in memory.
        device: where to move the model; None leaves it on the CPU.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the path holds another kind of model.
        RuntimeError: when a file is broken.
    """
    from transformers import SamModel, SamProcessor

    path = Path(path)
    if path.is_file():
        model, processor = sam_model_from_file(path)
        return SamTracker(model.to(dtype).eval(), processor, device)
    model = load_model_folder(SamModel, path, "sam", dtype)
    return SamTracker(model, load_processor(SamProcessor, path), device)
