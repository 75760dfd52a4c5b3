"""Tiny models whose first frame is locked, and what their networks are given in each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from native_models import TinyModel, tiny
from torch import Tensor

from mask_guided_video.host.models.loading import load_native_toybox


def models_by_name(tiny_folder: Path) -> Callable[[str], TinyModel]:
    """Tiny models by name; ``toybox`` is one of the LaVie family."""
    toybox = TinyModel("toybox", lambda: load_native_toybox(tiny_folder)[0], (1, 4, 5, 8, 6), 32)
    return lambda name: toybox if name == "toybox" else tiny(name)


def frame_of(model: TinyModel, films: int = 1, seed: int = 70) -> Tensor:
    """A first frame as a LATENT of the model holds it."""
    size = (films, model.latents[1], 1, *model.latents[-2:])
    frame = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 1.7 + 0.3
    return frame if len(model.latents) == 5 else frame[:, :, 0]


def seen_form(model: TinyModel, frame: Tensor) -> Tensor:
    """A raw first frame as the network sees it, [B, C, 1, h, w]."""
    return model.patcher.model.process_latent_in(frame if frame.ndim == 5 else frame[:, :, None])


@dataclass
class Calls:
    """What a network was given.

    Attributes:
        inputs: of each call, [chunks, B, C, T, h, w].
        windows: frames of each call.
        chunks: cond or uncond of each call.
    """

    inputs: list[Tensor] = field(default_factory=list)
    windows: list[tuple[int, ...]] = field(default_factory=list)
    chunks: list[list[int]] = field(default_factory=list)

    def first_frames(self) -> list[Tensor]:
        """[chunks * B, C, h, w] of each call that holds the beginning of the clip."""
        pairs = zip(self.inputs, self.windows, strict=True)
        return [given.flatten(0, 1)[:, :, frames.index(0)] for given, frames in pairs if 0 in frames]


@contextmanager
def recorded(model: TinyModel) -> Iterator[Calls]:
    calls = Calls()

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = kwargs["transformer_options"]
        chunks = len(options["cond_or_uncond"])
        given = args[0][:, : model.latents[1]].clone()
        if given.ndim == 4:
            given = given.unflatten(0, (chunks, 1, -1)).transpose(2, 3)
        else:
            given = given.unflatten(0, (chunks, -1))
        calls.inputs.append(given)
        calls.chunks.append(list(options["cond_or_uncond"]))
        window = options.get("context_window")
        calls.windows.append(tuple(range(given.shape[3])) if window is None else tuple(window.index_list))

    handle = model.patcher.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def prove_clean(model: TinyModel, calls: Calls, frame: Tensor) -> None:
    """Every call was given the clean frame to the bit, in all its rows."""
    wanted = seen_form(model, frame)[:, :, 0]
    found = calls.first_frames()
    assert found
    for given in found:
        assert torch.equal(given, wanted.repeat(len(given) // len(wanted), 1, 1, 1))
    assert {chunk for call in calls.chunks for chunk in call} == ({0} if model.cfg == 1.0 else {0, 1})


def first_of(model: TinyModel, film: Tensor) -> Tensor:
    """First frame of raw latents, [B, C, 1, h, w] or [1, C, h, w] as in ``frame_of``."""
    return film[:, :, :1] if film.ndim == 5 else film[:1]


def host_sample(model: TinyModel, patcher: Any, latents: Tensor, denoise: float = 1.0, **options: Any) -> Tensor:
    """As KSampler on given latents."""
    import comfy.sample

    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    prompts = model.conditioning(1), model.conditioning(2)
    arguments = (patcher, noise, 4, model.cfg, "euler", "simple", *prompts, latents)
    return comfy.sample.sample(*arguments, denoise=denoise, disable_pbar=True, seed=3, **options)
