"""Guidance on a model that ComfyUI-GGUF loads from a file of quantised weights, with its own loader and layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from company import CLEAR, EXACT
from native_guides import dense, guide_of, patched, relative, spans_of
from native_models import WAN, WAN_LATENTS, TinyModel, build, sample
from packs import GGUF, load_pack, run_node

from mask_guided_video.backbones.registry import require_supported

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node", "kernels_of_long_films")]

FILE = "tiny_wan-Q8_0.gguf"


@pytest.fixture(scope="module")
def gguf_pack(comfy_folder: Path) -> ModuleType:
    return load_pack(comfy_folder, GGUF, "comfyui_gguf", "gguf")


@pytest.fixture(scope="module")
def quantised(gguf_pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Wan of one head as the pack's converter writes it: matrices in blocks of 32 bytes and a scale."""
    import folder_paths
    import gguf

    network = build("WAN21_T2V", {**WAN, "dim": 128, "num_heads": 1, "freq_dim": 256}).model.diffusion_model
    folder = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(path=None, arch="wan")
    for name, weight in network.state_dict().items():
        values = weight.float().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quants.quantize(values, kind)
        elif weight.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(weight.shape))
            values = values.reshape(weight.shape[0], -1)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file(path=folder / FILE)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    folder_paths.add_model_folder_path("unet", str(folder))
    folder_paths.add_model_folder_path("unet_gguf", str(folder))
    yield folder


def with_lora(patcher: Any) -> Any:
    """A LoRA's differences on the attention of the first block, which the pack adds as it dequantises."""
    generator = torch.Generator().manual_seed(5)
    patcher = patcher.clone()
    key = "diffusion_model.blocks.0.self_attn.q.weight"
    assert patcher.add_patches({key: ("diff", (0.1 * torch.randn(128, 128, generator=generator),))}) == [key]
    return patcher


@pytest.mark.parametrize("order", ["no lora", "lora first", "ours first"])
def test_quantised_file_is_guided(gguf_pack: ModuleType, quantised: Path, order: str) -> None:
    loaded = run_node(gguf_pack, "UnetLoaderGGUF", unet_name=FILE)
    stored = loaded.model.diffusion_model.blocks[0].self_attn.q.weight
    assert stored.dtype == torch.uint8 and stored.tensor_type.name == "Q8_0"
    assert require_supported(loaded)[0].name.startswith("Wan")
    changed = loaded if order == "no lora" else with_lora(loaded)
    model = TinyModel("wan", lambda: changed, WAN_LATENTS, 32)
    guide = partial(patched, model, guide_of("wan", "separate"), spans_of("wan"))
    film = sample(model, with_lora(guide(loaded)) if order == "ours first" else guide(changed))
    expected = sample(model, dense(model, guide_of("wan", "separate"), spans_of("wan")).hang(changed))
    assert relative(film, expected) < EXACT
    assert relative(film, sample(model, changed)) > CLEAR
    if order != "no lora":
        assert relative(film, sample(model, guide(loaded))) > CLEAR
    assert type(guide(loaded)).__name__ == "GGUFModelPatcher"
