"""Direct-a-Video, its object control, which needs no training.

Source: Yang et al., "Direct-a-Video: Customized Video Generation with User-Directed Camera Movement and Object Motion"
(arXiv 2402.03162) and its code, ysy31415/direct_a_video. Where no background phrase is given, the authors append ", in
a beautiful place" to the prompt and take that; here it is for the user to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..regions import MaskRule
from .region_words import RegionWords


@dataclass(frozen=True)
class DirectAVideo(RegionWords):
    """Words act in their own region only; see ``RegionWords``.

    Two cells, of which the object takes the first, and the words of the object, of the background and of neither: what
    is added in the first steps, x where closed, is ::

                  object  ground   other
        query 1    12.5      x       x
        query 2      x     12.5      x

    Published: lambda = 25 until normalised time 0.95 (the first 3 of 50 steps), suppression in all steps, the
    conditional half, all spatial cross-attention, masks interpolated and taken where above 0.
    """

    mask_rule: MaskRule = "bilinear_gt0"
    gain: float = 25.0
    amplify_percent: float = 0.05

    name: ClassVar[str] = "direct_a_video"
    summary: ClassVar[str] = "words act in their own region only, amplified by 25 in the first steps"
