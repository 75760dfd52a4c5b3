"""Guidance beside the nodes of ComfyUI-KJNodes as they are, in either order: both act, or one sentence says which not.

Only what needs an NVIDIA GPU is replaced: the packages ``sageattention`` and ``flash_attn``, by functions that note
their calls. The first rounds to eight bits as the real one does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from company import CLEAR, EXACT, ORDERS, in_order, prove_both
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import sample, tiny
from packs import KJNODES, load_pack, run_node
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mask_guided_video.attention_patches.guidance import plan as guidance_plan

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]

# Sage and flash attention compute in half precision, what they are given by KJNodes that is not.
HALF = 5e-3
LATENT = {"samples": torch.zeros(1, 16, 3, 8, 12)}


@pytest.fixture(scope="module")
def kjnodes(comfy_folder: Path) -> ModuleType:
    return load_pack(comfy_folder, KJNODES, "kjnodes")


def node(pack: ModuleType, name: str, **inputs: Any) -> Callable[[Any], Any]:
    """A node as a function of the model."""
    return lambda patcher: run_node(pack, name, model=patcher, **inputs)


def ours(name: str, mode: str = "separate", words: bool = True) -> Callable[[Any], Any]:
    """Our patch as a function of the model."""
    return partial(patched, tiny(name), guide_of(name, mode), spans_of(name) if words else None)


def int8(tensor: Tensor) -> Tensor:
    step = tensor.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6) / 127
    return (tensor / step).round() * step


# --- kernels ----------------------------------------------------------------------------------------------------------


class Widths(list):
    """Widths of heads and lengths of the queries that a kernel was called with."""


@pytest.fixture
def sage(monkeypatch: pytest.MonkeyPatch) -> Widths:
    seen = Widths()

    def sageattn(
        q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "HND", attn_mask: Any = None, **_: Any
    ) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) if tensor_layout == "NHD" else tensor for tensor in (q, k, v))
        seen.append((q.shape[3], q.shape[2]))
        # Builds for most cards take masks for something else.
        assert attn_mask is None
        out = scaled_dot_product_attention(int8(q), int8(k), v)
        return out.transpose(1, 2) if tensor_layout == "NHD" else out

    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sageattn))
    return seen


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Widths:
    seen = Widths()

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        assert q.dtype in (torch.float16, torch.bfloat16)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        seen.append((q.shape[3], q.shape[2]))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    return seen


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", ["separate", "separate hard"])
def test_sage_attention_keeps_the_calls_that_are_not_guided(
    kjnodes: ModuleType, sage: Widths, order: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1)
    model, with_sage = tiny("wan"), node(kjnodes, "PathchSageAttentionKJ", sage_attention="auto")
    expected = sample(model, dense(model, guide_of("wan", mode), None).hang(model.patcher))
    sage.clear()
    film = sample(model, in_order(model, order, with_sage, ours("wan", mode, words=False)))
    assert relative(film, expected) < HALF
    # Two steps of both chunks, two blocks: the text calls of 72 queries as they are.
    assert {width for width, _ in sage} == {24}
    assert len([queries for _, queries in sage if queries == 72]) >= 4
    parts = [queries for _, queries in sage if queries < 72]
    # A hard partition is plain attention of fewer tokens: that is the user's kernel's.
    assert bool(parts) == (mode == "separate hard")


@pytest.mark.parametrize("order", ORDERS)
def test_flash_attention_carries_guidance(kjnodes: ModuleType, flash: Widths, order: str) -> None:
    model, with_flash = tiny("wan"), node(kjnodes, "PatchFlashAttentionKJ")
    expected = sample(model, dense(model, guide_of("wan", "separate"), spans_of("wan")).hang(model.patcher))
    film = sample(model, in_order(model, order, with_flash, ours("wan")))
    assert relative(film, expected) < HALF
    assert {width for width, _ in flash} == {24, 32}


def test_sparse_attention_with_guidance(
    kjnodes: ModuleType, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NABLA leaves keys out of calls of 3000 tokens and more, without a look at the function that it is given."""
    from comfy.ldm.modules.attention import attention_pytorch, wrap_attn
    from guides import plain_guide

    from mask_guided_video.attention_patches.guidance.patch import GuidePatch
    from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite, BatchRows, Span
    from mask_guided_video.attention_patches.stack import PatchStack

    def flex_attention(q: Tensor, k: Tensor, v: Tensor, block_mask: Any) -> Tensor:
        """Uncompiled, the real one looks at no block."""
        kept = block_mask.to_dense().bool().repeat_interleave(64, dim=-2).repeat_interleave(64, dim=-1)
        return scaled_dot_product_attention(q, k, v, attn_mask=kept)

    monkeypatch.setattr(sys.modules["kjnodes.nodes.model_optimization_nodes"], "flex_attention", flex_attention)
    latent = {"samples": torch.zeros(1, 16, 3, 64, 64)}
    patcher = tiny("wan").patcher
    settings = {"window_time": 1, "window_width": 1, "window_height": 1, "sparsity": 0.3, "torch_compile": False}
    nabla = run_node(kjnodes, "NABLA_AttentionKJ", model=patcher, latent=latent, **settings)
    override = nabla.model_options["transformer_options"]["optimized_attention_override"]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 3072, 16, generator=generator) for _ in range(3))
    site = AttentionSite(
        **{"kind": "self", "block": "0", "index": 0, "total": 1, "level": 0, "grid": (3, 32, 32), "frames": (0, 1, 2)},
        **{"clip_frames": 3, "video": Span(0, 3072), "text": None, "rows": BatchRows(), "progress": 0.1, "sigma": 1.0},
    )
    masks = torch.zeros(1, 3, 64, 64)
    masks[..., 10:40, 20:50] = 1.0
    stack = PatchStack([GuidePatch(plain_guide(masks, mode="separate", rows="both"))])
    given = {"skip_reshape": True, "transformer_options": {SITE_KEY: site}, "_inside_attn_wrapper": True}
    expected = stack.override(wrap_attn(attention_pytorch.__wrapped__), q, k, v, 1, **given)
    chained = stack.chain(override)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = chained.override(attention_pytorch.__wrapped__, q, k, v, 1, **given)
    torch.testing.assert_close(out, expected)
    assert caplog.text.count("attention_override_nabla rounds, leaves out") == 1
    sparse = override(attention_pytorch.__wrapped__, q, k, v, 1, **given)
    unguided = chained.override(attention_pytorch.__wrapped__, q, k, v, 1, **given | {"transformer_options": {}})
    assert torch.equal(unguided, sparse) and relative(sparse, expected) > CLEAR


@pytest.mark.parametrize("order", ORDERS)
def test_attention_that_asks_nobody_is_named(
    kjnodes: ModuleType, order: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The node for less memory calls its kernel where attention would be asked for."""
    ltxv = sys.modules["kjnodes.nodes.ltxv_nodes"]

    def kernel(qkv: list[Tensor], dtype: torch.dtype) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in qkv)
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()

    monkeypatch.setattr(ltxv, "_cuda_archs", ["sm89"])
    monkeypatch.setattr(ltxv, "_sageattn_int8_fp8_nhd", kernel)
    model, other = tiny("wan"), node(kjnodes, "WanVideoMemoryEfficientSageAttentionPatch")
    with caplog.at_level(logging.WARNING):
        film = sample(model, in_order(model, order, other, ours("wan")))
    assert torch.equal(film, sample(model, other(model.patcher)))
    said = [record.message for record in caplog.records if "mask_guided_video" in record.name]
    assert len(said) == 1 and "take that node out" in said[0]


# --- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_negative_guidance_in_attention(
    kjnodes: ModuleType, order: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It evaluates the rows of the batch apart: the video is guided, and one sentence says that words are not."""
    model = tiny("wan")
    other = node(
        kjnodes, "WanVideoNAG", conditioning=model.conditioning(3), nag_scale=11.0, nag_alpha=0.25, nag_tau=2.5
    )
    reference = dense(model, guide_of("wan", "separate"), None)
    reference.order = "S0 -0 -0 -0 S0 -0 -0 -0".split()
    with caplog.at_level(logging.WARNING):
        prove_both(model, order, other, reference)
    assert "splits the batch" in caplog.text


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_enhance_a_video(kjnodes: ModuleType, name: str, order: str) -> None:
    latent = {"samples": torch.zeros(tiny(name).latents)}
    title = "WanVideoEnhanceAVideoKJ" if name == "wan" else "LTXVEnhanceAVideoKJ"
    prove_both(tiny(name), order, node(kjnodes, title, latent=latent, weight=8.0))


def test_skipped_layer_fails_by_itself_and_says_so(kjnodes: ModuleType) -> None:
    """It needs the node for caching that hands the model on as it is; the host's own is in the tests of blocks."""
    model = tiny("wan")
    other = node(kjnodes, "SkipLayerGuidanceWanVideo", blocks="1", start_percent=0.0, end_percent=1.0)
    for patcher in (other(model.patcher), *(in_order(model, order, other, ours("wan")) for order in ORDERS)):
        with pytest.raises(ValueError, match="only works with TeaCacheKJ"):
            sample(model, patcher)


@pytest.mark.parametrize("order", ORDERS)
def test_cfg_zero_star(kjnodes: ModuleType, order: str) -> None:
    prove_both(tiny("wan"), order, node(kjnodes, "CFGZeroStarAndInit", use_zero_init=False, zero_init_steps=0))


# --- positions, memory, compiling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_other_positions(kjnodes: ModuleType, order: str) -> None:
    prove_both(tiny("wan"), order, node(kjnodes, "ApplyRifleXRoPE_WanVideo", latent=LATENT, k=2))


@pytest.mark.parametrize("order", ORDERS)
def test_feed_forward_in_chunks(kjnodes: ModuleType, order: str) -> None:
    model, other = tiny("wan"), node(kjnodes, "WanChunkFeedForward", chunks=2, dim_threshold=16)
    film = sample(model, in_order(model, order, other, ours("wan")))
    assert relative(film, sample(model, ours("wan")(model.patcher))) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_compiled_blocks(kjnodes: ModuleType, order: str) -> None:
    settings = {"fullgraph": False, "mode": "default", "dynamic": "false", "compile_transformer_blocks_only": True}
    settings |= {"dynamo_cache_size_limit": 64, "debug_compile_keys": False, "backend": "eager"}
    model, other = tiny("wan"), node(kjnodes, "TorchCompileModelAdvanced", **settings)
    torch.compiler.reset()
    film = sample(model, in_order(model, order, other, ours("wan")))
    torch.compiler.reset()
    assert relative(film, sample(model, ours("wan")(model.patcher))) < EXACT


def test_caching_of_steps_is_the_hosts_now(kjnodes: ModuleType) -> None:
    """The pack's own node for it hands the model on as it is; the host's is in the tests of repeated blocks."""
    settings = {"rel_l1_thresh": 0.3, "start_percent": 0.0, "end_percent": 1.0}
    settings |= {"cache_device": "main_device", "coefficients": "14B"}
    patcher = tiny("wan").patcher
    assert node(kjnodes, "WanVideoTeaCacheKJ", **settings)(patcher) is patcher
