"""All three U-Nets against numbers that LaVie's own code gave for the same weights and input.

``tests/parity/lavie_original.py`` compares them with that code itself.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mask_guided_video.video_models.lavie.config import LaVieConfig, UpscalerConfig
from mask_guided_video.video_models.lavie.files import make_unet

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "num_heads": 1, "cross_attention_dim": 12}
CONFIGS = {
    "base": LaVieConfig(attention_levels=(True, False), **SMALL),
    "interpolation": LaVieConfig(stage="interpolation", in_channels=8, attention_levels=(True, False), **SMALL),
    "upscaling": UpscalerConfig(attention_levels=(True, True), only_cross_attention=(True, False), **SMALL),
}
# Every 101st number of the output, and the mean of all absolute values.
EXPECTED = {
    "base": (
        [-0.75529, -0.90171, 0.0371, -0.95184, -0.28893, -0.18049, -0.44652, -0.06006, 0.28338],
        0.485868,
    ),
    "interpolation": (
        [-1.06527, -0.24664, -0.45266, -0.31029, -0.67866, -0.08205, -1.93887, 0.06735, -0.59626],
        0.480282,
    ),
    "upscaling": (
        [-0.37224, -1.27166, 0.03953, -0.43584, -0.46517, -0.61086, -0.77555, 0.07627, 0.35346],
        0.445955,
    ),
}


def wave(shape: torch.Size | tuple[int, ...], number: int) -> Tensor:
    """Numbers in -1..1 that look random and are the same with every version of torch."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) ** 2 * 0.01 + number).view(shape)


def fill(model: nn.Module) -> None:
    """Weights so large that every part has a say."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.state_dict().items())):
            if name.endswith("freqs"):
                continue
            values = wave(parameter.shape, number)
            if parameter.ndim > 1:
                values = values * (2 / parameter[0].numel()) ** 0.5
            else:
                values = 0.2 * values + float("norm" in name and name.endswith("weight"))
            parameter.copy_(values.float())


@pytest.mark.parametrize("stage", list(CONFIGS))
def test_numbers_of_the_original(stage: str) -> None:
    unet = make_unet(CONFIGS[stage]).eval()
    fill(unet)
    x = wave((1, unet.config.in_channels, 5, 6, 7), 500).float()
    text = wave((1, 3, 12), 600).float()
    more = {"class_labels": torch.tensor([50])} if stage == "upscaling" else {}
    with torch.no_grad():
        out = unet(x, torch.tensor([481]), text, **more)
    values, mean = EXPECTED[stage]
    torch.testing.assert_close(out.flatten()[::101], torch.tensor(values), atol=2e-5, rtol=0)
    assert float(out.abs().mean()) == pytest.approx(mean, abs=2e-6)
