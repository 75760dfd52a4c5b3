"""Sizes of the joint video transformer, and how it was trained to be sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ..lavie.config import BetaSchedule, ConfigFile, PredictionType

# Rotary positions turn pairs of channels, and each of the three axes needs at least one pair.
SMALLEST_HEAD = 6


@dataclass(frozen=True)
class JointConfig(ConfigFile):
    """Config of a joint video transformer; the defaults are the Toybox's.

    Attributes:
        in_channels, out_channels: of the latents and of the prediction.
        patch: latent cells per token along (time, height, width); time is always 1.
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads of every block.
        mlp_ratio: channels inside the feed-forward layers, as a multiple of ``width``.
        text_channels: channels of the text embedding.
        rotary_base: longest wave length of the rotary positions, in tokens, divided by 2 pi.
        prediction_type: what the output means.
        num_train_timesteps, beta_start, beta_end, beta_schedule: noise schedule, as ``LaVieConfig``.
        native_frames: clip length it was trained on.
    """

    in_channels: int = 4
    out_channels: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 192
    depth: int = 6
    num_heads: int = 4
    mlp_ratio: int = 4
    text_channels: int = 64
    rotary_base: float = 100.0
    prediction_type: PredictionType = "v_prediction"
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    native_frames: int = 8

    def __post_init__(self) -> None:
        if len(self.patch) != 3 or self.patch[0] != 1 or min(self.patch) < 1:
            raise ValueError(f"patch is {self.patch}; give (1, height, width), each at least 1.")
        if self.width % (2 * self.num_heads) or self.width // self.num_heads < SMALLEST_HEAD:
            raise ValueError(
                f"width is {self.width} with {self.num_heads} heads; a head needs an even number of channels, at least "
                f"{SMALLEST_HEAD}."
            )
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; give at least one block.")
        if self.prediction_type not in get_args(PredictionType):
            raise ValueError(f"prediction_type is {self.prediction_type!r}; choose epsilon or v_prediction.")
        if self.beta_schedule not in get_args(BetaSchedule):
            raise ValueError(f"beta_schedule is {self.beta_schedule!r}; choose linear or scaled_linear.")

    @property
    def head_channels(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks in the order of the forward pass."""
        return [f"joint.{number}" for number in range(self.depth)]
