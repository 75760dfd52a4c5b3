"""Where tokens truly stand: change one latent cell or one row of the text, and see which tokens of q and k change.

Nothing here knows how a model lays out its tokens. While it is measured, all attention is silenced and convolutions
over neighbours keep their middle only, so that no token can hear of another one: a change then stays in its own token
through all blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from native_models import TinyModel, sample
from torch import Tensor

from mask_guided_video.attention_patches.patch import Attend
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.backbones.nested_latents import video_in, with_video_in
from mask_guided_video.backbones.registry import install_patches

OVERRIDE = "optimized_attention_override"
# Kandinsky 5's given picture.
LAID_OVER = "time_dim_replace"
# (latent frame, row, column) of a latent cell.
Cell: TypeAlias = tuple[int, int, int]
# (row of the batch, token); None where a call does not have it.
Place: TypeAlias = tuple[int, int] | None
# What is less is rounding.
SEEN = 1e-5
# Of the greatest change that anything makes in a call; what is below stems from means over all tokens.
CLEAR = 0.05
# Rows of a text that are changed one by one, and the last two.
MANY_ROWS = 40


@dataclass
class SeenCall:
    """One attention call of a model.

    Attributes:
        site: where the pack says that it stands, None where it says nothing.
        lengths: tokens of queries and keys.
        queries, keys: for each latent cell that was changed its token.
        words: for each row of the text its token among the keys.
        sounds: for each cell of the sound its token among the queries and among the keys, in this order.
    """

    site: AttentionSite | None
    lengths: tuple[int, int]
    queries: dict[Cell, Place] = field(default_factory=dict)
    keys: dict[Cell, Place] = field(default_factory=dict)
    words: dict[int, Place] = field(default_factory=dict)
    sounds: dict[tuple[int, ...], tuple[Place, Place]] = field(default_factory=dict)


@dataclass
class Recorder:
    """Hears all attention calls of a model and answers nothing."""

    heard: list[tuple[AttentionSite | None, Tensor, Tensor]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return self

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        """As a patch of the pack: note the call and its site; the result is nothing at all."""
        self._note(site, q, k)
        return q.new_zeros(*q.shape[:3], v.shape[3])

    def override(self, function: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As the attention itself, for calls of which the pack says nothing."""
        named = {**dict(zip(("q", "k", "v", "heads"), args, strict=False)), **kwargs}
        q, k, v, heads = (named[name] for name in ("q", "k", "v", "heads"))
        if not named.get("skip_reshape"):
            q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
        self._note(None, q, k)
        shape = (q.shape[0], q.shape[2], heads * v.shape[3])
        if named.get("skip_output_reshape"):
            shape = (q.shape[0], heads, q.shape[2], v.shape[3])
        return q.new_zeros(shape)

    def _note(self, site: AttentionSite | None, q: Tensor, k: Tensor) -> None:
        self.heard.append((site, *(tensor.transpose(1, 2).flatten(2).clone() for tensor in (q, k))))


def see(model: TinyModel, **settings: Any) -> list[SeenCall]:
    """All attention calls of a model in order, and where the film's cells and the rows of the text stand in them.

    Args:
        model: the tiny model.
        **settings: of ``sample``.
    """
    recorder, found = Recorder(), []
    patcher = model.patcher.clone()
    patcher.model_options["transformer_options"][OVERRIDE] = recorder.override
    patched = install_patches(patcher, [recorder])

    def measure(apply_model: Any, args: dict[str, Any]) -> Tensor:
        def hear(latents: Tensor, text: Tensor | None) -> list[tuple[AttentionSite | None, Tensor, Tensor]]:
            recorder.heard = []
            changed = dict(args["c"]) if text is None else {**args["c"], "c_crossattn": text}
            laid = changed.get(LAID_OVER)
            if laid is not None:
                # The network lays it over the latents' first frames, and a change there with it.
                changed[LAID_OVER] = laid + (latents - args["input"])[:, :, : laid.shape[2]]
            apply_model(latents, args["timestep"], **changed)
            return recorder.heard

        latents, text, shapes = args["input"], args["c"].get("c_crossattn"), args["c"].get("latent_shapes")
        result = apply_model(latents, args["timestep"], **args["c"])
        plain = hear(latents, text)
        found.extend(SeenCall(site, (q.shape[1], k.shape[1])) for site, q, k in plain)
        films = changed_cells(model, video_in(latents, shapes))
        cells = [(cell, hear(with_video_in(latents, other, shapes), text)) for cell, other in films]
        sounds = [(cell, hear(other, text)) for cell, other in changed_sounds(latents, shapes)]
        rows = [] if text is None else [(row, hear(latents, other)) for row, other in changed_rows(text)]
        for index, call in enumerate(found):
            for side, places in ((1, call.queries), (2, call.keys)):
                places.update(
                    tokens_that_changed(plain[index][side], [(cell, heard[index][side]) for cell, heard in cells])
                )
            of_sound = [
                tokens_that_changed(plain[index][side], [(cell, heard[index][side]) for cell, heard in sounds])
                for side in (1, 2)
            ]
            call.sounds.update({cell: (place, of_sound[1][cell]) for cell, place in of_sound[0].items()})
            call.words.update(tokens_that_changed(plain[index][2], [(row, heard[index][2]) for row, heard in rows]))
        return result

    patched.set_model_unet_function_wrapper(measure)
    with without_neighbours(model.patcher.model.diffusion_model):
        sample(model, patched, steps=1, cfg=1.0, **settings)
    return found


@contextmanager
def without_neighbours(network: Any) -> Iterator[None]:
    """Close all weights of 3-wide convolutions but the middle ones, for a while."""
    kernels = [
        parameter
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.ndim > 3 and set(parameter.shape[2:]) <= {1, 3} and 3 in parameter.shape[2:]
    ]
    whole = [kernel.clone() for kernel in kernels]
    for kernel in kernels:
        middle = tuple(size // 2 for size in kernel.shape[2:])
        kept = kernel[(slice(None), slice(None), *middle)].clone()
        kernel.zero_()
        kernel[(slice(None), slice(None), *middle)] = kept
    try:
        yield
    finally:
        for kernel, values in zip(kernels, whole, strict=True):
            kernel.copy_(values)


def changed_cells(model: TinyModel, latents: Tensor) -> Iterator[tuple[Cell, Tensor]]:
    """The latents [B, C, T, h, w] or [T, C, h, w] with one cell changed, for cells of every frame."""
    frames, height, width = latents.shape[model.window_axis], *latents.shape[-2:]
    # Models that fill up odd sizes repeat the first cells at the end; those that halve them keep every second cell.
    first, step = (0, 4) if model.window_axis == 0 else (1, 2)
    if model.window_axis == 2 and height * width < 40:
        first, step = 0, 1
    # Not the same for all channels, and little: norms would take the one away and spread the other. What norms over a
    # picture of a few tokens make of it depends on the direction, so U-Nets are asked in several.
    directions = 0.1 * torch.randn(
        1 if model.window_axis == 2 else 4, latents.shape[1], generator=torch.Generator().manual_seed(0)
    )
    for frame in range(frames):
        for row in range(first, height, step):
            for column in range(first, width, step):
                for direction in directions:
                    other = latents.clone()
                    other.select(model.window_axis, frame)[..., row, column] += direction
                    yield (frame, row, column), other


def changed_sounds(latents: Tensor, shapes: Sequence[Sequence[int]] | None) -> Iterator[tuple[Any, Tensor]]:
    """Packed latents with one cell of the sound [B, C, ...] changed, by its place without B and C; none without sound.

    Args:
        latents: of a call of the model.
        shapes: of what is in them, as the host says it.
    """
    if shapes is None or len(shapes) < 2:
        return
    from comfy.utils import pack_latents, unpack_latents

    direction = 0.1 * torch.randn(shapes[1][1], generator=torch.Generator().manual_seed(0))
    for place in itertools.product(*map(range, shapes[1][2:])):
        film, sound = (part.clone() for part in unpack_latents(latents, list(shapes)))
        sound[(slice(None), slice(None), *place)] += direction
        yield place, pack_latents([film, sound])[0]


def changed_rows(text: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The text [B, L, C] with one row changed; of a long one the first and the last rows."""
    length = text.shape[1]
    for row in (*range(min(length, MANY_ROWS)), *range(max(length - 2, MANY_ROWS), length)):
        other = text.clone()
        other[:, row] += 3.0
        yield row, other


def tokens_that_changed(plain: Tensor, others: Sequence[tuple[Any, Tensor]]) -> dict[Any, Place]:
    """For each name of a change the token of [B, L, C] in which it is seen most, or None where it is not seen."""
    changes: dict[Any, Tensor] = {}
    for name, other in others:
        change = (other - plain).abs().amax(dim=2) if plain.numel() else plain.sum(dim=2)
        changes[name] = changes.get(name, 0.0) + change
    greatest = max((float(change.max()) for change in changes.values() if change.numel()), default=0.0)
    found: dict[Any, Place] = {}
    for name, change in changes.items():
        most = int(change.argmax()) if greatest > SEEN else 0
        clear = greatest > SEEN and float(change.flatten()[most]) > CLEAR * greatest
        found[name] = divmod(most, plain.shape[1]) if clear else None
    return found
