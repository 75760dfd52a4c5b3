"""Guidance on models with LoRA and with quantised weights: exact, and no weight is ever touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_reference import DenseReference
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import WAN, WAN_LATENTS, TinyModel, randomise, sample, tiny
from torch import Tensor

from mask_guided_video.backbones.registry import require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]

# Of the output's range, in single precision; and what each side's doing changes at least.
EXACT, CLEAR = 1e-4, 2e-3
ORDERS = ("LoRA first", "guidance first")


def weights(model: TinyModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.patcher.model.state_dict().items()}


def assert_weights(model: TinyModel, before: dict[str, Tensor]) -> None:
    after = model.patcher.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(bits(after[name]), bits(value)) for name, value in before.items())


def bits(value: Tensor) -> Tensor:
    """Comparable: there is no equality of 8-bit floats."""
    return value.view(torch.uint8) if value.element_size() == 1 else value


def hang_reference(model: TinyModel, patcher: Any) -> tuple[Any, DenseReference]:
    reference = dense(model, guide_of(model.name, "separate"), spans_of(model.name))
    return reference.hang(patcher), reference


# --- LoRA -------------------------------------------------------------------------------------------------------------


def lora_of(model: TinyModel) -> dict[str, Tensor]:
    """A LoRA for two attention projections of the model, in the usual file's form."""
    generator = torch.Generator().manual_seed(4)
    named = {name: value for name, value in model.patcher.model.state_dict().items() if name.endswith(".weight")}
    wanted = ("blocks.0.self_attn.q.weight", "single_blocks.0.linear1.weight", "attn1.to_q.weight")
    chosen = [name for name in named if name.endswith(wanted)]
    assert chosen
    lora = {}
    for name in chosen:
        out, inner = named[name].shape
        lora[f"{name[: -len('.weight')]}.lora_up.weight"] = 0.3 * torch.randn(out, 4, generator=generator)
        lora[f"{name[: -len('.weight')]}.lora_down.weight"] = 0.3 * torch.randn(4, inner, generator=generator)
    return lora


def with_lora(model: TinyModel, patcher: Any, way: str) -> Any:
    import comfy.sd

    lora = lora_of(model)
    if way == "loader":
        return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]
    patched_model = patcher.clone()
    ends = (".lora_up.weight", ".lora_down.weight")
    names = {name.removesuffix(end) for name in lora for end in ends if name.endswith(end)}
    differences = {f"{name}.weight": ("diff", (lora[name + ends[0]] @ lora[name + ends[1]],)) for name in names}
    assert len(patched_model.add_patches(differences, 1.0)) == len(differences)
    return patched_model


@pytest.mark.parametrize("name", ["wan", "hunyuan", "sd15"])
@pytest.mark.parametrize("way", ["loader", "differences"])
def test_lora_in_either_order(name: str, way: str) -> None:
    import comfy.model_management

    model = tiny(name)
    comfy.model_management.unload_all_models()
    before = weights(model)
    guide, spans = guide_of(name, "separate"), spans_of(name)
    plain = with_lora(model, model.patcher, way)
    first = sample(model, patched(model, guide, spans, plain), steps=1)
    last = sample(model, with_lora(model, patched(model, guide, spans), way), steps=1)
    assert torch.equal(first, last)
    expected = sample(model, hang_reference(model, plain)[0], steps=1)
    assert relative(first, expected) < EXACT
    assert relative(first, sample(model, plain, steps=1)) > CLEAR
    assert relative(first, sample(model, patched(model, guide, spans), steps=1)) > CLEAR
    comfy.model_management.unload_all_models()
    assert_weights(model, before)


# --- quantised weights ------------------------------------------------------------------------------------------------


def blockwise_operations() -> Any:
    """Layers as those that ComfyUI-GGUF makes: the weight is stored in bytes and dequantised at each call."""
    import comfy.ops

    class Blockwise(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            """Sixteenths of the greatest entry of each row, as bytes that are no number of their own."""

            def quantise(self) -> None:
                scale = self.weight.abs().amax(dim=1, keepdim=True) / 127.0
                stored = (self.weight / scale).round().to(torch.int8).view(torch.uint8)
                del self.weight
                self.weight = torch.nn.Parameter(stored, requires_grad=False)
                self.register_buffer("scale", scale)

            def forward_comfy_cast_weights(self, hidden: Tensor) -> Tensor:
                weight = self.weight.view(torch.int8).to(hidden.dtype) * self.scale
                return torch.nn.functional.linear(hidden, weight, self.bias)

    return Blockwise


def eighth_operations() -> Any:
    """ComfyUI's own layers of scaled weights of 8 bits; this machine computes with them in full precision."""
    import comfy.ops

    return comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.float32, disabled={"float8_e4m3fn"})


def eighth_weights(model: Any) -> dict[str, Tensor]:
    """The weights of a network as a file of ComfyUI's has them: attention in 8 bits with a scale for each layer."""
    state = dict(model.state_dict())
    layout = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    for name in [name for name in state if "attn." in name and name.endswith((".q.weight", ".k.weight", ".v.weight"))]:
        scale = state[name].abs().amax() / torch.finfo(torch.float8_e4m3fn).max
        layer = name.removesuffix(".weight")
        state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
        state |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": layout}
    return state


def quantised_wan(operations: Any) -> TinyModel:
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.WAN21_T2V({**comfy.supported_models.WAN21_T2V.unet_config, **WAN})
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = operations
    with torch.no_grad():
        model = config.get_model({})
        if operations.__name__ == "MixedPrecisionOps":
            model.diffusion_model.load_state_dict(eighth_weights(tiny("wan").patcher.model.diffusion_model))
        else:
            randomise(model.diffusion_model)
        for layer in model.modules():
            if hasattr(layer, "quantise"):
                layer.quantise()
    model.eval()
    device = torch.device("cpu")
    return TinyModel("wan", lambda: comfy.model_patcher.ModelPatcher(model, device, device), WAN_LATENTS, 32)


@pytest.mark.parametrize(
    ("operations", "stored"), [(blockwise_operations, torch.uint8), (eighth_operations, torch.float8_e4m3fn)]
)
def test_quantised_models_are_known_and_guided(operations: Any, stored: torch.dtype) -> None:
    model = quantised_wan(operations())
    kinds = {value.dtype for name, value in model.patcher.model.state_dict().items() if name.endswith("attn.q.weight")}
    assert kinds == {stored}
    assert require_supported(model.patcher)[0].name.startswith("Wan")
    before = weights(model)
    plain = sample(model, steps=1)
    guided = sample(model, patched(model, guide_of("wan", "separate"), spans_of("wan")), steps=1)
    hung, reference = hang_reference(model, model.patcher)
    assert relative(guided, sample(model, hung, steps=1)) < EXACT
    assert reference.model_calls == 1
    assert relative(guided, plain) > CLEAR
    assert torch.equal(plain, sample(model, steps=1))
    assert_weights(model, before)
