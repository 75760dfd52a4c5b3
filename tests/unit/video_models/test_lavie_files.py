"""Reading LaVie-shaped files: wrappers, prefixes, sizes from shapes."""

import pytest
import torch

from mask_guided_video.video_models.lavie_config import LaVieConfig
from mask_guided_video.video_models.lavie_files import DETECTION_KEY, infer_config, unet_state
from mask_guided_video.video_models.lavie_unet import LaVieUNet


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return LaVieUNet().state_dict()


def test_sizes_of_lavie_base_follow_from_its_tensors(full):
    assert infer_config(unet_state(full)) == LaVieConfig()


def test_sizes_of_a_small_model_follow_from_its_tensors():
    config = LaVieConfig(
        block_out_channels=(32, 64),
        attention_levels=(True, False),
        layers_per_block=1,
        num_heads=4,
        cross_attention_dim=16,
        native_frames=8,
        prediction_type="v_prediction",
    )
    with torch.device("meta"):
        state = LaVieUNet(config).state_dict()
    assert infer_config(unet_state(state), native_frames=8, prediction_type="v_prediction") == config


@pytest.mark.parametrize("wrap", ["", "ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_wrappers_and_prefixes_are_taken_off(full, wrap, prefix):
    contents = {prefix + name: value for name, value in full.items()}
    state = unet_state({wrap: contents, "step": 3} if wrap else contents)
    assert DETECTION_KEY in state
    assert len(state) == 830 - 16
    assert not any("rotary" in name for name in state)


def test_other_files_are_refused():
    with pytest.raises(ValueError, match="holds 1 entries but neither .* none of LaVie"):
        unet_state({"conv_in.weight": torch.zeros(1)})
