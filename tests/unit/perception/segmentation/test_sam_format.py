"""SAM weights in both layouts: names, sizes, every published size, and files that do not fit."""

import pytest
import torch

from mask_guided_video.perception.segmentation import sam, sam_hq
from mask_guided_video.perception.segmentation.sam_format import (
    claims_sam,
    config_of_original,
    detect_layout,
    sam_of_state,
    to_original,
    to_transformers,
)
from mask_guided_video.training.perception.models import build_segmenter
from mask_guided_video.weight_files.reading import read_state


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_segmenter().eval()


@pytest.fixture(scope="module")
def original(model):
    return {name: value.clone() for name, value in to_original(model.state_dict()).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_renaming_there_and_back_is_lossless(model, original):
    assert detect_layout(model.state_dict()) == "transformers"
    assert detect_layout(original) == "original"
    assert same(to_transformers(original), model.state_dict())


def test_only_whole_sams_are_claimed(model, original):
    assert sam.claims(original) and sam.claims(model.state_dict())
    assert not sam_hq.claims(original) and not sam_hq.claims(model.state_dict())
    assert not claims_sam({name: value for name, value in original.items() if "mask_decoder" not in name})
    assert not claims_sam({name: value for name, value in original.items() if "image_encoder" not in name})
    # The beginnings of SAM 2's and GroundingDINO's names.
    assert not claims_sam({"image_encoder.trunk.blocks.0.attn.qkv.weight": 0, "sam_mask_decoder.iou_token.weight": 0})
    assert not claims_sam({"backbone.0.body.layers.0.blocks.0.norm1.weight": 0, "bert.pooler.dense.weight": 0})


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_files_of_both_layouts_are_read(model, original, tmp_path, layout, dtype):
    from safetensors.torch import save_file

    state = original if layout == "original" else to_transformers(original)
    # Files of the library keep the shared positions once.
    state = {
        name: value for name, value in state.items() if name != "prompt_encoder.shared_embedding.positional_embedding"
    }
    torch.save(state, tmp_path / "sam.pth")
    save_file(state, tmp_path / "sam.safetensors")
    for name in ("sam.pth", "sam.safetensors"):
        found = read_state(tmp_path / name)
        assert sam.claims(found)
        loaded = sam_of_state(found, tmp_path / name, dtype, decoder_heads=4)
        assert not loaded.training and not any(value.is_meta for value in loaded.state_dict().values())
        expected = model.state_dict()
        for key, value in loaded.state_dict().items():
            wanted = dtype if key.startswith("vision_encoder.") else torch.float32
            assert value.dtype == wanted and torch.equal(value, expected[key].to(wanted)), key


def test_sizes_are_read_from_shapes(model, original):
    found, wanted = config_of_original(original, decoder_heads=4), model.config
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        one, other = getattr(found, part).to_dict(), getattr(wanted, part).to_dict()
        for value in (one, other):
            value.pop("scale", None)
            value.pop("mlp_ratio", None)
        assert one == other


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "layers"),
    [
        ("vit_b", 768, 12, 12, [2, 5, 8, 11]),
        ("vit_l", 1024, 24, 16, [5, 11, 17, 23]),
        ("vit_h", 1280, 32, 16, [7, 15, 23, 31]),
    ],
)
def test_every_published_size_fits(name, width, depth, heads, layers):
    pytest.importorskip("segment_anything")
    from segment_anything import sam_model_registry
    from transformers import SamModel

    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    config = config_of_original(state)
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (width, depth, heads)
    assert (vision.image_size, vision.patch_size, vision.window_size, vision.mlp_dim) == (1024, 16, 14, 4 * width)
    assert list(vision.global_attn_indexes) == layers
    with torch.device("meta"):
        own = SamModel(config).state_dict()
    renamed = to_transformers(state)
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in own.items()}
    assert to_original(renamed).keys() == state.keys() - {"pixel_mean", "pixel_std"}


def test_misfits_name_the_tensors(original):
    lost = [name for name in original if name.startswith("image_encoder.blocks.2.mlp.")]
    cut = {name: value for name, value in original.items() if name not in lost}
    with pytest.raises(RuntimeError, match=r"cut\.pth does not fit SamModel: 4 tensors are missing") as caught:
        sam.load_state(cut, "cut.pth")
    assert "vision_encoder.layers.2.mlp.lin1.bias" in str(caught.value)
    more = {**original, "image_encoder.adapter.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"1 tensor is unknown \(vision_encoder\.adapter\.weight\)"):
        sam.load_state(more, "more.pth")
    odd = {**original, "mask_decoder.iou_token.weight": torch.zeros(1, 3)}
    with pytest.raises(RuntimeError, match=r"mask_decoder\.iou_token\.weight is \[1, 3\] instead of \[1, 64\]"):
        sam.load_state(odd, "odd.pth")
    headless = {name: value for name, value in original.items() if name != "image_encoder.pos_embed"}
    with pytest.raises(RuntimeError, match=r"headless\.pth lacks the tensor 'image_encoder\.pos_embed'"):
        sam.load_state(headless, "headless.pth")
    flat = {**original, "image_encoder.pos_embed": torch.zeros(3)}
    with pytest.raises(RuntimeError, match=r"flat\.pth has tensors of odd shapes"):
        sam.load_state(flat, "flat.pth")


def test_the_small_encoder_that_is_not_supported_is_named(original):
    small = {name: value for name, value in original.items() if not name.startswith("image_encoder.")}
    small["image_encoder.patch_embed.seq.0.c.weight"] = torch.zeros(1)
    assert sam.claims(small) and not sam_hq.claims(small)
    with pytest.raises(ValueError, match=r"mobile_sam\.pt: these weights have a TinyViT picture encoder"):
        sam.load_state(small, "mobile_sam.pt")
    small["mask_decoder.hf_token.weight"] = torch.zeros(1)
    assert sam_hq.claims(small)
    with pytest.raises(ValueError, match=r"sam_hq_vit_tiny\.pth: .* choose a vit_b, vit_l or vit_h file"):
        sam_hq.load_state(small, "sam_hq_vit_tiny.pth")


def test_weights_of_something_else_are_refused():
    with pytest.raises(ValueError, match=r"other\.pth: these are not SAM weights \(first names: conv\.weight\)"):
        sam.load_state({"conv.weight": torch.zeros(1)}, "other.pth")
