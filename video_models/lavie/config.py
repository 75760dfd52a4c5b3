"""Sizes of LaVie's three video U-Nets, and how they were trained to be sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

PredictionType = Literal["epsilon", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear"]
LaVieStage = Literal["base", "interpolation"]
UpscalerStage = Literal["upscaling"]
Stage = Literal["base", "interpolation", "upscaling"]

Config = TypeVar("Config", bound="ConfigFile")


class ConfigFile:
    """Reading and writing a dataclass of sizes as JSON, and what all of them check."""

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build from JSON values; unknown keys are refused.

        Raises:
            ValueError: if a key is not a field, or a value does not fit.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"config has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    @classmethod
    def load(cls: type[Config], path: Path) -> Config:
        """Read a config written by :meth:`save`."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def _check(self, stages: tuple[str, ...], per_level: tuple[str, ...]) -> None:
        levels = len(self.block_out_channels)
        for name in per_level:
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {levels} levels; give one per level."
                )
        for channels in self.block_out_channels:
            if channels % self.num_heads or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {channels}, which {self.num_heads} heads and {self.norm_num_groups} "
                    "groups do not both divide; choose a common multiple."
                )
        if self.stage not in stages:
            raise ValueError(f"stage is {self.stage!r}; choose one of {', '.join(stages)}.")
        if self.prediction_type not in get_args(PredictionType):
            raise ValueError(f"prediction_type is {self.prediction_type!r}; choose epsilon or v_prediction.")
        if self.beta_schedule not in get_args(BetaSchedule):
            raise ValueError(f"beta_schedule is {self.beta_schedule!r}; choose linear or scaled_linear.")


@dataclass(frozen=True)
class LaVieConfig(ConfigFile):
    """Config of a LaVie-shaped U-Net; the defaults are LaVie base (Vchitect/LaVie).

    Attributes:
        stage: ``interpolation`` is built otherwise: the first frame's keys and values stand before the preceding
            frame's in self-attention, temporal attention comes last and has no positions.
        picture_model: whether this is the U-Net of Stable Diffusion 1, which was made for single pictures, opened as
            LAMP does (arXiv 2310.10769): self-attention of every frame looks at the first frame, and there is no
            temporal attention until a motion file brings it, which then comes last and has no positions.
        in_channels: channels of the input latents (8 for the interpolation model).
        out_channels: channels of the prediction.
        block_out_channels: channels per level, finest first.
        attention_levels: which levels hold transformers.
        layers_per_block: ResNets per down level; up levels have one more.
        num_heads: attention heads at every level.
        cross_attention_dim: channels of the text embedding.
        norm_num_groups: groups of every GroupNorm.
        rotary_dim: leading channels of a head that temporal attention rotates (at most the head has).
        relative_buckets, relative_max_distance: of the temporal T5-style bias.
        prediction_type: what the output means.
        num_train_timesteps, beta_start, beta_end: noise schedule.
        beta_schedule: whether betas are ``linear`` in the step or their square roots are (``scaled_linear``).
        native_frames: clip length it was trained on.
    """

    stage: LaVieStage = "base"
    picture_model: bool = False
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    num_heads: int = 8
    cross_attention_dim: int = 768
    norm_num_groups: int = 32
    rotary_dim: int = 32
    relative_buckets: int = 32
    relative_max_distance: int = 32
    prediction_type: PredictionType = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    native_frames: int = 16

    def __post_init__(self) -> None:
        self._check(get_args(LaVieStage), ("attention_levels",))
        if self.picture_model and self.stage != "base":
            raise ValueError(f"stage is {self.stage!r} of a model for pictures; only the base stage can be one.")


@dataclass(frozen=True)
class UpscalerConfig(ConfigFile):
    """Config of LaVie's upscaler; the defaults are ``lavie_vsr.pt``.

    Attributes:
        stage: always ``upscaling``.
        in_channels: noisy latents and, after them, the noisy small pictures.
        out_channels: channels of the prediction.
        block_out_channels: channels per level, finest first.
        attention_levels: which levels hold transformers.
        only_cross_attention: at which levels both attentions of a transformer's frames look at the text.
        layers_per_block: ResNets per down level; up levels have one more.
        num_heads: attention heads at every level.
        cross_attention_dim: channels of the text embedding.
        norm_num_groups: groups of every GroupNorm.
        rotary_dim, relative_buckets, relative_max_distance: of temporal attention, as ``LaVieConfig``.
        noise_levels: how many class labels there are, one per noise level of the small pictures.
        max_noise_level: highest noise level that it was trained on.
        prediction_type: what the output means.
        num_train_timesteps, beta_start, beta_end, beta_schedule: noise schedule, as ``LaVieConfig``.
        native_frames: clip length of one call.
    """

    stage: UpscalerStage = "upscaling"
    in_channels: int = 7
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (256, 512, 512, 1024)
    attention_levels: tuple[bool, ...] = (False, True, True, True)
    only_cross_attention: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    num_heads: int = 8
    cross_attention_dim: int = 1024
    norm_num_groups: int = 32
    rotary_dim: int = 32
    relative_buckets: int = 32
    relative_max_distance: int = 32
    noise_levels: int = 1000
    max_noise_level: int = 350
    prediction_type: PredictionType = "v_prediction"
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    native_frames: int = 8

    def __post_init__(self) -> None:
        self._check(get_args(UpscalerStage), ("attention_levels", "only_cross_attention"))
        if self.in_channels <= self.out_channels:
            raise ValueError(
                f"in_channels is {self.in_channels} and out_channels {self.out_channels}; the upscaler takes the small "
                "pictures' channels beside the latents', so give more."
            )


def config_from_dict(values: Mapping[str, Any]) -> LaVieConfig | UpscalerConfig:
    """Build the config of whichever stage JSON values name; without a stage it is the base model's.

    Raises:
        ValueError: if a key is not a field, or a value does not fit.
    """
    kind = UpscalerConfig if values.get("stage") in get_args(UpscalerStage) else LaVieConfig
    return kind.from_dict(values)
