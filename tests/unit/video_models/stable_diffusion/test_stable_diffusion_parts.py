"""Text encoder and VAE out of Stable Diffusion files in every form they come in."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_stable_diffusion import (
    openclip_state,
    original_vae_names,
    plain_clip_names,
    tiny_clip,
    tiny_vae,
    under,
    write_checkpoint,
    write_folder,
    write_tokenizer,
)

from mask_guided_video.video_models.stable_diffusion import names
from mask_guided_video.video_models.stable_diffusion.parts import load_parts

CPU = torch.device("cpu")
PROMPT = "a red ball!"
FRAMES = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made():
    return tiny_clip(), tiny_vae()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, made):
    return write_folder(tmp_path_factory.mktemp("diffusers"), *made)


@pytest.fixture
def files(tmp_path, made):
    """A checkpoint with its tokenizer beside it."""
    write_tokenizer(tmp_path / "tokenizer")
    return write_checkpoint(tmp_path / "model.safetensors", *made)


def same(parts, expected) -> None:
    torch.testing.assert_close(
        parts.text.encode(PROMPT, CPU).embedding, expected.text.encode(PROMPT, CPU).embedding, rtol=0, atol=0
    )
    torch.testing.assert_close(parts.coder.encode(FRAMES, CPU), expected.coder.encode(FRAMES, CPU), rtol=0, atol=0)


def test_a_folder_gives_what_was_saved(made, folder) -> None:
    clip, vae = made
    parts = load_parts(folder)
    tokens = parts.text.tokens(PROMPT)
    assert len(tokens) == 77
    with torch.inference_mode():
        expected = clip(input_ids=torch.tensor([tokens])).last_hidden_state
        raw = vae.encode(FRAMES.movedim(-1, 1) * 2 - 1).latent_dist.mode() * 0.18215
    # Padding is read as words are, and nothing is hidden.
    torch.testing.assert_close(parts.text.encode(PROMPT, CPU).embedding, expected)
    torch.testing.assert_close(parts.coder.encode(FRAMES, CPU), raw.transpose(0, 1)[None])
    assert parts.coder.factor == 8 and not any(p.requires_grad for p in parts.text.encoder.parameters())


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_checkpoint_file_gives_the_same(made, folder, tmp_path, name: str) -> None:
    path = write_checkpoint(tmp_path / name, *made)
    same(load_parts(path, folder / "tokenizer"), load_parts(folder))


def test_a_tokenizer_beside_the_file_is_found(folder, files) -> None:
    same(load_parts(files), load_parts(folder))


def test_names_of_merged_checkpoints_without_the_inner_prefix(folder, files) -> None:
    state = load_file(files)
    save_file({name.replace("transformer.text_model.", "transformer."): v for name, v in state.items()}, files)
    same(load_parts(files), load_parts(folder))


def test_older_names_of_the_vaes_attention(made, folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    path = tmp_path / "old" / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for new, old in older.items():
        state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for name, v in state.items()}
    assert any("proj_attn" in name for name in state)
    save_file(state, path)
    same(load_parts(tmp_path / "old"), load_parts(folder))


def test_half_precision_files_become_float32(made, folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "half")
    for path in (tmp_path / "half").rglob("*.safetensors"):
        save_file({name: value.half() for name, value in load_file(path).items()}, path)
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    parts = load_parts(tmp_path / "half")
    assert parts.text.encoder.dtype == parts.coder.vae.dtype == torch.float32
    expected = load_parts(folder).text.encode(PROMPT, CPU).embedding
    torch.testing.assert_close(parts.text.encode(PROMPT, CPU).embedding, expected, atol=0.02, rtol=0)


def test_the_upscalers_parts(tmp_path) -> None:
    """OpenCLIP's names in one file: its last block unused, exact GELU, padding with ``!``; a VAE of factor 4."""
    clip, vae = tiny_clip(width=128, activation="gelu"), tiny_vae(levels=3)
    path = write_checkpoint(tmp_path / "x4.ckpt", clip, vae, openclip=True)
    write_tokenizer(tmp_path / "tokenizer")
    parts = load_parts(path)
    ids = parts.text.tokens(PROMPT)
    assert ids[-1] == 0 and parts.text.tokenizer.pad_token == "!"
    assert parts.text.encoder.config.num_hidden_layers == 2
    with torch.inference_mode():
        expected = clip(input_ids=torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(parts.text.encode(PROMPT, CPU).embedding, expected)
    assert parts.coder.factor == 4 and parts.coder.vae.config.scaling_factor == 0.08333
    # The padding's letter is a word where it stands in the prompt.
    assert parts.text.spans("a ball! red", ["ball!"]).positions == ((2, 3),)


def test_openclip_under_its_later_prefix(tmp_path) -> None:
    path = write_checkpoint(tmp_path / "x4.safetensors", tiny_clip(activation="gelu"), tiny_vae(3), openclip=True)
    write_tokenizer(tmp_path / "tokenizer")
    expected = load_parts(path)
    state = load_file(path)
    save_file({name.replace("cond_stage_model.", "conditioner.embedders.0."): v for name, v in state.items()}, path)
    same(load_parts(path), expected)


@pytest.mark.parametrize("levels", [3, 4])
def test_vae_names_agree_with_diffusers(levels: int) -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    vae = tiny_vae(levels)
    original = original_vae_names(vae.state_dict(), levels)
    converted = single_file.convert_ldm_vae_checkpoint(under("first_stage_model.", original), vae.config)
    ours = names.vae_names(original)
    assert converted.keys() == ours.keys() == vae.state_dict().keys()
    for name, value in ours.items():
        assert torch.equal(value, vae.state_dict()[name])
        assert torch.equal(value.flatten(), converted[name].flatten())
    # A state in today's names passes through.
    assert names.vae_names(vae.state_dict()).keys() == ours.keys()


def test_openclip_names_agree_with_diffusers() -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    clip = tiny_clip(128)
    state = openclip_state(clip)
    ours = names.openclip_names(state)
    assert all(torch.equal(value, plain_clip_names(clip)[name]) for name, value in ours.items())
    assert ours.keys() == plain_clip_names(clip).keys()
    converted = single_file.convert_open_clip_checkpoint(clip, under("cond_stage_model.model.", state))
    converted = {name.removeprefix("text_model."): value for name, value in converted.items()}
    assert all(torch.equal(value, converted[name]) for name, value in ours.items())


def test_phrases_are_found_among_clips_tokens(folder) -> None:
    text = load_parts(folder).text
    assert text.spans(PROMPT, ["red ball"]).positions == ((2, 3),)
    assert text.spans(PROMPT, ["red ball"]).length == 77
    with pytest.raises(ValueError, match="'zebra'"):
        text.spans(PROMPT, ["zebra"])
    # Seventy-seven tokens are read; what stands behind them has none.
    with pytest.raises(ValueError, match="cut off"):
        text.spans("a " * 80 + "red ball", ["red ball"])


def test_a_prompt_that_is_cut_is_warned_of(folder, caplog) -> None:
    text = load_parts(folder).text
    assert text.encode("a " * 75, CPU).embedding.shape == (1, 77, 64) and not caplog.messages
    assert text.encode("a " * 76, CPU).embedding.shape == (1, 77, 64)
    assert caplog.messages == ["the prompt has more than 77 tokens; the text encoder does not read its end."]


def test_a_missing_scale_is_that_of_the_kind(tmp_path) -> None:
    write_folder(tmp_path / "x4", tiny_clip(), tiny_vae(3))
    path = tmp_path / "x4" / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["scaling_factor"]
    path.write_text(json.dumps(config))
    assert load_parts(tmp_path / "x4").coder.vae.config.scaling_factor == 0.08333


def broken(tmp_path, kind: str):
    """A path with something wrong."""
    encoder, vae = tiny_clip(), tiny_vae()
    if kind in ("no text", "no VAE", "half a VAE", "cut", "no tokenizer"):
        path = write_checkpoint(tmp_path / "model.safetensors", encoder, vae)
        if kind != "no tokenizer":
            write_tokenizer(tmp_path / "tokenizer")
        state = load_file(path)
        prefix = {"no text": "cond_stage_model", "no VAE": "first_stage_model"}.get(kind, "first_stage_model.encoder.c")
        if kind not in ("cut", "no tokenizer"):
            save_file({name: value for name, value in state.items() if not name.startswith(prefix)}, path)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:5000])
        return path
    folder = write_folder(tmp_path / "folder", encoder, vae)
    if kind == "no encoder folder":
        shutil.rmtree(folder / "text_encoder")
    elif kind == "no weights":
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    elif kind == "T5":
        (folder / "text_encoder" / "config.json").write_text('{"model_type": "t5"}')
    elif kind == "other VAE":
        (folder / "vae" / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    elif kind == "large tokenizer":
        path = folder / "tokenizer" / "vocab.json"
        words = json.loads(path.read_text())
        path.write_text(json.dumps({**words, "zebra</w>": len(words), "lion</w>": len(words) + 1}))
    return folder


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("no text", ValueError, "model.safetensors holds no text encoder.*choose a full checkpoint"),
        ("no VAE", ValueError, "model.safetensors holds no VAE"),
        ("half a VAE", RuntimeError, "lacks tensor encoder.conv_in.weight"),
        ("cut", RuntimeError, "broken or cut short"),
        ("no tokenizer", ValueError, "no tokenizer.*vocab.json and merges.txt"),
        ("no encoder folder", FileNotFoundError, r"config.json is missing"),
        ("no weights", FileNotFoundError, "has no weights"),
        ("T5", ValueError, "type 't5'"),
        ("other VAE", ValueError, "AutoencoderTiny"),
        ("large tokenizer", ValueError, "knows 522 tokens.*520"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, monkeypatch, kind: str, error: type, message: str) -> None:
    monkeypatch.setattr(
        "mask_guided_video.video_models.stable_diffusion.parts.CACHED_TOKENIZER", str(tmp_path / "no-cache")
    )
    with pytest.raises(error, match=message):
        load_parts(broken(tmp_path, kind))


def test_a_missing_path_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        load_parts(tmp_path / "nothing.safetensors")
