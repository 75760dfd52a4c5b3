"""Optical flow by a network: which way it points, at which size, and that masks are carried by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mask_guided_video.perception.answers import BrokenAnswerError
from mask_guided_video.perception.masks.mask_refinement import RefinementSettings, refine_tracks
from mask_guided_video.perception.optical_flow import FlowNetwork
from mask_guided_video.perception.tracking.flow_propagation import FlowModel
from mask_guided_video.perception.tracking.tracker import ObjectTracker
from mask_guided_video.perception.tracks import Tracks


class Follows(torch.nn.Module):
    """Sees how far the light in a picture moved, and says so everywhere: right for one bright thing on black."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, first, second):
        self.seen.append((tuple(first.shape), float(first.min()), float(first.max())))
        moved = self.middle(second) - self.middle(first)
        return [moved.view(1, 2, 1, 1) * 99, moved.view(1, 2, 1, 1).expand(1, 2, *first.shape[2:])]

    @staticmethod
    def middle(picture):
        light = (picture[0].mean(0) + 1) / 2
        y, x = torch.meshgrid(*(torch.arange(side).float() for side in light.shape), indexing="ij")
        return torch.stack([(light * x).sum(), (light * y).sum()]) / light.sum()


def picture(x, y, height=128, width=136, side=16):
    values = np.zeros((height, width, 3), np.uint8)
    values[y : y + side, x : x + side] = 255
    return values


def test_the_way_leads_from_a_frame_to_the_one_before():
    before, after = picture(40, 48), picture(56, 56)
    network = Follows()
    flow = FlowNetwork(network)(before, after)
    assert flow.shift.shape == (128, 136, 2) and network.seen == [((1, 3, 128, 136), -1.0, 1.0)] * 2
    assert torch.allclose(flow.shift, torch.tensor([-16.0, -8.0]), atol=1e-3)
    mask = torch.from_numpy(before[..., 0] > 0).float()
    assert torch.allclose(flow.carry(mask[None])[0], torch.from_numpy(after[..., 0] > 0).float(), atol=1e-2)
    # What comes from outside of the picture is not known.
    assert flow.known[8:, 16:].all() and not flow.known[:8].any() and not flow.known[:, :16].any()


@pytest.mark.parametrize("height,width,size", [(64, 256, (128, 256)), (33, 41, (128, 128)), (96, 1300, (128, 1024))])
def test_other_sizes_are_in_pixels_of_the_frame(height, width, size):
    before, after = picture(4, 8, height, width, 12), picture(16, 14, height, width, 12)
    network = Follows()
    flow = FlowNetwork(network)(before, after)
    assert network.seen[0][0] == (1, 3, *size) and flow.shift.shape == (height, width, 2)
    assert torch.allclose(flow.shift, torch.tensor([-12.0, -6.0]), atol=0.6)


@pytest.mark.parametrize(
    "video,seen",
    [((480, 832), (480, 832)), ((720, 1280), (576, 1024)), ((2000, 10), (1024, 128)), ((8, 8), (128, 128))],
)
def test_sizes_that_a_network_sees(video, seen):
    assert FlowNetwork.picture_size(*video) == seen
    assert FlowNetwork.working_memory(*video) >= (seen[0] * seen[1] // 64) ** 2 * 4


def test_broken_weights_are_said():
    class Broken(torch.nn.Module):
        def forward(self, first, second):
            return [torch.full((1, 2, *first.shape[2:]), float("nan"))]

    with pytest.raises(BrokenAnswerError, match="the optical flow model answers with NaN"):
        FlowNetwork(Broken())(picture(0, 0), picture(0, 0))


def test_gaps_are_filled_along_the_flow():
    """The thing flies in an arc; between its first and last place a straight way would miss it."""
    places = [(8 + 16 * frame, 100 - int(8.8 * frame * (6 - frame))) for frame in range(7)]
    frames = torch.stack([torch.from_numpy(picture(x, y)) for x, y in places])
    truth = (frames[..., 0] > 0).float()
    known = truth.clone()
    known[1:6] = 0.0
    tracks, settings = Tracks.from_masks(known), RefinementSettings(fill_gaps=5)

    def overlap(**given):
        filled = refine_tracks(tracks, settings, **given).union()
        both, either = (filled * truth).sum((1, 2)), (filled + truth).clamp(max=1).sum((1, 2))
        return float((both / either).min())

    assert overlap(frames=frames, estimate=FlowNetwork(Follows())) > 0.9
    assert overlap() < 0.1


class Bright:
    """Draws what is bright in the box that a prompt gives."""

    def __init__(self):
        self.model = torch.nn.Identity()

    def open(self, film):
        raise NotImplementedError


def test_a_tracker_by_another_flow():
    def estimate(other, frame):
        raise NotImplementedError

    tracker = ObjectTracker(FlowModel(Bright()))
    other = tracker.by_flow(estimate)
    assert other.propagation.estimate is estimate and other.propagation.segmenter is tracker.propagation.segmenter
    assert tracker.propagation.estimate is not estimate

    class Memory:
        model = torch.nn.Identity()

    with pytest.raises(ValueError, match="follows objects by its memory"):
        ObjectTracker(Memory()).by_flow(estimate)
