"""What is known of objects before they are followed: boxes, user prompts, and phrases to look for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..boxes import Box, Detections
from ..frames import Film
from ..mask_shapes import box_of_mask
from ..prompts import ObjectPrompt, fit_prompt, prompt_of_box
from ..propagation import PropagationModel


@dataclass(frozen=True)
class Evidence:
    """What is known of objects before they are followed.

    Attributes:
        boxes: inside the picture, one list a frame.
        prompts: fitted to the video.
        phrases: that the model itself looks for.
        every: in every n-th frame.
    """

    boxes: Detections
    prompts: list[ObjectPrompt]
    phrases: tuple[str, ...] = ()
    every: int = 1

    def frames(self) -> list[int]:
        """Those in which there is something to learn, in order."""
        count = len(self.boxes)
        named = {prompt.frame for prompt in self.prompts}
        searched = set(range(0, count, self.every)) if self.phrases else set()
        return sorted(named | searched | {frame for frame, boxes in enumerate(self.boxes) if boxes})

    def prompts_of(self, frame: int) -> list[ObjectPrompt]:
        """User prompts about this frame."""
        return [prompt for prompt in self.prompts if prompt.frame == frame]

    def found_in(self, model: PropagationModel, film: Film, frame: int) -> list[ObjectPrompt]:
        """What a detector, or the model itself, finds in this frame, best score first."""
        found = [prompt_of_box(box, frame) for box in self.boxes[frame]]
        if self.phrases and frame % self.every == 0:
            answers = [
                fit_prompt(item, len(film), film.height, film.width) for item in model.find(film, frame, self.phrases)
            ]
            found.extend(item for item in answers if item is not None)
        return sorted(found, key=lambda prompt: -prompt.score)


def box_of_prompt(prompt: ObjectPrompt) -> Box:
    """The box around what a prompt shows, with its label and score."""
    box = prompt.box or box_of_mask(prompt.mask.float())
    return replace(box, label=prompt.label, score=prompt.score)


def joined(first: ObjectPrompt, second: ObjectPrompt) -> ObjectPrompt:
    """Two prompts about one object in one frame, as one."""
    return replace(
        first,
        box=first.box or second.box,
        points=(*first.points, *second.points),
        mask=second.mask if first.mask is None else first.mask,
        label=first.label or second.label,
        score=max(first.score, second.score),
    )
