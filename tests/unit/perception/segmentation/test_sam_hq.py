"""SAM-HQ at tiny size: both layouts, folders, and masks drawn as the original draws them."""

import sys
from types import ModuleType

import pytest
import torch
from tiny_sam_hq import build

pytest.importorskip("transformers.models.sam_hq")

from mask_guided_video.perception.boxes import Box
from mask_guided_video.perception.frames import Film
from mask_guided_video.perception.prompts import ObjectPrompt, Point
from mask_guided_video.perception.segmentation import sam, sam_hq, sam_hq_format
from mask_guided_video.perception.segmentation.sam_format import sam_processor, to_original
from mask_guided_video.training.perception.models import build_segmenter
from mask_guided_video.weight_files.reading import read_state

# What SAM-HQ's files have beyond SAM's, as its registry's models name it.
ADDED = {
    "hf_token": ("weight",),
    **{f"hf_mlp.layers.{index}": ("weight", "bias") for index in range(3)},
    **{f"compress_vit_feat.{index}": ("weight", "bias") for index in (0, 1, 3)},
    **{f"embedding_encoder.{index}": ("weight", "bias") for index in (0, 1, 3)},
    **{f"embedding_maskfeature.{index}": ("weight", "bias") for index in (0, 1, 3)},
}


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def original(model):
    return {name: value.clone() for name, value in sam_hq_format.to_original(model.state_dict()).items()}


@pytest.fixture
def segmenter(model):
    return sam_hq.SamHQSegmenter(model, sam_processor(64), batch_size=2)


def test_the_layouts_differ_in_names_only(model, original):
    back = sam_hq_format.to_transformers(original)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())
    plain = to_original(build_segmenter().state_dict())
    added = {f"mask_decoder.{name}.{kind}" for name, kinds in ADDED.items() for kind in kinds}
    unlike = {name for name in original.keys() - plain.keys() if not name.startswith("image_encoder.blocks.")}
    assert unlike == added


def test_it_is_claimed_before_plain_sam(original, model):
    assert sam_hq.claims(original) and sam_hq.claims(model.state_dict())
    assert sam.claims(original)
    assert not sam_hq.claims({"mask_decoder.hf_token.weight": torch.zeros(1)})


def test_files_and_folders_give_the_same_masks(segmenter, original, tmp_path):
    torch.save(original, tmp_path / "sam_hq.pth")
    from_file = sam_hq.load_state(read_state(tmp_path / "sam_hq.pth"), tmp_path / "sam_hq.pth")
    segmenter.model.save_pretrained(tmp_path / "folder")
    from_folder = sam_hq.load_folder(tmp_path / "folder")
    prompts = [ObjectPrompt(0, box=Box(5, 5, 30, 20)), ObjectPrompt(0, points=(Point(20, 10),))]
    film = Film(torch.rand(1, 48, 60, 3))
    expected = segmenter.open(film).segment(0, prompts)
    for loaded in (from_file, from_folder):
        for one, other in zip(loaded.open(film).segment(0, prompts), expected, strict=True):
            assert (one.mask.int() - other.mask.int()).abs().max() <= 1
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_prompts_of_all_kinds_answer_alike_together_and_alone(segmenter):
    guess = torch.zeros(48, 60)
    guess[4:24, 12:40] = 1
    prompts = [
        ObjectPrompt(0, box=Box(5, 5, 30, 20)),
        ObjectPrompt(0, points=(Point(20, 20), Point(3, 3, False))),
        ObjectPrompt(0, box=Box(5, 5, 30, 20)),
        ObjectPrompt(0, mask=guess.flip(0)),
        ObjectPrompt(0, box=Box(25, 5, 30, 40)),
    ]
    guesses = [None, None, guess, None, None]
    opened = segmenter.open(Film(torch.rand(3, 48, 60, 3)))
    together = opened.segment(1, prompts, guesses)
    for number, sighting in enumerate(together):
        alone = opened.segment(1, prompts[number : number + 1], guesses[number : number + 1])[0]
        assert (sighting.mask.int() - alone.mask.int()).abs().max() <= 1
        assert 0.0 <= sighting.score <= 1.0
    assert len({bytes(sighting.mask.numpy()) for sighting in together}) == len(prompts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(original, dtype):
    half = sam_hq.load_state(original, "sam_hq.pth", dtype)
    film = Film(torch.rand(1, 48, 60, 3))
    prompts = [ObjectPrompt(0, box=Box(5, 5, 30, 20)), ObjectPrompt(0, mask=torch.ones(48, 60))]
    full = sam_hq.load_state(original, "sam_hq.pth").open(film).segment(0, prompts)
    for whole in (False, True):
        if whole:
            half.model.to(dtype)
        for one, other in zip(half.open(film).segment(0, prompts), full, strict=True):
            assert (one.mask.float() - other.mask.float()).abs().mean() < 6


@torch.no_grad()
def test_own_masks_are_those_of_a_sam_with_one_more_token(model):
    """With the fine token as a fifth mask token, transformers' SAM decodes the same tokens from the same weights."""
    from transformers import SamMaskDecoderConfig
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    decoder = model.mask_decoder
    names = SamMaskDecoderConfig().to_dict().keys() & model.config.mask_decoder_config.to_dict().keys()
    values = {name: getattr(model.config.mask_decoder_config, name) for name in names - {"model_type"}}
    config = SamMaskDecoderConfig(**{**values, "num_multimask_outputs": 4})
    config._attn_implementation = "eager"
    plain = SamMaskDecoder(config).eval()
    state = {name: value for name, value in decoder.state_dict().items() if name in plain.state_dict()}
    state["mask_tokens.weight"] = torch.cat([decoder.mask_tokens.weight, decoder.hq_token.weight])
    for name, value in decoder.hq_mask_mlp.state_dict().items():
        state[f"output_hypernetworks_mlps.4.{name}"] = value
    for name in ("weight", "bias"):
        last = state[f"iou_prediction_head.proj_out.{name}"]
        state[f"iou_prediction_head.proj_out.{name}"] = torch.cat([last, torch.zeros_like(last[:1])])
    plain.load_state_dict(state)

    pictures, positions = torch.randn(2, 32, 8, 8), torch.randn(1, 32, 8, 8)
    prompts, details = torch.randn(2, 3, 32), torch.randn(1, 4, 32, 32)
    own, fine, scores = sam_hq.draw_masks(decoder, pictures, positions, prompts, details)
    for number in range(2):
        arguments = {
            "image_embeddings": pictures[number : number + 1],
            "image_positional_embeddings": positions,
            "sparse_prompt_embeddings": prompts[number][None, None],
            "dense_prompt_embeddings": torch.zeros(1, 32, 8, 8),
        }
        first, first_score = plain(**arguments, multimask_output=False)[:2]
        others, other_scores = plain(**arguments, multimask_output=True)[:2]
        assert others.std() > 0.02
        torch.testing.assert_close(own[number], torch.cat([first, others[:, :, :3]], 2)[0, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(scores[number], torch.cat([first_score, other_scores[..., :3]], 2)[0, 0])
    assert fine.shape == (2, 1, 32, 32) and not torch.equal(fine[0], fine[1])


@torch.no_grad()
def test_fine_masks_are_drawn_on_the_details():
    decoder = build().mask_decoder
    decoder.mask_conv2.weight.zero_()
    decoder.mask_conv2.bias.zero_()
    details = torch.randn(1, 4, 32, 32)
    inputs = torch.randn(1, 32, 8, 8), torch.randn(1, 32, 8, 8), torch.randn(1, 3, 32)
    first, second = (sam_hq.draw_masks(decoder, *inputs, values)[1] for values in (details, 2 * details))
    torch.testing.assert_close(second, 2 * first)
    turned = sam_hq.draw_masks(decoder, *inputs, details.flip(3))[1]
    torch.testing.assert_close(turned, first.flip(3))


def test_missing_tensors_are_named(original):
    lost = {name: value for name, value in original.items() if "compress_vit_feat.1" not in name}
    with pytest.raises(
        RuntimeError, match=r"mask_decoder\.compress_vit_norm\.bias, mask_decoder\.compress_vit_norm\.weight"
    ):
        sam_hq.load_state(lost, "lost.pth")
    with pytest.raises(RuntimeError, match=r"lacks the tensor 'mask_decoder\.compress_vit_feat\.0\.weight'"):
        sam_hq.load_state({k: v for k, v in original.items() if "compress_vit_feat" not in k}, "lost.pth")


def test_a_version_without_the_model_says_what_to_do(monkeypatch, original):
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    with pytest.raises(ImportError, match=r"SAM-HQ needs transformers 4\.52 or newer"):
        sam_hq.load_state(original, "sam_hq.pth")


@pytest.mark.parametrize(
    ("width", "depth", "heads", "layers"),
    [(768, 12, 12, [2, 5, 8, 11]), (1024, 24, 16, [5, 11, 17, 23]), (1280, 32, 16, [7, 15, 23, 31])],
)
def test_every_published_size_is_read_back(width, depth, heads, layers):
    from transformers import SamHQConfig, SamHQModel

    config = SamHQConfig()
    vision = config.vision_config
    vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = width, depth, heads
    vision.mlp_dim, vision.global_attn_indexes = 4 * width, layers
    config.mask_decoder_config.vit_dim = width
    with torch.device("meta"):
        state = sam_hq_format.to_original(SamHQModel(config).state_dict())
        found = sam_hq_format.config_of_original(state)
        own = SamHQModel(found).state_dict()
    assert found.mask_decoder_config.vit_dim == width and list(found.vision_config.global_attn_indexes) == layers
    renamed = sam_hq_format.to_transformers(state)
    assert {key: value.shape for key, value in renamed.items()} == {key: value.shape for key, value in own.items()}
