"""Films enlarged, with a tiny random model against a loop written out here."""

from __future__ import annotations

import math

import pytest
import torch
from guides import plain_guide
from tiny_lavie_files import CONFIGS, tiny_unet
from tiny_stable_diffusion import tiny_clip, tiny_vae, write_tokenizer

from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.video_models.frame_coding import FrameCoder
from mask_guided_video.video_models.sampling.denoising import Conditions, sample_latents
from mask_guided_video.video_models.sampling.noise_schedule import square_root_alphas_cumprod
from mask_guided_video.video_models.text_encoding import PromptEncoder, TextEmbedding
from mask_guided_video.video_models.upscaling import Upscaler, noised_pictures


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory) -> Upscaler:
    from transformers import CLIPTokenizer

    folder = write_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer", pad="!")
    text = PromptEncoder(tiny_clip(128, activation="gelu"), CLIPTokenizer.from_pretrained(str(folder)), True)
    return Upscaler(tiny_unet("upscaling"), text, FrameCoder(tiny_vae(3, scaling_factor=0.08333)))


def film(frames: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(3))


def test_noise_in_the_small_pictures_is_stable_diffusions() -> None:
    from diffusers import DDPMScheduler

    frames, config = film(3), CONFIGS["upscaling"]
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear")
    noise = torch.randn(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    expected = scheduler.add_noise(frames.movedim(-1, 0)[None] * 2 - 1, noise, torch.tensor([50]))
    torch.testing.assert_close(noised_pictures(frames, 50, 7, config), expected, atol=1e-5, rtol=1e-5)
    # Betas (0.01 + 0.13142 n / 999)^2: the first is 1e-4, and fifty more make this.
    alpha_bar = square_root_alphas_cumprod(config)
    assert float(alpha_bar[0]) == pytest.approx(0.9999) and float(alpha_bar[50]) == pytest.approx(0.990844, abs=1e-5)
    # The latents' noise of the same seed is another.
    latents = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    assert abs(float((latents[:, :3] * noise).mean())) < 0.1


def by_hand(model: Upscaler, frames: torch.Tensor, prompt: str, steps: int, seed: int) -> torch.Tensor:
    """DDIM with linear betas and v-prediction from the formula, CFG 5, noise level 50; returns latents."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    pictures = noised_pictures(frames, 50, seed, model.unet.config)
    negative = "blur, worst quality"
    with torch.inference_mode():
        context = torch.cat([model.text.encode(text, model.device).embedding for text in (prompt, negative)])
        size = (1, 4, *pictures.shape[2:])
        x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        timesteps = [1 + n * (1000 // steps) for n in reversed(range(steps))]
        # Unit noise at the level of the first step, as ComfyUI has it.
        x = x * math.sqrt(1 - float(alpha_bar[timesteps[0]]))
        for number, timestep in enumerate(timesteps):
            now = float(alpha_bar[timestep])
            after = float(alpha_bar[timesteps[number + 1]]) if number + 1 < steps else 1.0
            out = model.unet(
                torch.cat([x, pictures], dim=1).repeat(2, 1, 1, 1, 1), torch.full((2,), float(timestep)), context,
                class_labels=torch.tensor([50, 50]), transformer_options={"cond_or_uncond": [0, 1]},
            )  # fmt: skip
            velocity = out[1:] + 5.0 * (out[:1] - out[1:])
            clean = math.sqrt(now) * x - math.sqrt(1 - now) * velocity
            noise = math.sqrt(now) * velocity + math.sqrt(1 - now) * x
            x = math.sqrt(after) * clean + math.sqrt(1 - after) * noise
        return x


def test_it_is_the_formula(upscaler) -> None:
    frames, seen = film(3), []
    made = upscaler.upscale(frames, "a red ball", steps=4, seed=5, callback=lambda *step: seen.append(step))
    assert made.shape == (3, 32, 32, 3) and upscaler.factor == 4 and len(seen) == 4
    expected = by_hand(upscaler, frames, "a red ball", 4, 5)
    torch.testing.assert_close(seen[-1][2], expected, atol=1e-4, rtol=1e-4)
    pictures = torch.cat(list(upscaler.coder.decode_parts(expected, torch.device("cpu"))))
    torch.testing.assert_close(made, pictures, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (2, 7, 5), (9, 4, 6)])
def test_any_size_and_length(upscaler, frames: int, height: int, width: int) -> None:
    made = upscaler.upscale(film(frames, height, width), steps=1, cfg=1.0)
    assert made.shape == (frames, 4 * height, 4 * width, 3) and bool(made.isfinite().all())


def test_the_noise_level_counts(upscaler) -> None:
    frames = film(2)
    levels = [upscaler.upscale(frames, steps=1, noise_level=level) for level in (0, 50, 350)]
    assert not torch.equal(levels[0], levels[1]) and not torch.equal(levels[1], levels[2])


def test_guidance_works_inside_of_windows(upscaler) -> None:
    frames = film(11)
    masks = torch.zeros(1, 11, 8, 8)
    masks[:, :, :4] = 1.0
    plain = upscaler.upscale(frames, steps=1)

    def guided(strength: float) -> torch.Tensor:
        patch = GuidePatch(plain_guide(masks=masks, mode="separate", strength=strength, end_percent=1.0))
        return upscaler.upscale(frames, steps=1, patches=[patch])

    assert torch.equal(plain, guided(0.0))
    assert not torch.equal(plain, guided(4.0)) and bool(guided(4.0).isfinite().all())


def jumps(latents: torch.Tensor) -> torch.Tensor:
    """Mean absolute change from frame to frame."""
    return (latents[:, :, 1:] - latents[:, :, :-1]).abs().mean(dim=(0, 1, 3, 4))


def test_overlap_leaves_no_seams_where_pieces_by_themselves_do() -> None:
    """A still film with the same noise in every frame: what changes over time is the model's doing alone.

    Pieces of eight by themselves, as in LaVie's script, jump where one ends; overlapping windows jump no more there
    than anywhere else.
    """
    cpu = torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    pictures = (torch.rand(1, 3, 1, 6, 6, generator=generator) * 2 - 1).expand(-1, -1, 24, -1, -1)
    noise = torch.randn(1, 4, 1, 6, 6, generator=generator).expand(-1, -1, 24, -1, -1)
    texts = [TextEmbedding("", torch.randn(1, 7, 128, generator=generator)) for _ in range(2)]
    unet = tiny_unet("upscaling")

    def seam(overlap: int) -> float:
        conditions = Conditions(*texts, 5.0, channels=pictures, class_label=50, window=8, overlap=overlap)
        found = jumps(sample_latents(unet, noise, conditions, cpu, steps=4))
        borders = torch.zeros(23, dtype=torch.bool)
        borders[[7, 15]] = True
        return float(found[borders].mean() / found[~borders].mean())

    assert seam(0) > 1.3 and seam(4) < 1.05


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (film(0), {}, "0 frames; give at least 1"),
        (film(1)[0], {}, "give floating-point frames"),
        (film(2), {"noise_level": 351}, "noise_level is 351; choose 0 to 350"),
        (film(2), {"noise_level": -1}, "noise_level is -1"),
        (film(9), {"overlap": 8}, "window is 8 and overlap 8"),
        (film(9), {"window": -1}, "window is -1"),
        (film(2), {"cfg": math.inf}, "cfg is inf"),
        (film(2), {"steps": 1001}, "steps is 1001"),
    ],
)
def test_bad_input_is_named_before_any_work(upscaler, monkeypatch, frames, options, message: str) -> None:
    monkeypatch.setattr(upscaler.text, "encode", None)
    with pytest.raises(ValueError, match=message):
        upscaler.upscale_parts(frames, **options)
