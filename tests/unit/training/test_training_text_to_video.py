"""Training of the text-to-video model: its words, its clips, what is written."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from mask_guided_video.toybox import world
from mask_guided_video.training.train_text_to_video import (
    ClipStore,
    DenoisingLoss,
    TextToVideo,
    draw_scene,
    export,
    start_from,
    vocabulary,
)
from mask_guided_video.video_models.text_encoding import encode_tokens
from mask_guided_video.video_models.toybox import TOYBOX_FOLDER, load_toybox, load_unet
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
        ids = tokenizer(world.prompt(world.random_scene(generator, detail_share=0.5)))["input_ids"]
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


def test_earlier_words_keep_the_ids_of_the_bundled_tokenizer(tokenizer) -> None:
    bundled = load_toybox().text.tokenizer.get_vocab()
    assert {word: tokenizer.get_vocab()[word] for word in bundled} == bundled
    assert sorted(tokenizer.get_vocab()[word] for word in world.DETAILS) == list(range(len(tokenizer)))[-4:]


def test_training_begins_with_the_weights_of_an_earlier_model_of_fewer_words(tokenizer) -> None:
    torch.manual_seed(0)
    model = TextToVideo(len(tokenizer))
    start_from(model, TOYBOX_FOLDER)
    bundled = load_toybox()
    for name, value in load_unet(TOYBOX_FOLDER).state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], value), name
    tokens = torch.tensor([bundled.text.tokens("a red ball bounces on sand")])
    wanted = bundled.encode_prompt("a red ball bounces on sand").embedding
    torch.testing.assert_close(encode_tokens(model.text_encoder, tokens, pad_token=0), wanted.clone())
    new = model.text_encoder.shared.weight.detach()[-len(world.DETAILS) :]
    assert 0.02 < float(new.std()) < 0.3 and len({tuple(row) for row in new.tolist()}) == len(world.DETAILS)


def test_a_model_of_more_words_or_another_size_is_refused(tmp_path: Path, tokenizer) -> None:
    export(TextToVideo(len(tokenizer)).state_dict(), tokenizer, tmp_path)
    fewer = TextToVideo(len(tokenizer) - 1)
    with pytest.raises(ValueError, match="knows 33 tokens, and this trains 32"):
        start_from(fewer, tmp_path)


def test_clips_drawn_with_other_settings_are_not_taken_for_these(tmp_path: Path, tokenizer) -> None:
    def make(**drawn_with: float) -> ClipStore:
        path = tmp_path / "clips.pt"
        return ClipStore(path, 1, "train", 1, TOYBOX_FOLDER / "vae", tokenizer, "cpu", drawn_with=drawn_with)

    first = make(detail_share=0.5)
    assert torch.equal(make(detail_share=0.5).latents, first.latents)
    with pytest.raises(ValueError, match="drawn with {'detail_share': 0.5}, not with no details"):
        make(detail_share=0.0)


def test_still_scenes_are_drawn_again_by_their_share() -> None:
    def still(share: float) -> float:
        generator = np.random.default_rng(0)
        scenes = [draw_scene(generator, "train", redraw_still=share) for _ in range(400)]
        return float(np.mean([any(item.motion == "still" for item in scene.objects) for scene in scenes]))

    assert still(0.0) > 0.12 and still(1.0) == 0.0 and still(0.5) < 0.75 * still(0.0)


def test_a_shift_moves_the_noise_levels_up() -> None:
    seen: list[torch.Tensor] = []

    def model(noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(timesteps.double())
        return noisy

    loss = DenoisingLoss(model, None, Namespace(device="cpu"))
    clips, tokens = torch.zeros(64, 4, 1, 4, 4), torch.ones(64, 24, dtype=torch.long)
    for shift in (1.0, 2.0):
        loss.loss(clips, tokens, np.random.default_rng(0), shift)
    even, high = seen
    assert even.mean() == pytest.approx(500, abs=10)
    # The mean of 2 u / (1 + u) over 0..1 is 2 (1 - ln 2).
    assert high.mean() == pytest.approx(1000 * 2 * (1 - np.log(2)), abs=10) and high.max() < 1000
