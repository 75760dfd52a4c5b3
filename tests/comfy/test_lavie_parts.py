"""Text encoder and VAE out of Stable Diffusion's files, at their real sizes and through the host's own detection."""

from __future__ import annotations

import pytest
import torch
from hollow_checkpoints import save_sd1, save_sd1_folder, save_x4

from mask_guided_video.backbones.native_parts import load_parts
from mask_guided_video.video_models.lavie_config import LaVieConfig, UpscalerConfig

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.usefixtures("as_in_a_node")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    save_sd1(place / "sd1.ckpt")
    save_x4(place / "x4.ckpt")
    save_sd1_folder(place / "stable-diffusion-v1-4")
    return place


def check(clip, vae, width, factor):
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a red ball"))[0][0]
    other = clip.encode_from_tokens_scheduled(clip.tokenize("a blue dog"))[0][0]
    assert text.shape == (1, 77, width) and text.isfinite().all() and not torch.equal(text, other)
    pictures = vae.decode(torch.randn(1, 4, 4, 4))
    assert pictures.shape == (1, 4 * factor, 4 * factor, 3) and pictures.std() > 0


@pytest.mark.parametrize("name", ["sd1.ckpt", "stable-diffusion-v1-4"])
def test_stable_diffusion_1(folder, name):
    clip, vae = load_parts(folder / name, LaVieConfig())
    check(clip, vae, 768, 8)
    with pytest.raises(ValueError, match=f"{name} holds the text encoder l but LaVie's upscaler reads h; choose.*x4"):
        load_parts(folder / name, UpscalerConfig())


def test_x4_upscaler(folder):
    clip, vae = load_parts(folder / "x4.ckpt", UpscalerConfig())
    check(clip, vae, 1024, 4)
    narrow = UpscalerConfig(cross_attention_dim=32)
    # Of another width, only the VAE can tell.
    assert load_parts(folder / "x4.ckpt", narrow)[1].spacial_compression_decode() == 4
    with pytest.raises(ValueError, match="makes 4 pixels of a latent cell.*base model; choose a Stable Diffusion 1.x"):
        load_parts(folder / "x4.ckpt", LaVieConfig(cross_attention_dim=32))


def test_what_is_missing_is_named(folder, tmp_path):
    contents = torch.load(folder / "sd1.ckpt", weights_only=True)["state_dict"]
    for part, prefix in (("text encoder", "cond_stage_model."), ("VAE", "first_stage_model.")):
        left = {name: value for name, value in contents.items() if not name.startswith(prefix)}
        torch.save({"state_dict": left}, tmp_path / "part.ckpt")
        with pytest.raises(ValueError, match=f"part.ckpt holds no {part}; choose a Stable Diffusion 1.x checkpoint"):
            load_parts(tmp_path / "part.ckpt", LaVieConfig())
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt is no checkpoint that ComfyUI knows"):
        load_parts(tmp_path / "other.ckpt", LaVieConfig())
    (tmp_path / "cut.ckpt").write_bytes((folder / "sd1.ckpt").read_bytes()[:100_000])
    with pytest.raises(RuntimeError, match="cut.ckpt cannot be read.*get it again"):
        load_parts(tmp_path / "cut.ckpt", LaVieConfig())
    (tmp_path / "empty" / "vae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="text_encoder holds none of model.safetensors"):
        load_parts(tmp_path / "empty", LaVieConfig())
