"""The joint Toybox model as it comes with the pack, and files that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mask_guided_video.attention_patches.guidance.guide import Guide
from mask_guided_video.attention_patches.guidance.modes.registry import make_mode
from mask_guided_video.attention_patches.guidance.patch import guide_patches
from mask_guided_video.video_models.joint.config import JointConfig
from mask_guided_video.video_models.joint.model import JOINT_FOLDER, JointVideoModel, load_joint_toybox, load_network
from mask_guided_video.video_models.toybox import TOYBOX_FOLDER

PROMPT = "a red ball stays still and a blue square moves left on grass"


@pytest.fixture(scope="module")
def model() -> JointVideoModel:
    return load_joint_toybox()


def test_it_shares_vae_and_text_encoder_and_is_small(model) -> None:
    assert sorted(path.name for path in JOINT_FOLDER.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (JOINT_FOLDER / "model.safetensors").stat().st_size < 6e6
    assert model.block_names == [f"joint.{number}" for number in range(model.unet.config.depth)]
    assert model.token_spans(PROMPT, ["red ball", "blue square"]).positions == ((1, 2), (7, 8))


def test_a_clip_is_made_and_words_steer_it(model) -> None:
    noise, prompts = model.noise(2, 32, 32, 1), (model.encode_prompt(PROMPT), model.encode_prompt(""))
    masks = torch.zeros(2, 2, 32, 32)
    masks[0, ..., :16], masks[1, ..., 16:] = 1.0, 1.0
    phrases = ("red ball", "blue square")

    def sample(strength: float) -> torch.Tensor:
        guide = Guide(masks, make_mode("cross_text"), phrases, strength=strength)
        patches = guide_patches(guide, model.token_spans(PROMPT, phrases))
        return model.sample(noise, *prompts, steps=2, patches=patches)

    plain = model.sample(noise, *prompts, steps=2)
    assert torch.equal(plain, sample(0.0)) and not torch.equal(plain, sample(1.0))
    film = model.decode(plain)
    assert film.shape == (2, 32, 32, 3) and 0.0 <= float(film.min()) and float(film.max()) <= 1.0


@pytest.mark.parametrize(
    ("height", "width", "message"), [(60, 64, "height is 60.*multiple of 8"), (64, 4, "width is 4")]
)
def test_sizes_are_whole_patches(model, height: int, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.noise(8, height, width, 0)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
        load_joint_toybox(folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="vae is missing"):
        load_joint_toybox(parts=tmp_path)
    assert (TOYBOX_FOLDER / "vae").is_dir()


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    shutil.copy(JOINT_FOLDER / "model.safetensors", tmp_path)
    JointConfig(depth=2).save(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"tensors differ \(first: blocks\.2\.attn\.norm_k\.weight"):
        load_network(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        load_network(tmp_path)
