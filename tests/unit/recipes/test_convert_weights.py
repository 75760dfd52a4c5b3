"""Writing LaVie's files as safetensors: nothing is lost, nothing broken is written."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mask_guided_video.recipes.convert_weights import convert_weights
from mask_guided_video.video_models.lavie.config import LaVieConfig, UpscalerConfig
from mask_guided_video.video_models.lavie.files import PUBLISHED_FILES, make_unet, open_unet

SMALL = {
    "block_out_channels": (32, 64),
    "attention_levels": (True, False),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
}
CONFIGS = {
    "base": LaVieConfig(**SMALL),
    "interpolation": LaVieConfig(stage="interpolation", in_channels=8, native_frames=61, **SMALL),
    "upscaling": UpscalerConfig(only_cross_attention=(True, False), **SMALL),
}


@pytest.fixture(params=list(CONFIGS))
def published(request, tmp_path):
    """A stage's name, its config and a file in the published form, with other things in it."""
    config = CONFIGS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = make_unet(config).state_dict()
    path = tmp_path / PUBLISHED_FILES[request.param]
    torch.save({"ema": state, "opt": {"state": {}}, "step": 12000}, path)
    return request.param, config, path, state


def test_every_tensor_comes_back_to_the_bit(published):
    stage, config, path, state = published
    steps = []
    result = convert_weights(path, progress=lambda *step: steps.append(step))
    assert result.target == path.with_suffix(".safetensors")
    written = load_file(result.target)
    assert list(written) and set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) and written[name].dtype == state[name].dtype for name in state)
    assert (result.stage, result.tensors) == (stage, len(state))
    assert result.elements == sum(value.numel() for value in state.values())
    assert result.bytes_written == result.target.stat().st_size and str(result.tensors) in result.summary()
    assert steps[-1] == ("writing", len(state), len(state)) and len(steps) == len(state)
    with safe_open(result.target, "pt") as file:
        assert json.loads(file.metadata()["config"]) == json.loads(json.dumps(config.to_dict()))


def test_the_written_file_opens_as_the_same_model(published):
    _, config, path, _ = published
    target = convert_weights(path).target
    path.unlink()
    state, found = open_unet(target)
    assert found == config
    unet = make_unet(found)
    assert not unet.load_state_dict(state, strict=False).unexpected_keys


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_other_precision_rounds_weights_but_not_frequencies(published, precision):
    _, _, path, state = published
    dtype = getattr(torch, precision)
    target = path.with_name("half.safetensors")
    result = convert_weights(path, target, precision)
    for name, value in load_file(target).items():
        assert torch.equal(value, state[name] if name.endswith("freqs") else state[name].to(dtype)), name
    assert result.bytes_written < 0.6 * result.bytes_read
    again = convert_weights(target, path.with_name("again.safetensors"), "float32")
    assert load_file(again.target)["conv_in.weight"].dtype == torch.float32


def test_a_config_beside_the_source_goes_into_the_header(published):
    _, config, path, _ = published
    values = config.to_dict() | {"native_frames": 5}
    path.with_suffix(".json").write_text(json.dumps(values))
    target = convert_weights(path, path.with_name("other.safetensors")).target
    assert open_unet(target)[1].native_frames == 5


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "lavie_base.pt"
    state = make_unet(CONFIGS["base"]).state_dict()
    torch.save({"ema": state}, path)
    return path, state


def test_what_exists_is_kept_unless_told_otherwise(base):
    path, _ = base
    target = path.with_suffix(".safetensors")
    target.write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists"):
        convert_weights(path)
    assert target.read_bytes() == b"mine"
    assert convert_weights(path, overwrite=True).target.stat().st_size > 1000
    with pytest.raises(ValueError, match="is the source itself"):
        convert_weights(target, target, "float16", overwrite=True)


@pytest.mark.parametrize(
    ("value", "precision", "message"),
    [
        (float("nan"), None, "conv_in.weight holds numbers that are not finite"),
        (1e6, "float16", "conv_in.weight reaches 1e.06, too much for torch.float16; choose precision bfloat16"),
    ],
)
def test_numbers_that_would_break_the_model_are_refused(base, value, precision, message):
    path, state = base
    state["conv_in.weight"][0, 0, 0, 0] = value
    torch.save({"ema": state}, path)
    with pytest.raises(ValueError, match=message):
        convert_weights(path, precision=precision)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_cut_short_incomplete_and_foreign_files_are_refused_before_writing(base):
    path, state = base
    whole = path.read_bytes()
    for length, message in ((len(whole) // 2, "cut short"), (0, "is empty")):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=message):
            convert_weights(path)
    del state["conv_out.bias"]
    torch.save({"ema": state}, path)
    with pytest.raises(ValueError, match=r"lavie_base.pt: the U-Net file lacks 1 tensors \(first: conv_out.bias\)"):
        convert_weights(path)
    save_file({"conv_in.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not one of LaVie's U-Nets"):
        convert_weights(path)
    with pytest.raises(FileNotFoundError, match="not a file"):
        convert_weights(path.with_name("absent.pt"))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_wrong_targets_are_refused_before_reading(base, tmp_path, monkeypatch):
    path, _ = base
    with pytest.raises(ValueError, match="ends in .safetensors"):
        convert_weights(path, tmp_path / "out.pt")
    with pytest.raises(ValueError, match="folder does not exist"):
        convert_weights(path, tmp_path / "absent" / "out.safetensors")
    with pytest.raises(ValueError, match="precision is 'int8'; choose one of float32, float16, bfloat16"):
        convert_weights(path, precision="int8")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ValueError, match="0 GB are free"):
        convert_weights(path)


def test_command_line(base, root, capsys):
    import importlib.util

    path, _ = base
    spec = importlib.util.spec_from_file_location("cli", root / "cli.py")
    cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cli)
    assert cli.main(["convert", str(path), "--precision", "float16", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "base model" in out and str(path.with_suffix(".safetensors")) in out
    assert cli.main(["convert", str(path), "--quiet"]) == 2
    assert "exists" in capsys.readouterr().err
