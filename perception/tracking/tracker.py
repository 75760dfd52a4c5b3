"""Objects followed through a video, whatever model carries them: from boxes, prompts or words to one mask a frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..boxes import Box, Detections, Progress, clamp_box
from ..frames import Film
from ..optical_flow import FlowEstimator
from ..prompts import ObjectPrompt, fit_prompt, prompt_of_box
from ..propagation import PropagationModel
from ..tracks import Tracks
from .evidence import Evidence
from .flow_propagation import FlowModel
from .track_settings import TrackSettings
from .visits import FilmVisit


class ObjectTracker:
    """Turns what is known of objects in some frames into masks in all frames.

    Args:
        model: carries masks from frame to frame.
    """

    def __init__(self, model: PropagationModel) -> None:
        self.propagation = model

    @property
    def model(self) -> nn.Module:
        """The torch module. It may be moved between calls; every call runs where its parameters are."""
        return self.propagation.model

    @property
    def takes_text(self) -> bool:
        """Whether the model finds objects by words itself."""
        return getattr(self.propagation, "takes_text", False)

    def by_flow(self, estimate: FlowEstimator) -> ObjectTracker:
        """The same tracker whose masks are carried on by another optical flow.

        Raises:
            ValueError: the model carries them by its memory, not by flow.
        """
        if not isinstance(self.propagation, FlowModel):
            raise ValueError(
                f"this model ({type(self.model).__name__}) follows objects by its memory, so optical flow is of no use "
                "to it; disconnect optical_flow, or load a model for single pictures (SAM, SAM-HQ)."
            )
        return ObjectTracker(FlowModel(self.propagation.segmenter, estimate))

    def track(
        self,
        frames: Tensor | Film,
        detections: Detections | None = None,
        settings: TrackSettings | None = None,
        progress: Progress | None = None,
        *,
        prompts: Sequence[ObjectPrompt] = (),
        phrases: Sequence[str] = (),
    ) -> Tracks:
        """Follow every object that is found or named, each under one number.

        Boxes are evidence: they correct the objects that are followed, find lost ones again, or add new ones.

        Args:
            frames: [T, H, W, 3], float 0..1 or uint8.
            detections: one list of boxes per frame; any of them, or all, may be empty.
            settings: see :class:`TrackSettings`.
            progress: called with (done, total) after every frame that was looked at; it may raise to cancel. A video
                that is gone through in both directions counts its frames twice where that is needed.
            prompts: user prompts about objects, on any frames; prompts with one identity are about one object.
            phrases: what to look for, for models that take text.

        Returns:
            Masks for exactly the T frames given, N = 0 objects when nothing was found or named. A frame in which an
            object is not visible has an empty mask, score 0 and counts as missed.

        Raises:
            ValueError: for bad frames, a different number of lists and frames, a prompt for a missing frame,
                or phrases for a model that takes none.
        """
        settings = settings or TrackSettings()
        film = Film(frames)
        evidence = Evidence(
            boxes=_clamped(detections, film),
            prompts=_fitted(prompts, film),
            phrases=tuple(phrases),
            every=settings.find_every,
        )
        if phrases and not self.takes_text:
            raise ValueError(
                f"this model ({type(self.model).__name__}) takes no text, so it cannot look for "
                f"{', '.join(repr(phrase) for phrase in phrases[:3])}; connect boxes from a detector instead."
            )
        return FilmVisit(self.propagation, film, settings, progress).track(evidence)

    def masks_of_prompts(self, frame: Tensor, prompts: Sequence[ObjectPrompt]) -> Tensor:
        """Segment prompted objects in one frame.

        Args:
            frame: [H, W, 3], float 0..1 or uint8.
            prompts: for frame 0.

        Returns:
            uint8 [N, H, W], 0..255 with soft edges, one mask a prompt; empty for a prompt outside the picture.

        Raises:
            ValueError: for a bad frame or prompt.
        """
        film = Film(frame)
        fitted = {number: fit_prompt(prompt, 1, film.height, film.width) for number, prompt in enumerate(prompts)}
        asked = {number: prompt for number, prompt in fitted.items() if prompt is not None}
        found = self.propagation.follow(film).prompt(0, asked) if asked else {}
        masks = torch.zeros(len(fitted), film.height, film.width, dtype=torch.uint8)
        for number, sighting in found.items():
            masks[number] = sighting.mask
        return masks

    def masks_at_boxes(self, frame: Tensor, boxes: Sequence[Box], soft: bool = False) -> Tensor:
        """Segment boxes in one frame: float [N, H, W], 0..1, one mask per box.

        Args:
            frame: [H, W, 3], float 0..1 or uint8.
            boxes: in pixels.
            soft: keep soft edges.
        """
        masks = self.masks_of_prompts(frame, [prompt_of_box(box, 0) for box in boxes])
        return masks.float() / 255 if soft else (masks > 127).float()


def _clamped(detections: Detections | None, film: Film) -> Detections:
    if detections is None:
        return [[] for _ in range(len(film))]
    if len(detections) != len(film):
        raise ValueError(
            f"there are detections for {len(detections)} frames and {len(film)} frames; give one list each."
        )
    inside = [[clamp_box(box, film.height, film.width) for box in boxes] for boxes in detections]
    return [[box for box in boxes if box is not None] for boxes in inside]


def _fitted(prompts: Sequence[ObjectPrompt], film: Film) -> list[ObjectPrompt]:
    fitted = (fit_prompt(prompt, len(film), film.height, film.width) for prompt in prompts)
    return [prompt for prompt in fitted if prompt is not None]
