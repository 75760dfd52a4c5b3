"""Attention over time in the motion modules that AnimateDiff-Evolved puts into Stable Diffusion.

A motion module is a layer of its own in a block of the U-Net. Its attention calls ComfyUI's function without the
options of the model call, so that no override hears of it. ComfyUI runs such a layer through
``forward_timestep_embed_patch``: there, and for as long as the layer runs, each of its attentions is given a function
that puts our stacks around the pack's own. Overrides of other packs stay out of motion modules, as they do without us.

The pack adds its positions to the tokens before it makes q, k and v of them, and counts them anew in every call: the
first frame of a context window is the first to a motion module.

Source: Kosinkadink/ComfyUI-AnimateDiff-Evolved, animatediff/motion_module_ad.py, utils_motion.py, model_injection.py;
Comfy-Org/ComfyUI, comfy/ldm/modules/diffusionmodules/openaimodel.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...attention_patches.free_long import FreeLongPatch
from ...attention_patches.site import SITE_KEY, AttentionSite, CallSize, Span
from ...attention_patches.stack import Override, PatchStack
from ..family import BlockPlace, Family, ModelCall, has_parts
from ..override_chain import STACKS_KEY
from ..unet_blocks import unet_blocks, unet_grid

# ComfyUI's list of (class, function) in ``patches``: the function runs layers of the class.
LAYERS_KEY = "forward_timestep_embed_patch"
# Where ComfyUI says which context window a call of the model is.
WINDOW_KEY = "context_window"
# What a motion module's attention holds its attention function under.
FUNCTION_NAME = "actual_attention"

LayerRunner: TypeAlias = Callable[..., Tensor]
LayerRunners: TypeAlias = Sequence[tuple[type, LayerRunner]]


@dataclass(frozen=True, eq=False)
class MotionModule:
    """A motion module in the network.

    Attributes:
        layer: of the block.
        attentions: its attentions over time, in the order in which they are called.
        name: of the block, as its spatial transformer has it where there is one: ``down.1.0``.
        level: 0 at the finest grid.
    """

    layer: Any
    attentions: tuple[Any, ...]
    name: str
    level: int


def motion_modules(network: Any) -> list[MotionModule]:
    """All motion modules that are in a network at present, in the order of the forward pass."""
    found: list[MotionModule] = []
    counts: dict[str, int] = {}
    for block in unet_blocks(network):
        layers = [(layer, attentions_over_time(layer)) for layer in block.layers]
        layers = [(layer, attentions) for layer, attentions in layers if attentions]
        if not layers:
            continue
        # Several motion models may share a block.
        number = counts.setdefault(block.place, 0)
        counts[block.place] += 1
        name = f"{block.place}.{number}"
        found += [MotionModule(layer, attentions, name, block.level) for layer, attentions in layers]
    return found


def motion_block_names(network: Any) -> list[str]:
    """Names of the blocks that motion modules may be put into, in the order of the forward pass."""
    counts: dict[str, int] = {}
    names = []
    for block in unet_blocks(network):
        if any(has_parts(layer, "in_layers", "emb_layers") for layer in block.layers):
            names.append(f"{block.place}.{counts.setdefault(block.place, 0)}")
            counts[block.place] += 1
    return names


def attentions_over_time(layer: Any) -> tuple[Any, ...]:
    """Attentions of a layer that look over time; none of layers that are not motion modules."""
    if not has_parts(layer, "temporal_transformer"):
        return ()
    return tuple(
        part
        for part in layer.modules()
        if callable(vars(part).get(FUNCTION_NAME)) and not getattr(part, "is_cross_attention", False)
    )


def note_still_film(call: ModelCall, options: Mapping[str, Any]) -> None:
    """Say so when FreeLong is to act in a model without attention over time: its frames are pictures on their own."""
    frames = call.latents[0] // len(call.chunks)
    long = [
        patch.settings
        for stack in options.get(STACKS_KEY, ())
        for patch in stack.patches
        if isinstance(patch, FreeLongPatch)
    ]
    if any(settings.strength > 0.0 and settings.window < frames for settings in long):
        call.note(
            f"each of the {call.clip_frames} frames is made on its own, since this model has no motion module, "
            "so FreeLong has no effect; apply a motion model of AnimateDiff-Evolved, or take FreeLong out."
        )


def check_windows(modules: Sequence[MotionModule], frames: int, options: Mapping[str, Any]) -> None:
    """Compare ComfyUI's context windows with what motion modules take for the length of a clip.

    They cut the batch into clips of the length that the pack's own context options have set, so that in a window of
    another length they would take frames of the negative prompt for frames of the positive one.

    Args:
        modules: of the network.
        frames: of the video in this call.
        options: ``transformer_options``.

    Raises:
        ValueError: ComfyUI's windows are of another length.
    """
    lengths = {getattr(module.layer, "video_length", frames) for module in modules}
    if options.get(WINDOW_KEY) is not None and lengths - {frames}:
        raise ValueError(
            f"ComfyUI's context windows give the model {frames} frames at a time, but the motion modules take the "
            f"batch for clips of {max(lengths)}; use AnimateDiff-Evolved's own context options instead."
        )


class MotionSites:
    """Runs the motion modules of one model call with patches.

    Args:
        family: of the model.
        network: the U-Net, with motion modules or without.
        call: of it.
        options: ``transformer_options``, with the stacks of the patched model in the order of their
            installation: the last is the outermost.

    Raises:
        ValueError: see ``check_windows``.
    """

    def __init__(self, family: Family, network: Any, call: ModelCall, options: Mapping[str, Any]) -> None:
        self._call = call
        stacks: Sequence[PatchStack] = options.get(STACKS_KEY, ())
        self._patches = [patch for stack in stacks for patch in stack.patches]
        self._override: Override | None = None
        for stack in stacks:
            self._override = stack.chain(self._override).override
        self._modules = motion_modules(network)
        self._sites: dict[int, list[tuple[Any, AttentionSite]]] = {}
        total, index = sum(len(module.attentions) for module in self._modules), 0
        frames = call.latents[0] // len(call.chunks)
        check_windows(self._modules, frames, options)
        for module in self._modules:
            grid = unet_grid(module.level, frames, *call.latents[-2:])
            sites = self._sites[id(module.layer)] = []
            for attention in module.attentions:
                place = BlockPlace(module.name, index, total)
                site = family.site(call, grid, "temporal", place, video=Span(0, frames), folded="positions")
                sites.append((attention, site))
                index += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> MotionSites:
        return self

    @property
    def found(self) -> bool:
        """Whether there are any motion modules."""
        return bool(self._modules)

    def runners(self, others: LayerRunners) -> list[tuple[type, LayerRunner]]:
        """``others`` with ours before them: ComfyUI takes the first that fits a layer."""
        classes = dict.fromkeys(type(module.layer) for module in self._modules)
        return [*((of_class, partial(self._run_layer, others)) for of_class in classes), *others]

    # Sites are Python objects that differ from step to step, so motion modules are not compiled along with the rest.
    @torch.compiler.disable
    def _run_layer(self, others: LayerRunners, layer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run a layer as ``others`` do, with our stacks around its attentions where a patch acts."""
        with ExitStack() as exchanged:
            for attention, site in self._sites.get(id(layer), ()):
                if self._acts_at(site):
                    exchanged.enter_context(_exchanged(attention, self._patched(attention, site)))
            return _run(layer, others, *args, **kwargs)

    def _acts_at(self, site: AttentionSite) -> bool:
        """Say whether any patch changes a call; where none does, nothing is exchanged."""
        return any(patch.acts_at(site) for patch in self._patches)

    def _patched(self, attention: Any, site: AttentionSite) -> Callable[..., Tensor]:
        """Make the function for one attention: our stacks around the one that it has."""
        call, override, function = self._call, self._override, vars(attention)[FUNCTION_NAME]
        if override is None:
            return function
        frames = site.grid[0]

        def find(size: CallSize, options: Mapping[str, Any]) -> AttentionSite | None:
            if (size.queries, size.keys) != (frames, frames):
                call.note(
                    f"motion modules see {size.queries} of {frames} frames at a time (view options of "
                    "AnimateDiff-Evolved), so FreeLong and guidance have no effect in them; take the view options out."
                )
                return None
            call.found(site.kind)
            return site

        def patched(*args: Any, **kwargs: Any) -> Tensor:
            return override(function, *args, **{**kwargs, "transformer_options": {SITE_KEY: find}})

        return patched


@contextmanager
def _exchanged(attention: Any, function: Callable[..., Tensor]) -> Iterator[None]:
    """Give an attention another function for a while."""
    own = vars(attention)[FUNCTION_NAME]
    setattr(attention, FUNCTION_NAME, function)
    try:
        yield
    finally:
        # The pack takes another function itself when CUDA refuses the one it has.
        if vars(attention)[FUNCTION_NAME] is function:
            setattr(attention, FUNCTION_NAME, own)


def _run(layer: Any, others: LayerRunners, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a layer as ComfyUI does without us."""
    for of_class, runner in others:
        if isinstance(layer, of_class):
            return runner(layer, hidden, *args, **kwargs)
    return layer(hidden)
