"""Random values of core's own types for the fuzz of nodes; each is made for a ``fuzzing.Call``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What is wrong in core's SAM 3 track data.
ODD_TRACK_DATA = (
    {"n_frames": 77},
    {"packed_masks": None, "n_frames": 0},
    {"packed_masks": None, "n_frames": "x"},
    {"orig_size": (0, 8)},
    {"orig_size": "48"},
    {"orig_size": None},
    {"scores": [float("nan")] * 2},
    {"scores": 3},
    {"packed_masks": torch.zeros(3, 3)},
    {"packed_masks": torch.zeros(0, 1, 1, 1, dtype=torch.uint8)},
)
# And in its points over time.
ODD_POINTS = (
    {"track_path": None},
    {"track_path": torch.zeros(2, 2)},
    {"track_path": torch.full((2, 1, 2), float("inf"))},
    {"track_visibility": torch.zeros(3, 1)},
    {"track_visibility": "all"},
    {"track_visibility": None},
)


class StillFlow(torch.nn.Module):
    """An optical flow model for which nothing moves, or whose weights are broken."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.field = torch.nn.Parameter(torch.full((1, 2, 1, 1), float("nan") if broken else 0.0))

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        return [self.field.expand(1, 2, *first.shape[2:])]


def track_data(call: Any) -> Any:
    """SAM3_TRACK_DATA, mostly of the size of the call."""
    frames, height, width = call.sized()
    packed = call.random(frames, call.chance.choice((0, 1, 2)), 9, 2).mul(255).to(torch.uint8)
    scores = [0.5] * packed.shape[1]
    data = {"packed_masks": packed, "n_frames": frames, "scores": scores, "orig_size": (height, width)}
    if call.likely(0.2):
        data |= {"packed_masks": None, "scores": []}
    return data if call.tame or call.likely(0.6) else {**data, **call.chance.choice(ODD_TRACK_DATA)}


def points_over_time(call: Any) -> Any:
    """TRACKS, some of them outside of the picture."""
    frames, height, width = call.sized()
    count = call.chance.choice((1, 1, 2, 3, 70))
    places = call.random(frames, count, 2) * torch.tensor([width * 1.2, height * 1.2])
    data = {"track_path": places, "track_visibility": call.random(frames, count) > 0.3}
    return data if call.tame or call.likely(0.6) else {**data, **call.chance.choice(ODD_POINTS)}


def curve(call: Any) -> Any:
    """CURVE, straight or smooth."""
    from comfy_api.input import CurveInput

    count = call.chance.choice((1, 2, 2, 5))
    points = sorted((call.chance.random(), call.chance.random()) for _ in range(count))
    kind = call.chance.choice(("linear", "monotone_cubic"))
    if not call.tame and call.likely(0.3):
        return call.chance.choice(({}, "curve", [(0, 1), (1, -3)], [(0.2, float("nan"))], [], [(2, 1)], [(1,)]))
    return CurveInput.from_raw({"points": points, "interpolation": kind})


def flow_model(call: Any) -> Any:
    """OPTICAL_FLOW."""
    from comfy.model_management import get_torch_device
    from comfy.model_patcher import ModelPatcher

    if not call.tame and call.likely(0.2):
        return call.chance.choice(("flow", torch.zeros(2), {}))
    return ModelPatcher(StillFlow(call.likely(0.2)), get_torch_device(), torch.device("cpu"))


def drawn_boxes(call: Any) -> Any:
    """BOUNDING_BOXES, with and without descriptions."""
    described = (
        {"metadata": {"type": "obj", "desc": call.chance.choice(("red ball", ""))}},
        {"metadata": None},
        {},
    )
    boxes = [call.box() for _ in range(call.chance.randrange(4))]
    return [{**box, **call.chance.choice(described)} if isinstance(box, dict) else box for box in boxes]


MAKERS = {
    **{"SAM3_TRACK_DATA": track_data, "TRACKS": points_over_time, "BOUNDING_BOXES": drawn_boxes},
    **{"CURVE": curve, "OPTICAL_FLOW": flow_model},
}
