"""A real text-to-video model at tiny size with random weights; everything around it is the real thing."""

from __future__ import annotations

import torch


def build_tiny_video_model(seed: int = 0):
    """A ``StandaloneVideoModel`` of 16 x 16 pixels and 4 frames, a few thousand parameters."""
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel

    from mask_guided_video.video_models.lavie.config import LaVieConfig
    from mask_guided_video.video_models.lavie.unet import LaVieUNet
    from mask_guided_video.video_models.video_model import StandaloneVideoModel, VideoGeometry
    from mask_guided_video.video_models.word_tokenizer import make_word_tokenizer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LaVieConfig(
            block_out_channels=(16, 16),
            attention_levels=(True, True),
            layers_per_block=1,
            num_heads=2,
            cross_attention_dim=16,
            norm_num_groups=4,
            rotary_dim=8,
            native_frames=4,
        )
        unet = LaVieUNet(config)
        for parameter in unet.parameters():
            # Zero-initialised layers would hide a part of the model from the tests.
            if not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.05)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
        words = "a red blue ball square moves left right and on sand grass".split()
        tokenizer = make_word_tokenizer(words)
        encoder = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )
    geometry = VideoGeometry(spatial_factor=2, channels=4, native_frames=4, width=16, height=16)
    return StandaloneVideoModel(unet, vae, encoder, tokenizer, geometry)
