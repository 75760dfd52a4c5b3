"""Sizes of a LaVie-shaped video U-Net, and how it was trained to be sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

PredictionType = Literal["epsilon", "v_prediction"]
LaVieStage = Literal["base", "interpolation"]


@dataclass(frozen=True)
class LaVieConfig:
    """Config of a LaVie-shaped U-Net; the defaults are LaVie base (Vchitect/LaVie).

    Attributes:
        stage: ``interpolation`` is built otherwise: the first frame's keys and values stand before the preceding frame's
            in self-attention, temporal attention comes last and knows no positions.
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
        num_train_timesteps, beta_start, beta_end: noise schedule, linear in beta.
        native_frames: clip length it was trained on.
    """

    stage: LaVieStage = "base"
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
    native_frames: int = 16

    def __post_init__(self) -> None:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries for {len(self.block_out_channels)} levels; "
                "give one per level."
            )
        for channels in self.block_out_channels:
            if channels % self.num_heads or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {channels}, which {self.num_heads} heads and {self.norm_num_groups} "
                    "groups do not both divide; choose a common multiple."
                )
        if self.stage not in get_args(LaVieStage):
            raise ValueError(f"stage is {self.stage!r}; choose one of {', '.join(get_args(LaVieStage))}.")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is {self.prediction_type!r}; choose epsilon or v_prediction.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LaVieConfig:
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
    def load(cls, path: Path) -> LaVieConfig:
        """Read a config written by :meth:`save`."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
