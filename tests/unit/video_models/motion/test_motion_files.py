"""Motion files: written, read, refused, and put into stand-alone models; LoRA updates literally."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mask_guided_video.training.motion.architectures import LoraArchitecture
from mask_guided_video.video_models.motion.lora import lora_updates, with_lora
from mask_guided_video.video_models.motion.motion_files import (
    METADATA_KEY,
    MotionInfo,
    apply_motion,
    base_hash,
    read_motion,
    write_motion,
)


@pytest.fixture
def tuned(tiny_video_model, tmp_path):
    """A file of a LoRA with random values, and the network that peft makes of it."""
    architecture = LoraArchitecture(rank=2, alpha=6.0, modules=("self_queries", "convolutions"))
    network = architecture.prepare(tiny_video_model.unet)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in architecture.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    names = architecture.base_names()
    info = MotionInfo(
        "lora",
        "tiny",
        base_hash(tiny_video_model.unet.state_dict(), names),
        tuple(names),
        4,
        prompt="a red ball",
        phrases=("red ball",),
        constants={"beta": 3.0},
        details=architecture.metadata(),
    )
    write_motion(tmp_path / "motion.safetensors", architecture.state(), info)
    return tmp_path / "motion.safetensors", network, info


def test_a_file_holds_what_was_written(tuned):
    path, _, info = tuned
    found = read_motion(path)
    assert found.info == info and found.name == "motion.safetensors"
    assert found.info.details["rank"] == 2 and found.info.version == 1
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_a_model_with_the_file_predicts_as_it_was_tuned(tuned, tiny_video_model):
    path, network, _ = tuned
    latents, context = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 5, 16)
    step = torch.tensor([300.0])
    with torch.no_grad():
        before = tiny_video_model.unet(latents, step, context)
        model = apply_motion(tiny_video_model, read_motion(path))
        torch.testing.assert_close(model.unet(latents, step, context), network(latents, step, context))
        assert not torch.allclose(model.unet(latents, step, context), before, atol=1e-3)
        assert torch.equal(tiny_video_model.unet(latents, step, context), before)
    assert model.unet.conv_in.weight is tiny_video_model.unet.conv_in.weight
    assert apply_motion(tiny_video_model, read_motion(path), 0.0) is tiny_video_model


def test_updates_literally():
    tensors = {
        "diffusion_model.a.lora_A.weight": torch.tensor([[1.0, 2.0]]),
        "diffusion_model.a.lora_B.weight": torch.tensor([[3.0], [4.0]]),
        "diffusion_model.a.alpha": torch.tensor(0.5),
    }
    assert lora_updates(tensors)["a"].tolist() == [[1.5, 3.0], [2.0, 4.0]]
    layer = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False)})
    torch.nn.init.ones_(layer["a"].weight)
    assert with_lora(layer, tensors, 2.0)["a"].weight.tolist() == [[4.0, 7.0], [5.0, 9.0]]
    assert layer["a"].weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("diffusion_model.a.lora_B.weight"), "lacks one of its two matrices"),
        (lambda state: state.update({"diffusion_model.a.lora_B.weight": torch.ones(2, 2)}), "of ranks 1 and 2"),
        (lambda state: state.update({"diffusion_model.a.lora_B.weight": torch.ones(3, 1)}), r"by \(3, 2\)"),
        (lambda state: state.update({"diffusion_model.b.lora_A.weight": torch.ones(1, 2)}), "layer .*b lacks one"),
    ],
)
def test_updates_that_do_not_fit(change, message):
    state = {"diffusion_model.a.lora_A.weight": torch.ones(1, 2), "diffusion_model.a.lora_B.weight": torch.ones(2, 1)}
    change(state)
    with pytest.raises(ValueError, match=message):
        with_lora(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)}), state)


def test_layers_that_a_model_lacks_are_named():
    state = {"diffusion_model.b.lora_A.weight": torch.ones(1, 2), "diffusion_model.b.lora_B.weight": torch.ones(2, 1)}
    with pytest.raises(ValueError, match="file.safetensors changes the layer b, which this model lacks"):
        with_lora(torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)}), state, 1.0, "file.safetensors")


def test_another_model_is_an_error_unless_allowed(tuned, tiny_video_model):
    from mask_guided_video.video_models.motion.motion_files import with_unet
    from mask_guided_video.video_models.motion.sharing import sharing_copy

    motion = read_motion(tuned[0])
    other = sharing_copy(tiny_video_model.unet)
    layer = other.get_submodule(motion.info.base_tensors[0].removesuffix(".weight"))
    layer.weight = torch.nn.Parameter(layer.weight * 1.1)
    model = with_unet(tiny_video_model, other)
    with pytest.raises(ValueError, match="was tuned on tiny, and this model has other weights"):
        apply_motion(model, motion)
    assert apply_motion(model, motion, any_base=True) is not model
    # A weight that the file does not change may differ.
    layer.weight = torch.nn.Parameter(layer.weight / 1.1)
    other.conv_out.weight = torch.nn.Parameter(other.conv_out.weight * 2)
    assert apply_motion(with_unet(tiny_video_model, other), motion, any_base=True)


def test_the_hash_does_not_depend_on_how_weights_are_held(tiny_video_model):
    state = {name: value.half() for name, value in tiny_video_model.unet.state_dict().items()}
    names = [name for name in state if name.endswith("to_q.weight")]
    single = {name: value.float() for name, value in state.items()}
    assert base_hash(state, names) == base_hash(single, list(reversed(names)))
    single[names[0]] = single[names[0]] + 0.01
    assert base_hash(state, names) != base_hash(single, names)


def test_files_that_are_no_motion(tmp_path, tuned):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is not a motion file"):
        read_motion(tmp_path / "other.safetensors")
    for metadata, message in (
        ("no json", "header that cannot be read"),
        (json.dumps({"kind": "lora"}), "header that cannot be read"),
        (json.dumps({**vars(tuned[2]), "version": 2}), "version 2; this pack knows"),
        (json.dumps({**vars(tuned[2]), "kind": "adapter"}), "of the kind 'adapter'"),
    ):
        save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={METADATA_KEY: metadata})
        with pytest.raises(ValueError, match=message):
            read_motion(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(tuned[0].read_bytes()[:500])
    with pytest.raises(RuntimeError, match="cut.safetensors"):
        read_motion(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError):
        read_motion(tmp_path / "missing.safetensors")
