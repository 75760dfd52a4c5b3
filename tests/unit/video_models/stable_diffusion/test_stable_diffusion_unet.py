"""Stable Diffusion 1's U-Net as a model of clips: names, sizes, agreement with diffusers, and other files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_picture_unet import WIDTHS, original_unet_names, tiny_picture_unet
from tiny_stable_diffusion import tiny_clip, tiny_vae, under, write_checkpoint, write_folder, write_tokenizer

from mask_guided_video.attention_patches.frame_keys import key_places
from mask_guided_video.recipes.convert_weights import convert_weights
from mask_guided_video.video_models.lavie.config import LaVieConfig
from mask_guided_video.video_models.lavie.files import infer_config, make_unet, open_unet, unet_state
from mask_guided_video.video_models.lavie.models import open_lavie
from mask_guided_video.video_models.sampling.noise_schedule import alphas_cumprod
from mask_guided_video.video_models.stable_diffusion.unet import picture_unet_names


@pytest.fixture(scope="module")
def picture_unet():
    return tiny_picture_unet()


@pytest.fixture(scope="module")
def checkpoint(picture_unet, tmp_path_factory):
    """A whole checkpoint in the original's names."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder / "tokenizer")
    path = write_checkpoint(folder / "tiny.ckpt", tiny_clip(), tiny_vae())
    contents = torch.load(path, weights_only=True)
    unet = under("model.diffusion_model.", original_unet_names(picture_unet.state_dict(), len(WIDTHS)))
    del contents["state_dict"]["model.diffusion_model.out.2.bias"]
    torch.save({**contents, "state_dict": {**contents["state_dict"], **unet}}, path)
    return path


def test_full_size_has_every_tensor_of_stable_diffusion_1():
    """Under both names: the 686 of its files, of which 859.5 million numbers are."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        theirs = UNet2DConditionModel(
            cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            block_out_channels=(320, 640, 1280, 1280),
        ).state_dict()
    original = original_unet_names(theirs, levels=4)
    assert original["output_blocks.8.2.conv.weight"].shape == (640, 640, 3, 3)
    assert original["output_blocks.2.1.conv.weight"].shape == (1280, 1280, 3, 3)
    assert original["input_blocks.3.0.op.weight"].shape == (320, 320, 3, 3)
    for state in (theirs, under("model.diffusion_model.", original)):
        state = unet_state(state)
        config = infer_config(state)
        assert config == LaVieConfig(
            picture_model=True, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        ours = make_unet(config, device="meta").state_dict()
        assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in state.items()}
        assert len(ours) == 686
        assert sum(value.numel() for value in ours.values()) == 859_520_964


@pytest.mark.parametrize("original", [False, True])
def test_one_frame_is_a_picture_of_diffusers(picture_unet, original):
    state = picture_unet.state_dict()
    state = unet_state(original_unet_names(state, len(WIDTHS)) if original else state)
    unet = make_unet(infer_config(state)).eval()
    unet.load_state_dict(state)
    generator = torch.Generator().manual_seed(3)
    pictures, text = torch.randn(2, 4, 10, 6, generator=generator), torch.randn(2, 5, 64, generator=generator)
    with torch.no_grad():
        theirs = picture_unet(pictures, torch.tensor([17, 804]), text).sample
        ours = unet(pictures[:, :, None], torch.tensor([17.0, 804.0]), text)
        clip = unet(pictures.transpose(0, 1)[None], torch.tensor([17.0]), text[:1])
        alone = unet(pictures[:1, :, None], torch.tensor([17.0]), text[:1])
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours[:, :, 0], theirs, rtol=1e-4, atol=1e-5)
    # Frames of one clip share norms, and look at the first.
    assert (clip[:, :, :1] - alone).abs().max() > 1e-3


def test_later_frames_look_at_the_first_alone(picture_unet):
    """With the shared norms undone, what the second frame becomes changes with the first, not with the third."""
    state = unet_state(picture_unet.state_dict())
    unet = make_unet(infer_config(state)).eval()
    unet.load_state_dict(state)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    kept = []
    hook = attention.to_out[0].register_forward_hook(lambda module, given, result: kept.append(result))
    tokens = torch.randn(3, 6, 64, generator=torch.Generator().manual_seed(1))
    places = key_places("first", (0, 1, 2))
    for changed in (None, 0, 2):
        given = tokens.clone()
        if changed is not None:
            given[changed] += 1
        with torch.no_grad():
            attention(given, places, {})
    hook.remove()
    assert unet.mid_block.attentions[0].transformer_blocks[0].key_source == "first"
    assert not torch.equal(kept[0][1], kept[1][1])
    assert torch.equal(kept[0][1], kept[2][1])


def test_a_checkpoint_and_a_folder_open_alike(picture_unet, checkpoint, tmp_path):
    folder = write_folder(tmp_path / "folder", tiny_clip(), tiny_vae())
    picture_unet.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    from_file, from_folder = open_unet(checkpoint), open_unet(folder)
    assert from_file[1] == from_folder[1]
    assert from_file[0].keys() == from_folder[0].keys()
    assert all(torch.equal(value, from_folder[0][name]) for name, value in from_file[0].items())
    films = []
    for model in (open_lavie(checkpoint), open_lavie(folder, checkpoint)):
        assert (model.geometry.native_frames, model.geometry.spatial_factor) == (16, 8)
        prompt, empty = model.encode_prompt("red ball"), model.encode_prompt("")
        films.append(model.sample(model.noise(2, 16, 24, seed=1), prompt, empty, steps=2, cfg=3.0))
    assert films[0].shape == (1, 4, 2, 2, 3)
    assert torch.equal(*films)


def test_a_folder_tells_heads_groups_and_prediction(tmp_path):
    unet = tiny_picture_unet(heads=4)
    unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    config = open_unet(tmp_path)[1]
    assert (config.num_heads, config.norm_num_groups, config.prediction_type) == (4, 32, "v_prediction")


def test_the_schedule_is_stable_diffusions():
    """Its product of 1 - beta after all 1000 steps, and after the first."""
    alpha_bar = alphas_cumprod(LaVieConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))
    assert alpha_bar[0].item() == pytest.approx(0.99915)
    assert alpha_bar[-1].item() == pytest.approx(0.00466, abs=1e-5)


def test_other_programs_notes_beside_a_checkpoint_do_no_harm(checkpoint, tmp_path):
    copy = tmp_path / "model.ckpt"
    copy.write_bytes(checkpoint.read_bytes())
    copy.with_suffix(".json").write_text('{"sd version": "SD1"}')
    assert open_unet(copy)[1].picture_model


def test_what_it_is_not(picture_unet, tmp_path):
    state = picture_unet.state_dict()
    linear = {n: v[:, :, 0, 0].clone() if n.endswith("proj_in.weight") else v for n, v in state.items()}
    with pytest.raises(ValueError, match="as Stable Diffusion 2 or XL"):
        picture_unet_names(linear)
    with pytest.raises(ValueError, match="label_emb.0.0.weight"):
        picture_unet_names({**state, "label_emb.0.0.weight": torch.zeros(1)})
    inpainting = {**state, "conv_in.weight": torch.zeros(32, 9, 3, 3)}
    save_file(inpainting, tmp_path / "inpainting.safetensors")
    with pytest.raises(ValueError, match="inpainting.safetensors.*9 input channels"):
        open_unet(tmp_path / "inpainting.safetensors")
    del state["mid_block.resnets.1.conv2.bias"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 tensors \(first: mid_block.resnets.1.conv2.bias\)"):
        open_unet(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError, match="unet"):
        open_unet(tmp_path)
    with pytest.raises(ValueError, match="only the base stage"):
        LaVieConfig(stage="interpolation", picture_model=True)


def test_a_checkpoint_becomes_a_small_file_of_the_unet_alone(picture_unet, checkpoint, tmp_path):
    target = tmp_path / "unet.safetensors"
    convert_weights(checkpoint, target, "float16")
    state, config = open_unet(target)
    assert config == open_unet(checkpoint)[1]
    assert len(state) == len(picture_unet.state_dict()) and state["conv_in.weight"].dtype == torch.float16
    with pytest.raises(ValueError, match="holds no text encoder"):
        open_lavie(target)
