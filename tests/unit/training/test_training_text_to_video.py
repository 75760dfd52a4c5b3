"""Training of the text-to-video model: resuming, the loss, what is written."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from mask_guided_video.toybox import world
from mask_guided_video.training.loop import LoopSettings, train
from mask_guided_video.training.train_text_to_video import (
    ClipStore,
    DenoisingLoss,
    TextToVideo,
    export,
    make_optimizers,
    vocabulary,
)
from mask_guided_video.video_models.toybox import TOYBOX_FOLDER, load_unet
from mask_guided_video.video_models.word_tokenizer import make_word_tokenizer

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon optimizer")


@pytest.fixture(scope="module")
def tokenizer():
    return make_word_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer) -> ClipStore:
    folder = tmp_path_factory.mktemp("clips")
    return ClipStore(folder / "clips.pt", 3, "train", 1, TOYBOX_FOLDER / "vae", tokenizer, "cpu")


def options(**values) -> Namespace:
    return Namespace(
        **{"image_steps": 1, "image_every": 8, "image_batch": 2, "batch": 2, "seed": 1, "device": "cpu"} | values
    )


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


@needs_muon
@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, store, tokenizer) -> None:
    def run(folder: Path, steps: int) -> TextToVideo:
        torch.manual_seed(0)
        model = TextToVideo(len(tokenizer))
        loss = DenoisingLoss(model, store, options())
        # The decay looks at the planned length, so both runs plan the same one and this one stops early.
        settings = LoopSettings(folder, 4, 1e-3, warm_up=1, report_every=2)

        def stop_early(step: int) -> torch.Tensor:
            if step >= steps:
                raise KeyboardInterrupt
            return loss(step)

        try:
            train(model, stop_early, dict, settings, make_optimizers(model))
        except KeyboardInterrupt:
            pass
        return model

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "broken", 3)
    resumed = run(tmp_path / "broken", 4)
    for (name, first), second in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


def test_exported_weights_are_read_back(tmp_path: Path, tokenizer) -> None:
    torch.manual_seed(0)
    model = TextToVideo(len(tokenizer))
    export(model.state_dict(), tokenizer, tmp_path)
    unet = load_unet(tmp_path)
    for name, value in model.unet.state_dict().items():
        if not name.endswith("freqs"):
            assert torch.equal(unet.state_dict()[name], value.half().float()), name
