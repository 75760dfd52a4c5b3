"""Reading files of LaVie's U-Nets: wrappers, prefixes, stages and sizes from shapes, what is wrong with them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mask_guided_video.video_models.lavie.config import LaVieConfig, UpscalerConfig, config_from_dict
from mask_guided_video.video_models.lavie.files import (
    DETECTION_KEY,
    PUBLISHED_FILES,
    check_unet_state,
    find_config,
    infer_config,
    make_unet,
    open_unet,
    require_stage,
    stage_of,
    unet_state,
)
from mask_guided_video.video_models.lavie.unet import LaVieUNet
from mask_guided_video.video_models.lavie.upscaler import UpscalerUNet

PUBLISHED = {
    "base": LaVieConfig(),
    "interpolation": LaVieConfig(stage="interpolation", in_channels=8, native_frames=61),
    "upscaling": UpscalerConfig(),
}
SMALL = {
    "block_out_channels": (32, 64, 32),
    "attention_levels": (True, False, True),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
}
TINY = {
    "base": LaVieConfig(**SMALL),
    "interpolation": LaVieConfig(stage="interpolation", in_channels=8, native_frames=61, **SMALL),
    "upscaling": UpscalerConfig(only_cross_attention=(False, True, False), **SMALL),
}
# Names and numbers of the published files.
TABLES = {"base": (830, 909_124_356), "interpolation": (798, 909_131_524), "upscaling": (1158, 691_036_692)}
STAGES = tuple(PUBLISHED)


def meta_state(config):
    with torch.device("meta"):
        return make_unet(config).state_dict()


@pytest.fixture(scope="module")
def full():
    return {stage: meta_state(config) for stage, config in PUBLISHED.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_tensors_and_elements_are_as_many_as_published(full, stage):
    assert (len(full[stage]), sum(value.numel() for value in full[stage].values())) == TABLES[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_and_sizes_follow_from_the_published_tensors(full, stage):
    state = unet_state({"ema": full[stage]})
    assert stage_of(state) == stage
    assert infer_config(state) == PUBLISHED[stage]
    check_unet_state(state, PUBLISHED[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_sizes_of_small_models_follow_from_their_tensors(stage):
    config = TINY[stage]
    assert infer_config(unet_state(meta_state(config))) == config
    found = infer_config(unet_state(meta_state(config)), native_frames=4, prediction_type="v_prediction")
    assert (found.native_frames, found.prediction_type) == (4, "v_prediction")


def test_the_class_follows_from_the_config():
    assert type(make_unet(TINY["interpolation"], device="meta")) is LaVieUNet
    assert type(make_unet(TINY["upscaling"], device="meta")) is UpscalerUNet


@pytest.mark.parametrize("wrap", ["", "ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "module."])
@pytest.mark.parametrize("stage", STAGES)
def test_wrappers_and_prefixes_are_taken_off(full, stage, wrap, prefix):
    contents = {prefix + name: value for name, value in full[stage].items()}
    state = unet_state({wrap: contents, "step": 3} if wrap else contents)
    computed = {"base": 16, "interpolation": 0, "upscaling": 17}[stage]
    assert set(state) <= set(full[stage]) and len(state) == len(full[stage]) - computed
    assert not any("rotary" in name for name in state)


def test_other_files_are_refused():
    with pytest.raises(ValueError, match="holds 1 entries but neither .* not one of LaVie"):
        unet_state({"conv_in.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("stage", "channels", "message"),
    [
        # Models that others made of LaVie's, or that have its names.
        ("base", 9, "names of LaVie's base model but takes 9 input channels instead of 4"),
        ("interpolation", 4, "interpolation model but takes 4 input channels instead of 8"),
    ],
)
def test_models_with_the_names_but_other_inputs_are_refused(stage, channels, message):
    state = unet_state(meta_state(TINY[stage]))
    state["conv_in.weight"] = state["conv_in.weight"].new_empty(32, channels, 3, 3)
    with pytest.raises(ValueError, match=message):
        infer_config(state)


def test_the_wrong_stage_is_named_with_the_wanted_one():
    require_stage("base", "base", "any.pt")
    expected = (
        "my.pt is LaVie's interpolation model, but here the base model is wanted; choose lavie_base.pt or a file made "
        "from it."
    )
    with pytest.raises(ValueError) as caught:
        require_stage("interpolation", "base", "my.pt")
    assert str(caught.value) == expected
    with pytest.raises(ValueError, match="is LaVie's base model, but here the upscaler is wanted; choose lavie_vsr.pt"):
        require_stage("base", "upscaling", "my.pt")


def randomly(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_unet(config).state_dict()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("form", ["ema", "bare", "safetensors"])
def test_files_open_in_every_form(tmp_path, stage, form):
    state = randomly(TINY[stage])
    path = tmp_path / PUBLISHED_FILES[stage]
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        torch.save({"ema": state} if form == "ema" else state, path)
    found, config = open_unet(path)
    assert config == TINY[stage]
    assert found and all(torch.equal(value, state[name]) for name, value in found.items())
    keys = make_unet(config).load_state_dict(found, strict=False)
    assert not keys.unexpected_keys and all("rotary" in name for name in keys.missing_keys)


@pytest.mark.parametrize("stage", STAGES)
def test_files_cut_short_are_refused(tmp_path, stage):
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"cut{suffix}"
        if suffix == ".pt":
            torch.save({"ema": randomly(TINY[stage])}, path)
        else:
            save_file(randomly(TINY[stage]), path)
        whole = path.read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 100):
            path.write_bytes(whole[:length])
            with pytest.raises(RuntimeError, match="broken or cut short"):
                open_unet(path)


@pytest.mark.parametrize("stage", STAGES)
def test_incomplete_files_are_refused_by_name(tmp_path, stage):
    state = randomly(TINY[stage])
    path = tmp_path / "some.pt"
    del state["mid_block.resnets.1.conv2.bias"]
    torch.save({"ema": state}, path)
    with pytest.raises(ValueError, match=r"some.pt: the U-Net file lacks 1 tensors \(first: mid_block.resnets.1.conv2"):
        open_unet(path)
    for name in ("conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"):
        torch.save({key: value for key, value in state.items() if key != name}, path)
        with pytest.raises(ValueError, match=f"some.pt: the U-Net file lacks .*{name}"):
            open_unet(path)


def test_a_tensor_of_another_size_is_named(tmp_path):
    state = randomly(TINY["base"])
    state["up_blocks.0.resnets.0.conv2.weight"] = torch.zeros(8, 8, 3, 3)
    with pytest.raises(ValueError, match=r"up_blocks.0.resnets.0.conv2.weight has shape \(8, 8, 3, 3\) where"):
        check_unet_state(unet_state(state), TINY["base"])


def test_a_config_beside_the_file_wins_over_the_header_and_that_over_shapes(tmp_path):
    state = unet_state(meta_state(TINY["upscaling"]))
    path = tmp_path / "mine.safetensors"
    header = {"config": json.dumps(TINY["upscaling"].to_dict() | {"native_frames": 3})}
    assert find_config(state, path).native_frames == 8
    assert find_config(state, path, header).native_frames == 3
    TINY["upscaling"].save(path.with_suffix(".json"))
    assert find_config(state, path, header) == TINY["upscaling"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "mine.json holds no config of a U-Net"),
        ("[]", "mine.json holds no config of a U-Net"),
        ('{"sizes": 3}', "unknown keys sizes"),
        ('{"stage": "deblurring"}', "stage is 'deblurring'; choose one of base, interpolation"),
        ('{"stage": "interpolation"}', "describes LaVie's interpolation model but the tensors are the base model's"),
    ],
)
def test_broken_configs_are_named(tmp_path, text, message):
    path = tmp_path / "mine.pt"
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_config(unet_state(meta_state(TINY["base"])), path)


@pytest.mark.parametrize("stage", STAGES)
def test_configs_survive_their_files(tmp_path, stage):
    path = tmp_path / "config.json"
    TINY[stage].save(path)
    assert config_from_dict(json.loads(path.read_text())) == TINY[stage]
    assert type(TINY[stage]).load(path) == TINY[stage]


def test_upscaler_configs_refuse_what_cannot_work():
    with pytest.raises(ValueError, match="only_cross_attention has 4 entries for 3 levels"):
        UpscalerConfig(block_out_channels=(32, 32, 32), attention_levels=(True,) * 3)
    with pytest.raises(ValueError, match="in_channels is 4 and out_channels 4"):
        UpscalerConfig(in_channels=4)
    with pytest.raises(ValueError, match="stage is 'base'; choose one of upscaling"):
        UpscalerConfig(stage="base")
    with pytest.raises(ValueError, match="prediction_type is 'sample'"):
        UpscalerConfig(prediction_type="sample")


def test_the_detection_key_is_the_published_one(full):
    assert DETECTION_KEY in full["base"] and DETECTION_KEY not in full["interpolation"]
