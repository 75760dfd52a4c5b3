"""Sizes and first weights of the Toybox detector and segmenter; the classes are the ones large models use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...perception.segmentation.sam_format import sam_processor
from ...toybox import world

if TYPE_CHECKING:
    from transformers import (
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        PreTrainedModel,
        ProcessorMixin,
        SamModel,
        SamProcessor,
    )

IMAGE_MEAN = [0.485, 0.456, 0.406]
IMAGE_STD = [0.229, 0.224, 0.225]

# The model knows these four by number, so a small vocabulary keeps BERT's places for them.
SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
FIRST_WORD = 1030
VOCABULARY_SIZE = 1088
ANYTHING = ("object", "thing", "shape")


def detector_words() -> list[str]:
    """Every word the detector knows: the world's, articles, and words for any object."""
    words = [*world.COLOURS, *world.SHAPES, *(f"{shape}s" for shape in world.SHAPES), *ANYTHING, "a", "an", "the"]
    for text in (*world.MOTIONS.values(), *world.BACKGROUNDS.values()):
        words.extend(text.split())
    return list(dict.fromkeys([*words, "and", ","]))


def build_detector_processor() -> GroundingDinoProcessor:
    """Word tokenizer and 64 px image processor, as transformers saves and loads them."""
    from transformers import BertTokenizerFast, GroundingDinoImageProcessor, GroundingDinoProcessor

    places = {number: token for token, number in SPECIAL_TOKENS.items()}
    places.update({FIRST_WORD + index: word for index, word in enumerate(detector_words())})
    lines = [places.get(number, f"[unused{number}]") for number in range(VOCABULARY_SIZE)]
    with TemporaryDirectory() as folder:
        # Constructors read a vocabulary file in some transformers versions only; from_pretrained does in all.
        (Path(folder) / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        tokenizer = BertTokenizerFast.from_pretrained(folder, do_lower_case=True, model_max_length=48)
    image_processor = GroundingDinoImageProcessor(
        size={"shortest_edge": world.SIZE, "longest_edge": 2 * world.SIZE},
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        do_pad=True,
    )
    return GroundingDinoProcessor(image_processor, tokenizer)


def build_detector(
    channels: Sequence[int] = (32, 64, 128), depths: Sequence[int] = (1, 2, 2)
) -> GroundingDinoForObjectDetection:
    """A GroundingDINO of about a million parameters with weights from which training starts at once."""
    from transformers import BertConfig, ConvNextV2Config, GroundingDinoConfig, GroundingDinoForObjectDetection

    backbone = ConvNextV2Config(
        num_stages=len(channels),
        hidden_sizes=list(channels),
        depths=list(depths),
        patch_size=4,
        image_size=world.SIZE,
        out_indices=[2, 3],
        layer_norm_eps=1e-6,
    )
    text = BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=64,
        encoder_layers=2,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_ffn_dim=128,
        decoder_attention_heads=4,
        num_queries=12,
        num_feature_levels=2,
        max_text_len=48,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.0,
        text_enhancer_dropout=0.0,
    )
    model = GroundingDinoForObjectDetection(config)
    _prepare_detector(model)
    return model


@torch.no_grad()
def _prepare_detector(model: GroundingDinoForObjectDetection) -> None:
    """Replace first values that suit fine tuning by ones that suit training from nothing."""
    inner = model.model
    width = model.config.d_model
    for layer in inner.encoder.layers:
        # At the default 1e-4 words and pictures would not meet for thousands of steps.
        layer.fusion_layer.vision_param.fill_(0.5)
        layer.fusion_layer.text_param.fill_(0.5)
    # Scores are plain dot products. Small norms and opposite offsets start every score near 1 %, as focal loss wants.
    direction = torch.nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(0)), dim=0)
    for norm, sign in (
        (inner.decoder.layer_norm, 1.0),
        (inner.enc_output_norm, 1.0),
        (inner.encoder.layers[-1].text_enhancer_layer.layer_norm_after, -1.0),
    ):
        norm.weight.fill_(0.35)
        norm.bias.copy_(sign * 1.5 * direction)
    # The library's 0.02 leaves the branches of a small ConvNeXt silent: colours are learnt at once, shapes hardly ever.
    for module in inner.backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    # Proposals start at a 20th of the picture; the world's objects are about a third of it.
    inner.encoder_output_bbox_embed.layers[-1].bias[2:].fill_(2.0)


def build_segmenter() -> SamModel:
    """A SAM of under a million parameters for 64 px pictures: 8 x 8 tokens, 32 x 32 masks that are then enlarged."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    width = 64
    vision = SamVisionConfig(
        hidden_size=128,
        output_channels=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=world.SIZE,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1, 3],
        num_pos_feats=width // 2,
        mlp_dim=256,
        initializer_range=0.02,
    )
    vision.scale = 1.0
    prompt = SamPromptEncoderConfig(hidden_size=width, image_size=world.SIZE, patch_size=8)
    # 1e-5 is what the segment-anything package uses in its decoder; the two then agree.
    decoder = SamMaskDecoderConfig(
        hidden_size=width, mlp_dim=128, num_attention_heads=4, iou_head_hidden_dim=64, layer_norm_eps=1e-5
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=decoder.to_dict(),
    )
    model = SamModel(config)
    _widen_positions(model)
    freeze_positions(model)
    return model


@torch.no_grad()
def _widen_positions(model: SamModel) -> None:
    """Spread SAM's random frequencies from coarse to fine.

    At one common scale a place resembles only places within five pixels, so the corners of a box say nothing about its
    middle, and a small model first learns to ignore its prompts.
    """
    positions = model.shared_image_embedding.positional_embedding
    positions.mul_(torch.linspace(0.1, 1.0, positions.shape[1]))
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(positions)


def freeze_positions(model: nn.Module) -> None:
    """Keep SAM's random Fourier frequencies as they are: the original package holds them in a buffer."""
    for name, parameter in model.named_parameters():
        if name.endswith("positional_embedding"):
            parameter.requires_grad_(False)


def build_segmenter_processor() -> SamProcessor:
    """Image processor for 64 px pictures."""
    return sam_processor(world.SIZE)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """What the image processors do to a picture of native size: float [B, 3, H, W] in 0..1 to model units."""
    mean = torch.tensor(IMAGE_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def save_model_folder(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write model (fp16 safetensors) and processor so that transformers 4.5x and 5.x read them.

    Version 5 keeps the image processor inside ``processor_config.json``; version 4 looks for a separate file.
    """
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        settings = processor.image_processor.to_dict()
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # save_pretrained makes weights that only their owner may read.
    (folder / "model.safetensors").chmod(0o644)
