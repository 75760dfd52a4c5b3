"""Starting noise: formulas on small numbers, statistics, seeds."""

import math

import pytest
import torch

from mask_guided_video.video_models.sampling.noise import (
    NOISE_MODES,
    reschedule_frames,
    share_first_frame,
    spectral_mix,
    spectral_mix_angles,
    video_noise,
)


def numbered_frames(frames):
    return torch.arange(float(frames)).view(1, 1, frames, 1, 1)


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def test_plain_noise_is_what_the_host_draws():
    expected = torch.randn((1, 4, 3, 2, 2), generator=torch.manual_seed(7))
    assert torch.equal(video_noise((1, 4, 3, 2, 2), 7), expected)


@pytest.mark.parametrize("frames", [17, 18, 32, 45])
def test_freenoise_groups_are_permutations_of_the_window_before(frames):
    values = reschedule_frames(numbered_frames(frames), generator()).flatten().tolist()
    assert values[:16] == list(range(16))
    for start in range(16, frames, 4):
        group = values[start : start + 4]
        assert len(set(group)) == len(group)
        if len(group) == 4:
            assert sorted(group) == sorted(values[start - 16 : start - 12])
        else:
            assert set(group) <= set(values[start - 16 : start - 12])


def test_freenoise_reuses_each_group_of_the_first_window_with_its_period():
    values = reschedule_frames(numbered_frames(53), generator()).flatten().tolist()
    for frame, value in enumerate(values):
        assert 0 <= value < 16
        assert value // 4 == frame % 16 // 4
    assert values[16:] != [frame % 16 for frame in range(16, 53)]


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (5, 2), (8, 8), (16, 4)])
def test_freenoise_takes_any_window_and_stride(window, stride):
    noise = torch.randn(2, 3, 23, 2, 2, generator=generator(5))
    given = noise.clone()
    values = reschedule_frames(noise, generator(), window, stride)
    assert torch.equal(noise, given) and torch.equal(values[:, :, :window], noise[:, :, :window])
    for frame in range(window, 23):
        # Every frame is one of the first window's, whole, and the same one in all samples.
        same = [bool((values[:, :, frame] == noise[:, :, source]).all()) for source in range(window)]
        assert sum(same) == 1
    assert torch.equal(values, reschedule_frames(noise, generator(), window, stride))
    assert window == 1 or not torch.equal(values, reschedule_frames(noise, generator(1), window, stride))


@pytest.mark.parametrize("frames", [1, 2, 7, 15, 16])
def test_freenoise_of_a_native_clip_is_plain(frames):
    size = (1, 4, frames, 2, 2)
    assert torch.equal(video_noise(size, 3, "freenoise"), video_noise(size, 3))


def test_specmix_angles_of_five_frames():
    angles = spectral_mix_angles(5)
    half = math.sqrt(0.5)
    torch.testing.assert_close(angles.cos(), torch.tensor([0, half, 1, half, 0], dtype=torch.float64))
    torch.testing.assert_close(angles.sin(), torch.tensor([1, half, 0, half, 1], dtype=torch.float64))


def test_specmix_takes_base_in_the_middle_and_residual_at_the_ends():
    base = torch.ones(1, 1, 5, 1, 1)
    mixed = spectral_mix(base, torch.zeros_like(base)).flatten()
    torch.testing.assert_close(mixed, torch.tensor([0.0, 0.707107, 1.0, 0.707107, 0.0]), atol=1e-6, rtol=0)


def test_specmix_of_a_long_clip_repeats_in_the_middle_and_is_fresh_at_the_ends():
    draw = generator(3)
    first, residual = (torch.randn(1, 4, 33, 16, 16, generator=draw) for _ in range(2))
    base = reschedule_frames(first, draw)
    mixed = video_noise((1, 4, 33, 16, 16), 3, "specmix")
    assert torch.equal(mixed[:, :, 16], base[:, :, 16])
    torch.testing.assert_close(mixed[:, :, [0, 32]], residual[:, :, [0, 32]])
    likeness = torch.stack([(base[:, :, frame] * mixed[:, :, frame]).mean() for frame in range(33)])
    expected = spectral_mix_angles(33).cos().float()
    torch.testing.assert_close(likeness, expected, atol=0.12, rtol=0)
    torch.testing.assert_close(mixed.var(dim=(0, 1, 3, 4)), torch.ones(33), atol=0.2, rtol=0)


def test_shared_noise_weights():
    noise = torch.tensor([2.0, 1.0, -1.0]).view(1, 1, 3, 1, 1)
    lamp = share_first_frame(noise, 0.2, keep_variance=False).flatten()
    torch.testing.assert_close(lamp, torch.tensor([2.0, 1.2, -0.4]))
    kept = share_first_frame(noise, 0.2).flatten()
    torch.testing.assert_close(kept, torch.tensor([2.0, 0.894427 + 0.894427, 0.894427 - 0.894427]), atol=1e-5, rtol=0)


def test_another_source_is_shared_in_place_of_the_first_frames_noise():
    noise = torch.tensor([2.0, 1.0, -1.0]).view(1, 1, 3, 1, 1)
    source = torch.full((1, 1, 1, 1, 1), 10.0)
    lamp = share_first_frame(noise, 0.2, keep_variance=False, source=source).flatten()
    torch.testing.assert_close(lamp, torch.tensor([2.0, 2.8, 1.2]))
    two = torch.cat([noise, noise * 2.0])
    for given in (source, torch.cat([source, source])):
        expected = torch.tensor([[2.0, 2.8, 1.2], [4.0, 3.6, 0.4]])
        torch.testing.assert_close(share_first_frame(two, 0.2, False, given).flatten(1), expected)
    with pytest.raises(ValueError, match=r"\(3, 1, 1, 1, 1\) but a frame of the noise \(2, 1, 1, 1, 1\)"):
        share_first_frame(two, 0.2, False, source.expand(3, -1, -1, -1, -1))


@pytest.mark.parametrize("mode", NOISE_MODES)
@pytest.mark.parametrize("frames", [1, 2, 18])
def test_every_mode_is_seeded_and_of_unit_variance(mode, frames):
    size = (1, 4, frames, 24, 24)
    noise = video_noise(size, 11, mode)
    assert noise.shape == size and noise.dtype == torch.float32
    assert torch.equal(noise, video_noise(size, 11, mode))
    assert not torch.equal(noise, video_noise(size, 12, mode))
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)


def test_lamp_variance_is_smaller_and_frames_correlate():
    noise = video_noise((1, 8, 5, 128, 128), 5, "shared", keep_variance=False)
    assert noise[:, :, 1:].var().item() == pytest.approx(0.68, abs=0.005)
    assert noise[:, :, 1:].std().item() == pytest.approx(0.825, abs=0.003)
    likeness = torch.corrcoef(noise[0, :, 1:].transpose(0, 1).flatten(1))
    torch.testing.assert_close(likeness[~torch.eye(4, dtype=torch.bool)], torch.full((12,), 0.059), atol=0.01, rtol=0)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="'fancy'"):
        video_noise((1, 4, 8, 2, 2), 0, "fancy")
    with pytest.raises(ValueError, match="shared amount is 1.5"):
        video_noise((1, 4, 8, 2, 2), 0, "shared", shared=1.5)
    with pytest.raises(ValueError, match="stride 5"):
        video_noise((1, 4, 8, 2, 2), 0, "freenoise", window=4, stride=5)
    with pytest.raises(ValueError, match="video latents"):
        video_noise((4, 8, 2, 2), 0)
