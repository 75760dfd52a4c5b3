"""Masks with finer edges by SAM-HQ (Ke et al., arXiv 2306.01567), which adds a mask token and early features to SAM.

The weights are held by transformers' ``SamHQModel`` and may also come in the original package's layout. Masks are
decoded here: the library's decoder (4.52 up to 5.23 at least) draws masks on picture features from before its
transformer, with rows and columns exchanged, and so does not give the original's masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..loading import load_model_folder
from .sam import EncodedPictures, SamSegmenter
from .sam_format import picture_processor, sam_processor
from .sam_hq_format import claims_sam_hq, sam_hq_of_state

MODEL_TYPES = ("sam_hq",)


class SamHQSegmenter(SamSegmenter):
    """SAM-HQ as the tracker uses it; like :class:`~.sam.SamSegmenter`, of a ``SamHQModel``."""

    def _look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        embeddings, early = self.model.get_image_embeddings(pixels)
        # What the first layer with attention to the whole picture found still holds the fine edges.
        return embeddings, fine_features(self.model.mask_decoder, embeddings, early[0])

    def _predict(
        self, picture: EncodedPictures, prompts: dict[str, Tensor | None], candidates: bool
    ) -> tuple[Tensor, Tensor]:
        sparse, dense = self.model.prompt_encoder(**prompts)
        positions = self.model.get_image_wide_positional_embeddings()
        # Either all prompts share one picture, or each has one with its own rough mask added.
        pictures = (picture.embeddings + dense).repeat_interleave(sparse.shape[1], dim=0)
        coarse, fine, scores = draw_masks(
            self.model.mask_decoder, pictures, positions, sparse.flatten(0, 1), picture.details
        )
        # The first token is for unambiguous prompts. As in the original's predictor the fine mask is added to SAM's.
        chosen = slice(1, None) if candidates else slice(0, 1)
        return coarse[:, chosen] + fine, scores[:, chosen]


def fine_features(decoder: nn.Module, embeddings: Tensor, early: Tensor) -> Tensor:
    """What SAM-HQ draws fine edges on: features of the encoder's end and of its beginning, enlarged and added.

    Args:
        decoder: of a ``SamHQModel``.
        embeddings: of pictures, [t, C, h, w].
        early: features from within the encoder, [t, h, w, C'].

    Returns:
        [t, C / 8, 4 h, 4 w] in the decoder's dtype.
    """
    kind = decoder.encoder_conv1.weight.dtype
    late = decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(embeddings.to(kind))))
    begun = early.to(kind).permute(0, 3, 1, 2).contiguous()
    begun = decoder.activation(decoder.compress_vit_norm(decoder.compress_vit_conv1(begun)))
    return decoder.encoder_conv2(late) + decoder.compress_vit_conv2(begun)


def draw_masks(
    decoder: nn.Module, pictures: Tensor, positions: Tensor, prompts: Tensor, details: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All masks of N prompts by SAM-HQ's decoder.

    Args:
        decoder: of a ``SamHQModel``.
        pictures: embeddings with the prompts' rough masks added, [N, C, h, w].
        positions: embedding of the places in the picture, [1, C, h, w].
        prompts: embedded points and corners, [N, P, C].
        details: ``fine_features`` of the picture, [1, C / 8, 4 h, 4 w].

    Returns:
        SAM's logits [N, M, 4 h, 4 w], fine logits [N, 1, 4 h, 4 w], and predicted IoU of SAM's masks [N, M].
    """
    count, _, height, width = pictures.shape
    own_tokens = decoder.mask_tokens.weight.shape[0]
    learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])
    tokens = torch.cat([learned.expand(count, -1, -1), prompts.to(learned.dtype)], dim=1)
    tokens, places = decoder.transformer(
        point_embeddings=tokens[:, None],
        image_embeddings=pictures,
        image_positional_embeddings=positions.expand(count, -1, -1, -1),
        attention_similarity=None,
    )
    tokens, canvas = tokens[:, 0], places[:, 0].transpose(1, 2).unflatten(2, (height, width))
    canvas = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(canvas)))
    canvas = decoder.activation(decoder.upscale_conv2(canvas))
    fine_canvas = decoder.mask_conv2(decoder.activation(decoder.mask_norm(decoder.mask_conv1(canvas)))) + details
    brushes = [head(tokens[:, 1 + index]) for index, head in enumerate(decoder.output_hypernetworks_mlps)]
    fine_brush = decoder.hq_mask_mlp(tokens[:, 1 + own_tokens])
    coarse = torch.einsum("nmc,nchw->nmhw", torch.stack(brushes, dim=1), canvas)
    fine = torch.einsum("nc,nchw->nhw", fine_brush, fine_canvas)[:, None]
    return coarse, fine, decoder.iou_prediction_head(tokens[:, 0])


def claims(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a SAM-HQ, in the original or the transformers layout."""
    return claims_sam_hq(state)


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> SamHQSegmenter:
    """Open a folder in the transformers layout.

    Args:
        folder: with ``config.json``, weights and, if it is not the usual one, the preparation of pictures.
        dtype: of the picture encoder's weights in memory; the small rest stays in full precision.

    Raises:
        FileNotFoundError: when something is missing.
        ValueError: when the folder holds another kind of model.
        RuntimeError: when a file is broken.
        ImportError: when this version of transformers has no SAM-HQ.
    """
    model = load_model_folder(_model_class(), folder, MODEL_TYPES, torch.float32)
    model.vision_encoder.to(dtype)
    return SamHQSegmenter(model, picture_processor(folder, model.config.vision_config.image_size))


def load_state(state: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype = torch.float32) -> SamHQSegmenter:
    """Build a SAM-HQ of any size from the weights of one file.

    Args:
        state: in the original or the transformers layout.
        path: that it came from, for errors.
        dtype: of the picture encoder's weights in memory; the small rest stays in full precision.

    Raises:
        ValueError: when the weights are of another kind of model.
        RuntimeError: when tensors are missing, left over or of a wrong shape.
        ImportError: when this version of transformers has no SAM-HQ.
    """
    _model_class()
    model = sam_hq_of_state(state, path, dtype)
    return SamHQSegmenter(model, sam_processor(model.config.vision_config.image_size))


def _model_class() -> type:
    """``SamHQModel``, which came with transformers 4.52.

    Raises:
        ImportError: when it is not there.
    """
    try:
        from transformers import SamHQModel
    except ImportError as error:
        raise ImportError(
            "SAM-HQ needs transformers 4.52 or newer; update the package, or choose a SAM file instead."
        ) from error
    return SamHQModel
