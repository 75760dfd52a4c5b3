"""A guide in one of the modes: mask sequences, words and strength over time, not yet bound to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import get_args

from torch import Tensor

from ..checks import (
    block_patterns,
    check_choice,
    check_number,
    check_phrases,
    checked_masks,
    matches_block,
)
from ..frame_keys import FirstFrameKeys, KeySource, first_frame_keys_patch
from ..stack import Patch
from .mode_patch import MaskModePatch
from .modes.dynamic_masks import DynamicMasks
from .modes.mode import MaskMode
from .regions import FOREGROUND, MaskPyramid, TimePooling
from .text_spans import TextSpans

# Largest factor on what a mode does.
MAX_STRENGTH = 10.0


@dataclass(frozen=True, eq=False)
class ModeGuide:
    """Where objects shall be in each frame, and by which rule attention follows.

    Attributes:
        masks: [R, F, H, W] float in 0..1 on the CPU, one track per object, F pixel (or latent) frames. F may be 1 (one
            mask for all frames). [F, H, W] is taken as one object.
        phrases: words of the prompt that name each object, one per object, or empty.
        background_phrase: words of the prompt that name what is outside of all objects, or empty.
        mode: the rule with its constants.
        strength: factor on the mode's logits and weights, 0 (no guidance at all) to 10. What a mode closes for good is
            closed at any strength above 0.
        frame_strength: factors on ``strength``, 0..10: one for each frame of the masks (or of the clip, with one mask
            for all), one for all frames, or none.
        key_source: which frames give the keys and values of self-attention, on transformers too, which lose their motion
            by it; None is the mode's own choice for models that attend frame by frame, and leaves transformers alone.
        time_pooling: how the pixel frames of one latent frame become one: max, mean, min, first or last.

    Raises:
        ValueError: a value out of its range, masks of the wrong shape or not finite, or numbers that do not match.
    """

    masks: Tensor
    phrases: tuple[str, ...] = ()
    background_phrase: str = ""
    mode: MaskMode = field(default_factory=DynamicMasks)
    strength: float = 1.0
    frame_strength: tuple[float, ...] = ()
    key_source: KeySource | None = None
    time_pooling: TimePooling = "max"

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", checked_masks(self.masks))
        object.__setattr__(self, "phrases", tuple(self.phrases))
        object.__setattr__(self, "background_phrase", self.background_phrase.strip())
        object.__setattr__(self, "frame_strength", tuple(float(value) for value in self.frame_strength))
        check_phrases(self.phrases, self.masks)
        check_choice("time_pooling", self.time_pooling, get_args(TimePooling))
        if self.key_source is not None:
            check_choice("key_source", self.key_source, get_args(KeySource))
        check_number("strength", self.strength, MAX_STRENGTH, meaning="no guidance")
        for value in self.frame_strength:
            check_number("frame_strength", value, MAX_STRENGTH, meaning="no guidance in this frame")
        frames, values = self.masks.shape[1], len(self.frame_strength)
        if frames > 1 and values not in (0, 1, frames):
            raise ValueError(
                f"there are {values} values of frame_strength for {frames} mask frames; give one per mask frame, or one "
                "for all of them."
            )
        if self.background_phrase and not self.phrases and len(self.masks):
            raise ValueError(
                f"the background phrase {self.background_phrase!r} is given without phrases of the objects; give one "
                "phrase per object, or leave it out."
            )

    @property
    def mode_name(self) -> str:
        """The mode, for reports."""
        return self.mode.name

    @property
    def blocks(self) -> str:
        """Comma list of block name patterns."""
        return self.mode.blocks

    @property
    def percents(self) -> tuple[float, float]:
        """Where in the schedule guidance begins and ends."""
        return self.mode.start_percent, self.mode.end_percent

    @property
    def uses_words(self) -> bool:
        """Whether the places of the phrases make a difference."""
        return True

    @property
    def needs_words(self) -> bool:
        """Whether there is no guidance without them."""
        return self.mode.only_words

    @property
    def is_active(self) -> bool:
        """Whether the guide asks for anything at all."""
        strong = self.strength > 0.0 and (not self.frame_strength or max(self.frame_strength) > 0.0)
        return strong and bool((self.masks >= FOREGROUND).any())

    @property
    def keys(self) -> KeySource:
        """Which frames give the keys and values of self-attention."""
        return self.mode.default_key_source if self.key_source is None else self.key_source

    def on_blocks(self, names: Sequence[str]) -> ModeGuide:
        """Return this guide for a model whose blocks have these names.

        A mode's published blocks are those of a U-Net; where none of them is in the model (a transformer), all are guided.
        """
        published = next(constant.default for constant in fields(self.mode) if constant.name == "blocks")
        patterns = block_patterns(self.blocks)
        if self.blocks != published or any(matches_block(name, pattern) for name in names for pattern in patterns):
            return self
        return replace(self, mode=replace(self.mode, blocks="all"))

    def pyramid(self) -> MaskPyramid:
        """The masks as attention will see them."""
        return MaskPyramid(self.masks, self.mode.hard, self.time_pooling, self.mode.mask_rule)

    def bind(self, text_spans: TextSpans | None) -> tuple[Patch, ...]:
        """The patches of this guide for a prompt; see ``mode_patches``."""
        return mode_patches(self, text_spans)


def mode_patches(guide: ModeGuide, text_spans: TextSpans | None = None) -> tuple[Patch, ...]:
    """Bind a guide to a prompt's tokens as attention patches.

    Args:
        guide: masks, mode and strength. Strength 0 or masks without an object leave every call untouched.
        text_spans: for each object the positions of its words in the conditional text sequence. Without them words are
            left alone.

    Returns:
        Patches for a ``PatchStack``, outermost first: keys of other frames, then masks. Keys of other frames are taken
        during the whole schedule, in the mode's blocks and rows.

    Raises:
        ValueError: the numbers of phrases and masks differ, or the mode guides words only and is given none.
    """
    patch = MaskModePatch(guide, text_spans)
    if guide.keys == "self" or not guide.is_active:
        return (patch,)
    chosen = guide.key_source is not None
    keys = FirstFrameKeys(guide.keys, blocks=guide.blocks, rows=guide.mode.rows, whole_clips=chosen)
    return (first_frame_keys_patch(keys), patch)
