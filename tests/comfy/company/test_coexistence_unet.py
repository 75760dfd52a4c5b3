"""Guidance beside other packs and core nodes in U-Nets: adapters, references, PAG, FreeU, tiles, merged tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense_reference import DenseReference
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import TinyModel, sample, tiny
from torch import Tensor

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]

NAME = "sd15"
# Of the output's range, in single precision; and what each side's doing changes at least.
EXACT, CLEAR = 1e-4, 2e-3
# What a pack does after ours is what may go wrong; before it, by --all.
ORDERS = ("ours first", pytest.param("other first", marks=pytest.mark.slow))
BLOCKS = (("input", 1), ("input", 3), ("middle", 0), ("output", 2), ("output", 3), ("output", 4), ("output", 5))
Node = Callable[[Any], Any]


class Reference(DenseReference):
    """Explicit biases where self-attention has further keys, and where some model calls leave out an attention call.

    Attributes:
        further_keys: of self-attention, in parts of its own; no bias is on them.
    """

    further_keys = 0
    replaced: tuple[int, ...] = ()

    def call_model(self, apply_model: Any, args: dict[str, Any]) -> Tensor:
        order = self.order
        if "attn1" in args["c"]["transformer_options"].get("patches_replace", {}):
            self.order = [call for index, call in enumerate(order) if index not in self.replaced]
        try:
            return super().call_model(apply_model, args)
        finally:
            self.order = order

    def _mask(self, call: str, q: Tensor) -> Tensor | None:
        mask = super()._mask(call, q)
        if mask is not None and call[0] == "S":
            mask = torch.nn.functional.pad(mask, (0, self.further_keys * q.shape[-2]))
        return mask


def reference_of(model: TinyModel, change: Callable[[str], list[str]] = lambda call: [call]) -> Reference:
    """The reference with some attention calls changed, left alone or left out."""
    made = dense(model, guide_of(NAME, "separate"), spans_of(NAME))
    reference = Reference(model, made.guides)
    reference.order = [new for call in reference.order for new in change(call)]
    return reference


def prove_both(order: str, other: Node, reference: Reference | None = None, seed: int | None = None) -> None:
    """Both patches equal explicit biases beside the other, and each one changes the film."""
    model, guide, spans = tiny(NAME), guide_of(NAME, "separate"), spans_of(NAME)

    def film(patcher: Any) -> Tensor:
        torch.manual_seed(0)
        return sample(model, patcher, steps=1)

    ours_first = order == "ours first"
    both = other(patched(model, guide, spans)) if ours_first else patched(model, guide, spans, other(model.patcher))
    guided = film(both)
    reference = reference or reference_of(model)
    assert relative(guided, film(reference.hang(other(model.patcher)))) < EXACT
    assert relative(guided, film(other(model.patcher))) > CLEAR
    assert relative(guided, film(patched(model, guide, spans))) > CLEAR
    assert torch.equal(guided, film(both))


def changed(change: Callable[[Any], None]) -> Node:
    def node(patcher: Any) -> Any:
        patcher = patcher.clone()
        change(patcher)
        return patcher

    return node


# --- adapters and references ------------------------------------------------------------------------------------------


def adapter(with_options: bool) -> Node:
    """IPAdapter's way: the cross-attention is replaced, and a second one with a picture's tokens is added."""

    def attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        named = {"transformer_options": options} if with_options else {}
        generator = torch.Generator().manual_seed(q.shape[2])
        picture = torch.randn(2, 1, 4, q.shape[2], generator=generator).expand(-1, q.shape[0], -1, -1)
        out = optimized_attention(q, k, v, options["n_heads"], **named)
        return out + 0.5 * optimized_attention(q, picture[0], picture[1], options["n_heads"], **named)

    def change(patcher: Any) -> None:
        for block in BLOCKS:
            patcher.set_model_attn2_replace(attention, *block)

    return changed(change)


@pytest.mark.parametrize("order", ORDERS)
def test_adapter_whose_attention_cannot_be_reached(order: str, caplog: pytest.LogCaptureFixture) -> None:
    """The film among itself is guided; its words cannot be, which is said once."""
    reference = reference_of(tiny(NAME), lambda call: [call] if call[0] == "S" else [])
    with caplog.at_level(logging.WARNING):
        patcher = adapter(False)(patched(tiny(NAME), guide_of(NAME, "separate"), spans_of(NAME)))
        sample(tiny(NAME), patcher, steps=1)
    assert caplog.text.count("replaces cross-attention") == 1
    prove_both(order, adapter(False), reference)


@pytest.mark.parametrize("order", ORDERS)
def test_adapter_whose_attention_can_be_reached(order: str, caplog: pytest.LogCaptureFixture) -> None:
    """The call with the text is guided, the one with the picture is not, though its queries are the same."""
    reference = reference_of(tiny(NAME), lambda call: [call, "-" + call[1]] if call[0] == "C" else [call])
    prove_both(order, adapter(True), reference)
    assert "replaces" not in caplog.text


@pytest.mark.parametrize("order", ORDERS)
def test_reference_tokens_beside_the_film(order: str) -> None:
    """Reference-only's way: further keys and values in self-attention."""

    def beside(hidden: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        return hidden, torch.cat((context, 0.5 * context.flip(1)), 1), torch.cat((value, -value.flip(1)), 1)

    reference = reference_of(tiny(NAME))
    reference.further_keys = 1
    prove_both(order, changed(lambda patcher: patcher.set_model_attn1_patch(beside)), reference)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("hook", ["attn1_patch", "attn2_patch", "attn1_output_patch", "attn2_output_patch"])
def test_values_that_another_pack_changes(order: str, hook: str) -> None:
    def values(hidden: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        return hidden, context, 0.8 * value

    def output(out: Tensor, options: dict[str, Any]) -> Tensor:
        return 0.8 * out

    patch = output if "output" in hook else values
    prove_both(order, changed(lambda patcher: getattr(patcher, f"set_model_{hook}")(patch)))


@pytest.mark.parametrize("order", ORDERS)
def test_self_attention_that_is_replaced_in_one_block(order: str, caplog: pytest.LogCaptureFixture) -> None:
    def replaced(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        return v

    reference = reference_of(tiny(NAME))
    reference.replaced = (4,)
    prove_both(order, changed(lambda patcher: patcher.set_model_attn1_replace(replaced, "middle", 0)), reference)
    assert "replaces self-attention" in caplog.text


# --- core nodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_perturbed_attention_guidance(order: str) -> None:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    reference = reference_of(tiny(NAME))
    # Its third evaluation has no self-attention in the middle block.
    reference.replaced = (4,)
    prove_both(order, lambda patcher: PerturbedAttentionGuidance.execute(patcher, 3.0)[0], reference)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", ["FreeU", "FreeU_V2"])
def test_free_u(order: str, version: str) -> None:
    from comfy_extras import nodes_freelunch

    node = getattr(nodes_freelunch, version)()
    prove_both(order, lambda patcher: node.patch(patcher, 1.3, 1.4, 0.9, 0.2)[0])


@pytest.mark.parametrize("order", ORDERS)
def test_self_attention_guidance(order: str) -> None:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    def node(patcher: Any) -> Any:
        return SelfAttentionGuidance.execute(patcher, 0.5, 2.0)[0]

    model = tiny(NAME)
    guided = sample(model, in_order(order, node))
    assert torch.isfinite(guided).all()
    assert relative(guided, sample(model, node(model.patcher))) > CLEAR


def in_order(order: str, node: Node) -> Any:
    model, guide, spans = tiny(NAME), guide_of(NAME, "separate"), spans_of(NAME)
    return (
        node(patched(model, guide, spans))
        if order == "ours first"
        else patched(model, guide, spans, node(model.patcher))
    )


def tiles(patcher: Any) -> Any:
    from comfy_extras.nodes_hypertile import HyperTile

    return HyperTile.execute(patcher, 32, 1, 0, False)[0]


def merged_tokens(patcher: Any) -> Any:
    from comfy_extras.nodes_tomesd import TomePatchModel

    return TomePatchModel.execute(patcher, 0.5)[0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("node", [tiles, merged_tokens])
def test_tokens_that_are_tiled_or_merged_are_left_alone(
    order: str, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """Self-attention at the finest level is not of whole frames any more; all other calls are guided exactly."""
    reference = reference_of(tiny(NAME), lambda call: ["-0"] if call == "S0" else [call])
    prove_both(order, node, reference)
    # Two runs are guided beside the node, and each says it once.
    assert caplog.text.count("tiles or merges tokens of self-attention") == 2
