"""FreeLong through the stack, against direct implementations with whole masks and whole spectra."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import attention_calls
import pytest
import torch
from attention_calls import run, run_chained
from guides import plain_guide
from torch import Tensor

from mask_guided_video.attention_patches import free_long
from mask_guided_video.attention_patches import patch as contract
from mask_guided_video.attention_patches.free_long import OCTAVES, FreeLong, FreeLongPatch
from mask_guided_video.attention_patches.guidance.call import CallTensors
from mask_guided_video.attention_patches.guidance.patch import GuidePatch
from mask_guided_video.attention_patches.kernels.explicit import explicit_attention
from mask_guided_video.attention_patches.kernels.torch_attention import attention, torch_attention
from mask_guided_video.attention_patches.latent_time import PICTURES
from mask_guided_video.attention_patches.patch import Attend, Patch, Run
from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite, BatchRows, Span
from mask_guided_video.attention_patches.spectral_blend import band_cutoffs, gaussian_weights
from mask_guided_video.attention_patches.stack import PatchStack
from mask_guided_video.video_models.lavie.config import LaVieConfig
from mask_guided_video.video_models.lavie.layers import TemporalAttention
from mask_guided_video.video_models.lavie.unet import LaVieUNet

HEADS, DIM = 2, 8
TOLERANCE = {torch.float32: 6e-6, torch.float16: 6e-3, torch.bfloat16: 5e-2}
SETTINGS = {
    "FreeLong": FreeLong(4, end_percent=1.0),
    "FreeLong++": FreeLong(4, end_percent=1.0, bands=OCTAVES),
    "two bands": FreeLong(4, end_percent=1.0, bands=(1, 2)),
    "every other key": FreeLong(4, end_percent=1.0, key_stride=2),
    "FreeLong++, every third key": FreeLong(4, end_percent=1.0, bands=OCTAVES, key_stride=3),
    "half": FreeLong(4, end_percent=1.0, strength=0.5, key_stride=2),
    "other cut-offs": FreeLong(5, 0.4, 0.1, end_percent=1.0),
    "windows alone": FreeLong(4, end_percent=0.0),
}


def make_site(folded: str = "positions", grid: tuple[int, int, int] = (18, 3, 2), **changes: Any) -> AttentionSite:
    """Temporal attention, full self-attention, or with ``before`` and ``after`` joint attention with text."""
    after = changes.pop("after", 0)
    usual = {"kind": attention_calls.film_kind(folded, after), "progress": 0.25}
    if after:
        usual["text_tokens"] = after
    return attention_calls.make_site(folded=folded, grid=grid, **{**usual, **changes})


def make_tensors(site: AttentionSite, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    return attention_calls.make_tensors(site, HEADS * DIM, dtype=dtype, seed=seed)


def window_mask(frames: int, settings: FreeLong, scale: int | None) -> Tensor:
    """[T, T] bool, the frames that each frame sees, pair by pair."""
    seen = torch.zeros(frames, frames, dtype=torch.bool)
    for row in range(frames):
        if scale is None:
            chosen = [key for key in range(frames) if abs(row - key) <= settings.window // 2]
            if len(chosen) < settings.window:
                first = 0 if row < frames / 2 else frames - settings.window
                chosen = list(range(first, first + settings.window))
        else:
            chosen = [key for key in range(frames) if abs(row - key) < scale * settings.window // 2]
        seen[row, chosen] = True
    return seen


def reference(
    settings: FreeLong, site: AttentionSite, qkv: Sequence[Tensor], bias: Tensor | None = None, blends: bool = True
) -> Tensor:
    """FreeLong with a mask over all pairs and whole complex spectra; [B, L, heads * d] in float32."""
    frames, height, width = site.grid
    size = 1 if site.rows.folded == "positions" else height * width
    q, k, v = (tensor.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for tensor in qkv)
    given = torch.zeros(1, 1, 1, 1) if bias is None else bias.float()
    given = given.expand(-1, -1, q.shape[2], k.shape[2])
    video = slice(*site.video)

    def attend(seen: Tensor) -> Tensor:
        closed = torch.zeros(q.shape[2], k.shape[2])
        pairs = seen.repeat_interleave(size, 0).repeat_interleave(size, 1)
        closed[video, video] = torch.where(pairs, 0.0, -torch.inf)
        return explicit_attention(q, k, v, given + closed).float()

    everything = torch.ones(frames, frames, dtype=torch.bool)
    plain = attend(everything)
    scales = [scale for index, scale in enumerate(settings.bands or (1, 10**6)) if index == 0 or blends]
    results, kept = [], []
    for scale in scales:
        kept.append(scale)
        if (scale > 1 or settings.bands) and scale * settings.window >= frames:
            strided = torch.zeros_like(everything)
            strided[:, :: settings.key_stride] = True
            results.append(attend(strided))
            break
        results.append(attend(window_mask(frames, settings, scale if settings.bands else None)))
    time = band_cutoffs(kept, settings.temporal_cutoff) if settings.bands else [settings.temporal_cutoff]
    space = gaussian_weights(height, settings.spatial_cutoff)[:, None] * gaussian_weights(
        width, settings.spatial_cutoff
    )

    def on_grid(result: Tensor) -> Tensor:
        result = result[:, :, video].double()
        if size == 1:
            return result.view(-1, height, width, HEADS, frames, DIM).permute(0, 3, 5, 4, 1, 2)
        return result.view(-1, HEADS, frames, height, width, DIM).permute(0, 1, 5, 2, 3, 4)

    mixed = on_grid(results[0])
    for cutoff, narrow, wide in zip(time, results, results[1:], strict=False):
        spectrum = torch.fft.fftn(on_grid(wide) - on_grid(narrow), dim=(3, 4, 5))
        spectrum = spectrum * gaussian_weights(frames, cutoff)[:, None, None] * space
        mixed = mixed + torch.fft.ifftn(spectrum, dim=(3, 4, 5)).real
    mixed = mixed.permute(0, 4, 5, 1, 3, 2) if size == 1 else mixed.permute(0, 1, 3, 4, 5, 2)
    out = plain.clone()
    out[:, :, video] = mixed.reshape(out[:, :, video].shape).float()
    return plain.lerp(out, settings.strength).transpose(1, 2).flatten(2)


SITES = {
    "temporal": make_site(),
    "temporal, two samples": make_site(samples=2, grid=(9, 2, 3)),
    "temporal, long": make_site(grid=(67, 1, 2)),
    "temporal, odd": make_site(grid=(17, 5, 3)),
    "full": make_site("none"),
    "full, odd": make_site("none", (15, 3, 5)),
    "full with a reference in front": make_site("none", before=4),
    "joint": make_site("none", after=5),
    "context window": make_site(frames=tuple(range(40, 58)), clip_frames=90),
    "full, context window": make_site("none", frames=(*range(80, 90), *range(8)), clip_frames=90),
}


# Every place with all bands, every setting where the rows are cells over time and where text is in the sequence.
CHOSEN = {(place, "FreeLong++") for place in SITES} | {
    (place, name) for place in ("temporal", "joint") for name in SETTINGS
}


@pytest.mark.parametrize(("place", "name"), sorted(CHOSEN))
def test_equals_whole_masks_and_spectra(place: str, name: str) -> None:
    site, settings = SITES[place], SETTINGS[name]
    qkv = make_tensors(site)
    expected = reference(settings, site, qkv, blends=name != "windows alone")
    assert not torch.allclose(expected, attention(*qkv, HEADS), atol=1e-2)
    torch.testing.assert_close(run([FreeLongPatch(settings)], site, qkv), expected, atol=6e-6, rtol=1e-5)
    # Where others follow, calls stay whole; the result is the same.
    others = run([FreeLongPatch(settings), lambda attend, q, k, v, site: attend(q, k, v, site)], site, qkv)
    torch.testing.assert_close(others, expected, atol=6e-6, rtol=1e-5)


@pytest.mark.parametrize("place", ["temporal", "full with a reference in front", "joint"])
@pytest.mark.parametrize("name", ["FreeLong", "FreeLong++, every third key", "windows alone"])
def test_given_bias_is_kept(place: str, name: str) -> None:
    site, settings = SITES[place], SETTINGS[name]
    qkv = make_tensors(site)
    length = qkv[0].shape[1]
    generator = torch.Generator().manual_seed(3)
    for shape in ((1, HEADS, length, length), (1, 1, 1, length), (site.rows.total, 1, length, length)):
        bias = torch.randn(shape, generator=generator)
        expected = reference(settings, site, qkv, bias, name != "windows alone")
        torch.testing.assert_close(run([FreeLongPatch(settings)], site, qkv, bias), expected, atol=6e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("place", ["temporal", "full", "joint"])
@pytest.mark.parametrize("name", ["FreeLong", "FreeLong++", "half"])
def test_half_precision_is_within_rounding(place: str, name: str, dtype: torch.dtype) -> None:
    site, settings = SITES[place], SETTINGS[name]
    qkv = make_tensors(site, dtype)
    out = run([FreeLongPatch(settings)], site, qkv)
    assert out.dtype == dtype and bool(out.isfinite().all())
    expected = reference(settings, site, qkv)
    torch.testing.assert_close(out.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    # Attention at the edge of what the type holds.
    large = run([FreeLongPatch(settings)], site, [200.0 * tensor for tensor in qkv])
    assert bool(large.isfinite().all())


def test_pieces_of_the_batch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    site = SITES["temporal, two samples"]
    qkv = make_tensors(site)
    seen = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        seen.append(q.shape[0])
        return torch_attention(q, k, v, heads, mask, **kwargs)

    def record(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        return kernel(*args, **kwargs)

    whole = run([FreeLongPatch(SETTINGS["FreeLong"])], site, qkv)
    monkeypatch.setattr(free_long, "PIECE_BYTES_CPU", 1)
    stack = PatchStack([FreeLongPatch(SETTINGS["FreeLong"])]).chain(record)
    options = {"optimized_attention_override": stack.override, SITE_KEY: site}
    torch.testing.assert_close(attention(*qkv, HEADS, transformer_options=options), whole)
    assert set(seen) == {6}


# --- what costs nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", ["positions", "none"])
@pytest.mark.parametrize("frames", [1, 2, 15, 16])
@pytest.mark.parametrize("settings", [FreeLong(), FreeLong(bands=OCTAVES, largest_level="blend")])
def test_clips_within_a_window_go_through_to_the_bit(folded: str, frames: int, settings: FreeLong) -> None:
    site = make_site(folded, (frames, 2, 2))
    qkv = make_tensors(site)
    calls = []

    def func(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return "result"

    given = {"mask": None, "transformer_options": {SITE_KEY: site}}
    assert PatchStack([FreeLongPatch(settings)]).override(func, *qkv, HEADS, **given) == "result"
    assert calls[0] == ((*qkv, HEADS), given)
    assert torch.equal(run([FreeLongPatch(settings)], site, qkv), attention(*qkv, HEADS))
    # Called beside a patch that does act, it still calls once and hands the tensors on.
    assert FreeLongPatch(settings)(Attend(lambda q, k, v, site, bias: q), *qkv, site) is qkv[0]


@pytest.mark.parametrize("folded", ["positions", "none"])
def test_strength_zero_is_bit_identical(folded: str) -> None:
    site = make_site(folded)
    qkv = make_tensors(site)
    assert torch.equal(run([FreeLongPatch(FreeLong(4, strength=0.0))], site, qkv), attention(*qkv, HEADS))


def test_acts_on_attention_over_time_only() -> None:
    patch = FreeLongPatch(FreeLong(4, blocks="mid, down.1.*"))
    assert patch.acts_at(make_site())
    assert patch.acts_at(make_site("none"))
    assert patch.acts_at(make_site("none", after=5))
    assert not patch.acts_at(make_site(block="up.1.0"))
    assert not patch.acts_at(make_site("none", kind="cross", text=Span(0, 5)))
    assert not patch.acts_at(make_site(kind="self", rows=BatchRows((0,), 1, "frames", 18)))
    # Another FreeLong has split this call.
    assert not patch.acts_at(make_site(query_frames=(0, 1)))


def test_schedule_and_largest_level() -> None:
    site = make_site()
    qkv = make_tensors(site)
    settings = FreeLong(4, end_percent=0.5)
    patch = FreeLongPatch(settings)
    blended, windows = (reference(settings, site, qkv, blends=blends) for blends in (True, False))

    def check(patch: FreeLongPatch, expected: Tensor, **changes: Any) -> None:
        out = run([patch], replace(site, **changes), qkv)
        torch.testing.assert_close(out, expected, atol=6e-6, rtol=1e-5)

    check(patch, blended, progress=0.0)
    check(patch, blended, progress=0.5)
    check(patch, windows, progress=0.51)
    check(patch, windows, progress=0.0, level=0)
    check(FreeLongPatch(FreeLong(4, end_percent=0.0)), windows, progress=0.0)
    check(FreeLongPatch(FreeLong(4, end_percent=1.0)), blended, progress=1.0)
    check(FreeLongPatch(FreeLong(4, largest_level="blend")), blended, level=0)
    # The one grid of a transformer is blended.
    whole = make_site("none", level=0)
    qkv = make_tensors(whole)
    expected = reference(settings, whole, qkv)
    torch.testing.assert_close(run([patch], whole, qkv), expected, atol=6e-6, rtol=1e-5)


# --- with others ------------------------------------------------------------------------------------------------------


def make_masks(objects: int, grid: tuple[int, int, int]) -> Tensor:
    masks = attention_calls.soft_masks(objects, grid)
    # One frame has nothing, so it is left alone as a query and open as keys.
    masks[:, 3] = 0.0
    return masks


GUIDED_PLACES = ("temporal", "full", "full with a reference in front", "joint", "full, context window")
GUIDED_SETTINGS = ("FreeLong", "FreeLong++, every third key", "windows alone")
GUIDED_MODES = (("separate", False), ("separate", True), ("focus_fg", False))
# Every setting at every place; every mode meets each of them.
TOGETHER = [
    (place, name, *GUIDED_MODES[(number + other) % 3])
    for number, place in enumerate(GUIDED_PLACES)
    for other, name in enumerate(GUIDED_SETTINGS)
]


@pytest.mark.parametrize(("place", "name", "mode", "hard"), TOGETHER)
def test_with_mask_guidance_in_either_order(place: str, name: str, mode: str, hard: bool) -> None:
    site, settings = SITES[place], SETTINGS[name]
    qkv = make_tensors(site)
    clip = (site.clip_frames, *site.grid[1:])
    # Strong, but such that no window is closed as a whole.
    guide = plain_guide(make_masks(2, clip), mode=mode, hard=hard, strength=2.0, end_percent=1.0)
    sizes = CallTensors(qkv[0].shape[1], qkv[0].shape[1], DIM, torch.float32, torch.device("cpu"))
    tables = guide.mode.tables(GuidePatch(guide)._call(site.layout, None, sizes, knows_words=False, filled=False))
    bias = (tables.query @ tables.key.transpose(1, 2)).repeat(site.rows.total // len(tables.query), 1, 1)[:, None]
    if site.kind == "temporal" and mode != "separate":
        # The guide leaves temporal attention alone.
        bias = None
    expected = reference(settings, site, qkv, bias, name != "windows alone")
    pair = [FreeLongPatch(settings), GuidePatch(guide)]
    # In one stack and, as two nodes make them, in two.
    for runner, order in ((run, pair), (run, pair[::-1]), (run_chained, pair), (run_chained, pair[::-1])):
        torch.testing.assert_close(runner(order, site, qkv), expected, atol=3e-5, rtol=1e-4)


def test_keys_that_an_earlier_patch_appends_are_seen_by_all_windows() -> None:
    site, settings = SITES["full"], SETTINGS["FreeLong"]
    q, k, v = make_tensors(site)
    more = [tensor[:, :4] * 2.0 for tensor in (k, v)]

    def append(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        heads = [tensor.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for tensor in more]
        return attend(q, torch.cat((k, heads[0]), dim=2), torch.cat((v, heads[1]), dim=2), site)

    expected = reference(settings, site, [q, torch.cat((k, more[0]), dim=1), torch.cat((v, more[1]), dim=1)])
    torch.testing.assert_close(run([append, FreeLongPatch(settings)], site, [q, k, v]), expected, atol=6e-6, rtol=1e-5)


# --- LaVie ------------------------------------------------------------------------------------------------------------


def identity_layer(bias: bool = True) -> TemporalAttention:
    layer = TemporalAttention(
        32, LaVieConfig(block_out_channels=(32,), attention_levels=(True,), num_heads=1), torch.nn, attention
    )
    with torch.no_grad():
        for linear in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]):
            linear.weight.copy_(torch.eye(32))
        layer.to_out[0].bias.zero_()
        table = layer.time_rel_pos_bias.relative_attention_bias.weight
        table.copy_(0.1 * torch.arange(32.0)[:, None] if bias else torch.zeros(32, 1))
    return layer


def test_temporal_attention_with_bias_and_window_literal() -> None:
    hidden = torch.zeros(1, 4, 32)
    hidden[0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    site = make_site(grid=(4, 1, 1), rows=BatchRows((0,), 1, "positions", 1), level=0)
    stack = PatchStack([FreeLongPatch(FreeLong(2))])
    with torch.no_grad():
        out = identity_layer()(hidden, {"optimized_attention_override": stack.override, SITE_KEY: site})
    expected = torch.tensor([1.847387, 2.640255, 3.633498, 3.829525])
    torch.testing.assert_close(out[0, :, 0], expected, atol=2e-6, rtol=0)


def test_temporal_attention_without_positions_literal() -> None:
    hidden = torch.zeros(1, 4, 32)
    hidden[0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        layer = identity_layer(bias=False)
        layer.rotary_emb.dim = 0
        out = layer(hidden, {})
    expected = torch.tensor([2.719038, 2.927002, 3.115193, 3.278621])
    torch.testing.assert_close(out[0, :, 0], expected, atol=2e-6, rtol=0)


def test_equals_the_published_blend_after_the_output_projection() -> None:
    """The published code runs the layer twice and blends after the projection, with its filter (even sizes)."""
    frames, height, width = 20, 4, 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LaVieConfig(block_out_channels=(32,), attention_levels=(True,), num_heads=2, rotary_dim=8)
        layer = TemporalAttention(32, config, torch.nn, attention)
        hidden = torch.randn(2 * height * width, frames, 32)
    site = make_site(grid=(frames, height, width))
    closed = torch.where(window_mask(frames, FreeLong(16), None), 0.0, -torch.inf)

    def masked(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return attend.with_bias(attend.bias + closed)(q, k, v, site)

    def through(patch: Patch) -> Tensor:
        options = {"optimized_attention_override": PatchStack([patch]).override, SITE_KEY: site}
        with torch.no_grad():
            return layer(hidden, options)

    def spectrum(values: Tensor) -> Tensor:
        video = values.view(2, height, width, frames, 32).permute(0, 4, 3, 1, 2)
        return torch.fft.fftshift(torch.fft.fftn(video, dim=(2, 3, 4)), dim=(2, 3, 4))

    axes = [torch.exp(-0.5 * ((2.0 * torch.arange(size) / size - 1.0) / 0.25) ** 2) for size in (frames, height, width)]
    weights = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    with torch.no_grad():
        mixed = spectrum(layer(hidden, {})) * weights + spectrum(through(masked)) * (1.0 - weights)
    expected = torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=(2, 3, 4)), dim=(2, 3, 4)).real
    expected = expected.permute(0, 3, 4, 2, 1).reshape(hidden.shape)
    torch.testing.assert_close(through(FreeLongPatch()), expected, atol=3e-6, rtol=1e-5)


def test_through_a_whole_unet() -> None:
    config = LaVieConfig(
        block_out_channels=(16, 32),
        attention_levels=(True, True),
        layers_per_block=1,
        num_heads=2,
        cross_attention_dim=12,
        norm_num_groups=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = LaVieUNet(config)
        latents, text = torch.randn(2, 4, 9, 5, 7), torch.randn(2, 6, 12)

    def call(settings: FreeLong | None, frames: int = 9) -> Tensor:
        options: dict[str, Any] = {"cond_or_uncond": [0, 1]}
        if settings is not None:
            options["optimized_attention_override"] = PatchStack([FreeLongPatch(settings)]).override
        with torch.no_grad():
            return unet(latents[:, :, :frames], torch.full((2,), 700.0), text, options)

    plain, long = call(None), call(FreeLong(4))
    assert bool(long.isfinite().all()) and not torch.allclose(long, plain, atol=1e-3)
    assert not torch.allclose(long, call(FreeLong(4, largest_level="blend")), atol=1e-4)
    assert not torch.allclose(long, call(FreeLong(4, end_percent=0.1)), atol=1e-4)
    assert torch.equal(call(FreeLong(9)), plain)
    assert torch.equal(call(FreeLong(4), 3), call(None, 3))


# --- the object -------------------------------------------------------------------------------------------------------


def test_plans_are_kept_shared_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "MAX_PLANS", 8)
    patch = FreeLongPatch(FreeLong(4))
    site = make_site()
    qkv = make_tensors(site)
    first = run([patch], site, qkv)
    plans = dict(patch._plans)
    assert torch.equal(run([copy.deepcopy(patch)], site, qkv), first) and patch._plans == plans
    run([patch], replace(site, frames=tuple(range(5, 23)), clip_frames=40), qkv)
    assert patch._plans == plans
    PatchStack([patch]).release()
    assert not patch._plans
    assert torch.equal(run([patch], site, qkv), first)
    for frames in range(5, 5 + contract.MAX_PLANS + 1):
        site = make_site(grid=(frames, 1, 1))
        run([patch], site, make_tensors(site))
    assert 0 < len(patch._plans) <= contract.MAX_PLANS


def test_inputs_are_not_changed() -> None:
    for place in ("temporal", "joint"):
        qkv = make_tensors(SITES[place])
        bias = torch.randn(1, 1, 1, qkv[0].shape[1])
        before = [tensor.clone() for tensor in (*qkv, bias)]
        run([FreeLongPatch(SETTINGS["FreeLong++"])], SITES[place], qkv, bias)
        assert all(torch.equal(*pair) for pair in zip(before, (*qkv, bias), strict=True))


def test_site_that_does_not_fit_is_named() -> None:
    site = make_site()
    qkv = make_tensors(make_site(grid=(17, 3, 2)))
    with pytest.raises(ValueError, match="17 video tokens.*describes its sites wrongly"):
        run([FreeLongPatch(FreeLong(4))], site, qkv)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"temporal_cutoff": 0.0}, "temporal_cutoff is 0"),
        ({"spatial_cutoff": float("nan")}, "spatial_cutoff is nan"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"end_percent": -0.1}, "end_percent is -0.1"),
        ({"largest_level": "global"}, "choose one of local, blend"),
        ({"bands": (2, 4)}, "ascend from 1"),
        ({"bands": (1, 4, 2)}, "ascend from 1"),
        ({"key_stride": 0}, "key_stride is 0"),
        ({"blocks": " , "}, "write 'all'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreeLong(**settings)


def test_short_clips_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    patch = FreeLongPatch(FreeLong(window=8))
    with caplog.at_level("INFO"):
        patch.check_run(Run(9, 4, 4, PICTURES))
        FreeLongPatch(FreeLong(window=8, strength=0.0)).check_run(Run(8, 4, 4, PICTURES))
        assert not caplog.records
        patch.check_run(Run(8, 4, 4, PICTURES))
    assert "8 latent frames, no more than the window of 8" in caplog.text
