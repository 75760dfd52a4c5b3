"""Training of the Toybox VAE: its decoder alone can be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mask_guided_video.training.train_vae import main
from mask_guided_video.video_models.toybox import TOYBOX_FOLDER

pytestmark = pytest.mark.slow


def test_the_latents_stay_when_the_decoder_is_trained_on(tmp_path: Path) -> None:
    earlier = TOYBOX_FOLDER / "vae"
    main(
        [
            *("--start-from", str(earlier), "--detail-share", "0.5", "--decoder-steps", "2", "--batch", "2"),
            *("--run", str(tmp_path / "run"), "--out", str(tmp_path / "vae"), "--device", "cpu"),
        ]
    )
    assert (tmp_path / "vae" / "config.json").is_file() and "psnr_details" in (tmp_path / "run/log.txt").read_text()
    before, after = [
        load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (earlier, tmp_path / "vae")
    ]
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}

    from diffusers import AutoencoderKL

    configs = [AutoencoderKL.load_config(folder) for folder in (earlier, tmp_path / "vae")]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]
    assert configs[0]["shift_factor"] == configs[1]["shift_factor"]
