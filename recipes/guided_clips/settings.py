"""The settings of guided clips, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...attention_patches.guidance.attention_share import ShareGoal
from ...attention_patches.guidance.guide import Guide
from ...attention_patches.guidance.modes.registry import make_mode
from ...attention_patches.guidance.strength_curve import StrengthCurve
from ...perception.phrases import plain_phrase
from ...video_models.sampling.noise import share_first_frame
from ..checked_settings import (
    MAX_FRAMES,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    check_choices,
    check_ranges,
    film_size,
)
from ..films.files import RATES
from ..given.constants import read_constants
from ..protocols import Geometry, SamplerName
from .levers import check_levers

Overlap = Literal["drop", "keep"]
ColourReference = Literal["global", "local", "none"]
NextFrame = Literal["picture", "latent"]
MaskBorders = Literal["check", "repair"]
FirstRound = Literal["clip", "frame"]

MAX_ROUNDS = 512
# What may differ between two runs that share a round: how many there are, and how masks (known by themselves) and video
# are put together.
RUN_ONLY_SETTINGS = frozenset({"rounds", "overlap", "mask_borders", "frame_strength", "frames_per_second"})


@dataclass(frozen=True)
class GuidedClipsSettings:
    """What to make and how.

    Attributes:
        prompt: of the whole video.
        phrases: words of the prompt that name each object, one per mask; may be empty where the mode needs no words.
        background_phrase: words of the prompt that name the background, or empty.
        negative_prompt: of the whole video.
        rounds: clips that follow one another, 1..512; 1 is a plain guided clip.
        frames: of each round, 2..4096 (1 where there is one round); None is the model's native length.
        height, width: in pixels; None is the model's native size.
        seed: of the first round's noise, 0..2**63 - 2; each later round draws from the next number.
        steps: sampling steps, 1..1000.
        cfg: classifier-free guidance scale, 1 (off) to 100.
        sampler: ``ddim`` or ``euler``.
        mode: how the masks guide, a name of ``mask_modes.presets``.
        constants: of the mode, by their names, or as a text (``gamma_cross=12, beta=3``); the others are defaults.
        strength: factor on the mode's logits or weights, 0 (no guidance) to 10.
        frame_strength: a factor, 0..10, for each mask frame of the whole sequence, or empty.
        key_source: frames whose keys self-attention sees; None is the mode's default.
        time_pooling: how the pixel frames of one latent frame become one mask.
        overlap: a round begins with the frame that the one before ended with. ``drop`` shows it once: R * (n - 1) + 1
            frames; ``keep`` shows it twice: R * n.
        colour_reference: frames take the colours of the first frame of the video (``global``, which holds drift back),
            of the frame their round began with (``local``), or stay as they are (``none``).
        next_frame: the next round begins with the last ``picture``, colours matched, encoded again, or with the last
            ``latent`` as it is. Models that compress time always take the picture.
        mask_borders: masks of a round begin as those of the round before end: ``check`` refuses others, ``repair``
            puts that mask in the place of the round's first.
        first_round: without a first picture: ``clip`` samples the first round freely; ``frame`` samples one frame
            under the first mask and begins with it.
        match_statistics: later frames take mean and deviation of the first one's latents between steps (LAMP).
        shared_noise: 0..1, part of the first frame's noise that all others hold; 0 is independent noise, LAMP 0.2.
        frames_per_second: of the video.
        strength_curve: factors on ``strength`` over the schedule of every round, or None.
        goal: the share of attention that objects shall have, in place of the mode's own gains; see ``Guide``.
        levers: what acts beside the mode, names of ``levers.LEVERS``; they need phrases.
        auto: try the mode alone and then more and more levers, until the object is under its masks.

    Raises:
        ValueError: naming the value and what is allowed.
    """

    prompt: str
    phrases: tuple[str, ...] = ()
    background_phrase: str = ""
    negative_prompt: str = ""
    rounds: int = 1
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    steps: int = 25
    cfg: float = 4.0
    sampler: SamplerName = "ddim"
    mode: str = "dmg"
    constants: Mapping[str, Any] | str = field(default_factory=dict)
    strength: float = 1.0
    frame_strength: tuple[float, ...] = ()
    key_source: str | None = None
    time_pooling: str = "max"
    overlap: Overlap = "drop"
    colour_reference: ColourReference = "global"
    next_frame: NextFrame = "picture"
    mask_borders: MaskBorders = "check"
    first_round: FirstRound = "clip"
    match_statistics: bool = False
    shared_noise: float = 0.0
    frames_per_second: float = 8.0
    strength_curve: StrengthCurve | None = None
    goal: ShareGoal | None = None
    levers: tuple[str, ...] = ()
    auto: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.phrases, str):
            raise ValueError(f"phrases is the string {self.phrases!r}; give a tuple of phrases.")
        object.__setattr__(self, "phrases", tuple(plain_phrase(phrase) for phrase in self.phrases))
        object.__setattr__(self, "frame_strength", tuple(self.frame_strength))
        given = read_constants(self.mode, self.constants) if isinstance(self.constants, str) else self.constants
        object.__setattr__(self, "constants", dict(given))
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; describe the video, for example 'a red ball moves left on sand'.")
        check_choices(
            (
                ("sampler", self.sampler, get_args(SamplerName)),
                ("overlap", self.overlap, get_args(Overlap)),
                ("colour_reference", self.colour_reference, get_args(ColourReference)),
                ("next_frame", self.next_frame, get_args(NextFrame)),
                ("mask_borders", self.mask_borders, get_args(MaskBorders)),
                ("first_round", self.first_round, get_args(FirstRound)),
            )
        )
        check_ranges(
            (
                ("rounds", self.rounds, 1, MAX_ROUNDS),
                ("frames", self.frames, 1 if self.rounds == 1 else 2, MAX_FRAMES),
                ("height", self.height, 1, MAX_SIDE),
                ("width", self.width, 1, MAX_SIDE),
                ("seed", self.seed, 0, MAX_SEED - self.rounds),
                ("steps", self.steps, 1, MAX_STEPS),
                ("cfg", self.cfg, 1.0, 100.0),
                ("shared_noise", self.shared_noise, 0.0, 1.0),
                ("frames_per_second", self.frames_per_second, *RATES),
            )
        )
        object.__setattr__(self, "levers", tuple(self.levers))
        check_levers(self.levers)
        if self.uses_levers:
            self._check_levers()
        # The guide checks its fields; an empty mask is enough for that, and it happens before any work.
        self.guide(torch.zeros(max(len(self.phrases), 1), 1, 1, 1), self.frame_strength[:1])

    @property
    def uses_levers(self) -> bool:
        """Whether anything acts beside the mode."""
        return self.auto or bool(self.levers)

    def _check_levers(self) -> None:
        if self.auto and self.levers:
            raise ValueError(f"levers are {', '.join(self.levers)} and auto is on; give one of them.")
        if not any(self.phrases):
            raise ValueError("levers need words that name the objects; give phrases of the prompt.")
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; levers act between steps, so give at least 2.")

    @classmethod
    def of_guide(cls, guide: Guide, prompt: str, **values: Any) -> GuidedClipsSettings:
        """Settings with the values of a guide; its masks are given to the recipe separately.

        Args:
            guide: mode with its constants, words and strengths.
            prompt: of the video.
            values: all other settings.
        """
        return cls(
            prompt,
            guide.phrases,
            guide.background_phrase,
            mode=guide.mode.name,
            constants=asdict(guide.mode),
            strength=guide.strength,
            frame_strength=guide.frame_strength,
            key_source=guide.key_source,
            time_pooling=guide.time_pooling,
            strength_curve=guide.strength_curve,
            goal=guide.goal,
            **values,
        )

    def round_size(self, geometry: Geometry) -> tuple[int, int, int]:
        """Frames, height and width of one round's clip.

        Raises:
            ValueError: a size that the model cannot make.
        """
        frames = geometry.native_frames if self.frames is None else self.frames
        return film_size(geometry, frames, self.height, self.width)

    def film_frames(self, frames: int) -> int:
        """Length of the video whose rounds have this many frames."""
        return self.rounds * frames if self.overlap == "keep" else joined_frames(self.rounds, frames)

    def guide(self, masks: Tensor, frame_strength: tuple[float, ...]) -> Guide:
        """The guide for these masks [N, T, H, W], with a factor per frame or none.

        Raises:
            ValueError: an unknown mode or constant, or values out of range.
        """
        return Guide(
            masks=masks,
            phrases=self.phrases,
            background_phrase=self.background_phrase,
            mode=make_mode(self.mode, **self.constants),
            strength=self.strength,
            frame_strength=frame_strength,
            key_source=self.key_source,
            time_pooling=self.time_pooling,
            strength_curve=self.strength_curve,
            goal=self.goal,
        )

    def starting_noise(self, noise: Tensor) -> Tensor:
        """Noise [1, C, T, h, w] of a round, of which later frames share a part of the first one's."""
        return share_first_frame(noise, self.shared_noise, keep_variance=False) if self.shared_noise else noise

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        for name in ("strength_curve", "goal"):
            # Rounds on disk from before there were these are the same rounds.
            if values[name] is None:
                del values[name]
        if not self.uses_levers:
            # So are those from before there were levers.
            del values["levers"], values["auto"]
        return values

    def round_settings(self) -> dict[str, Any]:
        """The settings that decide the pixels of each round, as plain JSON values."""
        return {name: value for name, value in self.to_dict().items() if name not in RUN_ONLY_SETTINGS}


def joined_frames(rounds: int, frames: int) -> int:
    """Frames of a sequence in which neighbouring rounds share one."""
    return rounds * (frames - 1) + 1
