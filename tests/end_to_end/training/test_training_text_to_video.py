"""Training of the text-to-video model goes on where it stopped."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from mask_guided_video.training.loop import LoopSettings, train
from mask_guided_video.training.train_text_to_video import (
    ClipStore,
    DenoisingLoss,
    TextToVideo,
    make_optimizers,
    vocabulary,
)
from mask_guided_video.video_models.toybox import TOYBOX_FOLDER
from mask_guided_video.video_models.word_tokenizer import make_word_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon optimizer"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_word_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer) -> ClipStore:
    path = tmp_path_factory.mktemp("clips") / "clips.pt"
    return ClipStore(path, 3, "train", 1, TOYBOX_FOLDER / "vae", tokenizer, "cpu")


def options() -> Namespace:
    return Namespace(image_steps=1, image_every=8, image_batch=2, batch=2, seed=1, noise_shift=1.0, device="cpu")


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
