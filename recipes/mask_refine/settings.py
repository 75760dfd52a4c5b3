"""The settings of Mask Refine, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...attention_patches.guidance.attention_share import ShareGoal
from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.modes.registry import make_mode, mode_at, mode_constants
from ...attention_patches.site import GuidedRows
from ...perception.phrases import phrase_key, plain_phrase
from ..checked_settings import (
    MAX_FRAMES,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    check_choices,
    check_ranges,
    film_size,
)
from ..given.constants import read_constants
from ..protocols import Geometry, SamplerName

RegenerateMode = Literal["fresh", "same_noise", "refine"]


@dataclass(frozen=True)
class MaskRefineSettings:
    """What to make and how.

    Attributes:
        prompt: of both videos.
        phrases: words of the prompt that name the objects to find and guide, at least one.
        negative_prompt: of both videos.
        frames: length of the videos, 1..4096; None is the model's native length.
        height: in pixels; None is the model's native height.
        width: in pixels; None is the model's native width.
        seed: of the noise, 0..2**63 - 2.
        steps: sampling steps, 1..1000.
        cfg: classifier-free guidance scale, 1 (off) to 100.
        sampler: ``ddim`` or ``euler``.
        regenerate: how the second video begins: ``same_noise`` (the first video's noise), ``refine`` (the first video,
            noised to ``refine_strength``) or ``fresh`` (other noise; the masks then belong to another video).
        refine_strength: for ``refine``: 0 (the first video as it is) to 1 (all noise).
        background_lock: keep the first video's latents outside of the objects.
        lock_dilate: latent cells by which the unlocked region is larger than the objects, 0..16.
        lock_blur: latent cells over which the lock fades in, 0..16.
        background_phrase: words of the prompt that name what is outside of all objects, for the modes that need
            them.
        mode: one of ``attention_patches.guidance.modes.registry.MODES``.
        strength: in the mode's unit, see ``mode_at``; None is the mode's default.
        start_percent, end_percent, blocks, rows: where and when the mode acts; None is the mode's default.
        hard: masks are cut at 0.5 and regions closed for good, in the modes that have the choice.
        constants: others of the mode, by their names, or as ``read_constants`` takes them.
        goal: the share of attention that objects shall have, in place of the mode's own gains; see ``Guide``.
            ``strength`` then is a factor on what is found, 0..10.
        box_threshold: of the detector, 0..1.
        text_threshold: of the detector, 0..1.
        nms_threshold: of the detector, 0..1.
        grow: pixels by which masks grow (below 0: shrink).
        feather: pixels over which mask edges fade, 0 = hard.
        median_frames: odd length of the median over time, 1 = none.

    Raises:
        ValueError: naming the value and what is allowed.
    """

    prompt: str
    phrases: tuple[str, ...]
    negative_prompt: str = ""
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    steps: int = 25
    cfg: float = 4.0
    sampler: SamplerName = "ddim"
    regenerate: RegenerateMode = "same_noise"
    refine_strength: float = 0.6
    background_lock: bool = False
    lock_dilate: int = 1
    lock_blur: int = 1
    mode: str = "focus_fg"
    strength: float | None = None
    start_percent: float | None = None
    end_percent: float | None = None
    blocks: str | None = None
    rows: GuidedRows | None = None
    hard: bool = False
    box_threshold: float = 0.35
    text_threshold: float = 0.25
    nms_threshold: float = 0.7
    grow: int = 0
    feather: int = 0
    median_frames: int = 1
    background_phrase: str = ""
    constants: Mapping[str, Any] | str = field(default_factory=dict)
    goal: ShareGoal | None = None

    def __post_init__(self) -> None:
        if isinstance(self.phrases, str):
            raise ValueError(f"phrases is the string {self.phrases!r}; give a tuple of phrases.")
        object.__setattr__(self, "phrases", tuple(plain_phrase(phrase) for phrase in self.phrases))
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; describe the video, for example 'a red ball bounces on sand'.")
        if not self.phrases or not all(self.phrases):
            raise ValueError(
                f"phrases are {list(self.phrases)}; name at least one object in words of the prompt, none empty."
            )
        if len(set(map(phrase_key, self.phrases))) != len(self.phrases):
            raise ValueError(f"phrases are {list(self.phrases)}; name each object once.")
        check_choices(
            (
                ("regenerate", self.regenerate, get_args(RegenerateMode)),
                ("sampler", self.sampler, get_args(SamplerName)),
            )
        )
        self._check_ranges()
        given = read_constants(self.mode, self.constants) if isinstance(self.constants, str) else self.constants
        object.__setattr__(self, "constants", dict(given))
        defaults = mode_constants(self.mode)
        for name in ("start_percent", "end_percent", "blocks", "rows"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults[name])
        # The guide checks its fields; an empty mask is enough for that, and it happens before any work.
        self.guide(torch.zeros(len(self.phrases), 1, 1, 1), self.phrases)

    def _check_ranges(self) -> None:
        check_ranges(
            (
                ("frames", self.frames, 1, MAX_FRAMES),
                ("height", self.height, 1, MAX_SIDE),
                ("width", self.width, 1, MAX_SIDE),
                ("seed", self.seed, 0, MAX_SEED),
                ("steps", self.steps, 1, MAX_STEPS),
                ("cfg", self.cfg, 1.0, 100.0),
                ("refine_strength", self.refine_strength, 0.0, 1.0),
                ("lock_dilate", self.lock_dilate, 0, 16),
                ("lock_blur", self.lock_blur, 0, 16),
                ("box_threshold", self.box_threshold, 0.0, 1.0),
                ("text_threshold", self.text_threshold, 0.0, 1.0),
                ("nms_threshold", self.nms_threshold, 0.0, 1.0),
            )
        )

    @property
    def second_seed(self) -> int:
        """Seed of the second video where it has its own noise."""
        return self.seed + 1

    def film_size(self, geometry: Geometry) -> tuple[int, int, int]:
        """Frames, height and width of the videos of a model.

        Raises:
            ValueError: a size that the model cannot make.
        """
        frames = geometry.native_frames if self.frames is None else self.frames
        return film_size(geometry, frames, self.height, self.width)

    def guide(self, masks: Tensor, phrases: tuple[str, ...]) -> Guide:
        """The guide for these masks [N, T, H, W] and the phrases that name them."""
        chosen = {name: getattr(self, name) for name in ("start_percent", "end_percent", "blocks", "rows")}
        if self.hard:
            chosen["hard"] = True
        if self.goal is not None:
            mode, factor = make_mode(self.mode, **(chosen | self.constants)), self.strength
            return Guide(
                masks, mode, phrases, self.background_phrase, 1.0 if factor is None else factor, goal=self.goal
            )
        mode, factor = mode_at(self.mode, self.strength, **(chosen | self.constants))
        return Guide(masks, mode, phrases, self.background_phrase, factor)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        if self.goal is None:
            del values["goal"]
        return values
