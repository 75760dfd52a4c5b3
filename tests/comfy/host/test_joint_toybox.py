"""The joint Toybox model inside ComfyUI: agreement with the stand-alone model, guided and not."""

from __future__ import annotations

import pytest
import torch

from mask_guided_video.video_models.joint.config import JointConfig
from mask_guided_video.video_models.joint.transformer import JointVideoTransformer

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

PROMPT = "a red ball stays still and a blue square moves left on grass"
PHRASES = ("red ball", "blue square")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny network with random weights, which reads the Toybox's text encoder."""
    from safetensors.torch import save_file

    config = JointConfig(width=32, depth=2, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = JointVideoTransformer(config)
        for block in network.blocks:
            torch.nn.init.normal_(block.modulation, std=0.3)
    path = tmp_path_factory.mktemp("joint")
    save_file(network.state_dict(), path / "model.safetensors")
    config.save(path / "config.json")
    return path


@pytest.fixture(scope="module")
def models(folder):
    from mask_guided_video.host.models.loading import load_native_joint_toybox
    from mask_guided_video.host.sampling.comfy_video_model import ComfyVideoModel
    from mask_guided_video.video_models.joint.model import load_joint_toybox

    return load_joint_toybox(folder=folder), ComfyVideoModel(*load_native_joint_toybox(folder))


def latents(model, mode: str = "", strength: float = 1.0) -> torch.Tensor:
    from mask_guided_video.attention_patches.guidance.guide import Guide
    from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
    from mask_guided_video.attention_patches.guidance.patch import guide_patches

    patches = ()
    if mode:
        masks = torch.zeros(2, 3, 32, 32)
        masks[0, ..., 4:16], masks[1, ..., 20:30] = 1.0, 1.0
        guide = Guide(masks, make_mode(mode), PHRASES, strength=strength)
        patches = guide_patches(guide, model.token_spans(PROMPT, PHRASES))
    prompts = model.encode_prompt(PROMPT), model.encode_prompt("")
    return model.sample(model.noise(3, 32, 32, seed=7), *prompts, steps=4, patches=patches)


@pytest.mark.parametrize("mode", ["", "cross_text", "separate", "focus_fg"])
def test_stand_alone_and_comfyui_agree(models, mode: str) -> None:
    alone, hosted = models
    assert hosted.block_names == alone.block_names and hosted.geometry.native_frames == 8
    assert hosted.token_spans(PROMPT, PHRASES).positions == alone.token_spans(PROMPT, PHRASES).positions
    first, second = latents(alone, mode), latents(hosted, mode)
    torch.testing.assert_close(first, second, atol=2e-3, rtol=1e-3)
    if mode:
        assert float((second - latents(hosted)).abs().max()) > 0.01
        assert torch.equal(latents(hosted, mode, strength=0.0), latents(hosted))


def test_it_is_a_joint_model_to_the_nodes(models) -> None:
    from mask_guided_video.backbones.registry import require_supported

    family, network = require_supported(models[1].model)
    grid = family.grids(network, (1, 4, 8, 16, 12), {})[0]
    assert family.joint_text and (grid.frames, grid.rows, grid.columns) == (8, 8, 6)


def test_a_prompt_of_another_text_encoder_is_named(models) -> None:
    model = models[1].model.model
    with pytest.raises(ValueError, match="32 channels but this model reads 64"):
        model.extra_conds(cross_attn=torch.zeros(1, 24, 32), noise=torch.zeros(1, 4, 2, 8, 8), device="cpu")
