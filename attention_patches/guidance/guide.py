"""A guide: where objects are in each frame, and by which rule attention follows; not yet bound to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import get_args

from torch import Tensor

from ..checks import block_patterns, check_choice, check_number, check_phrases, checked_masks, matches_block
from ..errors import GuideError
from ..site import KeySource
from .attention_share import ShareGoal
from .modes.mode import MAX_STRENGTH, MaskMode
from .regions import FOREGROUND, MaskPyramid, TimePooling
from .strength_curve import StrengthCurve


@dataclass(frozen=True, eq=False)
class Guide:
    """Masks, words, and a mode with its strength.

    For instance one object in the left half of a clip of eight frames, whose words act there::

        masks = torch.zeros(1, 8, 64, 64)
        masks[..., :32] = 1.0
        guide = Guide(masks, make_mode("dmg", beta=4.0), phrases=("red ball",))
        stack = PatchStack(guide_patches(guide, text_spans))

    Attributes:
        masks: [R, F, H, W] float in 0..1 on the CPU, one track per object, F pixel (or latent) frames. F may be 1 (one
            mask for all frames). [F, H, W] is taken as one object.
        mode: the rule with its constants, its part of the schedule, blocks and rows.
        phrases: words of the prompt that name each object, one per object, or empty.
        background_phrase: words of the prompt that name what is outside of all objects, or empty; not every mode asks
            for them.
        strength: factor on the mode's logits and weights, 0 (no guidance at all) to 10. What a mode closes for good is
            closed at any strength above 0.
        frame_strength: factors on ``strength``, 0..10: one for each frame of the masks (or of the clip, with one mask
            for all), one for all frames, or none.
        key_source: which frames give the keys and values of self-attention, on transformers too, which lose their
            motion by it; None is the mode's own choice for models that attend frame by frame, and leaves transformers
            alone.
        time_pooling: how the pixel frames of one latent frame become one: max, mean, min, first or last.
        strength_curve: factors on ``strength`` over the schedule, inside the mode's part of it; where one is 0 the
            step is not guided. None is 1 everywhere.
        goal: the share of attention that an object's queries shall have on its words, and where the mode is about the
            video on their own region, in place of the mode's own gains: each head of each block finds the gain that
            takes, on the first guided step. ``strength`` is a factor on what is found. What a mode closes stays closed,
            and modes that only close have nothing to find. None keeps the mode's own.

    Raises:
        GuideError: a value out of its range, masks of the wrong shape or not finite, or numbers that do not match.
    """

    masks: Tensor
    mode: MaskMode
    phrases: tuple[str, ...] = ()
    background_phrase: str = ""
    strength: float = 1.0
    frame_strength: tuple[float, ...] = ()
    key_source: KeySource | None = None
    time_pooling: TimePooling = "max"
    strength_curve: StrengthCurve | None = None
    goal: ShareGoal | None = None

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
            raise GuideError(
                f"there are {values} values of frame_strength for {frames} mask frames; give one per mask frame, or "
                "one for all of them."
            )
        if self.background_phrase and not self.phrases and len(self.masks):
            raise GuideError(
                f"the background phrase {self.background_phrase!r} is given without phrases of the objects; give one "
                "phrase per object, or leave it out."
            )

    @property
    def is_active(self) -> bool:
        """Whether the guide asks for anything at all."""
        strong = self.strength > 0.0 and (not self.frame_strength or max(self.frame_strength) > 0.0)
        strong = strong and (self.strength_curve is None or self.strength_curve.highest > 0.0)
        strong = strong and (self.goal is None or self.goal.share > 0.0)
        return strong and bool((self.masks >= FOREGROUND).any())

    def factor_at(self, progress: float) -> float:
        """The factor on ``strength`` at a part of the schedule, 0 where the guide rests."""
        if not self.mode.scope.is_during(progress):
            return 0.0
        return 1.0 if self.strength_curve is None else self.strength_curve.at(progress)

    @property
    def own_strength(self) -> float:
        """Strength in the mode's own unit; see ``modes.registry.mode_at``."""
        own = self.mode.strength_constant
        return self.strength * getattr(self.mode, own) if own else self.strength

    @property
    def keys(self) -> KeySource:
        """Which frames give the keys and values of self-attention."""
        return self.mode.default_key_source if self.key_source is None else self.key_source

    def on_blocks(self, names: Sequence[str]) -> Guide:
        """Return this guide for a model whose blocks have these names.

        A mode's published blocks are those of a U-Net; where none of them is in the model (a transformer), all are
        guided.
        """
        published = next(constant.default for constant in fields(self.mode) if constant.name == "blocks")
        patterns = block_patterns(self.mode.blocks)
        if self.mode.blocks != published or any(matches_block(name, pattern) for name in names for pattern in patterns):
            return self
        return replace(self, mode=replace(self.mode, blocks="all"))

    def pyramid(self) -> MaskPyramid:
        """The masks as attention will see them."""
        return MaskPyramid(self.masks, self.mode.hard, self.time_pooling, self.mode.mask_rule)
