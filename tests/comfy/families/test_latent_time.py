"""How models count time: what families say, what ComfyUI's latent formats say, and what follows for unknown models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from native_models import BUILDERS, tiny

from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.backbones.registry import latent_time_of, require_supported
from mask_guided_video.host.sampling.shared_noise import SharedNoise

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("as_in_a_node")]

# ComfyUI says how many frames the larger latent frames have, of formats that it was told of.
SAYS_NOTHING = {"cogvideox", "cosmos", "mochi"}


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_families_count_as_the_latent_format_says(name: str) -> None:
    patcher = tiny(name).patcher
    family, _ = require_supported(patcher)
    said = getattr(patcher.get_model_object("latent_format"), "temporal_downscale_ratio", None)
    if said is None:
        pytest.skip("this ComfyUI does not say how its models count time")
    assert latent_time_of(patcher) == family.latent_time
    if said == 1 and any(name.startswith(family) for family in SAYS_NOTHING):
        pytest.skip("this ComfyUI does not say how this model counts time")
    assert said == max((*family.latent_time.lead, *family.latent_time.cycle))


class Unknown:
    """A model of a family that nobody knows, with a latent format of its own."""

    def __init__(self, factor: int) -> None:
        self.parts = {
            "diffusion_model": torch.nn.Linear(1, 1),
            "latent_format": SimpleNamespace(temporal_downscale_ratio=factor),
        }

    def get_model_object(self, name: str) -> object:
        """As a ``ModelPatcher``."""
        return self.parts[name]


def test_the_host_is_asked_where_no_family_is_known() -> None:
    assert latent_time_of(Unknown(6)) == causal(6)
    assert latent_time_of(Unknown(1)) is None


def test_noise_follows_masks_as_the_model_counts_time() -> None:
    """Seven masks fit three frames at factor 3 and no other."""
    masks = torch.zeros(1, 7, 64, 64)
    masks[:, :, 8:40, 8:40] = 1.0
    noise = SimpleNamespace(seed=3, generate_noise=lambda latent: torch.randn(latent["samples"].shape))
    latent = {"samples": torch.zeros(1, 4, 3, 8, 8)}
    moved = SharedNoise(noise, "freetraj", model=Unknown(3), masks=masks).generate_noise(latent)
    assert moved.shape == (1, 4, 3, 8, 8)
    with pytest.raises(ValueError, match="7 mask frames do not fit a clip of 3 latent frames"):
        SharedNoise(noise, "freetraj", model=Unknown(4), masks=masks).generate_noise(latent)
