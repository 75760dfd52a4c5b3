"""Text encoders and VAEs out of Stable Diffusion files give what ComfyUI's own classes give on the same tensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_stable_diffusion import tiny_clip, tiny_vae, write_checkpoint, write_tokenizer

from mask_guided_video.video_models.stable_diffusion.parts import load_parts

pytestmark = pytest.mark.comfy
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["Stable Diffusion 1", "x4 upscaler"])
def both(request, tmp_path_factory):
    """Our parts of a checkpoint file, its tensors, and the number of the VAE's levels."""
    root = tmp_path_factory.mktemp("parts")
    first = request.param == "Stable Diffusion 1"
    levels = 4 if first else 3
    clip = tiny_clip(64, 3) if first else tiny_clip(64, 3, activation="gelu")
    path = write_checkpoint(root / "model.safetensors", clip, tiny_vae(levels), openclip=not first)
    return load_parts(path, write_tokenizer(root / "words")), load_file(path), levels


def test_text(both):
    import comfy.supported_models as supported
    from comfy.sd1_clip import SDClipModel

    parts, state, levels = both
    first = levels == 4
    text = {name: value for name, value in state.items() if name.startswith("cond_stage_model.")}
    family, prefix = (supported.SD15, "clip_l.") if first else (supported.SD_X4Upscaler, "clip_h.")
    renamed = family({"context_dim": 64}).process_clip_state_dict(text)
    renamed = {name.removeprefix(f"{prefix}transformer."): value for name, value in renamed.items()}
    # ComfyUI's vocabulary has one size; what lies behind ours is never asked for.
    words = "text_model.embeddings.token_embedding.weight"
    renamed[words] = torch.cat([renamed[words], torch.zeros(49408 - 520, 64)])
    config = {
        "num_hidden_layers": 3 if first else 4, "num_attention_heads": 1, "hidden_size": 64, "intermediate_size": 128,
        "hidden_act": "quick_gelu" if first else "gelu", "max_position_embeddings": 77, "eos_token_id": 519,
        "projection_dim": 64, "layer_norm_eps": 1e-5, "model_type": "clip_text_model",
    }  # fmt: skip
    pad = 519 if first else 0
    native = SDClipModel(
        device="cpu", dtype=torch.float32, textmodel_json_config=config,
        special_tokens={"start": 518, "end": 519, "pad": pad},
        # As ComfyUI's own classes ask for these encoders: the last layer, or the one before it through the last norm.
        **({"layer": "last"} if first else {"layer": "hidden", "layer_idx": -2}),
    )  # fmt: skip
    missing = native.load_sd(renamed)[0]
    assert all("text_projection" in name or "logit_scale" in name for name in missing)
    embedding = parts.text.encode("a red ball!", CPU).embedding
    with torch.inference_mode():
        expected = native.encode([parts.text.tokens("a red ball!")])[0]
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


def test_pictures(both):
    from comfy.ldm.models.autoencoder import AutoencoderKL

    parts, state, levels = both
    config = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, *[2] * (levels - 1)], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    native = AutoencoderKL(ddconfig=config, embed_dim=4).eval()
    prefix = "first_stage_model."
    native.load_state_dict({n[len(prefix) :]: value for n, value in state.items() if n.startswith(prefix)})
    frames = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(0))
    latents = parts.coder.encode(frames, CPU)
    scale = 0.18215 if levels == 4 else 0.08333
    with torch.inference_mode():
        moments = native.quant_conv(native.encoder(frames.movedim(-1, 1) * 2 - 1))
        torch.testing.assert_close(latents[0].transpose(0, 1), moments[:, :4] * scale, atol=1e-5, rtol=1e-5)
        pictures = native.decode(latents[0].transpose(0, 1) / scale)
    made = torch.cat(list(parts.coder.decode_parts(latents, CPU)))
    torch.testing.assert_close(made, (pictures / 2 + 0.5).clamp(0, 1).movedim(1, -1), atol=1e-5, rtol=1e-5)
