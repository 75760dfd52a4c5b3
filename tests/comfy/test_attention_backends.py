"""Mask guidance through ComfyUI's own attention functions, each backend that runs on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch

from mask_guided_video.attention_patches.attention import torch_attention
from mask_guided_video.attention_patches.mask_guidance import MaskGuidance, mask_guidance_patch
from mask_guided_video.attention_patches.site import CONDITIONAL, SITE_KEY, UNCONDITIONAL, AttentionSite, BatchRows
from mask_guided_video.attention_patches.stack import PatchStack

pytestmark = pytest.mark.comfy

BACKENDS = ("attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch")
GRID, HEADS, DIM = (2, 20, 30), 2, 20
SITE = AttentionSite(
    kind="self",
    block="down.0.0",
    index=0,
    total=1,
    level=0,
    grid=GRID,
    frames=(0, 1),
    clip_frames=2,
    video=slice(0, 600),
    text=None,
    rows=BatchRows((UNCONDITIONAL, CONDITIONAL), 1, "frames", 2),
    progress=0.0,
    sigma=10.0,
)


def masks() -> torch.Tensor:
    out = torch.zeros(1, 2, 40, 60)
    out[0, 0, 4:25, 10:33] = 1.0
    out[0, 1, 20:30, 40:60] = 1.0
    return out


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mode", "hard"), [("focus_fg", False), ("separate", False), ("separate", True)])
def test_backends_agree(name: str, dtype: torch.dtype, mode: str, hard: bool) -> None:
    from comfy.ldm.modules import attention

    function = getattr(attention, name)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 600, HEADS * DIM, generator=generator).to(dtype) for _ in range(3))
    bias = 0.5 * torch.randn(1, 1, 600, 600, generator=generator).to(dtype)
    guide = MaskGuidance(masks(), mode=mode, hard=hard, rows="conditional")
    stack = PatchStack([mask_guidance_patch(guide)])
    options = copy.deepcopy({"optimized_attention_override": stack.override, SITE_KEY: SITE})
    for mask in (None, bias):
        expected = stack.override(torch_attention, q, k, v, HEADS, mask, transformer_options={SITE_KEY: SITE})
        plain = function(q, k, v, HEADS, mask)
        for out in (
            function(q, k, v, HEADS, mask, transformer_options=options),
            function(q, k, v, heads=HEADS, mask=mask, attn_precision=None, transformer_options=options),
        ):
            tolerance = 1e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
            assert torch.equal(out[:2], plain[:2])
            assert not torch.allclose(out[2:], plain[2:], atol=1e-2)


@pytest.mark.parametrize("name", BACKENDS)
def test_split_layouts_and_a_call_without_a_site(name: str) -> None:
    from comfy.ldm.modules import attention

    function = getattr(attention, name)
    q = torch.randn(4, HEADS, 600, DIM, generator=torch.Generator().manual_seed(0))
    stack = PatchStack([mask_guidance_patch(MaskGuidance(masks()))])
    options = {"optimized_attention_override": stack.override}
    plain = function(q, q, q, HEADS, skip_reshape=True)
    assert torch.equal(function(q, q, q, HEADS, skip_reshape=True, transformer_options=options), plain)
    joined = function(q, q, q, HEADS, skip_reshape=True, transformer_options={**options, SITE_KEY: SITE})
    both = {"skip_reshape": True, "skip_output_reshape": True, "transformer_options": {**options, SITE_KEY: SITE}}
    assert torch.equal(function(q, q, q, HEADS, **both).transpose(1, 2).flatten(2), joined)


def test_model_patcher_clone_shares_the_tables() -> None:
    from comfy.model_patcher import ModelPatcher

    model = torch.nn.Linear(2, 2)
    patcher = ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    stack = PatchStack([mask_guidance_patch(MaskGuidance(masks()))])
    patched = patcher.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = stack.override
    again = patched.clone()
    assert again.model_options["transformer_options"]["optimized_attention_override"].__self__ is stack
    assert "optimized_attention_override" not in patcher.model_options["transformer_options"]
