"""Stable Diffusion 1.5 and SDXL with the frames of a video in the batch, and Stable Video Diffusion.

Spatial self-attention and cross-attention see one frame each; Stable Video Diffusion also has temporal attention, one
cell over all frames. Every attention call of a transformer block is announced by the host's own ``attn1_patch`` and
``attn2_patch`` and its end by ``attn1_output_patch`` and ``attn2_output_patch``, so that calls in between (adapters)
are nobody's. Motion modules are ``animatediff``'s. Frames of AnimateDiff-Evolved's context windows come from
``ad_params``.

Source: Comfy-Org/ComfyUI, comfy/ldm/modules/attention.py and diffusionmodules/openaimodel.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention_patches.latent_time import PICTURES
from ...attention_patches.site import SITE_KEY, AttentionSite, CallSize, Span
from ..family import Family, ModelCall, TokenGrid, has_parts, places
from ..unet_blocks import HostBlock, unet_blocks, unet_grid
from .animatediff import LAYERS_KEY, MotionSites, motion_block_names, note_still_film


@dataclass(frozen=True)
class UNetTransformer:
    """A spatial transformer of the network.

    Attributes:
        host: ComfyUI's name of the block, ``("input", 4)``.
        name: ours, ``down.1.0``.
        level: 0 at the finest grid.
        depth: transformer blocks in it.
        has_time: whether each of them is followed by a temporal one.
    """

    host: HostBlock
    name: str
    level: int
    depth: int
    has_time: bool

    def block_name(self, index: int) -> str:
        """Name of one of its transformer blocks."""
        return self.name if self.depth == 1 else f"{self.name}.{index}"


def unet_transformers(network: Any) -> list[UNetTransformer]:
    """All spatial transformers in the order of the forward pass."""
    found: list[UNetTransformer] = []
    counts: dict[str, int] = {}
    for block in unet_blocks(network):
        for layer in block.layers:
            if not has_parts(layer, "transformer_blocks", "proj_in"):
                continue
            number = counts.setdefault(block.place, 0)
            counts[block.place] += 1
            depth = len(layer.transformer_blocks)
            has_time = hasattr(layer, "time_stack")
            found.append(UNetTransformer(block.host, f"{block.place}.{number}", block.level, depth, has_time))
    return found


def transformer_block_names(transformers: Sequence[UNetTransformer]) -> list[str]:
    """Names of all transformer blocks, in the order of the forward pass."""
    return [transformer.block_name(index) for transformer in transformers for index in range(transformer.depth)]


class StableDiffusion(Family):
    """Stable Diffusion 1.5 and SDXL, plain or under AnimateDiff."""

    name = "SD1.5 / SDXL"
    latent_time = PICTURES
    trained_frames = 16
    frame_axis = 0
    encoders: tuple[str, ...] = ("l", "g")

    def resembles(self, network: Any) -> bool:
        if not has_parts(network, "input_blocks", "middle_block", "output_blocks"):
            return False
        found = unet_transformers(network)
        return bool(found) and not any(transformer.has_time for transformer in found)

    def block_names(self, network: Any) -> list[str]:
        names = transformer_block_names(unet_transformers(network))
        return [*names, *(name for name in motion_block_names(network) if name not in names)]

    def grids(self, network: Any, latents: Sequence[int], extras: Mapping[str, Any]) -> list[TokenGrid]:
        frames, _, height, width = latents
        levels = sorted({transformer.level for transformer in unet_transformers(network)})
        return [unet_grid(level, frames, height, width) for level in levels]

    def prepare(self, network: Any, call: ModelCall, options: dict[str, Any], markers: Any) -> None:
        sites = UNetSites(self, network, call)
        options[SITE_KEY] = sites
        patches = dict(options.get("patches", {}))
        for name in ("attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch"):
            patches[name] = [*patches.get(name, []), getattr(sites, name)]
        options["patches"] = patches
        motion = MotionSites(self, network, call, options)
        patches[LAYERS_KEY] = motion.runners(patches.get(LAYERS_KEY, ()))
        if not motion.found and not sites.has_time:
            note_still_film(call, options)


class StableVideoDiffusion(StableDiffusion):
    """Stable Video Diffusion: per-frame and temporal self-attention; its cross-attention sees a picture, no words."""

    name = "Stable Video Diffusion"
    # Of the longer of its two versions (the other has 14), which cannot be told apart.
    trained_frames = 25
    encoders = ()

    def resembles(self, network: Any) -> bool:
        if not has_parts(network, "input_blocks", "middle_block", "output_blocks"):
            return False
        return any(transformer.has_time for transformer in unet_transformers(network))

    def block_names(self, network: Any) -> list[str]:
        return transformer_block_names(unet_transformers(network))


class UNetSites:
    """Finds the site of the attention call that is announced.

    Attributes:
        has_time: whether the transformers look over time.
    """

    def __init__(self, family: StableDiffusion, network: Any, call: ModelCall) -> None:
        self._family = family
        self._call = call
        transformers = unet_transformers(network)
        self.has_time = any(transformer.has_time for transformer in transformers)
        self._by_block = {transformer.host: transformer for transformer in transformers}
        self._places = {place.name: place for place in places(transformer_block_names(transformers))}
        # Lengths and site of the call that is announced, and in which block we are how often.
        self._announced: tuple[tuple[int, int], AttentionSite] | None = None
        self._block: tuple[Any, ...] = ()
        self._passes = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> UNetSites:
        return self

    def __call__(self, size: CallSize, options: Mapping[str, Any]) -> AttentionSite | None:
        """Return the announced site if the call has its lengths; once, for other packs add calls of their own."""
        if self._announced is None or self._announced[0] != (size.queries, size.keys):
            return None
        site, self._announced = self._announced[1], None
        self._call.found(site.kind)
        return site

    # Compiled along with the blocks, these would make every block a program of its own.
    @torch.compiler.disable
    def attn1_patch(self, hidden: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> Any:
        """Announce a self-attention, spatial or temporal."""
        block = (options.get("block"), options.get("block_index", 0))
        self._passes = self._passes + 1 if block == self._block else 0
        self._block = block
        self._announce("self", hidden, context, options)
        return hidden, context, value

    @torch.compiler.disable
    def attn2_patch(self, hidden: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> Any:
        """Announce a cross-attention."""
        self._announce("cross", hidden, context, options)
        return hidden, context, value

    @torch.compiler.disable
    def attn1_output_patch(self, out: Tensor, options: dict[str, Any]) -> Tensor:
        """The announced call is over."""
        if self._announced is not None:
            kind = self._announced[1].kind
            self._call.note(f"another node replaces {kind}-attention in some blocks, where guidance has no effect.")
        self._announced = None
        return out

    attn2_output_patch = attn1_output_patch

    def _announce(self, kind: str, hidden: Tensor, context: Tensor, options: dict[str, Any]) -> None:
        self._announced = None
        transformer = self._by_block.get(tuple(options.get("block") or ()))
        shape = options.get("activations_shape")
        if transformer is None or shape is None:
            return
        call = self._call
        frames = shape[0] // len(call.chunks)
        height, width = call.latents[-2:]
        grid = unet_grid(transformer.level, frames, height, width)
        # The second of two passes through a block with time is the temporal one.
        in_time = transformer.has_time and self._passes % 2 == 1
        rows = len(call.chunks) * (grid.rows * grid.columns if in_time else frames)
        tokens = frames if in_time else grid.rows * grid.columns
        if kind == "cross" and (in_time or not self._family.encoders):
            return
        place = self._places[transformer.block_name(options.get("block_index", 0))]
        if hidden.shape[:2] != (rows, tokens):
            call.note(f"another node tiles or merges tokens of {kind}-attention, where guidance then has no effect.")
            return
        site = self._family.site(
            call,
            grid,
            "temporal" if in_time else "cross" if kind == "cross" else "self",
            place,
            video=Span(0, tokens),
            text=Span(0, context.shape[1]) if kind == "cross" else None,
            folded="positions" if in_time else "frames",
        )
        self._announced = ((tokens, context.shape[1]), site)
