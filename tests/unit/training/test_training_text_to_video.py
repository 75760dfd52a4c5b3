"""Training of the text-to-video model: its words, its clips, what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mask_guided_video.toybox import world
from mask_guided_video.training.train_text_to_video import ClipStore, TextToVideo, export, vocabulary
from mask_guided_video.video_models.toybox import TOYBOX_FOLDER, load_unet
from mask_guided_video.video_models.word_tokenizer import make_word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_word_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer) -> ClipStore:
    path = tmp_path_factory.mktemp("clips") / "clips.pt"
    return ClipStore(path, 3, "train", 1, TOYBOX_FOLDER / "vae", tokenizer, "cpu")


def test_every_prompt_of_the_world_is_in_the_vocabulary(tokenizer) -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        ids = tokenizer(world.prompt(world.random_scene(generator)))["input_ids"]
        assert tokenizer.unk_token_id not in ids and len(ids) <= tokenizer.model_max_length


def test_stored_clips_are_the_scenes(store) -> None:
    assert store.latents.shape == (3, 4, 8, 16, 16) and bool(store.latents.isfinite().all())
    assert 0.5 < float(store.latents.float().std()) < 2.0
    frames, tokens = store.batch(np.random.default_rng(0), 5, single_frames=True)
    assert frames.shape == (5, 4, 1, 16, 16) and tokens.shape == (5, 24)


def test_exported_weights_are_read_back(tmp_path: Path, tokenizer) -> None:
    torch.manual_seed(0)
    model = TextToVideo(len(tokenizer))
    export(model.state_dict(), tokenizer, tmp_path)
    unet = load_unet(tmp_path)
    for name, value in model.unet.state_dict().items():
        if not name.endswith("freqs"):
            assert torch.equal(unet.state_dict()[name], value.half().float()), name
