"""Guidance in CogVideoX, by comparison with explicit biases at every attention call.

ComfyUI 0.3.64 has no CogVideoX; later ones do. Where the host has none, a network with the same parts, in the same order
and with the same attention calls stands for it.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from dense_reference import Calls, DenseGuide, DenseReference
from native_guides import GUIDES, POSITIONS, first_predictions, patched, relative
from native_models import TEXT, TinyModel, randomise, sample
from torch import Tensor, nn

from mask_guided_video.attention_patches import guidance_plan
from mask_guided_video.attention_patches.mask_guidance import MaskGuidance, mask_guidance_patch
from mask_guided_video.attention_patches.text_spans import TextSpans
from mask_guided_video.backbones.cogvideox import CogVideoX
from mask_guided_video.backbones.registry import install_patches, require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

HEADS, HEAD, TEXT_CHANNELS = 2, 16, 32
DIM = HEADS * HEAD
# Of the output's range, in single precision; and what guidance changes at least.
EXACT, CLEAR = 1e-4, 5e-3
FRAMES = 3
CALLS = Calls("J0 J0", FRAMES, ((4, 6, 2),), 4)
SPANS = TextSpans(("red ball", "cube"), POSITIONS, TEXT)


# --- the network ------------------------------------------------------------------------------------------------------


class Modulated(nn.Module):
    """Norm, shift, scale and gate of film and text by the time."""

    def __init__(self, operations: Any) -> None:
        super().__init__()
        self.linear, self.norm = operations.Linear(DIM, 6 * DIM), operations.LayerNorm(DIM)

    def forward(self, film: Tensor, text: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(time)[:, None].chunk(6, dim=2)
        moved = self.norm(film) * (1 + scale) + shift, self.norm(text) * (1 + text_scale) + text_shift
        return *moved, gate, text_gate


class Block(nn.Module):
    """One joint attention, the text first."""

    def __init__(self, operations: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = Modulated(operations), Modulated(operations)
        self.q, self.k, self.v, self.attn_out = (operations.Linear(DIM, DIM) for _ in range(4))
        self.norm_q, self.norm_k = operations.LayerNorm(HEAD), operations.LayerNorm(HEAD)
        self.ff_proj, self.ff_out = operations.Linear(DIM, 2 * DIM), operations.Linear(2 * DIM, DIM)

    def forward(self, film: Tensor, text: Tensor, time: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        from comfy.ldm.modules.attention import optimized_attention

        split = text.shape[1]
        new_film, new_text, gate, text_gate = self.norm1(film, text, time)
        joint = torch.cat((new_text, new_film), dim=1)
        q, k = self.q(joint).unflatten(2, (HEADS, HEAD)), self.k(joint).unflatten(2, (HEADS, HEAD))
        q, k = self.norm_q(q).flatten(2), self.norm_k(k).flatten(2)
        out = self.attn_out(optimized_attention(q, k, self.v(joint), heads=HEADS, transformer_options=options))
        film, text = film + gate * out[:, split:], text + text_gate * out[:, :split]
        new_film, new_text, gate, text_gate = self.norm2(film, text, time)
        out = self.ff_out(nn.functional.gelu(self.ff_proj(torch.cat((new_text, new_film), dim=1))))
        return film + gate * out[:, split:], text + text_gate * out[:, :split]


class StandIn(nn.Module):
    """The parts, the order of tokens and the attention calls of ComfyUI's CogVideoX 1.0."""

    def __init__(
        self, in_channels: int, dtype: Any = None, device: Any = None, operations: Any = None, **_: Any
    ) -> None:
        super().__init__()
        self.dtype, self.in_channels, self.patch_size, self.patch_size_t = dtype, in_channels, 2, None
        self.patch_embed = nn.Module()
        self.patch_embed.proj = operations.Conv2d(in_channels, DIM, kernel_size=2, stride=2)
        self.patch_embed.text_proj = operations.Linear(TEXT_CHANNELS, DIM)
        self.time_embedding_linear_1 = operations.Linear(1, DIM)
        self.blocks = nn.ModuleList(Block(operations) for _ in range(2))
        self.norm_final, self.norm_out = operations.LayerNorm(DIM), operations.LayerNorm(DIM)
        self.proj_out = operations.Linear(DIM, 4 * 16)

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: Any = None, **_: Any
    ) -> Tensor:
        from comfy.ldm.common_dit import pad_to_patch_size

        height, width = x.shape[-2:]
        x = pad_to_patch_size(x, (1, 2, 2))
        batch, _, frames = x.shape[:3]
        cells = self.patch_embed.proj(x.transpose(1, 2).flatten(0, 1))
        film = cells.unflatten(0, (batch, frames)).flatten(3).transpose(2, 3).flatten(1, 2)
        text, time = self.patch_embed.text_proj(context), self.time_embedding_linear_1(timestep[:, None] / 1000.0)
        for block in self.blocks:
            film, text = block(film, text, time, transformer_options or {})
        out = self.proj_out(self.norm_out(self.norm_final(film)))
        out = out.view(batch, frames, *cells.shape[-2:], 16, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
        return out.flatten(5, 6).flatten(3, 4)[..., :height, :width]


def network_class() -> Any:
    try:
        return importlib.import_module("comfy.ldm.cogvideo.model").CogVideoXTransformer3DModel
    except ImportError:
        return StandIn


def cogvideox(size: tuple[int, int] = (8, 12), **settings: Any) -> TinyModel:
    """A tiny CogVideoX 1.0 in ComfyUI's model and patcher."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    class Config(comfy.supported_models_base.BASE):
        unet_config: dict[str, Any] = {}
        unet_extra_config: dict[str, Any] = {}
        latent_format = comfy.latent_formats.HunyuanVideo

    sizes = {"num_attention_heads": HEADS, "attention_head_dim": HEAD, "time_embed_dim": DIM, "num_layers": 2}
    sizes |= {"text_embed_dim": TEXT_CHANNELS, "in_channels": 16, "use_rotary_positional_embeddings": True, **settings}
    config = Config(sizes)
    config.set_inference_dtype(torch.float32, None)
    with torch.no_grad():
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.V_PREDICTION, unet_model=network_class())
        randomise(model.diffusion_model)
    model.eval()
    device = torch.device("cpu")
    return TinyModel(
        "cogvideox", lambda: comfy.model_patcher.ModelPatcher(model, device, device), (1, 16, FRAMES, *size), 32
    )


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return cogvideox()


# --- the proof --------------------------------------------------------------------------------------------------------


class TextFirst(DenseGuide):
    """Explicit biases for a sequence in which the text stands before the film."""

    def bias(self, call: str, chunk: int, prompt: Tensor | None) -> Tensor | None:
        bias = super().bias(call, chunk, prompt)
        return None if bias is None else bias.roll((self.calls.text, self.calls.text), dims=(1, 2))


class Reference(DenseReference):
    def __init__(self, model: TinyModel, guide: DenseGuide) -> None:
        self.order, self.guides = CALLS.each, [guide]
        self.active, self.on, self.model_calls = (lambda sigma: True), True, 0


def guide_of(mode: str, size: tuple[int, int] = (8, 12), **changes: Any) -> MaskGuidance:
    masks = torch.zeros(2, 9, 8 * size[0], 8 * size[1])
    for frame in range(9):
        masks[0, frame, 16:48, 4 * frame : 4 * frame + 30] = 1.0
        if frame:
            masks[1, frame, 30:, 50 - frame :] = 0.8
    masks = torch.nn.functional.avg_pool2d(masks, 5, stride=1, padding=2)
    return MaskGuidance(masks, **{"end_percent": 1.0, **GUIDES[mode], **changes})


def reference(model: TinyModel, guide: MaskGuidance, spans: TextSpans | None = SPANS) -> Reference:
    return Reference(model, TextFirst(guide, CALLS, model.latents[-2:], spans))


@pytest.mark.parametrize("size", [(8, 12), (7, 11)])
@pytest.mark.parametrize("mode", sorted(GUIDES))
@pytest.mark.parametrize("kernel", ["as it comes", "channels", "partition"])
def test_guided_film_equals_explicit_biases(
    size: tuple[int, int], mode: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "as it comes":
        monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
        monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1 if kernel == "partition" else 10**9)
    model, guide = cogvideox(size), guide_of(mode, size)
    spans = None if mode == "separate among film" else SPANS
    dense = reference(model, guide, spans)
    expected = sample(model, dense.hang(model.patcher))
    guided = sample(model, patched(model, guide, spans))
    assert dense.model_calls == 2
    assert relative(guided, expected) < EXACT
    assert relative(guided, sample(model)) > CLEAR


def test_strength_zero_is_bit_identical(model: TinyModel) -> None:
    guide = guide_of("separate", strength=0.0)
    assert torch.equal(sample(model, patched(model, guide, SPANS)), sample(model))


def test_unconditional_rows_are_left_alone_to_the_bit(model: TinyModel) -> None:
    guide = guide_of("separate", rows="conditional")
    before = first_predictions(model, model.patcher)
    after = first_predictions(model, patched(model, guide, SPANS))
    expected = first_predictions(model, reference(model, guide).hang(model.patcher))
    assert torch.equal(after["negative"], before["negative"])
    assert relative(after["positive"], expected["positive"]) < EXACT
    assert relative(after["positive"], before["positive"]) > CLEAR


def test_pictures_in_further_channels_are_no_part_of_the_film() -> None:
    """Image to video joins the picture's latents to the film's channels."""
    model = cogvideox(in_channels=32)

    def joined(patcher: Any) -> Any:
        patcher = patcher.clone()
        zeros = torch.zeros(2, 16, FRAMES, 8, 12)
        patcher.add_wrapper_with_key(
            "apply_model",
            "picture",
            lambda executor, x, t, c_concat=None, *args, **kwargs: executor(x, t, zeros, *args, **kwargs),
        )
        return patcher

    guide = guide_of("separate")
    expected = sample(model, reference(model, guide).hang(joined(model.patcher)))
    guided = sample(model, patched(model, guide, SPANS, joined(model.patcher)))
    assert relative(guided, expected) < EXACT
    assert relative(guided, sample(model, joined(model.patcher))) > CLEAR


def test_the_family_is_known_by_its_parts(model: TinyModel) -> None:
    family, network = require_supported(model.patcher)
    assert isinstance(family, CogVideoX) and family.block_names(network) == ["block.0", "block.1"]
    (grid,) = family.grids(network, (1, 16, FRAMES, 7, 11), {})
    assert (grid.frames, grid.rows, grid.columns, grid.filled) == (FRAMES, 4, 6, (3.5, 5.5))


def test_tokens_of_two_latent_frames_are_refused() -> None:
    """CogVideoX 1.5."""
    model = cogvideox()
    model.patcher.model.diffusion_model.patch_size_t = 2
    with pytest.raises(ValueError, match="model not supported: .*CogVideoX 1.0"):
        install_patches(model.patcher, [mask_guidance_patch(guide_of("separate"))])
