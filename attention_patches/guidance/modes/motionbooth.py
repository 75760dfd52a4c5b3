"""MotionBooth, its motion control, which needs no training.

Source: Wu et al., "MotionBooth: Motion-Aware Customized Text-to-Video Generation" (arXiv 2406.17758) and its code,
jianzongwu/MotionBooth. The constants are those of its command line; the pipeline's own defaults are a gain of 7.5 in 5
steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .region_words import RegionWords


@dataclass(frozen=True)
class MotionBooth(RegionWords):
    """Words act in their own region only; see ``RegionWords``.

    Two cells, of which the object takes the first, and the words of the object, of the background and of neither: what
    is added in the first steps, x where closed, is ::

                  object  ground   other
        query 1     5.0      x       x
        query 2      x      5.0      x

    Published: alpha = 10 in the first 15 of 50 steps, suppression by alpha * -1e10 in all steps, the conditional half,
    all cross-attention.
    """

    gain: float = 10.0
    amplify_percent: float = 0.3

    name: ClassVar[str] = "motionbooth"
    summary: ClassVar[str] = "words act in their own region only, amplified by 10 in the first third"
