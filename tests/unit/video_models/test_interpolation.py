"""Frames in between, with a tiny random model against a loop written out here."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_lavie_files import tiny_unet
from tiny_stable_diffusion import tiny_clip, tiny_vae, write_tokenizer

from mask_guided_video.attention_patches.free_long import FreeLong, FreeLongPatch
from mask_guided_video.video_models.frame_coding import FrameCoder
from mask_guided_video.video_models.interpolation import Interpolator, interpolated_frames, source_indices
from mask_guided_video.video_models.text_encoding import PromptEncoder


@pytest.fixture(scope="module")
def interpolator(tmp_path_factory) -> Interpolator:
    from transformers import CLIPTokenizer

    folder = write_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer")
    text = PromptEncoder(tiny_clip(), CLIPTokenizer.from_pretrained(str(folder)), padding_is_read=True)
    return Interpolator(tiny_unet("interpolation"), text, FrameCoder(tiny_vae()))


def film(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(3))


def test_which_frame_is_made_from_which() -> None:
    found = source_indices(16).tolist()
    assert interpolated_frames(16) == len(found) == 61
    assert found[:11] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2] and found[-2:] == [15, 15]
    repeated = [frame for frame in range(16) for _ in range(4)]
    assert found == repeated[1:-2]
    assert all(found[4 * frame] == frame for frame in range(16))


def by_hand(model: Interpolator, frames: torch.Tensor, prompt: str, steps: int, cfg: float, seed: int) -> torch.Tensor:
    """DDIM with linear betas 1e-4 to 0.02, eps-prediction, from the formula; returns latents."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    vae = model.coder.vae
    with torch.inference_mode():
        latents = vae.encode(frames.movedim(-1, 1) * 2 - 1).latent_dist.mode() * 0.18215
        context = torch.cat([model.text.encode(text, model.device).embedding for text in (prompt + ", 4k.", "None")])
        given = latents[source_indices(len(frames))].transpose(0, 1)[None]
        x = torch.randn(given.shape, generator=torch.Generator().manual_seed(seed))
        timesteps = [1 + n * (1000 // steps) for n in reversed(range(steps))]
        # Unit noise at the level of the first step, as ComfyUI has it.
        x = x * math.sqrt(1 - float(alpha_bar[timesteps[0]]))
        for number, timestep in enumerate(timesteps):
            now = float(alpha_bar[timestep])
            after = float(alpha_bar[timesteps[number + 1]]) if number + 1 < steps else 1.0
            both = torch.cat([x, given], dim=1).repeat(2, 1, 1, 1, 1)
            options = {"cond_or_uncond": [0, 1]}
            out = model.unet(both, torch.full((2,), float(timestep)), context, transformer_options=options)
            noise = out[1:] + cfg * (out[:1] - out[1:])
            clean = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
            x = math.sqrt(after) * clean + math.sqrt(1 - after) * noise
        return x


def test_it_is_the_formula(interpolator) -> None:
    frames, seen = film(3), []
    made = interpolator.interpolate(
        frames, "a red ball", steps=4, seed=5, callback=lambda step, total, clean: seen.append((step, total, clean))
    )
    assert made.shape == (9, 16, 24, 3) and [entry[:2] for entry in seen] == [(n, 4) for n in range(1, 5)]
    expected = by_hand(interpolator, frames, "a red ball", 4, 4.0, 5)
    torch.testing.assert_close(seen[-1][2], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made, torch.cat(list(interpolator.coder.decode_parts(expected, torch.device("cpu")))),
                               atol=1e-4, rtol=0)  # fmt: skip


def test_any_size_and_two_frames(interpolator) -> None:
    made = interpolator.interpolate(film(2, 13, 22), "", steps=1, cfg=1.0)
    assert made.shape == (5, 13, 22, 3) and 0 <= float(made.min()) and float(made.max()) <= 1


def windows_seen(model: Interpolator, monkeypatch) -> list[tuple[int, ...]]:
    """Which frames of the result the U-Net is shown, from now on."""
    seen: list[tuple[int, ...]] = []
    forward = model.unet.forward

    def watch(x, *arguments, transformer_options, **options):
        window = transformer_options.get("context_window")
        seen.append(tuple(window.index_list) if window else tuple(range(x.shape[2])))
        return forward(x, *arguments, transformer_options=transformer_options, **options)

    monkeypatch.setattr(model.unet, "forward", watch)
    return seen


def test_long_films_go_in_windows_that_begin_at_given_frames(interpolator, monkeypatch) -> None:
    """The tiny model's native length is 13 frames, 4 of them given; 9 given frames make 33."""
    seen = windows_seen(interpolator, monkeypatch)
    parts = list(interpolator.interpolate_parts(film(9), "a red ball", steps=1, overlap=2))
    assert [len(part) for part in parts] == [8, 8, 8, 8, 1]
    assert [(frames[0], frames[-1]) for frames in seen] == [(0, 12), (8, 20), (16, 28), (20, 32)]
    assert all(frames[0] % 4 == 0 for frames in seen)
    seen.clear()
    # A quarter of the window is shared where nothing is said.
    interpolator.interpolate(film(9), "a red ball", steps=1)
    assert [frames[0] for frames in seen] == [0, 12, 20]


def test_the_whole_film_at_once_where_that_is_asked(interpolator, monkeypatch) -> None:
    seen = windows_seen(interpolator, monkeypatch)
    frames = film(9)
    plain = interpolator.interpolate(frames, "a red ball", steps=1, window=0)
    patch = FreeLongPatch(FreeLong(window=13))
    guided = interpolator.interpolate(frames, "a red ball", steps=1, window=0, patches=[patch])
    assert {len(found) for found in seen} == {33}
    assert not torch.equal(plain, guided) and bool(guided.isfinite().all())
    short = interpolator.interpolate(film(3), "", steps=1)
    assert torch.equal(short, interpolator.interpolate(film(3), "", steps=1, patches=[patch]))


def test_windows_agree_with_the_whole_where_frames_do_not_meet(interpolator, monkeypatch) -> None:
    """With the windows' answers replaced by something that depends on the frame alone, nothing of them shows."""

    def one_by_one(x, *_, **__):
        return torch.tanh(x[:, :4] + x[:, 4:])

    monkeypatch.setattr(interpolator.unet, "forward", one_by_one)
    frames = film(9)
    whole = interpolator.interpolate(frames, "", steps=3, window=0)
    torch.testing.assert_close(interpolator.interpolate(frames, "", steps=3, overlap=1), whole, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_film_also_after_a_cancelled_run(interpolator) -> None:
    def cancel(*_) -> None:
        raise KeyboardInterrupt

    first = interpolator.interpolate(film(3), "a", steps=2, seed=1)
    with pytest.raises(KeyboardInterrupt):
        interpolator.interpolate(film(3), "a", steps=2, seed=1, callback=cancel)
    assert torch.equal(first, interpolator.interpolate(film(3), "a", steps=2, seed=1))
    assert not torch.equal(first, interpolator.interpolate(film(3), "a", steps=2, seed=2))


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (film(1), {}, "1 frame; give at least 2"),
        (film(2)[..., :1], {}, "give floating-point frames"),
        ((film(2) * 255).byte(), {}, "torch.uint8"),
        (torch.full((2, 8, 8, 3), math.nan), {}, "NaN"),
        (film(2), {"steps": 0}, "steps is 0"),
        (film(2), {"cfg": -1.0}, "cfg is -1"),
        (film(9), {"window": 1}, "window is 1"),
        (film(9), {"overlap": 0}, "overlap 0 given frames"),
        (film(9), {"overlap": 4}, "overlap 4 given frames"),
    ],
)
def test_bad_input_is_named_before_any_work(interpolator, monkeypatch, frames, options, message: str) -> None:
    monkeypatch.setattr(interpolator.coder, "encode", None)
    with pytest.raises(ValueError, match=message):
        interpolator.interpolate_parts(frames, "", **options)
