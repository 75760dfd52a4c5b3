"""Attention calls of a clip of four frames, and attention over all pairs of its tokens, written out."""

from __future__ import annotations

import math
from typing import Any

import attention_calls
import torch
from torch import Tensor

from mask_guided_video.attention_patches.frame_keys import FirstFrameKeys, FirstFrameKeysPatch
from mask_guided_video.attention_patches.site import (
    AttentionSite,
)

HEADS, DIM, FRAMES, HEIGHT, WIDTH = 2, 12, 4, 3, 5
CELLS = HEIGHT * WIDTH
SOURCES = ("first", "first_prev", "first_self", "first_prev_self")
TOLERANCE = {torch.float32: 4e-6, torch.float16: 6e-3, torch.bfloat16: 4e-2}
# How often each of four frames looks at each of them, written out.
COUNTS = {
    "first": [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
    "first_prev": [[2, 0, 0, 0], [2, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]],
    "first_self": [[2, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]],
    "first_prev_self": [[3, 0, 0, 0], [2, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]],
}


def make_site(folded: str = "frames", *, before: int = 0, after: int = 0, **changes: Any) -> AttentionSite:
    """A call of 2 chunks x 2 samples; in a sequence over the whole clip ``after`` tokens are text."""
    joint = folded == "none" and after > 0
    usual = {"text_tokens": after if joint else 0, "samples": 2, "before": before}
    grid = (FRAMES, HEIGHT, WIDTH)
    return attention_calls.make_site("joint" if joint else "self", folded, grid, **{**usual, **changes})


def make_tensors(site: AttentionSite, length: int, keys: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return attention_calls.make_tensors(site, HEADS * DIM, length, keys, dtype, seed=length)


def keys_patch(source: str = "first_self", **settings: Any) -> Any:
    return FirstFrameKeysPatch(FirstFrameKeys(source, **settings))


def dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """[B, L, C] attention in double precision with a bias that broadcasts to [B, heads, Lq, Lk]."""
    q, k, v = (tensor.double().unflatten(2, (HEADS, -1)).transpose(1, 2) for tensor in (q, k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(DIM) + bias
    return (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2)


def looks(source: str, cells: int = CELLS) -> Tensor:
    """Bias [N, N] over all pairs of the clip: a key that is there n times has log n."""
    counts = torch.tensor(COUNTS[source], dtype=torch.float64).log()
    return counts.repeat_interleave(cells, 0).repeat_interleave(cells, 1)


def clips(tensor: Tensor) -> Tensor:
    """Rows of single frames [S * T, L, C] as rows of clips [S, T * L, C]."""
    return tensor.unflatten(0, (-1, FRAMES)).flatten(1, 2)


def make_masks(first_frame: bool = True) -> Tensor:
    """Two objects that do not overlap, pixels are tokens: the second is not in frame 1, neither is in frame 3."""
    masks = torch.zeros(2, FRAMES, HEIGHT, WIDTH)
    for frame in range(0 if first_frame else 1, 3):
        masks[0, frame, :2, frame : frame + 2] = 0.9
        masks[0, frame, 0, frame] = 0.6
    for frame in (0, 2) if first_frame else (2,):
        masks[1, frame, 2, 1:4] = 1.0
        masks[1, frame, 2, 0] = 0.3
    return masks


def mask_bias(masks: Tensor, mode: str, strength: float = 8.0, hard: bool = False) -> Tensor:
    """[N, N] over all pairs of the clip, pair by pair."""
    cells = masks.shape[2] * masks.shape[3]
    share = masks.double().flatten(1).T
    share = (share >= 0.5).double() if hard else share
    full = torch.cat((share, 1.0 - share.sum(dim=1, keepdim=True)), dim=1)
    out = torch.zeros(len(share), len(share), dtype=torch.float64)
    for query, own in enumerate(share):
        frame = query // cells
        if share[frame * cells : (frame + 1) * cells].max() < 0.5:
            continue
        for key, other in enumerate(share):
            if mode == "focus":
                out[query, key] = strength * math.log(max(float(other.max()), 1e-4))
            elif mode == "focus_fg" and own.sum() >= 0.5:
                logs = other.clamp(min=1e-4).log()
                out[query, key] = strength * float(own @ logs / own.sum())
            elif mode == "separate":
                out[query, key] = -(1000.0 if hard else strength) * (1.0 - float(full[query] @ full[key]))
    return out
