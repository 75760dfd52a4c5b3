"""Guidance beside other packs: attention overrides, block replacements and wrappers of others, in either order.

What other packs do is written out here in their shape: the same hooks, the same names, the same arguments. Each test
shows that the other's doing and ours are both there, and that ours is still exact, by comparison with explicit biases.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from company import CLEAR, EXACT, ORDERS, in_order, prove_both
from dense_reference import OVERRIDE
from family_rows import rows
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import TinyModel, build, sample, tiny
from torch import Tensor

from mask_guided_video.attention_patches.guidance import plan as guidance_plan
from mask_guided_video.attention_patches.kernels.torch_attention import torch_attention
from mask_guided_video.attention_patches.site import SITE_KEY
from mask_guided_video.attention_patches.stack import PatchStack
from mask_guided_video.backbones.override_chain import OverrideChain, outermost_stacks

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

MODELS = ("wan", "hunyuan", "sd15")
# By default: other packs in U-Nets have a module of their own.
FULL_CLIPS = ("wan", "hunyuan")


@pytest.fixture(autouse=True)
def kernels_of_long_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels and partitions, as for films of real length."""
    monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 0)
    monkeypatch.setattr(guidance_plan, "PARTITION_TOKENS", 1)


# --- overrides --------------------------------------------------------------------------------------------------------


def with_override(override: Callable[..., Tensor]) -> Callable[[Any], Any]:
    """A node that sets an override as most packs do: without a look at what was there."""

    def node(patcher: Any) -> Any:
        patcher = patcher.clone()
        patcher.model_options["transformer_options"][OVERRIDE] = override
        return patcher

    return node


def with_chained_override(
    make: Callable[[Callable[..., Tensor] | None], Callable[..., Tensor]],
) -> Callable[[Any], Any]:
    """A node that calls the override that was there."""

    def node(patcher: Any) -> Any:
        patcher = patcher.clone()
        options = patcher.model_options["transformer_options"]
        options[OVERRIDE] = make(options.get(OVERRIDE))
        return patcher

    return node


def louder(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return 1.1 * func(*args, **kwargs)


def normalised(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any):
    """Guidance by a negative in attention, its norm in each head limited, as NAG does it."""
    positive = func(q, k, v, heads, *args, **kwargs)
    out = 2.0 * positive - func(q, k, v.flip(-2), heads, *args, **kwargs)
    split = (-1,) if positive.ndim == 4 else (heads, -1)
    norms = [part.unflatten(-1, split).norm(p=1, dim=-1, keepdim=True) for part in (out, positive)]
    limited = out.unflatten(-1, split) / (norms[0] / norms[1].clamp(min=1e-6)).clamp(min=1.0)
    return 0.5 * limited.reshape(out.shape) + 0.5 * positive


class Chained:
    """An override with state, that calls the one before it."""

    def __init__(self, previous: Callable[..., Tensor] | None) -> None:
        self.previous = previous

    def __call__(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return 1.1 * (func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs))


def chained_closure(previous: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    def override(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return 1.1 * (func(*args, **kwargs) if previous is None else previous(func, *args, **kwargs))

    return override


@pytest.mark.parametrize("name", rows(MODELS, FULL_CLIPS))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("override", [louder, normalised])
def test_override_of_another_pack(name: str, order: str, override: Any) -> None:
    prove_both(tiny(name), order, with_override(override))


@pytest.mark.parametrize("name", rows(MODELS, FULL_CLIPS))
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("make", [Chained, chained_closure])
def test_override_that_calls_the_one_before(name: str, order: str, make: Any) -> None:
    prove_both(tiny(name), order, with_chained_override(make))


@pytest.mark.parametrize("name", rows(MODELS, FULL_CLIPS))
@pytest.mark.parametrize("between", [None, with_override(louder), with_chained_override(chained_closure)])
def test_two_guides_with_another_override_between_them(name: str, between: Any) -> None:
    model, spans = tiny(name), spans_of(name)
    guides = guide_of(name, "separate"), guide_of(name, "focus")
    other = between or (lambda patcher: patcher)
    twice = patched(model, guides[1], spans, other(patched(model, guides[0], spans)))
    reference = dense(model, guides[0], spans, guides[1], spans)
    expected = sample(model, reference.hang(other(model.patcher)))
    both = sample(model, twice)
    assert relative(both, expected) < EXACT
    for guide in guides:
        assert relative(both, sample(model, patched(model, guide, spans, other(model.patcher)))) > CLEAR
    # Nothing that was made for this run stays: it repeats to the bit.
    assert torch.equal(both, sample(model, twice))


def test_the_same_guide_twice_counts_twice() -> None:
    model, spans = tiny("wan"), spans_of("wan")
    guide = guide_of("wan", "separate")
    doubled = sample(model, patched(model, guide_of("wan", "separate", strength=8.0), spans))
    assert relative(sample(model, patched(model, guide, spans, patched(model, guide, spans))), doubled) < EXACT


def test_an_override_taken_out_again_leaves_ours() -> None:
    def node(patcher: Any) -> Any:
        patcher = patcher.clone()
        patcher.model_options["transformer_options"].pop(OVERRIDE, None)
        return patcher

    model = tiny("wan")
    guided = patched(model, guide_of("wan", "separate"), spans_of("wan"))
    assert torch.equal(sample(model, node(guided)), sample(model, guided))


def test_stacks_stay_outermost_and_act_once_wherever_they_are_held() -> None:
    """An override that takes the calls first would keep those that suit it."""
    calls: list[int] = []

    def count(attend: Any, q: Tensor, k: Tensor, v: Tensor, site: Any) -> Tensor:
        calls.append(1)
        return attend(q, k, v, site)

    stack = PatchStack([count])

    def by_default(func: Any, *args: Any, before: Any = stack.override, **kwargs: Any) -> Tensor:
        return before(func, *args, **kwargs)

    def wrapped(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        return wrapped.__wrapped__(func, *args, **kwargs)

    wrapped.__wrapped__ = stack.override
    holders = (
        stack.override,
        PatchStack([], stack.override).override,
        functools.partial(chained_closure(None)),
        functools.partial(by_default),
        Chained(stack.override),
        Chained(chained_closure(stack.override)).__call__,
        PatchStack([], chained_closure(stack.override)).override,
        wrapped,
        louder,
        None,
    )
    q = torch.ones(1, 2, 4)
    for holder in holders:
        options = {OVERRIDE: holder, "attention_patch_stacks": (stack,), SITE_KEY: object()}
        OverrideChain().complete(options)
        outermost, foreign = outermost_stacks(options[OVERRIDE])
        assert outermost and not isinstance(getattr(foreign, "__self__", None), PatchStack)
        calls.clear()
        options[OVERRIDE](torch_attention, q, q, q, 1, transformer_options=options)
        assert calls == [1], holder


def test_overrides_are_made_once_so_that_compiled_models_keep(caplog: pytest.LogCaptureFixture) -> None:
    stack, chain = PatchStack([]), OverrideChain()
    made = []
    for _ in range(3):
        options = {OVERRIDE: louder, "attention_patch_stacks": (stack,)}
        chain.complete(options)
        made.append(options[OVERRIDE])
    assert made[0] is made[1] is made[2]
    assert made[0].__self__.previous is louder


# --- kernels that quantise --------------------------------------------------------------------------------------------


def wan_with_wide_heads() -> TinyModel:
    """Sage takes heads of 64, 96 or 128 channels."""
    from native_models import WAN, WAN_LATENTS

    return TinyModel("wan", functools.partial(build, "WAN21_T2V", {**WAN, "dim": 128}), WAN_LATENTS, 32)


class Sage:
    """Stands for SageAttention: takes few head dimensions and no mask, and notes the queries of its calls."""

    def __init__(self) -> None:
        self.queries: list[int] = []
        from comfy.ldm.modules.attention import attention_pytorch

        def attention_sage(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
            width = q.shape[-1] if kwargs.get("skip_reshape") else q.shape[-1] // heads
            if width not in (64, 96, 128):
                raise ValueError(f"unsupported head_dim: {width}")
            if mask is not None:
                raise ValueError("sage gives wrong results with a mask")
            self.queries.append(q.shape[-2])
            return attention_pytorch.__wrapped__(q, k, v, heads, **kwargs)

        def attention_override_sage(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            return attention_sage(*args, **kwargs)

        self.function, self.override = attention_sage, attention_override_sage


@pytest.mark.parametrize("order", [*ORDERS, "the host's own"])
@pytest.mark.parametrize("mode", ["separate hard", "separate", "separate with a mask"])
def test_sage_serves_the_calls_that_it_can(order: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ldm.wan.model
    from comfy.ldm.modules.attention import wrap_attn

    model, sage = wan_with_wide_heads(), Sage()
    guide = guide_of("wan", mode.replace(" with a mask", ""))
    if mode.endswith("mask"):
        monkeypatch.setattr(guidance_plan, "DENSE_PAIRS", 10**9)
    expected = sample(model, dense(model, guide, None).hang(model.patcher))

    def ours(patcher: Any) -> Any:
        return patched(model, guide, None, patcher)

    if order == "the host's own":
        monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", wrap_attn(sage.function))
        patcher = ours(model.patcher)
    else:
        patcher = in_order(model, order, with_override(sage.override), ours)
    assert relative(sample(model, patcher), expected) < EXACT
    # 2 steps (two chunks in one batch) and 2 blocks. The calls with the text are not guided and go to sage as they are.
    tokens = 3 * 4 * 6
    of_text = [queries for queries in sage.queries if queries == tokens]
    parts = [queries for queries in sage.queries if queries < tokens]
    if mode == "separate hard":
        assert len(of_text) >= 4 and len(parts) >= 8
    else:
        assert len(of_text) == 4 and not parts


def test_sage_serves_models_outside_of_the_guided_part_of_the_schedule() -> None:
    model, sage = wan_with_wide_heads(), Sage()
    guide = guide_of("wan", "separate", start_percent=0.9)
    patcher = patched(model, guide, spans_of("wan"), with_override(sage.override)(model.patcher))
    out = sample(model, patcher)
    assert len(sage.queries) == 8
    assert torch.equal(out, sample(model, with_override(sage.override)(model.patcher)))


# --- calls that another node makes differently ------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_a_node_that_splits_the_batch_of_cross_attention_is_left_alone(
    order: str, caplog: pytest.LogCaptureFixture
) -> None:
    """NAG's way: the cross-attention's forward is replaced and evaluates the rows of the batch apart."""
    model = tiny("wan")

    def node(patcher: Any) -> Any:
        from comfy.ldm.modules.attention import optimized_attention

        def forward(self: Any, x: Tensor, context: Tensor, transformer_options: Any = None, **_: Any) -> Tensor:
            parts = []
            for row in range(x.shape[0]):
                q = self.norm_q(self.q(x[row : row + 1]))
                k, v = self.norm_k(self.k(context[row : row + 1])), self.v(context[row : row + 1])
                options = transformer_options or {}
                parts.append(1.1 * optimized_attention(q, k, v, heads=self.num_heads, transformer_options=options))
            return self.o(torch.cat(parts))

        patcher = patcher.clone()
        for index, block in enumerate(patcher.model.diffusion_model.blocks):
            bound = forward.__get__(block.cross_attn)
            patcher.add_object_patch(f"diffusion_model.blocks.{index}.cross_attn.forward", bound)
        return patcher

    guide, spans = guide_of("wan", "separate"), spans_of("wan")
    with caplog.at_level(logging.WARNING):
        both = sample(model, in_order(model, order, node, lambda patcher: patched(model, guide, spans, patcher)))
    assert caplog.text.count("splits the batch") == 1
    # The film among itself is still guided, exactly.
    reference = dense(model, guide, None)
    reference.order = "S0 -0 -0 S0 -0 -0".split()
    assert relative(both, sample(model, reference.hang(node(model.patcher)))) < EXACT
    assert relative(both, sample(model, node(model.patcher))) > CLEAR


def test_guidance_that_reaches_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def attend(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.o(self.v(x))

    model = tiny("wan")
    patcher = model.patcher.clone()
    for index, block in enumerate(patcher.model.diffusion_model.blocks):
        for part in ("self_attn", "cross_attn"):
            bound = attend.__get__(getattr(block, part))
            patcher.add_object_patch(f"diffusion_model.blocks.{index}.{part}.forward", bound)
    plain = sample(model, patcher)
    with caplog.at_level(logging.WARNING):
        guided = sample(model, patched(model, guide_of("wan", "separate"), None, patcher))
    assert torch.equal(guided, plain)
    assert "guidance had no effect" in caplog.text
