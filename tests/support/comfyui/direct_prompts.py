"""Prompts over time written out by hand: cross-attention to each prompt alone, and the mean of the results by frames.

It shares nothing with the pack: which attention calls a tiny model makes is the table of ``dense_reference``, and which
tokens are of which frame is counted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from dense_reference import CALLS, Calls, DenseReference
from native_models import TinyModel
from torch import Tensor


class DirectPrompts(DenseReference):
    """Hangs prompts over time into a tiny model.

    Args:
        model: the tiny model.
        weights: [frames, prompts] of the frames that the model is called with.
        embeddings: of each prompt, [1, L, C].
        calls: of the model; those of ``CALLS`` by default.
    """

    def __init__(
        self, model: TinyModel, weights: Tensor, embeddings: Sequence[Tensor], calls: Calls | None = None
    ) -> None:
        super().__init__(model, [])
        self.calls = calls or CALLS[model.name]
        self.weights = weights
        self.lengths = [embedding.shape[1] for embedding in embeddings]
        self.joined = torch.cat(list(embeddings), dim=1)

    def attend(self, function: Any, previous: Any, *args: Any, **kwargs: Any) -> Tensor:
        named = {**dict(zip(("q", "k", "v", "heads", "mask"), args, strict=False)), **kwargs}
        call = self.order[self.count]
        self.count += 1
        q, k, v, heads, mask = (named.pop(name, None) for name in ("q", "k", "v", "heads", "mask"))
        out = function(q, k, v, heads, mask=mask, **named)
        if call[0] != "C":
            return out
        rows = q.shape[0] // len(self.chunks)
        text = sum(self.lengths)
        for chunk, prompt in enumerate(self.prompts):
            if not torch.equal(prompt[:1, :text], self.joined):
                continue
            own = slice(chunk * rows, (chunk + 1) * rows)
            each, first = [], 0
            for length in self.lengths:
                part = slice(first, first + length)
                closed = mask if mask is None else mask[..., part]
                keys, values = k[own][..., part, :], v[own][..., part, :]
                each.append(function(q[own], keys, values, heads, mask=closed, **named))
                first += length
            shares = self._shares(int(call[1]), rows, q.shape[-2])
            if out.ndim == 4:
                shares = shares[:, :, None]
            out[own] = sum(shares[index, ..., None].to(result) * result for index, result in enumerate(each))
        return out

    def _shares(self, level: int, rows: int, queries: int) -> Tensor:
        """[prompts, rows, queries], by loops over frames."""
        frames, (height, width, _) = len(self.weights), self.calls.grids[level]
        shares = torch.empty(self.weights.shape[1], rows, queries)
        if self.calls.per_frame:
            for row in range(rows):
                shares[:, row] = self.weights[row % frames, :, None]
            return shares
        shares[:] = self.weights.mean(dim=0)[:, None, None]
        for frame in range(frames):
            begin = self.calls.before + frame * height * width
            shares[:, :, begin : begin + height * width] = self.weights[frame, :, None, None]
        return shares
