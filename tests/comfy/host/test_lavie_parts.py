"""Text encoder and VAE out of Stable Diffusion's files, at their real sizes and through the host's own detection."""

from __future__ import annotations

import pytest
import torch
from hollow_checkpoints import save_sd1, save_sd1_folder, save_x4

from mask_guided_video.host.models.native_parts import load_parts
from mask_guided_video.video_models.lavie.config import LaVieConfig, UpscalerConfig

pytestmark = [pytest.mark.comfy, pytest.mark.slow, pytest.mark.usefixtures("as_in_a_node")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    save_sd1(place / "sd1.ckpt")
    save_x4(place / "x4.ckpt")
    save_sd1_folder(place / "stable-diffusion-v1-4")
    return place


@pytest.fixture(scope="module")
def tokenizer(comfy_folder):
    return comfy_folder / "comfy" / "sd1_tokenizer"


def check(clip, vae, width, factor):
    text = encoded(clip, "a red ball")
    assert text.shape == (1, 77, width) and text.isfinite().all() and not torch.equal(text, encoded(clip, "a dog"))
    pictures = vae.decode(torch.randn(1, 4, 4, 4))
    assert pictures.shape == (1, 4 * factor, 4 * factor, 3) and pictures.std() > 0


def encoded(clip, prompt):
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]


def check_stand_alone(path, tokenizer, clip, vae):
    """The same files read without ComfyUI give the same texts, films and latents."""
    from mask_guided_video.host.models.native_vae import framewise_vae
    from mask_guided_video.video_models.stable_diffusion import parts as stable_diffusion_parts

    alone = stable_diffusion_parts.load_parts(path, tokenizer)
    device, scale = torch.device("cpu"), alone.coder.vae.config.scaling_factor
    for prompt in ("a red ball", ""):
        # ComfyUI's text encoders are half precision.
        expected = alone.text.encode(prompt, device).embedding
        torch.testing.assert_close(encoded(clip, prompt).float(), expected, atol=0.02, rtol=0)
    latents, frames, vae = torch.randn(1, 4, 2, 4, 4), torch.rand(2, 32, 32, 3), framewise_vae(vae)
    films = torch.cat(list(alone.coder.decode_parts(latents * scale, device)))
    torch.testing.assert_close(vae.decode(latents)[0], films, atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.encode(frames), alone.coder.encode(frames, device) / scale, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["sd1.ckpt", "stable-diffusion-v1-4"])
def test_stable_diffusion_1(folder, name, tokenizer):
    clip, vae = load_parts(folder / name, LaVieConfig())
    check(clip, vae, 768, 8)
    if name.endswith(".ckpt"):
        check_stand_alone(folder / name, tokenizer, clip, vae)
    with pytest.raises(ValueError, match=f"{name} holds the text encoder l but LaVie's upscaler reads h; choose.*x4"):
        load_parts(folder / name, UpscalerConfig())


def test_x4_upscaler(folder, tokenizer):
    clip, vae = load_parts(folder / "x4.ckpt", UpscalerConfig())
    check(clip, vae, 1024, 4)
    check_stand_alone(folder / "x4.ckpt", tokenizer, clip, vae)
    # Where the width of the text does not tell, the VAE does.
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
    with pytest.raises(ValueError, match="other.ckpt is not a checkpoint that ComfyUI knows"):
        load_parts(tmp_path / "other.ckpt", LaVieConfig())
    (tmp_path / "cut.ckpt").write_bytes((folder / "sd1.ckpt").read_bytes()[:100_000])
    with pytest.raises(RuntimeError, match="cut.ckpt cannot be read.*get it again"):
        load_parts(tmp_path / "cut.ckpt", LaVieConfig())
    (tmp_path / "empty" / "vae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="text_encoder holds none of model.safetensors"):
        load_parts(tmp_path / "empty", LaVieConfig())
