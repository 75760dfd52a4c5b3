"""Real models at tiny size with random weights: they draw nothing, and everything around them is the real thing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import pytest
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


@pytest.fixture(scope="module")
def tiny_video_model():
    """One tiny random video model for all tests of a file."""
    return build_tiny_video_model()


@pytest.fixture(scope="session")
def tiny_video_model_builder() -> Callable:
    """Makes tiny random video models."""
    return build_tiny_video_model


@pytest.fixture(scope="session")
def cli(root):
    """The command line as a module."""
    spec = importlib.util.spec_from_file_location("cli", root / "cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def open_benchmark(root):
    """Import a script of benchmarks/ by its name, with what lies beside it within reach."""
    folder = root / "benchmarks"

    def load(name: str):
        # Not by the plain name: helpers of other tests have the same.
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up by name.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    sys.path.append(str(folder))
    yield load
    sys.path.remove(str(folder))
