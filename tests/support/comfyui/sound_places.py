"""Where a film, its sound and its text are seen in the attention calls of a tiny LTX-2, each changed by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from native_models import TinyModel, sample
from token_places import OVERRIDE, Place, Recorder, tokens_that_changed, without_neighbours
from torch import Tensor

from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.registry import install_patches

# What is heard of a call: its site if the pack knows one, queries and keys [B, L, C].
Heard = tuple[AttentionSite | None, Tensor, Tensor]


@dataclass(frozen=True)
class Streams:
    """The call of a model, to be changed.

    Attributes:
        latents: the flat pack.
        text: as the blocks read it, [B, L, C].
        shapes: sizes of film and sound in the pack.
    """

    latents: Tensor
    text: Tensor
    shapes: list[list[int]]

    def with_film(self, frame: int, row: int, column: int) -> Streams:
        """The same with one cell of the film changed."""
        pack, film, _ = self._open()
        film[:, :, frame, row, column] += _direction(film.shape[1])
        return Streams(pack, self.text, self.shapes)

    def with_sound(self, step: int) -> Streams:
        """The same with one step of the sound changed."""
        pack, _, sound = self._open()
        sound[:, :, step] += _direction(sound.shape[1] * sound.shape[3]).view(sound.shape[1], sound.shape[3])
        return Streams(pack, self.text, self.shapes)

    def with_text(self, row: int) -> Streams:
        """The same with one row of the text changed."""
        text = self.text.clone()
        text[:, row] += 3.0
        return Streams(self.latents, text, self.shapes)

    def _open(self) -> tuple[Tensor, Tensor, Tensor]:
        pack = self.latents.clone()
        film, sound = (list(shape[1:]) for shape in self.shapes)
        border = math.prod(film)
        return pack, pack[0, 0, :border].view(1, *film), pack[0, 0, border:].view(1, *sound)


def _direction(channels: int) -> Tensor:
    return 0.1 * torch.randn(channels, generator=torch.Generator().manual_seed(0))


def seen_changes(
    model: TinyModel, changes: dict[str, Callable[[Streams], Streams]], options: dict[str, Any] | None = None
) -> list[tuple[AttentionSite | None, tuple[int, int], dict[str, tuple[Place, Place]]]]:
    """For each attention call its site, its lengths, and where every change is seen among queries and keys.

    Args:
        model: the tiny model, with sound.
        changes: by name.
        options: further ``transformer_options`` of the run.
    """
    recorder, found = Recorder(), []
    patcher = model.patcher.clone()
    patcher.model_options["transformer_options"] |= {OVERRIDE: recorder.override, **(options or {})}
    patched = install_patches(patcher, [recorder])

    def measure(apply_model: Any, args: dict[str, Any]) -> Tensor:
        def hear(streams: Streams) -> list[Heard]:
            recorder.heard = []
            result.append(apply_model(streams.latents, args["timestep"], **{**args["c"], "c_crossattn": streams.text}))
            return recorder.heard

        result: list[Tensor] = []
        given = Streams(args["input"], args["c"]["c_crossattn"], args["c"]["latent_shapes"])
        plain = hear(given)
        others = {name: hear(change(given)) for name, change in changes.items()}
        for index, (site, q, k) in enumerate(plain):
            queries = tokens_that_changed(q, [(name, heard[index][1]) for name, heard in others.items()])
            keys = tokens_that_changed(k, [(name, heard[index][2]) for name, heard in others.items()])
            lengths = (q.shape[1], k.shape[1])
            found.append((site, lengths, {name: (queries[name], keys[name]) for name in changes}))
        return result[0]

    patched.set_model_unet_function_wrapper(measure)
    with without_neighbours(model.patcher.model.diffusion_model):
        sample(model, patched, steps=1, cfg=1.0)
    return found
