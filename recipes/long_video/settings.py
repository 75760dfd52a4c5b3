"""The settings of long videos, checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ...attention_patches.free_long import OCTAVES, FreeLong, LargestLevel
from ...video_models.sampling.noise import NOISE_MODES, NoiseMode
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
from ..protocols import Geometry, SamplerName
from .schedule import ScheduledPrompt, parse_schedule

Technique = Literal["freelong", "freelong++", "none"]
# A video without a given length is this many times as long as the model's clips.
NATIVE_LENGTHS = 4


@dataclass(frozen=True)
class InterpolationSettings:
    """How frames are filled in.

    Attributes:
        negative_prompt: what they should not show; the default is the word that the model was run with.
        steps: sampling steps, 1..1000.
        cfg: classifier-free guidance scale, 1 (off) to 100.

    Raises:
        ValueError: naming the value and what is allowed.
    """

    negative_prompt: str = "None"
    steps: int = 50
    cfg: float = 4.0

    def __post_init__(self) -> None:
        check_ranges((("interpolation steps", self.steps, 1, MAX_STEPS), ("interpolation cfg", self.cfg, 1.0, 100.0)))


@dataclass(frozen=True)
class UpscalingSettings:
    """How frames are enlarged.

    Attributes:
        negative_prompt: what they should not show.
        steps: sampling steps, 1..1000.
        cfg: classifier-free guidance scale, 1 (off) to 100.
        noise_level: noise on the small frames, 0..350: more lets the model invent more.
        window: frames that the model enlarges at once.
        overlap: frames that neighbouring windows share, below ``window``.

    Raises:
        ValueError: naming the value and what is allowed.
    """

    negative_prompt: str = "blur, worst quality"
    steps: int = 50
    cfg: float = 5.0
    noise_level: int = 50
    window: int = 8
    overlap: int = 4

    def __post_init__(self) -> None:
        check_ranges(
            (
                ("upscaling steps", self.steps, 1, MAX_STEPS),
                ("upscaling cfg", self.cfg, 1.0, 100.0),
                ("noise_level", self.noise_level, 0, 350),
                ("upscaling window", self.window, 1, MAX_FRAMES),
                ("upscaling overlap", self.overlap, 0, self.window - 1),
            )
        )


@dataclass(frozen=True)
class LongVideoSettings:
    """What to make and how.

    Attributes:
        prompt: of the whole video; may be empty where there is a schedule.
        schedule: prompts over time, a line each: the frame from which it holds, a colon, the prompt.
        schedule_overlap: frames over which one prompt fades into the next, 0..4096.
        negative_prompt: of the whole video.
        frames: length, 1..4096; None is four times the model's native length.
        height: in pixels; None is the model's native height.
        width: in pixels; None is the model's native width.
        seed: of the noise, 0..2**63 - 2.
        steps: sampling steps, 1..1000.
        cfg: classifier-free guidance scale, 1 (off) to 100.
        sampler: ``ddim`` or ``euler``.
        noise: ``plain``, ``freenoise``, ``specmix`` or ``shared``; None is ``freenoise``, and ``plain`` with a schedule
            of several prompts, which repeated noise would hold back.
        noise_stride: frames in a group that ``freenoise`` and ``specmix`` shuffle.
        technique: ``freelong``, ``freelong++`` or ``none``.
        window: frames that each frame attends to locally; None is the model's native length. Also of the noise.
        temporal_cutoff, spatial_cutoff, strength, end_percent, largest_level, key_stride, blocks: see ``FreeLong``.
        frames_per_second: of the video; frames that are filled in make it as many times more.
        interpolation: where there is a model for it.
        upscaling: where there is a model for it.

    Raises:
        ValueError: naming the value and what is allowed.
    """

    prompt: str = ""
    schedule: str = ""
    schedule_overlap: int = 8
    negative_prompt: str = ""
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    steps: int = 25
    cfg: float = 4.0
    sampler: SamplerName = "ddim"
    noise: NoiseMode | None = None
    noise_stride: int = 4
    technique: Technique = "freelong"
    window: int | None = None
    temporal_cutoff: float = FreeLong.temporal_cutoff
    spatial_cutoff: float = FreeLong.spatial_cutoff
    strength: float = FreeLong.strength
    end_percent: float = FreeLong.end_percent
    largest_level: LargestLevel = FreeLong.largest_level
    key_stride: int = FreeLong.key_stride
    blocks: str = FreeLong.blocks
    frames_per_second: float = 8.0
    interpolation: InterpolationSettings = field(default_factory=InterpolationSettings)
    upscaling: UpscalingSettings = field(default_factory=UpscalingSettings)

    def __post_init__(self) -> None:
        if not self.prompt.strip() and not self.schedule.strip():
            raise ValueError("the prompt is empty; describe the video, for example 'a red ball bounces on sand'.")
        if self.schedule.strip():
            parse_schedule(self.schedule)
        check_choices(
            (
                ("sampler", self.sampler, get_args(SamplerName)),
                ("technique", self.technique, get_args(Technique)),
                ("noise", self.noise or "plain", NOISE_MODES),
            )
        )
        check_ranges(
            (
                ("frames", self.frames, 1, MAX_FRAMES),
                ("height", self.height, 1, MAX_SIDE),
                ("width", self.width, 1, MAX_SIDE),
                ("schedule_overlap", self.schedule_overlap, 0, MAX_FRAMES),
                ("seed", self.seed, 0, MAX_SEED),
                ("steps", self.steps, 1, MAX_STEPS),
                ("cfg", self.cfg, 1.0, 100.0),
                ("noise_stride", self.noise_stride, 1, MAX_FRAMES),
                ("window", self.window, 1, MAX_FRAMES),
                ("frames_per_second", self.frames_per_second, *RATES),
            )
        )
        # It checks its fields before any work.
        self._free_long(self.window or 1)

    @property
    def prompts(self) -> tuple[ScheduledPrompt, ...]:
        """The prompts over time; one that holds for the whole video where there is no schedule."""
        return parse_schedule(self.schedule) if self.schedule.strip() else (ScheduledPrompt(0, self.prompt),)

    @property
    def later_prompt(self) -> str:
        """Prompt of the stages after the first: that of the whole video, else the first of the schedule."""
        return self.prompt if self.prompt.strip() else self.prompts[0].text

    def film_size(self, geometry: Geometry) -> tuple[int, int, int]:
        """Frames, height and width of the video of a model.

        Raises:
            ValueError: a size that the model cannot make, or a prompt that begins after the end of the video.
        """
        longest = NATIVE_LENGTHS * geometry.native_frames - 1
        frames = longest // geometry.temporal_factor * geometry.temporal_factor + 1
        frames, height, width = film_size(geometry, self.frames or frames, self.height, self.width)
        last = self.prompts[-1].start
        if last >= frames:
            raise ValueError(
                f"the last prompt begins at frame {last} but the video has frames 0 to {frames - 1}; "
                "make it longer, or let the prompt begin earlier."
            )
        return frames, height, width

    def latent_window(self, geometry: Geometry) -> int:
        """The window in latent frames."""
        return -(-(self.window or geometry.native_frames) // geometry.temporal_factor)

    def free_long(self, geometry: Geometry) -> FreeLong | None:
        """What to patch attention with; None for ``none``."""
        return None if self.technique == "none" else self._free_long(self.latent_window(geometry))

    def _free_long(self, window: int) -> FreeLong:
        return FreeLong(
            window=window,
            temporal_cutoff=self.temporal_cutoff,
            spatial_cutoff=self.spatial_cutoff,
            strength=self.strength,
            end_percent=self.end_percent,
            largest_level=self.largest_level,
            bands=OCTAVES if self.technique == "freelong++" else (),
            key_stride=self.key_stride,
            blocks=self.blocks,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def read_schedule(path: Path) -> str:
    """The text of a prompt schedule.

    Raises:
        ValueError: a missing file, or one that is not text.
    """
    if not path.is_file():
        raise ValueError(f"there is no prompt schedule {str(path)!r}; check the path.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the prompt schedule {str(path)!r} is not UTF-8 text ({error.reason}); save it as such."
        ) from error
