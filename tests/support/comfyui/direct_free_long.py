"""FreeLong written out by hand: masks over all pairs of tokens and whole complex spectra, in double precision.

It shares nothing with the pack but the settings. An override counts the attention calls of each model call by the table
of ``dense_reference`` and replaces those over time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from dense_reference import OVERRIDE, Calls
from torch import Tensor

from mask_guided_video.attention_patches.free_long import FreeLong

NAMES = ("q", "k", "v", "heads", "mask")


def seen_frames(frames: int, settings: FreeLong, scale: int) -> Tensor:
    """[T, T] bool: which frames each frame sees in the window of a scale, pair by pair."""
    seen = torch.zeros(frames, frames, dtype=torch.bool)
    window = settings.window
    for row in range(frames):
        if settings.bands:
            chosen = [key for key in range(frames) if abs(row - key) < scale * window // 2]
        else:
            chosen = [key for key in range(frames) if abs(row - key) <= window // 2]
            if len(chosen) < window:
                first = 0 if row < frames / 2 else frames - window
                chosen = list(range(first, first + window))
        seen[row, chosen] = True
    return seen


def low_pass(size: int, cutoff: float) -> Tensor:
    """Gaussian over the frequencies of an axis, in the order of an FFT; half a turn per entry is 1."""
    places = torch.arange(size, dtype=torch.float64)
    frequency = torch.where(places > (size - 1) // 2, places - size, places) * 2.0 / size
    return torch.exp(-0.5 * (frequency / cutoff) ** 2)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Plain attention [B, heads, Lq, d] in double precision with a bias that broadcasts."""
    scores = q.double() @ k.double().transpose(2, 3) * q.shape[3] ** -0.5 + bias
    return scores.softmax(dim=3) @ v.double()


@dataclass(eq=False)
class DirectFreeLong:
    """Hangs FreeLong into a tiny model.

    Attributes:
        settings: of FreeLong.
        calls: of the model, with the frames of the film in each model call.
        blends: whether the whole clip gives the low frequencies at a noise level.
    """

    settings: FreeLong
    calls: Calls
    blends: Callable[[float], bool] = lambda sigma: True
    count: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> DirectFreeLong:
        return self

    def hang(self, patcher: Any) -> Any:
        """A clone of the model with FreeLong."""
        patched = patcher.clone()
        options = patched.model_options["transformer_options"]
        previous = options.get(OVERRIDE)

        def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
            inner = function if previous is None else lambda *rest, **named: previous(function, *rest, **named)
            return self.attend(inner, *args, **kwargs)

        options[OVERRIDE] = override
        return patched

    def attend(self, function: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One attention call."""
        order = self.calls.each
        call = order[self.count % len(order)]
        self.count += 1
        over_time = call[0] == "T" or (call[0] in "SJ" and not self.calls.per_frame)
        if not over_time or self.calls.frames <= self.settings.window:
            return function(*args, **kwargs)
        named = {**dict(zip(NAMES, args, strict=False)), **kwargs}
        q, k, v = (named[name] for name in "qkv")
        if not named.get("skip_reshape"):
            q, k, v = (tensor.unflatten(2, (named["heads"], -1)).transpose(1, 2) for tensor in (q, k, v))
        mask = named.get("mask")
        bias = torch.zeros(1, 1, 1, 1) if mask is None else mask
        bias = bias[None, None] if bias.ndim == 2 else bias[:, None] if bias.ndim == 3 else bias
        sigma = float(named["transformer_options"]["sigmas"][0])
        out = self.blended(call, q, k, v, bias.double(), self.blends(sigma)).to(q.dtype)
        return out if named.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)

    def blended(self, call: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, blends: bool) -> Tensor:
        """The result of a call, [B, heads, L, d]."""
        settings, frames = self.settings, self.calls.frames
        rows, columns, _ = self.calls.grids[int(call[1])]
        size = 1 if call[0] == "T" else rows * columns
        start = self.calls.video_start(call[0])
        video = slice(start, start + frames * size)
        bias = bias.expand(-1, -1, q.shape[2], k.shape[2])

        def within(seen: Tensor) -> Tensor:
            closed = torch.zeros(q.shape[2], k.shape[2], dtype=torch.float64)
            pairs = seen.repeat_interleave(size, 0).repeat_interleave(size, 1)
            closed[video, video] = torch.where(pairs, 0.0, -torch.inf).double()
            return attention(q, k, v, bias + closed)

        def on_grid(result: Tensor) -> Tensor:
            """[..., T, H, W]."""
            part = result[:, :, video]
            if call[0] == "T":
                part = part.unflatten(0, (-1, rows, columns))
                return part.permute(0, 3, 5, 4, 1, 2)
            return part.unflatten(2, (frames, rows, columns)).permute(0, 1, 5, 2, 3, 4)

        everything = torch.ones(frames, frames, dtype=torch.bool)
        plain = within(everything)
        whole = torch.zeros_like(everything)
        whole[:, :: settings.key_stride] = True
        blends = blends and not (call == "T0" and settings.largest_level == "local")
        scales, results = [1], [within(seen_frames(frames, settings, 1))]
        if blends and not settings.bands:
            scales, results = [1, 2], [*results, within(whole)]
        for scale in settings.bands[1:] if blends else ():
            covers = scale * settings.window >= frames
            results.append(within(whole if covers else seen_frames(frames, settings, scale)))
            scales.append(scale)
            if covers:
                break
        space = low_pass(rows, settings.spatial_cutoff)[:, None] * low_pass(columns, settings.spatial_cutoff)
        mixed = on_grid(results[0])
        for scale, narrow, wide in zip(scales[1:], results, results[1:], strict=False):
            # FreeLong's own cut-off is that of twice the native length.
            time = low_pass(frames, 2.0 * settings.temporal_cutoff / scale)[:, None, None]
            spectrum = torch.fft.fftn(on_grid(wide) - on_grid(narrow), dim=(-3, -2, -1)) * time * space
            mixed = mixed + torch.fft.ifftn(spectrum, dim=(-3, -2, -1)).real
        order = (0, 4, 5, 1, 3, 2) if call[0] == "T" else (0, 1, 3, 4, 5, 2)
        out = plain.clone()
        out[:, :, video] = mixed.permute(order).reshape(out[:, :, video].shape)
        return plain.lerp(out, settings.strength)
