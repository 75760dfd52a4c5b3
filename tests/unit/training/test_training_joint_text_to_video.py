"""Training of the joint text-to-video model: its scenes, its loss, what is written."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from mask_guided_video.attention_patches.kernels.torch_attention import attention
from mask_guided_video.toybox import world
from mask_guided_video.training.train_joint_text_to_video import (
    CONFIG,
    DenoisingLoss,
    draw_scene,
    export,
    initialise,
    load_text,
    make_optimizers,
    training_attention,
)
from mask_guided_video.training.train_text_to_video import ClipStore
from mask_guided_video.video_models.joint.model import load_network
from mask_guided_video.video_models.joint.transformer import JointVideoTransformer
from mask_guided_video.video_models.toybox import TOYBOX_FOLDER


@pytest.fixture(scope="module")
def loss(tmp_path_factory) -> DenoisingLoss:
    encoder, tokenizer = load_text(TOYBOX_FOLDER)
    path = tmp_path_factory.mktemp("clips") / "clips.pt"
    store = ClipStore(path, 3, "train", 1, TOYBOX_FOLDER / "vae", tokenizer, "cpu", draw_scene)
    options = argparse.Namespace(seed=1, device="cpu", half=False, batch=2, image_batch=3, image_steps=2, image_every=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = JointVideoTransformer(CONFIG)
    initialise(network)
    return DenoisingLoss(network, encoder, store, options)


def test_half_of_the_scenes_have_two_objects_and_most_of_those_two_shapes() -> None:
    generator = np.random.default_rng(0)
    scenes = [draw_scene(generator, "train") for _ in range(1000)]
    pairs = [scene.objects for scene in scenes if len(scene.objects) == 2]
    assert 0.4 < len(pairs) / len(scenes) < 0.56
    assert all(first.colour != second.colour for first, second in pairs)
    assert 0.75 < sum(first.shape != second.shape for first, second in pairs) / len(pairs) < 0.9
    assert not any(
        world.is_held_out(item.colour, item.shape, item.motion) for scene in scenes for item in scene.objects
    )


def test_attention_of_the_training_is_that_of_the_model() -> None:
    query, key, value = torch.randn(3, 2, 4, 7, 6).unbind(0)
    expected = attention(query, key, value, 4, skip_reshape=True)
    torch.testing.assert_close(training_attention(query, key, value, 4, skip_reshape=True), expected)


def test_a_new_network_predicts_nothing_and_every_parameter_learns(loss) -> None:
    latents, tokens = loss.store.latents.float(), loss.store.tokens
    value = loss.loss(latents, tokens, np.random.default_rng(3))
    # The velocity of unit latents and unit noise has a variance of about 1.
    assert 0.5 < value.item() < 2.0
    optimizers = make_optimizers(loss.network)
    held = [id(tensor) for optimizer in optimizers for group in optimizer.param_groups for tensor in group["params"]]
    assert sorted(held) == sorted(id(tensor) for tensor in loss.network.parameters())
    before = {name: tensor.detach().clone() for name, tensor in loss.network.named_parameters()}
    for step in range(3):
        loss.network.zero_grad()
        loss(step).backward()
        for optimizer in optimizers:
            optimizer.step()
    still = [name for name, tensor in loss.network.named_parameters() if torch.equal(before[name], tensor)]
    assert not still, still


def test_a_step_is_the_same_again(loss) -> None:
    with torch.no_grad():
        first, again, other = loss(0), loss(0), loss(5)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_exported_weights_are_read_back(tmp_path: Path, loss) -> None:
    export(loss.network.state_dict(), tmp_path)
    network = load_network(tmp_path)
    assert network.config == CONFIG
    for name, value in loss.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value.half().float()), name
