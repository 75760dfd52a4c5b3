"""Sites in motion modules, on modules of the same parts as AnimateDiff-Evolved's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.attention_patches.site import AttentionSite
from mask_guided_video.attention_patches.stack import PatchStack
from mask_guided_video.backbones.families.animatediff import (
    MotionSites,
    attentions_over_time,
    check_windows,
    motion_block_names,
    motion_modules,
    note_still_film,
)
from mask_guided_video.backbones.families.unet import StableDiffusion
from mask_guided_video.backbones.family import ModelCall
from mask_guided_video.backbones.override_chain import STACKS_KEY

FRAMES, HEADS, CHANNELS = 6, 2, 8


class Attention(nn.Module):
    """Keeps its attention function where the pack does."""

    def __init__(self, function: Callable[..., Tensor], is_cross_attention: bool = False) -> None:
        super().__init__()
        self.actual_attention = function
        self.is_cross_attention = is_cross_attention


class Motion(nn.Module):
    """A motion module of two attentions."""

    def __init__(self, function: Callable[..., Tensor] = attention, video_length: int = FRAMES) -> None:
        super().__init__()
        self.temporal_transformer = nn.ModuleList([Attention(function), Attention(function), Attention(function, True)])
        self.video_length = video_length

    def forward(self, hidden: Tensor, length: int = FRAMES) -> Tensor:
        size = hidden.shape[2:]
        tokens = hidden.flatten(2).unflatten(0, (-1, FRAMES)).permute(0, 3, 1, 2).flatten(0, 1)
        for part in self.temporal_transformer:
            tokens = part.actual_attention(tokens[:, :length], tokens[:, :length], tokens[:, :length], HEADS, None)
        return tokens.unflatten(0, (-1, *size))


class EncoderOnly(Motion):
    """A subclass that attends to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.temporal_transformer = nn.Identity()

    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        return hidden


class ResBlock(nn.Module):
    """The parts by which one is known."""

    def __init__(self) -> None:
        super().__init__()
        self.in_layers = self.emb_layers = nn.Identity()


class Downsample(nn.Module):
    """A layer of this name."""


def network(*layers: Any) -> Any:
    """A U-Net of two levels with the layers in its first block."""
    return SimpleNamespace(
        input_blocks=[[nn.Identity()], [ResBlock(), *layers], [Downsample()], [ResBlock()]],
        middle_block=[ResBlock()],
        output_blocks=[[ResBlock()]],
    )


def model_call(notes: list[str], frames: int = FRAMES) -> ModelCall:
    return ModelCall(
        latents=(2 * frames, 4, 2, 3),
        text_length=0,
        extras={},
        chunks=(0, 1),
        prompts=(),
        frames=tuple(range(frames)),
        clip_frames=frames,
        leading_frames=0,
        progress=0.0,
        sigma=1.0,
        expected=lambda kind: None,
        found=lambda kind: None,
        note=notes.append,
    )


def options(*patches: Any) -> dict[str, Any]:
    return {STACKS_KEY: tuple(PatchStack([patch]) for patch in patches)}


class Noted(FreeLongPatch):
    """Notes the sites that it acts at."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        super().__init__(FreeLong(2, end_percent=0.0))
        self.name = name
        self.calls = calls

    def __call__(self, attend: Any, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        self.calls.append((self.name, site.block, site.index, site.grid))
        return attend(q, k, v, site)


@pytest.fixture
def hidden() -> Tensor:
    """Features of two chunks."""
    return torch.randn(2 * FRAMES, CHANNELS, 2, 3, generator=torch.Generator().manual_seed(0))


def test_motion_modules_are_told_by_their_parts() -> None:
    motion = Motion()
    assert attentions_over_time(motion) == tuple(motion.temporal_transformer[:2])
    assert attentions_over_time(EncoderOnly()) == attentions_over_time(ResBlock()) == ()
    assert attentions_over_time(object()) == ()
    found = motion_modules(network(motion, Motion()))
    assert [(module.name, module.level) for module in found] == [("down.0.0", 0)] * 2
    assert found[0].layer is motion
    assert motion_block_names(network()) == ["down.0.0", "down.1.0", "mid.0", "up.0.0"]


def test_stacks_are_around_the_attention_only_while_the_layer_runs(hidden: Tensor) -> None:
    calls: list[Any] = []
    motion = Motion()
    before = motion(hidden)
    # The stack that was hung last is the outermost.
    patches = (Noted("inner", calls), Noted("outer", calls))
    sites = MotionSites(StableDiffusion(), network(motion), model_call([]), options(*patches))
    [(of_class, run)] = sites.runners(())
    assert sites.found and of_class is Motion
    assert torch.equal(run(motion, hidden), before)
    assert calls == [(name, "down.0.0", index, (FRAMES, 2, 3)) for index in range(2) for name in ("outer", "inner")]
    assert {part.actual_attention for part in motion.temporal_transformer} == {attention}


def test_other_packs_run_their_layers(hidden: Tensor) -> None:
    ran: list[tuple[str, int]] = []

    def other(name: str) -> Callable[..., Tensor]:
        def run(layer: nn.Module, hidden: Tensor, *args: Any) -> Tensor:
            ran.append((name, len(args)))
            return layer(hidden)

        return run

    motion = Motion()
    sites = MotionSites(StableDiffusion(), network(motion), model_call([]), options(FreeLongPatch(FreeLong(2))))
    others = [(Downsample, other("down")), (Motion, other("motion")), (nn.Module, other("rest"))]
    runners = sites.runners(others)
    assert runners[1:] == others
    runners[0][1](motion, hidden, "embedding", "text")
    # ComfyUI asks for subclasses too.
    runners[0][1](EncoderOnly(), hidden)
    assert ran == [("motion", 2), ("motion", 0)]


def test_a_layer_that_nobody_runs_is_called() -> None:
    motion = Motion()
    sites = MotionSites(StableDiffusion(), network(motion), model_call([]), options())
    [(_, run)] = sites.runners(())
    hidden = torch.zeros(2 * FRAMES, CHANNELS, 2, 3)
    assert torch.equal(run(motion, hidden, "embedding"), motion(hidden))
    assert not MotionSites(StableDiffusion(), network(), model_call([]), options()).found


def test_an_error_leaves_the_functions_as_they_were(hidden: Tensor) -> None:
    class Broken(Noted):
        def __call__(self, *args: Any) -> Tensor:
            raise RuntimeError("broken")

    motion = Motion()
    sites = MotionSites(StableDiffusion(), network(motion), model_call([]), options(Broken("broken", [])))
    with pytest.raises(RuntimeError, match="broken"):
        sites.runners(())[0][1](motion, hidden)
    assert {part.actual_attention for part in motion.temporal_transformer} == {attention}


def test_a_function_that_the_pack_takes_meanwhile_is_kept(hidden: Tensor) -> None:
    """As when CUDA refuses the first one."""

    def fallback(*args: Any) -> Tensor:
        return attention(*args)

    class Refused(Noted):
        def __call__(self, *args: Any) -> Tensor:
            motion.temporal_transformer[0].actual_attention = fallback
            return super().__call__(*args)

    motion = Motion()
    sites = MotionSites(StableDiffusion(), network(motion), model_call([]), options(Refused("refused", [])))
    sites.runners(())[0][1](motion, hidden)
    assert [part.actual_attention for part in motion.temporal_transformer] == [fallback, attention, attention]


def test_a_part_of_the_frames_is_left_alone_and_named(hidden: Tensor) -> None:
    calls: list[Any] = []
    notes: list[str] = []
    motion = Motion()
    sites = MotionSites(StableDiffusion(), network(motion), model_call(notes), options(Noted("noted", calls)))
    run = sites.runners([(Motion, lambda layer, hidden: layer(hidden, 4))])[0][1]
    assert torch.equal(run(motion, hidden), motion(hidden, 4))
    assert not calls and len(notes) == 2 and "see 4 of 6 frames at a time" in notes[0]


def test_context_windows_of_the_host_are_refused_where_the_pack_would_mix_prompts() -> None:
    modules = motion_modules(network(Motion(video_length=8)))
    with pytest.raises(ValueError, match=r"give the model 4 frames .* for clips of 8; use AnimateDiff-Evolved's own"):
        check_windows(modules, 4, {"context_window": object()})
    check_windows(modules, 4, {})
    check_windows(modules, 8, {"context_window": object()})
    check_windows((), 4, {"context_window": object()})


@pytest.mark.parametrize(
    ("settings", "noted"), [(FreeLong(2), 1), (FreeLong(2, strength=0.0), 0), (FreeLong(FRAMES), 0)]
)
def test_free_long_without_attention_over_time_is_named(settings: FreeLong, noted: int) -> None:
    notes: list[str] = []
    note_still_film(model_call(notes), options(FreeLongPatch(settings)))
    assert len(notes) == noted and all("each of the 6 frames is made on its own" in note for note in notes)
