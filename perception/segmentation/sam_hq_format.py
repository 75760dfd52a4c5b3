"""SAM-HQ weights in two layouts: transformers and the original package (Ke et al., arXiv 2306.01567)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...weight_files.reading import load_checked
from . import sam_format

if TYPE_CHECKING:
    from transformers import SamHQConfig, SamHQModel

# (transformers, original): beginnings of the names that SAM-HQ adds to SAM's mask decoder.
_RENAMES: tuple[tuple[str, str], ...] = (
    ("mask_decoder.hq_token.", "mask_decoder.hf_token."),
    ("mask_decoder.hq_mask_mlp.proj_in.", "mask_decoder.hf_mlp.layers.0."),
    ("mask_decoder.hq_mask_mlp.layers.0.", "mask_decoder.hf_mlp.layers.1."),
    ("mask_decoder.hq_mask_mlp.proj_out.", "mask_decoder.hf_mlp.layers.2."),
    ("mask_decoder.compress_vit_conv1.", "mask_decoder.compress_vit_feat.0."),
    ("mask_decoder.compress_vit_norm.", "mask_decoder.compress_vit_feat.1."),
    ("mask_decoder.compress_vit_conv2.", "mask_decoder.compress_vit_feat.3."),
    ("mask_decoder.encoder_conv1.", "mask_decoder.embedding_encoder.0."),
    ("mask_decoder.encoder_norm.", "mask_decoder.embedding_encoder.1."),
    ("mask_decoder.encoder_conv2.", "mask_decoder.embedding_encoder.3."),
    ("mask_decoder.mask_conv1.", "mask_decoder.embedding_maskfeature.0."),
    ("mask_decoder.mask_norm.", "mask_decoder.embedding_maskfeature.1."),
    ("mask_decoder.mask_conv2.", "mask_decoder.embedding_maskfeature.3."),
)
_ADDED = re.compile(
    r"mask_decoder\.(h[fq]_|compress_vit_|embedding_encoder\.|embedding_maskfeature\.|encoder_(conv|norm)|mask_(conv|norm))"
)


def claims_sam_hq(names: Mapping[str, Any]) -> bool:
    """Whether a state dict holds a whole SAM-HQ, by its names, in either layout."""
    return sam_format.claims_sam(names) and any(
        name.endswith((".hf_token.weight", ".hq_token.weight")) for name in names
    )


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an original state dict to the names of transformers' ``SamHQModel``."""
    common = sam_format.to_transformers({name: value for name, value in state.items() if not _ADDED.match(name)})
    return {**common, **_renamed(state, [(theirs, ours) for ours, theirs in _RENAMES])}


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a transformers ``SamHQModel`` state dict to the original package's names."""
    common = sam_format.to_original({name: value for name, value in state.items() if not _ADDED.match(name)})
    return {**common, **_renamed(state, _RENAMES)}


def _renamed(state: Mapping[str, Tensor], pairs: Any) -> dict[str, Tensor]:
    """What SAM-HQ adds, under other names; a name that fits none of the pairs is kept, so that it is reported later."""
    renamed = {}
    for name, value in state.items():
        if _ADDED.match(name):
            old, new = next((pair for pair in pairs if name.startswith(pair[0])), ("", ""))
            renamed[new + name.removeprefix(old)] = value
    return renamed


def config_of_original(state: Mapping[str, Tensor], decoder_heads: int = sam_format.DECODER_HEADS) -> SamHQConfig:
    """Read all sizes from the shapes of an original state dict.

    Args:
        state: in the original layout.
        decoder_heads: attention heads of the mask decoder, which the shapes do not show.

    Raises:
        KeyError: naming a tensor that is missing.
    """
    from transformers import SamHQConfig, SamHQMaskDecoderConfig, SamHQPromptEncoderConfig, SamHQVisionConfig

    vision, prompt, decoder = sam_format.sizes_of_original(state, decoder_heads)
    decoder["vit_dim"] = state["mask_decoder.compress_vit_feat.0.weight"].shape[0]
    return SamHQConfig(
        vision_config=SamHQVisionConfig(**vision).to_dict(),
        prompt_encoder_config=SamHQPromptEncoderConfig(**prompt).to_dict(),
        mask_decoder_config=SamHQMaskDecoderConfig(**decoder).to_dict(),
    )


def sam_hq_of_state(
    state: Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype,
    decoder_heads: int = sam_format.DECODER_HEADS,
) -> SamHQModel:
    """Build transformers' model from weights of either layout and any size.

    Args:
        state: tensors by their names.
        path: that they came from, for errors.
        dtype: of the picture encoder's weights in memory; the rest stays in full precision.
        decoder_heads: attention heads of the mask decoder.

    Raises:
        ValueError: when the weights are of another kind of model.
        RuntimeError: when tensors are missing, left over or of a wrong shape.
    """
    from transformers import SamHQModel

    original = state if sam_format.layout_of(state, path) == "original" else to_original(state)
    with sam_format.named_tensors(path):
        config = config_of_original(original, decoder_heads)
    with torch.device("meta"):
        model = SamHQModel(config)
    model.vision_encoder.to(dtype)
    return load_checked(model, to_transformers(original), path)
