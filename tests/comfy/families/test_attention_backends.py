"""Mask guidance through ComfyUI's own attention functions, each backend that runs on a CPU."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from guides import plain_guide
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import sample, tiny

from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.kernels.torch_attention import torch_attention
from mask_guided_video.attention_patches.site import (
    CONDITIONAL,
    SITE_KEY,
    UNCONDITIONAL,
    AttentionSite,
    BatchRows,
    Span,
)
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
    video=Span(0, 600),
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
    guide = plain_guide(masks(), mode=mode, hard=hard, rows="conditional")
    stack = PatchStack([GuidePatch(guide)])
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
    stack = PatchStack([GuidePatch(plain_guide(masks()))])
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
    stack = PatchStack([GuidePatch(plain_guide(masks()))])
    patched = patcher.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = stack.override
    again = patched.clone()
    assert again.model_options["transformer_options"]["optimized_attention_override"].__self__ is stack
    assert "optimized_attention_override" not in patcher.model_options["transformer_options"]


# --- the host's attention in 8 bits -----------------------------------------------------------------------------------


class Kitchen:
    """Stands for the kernels that need a GPU: rounds q and k to 8 bits by rows, and notes the widths it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from comfy.ldm.modules import attention

        if not hasattr(attention, "attention_comfy_kitchen_int8"):
            pytest.skip("this ComfyUI has no attention in 8 bits")
        self.widths: list[int] = []
        self.freed: list[bool] = []
        self.function = attention.attention_comfy_kitchen_int8
        monkeypatch.setattr(attention.comfy_kitchen, "int8_attention", self.attend)
        monkeypatch.setattr(attention.comfy_kitchen, "prequantize_int8_attention", self.prepare)
        monkeypatch.setattr(attention.comfy_kitchen, "int8_attention_from_prequantized", self.finish)
        monkeypatch.setitem(attention.REGISTERED_ATTENTION_FUNCTIONS, "comfy_kitchen_int8", self.function)

    @staticmethod
    def int8(tensor: torch.Tensor) -> torch.Tensor:
        step = tensor.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6) / 127
        return (tensor / step).round() * step

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        self.widths.append(q.shape[-1])
        return torch.nn.functional.scaled_dot_product_attention(self.int8(q), self.int8(k), v)

    def prepare(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> Any:
        self._watched = [weakref.ref(tensor) for tensor in (q, k, v)]
        self.widths.append(q.shape[-1])
        return self.int8(q), self.int8(k), v.clone()

    def finish(self, prepared: Any) -> torch.Tensor:
        self.freed.append(all(reference() is None for reference in self._watched))
        return torch.nn.functional.scaled_dot_product_attention(*prepared)


@pytest.fixture
def kitchen(monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    return Kitchen(monkeypatch)


@pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")
@pytest.mark.parametrize("way", ["node first", "node last", "for all models"])
@pytest.mark.parametrize("mode", ["separate", "separate hard"])
def test_attention_in_8_bits_serves_what_is_not_guided(
    kitchen: Kitchen, way: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.wan.model
    from comfy_extras.nodes_model_advanced import ModelAttentionBackend

    def node(patcher: Any) -> Any:
        return ModelAttentionBackend().patch(patcher, "comfy kitchen attention")[0]

    model, guide, spans = tiny("wan"), guide_of("wan", mode), spans_of("wan")
    expected = sample(model, dense(model, guide, spans).hang(model.patcher), cfg=1.0)
    late = guide_of("wan", mode, start_percent=0.9)
    if way == "for all models":
        monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", kitchen.function)
        guided, unguided = (patched(model, one, spans) for one in (guide, late))
    elif way == "node first":
        guided, unguided = (patched(model, one, spans, node(model.patcher)) for one in (guide, late))
    else:
        guided, unguided = (node(patched(model, one, spans)) for one in (guide, late))
    assert relative(sample(model, guided, cfg=1.0), expected) < 1e-4
    assert not kitchen.widths
    sample(model, unguided, cfg=1.0)
    # Two steps, two blocks, film and text.
    assert kitchen.widths == [24] * 8


@pytest.mark.parametrize("way", ["of the model", "for all models"])
def test_the_hosts_containers_are_emptied_as_early_as_without_us(kitchen: Kitchen, way: str) -> None:
    from comfy.ldm.modules.attention import AttentionTensorContainer, attention_pytorch
    from comfy.model_patcher import ModelPatcher

    model = ModelPatcher(torch.nn.Linear(2, 2), torch.device("cpu"), torch.device("cpu"))
    function = kitchen.function if way == "for all models" else attention_pytorch
    stack = PatchStack([GuidePatch(plain_guide(masks(), rows="conditional"))], host=function)
    if way == "of the model":
        model.set_model_optimized_attention(kitchen.function)
        stack = stack.chain(model.model_options["transformer_options"]["optimized_attention_override"])

    def run(site: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        containers = [AttentionTensorContainer(torch.randn(4, HEADS, 600, DIM, generator=generator)) for _ in range(3)]
        options = {"optimized_attention_override": stack.override, SITE_KEY: site}
        return function(*containers, HEADS, skip_reshape=True, transformer_options=options)

    run(None)
    assert kitchen.freed == [True] and kitchen.widths == [DIM]
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(4, HEADS, 600, DIM, generator=generator) for _ in range(3)]
    guided = {"skip_reshape": True, "transformer_options": {SITE_KEY: SITE}}
    exact = PatchStack(stack.patches).override(attention_pytorch.__wrapped__, *qkv, HEADS, **guided)
    torch.testing.assert_close(run(SITE)[2:], exact[2:], atol=1e-5, rtol=1e-5)
