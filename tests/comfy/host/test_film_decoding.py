"""Decoding in slices: the whole film, in order, close to one call where the VAE mixes frames and equal where not."""

from __future__ import annotations

import pytest
import torch
from stand_in_models import make_vae
from tiny_model import randomise
from torch import nn

from mask_guided_video.host.sampling.film_decoding import decode_parts, decoded_frames, mixes_frames

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]


class Pictures(nn.Module):
    """A decoder of pictures, as Stable Diffusion's."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 3, 3, padding=1)
        self.called = []

    def decode(self, latents, **_):
        assert latents.ndim == 4
        self.called.append(len(latents))
        return nn.functional.interpolate(self.mix(latents), scale_factor=8.0)


def vae_with(family, decoder):
    """A VAE of a family's sizes around a decoder."""
    from comfy.model_patcher import ModelPatcher

    vae = make_vae(family)
    vae.first_stage_model = decoder.eval()
    vae.patcher = ModelPatcher(vae.first_stage_model, vae.device, vae.device)
    return vae


def wan_vae():
    """Wan's own VAE with few channels: causal over time, four frames a latent frame."""
    from comfy.ldm.wan.vae import WanVAE

    settings = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": []}
    decoder = WanVAE(**settings, temperal_downsample=[False, True, True])
    randomise(decoder)
    return vae_with("wan", decoder)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 17])
def test_films_of_pictures_are_those_of_one_call(native, frames):
    vae = native[2]
    latents = torch.randn(1, 4, frames, 8, 8)
    parts = list(decode_parts(vae, latents, frames_per_part=8, overlap=4))
    assert max(map(len, parts)) <= 8 and sum(map(len, parts)) == decoded_frames(vae, latents) == frames
    assert torch.equal(torch.cat(parts), vae.decode(latents)[0])


@pytest.mark.parametrize("shape", [(1, 4, 5, 4, 6), (5, 4, 4, 6)])
def test_vaes_of_pictures_decode_films(shape):
    vae = vae_with("sd15", Pictures())
    assert not mixes_frames(vae)
    parts = list(decode_parts(vae, torch.randn(shape), frames_per_part=2))
    assert [tuple(part.shape) for part in parts] == [(2, 32, 48, 3), (2, 32, 48, 3), (1, 32, 48, 3)]
    assert vae.first_stage_model.called == [2, 2, 1]


@pytest.mark.parametrize("family,factor", [("wan", 4), ("ltx", 8), ("hunyuan", 4)])
@pytest.mark.parametrize("frames_per_part", [1, 16, 40, 1000])
def test_frames_come_in_order_and_once(family, factor, frames_per_part):
    vae = make_vae(family)
    # Every latent frame has a level of its own, and the decoder tells nothing but it.
    latents = torch.linspace(-2.0, 2.0, 9)[None, None, :, None, None].expand(1, vae.latent_channels, 9, 2, 3)
    whole = vae.decode(latents)[0]
    film = torch.cat(list(decode_parts(vae, latents, frames_per_part, overlap=0)))
    assert film.shape == whole.shape and len(film) == decoded_frames(vae, latents) == 8 * factor + 1
    # One frame is shared, which both slices decode alike.
    torch.testing.assert_close(film, whole)


@pytest.mark.parametrize(("frames_per_part", "overlap"), [(1, 0), (22, 0), (40, 5), (40, 12), (1000, 12)])
def test_slices_of_chunks_begin_where_chunks_do(frames_per_part, overlap):
    """MiniMax H3's autoencoder makes 17 frames of 5 latent frames; a clip has 5 of 2 more."""
    vae = make_vae("wan")
    vae.upscale_ratio = (lambda count: max(1, (count - 2) // 5 * 17 + 5), 16, 16)
    starts = []

    def decode(latents):
        number = latents[0, 0, :, 0, 0].tolist()
        starts.append(int(number[0]))
        assert number[0] % 5 == 0 and len(number) % 5 == 2
        frames = [17 * first / 5 + frame for first in number[:-2:5] for frame in range(17)]
        return torch.tensor([*frames, *(17 * number[-2] / 5 + frame for frame in range(5))]).view(1, -1, 1, 1, 1)

    vae.decode = decode
    latents = torch.arange(37.0).view(1, 1, -1, 1, 1).expand(1, 16, -1, 1, 1)
    film = torch.cat(list(decode_parts(vae, latents, frames_per_part, overlap)))
    assert decoded_frames(vae, latents) == 124
    torch.testing.assert_close(film.flatten(), torch.arange(124.0))
    assert starts == sorted(set(starts))


def test_unknown_ways_of_counting_time_are_named():
    vae = make_vae("wan")
    vae.upscale_ratio = (lambda count: 3 * count, 8, 8)
    with pytest.raises(ValueError, match="makes 6 and 21 frames of 2 and 7 latent frames"):
        decode_parts(vae, torch.zeros(1, 16, 3, 2, 2))


@pytest.mark.parametrize("overlap", [8, 12])
def test_more_overlap_is_nearer_to_one_call(overlap):
    vae = wan_vae()
    latents = torch.randn(1, 16, 9, 4, 4, generator=torch.Generator().manual_seed(1))
    whole = vae.decode(latents)[0]
    parts = list(decode_parts(vae, latents, frames_per_part=17, overlap=overlap))
    film = torch.cat(parts)
    assert film.shape == whole.shape == (33, 32, 32, 3) and max(map(len, parts)) <= 17
    # The first slice knows all that the decoder of one call knows, for it looks back only.
    torch.testing.assert_close(parts[0], whole[: len(parts[0])], atol=1e-5, rtol=0)
    bare = torch.cat(list(decode_parts(vae, latents, frames_per_part=17, overlap=0)))
    assert (film - whole).abs().mean() < (bare - whole).abs().mean()


def test_shared_frames_fade_from_one_slice_into_the_next():
    vae = make_vae("hunyuan")
    calls = []

    def decode(latents):
        calls.append(latents.shape[2])
        return torch.full((1, 4 * latents.shape[2] - 3, 8, 8, 3), float(len(calls)))

    vae.decode = decode
    film = torch.cat(list(decode_parts(vae, torch.zeros(1, 16, 5, 1, 1), frames_per_part=9, overlap=8)))
    assert calls == [3, 3, 3]
    # Five frames are shared; the second half of them fades.
    first_fade = [1.0, 1.0, 1.0, 1 + 1 / 3, 1 + 2 / 3]
    torch.testing.assert_close(film[:9, 0, 0, 0], torch.tensor([1.0] * 4 + first_fade))
    torch.testing.assert_close(
        film[8:, 0, 0, 0], torch.tensor([1 + 2 / 3, *(1 + v for v in first_fade[1:]), 3, 3, 3, 3])
    )


def test_bad_input_is_named_before_any_work(native):
    vae = native[2]
    with pytest.raises(ValueError, match="no VAE"):
        decode_parts(None, torch.zeros(1, 4, 2, 4, 4))
    with pytest.raises(ValueError, match="2 clips"):
        decode_parts(vae, torch.zeros(2, 4, 2, 4, 4))
    with pytest.raises(ValueError, match="16 channels but this VAE decodes 4"):
        decode_parts(vae, torch.zeros(1, 16, 2, 4, 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        decode_parts(vae, torch.full((1, 4, 2, 4, 4), torch.nan))
    with pytest.raises(ValueError, match=r"shape \(16, 4, 4\)"):
        decode_parts(vae, torch.zeros(16, 4, 4))
    with pytest.raises(ValueError, match="decodes videos"):
        decode_parts(make_vae("wan"), torch.zeros(5, 16, 4, 4))
    with pytest.raises(ValueError, match="frames_per_part is 0"):
        decode_parts(vae, torch.zeros(1, 4, 2, 4, 4), frames_per_part=0)
    with pytest.raises(ValueError, match="overlap is -1"):
        decode_parts(vae, torch.zeros(1, 4, 2, 4, 4), overlap=-1)


def test_it_can_be_cancelled_between_slices(native):
    from comfy import model_management

    parts = decode_parts(native[2], torch.zeros(1, 4, 4, 4, 4), frames_per_part=1)
    next(parts)
    model_management.interrupt_current_processing()
    with pytest.raises(model_management.InterruptProcessingException):
        next(parts)
    assert not model_management.processing_interrupted()
