"""Boxes of other node packs: BBOX tuples, and SEGS of the Impact Pack; read and written. Nothing is guessed.

BBOX has no type: KJNodes mostly passes (x, y, width, height) with one box per frame, segment-anything-2 (x0, y0, x1,
y1) with a list per frame, so both the sides and the nesting are named by the caller. SEGS is ``((height, width),
[SEG])`` (ltdrdata/ComfyUI-Impact-Pack, ``modules/impact/core.py``): about one picture, or, where the mask of a SEG has
three dimensions as in the pack's nodes for AnimateDiff, about one object in all frames of a video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .boxes import Box, Detections, as_number, clamp_box, shown
from .mask_stack import too_large

Sides = Literal["xywh", "xyxy"]
Nesting = Literal["one_per_frame", "every_frame", "list_per_frame"]

SIDES = ("xywh", "xyxy")
NESTINGS = ("one_per_frame", "every_frame", "list_per_frame")
# What a frame without an object holds where one box per frame is expected.
NO_BOX = (0, 0, 0, 0)


class SEG(NamedTuple):
    """A segment with the fields that the Impact Pack reads by name.

    Attributes:
        cropped_image: float [1, h, w, 3] of the crop region, or None.
        cropped_mask: float32 array [h, w] of the crop region, 0..1; a tensor [frames, h, w] for a video.
        confidence: 0..1.
        crop_region: [x0, y0, x1, y1], whole pixels.
        bbox: likewise, of the object.
        label: what it is.
        control_net_wrapper: the pack's own.
    """

    cropped_image: Any
    cropped_mask: Any
    confidence: float
    crop_region: list[int]
    bbox: list[int]
    label: str
    control_net_wrapper: Any = None


Segs = tuple[tuple[int, int], list[SEG]]


def from_bbox(boxes: Any, frames: int, sides: Sides, nesting: Nesting, label: str = "") -> Detections:
    """Read BBOX tuples.

    Args:
        boxes: four numbers, a list of them, or a list of such lists; arrays and tensors too. None and boxes of no size
            are frames without an object, an empty list is a video without one.
        frames: of the video.
        sides: ``xywh`` (left, top, width, height) or ``xyxy`` (left, top, right, bottom), in pixels.
        nesting: ``one_per_frame``: the list has one box for each frame (KJNodes); ``every_frame``: its boxes are in
            every frame alike; ``list_per_frame``: it has a list for each frame, or one list for all
            (segment-anything-2).
        label: for all of them.

    Returns:
        One list per frame.

    Raises:
        ValueError: when the nesting or the number of frames is wrong, or an entry is not a box.
    """
    _check_choice("sides", sides, SIDES)
    _check_choice("nesting", nesting, NESTINGS)
    boxes = _plain(boxes)
    if boxes is not None and not isinstance(boxes, list):
        raise ValueError(f"a BBOX is {shown(boxes)}; give four numbers, a list of them, or a list of such lists.")
    if not boxes:
        return [[] for _ in range(frames)]
    if _is_row(boxes):
        boxes = [boxes] if nesting != "list_per_frame" else [[boxes]]
    if nesting == "every_frame":
        found = _rows(boxes, sides, label)
        return [list(found) for _ in range(frames)]
    per_frame = [[box] for box in boxes] if nesting == "one_per_frame" else boxes
    if len(per_frame) == 1:
        per_frame = per_frame * frames
    if len(per_frame) != frames:
        raise ValueError(
            f"there are boxes for {len(per_frame)} frames and the video has {frames}; choose the nesting that fits "
            f"({', '.join(NESTINGS)}), or give boxes for each frame."
        )
    return [_rows(row, sides, label) for row in per_frame]


def to_bbox(detections: Detections, sides: Sides, nesting: Nesting) -> list[Any]:
    """Write BBOX tuples; labels and scores are lost, because BBOX has no field for them.

    Args:
        detections: one list per frame.
        sides: as :func:`from_bbox`.
        nesting: as there; ``one_per_frame`` takes the best box of each frame and (0, 0, 0, 0) where there is none;
            ``every_frame`` is for a video of one frame, and gives its boxes.

    Returns:
        A list of tuples of four numbers (whole ones as int), or with ``list_per_frame`` a list of lists of them.

    Raises:
        ValueError: when ``every_frame`` is asked for and there are several frames.
    """
    _check_choice("sides", sides, SIDES)
    _check_choice("nesting", nesting, NESTINGS)
    if nesting == "one_per_frame":
        best = [max(boxes, key=lambda box: box.score, default=None) for boxes in detections]
        return [NO_BOX if box is None else _tuple(box, sides) for box in best]
    lists = [[_tuple(box, sides) for box in boxes] for boxes in detections]
    if nesting == "list_per_frame":
        return lists
    if len(lists) != 1:
        raise ValueError(
            f"the boxes are of {len(lists)} frames, which a list for every frame alike cannot hold; choose "
            "one_per_frame or list_per_frame, or boxes of one frame."
        )
    return lists[0]


def to_segs(
    boxes: Sequence[Box],
    masks: Tensor | None,
    height: int,
    width: int,
    crop_factor: float = 3.0,
    frame: Tensor | None = None,
) -> Segs:
    """SEGS of one picture, or of one frame of a video: each box a SEG.

    Args:
        boxes: of that frame, in pixels.
        masks: of the same objects, [N, H, W], float 0..1, uint8 0..255 or bool; None fills the boxes.
        height: of the picture.
        width: likewise.
        crop_factor: at least 1, how much larger than the box the region is that the pack's detailers work on.
        frame: float [H, W, 3]; its crop goes along when given.

    Returns:
        ``((height, width), [SEG])``, empty when there are no boxes. Boxes outside the picture are left out.

    Raises:
        ValueError: when masks and boxes differ in number or size, or the factor is below 1.
    """
    values = _mask_values(masks, len(boxes), height, width, "boxes")
    if not crop_factor >= 1:
        raise ValueError(f"crop_factor is {crop_factor}; choose 1 or more.")
    segments = []
    for number, box in enumerate(boxes):
        inside = clamp_box(box, height, width)
        if inside is None:
            continue
        whole = _whole(inside, height, width)
        x0, y0, x1, y1 = region = crop_region(whole, height, width, crop_factor)
        if values is None:
            mask = np.zeros((y1 - y0, x1 - x0), np.float32)
            mask[whole[1] - y0 : whole[3] - y0, whole[0] - x0 : whole[2] - x0] = 1.0
        else:
            mask = values[number, y0:y1, x0:x1].numpy().copy()
        picture = None if frame is None else frame[None, y0:y1, x0:x1, :3].detach().cpu().float().numpy()
        segments.append(SEG(picture, mask, float(box.score), region, whole, box.label))
    return (height, width), segments


def film_to_segs(
    masks: Tensor, labels: Sequence[str], scores: Sequence[float], height: int, width: int, crop_factor: float = 3.0
) -> Segs:
    """SEGS of a video as the pack's nodes for AnimateDiff read it: each object a SEG with a mask for every frame.

    Args:
        masks: [N, T, H, W], float 0..1, uint8 0..255 or bool.
        labels: N names.
        scores: N numbers in 0..1.
        height: of the video.
        width: likewise.
        crop_factor: as :func:`to_segs`; the region holds the object in all frames.

    Returns:
        ``((height, width), [SEG])`` with masks float32 [T, h, w]. Objects that are in no frame are left out.

    Raises:
        ValueError: when the numbers or sizes differ.
    """
    if masks.ndim != 4 or len(labels) != len(masks) or len(scores) != len(masks):
        raise ValueError(
            f"masks have shape {list(masks.shape)} with {len(labels)} labels and {len(scores)} scores; give "
            "[objects, frames, height, width] and one of each per object."
        )
    if not crop_factor >= 1:
        raise ValueError(f"crop_factor is {crop_factor}; choose 1 or more.")
    segments = []
    for object_masks, label, score in zip(masks, labels, scores, strict=True):
        seen = (object_masks > 0).any(0).nonzero()
        if not len(seen):
            continue
        (y0, x0), (y1, x1) = seen.amin(0).tolist(), (seen.amax(0) + 1).tolist()
        left, top, right, bottom = region = crop_region([x0, y0, x1, y1], height, width, crop_factor)
        part = object_masks[:, top:bottom, left:right]
        values = _mask_values(part, len(part), bottom - top, right - left, "frames")
        segments.append(SEG(None, values, float(score), region, [x0, y0, x1, y1], label))
    return (height, width), segments


def from_segs(segs: Any, frames: int, height: int, width: int, frame: int = 0) -> Detections:
    """Boxes of SEGS, in pixels of a video.

    Args:
        segs: SEGS of one picture, which are about one frame; SEGS whose masks have a picture for each frame; or a list
            of SEGS, one for each frame.
        frames: of the video.
        height: of the video; SEGS of another size are scaled.
        width: likewise.
        frame: which one SEGS of one picture are about; the lists of the others are empty.

    Returns:
        One list per frame.

    Raises:
        ValueError: when the value is not SEGS, a field is broken, or the number of frames differs.
    """
    if not _is_segs(segs):
        if not isinstance(segs, Sequence) or isinstance(segs, str) or not all(_is_segs(item) for item in segs):
            raise ValueError(f"SEGS is a {type(segs).__name__}; give ((height, width), [SEG]) or a list of them.")
        if len(segs) != frames:
            raise ValueError(f"there are SEGS for {len(segs)} frames and the video has {frames}; give one for each.")
        return [_scaled_boxes(item, height, width) for item in segs]
    masks = masks_of_segs(segs)
    if masks.shape[1] > 1:
        if masks.shape[1] != frames:
            raise ValueError(f"the masks of SEGS have {masks.shape[1]} frames and the video has {frames}.")
        return _boxes_in_film(segs, masks, height, width)
    if not 0 <= frame < frames:
        raise ValueError(f"SEGS are for frame {frame} but the video has {frames} frames; use 0 to {frames - 1}.")
    return [_scaled_boxes(segs, height, width) if number == frame else [] for number in range(frames)]


def masks_of_segs(segs: Any) -> Tensor:
    """Masks of SEGS at full size, float32 [N, T, H, W] in 0..1; T is 1 for SEGS of one picture.

    Raises:
        ValueError: when the value is not SEGS, a field is broken, or masks have different numbers of frames.
        MemoryError: when there is not enough memory.
    """
    (height, width), segments = _parts(segs)
    crops = [_crop(seg) for seg in segments]
    lengths = sorted({len(crop) for crop in crops})
    if len(lengths) > 1:
        raise ValueError(f"masks of SEGS have {lengths} frames; give the same number for all.")
    frames = lengths[0] if lengths else 1
    try:
        masks = torch.zeros(len(crops), frames, height, width)
    except RuntimeError as error:
        numbers = {"segments": len(crops), "frames": frames, "height": height, "width": width}
        size = 4 * math.prod(numbers.values())
        raise MemoryError(too_large("the masks of SEGS", size, **numbers)) from error
    for mask, crop, seg in zip(masks, crops, segments, strict=True):
        x0, y0, x1, y1 = _region(seg)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height) or crop.shape[1:] != (y1 - y0, x1 - x0):
            raise ValueError(
                f"a SEG has the crop region {[x0, y0, x1, y1]} and a mask of {list(crop.shape[1:])} in a picture of "
                f"{width} x {height} pixels; region and mask must be of one size, inside the picture."
            )
        mask[:, y0:y1, x0:x1] = crop
    return masks


def crop_region(box: Sequence[int], height: int, width: int, factor: float) -> list[int]:
    """A region around a box, ``factor`` times as large, moved and cut to lie in the picture.

    Args:
        box: x0, y0, x1, y1 in whole pixels.
        height: of the picture.
        width: likewise.
        factor: at least 1.
    """
    x0, y0, x1, y1 = box
    starts, ends = [], []
    for low, high, limit in ((x0, x1, width), (y0, y1, height)):
        size = min(limit, max(high - low, round((high - low) * factor)))
        start = min(max(0, round((low + high - size) / 2)), limit - size)
        starts.append(start)
        ends.append(start + size)
    return [*starts, *ends]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists, at any depth."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, int | float):
        return value
    raise ValueError(f"a BBOX holds a {type(value).__name__}; give tuples of four numbers.")


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)


def _rows(rows: Any, sides: Sides, label: str) -> list[Box]:
    if rows is None or _is_row(rows) or not isinstance(rows, list):
        rows = [rows]
    boxes = (_box(row, sides, label) for row in rows if row)
    return [box for box in boxes if box is not None]


def _box(row: Any, sides: Sides, label: str) -> Box | None:
    if not _is_row(row) or len(row) != 4:
        raise ValueError(f"a box is {shown(row)}; give four finite numbers, or choose the nesting that fits.")
    if not all(math.isfinite(as_number(item, "side of a box")) for item in row):
        raise ValueError(f"a box is {shown(row)}; give four finite numbers, or choose the nesting that fits.")
    x, y, third, fourth = row
    wide, high = (third, fourth) if sides == "xywh" else (third - x, fourth - y)
    if wide < 0 or high < 0:
        raise ValueError(
            f"box {tuple(row)} read as {sides} is {wide:g} x {high:g} pixels; check whether it is "
            f"{'xyxy' if sides == 'xywh' else 'xywh'}."
        )
    return Box(x, y, wide, high, label) if wide and high else None


def _tuple(box: Box, sides: Sides) -> tuple[float, ...]:
    values = (box.x, box.y, box.width, box.height) if sides == "xywh" else box.corners
    return tuple(int(value) if float(value).is_integer() else float(value) for value in values)


def _whole(box: Box, height: int, width: int) -> list[int]:
    x0, y0, x1, y1 = box.corners
    return [math.floor(x0), math.floor(y0), min(width, math.ceil(x1)), min(height, math.ceil(y1))]


def _mask_values(masks: Tensor | None, count: int, height: int, width: int, what: str) -> Tensor | None:
    """Masks as float32 in 0..1."""
    if masks is None:
        return None
    if tuple(masks.shape) != (count, height, width):
        raise ValueError(f"masks have shape {list(masks.shape)} for {count} {what} of {width} x {height} pixels.")
    values = masks.detach().cpu()
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()


def _is_segs(value: Any) -> bool:
    if (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or not all(isinstance(part, tuple | list) for part in value)
    ):
        return False
    return len(value[0]) >= 2 and all(isinstance(side, int | np.integer) for side in value[0][:2])


def _parts(segs: Any) -> tuple[tuple[int, int], Sequence[Any]]:
    if not _is_segs(segs):
        raise ValueError(f"SEGS is a {type(segs).__name__}; give ((height, width), [SEG]).")
    (height, width, *_), segments = segs
    if min(height, width) < 0:
        raise ValueError(f"SEGS are of {width} x {height} pixels; give the size of the picture.")
    for seg in segments:
        missing = [name for name in SEG._fields[:6] if not hasattr(seg, name)]
        if missing:
            raise ValueError(f"a SEG is a {type(seg).__name__} without {', '.join(missing)}; give the pack's SEG.")
    return (int(height), int(width)), segments


def _crop(seg: Any) -> Tensor:
    """The mask of a SEG as float [T, h, w]."""
    if seg.cropped_mask is None:
        x0, y0, x1, y1 = _region(seg)
        return torch.ones(1, max(0, y1 - y0), max(0, x1 - x0))
    try:
        mask = torch.as_tensor(seg.cropped_mask).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the mask of a SEG is {shown(seg.cropped_mask)}; give finite numbers, [h, w] or [frames, h, w]."
        ) from error
    if mask.ndim not in (2, 3) or not torch.isfinite(mask).all():
        raise ValueError(
            f"the mask of a SEG has shape {list(mask.shape)}; give finite numbers, [h, w] or [frames, h, w]."
        )
    return (mask[None] if mask.ndim == 2 else mask).clamp(0, 1)


def _score(seg: Any) -> float:
    try:
        value = np.asarray(1.0 if seg.confidence is None else seg.confidence, dtype=float).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the confidence of a SEG is {shown(seg.confidence)}; give one number in 0..1.") from error
    if value.size != 1 or not math.isfinite(value[0]):
        raise ValueError(f"the confidence of a SEG is {shown(seg.confidence)}; give one number in 0..1.")
    return float(value[0])


def _label(seg: Any) -> str:
    return "" if seg.label is None else str(seg.label)


def _region(seg: Any) -> list[int]:
    return [int(value) for value in _four(seg.crop_region, "crop region")]


def _four(values: Any, name: str) -> list[float]:
    """Four numbers of a SEG."""
    plain = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    if not isinstance(plain, Sequence) or isinstance(plain, str) or len(plain) != 4:
        raise ValueError(f"the {name} of a SEG is {shown(values)}; give x0, y0, x1 and y1 in pixels.")
    found = [as_number(value, f"{name} of a SEG") for value in plain]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"the {name} of a SEG is {shown(values)}; give four finite numbers in pixels.")
    return found


def _scaled_boxes(segs: Any, height: int, width: int) -> list[Box]:
    (own_height, own_width), segments = _parts(segs)
    boxes = []
    for seg in segments:
        box = _box(_four(seg.bbox, "bbox"), "xyxy", _label(seg))
        if box is not None:
            box = Box(box.x, box.y, box.width, box.height, box.label, _score(seg))
            boxes.append(box.scaled(width / own_width, height / own_height))
    return boxes


def _boxes_in_film(segs: Any, masks: Tensor, height: int, width: int) -> Detections:
    (own_height, own_width), segments = _parts(segs)
    found: Detections = [[] for _ in range(masks.shape[1])]
    for seg, film in zip(segments, masks, strict=True):
        for frame, mask in enumerate(film):
            inside = (mask > 0.5).nonzero()
            if len(inside):
                (y0, x0), (y1, x1) = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
                box = Box.from_corners(x0, y0, x1, y1, _label(seg), _score(seg))
                found[frame].append(box.scaled(width / own_width, height / own_height))
    return found
