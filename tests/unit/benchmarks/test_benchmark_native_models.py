"""What the benchmark of native models compares guidance with, and its arithmetic."""

import json

import attention_calls
import pytest
import torch

from mask_guided_video.attention_patches.kernels.torch_attention import torch_attention
from mask_guided_video.attention_patches.latent_time import PICTURES, causal, latent_frame_groups
from mask_guided_video.attention_patches.site import CONDITIONAL, SITE_KEY
from mask_guided_video.attention_patches.stack import PatchStack

GRID = (3, 6, 8)
TOKENS, TEXT = 3 * 6 * 8, 10


@pytest.fixture(scope="module")
def benchmark(open_benchmark):
    return open_benchmark("native_models")


def make_site(kind, folded="none"):
    place = {"block": "block.0", "total": 1, "level": 0, "sigma": 1.0, "latent_time": causal(4)}
    return attention_calls.make_site(kind, folded, GRID, text_tokens=TEXT, chunks=(CONDITIONAL,), **place)


SITES = {
    "self": (make_site("self"), TOKENS, TOKENS),
    "frames": (make_site("self", "frames"), 48, 48),
    "temporal": (make_site("temporal", "positions"), 3, 3),
    "joint": (make_site("joint"), TOKENS + TEXT, TOKENS + TEXT),
    "cross": (make_site("cross"), TOKENS, TEXT),
}
PAIRS = [(name, site) for name in ("channels", "partition") for site in ("self", "frames", "temporal", "joint")]
PAIRS += [("focus_fg", site) for site in ("self", "frames", "joint")]
PAIRS += [("cross_text", site) for site in ("joint", "cross")]


@pytest.mark.parametrize(("name", "where"), PAIRS)
def test_dense_bias_says_what_the_guide_says(benchmark, name, where):
    site, queries, keys = SITES[where]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(site.rows.total, length, 32, generator=generator) for length in (queries, keys, keys))
    masks = benchmark.cases.film_masks((9, 45, 61))

    def attend(patches):
        options = {SITE_KEY: site}
        return PatchStack(patches).override(torch_attention, q, k, v, 2, transformer_options=options)

    guided = attend([benchmark.cases.guide_patch(name, masks, True)])
    explicit = attend([benchmark.cases.guide_patch(name, masks, True, dense=True)])
    torch.testing.assert_close(guided, explicit, rtol=1e-4, atol=1e-5)
    assert float((explicit - attend([])).abs().max()) > 0.01


def test_mask_covers_its_share_and_moves(benchmark):
    masks = benchmark.cases.film_masks((5, 120, 200))
    assert masks.flatten(2).mean(dim=2)[0].tolist() == pytest.approx([0.3] * 5, abs=0.01)
    assert not torch.equal(masks[0, 0], masks[0, 4])


def test_every_size_has_every_family_and_masks_that_fit(benchmark):
    families = [[case.family for case in sizes] for sizes in benchmark.cases.SIZES.values()]
    assert families[0] == families[1] == families[2] and len(families[0]) == 7
    for case in (case for sizes in benchmark.cases.SIZES.values() for case in sizes):
        frames = case.latents[2] if len(case.latents) == 5 else case.latents[0]
        factor = {"wan": 4, "ltx": 8, "ltxav": 8, "hunyuan": 4, "mochi": 6, "sd15": 1, "svd": 1}[case.family]
        time = causal(factor) if factor > 1 else PICTURES
        assert len(latent_frame_groups(case.pixels[0], frames, time)) == frames
    assert benchmark.clip_site(benchmark.CLIPS["film"]).video == (0, 32760)
    assert benchmark.clip_site(benchmark.CLIPS["h3"]).video == (670, 37966)
    assert {benchmark.clip_site(clip).video.stop for clip in benchmark.QUICK_CLIPS.values()} == {2340, 1908, 1536}


def test_peak_is_the_most_at_a_time(benchmark):
    def call():
        first = torch.zeros(1024, 256)
        second = first + 1.0
        del first
        return second + 1.0

    # Two of the three; the number that is added is a tensor too.
    assert benchmark.peak_bytes(call, "cpu") == pytest.approx(2 * 2**20, abs=100)


def test_shares_are_of_the_dense_bias(benchmark):
    peaks = {"model": {"plain": 100, "channels": 106, "dense": 300}, "dense_bias": {"model": 200}}
    assert benchmark.shares(peaks) == {
        "model": {"extra": {"channels": 6, "dense": 200}, "share": {"channels": 0.03, "dense": 1.0}}
    }


def test_new_entries_replace_their_own_only_and_machines_are_not_mixed(benchmark, tmp_path):
    path = tmp_path / "results.json"
    assert benchmark.merged(path, {"cores": 2}, {"wan": 1}) == {"machine": {"cores": 2}, "measured": {"wan": 1}}
    path.write_text(json.dumps({"machine": {"cores": 2}, "measured": {"wan": 1, "ltx": 2}}), encoding="utf-8")
    assert benchmark.merged(path, {"cores": 2}, {"wan": 3})["measured"] == {"wan": 3, "ltx": 2}
    assert benchmark.merged(path, {"cores": 8}, {"wan": 3})["measured"] == {"wan": 3}


def test_missing_comfyui_is_said(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="COMFYUI_PATH"):
        benchmark.cases.find_comfyui()
