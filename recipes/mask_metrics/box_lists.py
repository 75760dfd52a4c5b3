"""Lists of prompts with boxes per frame, in the format of Peekaboo's benchmark files.

A list is a JSON file of records with ``id``, ``caption`` (the prompt), ``subject`` (words of the caption that name the
object) and ``bboxes``: per frame four numbers (left, top, right, bottom) in parts of the picture, or null. Source:
``eval/README.md`` and ``eval/*_inputs.json`` of github.com/microsoft/Peekaboo. As published there, IMC has 126 records
of 16 boxes, DAVIS 40 of 24, LaSOT 456 of 24 and SSv2 322 of 7 to 30. The boxes of LaSOT are in the order (left, right,
top, bottom): read as the others are, most of them are empty. SSv2 says with a box of no size that there is none.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .peekaboo_protocol import Corners

BoxOrder = Literal["xyxy", "xxyy"]
ORDERS: dict[str, tuple[int, int, int, int]] = {"xyxy": (0, 1, 2, 3), "xxyy": (0, 2, 1, 3)}
KEYS = ("id", "caption", "subject", "bboxes")
# In parts of the picture; the published lists reach a little beyond 1, pixels reach far.
MOST = 2.0


@dataclass(frozen=True)
class BoxRecord:
    """A prompt and the box of its object in every frame.

    Attributes:
        name: the record's id, as a name for files.
        caption: the prompt.
        subject: the object, in words.
        boxes: per frame (left, top, right, bottom) in parts of the picture, or None for no box.
    """

    name: str
    caption: str
    subject: str
    boxes: tuple[Corners | None, ...]

    def corners(self, frames: int, height: int, width: int) -> list[Corners | None]:
        """Boxes in pixels for a video of ``frames`` frames, stretched over it where the list has another number.

        Between two boxes their edges go in a straight line; next to a frame without a box the nearer frame
        counts, half way the earlier one.
        """
        stretched = [_between(self.boxes, *_place(frame, frames, len(self.boxes))) for frame in range(frames)]
        sides = (width, height, width, height)
        return [
            None if box is None else tuple(edge * side for edge, side in zip(box, sides, strict=True))
            for box in stretched
        ]


def read_box_list(path: Path, order: BoxOrder = "xyxy") -> list[BoxRecord]:
    """Read a list.

    Args:
        path: of the JSON file.
        order: of the four numbers of a box: ``xyxy`` is left, top, right, bottom; ``xxyy`` left, right, top, bottom.

    Raises:
        ValueError: it cannot be read, or a record lacks something or has the id of another; the message names it.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the list {str(path)!r} cannot be read ({error}); give a JSON file of records.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"the list {path.name!r} holds no records; give a JSON list with {', '.join(KEYS)} in each.")
    records: dict[str, BoxRecord] = {}
    for number, entry in enumerate(entries):
        record = _record(entry, f"record {number} of {path.name!r}", ORDERS[order])
        if record.name in records:
            raise ValueError(f"two records of {path.name!r} have the id {record.name!r}; give each its own.")
        records[record.name] = record
    return list(records.values())


def empty_boxes(records: list[BoxRecord]) -> tuple[int, int]:
    """How many boxes of a list are none, or have no area, and how many there are."""
    boxes = [box for record in records for box in record.boxes]
    return sum(box is None for box in boxes), len(boxes)


def _record(entry: Any, name: str, order: tuple[int, int, int, int]) -> BoxRecord:
    missing = [key for key in KEYS if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; give {', '.join(KEYS)}.")
    texts = {key: " ".join(str(entry[key]).split()) for key in ("id", "caption", "subject")}
    empty = [key for key, text in texts.items() if not text]
    if empty:
        raise ValueError(f"{name} has an empty {empty[0]}; fill it in.")
    boxes = entry["bboxes"]
    if not isinstance(boxes, list) or not boxes:
        raise ValueError(f"{name} has no bboxes; give a list with four numbers per frame.")
    identity = re.sub(r"[^A-Za-z0-9_-]", "_", texts["id"])
    return BoxRecord(identity, texts["caption"], texts["subject"], tuple(_box(box, name, order) for box in boxes))


def _box(box: Any, name: str, order: tuple[int, int, int, int]) -> Corners | None:
    if box is None:
        return None
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or any(isinstance(edge, bool) or not isinstance(edge, int | float) for edge in box):
        raise ValueError(f"{name} has the box {str(box)[:80]}; give four numbers, or null for none.")
    if not all(math.isfinite(edge) and abs(edge) <= MOST for edge in box):
        raise ValueError(f"{name} has the box {box}; give its edges in parts of the picture, 0 to 1, not in pixels.")
    left, top, right, bottom = (float(box[place]) for place in order)
    return (left, top, right, bottom) if right > left and bottom > top else None


def _place(frame: int, frames: int, count: int) -> tuple[int, float]:
    """Where a frame of the video is among the boxes: the box before it, and the share of the next one."""
    if frames == count or frames == 1 or count == 1:
        return min(frame, count - 1), 0.0
    place = frame * (count - 1) / (frames - 1)
    before = min(int(place), count - 2)
    return before, place - before


def _between(boxes: tuple[Corners | None, ...], before: int, share: float) -> Corners | None:
    first = boxes[before]
    second = boxes[before + 1] if share > 0 else None
    if first is None or second is None or share == 1.0:
        return second if share > 0.5 else first
    left, top, right, bottom = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return left, top, right, bottom
